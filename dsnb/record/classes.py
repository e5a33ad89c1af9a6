"""Classes of data: which a study's is, what a page may show of it, and small groups hidden.

A group of few people tells of each of them, so its numbers are hidden, not only its size.
"""

import re
from numbers import Real

from dsnb.space import DS_SPLITS, EUPLOID_SPLITS, STAGES

# class -> what a page may show of single people. Groups of FEWEST or more may always be shown.
SHOWS = {
    "phantom": {"pictures", "ids", "few"},  # drawn by us
    "synthetic": {"pictures", "ids", "few"},  # left through the release gate
    "open": {"pictures", "few"},  # CC0 or PDDL; whose picture it is, nobody needs
    "restricted": set(),  # everything else
}
FEWEST, OLDEST = 5, 89  # people; years
SIZES = re.compile("n|people|persons|subjects|patients|size|count|members", re.I)
COUNTED = [*EUPLOID_SPLITS, *DS_SPLITS, *STAGES]
COUNTS = re.compile(
    "|".join((SIZES.pattern, "scans|sum|others|learners|euploids?|ds|prepared|excluded"
              "|flagged", *COUNTED)), re.I,
)  # fmt: skip
TALLIES = ("exclusions", "stages")  # tables of kind -> people
AGES = re.compile(r"age|.*_age|age_.*|oldest", re.I)
FEW_WORDS = re.compile(rf"\b[1-{FEWEST - 1}](?= (unrelated )?(people|persons|patients|subjects)\b)")


def data_class(mark: dict) -> str:
    """Return the class of the data that a study's mark tells of; what is unknown is restricted."""
    if mark.get("class") in SHOWS:
        return mark["class"]
    if mark.get("data") == "phantom" and mark.get("people_may_be_shown", True):
        return "phantom"
    return "open" if mark.get("people_may_be_shown") else "restricted"


def may_show(mark: dict, what: str) -> bool:
    """Tell whether pages of the study may show single people's "pictures", "ids" or "few"."""
    return what in SHOWS[data_class(mark)]


def _few(value: object) -> bool:
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and value in range(1, FEWEST)


def hide_row(row: list[tuple[str, object]], name: str = "") -> list:
    """Return the values of one row [(name, value)]: small counts "<5", ages over 89 "90+".

    Where the row's own size is small, each of its numbers is hidden.
    """
    small = any(SIZES.fullmatch(key) and _few(value) for key, value in row)
    hidden = []
    for key, value in row:
        number = isinstance(value, Real) and not isinstance(value, bool) and value == value
        counts = COUNTS.fullmatch(key) or name in TALLIES
        if number and (small or (counts and _few(value))):
            value = f"<{FEWEST}" if counts else "few"
        elif number and (AGES.fullmatch(key) or AGES.fullmatch(name)) and value > OLDEST:
            value = f"{OLDEST + 1}+"
        hidden.append(value if number else suppress(value, key))
    return hidden


def suppress(value: object, name: str = "") -> object:
    """Return plain results (dicts, lists, numbers, text) with what tells of few people hidden."""
    if isinstance(value, dict):
        row = [(str(key), entry) for key, entry in value.items()]
        return dict(zip(value, hide_row(row, name)))
    if isinstance(value, list | tuple):
        return [suppress(entry) for entry in value]
    return FEW_WORDS.sub(f"<{FEWEST}", value) if isinstance(value, str) else value

"""A BIDS folder before the study: who has which scan, and everything that is wrong, at once."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import bids
from dsnb.bids import MISSING
from dsnb.checks import BadInput
from dsnb.cohort.manifest import find_copies, find_mixture, survey
from dsnb.cohort.split import check_stated

TABLE = "participants.tsv"
LEFT_OUT = {"E-NOSCAN": "a T1w for each row", "E-SESSION": "a row for each session"}
LASTING = ["sex", "group_recorded", "family"]  # what no later session changes


@dataclass
class Folder:
    """What a raw folder holds: a row a session, who is left out and why, and the manifest."""

    people: pd.DataFrame
    excluded: pd.DataFrame
    manifest: pd.DataFrame
    problems: list[BadInput]
    warnings: list[BadInput]


def check(raw: Path, full: bool = False, root: Path | None = None) -> dict:
    """Return the report of a raw folder; nothing is raised, everything wrong stands in it.

    What was read is remembered under the data root `root`; `full` reads every scan again.
    """
    return report(read_folder(raw, full, root))


def report(folder: Folder) -> dict:
    """Return verdict, problems, warnings and counts as plain JSON values."""
    notes = Counter(note for several in folder.manifest["notes"] for note in several.split("; "))
    counts = {
        "people": int((folder.people["kind"] == "recorded").sum()),
        "sessions": len(folder.people),
        "sound scans": len(folder.manifest),
        "left out": len(folder.excluded),
    }
    return {
        "verdict": "refused" if folder.problems else "accepted",
        "problems": [problem.entry() for problem in folder.problems],
        "warnings": [warning.entry() for warning in folder.warnings],
        "counts": counts | {note: count for note, count in notes.items() if note},
    }


def as_text(report: dict) -> str:
    """Return a report as text: every problem, warnings that are alike as one, and counts."""
    alike: dict[tuple, list[str]] = {}
    for entry in report["warnings"]:
        key = entry["code"], entry["field"], entry["fix"]
        alike.setdefault(key, []).append(entry["message"])
    lines = [f"{report['verdict']}: {len(report['problems'])} problems, {len(alike)} warnings"]
    lines += [entry["message"] for entry in report["problems"]]
    for first, *more in alike.values():
        lines.append(first + f" ({len(more)} more like it)" * bool(more))
    counts = (f"{name}: {count}" for name, count in report["counts"].items())
    return "\n".join([*lines, "; ".join(counts)])


def read_folder(raw: Path, full: bool = False, root: Path | None = None) -> Folder:
    """Read a BIDS folder whole and return what it holds, with every problem and warning.

    Problems: E-PATH, E-NOTABLE, E-NOT1W, E-NOROW, E-NOBODY, E-PERSON, E-ID, E-DUP, E-MIXED,
    E-SPLIT, E-LEAK, and whatever the table (`bids`) or a scan (`checks`) has.
    """
    if not raw.is_dir():
        fix, where = "give the BIDS folder", raw.resolve().name
        return _refuse(BadInput("E-PATH", where, "the raw folder", "no folder", "a folder", fix))
    people, problems = bids.read_participants(raw)
    found, wrong = bids.find_t1w(raw, set(people.get("t1w", ())))
    problems += wrong
    if people.empty:
        problems += survey(raw, found["t1w"].tolist(), root, full)[1]
        return _refuse(*problems or [_nobody(raw)])
    strange = found[~found["participant_id"].isin(people["participant_id"])]
    if len(strange):
        seen, fix = sorted(set(strange["participant_id"])), "add their rows, or move the scans away"
        problems.append(BadInput("E-NOROW", TABLE, "rows missing", seen, "a row each", fix))
    table, excluded = _match(people, found)
    if table.empty and not problems:
        problems.append(_nobody(raw))
    paths = [*table["t1w"], *strange["t1w"]]
    manifest, unsound, warnings = survey(raw, paths, root, full)
    by_path = manifest.set_index("path")
    table["sha"], table["voxels"] = (table["t1w"].map(by_path[name]) for name in ("sha", "voxels"))
    sites = manifest["path"].map(table.set_index("t1w")["site"])
    mixed, kinds = find_mixture(manifest, sites)
    problems += _check_people(people, table) + unsound + find_copies(manifest) + mixed
    problems += check_stated(table)
    # A scan that is there and refused is not missing.
    refused = {problem.said[1].split("/")[0] for problem in problems}
    for code, several in excluded.groupby("code"):
        if seen := [person for person in several["participant_id"] if person not in refused]:
            fix, expected = "nothing, or add what is missing: they are left out", LEFT_OUT[code]
            warnings.append(BadInput(code, TABLE, "left out", seen, expected, fix))
    return Folder(table, excluded, manifest, problems, warnings + kinds)


def _refuse(*problems: BadInput) -> Folder:
    """Return the folder of which nothing can be read."""
    columns = ["participant_id", "kind", "code", "reason", "notes"]
    nothing = pd.DataFrame(columns=columns, dtype=object)
    return Folder(nothing, nothing, nothing, list(problems), [])


def _nobody(raw: Path) -> BadInput:
    fix = "check that table and folders name the same people"
    return BadInput("E-NOBODY", raw.name, "people with a scan", 0, "at least one", fix)


def _match(people: pd.DataFrame, found: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give every scan its row; list who and what stays out.

    Labels meet without leading zeros; a person's only row meets the only scan, if that has no
    label. A person's earliest session (by age, then by its label, numbers as numbers) is the
    recorded one; later ones become repeats of it, named after it.
    """
    people = people.drop(columns="t1w", errors="ignore")
    people = people.drop_duplicates(["participant_id", "session"])  # told by E-DUPLICATE
    both = people.merge(found, on="participant_id", suffixes=("_row", ""))
    row, scan = (both[name].map(_strip_zeros) for name in ("session_row", "session"))
    alone = (scan == MISSING) & ~both.duplicated("participant_id", keep=False)
    exact = both["session_row"] == both["session"]
    both["general"] = np.select([exact, (row == scan) | alone], [0, 1], 2)  # the least fits best
    both = both[(both["general"] < 2) | (both["session_row"] == MISSING)]
    years = pd.to_numeric(both["age"], errors="coerce")
    label = both["session"].map(lambda text: re.sub(r"\d+", lambda n: n[0].zfill(9), text))
    label = label.where(both["session"] != MISSING, "")
    order = both.assign(years=years, label=label)
    order = order.sort_values(["participant_id", "general"]).drop_duplicates("t1w")
    both = order.sort_values(["participant_id", "years", "label"]).reset_index(drop=True)
    person, later = both["participant_id"], both.duplicated("participant_id")
    name = person + "ses" + both["session"].str.replace(r"[^A-Za-z0-9]", "", regex=True)
    table = both.drop(columns=["session_row", "general", "years", "label"]).assign(
        participant_id=name.where(later, person),
        origin=person.where(later, MISSING),
        kind=np.where(later, "repeat", "recorded"),
    )
    given = set(zip(person, both["session_row"]))
    return table, _list_left_out(people, found, given, set(both["t1w"]))


def _strip_zeros(label: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", label)


def _list_left_out(people: pd.DataFrame, found: pd.DataFrame, given: set, used: set):
    """Return who is not in `given` (person, session) and which scan of a person is not `used`."""
    left_out = [
        (person, "E-NOSCAN", "no T1w scan" + f" of session {session}" * (session != MISSING))
        for person, session in zip(people["participant_id"], people["session"])
        if (person, session) not in given
    ]
    known = found["participant_id"].isin(people["participant_id"])
    left_out += [
        (person, "E-SESSION", f"session {session}: the table has no row for it")
        for person, session, scan in found[known].itertuples(index=False)
        if scan not in used
    ]
    return pd.DataFrame(left_out, columns=["participant_id", "code", "reason"], dtype=object)


def _check_people(people: pd.DataFrame, table: pd.DataFrame) -> list[BadInput]:
    """Return E-PERSON where rows of one person disagree, E-ID where our names meet theirs."""
    problems, changed = [], people.groupby("participant_id")[LASTING].nunique() > 1
    for column in changed.columns[changed.any()]:
        said = (changed.index[changed[column]].tolist(), "one value a person", "correct the rows")
        problems.append(BadInput("E-PERSON", TABLE, column, *said))
    drawn = [table.loc[table["kind"] == "repeat", "participant_id"]]
    drawn += [table["participant_id"] + ending for ending in ("planted", "sham")]
    if taken := sorted(set(pd.concat(drawn)) & set(people["participant_id"])):
        said = ("no name that we give: an id and ses..., planted or sham", "rename these people")
        problems.append(BadInput("E-ID", TABLE, "participant_id", taken, *said))
    return problems

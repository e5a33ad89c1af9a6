"""Tolerances: how far a number of the book may move when the study is run again, and which did."""

import math
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

from dsnb import record
from dsnb.checks import BadInput

# The first line that fits `stage.key` holds; an interval counts by its two bounds. `times` is the
# largest ratio, `within` the largest difference; reasons are of classes, not of single numbers.
TOLERANCES = (
    ("*.seconds_per_volume", "times", 20.0, "the speed of a machine"),
    ("10_scaling.*_efficiency", "times", 2.0, "a ratio of speeds, on a machine that others share"),
    ("10_scaling.parity_error", "within", 1e-5, "rounding of sums in another order"),
    ("01_cohort.*", "times", 1.001, "drawn, not trained: rounding only"),
    ("02_volumes.*", "times", 1.001, "registered, not trained: rounding only"),
    ("03_vae.gain_*", "within", 0.0, "read from the ledger"),
    ("03_vae.time_ratio_*", "within", 0.0, "read from the ledger"),
    ("06_strata.*hard*", "within", 0.0, "read from the ledger"),
    ("06_strata.*_false_discovery", "within", 0.0, "read from the ledger"),
    ("10_scaling.*_error_pct", "within", 0.0, "read from the ledger"),
    ("*_db*", "within", 0.2, "trained: dB"),
    ("*.region_error_pct", "within", 0.1, "trained: per cent of volume"),
    ("05_anomaly.*_ratio_ci", "times", 1.25, "a ratio of small lifts, of a trained network"),
    ("*_slope*", "within", 0.1, "trained: a slope near 1"),
    ("*.ds_shift_sd", "within", 0.1, "trained: SD"),
    ("*", "within", 0.02, "trained: AUROC, accuracy, lift, correlation, share"),
)


def moved(run: Path, book: Path) -> pd.DataFrame:
    """Compare every headline number of a data root's results with the book's.

    Returns a row a number: stage, key, book, now, allowed, why, `beyond`; counts, names and
    verdicts have to be equal. A run of another study is refused, E-ROOT.
    """
    rows = []
    for stage in record.STAGES:
        now, kept = record.read_results(run, stage), record.read_results(book, stage)
        for word in ("preset", "data"):
            if now[word] != kept[word]:
                fix = "compare runs of one study"
                raise BadInput("E-ROOT", run.name, word, now[word], kept[word], fix)
        values, wanted = (dict(flat(some["headline"])) for some in (now, kept))
        rows += [judge(stage, key, wanted.get(key), values.get(key)) for key in wanted | values]
    return pd.DataFrame(rows)


def flat(headline: dict) -> list[tuple[str, object]]:
    """Return (key, value) with a bound of an interval as a number of its own, `key[0]`."""
    found = []
    for key, value in headline.items():
        bounds = value if isinstance(value, list) else [value]
        names = [f"{key}[{place}]" for place in range(len(bounds))] if bounds is value else [key]
        found += zip(names, bounds)
    return found


def judge(stage: str, key: str, book: object, now: object) -> dict:
    """Return the row of one number, with what it was allowed to move and whether it went beyond."""
    row = {"stage": stage, "key": key, "book": book, "now": now}
    if not (isinstance(book, float) and isinstance(now, float)):
        return row | {"allowed": "equal", "why": "no measured number", "beyond": book != now}
    name = f"{stage}.{key.split('[')[0]}"
    _, kind, amount, why = next(line for line in TOLERANCES if fnmatch(name, line[0]))
    if kind == "within" or book * now <= 0:
        beyond = abs(now - book) > (amount if kind == "within" else 0)
    else:
        beyond = abs(math.log(now / book)) > math.log(amount)
    return row | {"allowed": f"{kind} {amount:g}", "why": why, "beyond": beyond}


def tell_moved(run: Path, book: Path) -> int:
    """Print which numbers moved against the book; return 1 where one went beyond, else 0."""
    table = moved(run, book)
    changed, beyond = table[table["book"] != table["now"]], table[table["beyond"]]
    if len(changed):
        exact = changed.map(lambda value: f"{value:.6g}" if isinstance(value, float) else value)
        print(exact.to_string(index=False))
    print(
        f"verify: {len(table)} numbers of the book run again, {len(changed)} moved, "
        f"{len(beyond)} beyond what is allowed"
    )
    return int(len(beyond) > 0)

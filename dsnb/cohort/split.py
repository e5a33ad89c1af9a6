"""Who is on which side: families whole, strata even; or as the table says, where that is sound."""

import numpy as np
import pandas as pd

from dsnb import config
from dsnb.bids import MISSING
from dsnb.checks import BadInput
from dsnb.space import DS_SPLITS, EUPLOID_SPLITS

AGE_BAND_YEARS = 15
# Where a euploid belongs whose family holds a person with DS, and the other way round.
SAME_SIDE = dict(zip(DS_SPLITS, ("fit", "validation", "test")))
SIDED = ("recorded", "planted")  # rows that take part in the splits
# Rows that belong to somebody recorded and stand beside the splits.
BESIDE = {"twin": "truth", "sham": "sham", "repeat": "repeat", "native": "native"}


def is_stated(table: pd.DataFrame) -> bool:
    """Tell whether the participants table brings splits of its own."""
    return "split" in table and (table["split"] != MISSING).any()


def check_stated(table: pd.DataFrame) -> list[BadInput]:
    """Return what is wrong with splits that the participants table brings: E-SPLIT, E-LEAK."""
    if not is_stated(table):
        return []
    problems = []
    for group, allowed in (("DS", DS_SPLITS), ("euploid", EUPLOID_SPLITS)):
        wrong = table[(table["group"] == group) & ~table["split"].isin(allowed)]
        if len(wrong):
            seen = dict(zip(wrong["participant_id"], wrong["split"]))
            expected = f"for {group} one of {', '.join(allowed)}, for everybody or for nobody"
            fix = "correct the column, or rename it, and we split"
            problems.append(BadInput("E-SPLIT", "participants.tsv", "split", seen, expected, fix))
    return problems or find_leaks(table)


def find_leaks(table: pd.DataFrame) -> list[BadInput]:
    """Return E-LEAK for every family, person or scan content that stands on two sides."""
    problems, sides = [], table["split"].replace(SAME_SIDE)
    for key in table.columns.intersection(["family", "voxels"]):
        count = sides.groupby(table[key]).nunique()
        for value in count.index[count > 1]:
            rows = table[table[key] == value]
            seen = dict(zip(rows["t1w"], rows["split"]))
            said = (f"split of {key} {value}", seen, "one side", "put all on one side")
            problems.append(BadInput("E-LEAK", "participants.tsv", *said))
    return problems


def assign_splits(table: pd.DataFrame, settings: config.Cohort) -> list[str]:
    """Return everybody's split: families whole, strata (age band, sex, site) spread evenly.

    Shares scale to any number of people; a family with a sham goes to `test`. Twins, shams,
    repeats and native scans stand beside (`BESIDE`). Splits that the table brings are kept.
    Deterministic by `settings.seed`, whatever the order of the rows.
    """
    if is_stated(table):
        return [BESIDE.get(kind, split) for kind, split in zip(table["kind"], table["split"])]
    recorded = table[table["kind"] == "recorded"]
    tested = dict.fromkeys(table.loc[table["kind"] == "sham", "family"], "test")
    people = {name: recorded[recorded["group"] == name] for name in ("DS", "euploid")}
    ds = _deal(people["DS"], dict(zip(DS_SPLITS, settings.ds_split)), tested, settings.seed)
    bound = tested | {family: SAME_SIDE[split] for family, split in ds.items()}
    shares = dict(zip(EUPLOID_SPLITS, settings.euploid_split))
    euploid = _deal(people["euploid"], shares, bound, settings.seed)
    return [
        BESIDE.get(kind) or (ds if group == "DS" else euploid)[family]
        for kind, group, family in zip(table["kind"], table["group"], table["family"])
    ]


def _deal(people: pd.DataFrame, shares: dict, bound: dict, seed: int) -> dict[str, str]:
    """Deal families to splits; `bound` says where some must go. Return family -> split."""
    if people.empty:
        return {}
    heads = people.sort_values("participant_id").drop_duplicates("family")
    dealt = {family: bound[family] for family in heads["family"] if family in bound}
    free = heads[~heads["family"].isin(list(dealt))]
    wanted = quota(np.array(list(shares.values()), float), len(heads))
    taken = np.array([list(dealt.values()).count(name) for name in shares])
    counts = quota(np.maximum(wanted - taken, 0).astype(float), len(free))
    # Each split takes evenly spaced places in the line of people, which runs stratum by stratum.
    places = [((k + 0.5) / n, name) for name, n in zip(shares, counts) for k in range(n)]
    order = np.random.default_rng(seed).permutation(len(free))
    strata = free.iloc[order].assign(band=free["age"].astype(float) // AGE_BAND_YEARS)
    line = strata.sort_values(["band", "sex", "site"], kind="stable")["family"]
    return dealt | {family: name for family, (_, name) in zip(line, sorted(places))}


def quota(shares: np.ndarray, people: int) -> np.ndarray:
    """Return whole numbers that sum to `people` in proportion to `shares` (largest remainder).

    Every split with a share gets one, if there are people enough.
    """
    if people == 0 or shares.sum() == 0:
        return np.zeros(len(shares), int)
    exact = shares / shares.sum() * people
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: people - counts.sum()]] += 1
    while ((counts == 0) & (shares > 0)).any() and counts.max() > 1:
        counts[counts.argmax()] -= 1
        counts[((counts == 0) & (shares > 0)).argmax()] += 1
    return counts


def plant(table: pd.DataFrame) -> pd.DataFrame:
    """Add the planted DS twins and shams of a cohort without DS; same scan, family and person.

    Euploids of fit, validation and test get a planted twin in the matching DS split, those of
    test a sham too; `volumes.prepare` draws both.
    """
    side = {euploid: ds for ds, euploid in SAME_SIDE.items()}
    planted = table[table["split"].isin(side)]
    shams = table[table["split"] == "test"]
    planted = planted.assign(
        participant_id=planted["participant_id"] + "planted", origin=planted["participant_id"],
        kind="planted", group="DS", stage=MISSING, split=planted["split"].map(side),
    )  # fmt: skip
    shams = shams.assign(
        participant_id=shams["participant_id"] + "sham", origin=shams["participant_id"],
        kind="sham", split="sham",
    )  # fmt: skip
    return pd.concat([table, planted, shams], ignore_index=True)

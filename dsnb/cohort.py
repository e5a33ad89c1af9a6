"""Participants -> checked table: who takes part, split by family once, read by all."""

from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from dsnb import bids, checks, config, record
from dsnb.bids import MISSING
from dsnb.checks import BadInput
from dsnb.space import DS_SPLITS, EUPLOID_SPLITS

AGE_BAND_YEARS = 15
# The columns of cohort/participants.tsv, with what participants.json says about each.
COLUMNS = {
    "participant_id": "sub- and letters or digits",
    "family": "key of the split: a twin, planted or sham scan shares its original's",
    "group": "euploid or DS",
    "kind": "recorded, twin (same person without the condition), planted (with it) or sham",
    "origin": "participant_id of the original",
    "age": "years",
    "sex": "F or M",
    "site": "scanner or centre",
    "session": "the session used",
    "stage": "Alzheimer's disease: asymptomatic, prodromal or dementia",
    "disability": "intellectual disability: mild, moderate or severe",
    "cognition": "score, 0 to 100",
    "motion": "motion score, mm",
    "tiv_ml": "native head size, ml",
    "split": "which part of the study sees this person",
    "t1w": "path of the scan in the raw folder",
    "sha": "digest of the scan",
    "group_recorded": "the group as the raw table says it",
}
# Where a euploid belongs whose family holds a person with DS, and the other way round.
SAME_SIDE = dict(zip(DS_SPLITS, ("fit", "validation", "test")))


def gather(root: Path, study: config.Study, raw: Path | None = None) -> None:
    """Check a BIDS folder (None: the phantom under `root`) and write the product `cohort`.

    People without a scan are left out and listed in exclusions.tsv, since hospitals lose scans;
    a scan without a row is refused, since nobody can know that its owner agreed. Every problem
    is in one report, raised before anything is written.
    """
    if raw is None:
        record.require(root, "raw")
        table, _ = bids.read_participants(root / "raw")
        excluded, parents, source = pd.DataFrame(), ("raw",), {}
    else:
        table, excluded = read_folder(Path(raw))
        parents, source = (), {"participants": record.digest(Path(raw) / "participants.tsv")}
        source["scans"] = record.digest(table[["t1w", "sha"]].to_numpy().tolist())
    asked = study.cohort
    settings = {"seed": asked.seed, "euploid": asked.euploid_split, "ds": asked.ds_split}
    modules = ("cohort", "bids", "checks")
    product = record.begin(root, "cohort", "import", settings | source, parents, modules)
    if product.done:
        return
    table["split"] = assign_splits(table, asked)
    if raw is not None and not (table["group"] == "DS").any():
        table = plant(table)
    _write(product.folder, table[list(COLUMNS)], excluded, settings)
    product.finish()


def load(root: Path) -> pd.DataFrame:
    """Return the finished cohort's table, typed."""
    record.require(root, "cohort")
    return bids.typed(bids.read_table(root / "cohort" / "participants.tsv"))


def read_folder(raw: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the people of a BIDS folder who have a sound scan, and who is left out and why.

    Refuses with one report: E-PATH, E-NOTABLE, E-NOT1W, E-NOROW, E-NOBODY, E-DUP, and whatever
    the table (`bids`) or a scan (`checks`) has.
    """
    if not raw.is_dir():
        fix = "give the BIDS folder"
        raise BadInput("E-PATH", raw.name, "the raw folder", "absent", "a folder", fix)
    people, problems = bids.read_participants(raw)
    scans, wrong_scans = bids.find_t1w(raw)
    problems += wrong_scans
    if people.empty:
        raise checks.Report(problems or [_nobody(raw)])
    strangers = sorted(set(scans["participant_id"]) - set(people["participant_id"]))
    if strangers:
        fix = "add their rows, or move the scans away"
        where = "participants.tsv"
        problems.append(BadInput("E-NOROW", where, "rows missing", strangers, "a row each", fix))
    table, excluded = _match(people, scans)
    if table.empty and not problems:
        problems.append(_nobody(raw))
    problems += _check_scans(raw, table)
    if problems and len(excluded):
        absent, fix = excluded["participant_id"].tolist(), "nothing: they are left out"
        problems.append(BadInput("E-NOSCAN", raw.name, "scans missing", absent, "a T1w", fix))
    if problems:
        raise checks.Report(problems)
    for code, several in excluded.groupby("code"):
        record.say(f"{len(several)} left out, {code}: {', '.join(several['participant_id'])}")
    return table.reset_index(drop=True), excluded


def _nobody(raw: Path) -> BadInput:
    fix = "check that table and folders name the same people"
    return BadInput("E-NOBODY", raw.name, "people with a scan", 0, "at least one", fix)


def _match(people: pd.DataFrame, scans: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give every person the earliest scan that the row allows; list who and what stays out."""
    both = people.drop(columns="t1w", errors="ignore").merge(
        scans, on="participant_id", suffixes=("_row", "")
    )
    both = both[both["session_row"].isin([MISSING]) | (both["session_row"] == both["session"])]
    both = both.sort_values(["participant_id", "session"]).drop(columns="session_row")
    table = both.drop_duplicates("participant_id")
    absent = people.loc[~people["participant_id"].isin(table["participant_id"]), "participant_id"]
    left_out = [(person, "E-NOSCAN", "no T1w scan") for person in absent]
    later = both[both.duplicated("participant_id")]
    left_out += [
        (person, "E-SESSION", f"session {session}: one session a person, the earliest is used")
        for person, session in zip(later["participant_id"], later["session"])
    ]
    columns = ["participant_id", "code", "reason"]
    return table, pd.DataFrame(left_out, columns=columns, dtype=object)


def _check_scans(raw: Path, table: pd.DataFrame) -> list[BadInput]:
    """Read every scan to its end; add the column `sha`; return each scan's problem and copies."""

    def check(relative: str) -> BadInput | None:
        try:
            checks.read_nifti(raw / relative, raw)
        except BadInput as problem:
            return problem
        return None

    answers = joblib.Parallel(2, prefer="threads", return_as="generator")(
        joblib.delayed(check)(relative) for relative in table["t1w"]
    )
    problems = []
    for done, problem in enumerate(answers, start=1):
        record.progress("checking scans", done, len(table))
        problems += [problem] if problem else []
    table["sha"] = [record.digest(raw / relative) for relative in table["t1w"]]
    for _, same in table[table.duplicated("sha", keep=False)].groupby("sha"):
        seen, fix = same["participant_id"].tolist(), "find out whose scan it is"
        problems.append(BadInput("E-DUP", raw.name, "one scan under", seen, "one person", fix))
    return problems


def assign_splits(table: pd.DataFrame, settings: config.Cohort) -> list[str]:
    """Return everybody's split: families whole, strata (age band, sex, site) spread evenly.

    Shares scale to any number of people; a family with a sham goes to `test`. Deterministic by
    `settings.seed`, whatever the order of the rows.
    """
    recorded = table[table["kind"] == "recorded"]
    tested = dict.fromkeys(table.loc[table["kind"] == "sham", "family"], "test")
    people = {name: recorded[recorded["group"] == name] for name in ("DS", "euploid")}
    ds = _deal(people["DS"], dict(zip(DS_SPLITS, settings.ds_split)), tested, settings.seed)
    bound = tested | {family: SAME_SIDE[split] for family, split in ds.items()}
    shares = dict(zip(EUPLOID_SPLITS, settings.euploid_split))
    euploid = _deal(people["euploid"], shares, bound, settings.seed)
    rule = {"twin": "truth", "sham": "sham"}
    return [
        rule.get(kind) or (ds if group == "DS" else euploid)[family]
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
    return pd.concat(
        [
            table,
            planted.assign(
                participant_id=planted["participant_id"] + "planted",
                kind="planted", group="DS", origin=planted["participant_id"], stage=MISSING,
                split=planted["split"].map(side),
            ),
            shams.assign(
                participant_id=shams["participant_id"] + "sham",
                kind="sham", origin=shams["participant_id"], split="sham",
            ),
        ],
        ignore_index=True,
    )  # fmt: skip


def _write(folder: Path, table: pd.DataFrame, excluded: pd.DataFrame, settings: dict) -> None:
    """Write the table, its dictionary, who is left out, and the split with its digest."""
    bids.write_table(folder / "participants.tsv", table)
    about = {name: {"Description": text} for name, text in COLUMNS.items()}
    record.write_json(folder / "participants.json", about)
    columns = ["participant_id", "code", "reason"]
    bids.write_table(folder / "exclusions.tsv", excluded.reindex(columns=columns))
    pairs = sorted(zip(table["participant_id"], table["split"]))
    counts = table.groupby(["group", "kind", "split"]).size()
    split = {
        "digest": record.digest([list(pair) for pair in pairs]),
        "strata": f"age band of {AGE_BAND_YEARS} years, sex, site; families whole",
        **settings,
        "people": {"/".join(key): int(n) for key, n in counts.items()},
    }
    record.write_json(folder / "split.json", split)


def summarise(root: Path) -> dict:
    """Return the 01 page's numbers of a real cohort; what only a phantom has is None."""
    people = load(root)
    counts = people[people["kind"] != "sham"]["group"].value_counts()
    phantom_only = ("folded_voxels", "target_error_points", "phantom_version")
    headline = {
        "subjects": int((people["kind"] == "recorded").sum()),
        "euploid": int(counts.get("euploid", 0)),
        "ds": int(counts.get("DS", 0)),
        **dict.fromkeys(phantom_only),
    }
    reasons = dict.fromkeys(phantom_only, "a real cohort: nothing was drawn by the phantom")
    kinds = people["kind"].value_counts().to_dict()
    return {"headline": headline, "tables": {"kinds": kinds, "reasons": reasons}, "timing": {}}

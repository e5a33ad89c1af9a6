"""The product `cohort`: table, dictionary, split, manifest of the scans, and who is left out."""

import os
from pathlib import Path

import pandas as pd

from dsnb import bids, checks, config, record
from dsnb.cohort import manifest
from dsnb.cohort.folder import TABLE, Folder, as_text, read_folder, report
from dsnb.cohort.split import AGE_BAND_YEARS, SIDED, assign_splits, find_leaks, is_stated, plant

# The columns of cohort/participants.tsv, with what participants.json says about each.
COLUMNS = {**bids.OF_PERSON, **bids.OF_VISIT, **bids.OF_SCAN}
COLUMNS |= {
    "split": "which part of the study sees this person",
    "group_recorded": "the group as the raw table says it",
}


def gather(root: Path, study: config.Study, raw: Path | None = None) -> None:
    """Check a BIDS folder (None: the phantom under `root`) and write the product `cohort`.

    People without a scan are left out and listed in exclusions.tsv, since hospitals lose scans;
    a scan without a row is refused, since nobody can know that its owner agreed. Every problem
    is in one report, that of `check`, raised before anything is written.
    """
    if raw is None:
        record.require(root, "raw")
        nothing, people = pd.DataFrame(), bids.read_participants(root / "raw")
        folder = Folder(people[0], nothing, nothing, people[1], [])
    else:
        folder = read_folder(raw, root=root)
    if folder.problems:
        left_out = [warning for warning in folder.warnings if warning.code.startswith("E-")]
        raise checks.Report(folder.problems + left_out)
    table, asked, parents = folder.people, study.cohort, ("raw",) if raw is None else ()
    settings = {"seed": asked.seed, "euploid": asked.euploid_split, "ds": asked.ds_split}
    if raw is not None:
        settings["participants"] = record.digest(raw / TABLE)
        settings["people"] = record.digest(table.astype(str).to_numpy().tolist())
        lies = os.path.relpath(raw.resolve(), root.resolve())
        record.write_json(root / manifest.SOURCE, {"raw": lies})
        record.say(as_text(report(folder)))
    modules = ("cohort", "bids", "checks")
    product = record.begin(root, "cohort", "import", settings, parents, modules)
    if product.done:
        return
    stated = is_stated(table)
    table = table.assign(split=assign_splits(table, asked))
    if raw is not None and not (table["group"] == "DS").any():
        table = plant(table)
    if leaks := find_leaks(table[table["kind"].isin(SIDED)]):
        raise checks.Report(leaks)
    _write(product.folder, table, folder, settings | {"stated_by_the_table": stated})
    product.finish()


def load(root: Path) -> pd.DataFrame:
    """Return the finished cohort's table, typed; refuse raw data changed since (E-CHANGED)."""
    record.require(root, "cohort")
    manifest.verify(root)
    return bids.typed(bids.read_table(root / "cohort" / TABLE))


def _write(product: Path, table: pd.DataFrame, folder: Folder, settings: dict) -> None:
    """Write table, dictionary, manifest, who is left out, and the split with its digest."""
    written = {"participants": (table, COLUMNS), "manifest": (folder.manifest, manifest.COLUMNS)}
    for name, (rows, columns) in written.items():
        bids.write_table(product / f"{name}.tsv", rows.reindex(columns=columns))
        bids.write_dictionary(product / f"{name}.json", columns)
    columns = ["participant_id", "code", "reason"]
    bids.write_table(product / "exclusions.tsv", folder.excluded.reindex(columns=columns))
    pairs = sorted(zip(table["participant_id"], table["split"]))
    counts = table.groupby(["group", "kind", "split"]).size()
    split = {
        "digest": record.digest([list(pair) for pair in pairs]),
        "strata": f"age band of {AGE_BAND_YEARS} years, sex, site; families whole",
        **settings,
        "people": {"/".join(key): int(n) for key, n in counts.items()},
    }
    record.write_json(product / "split.json", split)


def summarise(root: Path) -> dict:
    """Return the 01 page's numbers of a real cohort; what only a phantom has is None."""
    people = load(root)
    counts = people[people["kind"].isin(SIDED)]["group"].value_counts()
    phantom_only = ("folded_voxels", "target_error_points", "phantom_version")
    headline = {
        "subjects": int((people["kind"] == "recorded").sum()),
        "euploid": int(counts.get("euploid", 0)),
        "ds": int(counts.get("DS", 0)),
        **dict.fromkeys(phantom_only),
    }
    reasons = dict.fromkeys(phantom_only, "a real cohort: nothing was drawn by the phantom")
    scans, out = (bids.read_table(root / "cohort" / f"{n}.tsv") for n in ("manifest", "exclusions"))
    tables = {
        "kinds": people["kind"].value_counts().to_dict(),
        "left_out": out["code"].value_counts().to_dict(),
        "notes": scans.loc[scans["notes"] != bids.MISSING, "notes"].value_counts().to_dict(),
        "reasons": reasons,
    }
    return {"headline": headline, "tables": tables, "timing": {}}

"""The product `prepared`: every row's scan made, judged, listed, and put into one array."""

import json
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from dsnb import bids, checks, cohort, config, record, space
from dsnb.checks import BadInput
from dsnb.space import REGIONS, Grid
from dsnb.volumes.scan import QC, WHITE_MATTER, draw, normalise, place

STEP = 1 / 20000  # intensity unit of the int16 files, far below the noise
TRUTH_STEP = 1 / 4000  # log-volume unit of the int16 files, range +-8
OUTLIER = 3.5  # robust SDs below the cohort's median that earn a flag
WHEN = ("before", "after")


def prepare(root: Path, study: config.Study, raw: Path | None = None, processes: int = 2) -> None:
    """Prepare every row of the cohort's table into the product `prepared`; a killed run goes on.

    `raw` is the BIDS folder of the import (None: the phantom under `root`). A scan that cannot
    be used is listed in exclusions.tsv with its reason, and so is what is drawn from it; where
    the first scans all fail, nothing is written (E-NOTMNI, E-SKULL, ...).
    """
    table = cohort.load(root)
    source, parents = (root / "raw", ("cohort", "raw")) if raw is None else (raw, ("cohort",))
    if raw is not None:
        _probe(source, table, study.grid)
    # Planted scans and their shams share the original's file; the phantom's have their own.
    drawn = table["kind"].isin(["planted", "sham"]) & table.duplicated("t1w", keep=False)
    settings, modules = {"grid": vars(study.grid)}, ("volumes", "bids", "checks", "space")
    if drawn.any():
        settings |= {"severity": study.cohort.severity, "seed": study.cohort.seed}
        modules += ("phantom",)
    product = record.begin(root, "prepared", "prepare", settings, parents, modules)
    if product.done:
        return
    shape = (len(table), *study.grid.shape)
    np.lib.format.open_memmap(product.folder / ".all.npy", "w+", np.float16, shape).flush()
    jobs = (
        joblib.delayed(_prepare_row)(row, number, source, product, study)
        for number, row in enumerate(table.assign(drawn=drawn).to_dict("records"))
    )
    answers = []
    for answer in joblib.Parallel(processes, return_as="generator")(jobs):
        answers.append(answer)
        record.progress("prepare", len(answers), len(table))
    kept = _write_tables(product.folder, table, answers)
    _keep_rows(product.folder, kept)
    _write_truth(product.folder, source, table[kept], study.grid)
    bids.describe(product.folder, "Prepared volumes", "bids:raw")
    seconds = [answer["seconds"] for answer in answers if "seconds" in answer]
    timing = {"seconds_per_volume": float(np.mean(seconds)) if seconds else None}
    record.write_json(product.folder / "timing.json", timing)
    product.finish()


def _probe(source: Path, table: pd.DataFrame, grid: Grid) -> None:
    """Refuse the cohort before anything is written, where its first three scans all fail."""
    problems, first = [], table[table["kind"] == "recorded"].head(3).to_dict("records")
    for row in first:
        try:
            place(*_load(source, row)[:2], grid, None, row["t1w"])
        except BadInput as problem:
            problems.append(problem)
    if len(problems) == len(first):
        raise checks.Report(problems)


def _load(source: Path, row: dict) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read a row's scan in RAS order with affine and notes; refuse one changed since the import."""
    path = source / row["t1w"]
    volume, affine, notes = checks.read_nifti(path, source)
    if record.digest(path) != row["sha"]:
        fix = "run the import again"
        raise BadInput("E-CHANGED", path.name, "its digest", "another", row["sha"], fix)
    return *bids.as_ras(volume, affine), notes


def prepared_path(folder: Path, name: str, grid: Grid, what: str = "prepared_T1w") -> Path:
    """Return the BIDS-derivative path of one person's volume under the product's folder."""
    file = f"{name}_space-{space.SPACE}_res-{grid.voxel_mm:g}mm_desc-{what}.nii.gz"
    return folder / name / "anat" / file


def _prepare_row(row: dict, number: int, source: Path, product: record.Product, study) -> dict:
    """Make one row's files and fill its place in `.all.npy`; return its QC, or code and reason."""
    name = row["participant_id"]
    path = prepared_path(product.folder, name, study.grid)
    made, begun = not bids.sidecar_of(path).is_file(), time.perf_counter()
    if made:
        try:
            _make_row(row, source, path, product.key, study)
        except BadInput as problem:
            return {"participant_id": name, "code": problem.code, "reason": str(problem)}
    volumes = np.lib.format.open_memmap(product.folder / ".all.npy", "r+")
    volumes[number] = bids.load_volume(path)[0]
    about = json.loads(bids.sidecar_of(path).read_text())
    timing = {"seconds": time.perf_counter() - begun} if made and not row["drawn"] else {}
    notes = "; ".join(about["Notes"])
    return {"participant_id": name, **about["QC"], "notes": notes, **timing}


def _make_row(row: dict, source: Path, path: Path, key: str, study: config.Study) -> None:
    """Write one prepared volume, its truth where it is drawn here, and the sidecar last."""
    volume, affine, notes = _load(source, row)
    displacement = None
    if row["drawn"]:
        displacement, truth, measured = draw(row, study)
        target = prepared_path(path.parents[2], row["participant_id"], study.grid, "truth_logjac")
        bids.save_volume(target, truth, study.grid, measured, TRUTH_STEP)
    placed, resampled = place(volume, affine, study.grid, displacement, path.name)
    values, qc = normalise(placed, study.grid, path.name)
    about = {
        "Sources": [f"bids:raw:{row['t1w']}"],
        "SourceDigest": row["sha"],
        "GeneratedBy": {"Name": "dsnb prepare", "Key": key},
        "SpatialReference": space.SPACE,
        "SkullStripped": True,
        "Units": f"white-matter mode = {WHITE_MATTER}",
        "Notes": notes + ["resampled once"] * resampled,
        "QC": qc,
    }
    bids.save_volume(path, values, study.grid, about, STEP)


def _write_tables(folder: Path, table: pd.DataFrame, answers: list[dict]) -> np.ndarray:
    """Write participants.tsv with QC and flags, and exclusions.tsv; return who is kept (bool).

    What is drawn from an excluded scan is excluded with it. Nobody left is refused.
    """
    bad = {answer["participant_id"] for answer in answers if "code" in answer}
    for answer, origin in zip(answers, table["origin"]):
        if origin in bad and "code" not in answer:
            answer |= {"code": "E-ORIGIN", "reason": "its original is excluded"}
    kept = np.array(["code" not in answer for answer in answers])
    out = pd.DataFrame([answer for answer in answers if "code" in answer])
    out = out.reindex(columns=["participant_id", "code", "reason"])
    if not (kept & table["kind"].eq("recorded")).any():
        fix = "look at the scans; the first one's reason is given"
        raise BadInput("E-NOBODY", "prepared", "usable scans", out["reason"].iloc[0], "some", fix)
    for code, several in out.groupby("code"):
        record.say(f"prepare: {len(several)} excluded, {code}")
    bids.write_table(folder / "exclusions.tsv", out)
    judged = pd.DataFrame(answers, index=table.index)[[*QC, "notes"]]
    prepared = table.join(judged)[kept]
    bids.write_table(folder / "participants.tsv", prepared.assign(flag=find_outliers(prepared)))
    return kept


def find_outliers(table: pd.DataFrame) -> list[str]:
    """Return a flag a row: which QC numbers lie far below the cohort's median, else `ok`."""
    flags = [[] for _ in range(len(table))]
    for name in ("mask_dice", "template_r", "snr"):
        values = table[name].to_numpy(float)
        spread = 1.4826 * np.median(np.abs(values - np.median(values)))
        for row in np.flatnonzero(values < np.median(values) - OUTLIER * max(spread, 1e-6)):
            flags[row].append(f"low {name}")
    return [", ".join(flag) or "ok" for flag in flags]


def _keep_rows(folder: Path, kept: np.ndarray) -> None:
    """Turn `.all.npy` into volumes.npy, without the excluded rows."""
    whole = folder / ".all.npy"
    if kept.all():
        whole.replace(folder / "volumes.npy")
        return
    volumes, rows = np.load(whole, mmap_mode="r", allow_pickle=False), np.flatnonzero(kept)
    shape = (len(rows), *volumes.shape[1:])
    chosen = np.lib.format.open_memmap(folder / "volumes.npy", "w+", np.float16, shape)
    for place_of, row in enumerate(rows):
        chosen[place_of] = volumes[row]
    chosen.flush()
    whole.unlink()


def _write_truth(folder: Path, source: Path, table: pd.DataFrame, grid: Grid) -> None:
    """Gather the known truth: truth.npy (M, X, Y, Z) log-Jacobians and truth.tsv, region ml.

    Ours lies beside the prepared volume, the phantom's under raw/derivatives/truth.
    """
    columns = ["participant_id"] + [f"{name}_{when}" for name in REGIONS for when in WHEN]
    told, rows, paths = source / "derivatives" / "truth", [], []
    known = {}
    if (told / "truth.tsv").is_file():
        records = bids.read_table(told / "truth.tsv").to_dict("records")
        known = {row["participant_id"]: row for row in records}
    for name in table["participant_id"]:
        ours = prepared_path(folder, name, grid, "truth_logjac")
        theirs = told / name / "anat" / f"{name}_desc-truth_logjac.nii.gz"
        if ours.is_file():
            regions = json.loads(bids.sidecar_of(ours).read_text())["RegionMl"]
            rows.append({"participant_id": name, **regions})
            paths.append(ours)
        elif theirs.is_file():
            rows.append(known.get(name, {"participant_id": name}))
            paths.append(theirs)
    shape = (len(paths), *grid.shape)
    truth = np.lib.format.open_memmap(folder / "truth.npy", "w+", np.float16, shape)
    for row, path in enumerate(paths):
        truth[row] = bids.load_volume(path)[0]
    truth.flush()
    bids.write_table(folder / "truth.tsv", pd.DataFrame(rows, columns=columns))


def summarise(root: Path, study: config.Study) -> dict:
    """Return the 02 page's numbers: how many were prepared or excluded, and QC by group.

    Group-level only: who is flagged or excluded stands in the product's own tables.
    """
    record.require(root, "prepared")
    folder = root / "prepared"
    table = bids.typed(bids.read_table(folder / "participants.tsv"))
    excluded = bids.read_table(folder / "exclusions.tsv")
    timing = json.loads((folder / "timing.json").read_text())
    spread = table.groupby(["group", "kind"])[list(QC)].quantile([0.0, 0.5, 1.0])
    spread = spread.rename_axis(["group", "kind", "quantile"]).reset_index()
    flagged = table["flag"].ne("ok").groupby([table["group"], table["kind"]])
    native = "native scans come with a later version; these lay in MNI space already"
    headline = {
        "prepared": len(table),
        "excluded": len(excluded),
        "seconds_per_volume": timing["seconds_per_volume"],
        "mask_dice_min": None,
        "native_error": None,
        "flagged": int(table["flag"].ne("ok").sum()),
    }
    reasons = {"mask_dice_min": native, "native_error": native}
    if timing["seconds_per_volume"] is None:
        reasons["seconds_per_volume"] = "an earlier run made them all"
    tables = {
        "qc": spread.to_dict("records"),
        "flags": flagged.agg(["sum", "size"]).reset_index().to_dict("records"),
        "exclusions": excluded["code"].value_counts().to_dict(),
        "reasons": reasons,
    }
    return {"headline": headline, "tables": tables, "timing": timing}

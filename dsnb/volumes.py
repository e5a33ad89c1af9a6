"""Raw T1w -> prepared volume on the study grid: one resampling, one intensity scale, QC numbers.

This version takes skull-stripped scans in MNI space: the phantom's, which lie on the study grid
already, and others, which are resampled once. Native scans are refused with the reason.
"""

import json
import time
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from scipy import ndimage

from dsnb import bids, checks, cohort, config, phantom, record, space
from dsnb.checks import BadInput
from dsnb.space import REGIONS, Grid

WHITE_MATTER = 0.85  # what the white-matter mode becomes
BRIGHTEST = 1.5  # clipped above: vessels and fat
STEP = 1 / 20000  # intensity unit of the int16 files, far below the noise
TRUTH_STEP = 1 / 8000  # log-volume unit of the int16 files, range +-4
# A voxel counts as tissue above this share of the 98th percentile inside the template brain.
TISSUE = 0.1
# Share of the study's field of view without tissue: 0.58 to 0.65 in stripped brains, 0.36 in a
# whole head that we measured; half-way. (The 0.8 of native scans has more air around the head.)
STRIPPED = 0.5
# Dice of tissue with the template brain: 0.93 to 0.95 in 46 registered scans, 0.55 to 0.68 in
# 12 of them before registration.
REGISTERED = 0.8
COVERED = 0.98  # share of the template brain that the scan's field of view must hold
MARGIN_MM = 3.0  # kept around the template brain
OUTLIER = 3.5  # robust SDs below the cohort's median that earn a flag
QC = ("empty_share", "wm_mode", "mask_dice", "template_r", "snr")
LATER = "registration and skull stripping come with a later version: do it before the import"


def prepare(root: Path, study: config.Study, raw: Path | None = None, processes: int = 2) -> None:
    """Prepare every row of the cohort's table into the product `prepared`; a killed run goes on.

    `raw` is the BIDS folder of the import (None: the phantom under `root`). A scan that cannot
    be used is listed in exclusions.tsv with its reason, and so is what is drawn from it; where
    the first three all fail, nothing is written (E-NOTMNI, E-SKULL, ...).
    """
    table = cohort.load(root)
    source, parents = (root / "raw", ("cohort", "raw")) if raw is None else (Path(raw), ("cohort",))
    if raw is not None:
        _probe(source, table, study.grid)
    made_here = table["kind"].eq("planted").any()
    modules = ("volumes", "bids", "checks", "space") + ("phantom",) * bool(made_here)
    settings = {"grid": vars(study.grid)}
    if made_here:
        settings |= {"severity": study.cohort.severity, "seed": study.cohort.seed}
    product = record.begin(root, "prepared", "prepare", settings, parents, modules)
    if product.done:
        return
    rows = table.to_dict("records")
    shape = (len(rows), *study.grid.shape)
    _create(product.folder / ".all.npy", shape)
    work = partial(_prepare_row, source=source, folder=product.folder, study=study, key=product.key)
    begun, answers = time.perf_counter(), []
    jobs = (joblib.delayed(work)(row, number) for number, row in enumerate(rows))
    for answer in joblib.Parallel(processes, return_as="generator")(jobs):
        answers.append(answer)
        record.progress("prepare", len(answers), len(rows))
    seconds = (time.perf_counter() - begun) / len(rows)
    kept = _write_tables(product.folder, table, answers)
    _keep(product.folder, kept, study.grid)
    _write_truth(product.folder, source, table[kept], study.grid)
    bids.describe(product.folder, "Prepared volumes", "bids:raw")
    record.write_json(product.folder / "timing.json", {"seconds_per_volume": seconds})
    product.finish()


def _probe(source: Path, table: pd.DataFrame, grid: Grid) -> None:
    """Refuse the cohort before anything is written, where its first scans all fail."""
    problems = []
    first = table[table["kind"] == "recorded"].head(3)
    for row in first.to_dict("records"):
        try:
            place(*_load(source, row)[:2], grid)
        except BadInput as problem:
            problems.append(problem)
    if len(problems) == len(first):
        checks.refuse(problems)


def _create(path: Path, shape: tuple[int, ...]) -> None:
    np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()


def _load(source: Path, row: dict) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read a row's scan in RAS order, with its affine and notes; E-CHANGED since the import."""
    path = source / row["t1w"]
    volume, affine, notes = checks.read_nifti(path, source)
    if record.digest(path) != row["sha"]:
        fix = "run the import again"
        raise BadInput("E-CHANGED", path.name, "its digest", "another", row["sha"], fix)
    return *bids.as_ras(volume, affine), notes


def _prepare_row(row: dict, number: int, source: Path, folder: Path, study, key: str) -> dict:
    """Make one row's files and fill its place in `.all.npy`; return its QC, or code and reason."""
    name = row["participant_id"]
    stem = f"{name}_space-{space.SPACE}_res-{study.grid.voxel_mm:g}mm_desc-"
    path = folder / name / "anat" / f"{stem}prepared_T1w.nii.gz"
    sidecar = bids.sidecar_of(path)
    try:
        if not sidecar.is_file():
            _make(row, source, path, study, key)
    except BadInput as problem:
        return {"participant_id": name, "code": problem.code, "reason": str(problem)}
    volumes = np.lib.format.open_memmap(folder / ".all.npy", "r+")
    volumes[number] = bids.load_volume(path)[0]
    volumes.flush()
    note = json.loads(sidecar.read_text())
    return {"participant_id": name, **note["QC"], "notes": "; ".join(note["Notes"])}


def _make(row: dict, source: Path, path: Path, study: config.Study, key: str) -> None:
    """Write one prepared volume, its truth where we plant one, and the sidecar last."""
    volume, affine, notes = _load(source, row)
    displacement = None
    if row["kind"] in ("planted", "sham") and row["origin"] != "n/a" and _drawn_here(row):
        displacement, truth, note = _draw(row, study)
        target = path.with_name(path.name.replace("prepared_T1w", "truth_logjac"))
        bids.save_volume(target, truth, study.grid, note, TRUTH_STEP)
    placed, how = place(volume, affine, study.grid, displacement)
    values, qc = normalise(placed, study.grid, path.name)
    about = {
        "Sources": [f"bids:raw:{row['t1w']}"],
        "SourceDigest": row["sha"],
        "GeneratedBy": {"Name": "dsnb prepare", "Key": key},
        "SpatialReference": space.SPACE,
        "Resolution": f"{study.grid.voxel_mm:g} mm isotropic",
        "SkullStripped": True,
        "Units": f"white-matter mode = {WHITE_MATTER}",
        "Notes": notes + [how] * bool(how),
        "QC": qc,
    }
    bids.save_volume(path, values, study.grid, about, STEP)

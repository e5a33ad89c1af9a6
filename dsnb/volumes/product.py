"""The product `prepared`: every row's scan made, judged, listed, and put into one array."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
from psutil import virtual_memory

from dsnb import bids, checks, cohort, config, record, space
from dsnb.checks import BadInput
from dsnb.space import REGIONS, Grid
from dsnb.volumes import native, quality
from dsnb.volumes.scan import (
    WHITE_MATTER,
    check_coverage,
    check_registration,
    draw,
    lies_in_mni,
    normalise,
    place,
)  # fmt: skip

STEP = 1 / 20000  # intensity unit of the int16 files, far below the noise
TRUTH_STEP = 1 / 4000  # log-volume unit of the int16 files, range +-8
WHEN = ("before", "after")


class Scan(NamedTuple):
    """A stripped scan in its own voxels (RAS), and all that is known of it."""

    volume: np.ndarray  # (X, Y, Z), its shading corrected where it is native
    affine: np.ndarray  # (4, 4), voxel to MNI mm
    notes: list[str]  # what was done to it
    quality: dict[str, float | None]
    about: dict  # of the sidecar: a native scan's matrix and head size


def prepare(
    root: Path,
    study: config.Study,
    raw: Path | None = None,
    processes: int | None = None,
    shard: str = "1/1",
) -> None:
    """Prepare every row of the cohort's table into the product `prepared`; a killed run goes on.

    `raw` is the BIDS folder of the import (None: the phantom under `root`). A scan that cannot
    be used is listed in exclusions.tsv with its reason, and so is what is drawn from it; where
    the first scans all fail, nothing is written (E-SKULL, E-EMPTY, E-CHANGED). `shard` k/n makes
    only every n-th scan's files, beside others that do theirs; a run without it finishes.
    `processes` (None: the cores a job may use, 1 GB of free memory each) change no result.
    """
    processes = processes or max(1, min(joblib.cpu_count(), virtual_memory().available >> 30))
    part, parts = config.parse_shard(shard, "prepare")
    table = cohort.load(root)
    source, parents = (root / "raw", ("cohort", "raw")) if raw is None else (raw, ("cohort",))
    # Planted scans and their shams share the original's file; the phantom's have their own.
    drawn = table["kind"].isin(["planted", "sham"]) & table.duplicated("t1w", keep=False)
    settings, modules = {"grid": vars(study.grid)}, ("volumes", "bids", "checks", "space")
    if drawn.any():
        settings |= {"severity": study.cohort.severity, "seed": study.cohort.seed}
        modules += ("phantom",)
    try:
        record.require(root, "prepared")  # made of this very cohort: no need to read scans again
    except BadInput:
        if raw is not None:
            _probe(source, table, study.grid)
    product = record.begin(root, "prepared", "prepare", settings, parents, modules)
    if product.done:
        return
    scans = [rows.to_dict("records") for _, rows in table.assign(drawn=drawn).groupby("t1w")]
    jobs = [joblib.delayed(_prepare_scan)(rows, source, product, study) for rows in scans]
    answers, mine = {}, jobs[part - 1 :: parts]
    for done, found in enumerate(joblib.Parallel(processes, return_as="generator")(mine), start=1):
        answers |= {answer["participant_id"]: answer for answer in found}
        record.progress("prepare", done, len(mine))
    if parts > 1:
        record.say(f"prepare: share {shard} is made; once all are, run it without a shard")
        return
    kept = _write_tables(product.folder, table, [answers[name] for name in table["participant_id"]])
    _gather_volumes(product.folder, table.loc[kept, "participant_id"], study.grid, processes)
    _write_truth(product.folder, source, table[kept], study.grid)
    bids.describe(product.folder, "Prepared volumes", "bids:raw")
    record.write_json(product.folder / "timing.json", _time(answers.values()))
    product.finish()


def _time(answers) -> dict[str, float | None]:
    """Return the mean seconds of the scans made here, the phantom's native ones apart."""
    names = ("seconds_per_volume", "seconds_per_native_volume")
    found = [[answer[name] for answer in answers if name in answer] for name in names]
    return {name: float(np.mean(each)) if each else None for name, each in zip(names, found)}


def _probe(source: Path, table: pd.DataFrame, grid: Grid) -> None:
    """Refuse the cohort before anything is written, where its first three scans all fail."""
    problems, first = [], table[table["kind"] == "recorded"].head(3).to_dict("records")
    for row in first:
        try:
            volume, affine, _ = _load(source, row)
            if not lies_in_mni(volume, affine, grid):
                native.check(volume, affine, Path(row["t1w"]).name, native.can_strip())
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


def _read_scan(source: Path, row: dict, grid: Grid) -> Scan:
    """Read a scan and find where it lies in MNI space; a native one is stripped and corrected.

    Refuses E-EMPTY, E-SKULL, and E-CROP where too little of the brain is in its field of view.
    """
    volume, affine, notes = _load(source, row)
    where, shape, field, about, mask_ml = Path(row["t1w"]).name, volume.shape, affine, {}, None
    if not lies_in_mni(volume, affine, grid):
        volume, affine, done = native.strip(volume, affine, where)
        mask_ml = native.measure_ml(volume, affine)
        volume = native.correct_bias(volume, affine, where)
        matrix = native.register(volume, affine, where)
        affine, field = matrix @ affine, matrix @ field
        about = {"NativeToMNI": matrix, "HeadMl": native.estimate_head_ml(matrix)}
        notes = notes + done + ["shading corrected (N4)", "registered (affine)"]
    covered = check_coverage(shape, field, grid, where)
    spread = quality.measure_edge_spread(volume, affine)
    numbers = {"edge_spread": spread, "cropped": 1 - covered, "mask_ml": mask_ml}
    return Scan(volume, affine, notes, numbers, about)


def prepared_path(folder: Path, name: str, grid: Grid, what: str = "prepared_T1w") -> Path:
    """Return the BIDS-derivative path of one person's volume under the product's folder."""
    file = f"{name}_space-{space.SPACE}_res-{grid.voxel_mm:g}mm_desc-{what}.nii.gz"
    return folder / name / "anat" / file


def _prepare_scan(rows: list[dict], source: Path, product: record.Product, study) -> list[dict]:
    """Make the files of all rows of one scan; return each one's QC, or its code and reason."""
    begun, scan, answers = time.perf_counter(), None, []
    for row in rows:
        path = prepared_path(product.folder, row["participant_id"], study.grid)
        made = not bids.sidecar_of(path).is_file()
        answer = {"participant_id": row["participant_id"]}
        try:
            if made and scan is None:
                scan = _read_scan(source, row, study.grid)
            if made:
                _make_row(row, scan, source, path, product.key, study)
        except BadInput as problem:
            failed = {"code": problem.code, "reason": str(problem)}
            if scan is None:
                return [{"participant_id": row["participant_id"], **failed} for row in rows]
            answers.append(answer | failed)
            continue
        if made and row is rows[0]:
            unit = "native_volume" if row["kind"] == "native" else "volume"
            answer[f"seconds_per_{unit}"] = time.perf_counter() - begun
        about = json.loads(bids.sidecar_of(path).read_text())
        told = {"head_ml": about.get("HeadMl"), "notes": "; ".join(about["Notes"])}
        answers.append(answer | about["QC"] | told)
    return answers


def _make_row(row: dict, scan: Scan, source: Path, path: Path, key: str, study) -> None:
    """Write one prepared volume, its truth where it is drawn here, and the sidecar last."""
    displacement, about = None, dict(scan.about)
    if row["drawn"]:
        displacement, truth, measured = draw(row, study)
        target = prepared_path(path.parents[2], row["participant_id"], study.grid, "truth_logjac")
        bids.save_volume(target, truth, study.grid, measured, TRUTH_STEP)
    if row["kind"] == "native":  # the phantom's: it knows where it came from
        told = json.loads(bids.sidecar_of(source / row["t1w"]).read_text())
        about["TrueNativeToMNI"] = told["NativeToMNI"]
    placed, resampled = place(scan.volume, scan.affine, study.grid, displacement, path.name)
    values, qc = normalise(placed, study.grid, path.name)
    if scan.about:
        check_registration(qc, path.name)
    about |= {
        "Sources": [f"bids:raw:{row['t1w']}"],
        "SourceDigest": row["sha"],
        "GeneratedBy": {"Name": "dsnb prepare", "Key": key},
        "SpatialReference": space.SPACE,
        "SkullStripped": True,
        "Units": f"white-matter mode = {WHITE_MATTER}",
        "Notes": scan.notes + ["resampled once"] * resampled,
        "QC": qc | scan.quality,
    }
    bids.save_volume(path, values, study.grid, about, STEP)


def _write_tables(folder: Path, table: pd.DataFrame, answers: list[dict]) -> np.ndarray:
    """Write participants.tsv with QC and flags, and exclusions.tsv; return who is kept (bool).

    What is drawn from an excluded scan is excluded with it. Nobody left is refused.
    """
    bad = {answer["participant_id"] for answer in answers if "code" in answer}
    for answer, origin, kind in zip(answers, table["origin"], table["kind"]):
        if origin in bad and kind != "repeat" and "code" not in answer:
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
    found = pd.DataFrame(answers, index=table.index)
    prepared = table.join(found[[*quality.QC, "notes"]])[kept]
    prepared["mask_ml"] = prepared["mask_ml"].astype(float)
    if prepared.loc[prepared["kind"].eq("recorded"), "tiv_ml"].isna().all():  # one ruler for all
        prepared["tiv_ml"] = prepared["tiv_ml"].fillna(found["head_ml"].astype(float))
    prepared = prepared.join(quality.find_outliers(prepared))
    bids.write_table(folder / "participants.tsv", prepared)
    return kept


def _gather_volumes(folder: Path, names: pd.Series, grid: Grid, processes: int) -> None:
    """Put everybody's volume into volumes.npy (N, X, Y, Z), in the table's order."""
    for left in folder.rglob(".sub-*"):  # half written: by a killed run, if not by a shard just now
        if time.time() - left.stat().st_mtime > 3600:
            left.unlink()
    read = (joblib.delayed(bids.load_volume)(prepared_path(folder, name, grid)) for name in names)
    shape, path = (len(names), *grid.shape), folder / "volumes.npy"
    volumes = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    found = joblib.Parallel(processes, prefer="threads", return_as="generator")(read)
    for row, (volume, _) in enumerate(found):
        volumes[row] = volume
    volumes.flush()


def _write_truth(folder: Path, source: Path, table: pd.DataFrame, grid: Grid) -> None:
    """Gather the known truth: truth.npy (M, X, Y, Z) log-Jacobians and truth.tsv, region ml.

    Ours lies beside the prepared volume, the phantom's under raw/derivatives/truth.
    """
    columns = ["participant_id"] + [f"{name}_{when}" for name in REGIONS for when in WHEN]
    told, rows, paths, known = source / "derivatives" / "truth", [], [], {}
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

"""The phantom's scans on disk: tissue maps to intensities, BIDS files, twins, shams, truth."""

import gzip
import json
import os
from functools import lru_cache
from pathlib import Path

import joblib
import nibabel as nib
import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from dsnb import record, space
from dsnb.config import Study
from dsnb.phantom import fields
from dsnb.phantom.fields import COARSE, LATTICE, onto, pull, smooth_noise
from dsnb.phantom.people import SITES, draw_people, individual_velocities, stream
from dsnb.space import Grid

PHANTOM_VERSION = "1.0"


@lru_cache(maxsize=1)
def _anatomy(grid: Grid) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Return 1 mm GM, WM, CSF and residual texture smoothed to the grid's voxel, their contrast.

    Maps are (4, 197, 233, 189) with their affine; the contrast (3,) is the template's own.
    """
    t1w, gm, wm, brain, affine = space.template_1mm()
    maps = np.stack([gm * brain, wm * brain, np.clip(brain - gm * brain - wm * brain, 0, 1)])
    inside = maps[:, brain > 0.5]
    contrast = np.linalg.lstsq(inside.T, t1w[brain > 0.5], rcond=None)[0]
    texture = brain * (t1w - np.tensordot(contrast, maps, 1))
    width = 0.425 * grid.voxel_mm if grid.voxel_mm > 1 else 0  # FWHM of a voxel, as in space
    smooth = [ndimage.gaussian_filter(one, width) for one in (*maps, texture)]
    return torch.from_numpy(np.stack(smooth).astype(np.float32)), affine, contrast


def render(displacement: np.ndarray, row: dict, study: Study) -> np.ndarray:
    """Draw the noise-free brain (X, Y, Z), white matter near 0.85, 0 outside, of one person.

    `displacement` is backward, (3, ...) mm on the lattice; cortex has a fine GM-CSF share of its
    own (noise at 8 mm), so that variation is not low-dimensional.
    """
    grid, number, seed = study.grid, row["number"], study.cohort.seed
    maps, affine, contrast = _anatomy(grid)
    mm = grid.coordinates_mm() + onto(displacement, LATTICE, grid)
    voxels = torch.from_numpy(mm - affine[:3, 3, None, None, None].astype(np.float32))
    gm, wm, csf, texture = pull(maps, voxels).numpy()
    rng = stream(seed, number, "cortex")
    share = np.exp(onto(0.5 * smooth_noise(rng, 2, 8.0), COARSE, grid))
    brain = gm + wm + csf > 0.5
    mixed = gm + csf
    gm = mixed * gm * share[0] / np.maximum(gm * share[0] + csf, 1e-6)
    csf = mixed - gm
    rng = stream(seed, number, "scanner")
    levels = contrast + rng.normal(0, (0.015, 0.008, 0.02)) + (SITES[row["site"]][2], 0, 0)
    volume = gm * levels[0] + wm * levels[1] + csf * levels[2] + texture * share[1] ** 0.5
    bias = np.exp(SITES[row["site"]][3] * onto(smooth_noise(rng, 1, 45.0)[0], COARSE, grid))
    blurred = ndimage.gaussian_filter(volume * bias, min(row["motion"], 1.5) / grid.voxel_mm)
    return np.where(brain, blurred, 0).astype(np.float32)


def scan(displacement: np.ndarray, row: dict, study: Study) -> np.ndarray:
    """Return the scanner's volume (X, Y, Z) in site units: Rician noise inside the brain."""
    clean, (scale, louder, *_) = render(displacement, row, study), SITES[row["site"]]
    rng = stream(study.cohort.seed, row["number"], "noise")
    noise = rng.standard_normal((2, *clean.shape), dtype=np.float32) * study.cohort.noise * louder
    return np.where(clean > 0, scale * np.hypot(clean + noise[0], noise[1]), 0).astype(np.float32)


# Files


def _save(path: Path, values: np.ndarray, grid: Grid, sidecar: dict) -> None:
    """Write a scaled int16 NIfTI and its sidecar, each whole or not at all, the sidecar last."""
    image = nib.Nifti1Image(values, grid.affine)
    image.set_data_dtype(np.int16)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=4)  # 4 = MNI152
    image.set_qform(grid.affine, code=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    aside.replace(path)
    head = {"SpatialReference": space.SPACE, "SkullStripped": True, "Phantom": PHANTOM_VERSION}
    record.write_json(path.with_name(path.name.replace(".nii.gz", ".json")), {**head, **sidecar})


def _paths(row: dict) -> dict[str, str]:
    """Return a person's files relative to the raw folder."""
    name = row["participant_id"]
    truth = f"derivatives/truth/{name}/anat/{name}_desc-"
    return {
        "recorded": f"{name}/anat/{name}_T1w.nii.gz",
        "twin": f"{truth}twin_T1w.nii.gz",
        "sham": f"{truth}sham_T1w.nii.gz",
        "truth": f"{truth}truth_logjac.nii.gz",
    }


def _write_person(raw: Path, row: dict, study: Study, sham: bool) -> None:
    """Write one person's scan and, where they exist, twin and truth or sham; skip what is there."""
    torch.set_num_threads(1)
    paths, grid, seed = _paths(row), study.grid, study.cohort.seed
    if (raw / paths["recorded"].replace(".nii.gz", ".json")).is_file():
        return
    note = {"Seed": seed, "Number": row["number"]}
    regions, shape = individual_velocities(row, seed)
    outline = fields.exponentiate(-shape)
    own = fields.compose(fields.exponentiate(-regions), outline)
    backward, grow = own, fields.exponentiate(shape)
    before = after = fields.compose(grow, fields.exponentiate(regions))
    if row["group"] == "DS":
        disease, after = fields.fit_disease(row["stage"], row["factor"], regions, grow, before)
        backward = fields.compose(fields.exponentiate(-regions - disease), outline)
        truth, note["FoldedVoxels"] = fields.log_jacobian(fields.compose(before, backward), grid)
        _save(raw / paths["twin"], scan(own, row, study), grid, note)
        _save(raw / paths["truth"], truth, grid, {**note, "Units": "log volume ratio"})
    if sham:
        rng = stream(seed, row["number"], "sham")
        velocity = fields.sham_velocity(study.cohort.severity * fields.draw_factor(rng), rng)
        other = fields.compose(fields.exponentiate(-velocity), own)
        _save(raw / paths["sham"], scan(other, row, study), grid, note)
    note |= {"RegionMlBefore": fields.measure(before), "RegionMlAfter": fields.measure(after)}
    folded = int((fields.jacobian(backward, grid) <= 0).sum())
    note["FoldedVoxels"] = note.get("FoldedVoxels", 0) + folded
    _save(raw / paths["recorded"], scan(backward, row, study), grid, note)


def make_cohort(root: Path, study: Study, processes: int = 2) -> None:
    """Write the phantom cohort as BIDS into `raw`, with twins, shams and truth as derivatives.

    The last `study.cohort.sham` euploids get a sham; a killed run goes on where it stopped, and
    the files do not depend on the number of processes.
    """
    settings = {"cohort": record.plain(vars(study.cohort)), "grid": vars(study.grid)}
    product = record.begin(root, "raw", "phantom", settings, (), ("phantom", "space"))
    if product.done:
        return
    people = draw_people(study.cohort).to_dict("records")
    first_sham = study.cohort.euploid - study.cohort.sham
    shams = {row["participant_id"] for row in people[first_sham : study.cohort.euploid]}
    space.region_masks(LATTICE)  # one process fills the cache
    work = (
        joblib.delayed(_write_person)(product.folder, row, study, row["participant_id"] in shams)
        for row in people
    )
    for done, _ in enumerate(joblib.Parallel(processes, return_as="generator")(work), start=1):
        record.progress("phantom", done, len(people))
    _write_tables(product.folder, people, shams)
    product.finish()


def _write_tables(raw: Path, people: list[dict], shams: set[str]) -> None:
    """Write participants.tsv (people, twins, shams), truth.tsv and the dataset descriptions."""
    rows, truths = [], []
    for row in people:
        kinds = ["recorded"] + ["twin"] * (row["group"] == "DS")
        kinds += ["sham"] * (row["participant_id"] in shams)
        rows += [_as_kind(raw, row, kind) for kind in kinds]
        truths.append(_truth_row(raw, row))
    table = pd.DataFrame(rows).drop(columns=["number", "factor"])
    record.write_text(raw / "participants.tsv", table.to_csv(sep="\t", index=False))
    truth = pd.DataFrame(truths).to_csv(sep="\t", index=False, float_format="%.5g")
    record.write_text(raw / "derivatives/truth/truth.tsv", truth)
    record.write_json(raw / "participants.json", COLUMNS)
    for folder, name, kind in (
        (raw, "dsnb digital phantom cohort", "raw"),
        (raw / "derivatives/truth", "Truth of the digital phantom cohort", "derivative"),
    ):
        about = {"Name": name, "BIDSVersion": "1.9.0", "DatasetType": kind}
        about["GeneratedBy"] = [{"Name": "dsnb.phantom", "Version": PHANTOM_VERSION}]
        record.write_json(folder / "dataset_description.json", about)


COLUMNS = {
    "family": {"Description": "key of the split; a twin or sham shares its original's"},
    "kind": {"Description": "recorded, twin (same seeds, no disease) or sham (random field)"},
    "origin": {"Description": "participant_id of the original"},
    "age": {"Units": "years"},
    "motion": {"Units": "mm", "Description": "motion blur, SD"},
    "tiv_ml": {"Units": "ml", "Description": "native head size, metadata only"},
    "head_ap": {"Description": "native length over the template's; _lr width, _si height"},
    "cognition": {"Description": "0 to 100, floor 0"},
    "t1w": {"Description": "path of the volume from this folder"},
}


def _as_kind(raw: Path, row: dict, kind: str) -> dict:
    """Return a person's row of participants.tsv as recorded, twin or sham."""
    path = _paths(row)[kind]
    files = {"t1w": path, "sha": record.digest(raw / path)}
    if kind == "recorded":
        return {**row, **files}
    healthy = {"group": "euploid", "stage": "n/a", "disability": "n/a", "cognition": "n/a"}
    name = row["participant_id"]
    return {**row, **healthy, **files, "participant_id": name + kind, "kind": kind, "origin": name}


def _truth_row(raw: Path, row: dict) -> dict:
    """Return one person's factor, folded voxels and region ml before, after and wanted."""
    sidecar = json.loads((raw / _paths(row)["recorded"].replace(".nii.gz", ".json")).read_text())
    before, after = np.array(sidecar["RegionMlBefore"]), np.array(sidecar["RegionMlAfter"])
    wanted = before * np.exp(fields.targets(row["stage"], row["factor"]))
    truth = {"participant_id": row["participant_id"], "stage": row["stage"]}
    truth |= {"factor": row["factor"], "folded_voxels": sidecar["FoldedVoxels"]}
    for name, *values in zip(space.REGIONS, before, after, wanted):
        truth |= {f"{name}_{when}": v for when, v in zip(("before", "after", "wanted"), values)}
    return truth


def summarise(root: Path, study: Study) -> dict:
    """Return the 01 page's numbers: people, folding, and wanted against reached region changes."""
    record.require(root, "raw")
    read = {"sep": "\t", "keep_default_na": False}
    people = pd.read_csv(root / "raw/participants.tsv", **read)
    truth = pd.read_csv(root / "raw/derivatives/truth/truth.tsv", **read)
    recorded = people[people["kind"] == "recorded"]
    sidecars = [root / "raw" / t1w.replace(".nii.gz", ".json") for t1w in recorded["t1w"]]
    folded = sum(json.loads(path.read_text())["FoldedVoxels"] for path in sidecars)
    regions = region_rows(truth)
    counts = recorded["group"].value_counts()
    headline = {
        "subjects": len(recorded), "euploid": int(counts.get("euploid", 0)),
        "ds": int(counts.get("DS", 0)), "folded_voxels": folded,
        "target_error_points": max(row["gap_points"] for row in regions),
        "phantom_version": PHANTOM_VERSION,
    }  # fmt: skip
    tables = {
        "regions": regions,
        "stages": recorded["stage"].value_counts().to_dict(),
        "sites": recorded.groupby(["group", "site"]).size().unstack(0, fill_value=0).to_dict(),
        "reasons": {},
    }
    return record.plain({"headline": headline, "tables": tables, "timing": {}})


def region_rows(truth: pd.DataFrame) -> list[dict]:
    """Return wanted and reached change of every region in DS from the truth table."""
    affected = truth[truth["stage"] != "n/a"]
    return [_region_row(affected, name) for name in space.REGIONS]


def _region_row(truth: pd.DataFrame, name: str) -> dict:
    """Return wanted and reached mean change (%) of one region, overall and by stage."""
    before = truth[f"{name}_before"]
    wanted, reached = (100 * (truth[f"{name}_{k}"] / before - 1) for k in ("wanted", "after"))
    gaps = (reached - wanted).groupby(truth["stage"]).mean().abs()
    return {
        "region": name, "base_target_pct": fields.DISEASE[name], "wanted_pct": wanted.mean(),
        "reached_pct": reached.mean(), "sd_pct": reached.std(ddof=0), "gap_points": gaps.max(),
        "people": len(truth),
    }  # fmt: skip

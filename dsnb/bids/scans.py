"""BIDS scans: which T1w belong to whom, and volumes in and out with their sidecars."""

import gzip
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from dsnb import checks, record
from dsnb.bids.tables import MISSING
from dsnb.checks import BadInput
from dsnb.space import Grid


def find_t1w(raw: Path) -> tuple[pd.DataFrame, list[BadInput]]:
    """Find one T1w a person and session: participant_id, session, t1w (relative to `raw`).

    Problems: E-PATH, E-NAME (a name that breaks BIDS), E-RUNS (several in one session), E-NOT1W.
    """
    rows, problems = [], []
    scans = (raw.glob(f"sub-*/{session}anat/*T1w.nii*") for session in ("", "ses-*/"))
    for path in sorted(path for several in scans for path in several):
        relative = path.relative_to(raw)
        entities = "_".join(relative.parts[:-2])
        session = relative.parts[1].removeprefix("ses-") if len(relative.parts) == 4 else MISSING
        name = path.name
        if not re.fullmatch(re.escape(entities) + r"(_[a-z]+-\w+)*_T1w\.nii(\.gz)?", name):
            expected = f"{entities}_T1w.nii.gz"
            problems.append(BadInput("E-NAME", relative, "its name", name, expected, "rename it"))
            continue
        try:
            checks.check_path(path, raw)
        except BadInput as problem:
            problems.append(problem)
            continue
        rows.append((relative.parts[0], session, str(relative)))
    found = pd.DataFrame(rows, columns=["participant_id", "session", "t1w"], dtype=object)
    twice = found[found.duplicated(["participant_id", "session"], keep=False)]
    for (person, _), several in twice.groupby(["participant_id", "session"]):
        expected, fix = "one T1w a session", "leave the one to use in the folder"
        seen = [Path(path).name for path in several["t1w"]]
        problems.append(BadInput("E-RUNS", person, "its T1w scans", seen, expected, fix))
    if not rows and not problems:
        fix = "give the BIDS folder that holds the sub-* folders"
        problems.append(BadInput("E-NOT1W", raw.name, "its T1w scans", 0, "sub-*/anat/", fix))
    return found, problems


def save_volume(
    path: Path,
    volume: np.ndarray,
    grid: Grid | np.ndarray,
    sidecar: dict | None = None,
    step: float | None = None,
    space: int = 4,
) -> None:
    """Write `path` (.nii.gz) and its JSON sidecar, each whole or not at all.

    `volume` (X, Y, Z); `grid` is a study grid or an affine in mm, `space` its NIfTI code (4 MNI152,
    1 scanner). With `step`, intensities are stored as int16 in that unit. The header is new, so
    nobody's name travels in it, and the gzip stream holds neither file name nor time: equal
    volumes are equal bytes.
    """
    affine = grid.affine if isinstance(grid, Grid) else grid
    if step is None:
        values = volume if volume.dtype.kind in "iu" else volume.astype(np.float32)
    else:
        values = quantise(volume, step)
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, space)
    image.set_qform(affine, space)
    image.header.set_xyzt_units("mm")
    if step is not None:
        image.header.set_slope_inter(step, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(gzip.compress(image.to_bytes(), 1, mtime=0))
    aside.replace(path)
    if sidecar is not None:
        record.write_json(sidecar_of(path), sidecar)


def quantise(volume: np.ndarray, step: float) -> np.ndarray:
    """Return the volume as int16 in units of `step`; what lies outside the range is an error."""
    values = np.rint(volume / np.float32(step))
    if np.abs(values).max() > np.iinfo(np.int16).max:
        raise ValueError(f"values reach {np.abs(volume).max()}, too far for steps of {step}")
    return values.astype(np.int16)


def sidecar_of(path: Path) -> Path:
    """Return the path of a scan's JSON sidecar."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def load_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a checked scan, turned to RAS axes: (X, Y, Z) float32 and its affine (4, 4) in mm."""
    return as_ras(*checks.read_nifti(path)[:2])


def as_ras(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip and permute the axes so that they run right, anterior, superior; no resampling."""
    turn = nib.io_orientation(affine)
    affine = affine @ nib.orientations.inv_ornt_aff(turn, volume.shape)
    return np.ascontiguousarray(nib.apply_orientation(volume, turn)), affine


def describe(folder: Path, name: str, derived_from: str | None = None) -> None:
    """Write dataset_description.json: raw data, or a derivative where `derived_from` is given."""
    entry = {"Name": name, "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    if derived_from:
        entry |= {"DatasetType": "derivative", "GeneratedBy": [{"Name": "dsnb"}]}
        entry["SourceDatasets"] = [{"URL": derived_from}]
    record.write_json(folder / "dataset_description.json", entry)

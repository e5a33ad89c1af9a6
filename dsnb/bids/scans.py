"""BIDS scans: which T1w belong to whom, and volumes in and out with their sidecars."""

import gzip
import os
import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from dsnb import checks, record
from dsnb.bids.tables import MISSING
from dsnb.checks import BadInput
from dsnb.space import Grid

# What people call a T1w scan against the rule: T1.nii, sub-01_t1w.nii.gz, mprage.nii.gz.
T1W_LIKE = re.compile(r"(^|[_-])(t1w?|mprage|spgr)([_.-].*)?\.nii(\.gz)?$", re.I)
PLACES = ("anat/*", "ses-*/anat/*", "*", "ses-*/*")


def find_t1w(raw: Path, chosen: Collection[str] = ()) -> tuple[pd.DataFrame, list[BadInput]]:
    """Find one T1w a person and session: participant_id, session, t1w (relative to `raw`).

    Where a session has several, the one whose path is in `chosen` is taken. Problems: E-PATH,
    E-NAME (a name that breaks BIDS, with one that does not), E-RUNS (no choice), E-NOT1W.
    """
    rows, problems, odd = [], [], []
    paths = [path for place in PLACES for path in raw.glob(f"[sS][uU][bB]*/{place}")]
    for path in sorted(path for path in paths if path.name[0] != "."):  # "._x" is macOS's own
        relative = path.relative_to(raw)
        wanted = _bids_path(relative)
        person, *session = wanted.parts[:-2]
        key = (person, session[0].removeprefix("ses-") if session else MISSING)
        stem = re.escape(wanted.name.split("_T1w")[0])
        rule = stem + r"(_[a-z]+-\w+)*_T1w\.nii(\.gz)?"
        if relative.parent != wanted.parent or not re.fullmatch(rule, path.name):
            if T1W_LIKE.search(path.name):
                odd.append((key, relative, str(wanted)))
            continue
        try:
            checks.check_path(path, raw)
            rows.append((*key, str(relative)))
        except BadInput as problem:
            problems.append(problem)
    # A mask beside a sound scan is nobody's T1w; where there is none, or it ends in T1w, it is.
    sound = {row[:2] for row in rows}
    problems += [
        BadInput("E-NAME", relative, "its name", relative.name, expected, "rename it, or move it")
        for key, relative, expected in odd
        if key not in sound or re.search(r"_T1w\.nii(\.gz)?$", relative.name)
    ]
    if not rows and not problems:
        fix = "give the BIDS folder that holds the sub-* folders"
        problems.append(BadInput("E-NOT1W", raw.name, "its T1w scans", 0, "sub-*/anat/", fix))
    found = pd.DataFrame(rows, columns=["participant_id", "session", "t1w"], dtype=object)
    if absent := sorted({*chosen} - {*found["t1w"], MISSING}):
        said = (absent, "T1w scans of this folder, like sub-01/anat/sub-01_T1w.nii.gz")
        fix = "correct the column"
        problems.append(BadInput("E-PATH", "participants.tsv", "t1w", *said, fix))
    return _choose(found, problems, chosen), problems


def _bids_path(relative: Path) -> Path:
    """Return where a T1w scan of these folders belongs by BIDS, from its folders and name."""
    person, *folders = relative.parts[:-1]
    person = "sub-" + re.sub(r"^sub-?|[^A-Za-z0-9]", "", person, flags=re.I)
    named = re.search(r"_ses-([A-Za-z0-9]+)", relative.name)
    session = folders[0] if folders and folders[0].startswith("ses-") else named and named[0][1:]
    entities = [person]
    if session:
        entities.append("ses-" + re.sub(r"[^A-Za-z0-9]", "", session[4:]))
    suffix = ".nii.gz" if relative.name.lower().endswith(".gz") else ".nii"
    return Path(*entities, "anat", "_".join(entities) + "_T1w" + suffix)


def _choose(found: pd.DataFrame, problems: list[BadInput], chosen: Collection) -> pd.DataFrame:
    """Return one scan a session: the only one, or the one chosen; add E-RUNS to `problems`."""
    session, stated = ["participant_id", "session"], found["t1w"].isin(chosen)
    settled = stated.groupby([found[key] for key in session]).transform("sum") == 1
    kept = found[stated | ~settled].reset_index(drop=True)
    for (person, _), several in kept[kept.duplicated(session, keep=False)].groupby(session):
        seen, expected = several["t1w"].tolist(), "one T1w a session"
        fix = "name the one to use in a column t1w of participants.tsv, or keep one alone"
        problems.append(BadInput("E-RUNS", person, "its T1w scans", seen, expected, fix))
    return kept


def attempt(work: Callable, items: list, label: str) -> Iterator:
    """Yield `work(item)`, or the BadInput that it raised, in the order of the items."""

    def one(item: object) -> object:
        try:
            return work(item)
        except BadInput as problem:
            return problem

    with ThreadPoolExecutor(2) as pool:
        for done, answer in enumerate(pool.map(one, items), start=1):
            record.progress(label, done, len(items))
            yield answer


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
    turned = nib.as_closest_canonical(nib.Nifti1Image(volume, affine))
    return np.ascontiguousarray(turned.dataobj), turned.affine


def describe(folder: Path, name: str, derived_from: str | None = None) -> None:
    """Write dataset_description.json: raw data, or a derivative where `derived_from` is given."""
    entry = {"Name": name, "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    if derived_from:
        entry |= {"DatasetType": "derivative", "GeneratedBy": [{"Name": "dsnb"}]}
        entry["SourceDatasets"] = [{"URL": derived_from}]
    record.write_json(folder / "dataset_description.json", entry)

"""One person's report: maps on the study grid and in the own scan, regions, and a page to read.

The norm is fitted again at the settings that `maps` chose; nothing is tuned, nobody else is scored.
"""

import difflib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.processing import resample_from_to

from dsnb import anomaly, bids, checks, figures, record
from dsnb.anomaly import maps, regions, tuning
from dsnb.anomaly.maps import Reference
from dsnb.anomaly.people import Source
from dsnb.checks import BadInput
from dsnb.cohort import manifest
from dsnb.config import Study
from dsnb.space import EUPLOID_SPLITS, REGIONS
from dsnb.volumes import prepared_path

FIX = "see participants.tsv and exclusions.tsv of the product prepared"
BAND = (0.05, 0.95)  # quantiles of calibration euploids drawn behind a person's z
DPI = 200  # of the page, to be printed
NAMED = 4  # regions outside of their bound that the sentence names, the farthest first
OWN_SPACE = {  # outside of the study grid's map, order, step on disk, text
    "z": (0, 1, 1e-3, "departure / predictive SD, read linearly at the voxels of the raw scan"),
    "q": (1, 0, None, "Benjamini-Hochberg q of the nearest voxel, 1 outside of the brain"),
}


def report(
    root: Path, study: Study, names: Sequence[str], raw: Path | None = None, own_space=False
) -> None:
    """Write maps, regions and a page of each named person to `reports/sub-ID` of the data root.

    `raw` is the BIDS folder (None: as imported); with `own_space` z and q are written at its T1w's
    voxels, too. Refuses `maps` that are unfinished or of other settings (E-STALE), a norm of too
    few people (E-FEW), an unknown person (E-UNKNOWN), a folder with other files (E-FOREIGN), and
    in own space whose scan was drawn from another's (E-DRAWN).
    """
    chosen = [row for row in anomaly.chosen(root, study) if row["norm"] == study.maps.norm]
    source = Source(root, study)
    rows = find(source.table, names)
    scans = [_find_scan(root, raw, source, row) if own_space else None for row in rows]
    reference = maps.calibrate(tuning.fit_chosen(source, chosen)[study.maps.norm])
    for row, scan in zip(rows, scans):
        with record.writing(root):
            _write(root, reference, row, scan)


def find(table: pd.DataFrame, names: Sequence[str]) -> list[int]:
    """Return the row numbers of people; refuse (E-UNKNOWN) an id, telling the nearest known ones.

    Twins of a phantom are its truth: they are not registered, and nobody's patients.
    """
    known = dict(zip(table["participant_id"], range(len(table))))
    for name in table.loc[table["kind"] == "twin", "participant_id"]:
        del known[name]
    for name in names:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, 3, 0))
            expected = f"an id of the prepared cohort, the nearest are {near}"
            raise BadInput("E-UNKNOWN", "command line", "person", name, expected, FIX)
    return [known[name] for name in dict.fromkeys(names)]


def _write(root: Path, reference: Reference, row: int, scan: tuple | None) -> None:
    """Write one person's report aside, then put it in the place of an older one."""
    source, folder = reference.norm.source, root / "reports"
    table, of_volume = source.table.iloc[[row]], reference.norm.candidate.of_volume
    name = table["participant_id"].iloc[0]
    old = folder / name
    if strange := [p.name for p in old.rglob("*") if p.is_file() and f"{name}_" not in p.name]:
        fix = "move them away: this folder is written anew"
        raise BadInput("E-FOREIGN", f"reports/{name}", "its files", strange[:3], "only ours", fix)
    folder.mkdir(exist_ok=True)
    bids.describe(folder, "dsnb reports of single people", "prepared")
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as aside:
        new, started = Path(aside) / name, time.perf_counter()
        people = source.people(np.array([row]), moved=of_volume)
        norm, calibration = reference.norm, reference.calibration
        z, p, q = maps.write_people(Path(aside), norm, [row], people, calibration)
        told = f"{time.perf_counter() - started:.1f} s from the prepared volume to the maps"
        record.say(f"report: {name}: {told}" + ", registration included" * of_volume)
        own = {
            desc: reference.norm.in_own_grid(values, people.points, outside=outside, order=order)[0]
            for (desc, (outside, order, *_)), values in zip(OWN_SPACE.items(), (maps.limit(z), q))
        }
        if scan:
            write_own_space(new / "anat", name, own, source, *scan)
        measured = reference.ruler.measure(people, table)
        regions.write(new, [measured], of_volume)
        for kind in ("tsv", "json"):
            (new / f"regions.{kind}").rename(new / f"{name}_regions.{kind}")
        page = _draw(reference, row, own, measured, p[0], q[0], record.read_mark(root)["data"])
        figures.save_figure(page, new / f"{name}_report.png", dpi=DPI)
        if old.is_dir():
            old.rename(Path(aside) / "old")
        new.rename(old)


def _find_scan(root: Path, raw: Path | None, source: Source, row: int) -> tuple[Path, np.ndarray]:
    """Return a person's raw scan and the matrix (4, 4) from its mm to MNI mm."""
    told = root / manifest.SOURCE  # where the import read, absent for a phantom
    raw = raw or root / (json.loads(told.read_text())["raw"] if told.is_file() else "raw")
    about = source.table.iloc[row]
    name, path = about["participant_id"], raw / about["t1w"]
    prepared = prepared_path(root / "prepared", name, source.grid)
    if prepared_path(root / "prepared", name, source.grid, "truth_logjac").is_file():
        seen, fix = f"that of {about['origin']}, changed", "leave out --own-space"
        raise BadInput("E-DRAWN", name, "its scan", seen, "a scan of its own", fix)
    checks.check_path(path, raw)
    note = json.loads(bids.sidecar_of(prepared).read_text())
    return path, np.array(note.get("NativeToMNI", np.eye(4)))


def write_own_space(
    folder: Path, name: str, own: dict[str, np.ndarray], source: Source, path: Path,
    matrix: np.ndarray,
) -> None:  # fmt: skip
    """Write a person's z and q (V,) at the voxels of the raw scan at `path`, its axes kept.

    The maps lie in the person's affine-aligned grid; `matrix` takes mm of the scan to MNI mm.
    """
    scan = nib.load(path)
    code = 4 if np.array_equal(matrix, np.eye(4)) else 1
    for desc, (outside, order, step, text) in OWN_SPACE.items():
        volume = source.fill(own[desc], outside)
        aligned = nib.Nifti1Image(volume, np.linalg.inv(matrix) @ source.grid.affine)
        read = resample_from_to(aligned, (scan.shape[:3], scan.affine), order, cval=outside)
        note = {"Description": text, "Norm": source.study.maps.norm, "NativeToMNI": matrix,
                "Anatomy": "person, raw scan", "SpatialReference": path.name}  # fmt: skip
        target = folder / f"{name}_space-T1w_desc-{desc}_statmap.nii.gz"
        bids.save_volume(target, np.asarray(read.dataobj), scan.affine, note, step, code)


def made_with(table: pd.DataFrame, about: pd.Series) -> list[str]:
    """Return the splits by which a person, or a euploid of the family, is part of the norm."""
    kin = table[(table["family"] == about["family"]) & (table["group"] == "euploid")]
    return [split for split in EUPLOID_SPLITS[:-1] if split in set(kin["split"])]


def tell(
    reference: Reference, about: pd.Series, made: list[str], measured: pd.DataFrame, p: np.ndarray,
    q: np.ndarray,
) -> list[str]:  # fmt: skip
    """Say what was found in a person, and what speaks against reading it: one sentence each."""
    known, rate = measured.dropna(subset="bound"), reference.calibration.rate
    outside = known[known["outside"].astype(bool)].sort_values("z", key=np.abs, ascending=False)
    bound = f"{len(outside)} of {len(known)} regions lie{'s' * (len(outside) == 1)} outside the "
    bound += "bound that 95 % of euploids of this sex keep"
    if len(outside):
        first = ", ".join(outside["region"].str.replace("_", " ").head(NAMED))
        bound += f" ({first}{', ...' if len(outside) > NAMED else ''})"
    if not len(known):
        bound = f"No region has a bound (under {regions.FEWEST} calibration euploids of this sex)"
    passed = int((q < rate).sum())
    voxels = f"{passed:,} of {len(q):,} brain voxels pass" + "es" * (passed == 1)
    voxels = voxels if passed else "no voxel passes"
    said, (low, high) = [f"{bound}; {voxels} q < {rate:g}."], reference.ages
    if not low <= about["age"] <= high:
        ages = f"{low:.0f} to {high:.0f} years of the euploids who set the scale"
        said.append(f"Age {about['age']:g} is outside of the {ages}: the norm is extrapolated.")
    wide = float((p < 0.05).mean())
    if wide > reference.widest:
        said.append(
            f"{100 * wide:.0f} % of the brain is beyond its 95 % range, and in no calibration "
            f"euploid more than {100 * reference.widest:.0f} %: a wide change, or a scanner or "
            "quality that the norm does not know, where q does not hold."
        )
    if made:
        who = f"this person or a relative ({', '.join(made)})"
        said.append(f"The norm was made with {who}: z is too small.")
    return said


def _draw(reference: Reference, row: int, own: dict, measured: pd.DataFrame, p, q, data: str):
    """Return the page of one person; `own` holds z and q (V,) over the person's own volume."""
    source, candidate = reference.norm.source, reference.norm.candidate
    known, about, size = reference.ruler.known, source.table.iloc[row], len(REGIONS)
    made = made_with(source.table, about)
    volumes = {"T1w": np.asarray(source.volumes[row], np.float32)}
    volumes |= {desc: source.fill(values, OWN_SPACE[desc][0]) for desc, values in own.items()}
    low, high = np.quantile(known, BAND, axis=0)
    sex = {"F": "female", "M": "male"}[about["sex"]]
    title = [
        f"{about['participant_id']}: {about['age']:g} years, {sex}",
        f"norm {candidate.name}, preset {source.study.name} ({source.grid.voxel_mm:g} mm), data: "
        f"{data}",
    ]
    notes = [
        "z: departure from what a euploid of this age and sex would have, over its predictive SD; "
        f"above 0 (red) is {'larger' if candidate.of_volume else 'brighter'}. centile: among "
        f"{len(known)} calibration euploids.",
        "bound: split conformal, for one region at a time; by chance alone a euploid has up to "
        f"{(1 - regions.LEVEL) * size:.1f} of {size} regions outside.",
        f"q: Benjamini-Hochberg after a conformal factor from the same {len(known)} euploids; any "
        f"voxel passes in at most {100 * reference.calibration.guarantee:.0f} % of new euploids.",
        "Slices go through the strongest voxel that passes, or else through a fixed point; left is "
        "left of the person. Research use, not a diagnosis.",
    ]
    return figures.plot_report(
        title, tell(reference, about, made, measured, p, q), notes, volumes, source.grid.affine,
        measured.assign(low=low, high=high), "%" * candidate.of_volume, reference.calibration.rate,
    )  # fmt: skip

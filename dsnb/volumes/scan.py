"""One scan: onto the study grid by one resampling, checked, masked, on one intensity scale."""

from functools import cache

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from dsnb import config, phantom, record, space
from dsnb.checks import BadInput
from dsnb.space import GRIDS, Grid

WHITE_MATTER = 0.85  # what the white-matter mode becomes
BRIGHTEST = 1.5  # clipped above: vessels and fat
MODE_BINS = 128  # of the white-matter histogram, smoothed with an SD of 4 bins
# A voxel counts as tissue above this share of the 98th percentile inside the template brain.
TISSUE = 0.1
# Share of the study's field of view without tissue: 0.58 to 0.65 in stripped brains, 0.36 in a
# whole head that we measured; half-way. (The 0.8 of native scans has more air around the head.)
STRIPPED = 0.5
# Dice of tissue with the template brain: 0.93 to 0.95 in 46 registered scans, 0.55 to 0.68 in
# 12 of them before registration. Between the two bounds a scan may be a large native brain that
# happens to lie well: it is registered.
REGISTERED, SURELY_REGISTERED = 0.8, 0.9
# Share of the template brain that the scan's field of view must hold, and holds in MNI space.
COVERED, SURELY_COVERED = 0.9, 0.98
# Correlation with the template that a registered brain must have: 0.65 to 0.71 in 12 real ones,
# 0.28 to 0.38 in three that were lost upside down, whose Dice was 0.86 to 0.92.
ALIKE = 0.45
MARGIN_MM = 3.0  # kept around the template brain
QUIETEST = 1e-4  # noise SD that the SNR assumes at least: intensities are stored in such steps
LOOK = "look at the scan"
UPRIGHT = LOOK + ": is the brain whole and upright?"


def draw(row: dict, study: config.Study) -> tuple[np.ndarray, np.ndarray, dict]:
    """Draw the condition of a planted row, or the sham's field of equal size, on the study grid.

    Returns the backward displacement (3, X, Y, Z) mm, the log-Jacobian (X, Y, Z), and region
    volumes in ml before and after (the template's regions, moved). Planted and sham of one
    person share their seed.
    """
    seed = int(record.digest([study.cohort.seed, row["origin"]])[:8], 16)
    field = phantom.sham_displacement if row["kind"] == "sham" else phantom.disease_displacement
    displacement, truth = field(study.grid, study.cohort.severity, seed)
    masks = space.region_masks(study.grid)
    voxels = np.indices(study.grid.shape, dtype=np.float32) + displacement / study.grid.voxel_mm
    region_ml = {}
    for name, mask in zip(space.REGIONS, masks):
        moved = ndimage.map_coordinates(mask, voxels, order=1)
        region_ml[f"{name}_before"] = float(mask.sum()) * study.grid.voxel_ml
        region_ml[f"{name}_after"] = float(moved.sum()) * study.grid.voxel_ml
    return displacement, truth, {"RegionMl": region_ml}


def lies_in_mni(volume: np.ndarray, affine: np.ndarray, grid: Grid) -> bool:
    """Tell whether a scan (RAS) lies on the study grid, or on the template wherever it is cut."""
    if _is_on(grid, volume, affine):
        return True
    coarse = GRIDS["small"]  # whatever the study's grid, so that presets agree
    brain = space.load_template(coarse).brain
    seen = ndimage.map_coordinates(volume, _to_voxels(coarse.coordinates_mm(), affine), order=0)
    covered = measure_coverage(volume.shape, affine, coarse) >= SURELY_COVERED
    return bool(covered and dice(find_tissue(seen, brain), brain) >= SURELY_REGISTERED)


def _is_on(grid: Grid, volume: np.ndarray, affine: np.ndarray) -> bool:
    return volume.shape == grid.shape and np.allclose(affine, grid.affine, atol=1e-3)


def measure_coverage(shape: tuple[int, ...], affine: np.ndarray, grid: Grid) -> float:
    """Return the share of the template brain inside a field of view; `affine` is voxel to MNI."""
    voxels = _to_voxels(grid.coordinates_mm(), affine)
    inside = (voxels >= 0) & (voxels <= np.reshape(shape, (3, 1, 1, 1)) - 1)
    return float(inside.all(0)[space.load_template(grid).brain].mean())


def check_coverage(shape: tuple[int, ...], affine: np.ndarray, grid: Grid, where: str) -> float:
    """Return `measure_coverage`; refuse E-CROP where too much of the brain is cut off."""
    covered = measure_coverage(shape, affine, grid)
    if covered < COVERED:
        seen, expected = f"{covered:.0%} of the brain", f"at least {COVERED:.0%}"
        raise BadInput("E-CROP", where, "its field of view", seen, expected, LOOK)
    return covered


def place(
    volume: np.ndarray, affine: np.ndarray, grid: Grid, displacement: np.ndarray | None, where: str
) -> tuple[np.ndarray, bool]:
    """Bring a stripped volume (RAS) onto the grid; return it, and if it was resampled.

    `affine` (4, 4) is voxel to MNI mm, a native scan's registration included. A volume on the
    grid stays as it is. Others get one linear resampling at x + u(x), `u` the backward
    displacement (3, X, Y, Z) mm, after a low-pass to the study voxel where that is coarser.
    Refuses E-NOTMNI, E-SKULL, E-EMPTY.
    """
    resampled = displacement is not None or not _is_on(grid, volume, affine)
    if resampled:
        mm = grid.coordinates_mm()
        voxels = _to_voxels(mm if displacement is None else mm + displacement, affine)
        sizes = voxel_sizes(affine)
        if grid.voxel_mm > sizes.max():
            volume = ndimage.gaussian_filter(volume, 0.425 * grid.voxel_mm / sizes)
        volume = ndimage.map_coordinates(volume, voxels, order=1, mode="constant")
    _check_brain(volume, space.load_template(grid).brain, where)
    return volume, resampled


def _to_voxels(mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Turn MNI millimetres (3, X, Y, Z) into a scan's voxel coordinates, same shape."""
    inverse = np.linalg.inv(affine).astype(np.float32)
    return np.tensordot(inverse[:3, :3], mm, 1) + inverse[:3, 3, None, None, None]


def _check_brain(volume: np.ndarray, brain: np.ndarray, where: str) -> None:
    """Refuse a volume on the grid that is blank, wears its skull, or lies off the template."""
    tissue = find_tissue(volume, brain)
    if not tissue.any():
        raise BadInput("E-EMPTY", where, "its brightness", 0.0, "tissue in the brain", LOOK)
    empty, overlap = 1 - tissue.mean(), dice(tissue, brain)
    if empty <= STRIPPED:
        seen, expected = f"{empty:.0%} empty", f"more than {STRIPPED:.0%}, as without skull"
        raise BadInput("E-SKULL", where, "its field of view", seen, expected, "strip the skull")
    if overlap < REGISTERED:
        expected = f"at least {REGISTERED}, as when it lies on the template"
        raise BadInput("E-NOTMNI", where, "its brain's Dice", round(overlap, 2), expected, UPRIGHT)


def find_tissue(volume: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return where there is tissue (bool): brighter than a share of the brain's brightest."""
    top = np.percentile(volume[brain], 98)
    return volume > TISSUE * top if top > 0 else np.zeros(volume.shape, bool)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice overlap of two masks, 0 to 1 (Dice 1945)."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def find_mode(values: np.ndarray) -> float:
    """Return the most frequent intensity: the centre of the smoothed histogram's peak."""
    low, high = np.percentile(values, [1, 99.5])
    if not high > low:
        return float(high)
    counts, edges = np.histogram(values, MODE_BINS, (low, high))
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 4.0, mode="constant")
    peak = int(smooth.argmax())
    near = slice(max(peak - 1, 0), peak + 2)
    centres = (edges[:-1] + edges[1:]) / 2
    return float(np.average(centres[near], weights=smooth[near]))


def normalise(volume: np.ndarray, grid: Grid, where: str) -> tuple[np.ndarray, dict]:
    """Mask a volume on the grid and anchor its white-matter mode; return it (0..1.5) and QC.

    The mode is taken where the template is surely white matter, so its level does not move with
    a shrinking cortex. QC: `empty_share`, `wm_mode` (raw units), `mask_dice`, `template_r` (with
    the template's T1w), `snr` (mode over the SD of neighbours' differences / sqrt 2),
    `asymmetry` (1 - Dice of tissue with its mirror image).
    """
    template = space.load_template(grid)
    white = template.wm > 0.9
    mode = find_mode(volume[white])
    if not mode > 0:
        raise BadInput("E-EMPTY", where, "its white-matter mode", mode, "above 0", LOOK)
    values = np.clip(volume * np.float32(WHITE_MATTER / mode), 0, BRIGHTEST)
    tissue = find_tissue(values, template.brain)
    both = white[1:] & white[:-1]
    steps = np.diff(values, axis=0)[both]
    noise = 1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / np.sqrt(2)
    alike = np.corrcoef(values[template.brain], template.t1w[template.brain])[0, 1]
    qc = {
        "empty_share": 1 - tissue.mean(),
        "wm_mode": mode,
        "mask_dice": dice(tissue, template.brain),
        "template_r": alike,
        "snr": WHITE_MATTER / max(noise, QUIETEST),
        "asymmetry": 1 - dice(tissue, tissue[::-1]),  # the grid is centred on x = 0
    }
    return values * find_brain(grid, max(MARGIN_MM, grid.voxel_mm)), qc


def check_registration(qc: dict, where: str) -> None:
    """Refuse (E-REGISTER) a native volume that fills the template, but does not look like it."""
    if qc["template_r"] < ALIKE:
        seen, expected = round(qc["template_r"], 2), f"at least {ALIKE} with the template"
        raise BadInput("E-REGISTER", where, "its correlation", seen, expected, UPRIGHT)


@cache
def find_brain(grid: Grid, margin_mm: float) -> np.ndarray:
    """Return the template brain (bool, X, Y, Z) and a margin around it."""
    distance = ndimage.distance_transform_edt(~space.load_template(grid).brain) * grid.voxel_mm
    return distance <= margin_mm

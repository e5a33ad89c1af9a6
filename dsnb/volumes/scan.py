"""One scan: onto the study grid by one resampling, checked, masked, on one intensity scale."""

from functools import cache

import numpy as np
from scipy import ndimage

from dsnb import config, phantom, record, space
from dsnb.checks import BadInput
from dsnb.space import Grid

WHITE_MATTER = 0.85  # what the white-matter mode becomes
BRIGHTEST = 1.5  # clipped above: vessels and fat
MODE_BINS = 128  # of the white-matter histogram, smoothed with an SD of 4 bins
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
QUIETEST = 1e-4  # noise SD that the SNR assumes at least: intensities are stored in such steps
QC = ("empty_share", "wm_mode", "mask_dice", "template_r", "snr")
LATER = "registration and skull stripping come with a later version: do it before the import"


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


def place(
    volume: np.ndarray, affine: np.ndarray, grid: Grid, displacement: np.ndarray | None, where: str
) -> tuple[np.ndarray, bool]:
    """Bring a stripped MNI-space volume (RAS) onto the grid; return it, and if it was resampled.

    A volume on the grid stays as it is. Others get one linear resampling at x + u(x), `u` the
    backward displacement (3, X, Y, Z) mm, after a low-pass to the study voxel where that is
    coarser. Refuses E-NOTMNI, E-SKULL, E-EMPTY.
    """
    on_grid = volume.shape == grid.shape and np.allclose(affine, grid.affine, atol=1e-3)
    brain = space.load_template(grid).brain
    if not (on_grid and displacement is None):
        mm = grid.coordinates_mm()
        voxels = _to_voxels(mm, affine)
        limits = np.array(volume.shape).reshape(3, 1, 1, 1) - 1
        covered = ((voxels >= 0) & (voxels <= limits)).all(0)[brain].mean()
        if covered < COVERED:
            seen, expected = f"{covered:.0%} of the brain", f"at least {COVERED:.0%}, in MNI space"
            raise BadInput("E-NOTMNI", where, "its field of view", seen, expected, LATER)
        if displacement is not None:
            voxels = _to_voxels(mm + displacement, affine)
        sizes = np.sqrt((affine[:3, :3] ** 2).sum(0))
        if grid.voxel_mm > sizes.max():
            volume = ndimage.gaussian_filter(volume, 0.425 * grid.voxel_mm / sizes)
        volume = ndimage.map_coordinates(volume, voxels, order=1, mode="constant")
    _check_brain(volume, brain, where)
    return volume, not on_grid or displacement is not None


def _to_voxels(mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Turn MNI millimetres (3, X, Y, Z) into a scan's voxel coordinates, same shape."""
    inverse = np.linalg.inv(affine).astype(np.float32)
    return np.tensordot(inverse[:3, :3], mm, 1) + inverse[:3, 3, None, None, None]


def _check_brain(volume: np.ndarray, brain: np.ndarray, where: str) -> None:
    """Refuse a volume on the grid that is blank, wears its skull, or lies off the template."""
    tissue = find_tissue(volume, brain)
    if not tissue.any():
        fix = "look at the scan"
        raise BadInput("E-EMPTY", where, "its brightness", 0.0, "tissue in the brain", fix)
    empty, overlap = 1 - tissue.mean(), dice(tissue, brain)
    if empty <= STRIPPED:
        seen, expected = f"{empty:.0%} empty", f"more than {STRIPPED:.0%}, as without skull"
        raise BadInput("E-SKULL", where, "its field of view", seen, expected, LATER)
    if overlap < REGISTERED:
        expected = f"at least {REGISTERED}, as when registered to MNI"
        raise BadInput("E-NOTMNI", where, "its brain's Dice", round(overlap, 2), expected, LATER)


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
    the template's T1w), `snr` (mode over the SD of neighbours' differences / sqrt 2).
    """
    template = space.load_template(grid)
    white = template.wm > 0.9
    mode = find_mode(volume[white])
    if not mode > 0:
        fix = "look at the scan"
        raise BadInput("E-EMPTY", where, "its white-matter mode", mode, "above 0", fix)
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
    }
    return values * keep_mask(grid), qc


@cache
def keep_mask(grid: Grid) -> np.ndarray:
    """Return what is kept of every volume (bool): the template brain and a margin around it."""
    distance = ndimage.distance_transform_edt(~space.load_template(grid).brain) * grid.voxel_mm
    return distance <= max(MARGIN_MM, grid.voxel_mm)

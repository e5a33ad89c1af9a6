"""One person's scan: tissue maps moved, given contrast, bias and noise; on a grid or native."""

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from dsnb import space
from dsnb.config import Study
from dsnb.phantom.fields import LATTICE, onto, pull, smooth_noise
from dsnb.phantom.people import SITES, stream
from dsnb.space import GRIDS, Grid

# Levels of GM, WM and CSF, and their SD between people, near those of open 3 T scans. [E]
LEVELS, LEVELS_SD = (0.55, 0.87, 0.18), (0.02, 0.008, 0.05)
CRISPNESS = 2.0  # power of the tissue probabilities: one brain is crisper than the average of 152
SULCI_MM, SULCI, OPEN = 5.0, 0.8, -0.7  # width, SD and mean log-odds of a person's GM in cortex
TEXTURE = 0.35  # of what the template's T1w holds beside its tissues; the rest is averaging blur
FOLDING, FOLDING_MM = 0.08, 4.0  # DS: share by which sulci are smoothed (5-10 %, facts 2.1), width
BLUR_MM = 0.8  # SD of the scanner's point spread
NATIVE_MM = (1.1, 0.9, 1.0)  # voxel of the native scans
NATIVE_SHAPE = (176, 232, 200)
NATIVE_NOISE = 3.0  # times that of the study grid, whose voxels average over many
TURN_DEGREES, SHIFT_MM = 8.0, 8.0  # SD of the head's pose in the scanner


@lru_cache(maxsize=1)
def _anatomy(grid: Grid) -> tuple[torch.Tensor, np.ndarray]:
    """Return GM, WM, CSF and residual texture at 1 mm, smoothed to the grid's voxel, and affine.

    Maps are (4, X, Y, Z) around the brain; the three tissues sum to it.
    """
    t1w, gm, wm, brain, affine = space.crop_1mm()
    stem = space.region_masks(LATTICE)[space.REGIONS.index("brainstem")]  # bright in every T1w
    to_lattice = np.linalg.inv(LATTICE.affine) @ affine
    turn, shift = to_lattice[:3, :3], to_lattice[:3, 3]
    stem = ndimage.affine_transform(stem, turn, shift, gm.shape, order=1)
    gm, wm = gm * brain * (1 - stem), brain * (wm + stem * gm)
    maps = np.stack([gm, wm, np.clip(brain - gm - wm, 0, 1), t1w]).astype(np.float32)
    tissues, inside = maps[:3], brain > 0.5
    tissues **= CRISPNESS
    tissues *= brain / np.maximum(tissues.sum(0), 1e-6)
    contrast = np.linalg.lstsq(tissues[:, inside].T, t1w[inside], rcond=None)[0]
    maps[3] = brain * (t1w - np.tensordot(contrast, tissues, 1))
    voxel = 0.425 * grid.voxel_mm if grid.voxel_mm > 1 else 0  # FWHM of a voxel, as in space
    for one in maps:
        ndimage.gaussian_filter(one, np.hypot(voxel, BLUR_MM), output=one)
    return torch.from_numpy(maps), affine


def render(displacement: np.ndarray, row: dict, study: Study, grid: Grid) -> np.ndarray:
    """Draw the noise-free brain (X, Y, Z), white matter near 0.85, 0 outside, of one person.

    `displacement` is backward, (3, ...) mm on the lattice; cortex has a fine share of CSF of its
    own, so that variation is not low-dimensional, and shallower folding in DS.
    """
    maps, affine = _anatomy(grid)
    mm = grid.coordinates_mm() + onto(displacement, LATTICE, grid)
    voxels = torch.from_numpy(mm - affine[:3, 3, None, None, None].astype(np.float32))
    gm, wm, csf, texture = pull(maps, voxels).numpy()
    rng = stream(study.cohort.seed, row, "cortex")
    share = np.exp(OPEN + onto(SULCI * smooth_noise(rng, 1, SULCI_MM)[0], LATTICE, grid))
    brain, mixed = gm + wm + csf > 0.5, gm + csf
    part = gm * share / np.maximum(gm * share + csf, 1e-6)
    if row["factor"]:
        widths = FOLDING_MM / grid.voxel_mm
        around = ndimage.gaussian_filter(part * mixed, widths)
        around /= np.maximum(ndimage.gaussian_filter(mixed, widths), 1e-6)
        part += np.float32(FOLDING * row["factor"]) * (around - part)
    rng = stream(study.cohort.seed, row, "scanner")
    *_, grey, bias = SITES[row["site"]]
    levels = np.float32(np.array(LEVELS) + rng.normal(0, LEVELS_SD) + (grey, 0, 0))
    tissue = mixed * (part * levels[0] + (1 - part) * levels[2]) + wm * levels[1]
    volume = tissue + TEXTURE * texture
    field = np.exp(bias * onto(smooth_noise(rng, 1, 45.0)[0], LATTICE, grid))
    blurred = ndimage.gaussian_filter(volume * field, min(row["motion"], 1.5) / grid.voxel_mm)
    return np.where(brain, blurred, 0).astype(np.float32)


def scan(clean: np.ndarray, row: dict, study: Study, louder: float = 1.0) -> np.ndarray:
    """Return the scanner's volume (X, Y, Z) in site units: Rician noise inside the brain."""
    scale, loud, *_ = SITES[row["site"]]
    rng = stream(study.cohort.seed, row, "noise")
    sd = np.float32(study.cohort.noise * loud * louder)
    noise = sd * rng.standard_normal((2, *clean.shape), dtype=np.float32)
    return np.where(clean > 0, scale * np.hypot(clean + noise[0], noise[1]), 0).astype(np.float32)


def draw_pose(row: dict, study: Study) -> tuple[np.ndarray, np.ndarray]:
    """Draw how a head lies in the scanner, at its true size: two affines (4, 4) in mm.

    The first is the native scan's own (voxels to native mm), the second takes native mm to MNI mm.
    """
    rng = stream(study.cohort.seed, row, "pose")
    template_ml = float(space.load_template(LATTICE).brain.sum()) * LATTICE.voxel_ml
    axes = np.array([row[f"head_{axis}"] for axis in ("lr", "ap", "si")])
    scale = axes * np.cbrt(row["tiv_ml"] / template_ml / axes.prod())
    turn = np.radians(rng.normal(0, TURN_DEGREES, 3)) * (1, -1, 1)
    to_native = np.eye(4)
    to_native[:3, :3] = Rotation.from_euler("XYZ", turn).as_matrix() @ np.diag(scale)
    to_native[:3, 3] = rng.normal(0, SHIFT_MM, 3) - to_native[:3, :3] @ space.CENTRE_MM
    affine = np.diag([*NATIVE_MM, 1.0])
    affine[:3, 3] = -np.array(NATIVE_MM) * (np.array(NATIVE_SHAPE) - 1) / 2
    return affine, np.linalg.inv(to_native)


def scan_native(
    displacement: np.ndarray, row: dict, study: Study
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scan a person as a scanner would, near 1 mm: volume, its affine, and native mm to MNI mm."""
    affine, to_mni = draw_pose(row, study)
    grid = GRIDS["full"]
    clean = render(displacement, row, study, grid)
    steps = np.linalg.inv(grid.affine) @ to_mni @ affine
    posed = ndimage.affine_transform(clean, steps[:3, :3], steps[:3, 3], NATIVE_SHAPE, order=1)
    return scan(posed, row, study, NATIVE_NOISE), affine, to_mni

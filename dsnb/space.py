"""Where voxels live: study grids, the template, regions, and how covariates are coded.

Every grid shares one centre in MNI152NLin2009aSym space, so presets differ by sampling only.
The template maps are nilearn's bundled ICBM152 2009a; nothing is downloaded.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn import datasets
from scipy import ndimage

SPACE = "MNI152NLin2009aSym"
SLAB = 16  # voxels of 1 mm
MARGIN = 8  # voxels of 1 mm around the brain, wider than any low-pass
CENTRE_MM = (0.0, -17.0, 5.0)
GROUPS = ("euploid", "DS")
STAGES = ("asymptomatic", "prodromal", "dementia")
EUPLOID_SPLITS = ("fit", "validation", "scale", "calibration", "test")
DS_SPLITS = ("generator-fit", "validation", "test")
# The volumes whose change `fidelity` must preserve, in the order they are printed.
EFFECT_REGIONS = (
    "cerebellum", "brainstem", "hippocampus", "amygdala", "parahippocampal", "frontal",
    "superior_temporal", "lentiform", "ventricles", "corpus_callosum",
)  # fmt: skip
REGIONS = EFFECT_REGIONS + (
    "thalamus", "caudate", "temporal", "parietal", "occipital", "white_matter",
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A study grid: isotropic voxels (mm) around the common centre, axes in RAS order."""

    voxel_mm: float
    shape: tuple[int, int, int]

    @property
    def affine(self) -> np.ndarray:
        """Return the (4, 4) voxel-to-MNI-millimetre matrix."""
        affine = np.diag([self.voxel_mm] * 3 + [1.0])
        half_extent_mm = self.voxel_mm * (np.array(self.shape) - 1) / 2
        affine[:3, 3] = np.array(CENTRE_MM) - half_extent_mm
        return affine

    @property
    def voxel_ml(self) -> float:
        """Return the volume of one voxel in millilitres."""
        return self.voxel_mm**3 / 1000

    def latent_shape(self, factor: int) -> tuple[int, int, int]:
        """Return the spatial shape of a latent that is `factor` times coarser."""
        return tuple(size // factor for size in self.shape)

    def coordinates_mm(self) -> np.ndarray:
        """Return MNI millimetres of every voxel centre, (3, X, Y, Z)."""
        voxels = np.indices(self.shape, dtype=np.float32)
        return voxels * self.voxel_mm + self.affine[:3, 3, None, None, None].astype(np.float32)


GRIDS = {
    "smoke": Grid(4.0, (40, 48, 40)),
    "small": Grid(3.0, (56, 64, 56)),
    "medium": Grid(2.0, (80, 96, 80)),
    "full": Grid(1.0, (160, 192, 160)),
}


@dataclass(frozen=True)
class Template:
    """The ICBM152 template on one grid: T1w in 0..1 and tissue probabilities, each (X, Y, Z)."""

    grid: Grid
    t1w: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    csf: np.ndarray
    brain: np.ndarray  # bool


def onto_grid(values: np.ndarray, affine: np.ndarray, grid: Grid, order: int = 1) -> np.ndarray:
    """Resample an axis-aligned volume onto a grid, low-passed first when the grid is coarser.

    The Gaussian has a FWHM of the grid's voxel, so that thin cortex does not alias.
    """
    steps_mm = np.diag(affine)[:3]
    values = values.astype(np.float32)
    if order and grid.voxel_mm > steps_mm.max():
        values = ndimage.gaussian_filter(values, 0.425 * grid.voxel_mm / np.abs(steps_mm))
    voxels = (grid.coordinates_mm() - affine[:3, 3, None, None, None]) / steps_mm[
        :, None, None, None
    ]
    return ndimage.map_coordinates(values, voxels, order=order, mode="constant")


@cache
def template_1mm() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Load the bundled 1 mm T1w, GM, WM and brain maps and their affine, each (197, 233, 189)."""
    t1w = datasets.load_mni152_template(resolution=1)
    maps = [datasets.load_mni152_gm_template(1), datasets.load_mni152_wm_template(1)]
    brain = datasets.load_mni152_brain_mask(1)
    arrays = [image.get_fdata(dtype=np.float32) for image in (t1w, *maps, brain)]
    return (*arrays, t1w.affine)


@cache
def load_template(grid: Grid) -> Template:
    """Load the template on a grid; CSF is what grey and white matter leave of the brain."""
    t1w, gm, wm, brain, affine = template_1mm()
    gm, wm = gm * brain, wm * brain
    csf = np.clip(brain - gm - wm, 0, 1)
    t1w, gm, wm, csf, brain = (
        onto_grid(values, affine, grid) for values in (t1w * brain, gm, wm, csf, brain)
    )
    return Template(grid, t1w, gm, wm, csf, brain > 0.5)


def _sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(value, -40, 40)))


def _region_formulas(mm: np.ndarray, gm: np.ndarray, wm: np.ndarray, fluid: np.ndarray) -> dict:
    """Return soft memberships (0..1) of every region from MNI mm, tissue maps and `ventricles`."""
    x, y, z = mm
    side = np.abs(x)

    def ellipsoid(centre, radii, sharpness):
        distance = sum(((p - c) / r) ** 2 for p, c, r in zip((side, y, z), centre, radii))
        return _sigmoid(sharpness * (1 - np.sqrt(distance)))

    def above(value, width):
        return _sigmoid(value / width)

    tissue = gm + wm
    stem = np.maximum(
        ellipsoid((0, -24, -30), (17, 14, 22), 6), ellipsoid((0, -42, -54), (13, 13, 20), 6)
    )
    tent = above(-(z + 14) - 0.25 * np.maximum(side - 8, 0), 1.5)
    cerebellum = np.maximum(
        ellipsoid((24, -64, -40), (32, 30, 23), 8), ellipsoid((0, -62, -28), (16, 26, 26), 8)
    )
    cerebellum = cerebellum * tent * (1 - stem)
    amygdala = ellipsoid((23, -5, -18), (9, 7.5, 8), 6) * (1 - stem)
    hippocampus = np.maximum(
        ellipsoid((27, -22, -14), (8, 16, 7), 6), ellipsoid((25, -13, -20), (8, 7, 7), 6)
    )
    hippocampus = hippocampus * (1 - stem) * (1 - amygdala)
    medial = (1 - stem) * (1 - amygdala) * (1 - hippocampus)
    lentiform = ellipsoid((24, 1, 1), (9, 18, 10), 6) * medial
    thalamus = ellipsoid((11, -18, 7), (11, 14, 9), 6) * medial * (1 - lentiform)
    caudate = ellipsoid((13, 13, 10), (6, 12, 11), 6) * medial * (1 - lentiform)
    deep = np.clip(lentiform + thalamus + caudate, 0, 1)
    rest = (1 - cerebellum) * medial * (1 - deep)
    parahippocampal = ellipsoid((25, -26, -25), (11, 20, 8), 6) * gm * rest
    cortex = rest * (1 - ellipsoid((25, -26, -25), (11, 20, 8), 6)) * gm
    lobe_temporal = above(side - 24, 3) * above(y + 55, 4) * above(22 - y, 4)
    lobe_temporal = lobe_temporal * above(-z - 2 + 0.15 * np.clip(-y - 10, -20, 60), 3)
    superior = ellipsoid((55, -14, 1), (14, 34, 9), 6) * above(side - 34, 3)
    temporal = np.maximum(lobe_temporal, superior)
    frontal = above(y - (-8 + 0.25 * np.maximum(z - 20, 0)), 4) * above(z + 28, 3) * (1 - temporal)
    parietal = above(z - 26, 4) * above(-14 - y, 4) * above(y - 0.45 * (z - 26) + 82, 4)
    parietal = parietal * (1 - frontal) * (1 - temporal)
    occipital = above(-68 - y, 4) * above(z + 18, 3) * (1 - parietal) * (1 - temporal)
    # The callosum is an arch of white matter over the ventricles, thin at the midline.
    arch = ((y + 4) / 38) ** 2 + ((z - 2) / 25) ** 2
    callosum = above(1.25 - arch, 0.08) * above(arch - 0.55, 0.08) * above(z - 2, 1.5)
    callosum = callosum * above(9 - side, 1.5) * wm
    return {
        "cerebellum": cerebellum * tissue,
        "brainstem": stem * tissue,
        "hippocampus": hippocampus * tissue,
        "amygdala": amygdala * tissue,
        "parahippocampal": parahippocampal,
        "frontal": cortex * frontal,
        "superior_temporal": cortex * superior,
        "lentiform": lentiform * tissue,
        "ventricles": fluid,
        "corpus_callosum": callosum * rest,
        "thalamus": thalamus * tissue,
        "caudate": caudate * tissue,
        "temporal": cortex * np.clip(temporal - superior, 0, 1),
        "parietal": cortex * parietal,
        "occipital": cortex * occipital,
        "white_matter": wm * rest * (1 - callosum),
    }


def ventricles(x: np.ndarray, y: np.ndarray, z: np.ndarray, csf: np.ndarray) -> np.ndarray:
    """Return the soft lateral ventricles: deep CSF connected to a seed around each body."""
    side = np.abs(x)
    allowed = (side < 34) & (z < 28) & (z > -14) & (y > -60) & (y < 40)
    allowed &= ~((side > 22) & (y > -25) & (z > -2))
    body = ((side - 12) / 11) ** 2 + ((y - 0) / 32) ** 2 + ((z - 14) / 11) ** 2 < 1
    trigone = ((side - 25) / 9) ** 2 + ((y + 40) / 16) ** 2 + ((z - 8) / 10) ** 2 < 1
    dark = (csf > 0.4) & allowed
    parts, _ = ndimage.label(dark)
    touching = np.setdiff1d(np.unique(parts[dark & (body | trigone)]), [0])
    inside = ndimage.binary_dilation(np.isin(parts, touching)) & allowed & (body | trigone)
    return np.where(inside, csf, 0).astype(np.float32)


def crop_1mm() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return `template_1mm` around the brain only, with half the voxels and its own affine."""
    *maps, affine = template_1mm()
    box = tuple(
        slice(max(side.start - MARGIN, 0), side.stop + MARGIN)
        for side in ndimage.find_objects((maps[-1] > 0).astype(np.int8))[0]
    )
    shift = nib.affines.from_matvec(np.eye(3), [side.start for side in box])
    return (*(values[box] for values in maps), affine @ shift)


def _region_masks_1mm() -> tuple[np.ndarray, np.ndarray]:
    """Return soft region memberships at 1 mm around the brain, (R, X, Y, Z), and their affine."""
    _, gm, wm, brain, affine = crop_1mm()
    csf = np.clip(brain - gm - wm, 0, 1)
    voxels = np.indices(gm.shape, dtype=np.float32)
    mm = voxels + affine[:3, 3, None, None, None].astype(np.float32)
    maps = mm, gm * brain, wm * brain, ventricles(*mm, csf)
    masks = np.empty((len(REGIONS), *gm.shape), np.float32)
    for start in range(0, len(gm), SLAB):  # the formulas hold fifty maps at once
        slab = slice(start, start + SLAB)
        found = _region_formulas(*(values[..., slab, :, :] for values in maps))
        masks[:, slab] = [found[name] for name in REGIONS]
    return masks, affine


@cache
def region_masks(grid: Grid) -> np.ndarray:
    """Return soft region memberships on a grid, (R, X, Y, Z) in the order of REGIONS.

    Kept in the user's cache folder (a pure function of this file), since it takes ten seconds.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dsnb"
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    shape = "x".join(map(str, grid.shape))
    path = home / f"regions-{grid.voxel_mm:g}mm-{shape}-{source}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    fine, affine = _region_masks_1mm()
    masks = np.stack([onto_grid(mask, affine, grid) for mask in fine])
    home.mkdir(parents=True, exist_ok=True)
    aside = home / f".{path.stem}-{os.getpid()}.npy"
    np.save(aside, masks)
    aside.replace(path)
    return masks


def covariates(table: pd.DataFrame) -> np.ndarray:
    """Code age and sex for every norm: columns decades from 40 years and +0.5 / -0.5 (F / M)."""
    decades = (table["age"].to_numpy(float) - 40) / 10
    sex = np.where(table["sex"].to_numpy(str) == "F", 0.5, -0.5)
    return np.column_stack([decades, sex])

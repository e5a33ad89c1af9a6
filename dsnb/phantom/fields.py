"""Velocity fields of the phantom: regions, the disease, the sham, and their exact truth.

All live on a fixed 4 mm lattice, so a seed is the same person on every study grid. Displacements
are in mm; a backward one takes the value of x + u(x). Numbers tagged [E] are ours.
"""

from functools import cache

import numpy as np
import pandas as pd
import torch
from scipy import fft, interpolate, ndimage
from threadpoolctl import threadpool_limits
from torch.nn.functional import grid_sample

from dsnb import space
from dsnb.space import Grid

LATTICE = Grid(4.0, (48, 56, 48))  # where velocities live
COARSE = Grid(8.0, (24, 28, 24))  # where individual noise is drawn
SQUARINGS = 5
RIDGE = 8e-3
REFILL_MM = {"ventricles": 12.0}  # SD of the neighbourhood that gives way
REFILL_DEFAULT_MM = 7.0
# The last bit of a sum depends on the number of threads; files must not.
one_thread = threadpool_limits.wrap(limits=1)
THIN = ("ventricles", "corpus_callosum")  # thinner than the lattice: grow evenly, edges included

# `ds`: change (%) of DS against euploid after head-size correction, severity 1: facts 2.1, `rel.`
# column, and 0 where it has none; ventricles: raw +10 over a brain of 0.83; caudate: ours.
# `prodromal`, `dementia`: extra change (%) by Alzheimer stage, facts 2.1.
# Of log volume, [E]: `spread`, SD between people, drawn so that facts 2.1 is reached beside the
# neighbours' pull (cortex and cerebellum 6-8 %, deep grey 8-10 %, ventricles 40-50 %); `decade`,
# change per decade after 30; `male`, men minus women (regions.md).
CONSTANTS = pd.DataFrame.from_dict({
    "cerebellum":        (-12,  0,  -2,  0.07, -0.015,  0.01),
    "brainstem":         ( -5,  0,  -2,  0.07, -0.005,  0.01),
    "hippocampus":       (-12, -8, -20,   0.1, -0.035,   0.0),
    "amygdala":          (  0, -8, -18,  0.09, -0.025,  0.03),
    "parahippocampal":   ( 10,  0, -10,  0.09,  -0.02,   0.0),
    "frontal":           ( -5, -1,  -4, 0.085,  -0.03, -0.01),
    "superior_temporal": ( -6, -3,  -9,  0.08, -0.025, -0.01),
    "lentiform":         ( 15, -2,  -7,  0.09, -0.015,  0.01),
    "ventricles":        ( 32, 25,  60,  0.46,   0.11,  0.08),
    "corpus_callosum":   (-15, -4, -10,   0.1,  -0.02, -0.02),
    "thalamus":          (  6, -2,  -7,  0.09, -0.015,   0.0),
    "caudate":           (  6, -2,  -7,  0.09, -0.015,   0.0),
    "temporal":          (  0, -3,  -9, 0.085, -0.025,   0.0),
    "parietal":          (  0, -4, -10,  0.09, -0.035, -0.01),
    "occipital":         (  0,  0,  -3,  0.08, -0.015,   0.0),
    "white_matter":      (  0,  0,   0,  0.03, -0.012,   0.0),
}, "index", columns=["ds", "prodromal", "dementia", "spread", "decade", "male"]
).loc[list(space.REGIONS)]  # fmt: skip
# Gradients inside a region along x, y, z that leave its volume alone, so no region table holds
# them: log-volume change at one SD of the coordinate (thin rostral callosum: Wang 1992). [E]
OFF_ATLAS = {
    "cerebellum": (0.0, 0.07, 0.0), "corpus_callosum": (0.0, -0.12, 0.0),
    "parahippocampal": (0.0, 0.06, 0.0), "frontal": (0.0, 0.0, 0.04),
}  # fmt: skip


@cache
def _splines(source: Grid, target: Grid, slope: bool) -> list[np.ndarray]:
    """Return per axis the matrix that takes cubic-spline values (or slopes per mm) to a grid."""
    matrices = []
    for axis in range(3):
        knots, points = (
            g.affine[axis, 3] + g.voxel_mm * np.arange(g.shape[axis]) for g in (source, target)
        )
        points = np.clip(points, knots[0], knots[-1])
        spline = interpolate.make_interp_spline(knots, np.eye(len(knots)), k=3)
        matrices.append(spline(points, nu=int(slope)).astype(np.float32))
    return matrices


def onto(values: np.ndarray, source: Grid, target: Grid, slope: int | None = None) -> np.ndarray:
    """Interpolate (..., X, Y, Z) by cubic splines; `slope` names an axis to differentiate."""
    for axis in range(3):
        matrix = _splines(source, target, slope == axis)[axis]
        values = np.moveaxis(np.tensordot(matrix, values, (1, axis - 3)), 0, axis - 3)
    return np.ascontiguousarray(values)


def pull(values: torch.Tensor, voxels: torch.Tensor) -> torch.Tensor:
    """Sample (C, X, Y, Z) linearly at voxel coordinates (3, ...), the border value outside."""
    size = torch.tensor(values.shape[1:], dtype=voxels.dtype).reshape(3, 1, 1, 1)
    points = (2 * voxels / (size - 1) - 1).flip(0).movedim(0, -1)
    return grid_sample(values[None], points[None], padding_mode="border", align_corners=True)[0]


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return the displacement (3, X, Y, Z) mm on the lattice of x -> y = inner(x) -> outer(y)."""
    step = torch.from_numpy(inner / np.float32(LATTICE.voxel_mm))
    voxels = torch.from_numpy(np.indices(LATTICE.shape, dtype=np.float32)) + step
    return inner + pull(torch.from_numpy(outer), voxels).numpy()


def exponentiate(velocity: np.ndarray) -> np.ndarray:
    """Integrate a stationary velocity (3, X, Y, Z) mm by scaling and squaring (Arsigny 2006)."""
    displacement = (velocity / 2**SQUARINGS).astype(np.float32)
    for _ in range(SQUARINGS):
        displacement = compose(displacement, displacement)
    return displacement


def jacobian(displacement: np.ndarray, grid: Grid) -> np.ndarray:
    """Return det(I + D u) on a grid (X, Y, Z) of a lattice displacement (3, ...) in mm."""
    slopes = [onto(displacement, LATTICE, grid, slope=axis) for axis in range(3)]
    (a, d, g), (b, e, h), (c, f, i) = slopes
    a, e, i = a + 1, e + 1, i + 1
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _gradient_flow(source: np.ndarray) -> np.ndarray:
    """Return v = grad(phi), laplace(phi) = source (X, Y, Z), no flow through the lattice's walls.

    Poisson by the cosine transform; the mean of the source is dropped (nothing may leave).
    """
    waves = [np.pi * np.arange(n) / (n * LATTICE.voxel_mm) for n in LATTICE.shape]
    energy = sum(np.meshgrid(*[wave**2 for wave in waves], indexing="ij"))
    energy[0, 0, 0] = np.inf
    phi = fft.idctn(-fft.dctn(source, norm="ortho") / energy, norm="ortho").astype(np.float32)
    return np.stack([onto(phi, LATTICE, LATTICE, slope=axis) for axis in range(3)])


def smooth_noise(rng: np.random.Generator, channels: int, sd_mm: float) -> np.ndarray:
    """Draw white noise smoothed to `sd_mm`, SD about 1; (channels, X, Y, Z) on the lattice.

    Wide noise is drawn on the coarse lattice, which is eight times cheaper.
    """
    grid = COARSE if sd_mm >= COARSE.voxel_mm else LATTICE
    noise = rng.standard_normal((channels, *grid.shape), dtype=np.float32)
    width = sd_mm / grid.voxel_mm
    smooth = ndimage.gaussian_filter(noise, (0, width, width, width))
    smooth *= np.float32((2 * np.sqrt(np.pi) * width) ** 1.5)
    return smooth if grid is LATTICE else onto(smooth, COARSE, LATTICE)


def swirl(rng: np.random.Generator, scales: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Draw a velocity (3, X, Y, Z) in mm without divergence: the curl of noise.

    `scales` are (SD of the velocity, width SD) in mm. It moves and bends tissue, but leaves every
    region's volume as it was.
    """
    potential = sum(np.float32(size * sd) * smooth_noise(rng, 3, sd) for size, sd in scales)

    def slope(k: int, axis: int) -> np.ndarray:
        return onto(potential[k % 3], LATTICE, LATTICE, slope=axis % 3)

    return np.stack([slope(k + 2, k + 1) - slope(k + 1, k + 2) for k in range(3)])


@cache
@one_thread
def basis() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return region fields (R, 3, ...), off-atlas field (3, ...) and the response's inverse (R, R).

    A region's source is its map minus the CSF (ventricles: the tissue) near it that gives way.
    """
    masks, template = space.region_masks(LATTICE), space.load_template(LATTICE)
    tissue = template.gm + template.wm
    ventricles = masks[space.REGIONS.index("ventricles")]
    around = np.minimum(4 * ndimage.gaussian_filter(ventricles, 1), 1)
    spaces = ndimage.gaussian_filter(template.csf * (1 - around), 1.5) + 0.03 * tissue
    fields, gradients = [], 0.0
    for name, mask in zip(space.REGIONS, masks):
        medium = tissue if name == "ventricles" else spaces
        width = REFILL_MM.get(name, REFILL_DEFAULT_MM) / LATTICE.voxel_mm
        refill = ndimage.gaussian_filter(mask, width) * medium * (1 - mask)
        core = np.minimum(3 * ndimage.gaussian_filter(mask, 0.6), 1) if name in THIN else mask
        fields.append(_gradient_flow(core - refill * (core.sum() / refill.sum())))
        for axis, change in enumerate(OFF_ATLAS.get(name, ())):
            mm = LATTICE.coordinates_mm()[axis]
            mean = np.average(mm, weights=mask)
            sd = np.sqrt(np.average((mm - mean) ** 2, weights=mask))
            gradients = gradients + change * mask * (mm - mean) / sd
    flows = np.stack(fields)
    spread = [sum(onto(v[i], LATTICE, LATTICE, slope=i) for i in range(3)) for v in flows]
    response = np.einsum("ixyz,jxyz->ij", masks, np.stack(spread)) / masks.sum((1, 2, 3))[:, None]
    inverse = np.linalg.solve(response.T @ response + RIDGE * np.eye(len(masks)), response.T)
    return flows, _gradient_flow(gradients), inverse


def measure(forward: np.ndarray) -> np.ndarray:
    """Return every region's volume in ml (R,) under a forward displacement on the lattice (mm)."""
    change = jacobian(forward, LATTICE)
    return np.tensordot(space.region_masks(LATTICE), change, 3) * LATTICE.voxel_ml


def targets(progress: float, severity: float) -> np.ndarray:
    """Return the wanted log-volume change of every region (R,) at a progress and severity.

    Progress is 0 without Alzheimer's disease, 1 as in a typical prodromal and 2 as in a typical
    demented person; in between it is linear, beyond 2 it goes on.
    """
    changes = CONSTANTS[["ds", "prodromal", "dementia"]] / 100
    disease, prodromal, dementia = np.log1p(np.ascontiguousarray(changes.to_numpy().T))
    extra, start = (0 * disease, prodromal, dementia), min(int(progress), 1)
    late = extra[start] + (progress - start) * (extra[start + 1] - extra[start])
    return severity * (disease + late)


@cache
@one_thread
def disease_velocity(progress: float) -> np.ndarray:
    """Solve the disease's velocity (3, X, Y, Z) mm at severity 1 on the template's own anatomy.

    The response is linear, the volumes are not: a few corrections close the gap.
    """
    flows, gradients, inverse = basis()
    wanted, before = targets(progress, 1.0), measure(np.zeros_like(gradients))
    amplitudes = inverse @ wanted
    for _ in range(6):
        velocity = (np.tensordot(amplitudes, flows, 1) + gradients).astype(np.float32)
        reached = np.log(measure(exponentiate(velocity)) / before)
        amplitudes = amplitudes + inverse @ (wanted - reached)
    return velocity


def fit_disease(
    progress: float, factor: float, regions: np.ndarray, grow: np.ndarray, before: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return one person's disease velocity and the forward displacement with it.

    `regions` is the person's own region velocity, `grow` the forward displacement that follows
    it, `before` the two composed.
    Volumes saturate in those who already have wide ventricles, hence up to seven corrections;
    what is wanted stays the named constants times the personal factor.
    """
    flows, _, inverse = basis()
    start = min(int(progress), 1)
    ends = disease_velocity(float(start)), disease_velocity(float(start + 1))
    velocity = np.float32(factor) * (ends[0] + np.float32(progress - start) * (ends[1] - ends[0]))
    after = compose(grow, exponentiate(regions + velocity))
    for _ in range(7):
        gap = targets(progress, factor) - np.log(measure(after) / measure(before))
        if np.abs(gap).max() < 0.005:
            break
        velocity = velocity + np.tensordot((inverse @ gap).astype(np.float32), flows, 1)
        after = compose(grow, exponentiate(regions + velocity))
    return velocity, after


def log_jacobian(displacement: np.ndarray, grid: Grid) -> tuple[np.ndarray, int]:
    """Return -log det (X, Y, Z) of a backward displacement and how many voxels fold (det <= 0)."""
    change = jacobian(displacement, grid)
    return -np.log(np.maximum(change, 1e-3)), int((change <= 0).sum())


def disease_displacement(grid: Grid, severity: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a backward displacement (3, X, Y, Z) mm on a grid and its log-Jacobian (X, Y, Z).

    The local disease without Alzheimer stage times a personal factor drawn by `seed`; for planting
    on real scans aligned with the template. Positive log-Jacobian = the patient's tissue grew.
    """
    factor = severity * draw_factor(np.random.default_rng([seed, 0]))
    still = np.zeros((3, *LATTICE.shape), np.float32)
    backward = exponentiate(-fit_disease(0.0, factor, still, still, still)[0])
    return onto(backward, LATTICE, grid), log_jacobian(backward, grid)[0]


def draw_factor(rng: np.random.Generator) -> float:
    """Draw how strongly one person has the disease: around 1, SD 0.2 [E]."""
    return float(np.clip(rng.normal(1, 0.2), 0.6, 1.4))


def sham_velocity(severity: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a random field of the disease's RMS log-Jacobian in the brain; see sham_displacement."""
    brain = space.load_template(LATTICE).brain
    source = smooth_noise(rng, 1, 10.0)[0] * brain
    velocity = _gradient_flow(source)

    def size(field: np.ndarray) -> float:
        change = log_jacobian(exponentiate(-field), LATTICE)[0]
        return float(np.sqrt((change[brain] ** 2).mean()))

    wanted = size(severity * disease_velocity(0.0))
    for _ in range(3):
        velocity = velocity * np.float32(wanted / max(size(velocity), 1e-6))
    return velocity


def sham_displacement(grid: Grid, severity: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what `disease_displacement` does for a random field unrelated to DS, equal in size.

    Its source is smooth noise (SD 10 mm) inside the brain, scaled to the disease's RMS
    log-Jacobian at the same severity and personal factor.
    """
    factor = draw_factor(np.random.default_rng([seed, 0]))
    backward = exponentiate(-sham_velocity(severity * factor, np.random.default_rng([seed, 1])))
    return onto(backward, LATTICE, grid), log_jacobian(backward, grid)[0]

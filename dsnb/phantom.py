"""The digital phantom cohort: individual anatomy, a disease field, twins, shams and exact truth.

A person is one stationary velocity field on a fixed 4 mm lattice (so a seed is the same person on
every study grid) and ONE resampling of the 1 mm template maps. Every number tagged [E] is ours.
"""

import gzip
import json
import os
from functools import cache, lru_cache
from pathlib import Path

import joblib
import nibabel as nib
import numpy as np
import pandas as pd
import torch
from scipy import fft, interpolate, ndimage, stats
from torch.nn.functional import grid_sample

from dsnb import record, space
from dsnb.config import Cohort, Study
from dsnb.space import Grid

PHANTOM_VERSION = "1.0"
LATTICE = Grid(4.0, (48, 56, 48))  # where velocities live
COARSE = Grid(8.0, (24, 28, 24))  # where individual noise is drawn
SQUARINGS = 5
RIDGE = 8e-3
REFILL_MM = {"ventricles": 9.0}  # SD of the neighbourhood that gives way
REFILL_DEFAULT_MM = 7.0

# Region change (%) of DS against euploid after head-size correction, severity 1: facts 2.1, `rel.`
# column, and 0 where it has none; ventricles (raw +10 % on a brain 17 % smaller) and caudate ours.
DISEASE = {
    "cerebellum": -12, "brainstem": -5, "hippocampus": -12, "amygdala": 0, "parahippocampal": 10,
    "frontal": -5, "superior_temporal": -6, "lentiform": 15, "ventricles": 30,
    "corpus_callosum": -15, "thalamus": 6, "caudate": 6, "temporal": 0, "parietal": 0,
    "occipital": 0, "white_matter": 0,
}  # fmt: skip
# Extra change (%) by Alzheimer stage, facts 2.1; other regions none.
STAGE_EXTRA = {
    "prodromal": {
        "hippocampus": -8, "amygdala": -8, "frontal": -1, "superior_temporal": -3, "temporal": -3,
        "parietal": -4, "lentiform": -2, "thalamus": -2, "caudate": -2, "ventricles": 25,
        "corpus_callosum": -4,
    },
    "dementia": {
        "cerebellum": -2, "brainstem": -2, "hippocampus": -20, "amygdala": -18,
        "parahippocampal": -10, "frontal": -4, "superior_temporal": -9, "temporal": -9,
        "parietal": -10, "occipital": -3, "lentiform": -7, "thalamus": -7, "caudate": -7,
        "ventricles": 60, "corpus_callosum": -10,
    },
}  # fmt: skip
# Gradients inside a region along x, y, z that leave its volume alone, so no region table holds
# them: log-volume change at one SD of the coordinate (thin rostral callosum: Wang 1992). [E]
OFF_ATLAS = {
    "cerebellum": (0.0, 0.07, 0.0), "corpus_callosum": (0.0, -0.12, 0.0),
    "parahippocampal": (0.0, 0.06, 0.0), "frontal": (0.0, 0.0, 0.04),
}  # fmt: skip
# Log-volume: SD between people, change per decade after 30, and men minus women (regions.md). [E]
TRAITS = pd.DataFrame(
    {
        "cerebellum": (0.06, -0.015, 0.01), "brainstem": (0.06, -0.005, 0.01),
        "hippocampus": (0.08, -0.035, 0.0), "amygdala": (0.08, -0.025, 0.03),
        "parahippocampal": (0.06, -0.020, 0.0), "frontal": (0.05, -0.030, -0.01),
        "superior_temporal": (0.05, -0.025, -0.01), "lentiform": (0.05, -0.015, 0.01),
        "ventricles": (0.22, 0.11, 0.08), "corpus_callosum": (0.08, -0.020, -0.02),
        "thalamus": (0.05, -0.015, 0.0), "caudate": (0.05, -0.015, 0.0),
        "temporal": (0.05, -0.025, 0.0), "parietal": (0.04, -0.035, -0.01),
        "occipital": (0.04, -0.015, 0.0), "white_matter": (0.02, -0.012, 0.0),
    },
    index=["spread", "decade", "male"],
)[list(space.REGIONS)]  # fmt: skip
DS_VARIABILITY = 1.2  # DS groups vary more than euploids, facts 2.1 [E]
ONSET_YEARS, ONSET_SD, PRODROMAL_YEARS, SURVIVAL_YEARS = 53.8, 6.0, 3.5, 4.6  # facts 2.2
# Site: intensity scale, noise factor, grey-matter shift, bias-field SD. [E]
SITES = {
    "public1": (600, 1.0, 0.00, 0.04), "public2": (450, 0.9, 0.02, 0.05),
    "public3": (800, 1.1, -0.02, 0.06), "clinic": (700, 1.0, 0.01, 0.05),
    "external": (520, 1.05, -0.01, 0.05),
}  # fmt: skip
STREAMS = ("anatomy", "regions", "cortex", "scanner", "noise", "sham")


def _stream(seed: int, number: int, name: str) -> np.random.Generator:
    """Return the generator of one person and one purpose, independent of order and processes."""
    return np.random.default_rng([seed, number, STREAMS.index(name)])


# Fields on the lattice


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


def _onto(values: np.ndarray, source: Grid, target: Grid, slope: int | None = None) -> np.ndarray:
    """Interpolate (..., X, Y, Z) by cubic splines; `slope` names an axis to differentiate."""
    for axis in range(3):
        matrix = _splines(source, target, slope == axis)[axis]
        values = np.moveaxis(np.tensordot(matrix, values, (1, axis - 3)), 0, axis - 3)
    return np.ascontiguousarray(values)


def _pull(values: torch.Tensor, voxels: torch.Tensor) -> torch.Tensor:
    """Sample (C, X, Y, Z) linearly at voxel coordinates (3, ...), the border value outside."""
    size = torch.tensor(values.shape[1:], dtype=voxels.dtype).reshape(3, 1, 1, 1)
    points = (2 * voxels / (size - 1) - 1).flip(0).movedim(0, -1)
    return grid_sample(values[None], points[None], padding_mode="border", align_corners=True)[0]


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return the displacement (3, X, Y, Z) mm on the lattice of x -> y = inner(x) -> outer(y)."""
    step = torch.from_numpy(inner / np.float32(LATTICE.voxel_mm))
    voxels = torch.from_numpy(np.indices(LATTICE.shape, dtype=np.float32)) + step
    return inner + _pull(torch.from_numpy(outer), voxels).numpy()


def exponentiate(velocity: np.ndarray) -> np.ndarray:
    """Integrate a stationary velocity (3, X, Y, Z) mm by scaling and squaring (Arsigny 2006)."""
    displacement = (velocity / 2**SQUARINGS).astype(np.float32)
    for _ in range(SQUARINGS):
        displacement = compose(displacement, displacement)
    return displacement


def jacobian(displacement: np.ndarray, grid: Grid) -> np.ndarray:
    """Return det(I + D u) on a grid (X, Y, Z) of a lattice displacement (3, ...) in mm."""
    slopes = [_onto(displacement, LATTICE, grid, slope=axis) for axis in range(3)]
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
    return np.stack([_onto(phi, LATTICE, LATTICE, slope=axis) for axis in range(3)])


def _smooth_noise(rng: np.random.Generator, channels: int, sd_mm: float) -> np.ndarray:
    """Draw white noise on the coarse lattice, smoothed, SD about 1; (channels, X, Y, Z) on it."""
    noise = rng.standard_normal((channels, *COARSE.shape), dtype=np.float32)
    width = sd_mm / COARSE.voxel_mm
    smooth = ndimage.gaussian_filter(noise, (0, width, width, width))
    return smooth * np.float32((2 * np.sqrt(np.pi) * width) ** 1.5)


@cache
def _basis() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return region fields (R, 3, ...), off-atlas field (3, ...) and the response's inverse (R, R).

    A region's source is its map minus the CSF (ventricles: the tissue) near it that gives way.
    """
    masks, template = space.region_masks(LATTICE), space.load_template(LATTICE)
    fields, gradients = [], 0.0
    for name, mask in zip(space.REGIONS, masks):
        medium = template.gm + template.wm if name == "ventricles" else template.csf
        width = REFILL_MM.get(name, REFILL_DEFAULT_MM) / LATTICE.voxel_mm
        refill = ndimage.gaussian_filter(mask, width) * medium * (1 - mask)
        fields.append(_gradient_flow(mask - refill * (mask.sum() / refill.sum())))
        for axis, change in enumerate(OFF_ATLAS.get(name, ())):
            mm = LATTICE.coordinates_mm()[axis]
            mean = np.average(mm, weights=mask)
            sd = np.sqrt(np.average((mm - mean) ** 2, weights=mask))
            gradients = gradients + change * mask * (mm - mean) / sd
    flows = np.stack(fields)
    spread = [sum(_onto(v[i], LATTICE, LATTICE, slope=i) for i in range(3)) for v in flows]
    response = np.einsum("ixyz,jxyz->ij", masks, np.stack(spread)) / masks.sum((1, 2, 3))[:, None]
    inverse = np.linalg.solve(
        response.T @ response + RIDGE * np.eye(len(masks)), response.T
    )
    return flows, _gradient_flow(gradients), inverse


def measure(forward: np.ndarray) -> np.ndarray:
    """Return every region's volume in ml (R,) under a forward displacement on the lattice (mm)."""
    change = jacobian(forward, LATTICE)
    return np.tensordot(space.region_masks(LATTICE), change, 3) * LATTICE.voxel_ml


def targets(stage: str, severity: float) -> np.ndarray:
    """Return the wanted log-volume change of every region (R,) at a stage and severity."""
    extra = STAGE_EXTRA.get(stage, {})
    wanted = [(DISEASE[name], extra.get(name, 0)) for name in space.REGIONS]
    return severity * np.log1p(np.array(wanted) / 100).sum(1)


@lru_cache(maxsize=8)
def disease_velocity(stage: str) -> np.ndarray:
    """Solve the disease's velocity (3, X, Y, Z) mm at severity 1 on the template's own anatomy.

    The response is linear, the volumes are not: a few corrections close the gap.
    """
    flows, gradients, inverse = _basis()
    wanted, before = targets(stage, 1.0), measure(np.zeros_like(gradients))
    amplitudes = inverse @ wanted
    for _ in range(6):
        velocity = (np.tensordot(amplitudes, flows, 1) + gradients).astype(np.float32)
        reached = np.log(measure(exponentiate(velocity)) / before)
        amplitudes = amplitudes + inverse @ (wanted - reached)
    return velocity


def _log_jacobian(displacement: np.ndarray, grid: Grid) -> tuple[np.ndarray, int]:
    """Return -log det (X, Y, Z) of a backward displacement and how many voxels fold (det <= 0)."""
    change = jacobian(displacement, grid)
    return -np.log(np.maximum(change, 1e-3)), int((change <= 0).sum())


def disease_displacement(grid: Grid, severity: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a backward displacement (3, X, Y, Z) mm on a grid and its log-Jacobian (X, Y, Z).

    The local disease without Alzheimer stage times a personal factor drawn by `seed`; for planting
    on real scans aligned with the template. Positive log-Jacobian = the patient's tissue grew.
    """
    factor = severity * _factor(np.random.default_rng([seed, 0]))
    backward = exponentiate(-factor * disease_velocity("asymptomatic"))
    return _onto(backward, LATTICE, grid), _log_jacobian(backward, grid)[0]


def _factor(rng: np.random.Generator) -> float:
    """Draw how strongly one person has the disease: around 1, SD 0.2 [E]."""
    return float(np.clip(rng.normal(1, 0.2), 0.5, 1.5))


def _sham_velocity(severity: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a random field of the disease's RMS log-Jacobian in the brain; see sham_displacement."""
    brain = space.load_template(LATTICE).brain
    source = _onto(_smooth_noise(rng, 1, 10.0)[0], COARSE, LATTICE) * brain
    velocity = _gradient_flow(source)

    def size(field: np.ndarray) -> float:
        change = _log_jacobian(exponentiate(-field), LATTICE)[0]
        return float(np.sqrt((change[brain] ** 2).mean()))

    wanted = size(severity * disease_velocity("asymptomatic"))
    for _ in range(3):
        velocity = velocity * np.float32(wanted / max(size(velocity), 1e-6))
    return velocity


def sham_displacement(grid: Grid, severity: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what `disease_displacement` does for a random field unrelated to DS, equal in size.

    Its source is smooth noise (SD 10 mm) inside the brain, scaled to the disease's RMS
    log-Jacobian at the same severity and personal factor.
    """
    factor = _factor(np.random.default_rng([seed, 0]))
    backward = exponentiate(-_sham_velocity(severity * factor, np.random.default_rng([seed, 1])))
    return _onto(backward, LATTICE, grid), _log_jacobian(backward, grid)[0]


# People


def draw_people(settings: Cohort) -> pd.DataFrame:
    """Draw everybody's table: three cohorts, ages, stages that emerge from age and onset."""
    rows = [_draw_euploid(settings, k) for k in range(settings.euploid)]
    rows += [_draw_ds(settings, k) for k in range(settings.ds)]
    return pd.DataFrame(rows)


def _draw_euploid(settings: Cohort, k: int) -> dict:
    """Draw a euploid: three of four PUBLIC (younger), the others CLINIC or EXTERNAL siblings."""
    rng = np.random.default_rng([settings.seed, 1000 + k, 99])
    site = rng.choice(list(SITES), p=[0.3, 0.25, 0.2, 0.15, 0.1])
    public = site.startswith("public")
    age = 18 + 42 * rng.beta(1.2, 1.2) if public else np.clip(rng.normal(48, 9), 25, 70)
    shared = _draw_shared(rng, f"sub-e{k + 1:04d}", 1000 + k, "euploid", site, float(age))
    return {**shared, "stage": "n/a", "disability": "n/a", "cognition": "n/a", "factor": 0.0}


def _draw_ds(settings: Cohort, k: int) -> dict:
    """Draw a person with DS: who outlives the onset by `SURVIVAL_YEARS` is rarely scanned."""
    rng = np.random.default_rng([settings.seed, 500_000 + k, 99])
    while True:
        age = np.clip(rng.normal(49.5, 8), 20, 68)
        ill = age - rng.normal(ONSET_YEARS, ONSET_SD)
        if ill < 0 or rng.random() < np.exp(-ill / SURVIVAL_YEARS):
            break
    stage = space.STAGES[int(ill > -PRODROMAL_YEARS) + int(ill > 0)]
    site = rng.choice(["clinic", "external"], p=[0.67, 0.33])
    shared = _draw_shared(rng, f"sub-d{k + 1:04d}", 500_000 + k, "DS", site, float(age))
    level = int(rng.choice(3, p=[0.25, 0.5, 0.25]))  # independent of stage, facts 2.2
    score = (70, 52, 30)[level] - (0, 10, 25)[space.STAGES.index(stage)] + rng.normal(0, 8)
    missing = rng.random() < (0.05, 0.08, 0.35)[level]  # [E], scores floor at 0
    return {
        **shared,
        "stage": stage,
        "disability": ("mild", "moderate", "severe")[level],
        "cognition": "n/a" if missing else round(float(np.clip(score, 0, 100)), 1),
        "factor": settings.severity * _factor(rng),
    }


def _draw_shared(rng, name: str, number: int, group: str, site: str, age: float) -> dict:
    """Draw what everybody has; head size and brachycephaly stay metadata, `prepare` removes them."""
    sex = "F" if rng.random() < 0.5 else "M"
    head = (0.83, 0.92, 1.0, 0.96) if group == "DS" else (1.0, 1.0, 1.0, 1.0)  # facts 2.1
    restless = 1.5 + 0.02 * max(age - 40, 0) if (group, site) == ("DS", "clinic") else 1.0
    return {
        "participant_id": name, "number": number, "family": name, "group": group,
        "kind": "recorded", "origin": "n/a", "age": round(age, 1), "sex": sex, "site": site,
        "session": "n/a", "motion": round(float(0.25 * restless * rng.lognormal(0, 0.4)), 3),
        "tiv_ml": round(float(head[0] * (1550 if sex == "M" else 1400) * rng.normal(1, 0.075)), 1),
        **{f"head_{axis}": round(float(factor * rng.normal(1, 0.03)), 3)
           for axis, factor in zip(("ap", "lr", "si"), head[1:])},
    }  # fmt: skip


def individual_velocity(row: dict, seed: int) -> np.ndarray:
    """Draw one person's own anatomy without disease, (3, X, Y, Z) mm: noise, regions, age, sex."""
    rng, wider = _stream(seed, row["number"], "anatomy"), DS_VARIABILITY if row["group"] == "DS" else 1
    noise = 2.6 * _smooth_noise(rng, 3, 28.0) + 1.3 * _smooth_noise(rng, 3, 12.0)  # mm, regions.md
    axes = _stream(seed, row["number"], "regions")
    stretch = np.float32(wider * axes.normal(0, 0.013, (3, 1, 1, 1)))
    centred = LATTICE.coordinates_mm() - np.float32(space.CENTRE_MM)[:, None, None, None]
    wanted = wider * TRAITS.loc["spread"].to_numpy() * axes.standard_normal(len(space.REGIONS))
    wanted = wanted + TRAITS.loc["decade"].to_numpy() * (max(row["age"], 30) - 30) / 10
    wanted = wanted + TRAITS.loc["male"].to_numpy() * (0.5 if row["sex"] == "M" else -0.5)
    flows, _, inverse = _basis()
    velocity = wider * _onto(noise, COARSE, LATTICE) + stretch * centred
    return (velocity + np.tensordot(inverse @ wanted, flows, 1)).astype(np.float32)


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
    mm = grid.coordinates_mm() + _onto(displacement, LATTICE, grid)
    voxels = torch.from_numpy(mm - affine[:3, 3, None, None, None].astype(np.float32))
    gm, wm, csf, texture = _pull(maps, voxels).numpy()
    rng = _stream(seed, number, "cortex")
    share = np.exp(_onto(0.5 * _smooth_noise(rng, 2, 8.0), COARSE, grid))
    brain = gm + wm + csf > 0.5
    mixed = gm + csf
    gm = mixed * gm * share[0] / np.maximum(gm * share[0] + csf, 1e-6)
    csf = mixed - gm
    rng = _stream(seed, number, "scanner")
    levels = contrast + rng.normal(0, (0.015, 0.008, 0.02)) + (SITES[row["site"]][2], 0, 0)
    volume = gm * levels[0] + wm * levels[1] + csf * levels[2] + texture * share[1] ** 0.5
    bias = np.exp(SITES[row["site"]][3] * _onto(_smooth_noise(rng, 1, 45.0)[0], COARSE, grid))
    blurred = ndimage.gaussian_filter(volume * bias, min(row["motion"], 1.5) / grid.voxel_mm)
    return np.where(brain, blurred, 0).astype(np.float32)


def scan(displacement: np.ndarray, row: dict, study: Study) -> np.ndarray:
    """Return the scanner's volume (X, Y, Z) in site units: Rician noise inside the brain."""
    clean, (scale, louder, *_) = render(displacement, row, study), SITES[row["site"]]
    rng = _stream(study.cohort.seed, row["number"], "noise")
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
    paths, note = _paths(row), {"Seed": study.cohort.seed, "Number": row["number"]}
    done = raw / paths["recorded"].replace(".nii.gz", ".json")
    if done.is_file():
        return
    own = individual_velocity(row, study.cohort.seed)
    velocity = own
    if row["group"] == "DS":
        velocity = own + np.float32(row["factor"]) * disease_velocity(row["stage"])
    backward = exponentiate(-velocity)
    note["FoldedVoxels"] = int((jacobian(backward, study.grid) <= 0).sum())
    if row["group"] == "DS":
        twin, forward = exponentiate(-own), exponentiate(own)
        _save(raw / paths["twin"], scan(twin, row, study), study.grid, note)
        truth, folded = _log_jacobian(compose(forward, backward), study.grid)
        note["FoldedVoxels"] += folded
        _save(raw / paths["truth"], truth, study.grid, {**note, "Units": "log volume ratio"})
        note["RegionMlBefore"] = measure(forward)
        note["RegionMlAfter"] = measure(exponentiate(velocity))
    if sham:
        rng = _stream(study.cohort.seed, row["number"], "sham")
        other = exponentiate(-own - _sham_velocity(study.cohort.severity * _factor(rng), rng))
        _save(raw / paths["sham"], scan(other, row, study), study.grid, note)
    _save(raw / paths["recorded"], scan(backward, row, study), study.grid, note)


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
        if row["group"] == "DS":
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
    "head_ap": {"Description": "native head length over the template's; also _lr width, _si height"},
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
    wanted = before * np.exp(targets(row["stage"], row["factor"]))
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
    regions = [_region_row(truth, name) for name in space.REGIONS]
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
    return {"headline": headline, "tables": tables, "timing": {}}


def _region_row(truth: pd.DataFrame, name: str) -> dict:
    """Return wanted and reached mean change (%) of one region, overall and by stage."""
    before = truth[f"{name}_before"]
    wanted, reached = (100 * (truth[f"{name}_{k}"] / before - 1) for k in ("wanted", "after"))
    gaps = (reached - wanted).groupby(truth["stage"]).mean().abs()
    return {
        "region": name, "base_target_pct": DISEASE[name], "wanted_pct": wanted.mean(),
        "reached_pct": reached.mean(), "sd_pct": reached.std(), "gap_points": gaps.max(),
        "people": len(truth),
    }  # fmt: skip

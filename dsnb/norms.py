"""What a euploid of this age and sex would look like, and how far a person is from it.

A norm is linear in a feature space (voxels, log-Jacobians, or latents that are decoded), fitted on
euploid `fit` people. Departures from it are standardised on `scale` people, whom no model saw;
`calibration` people set the coverage of p and the error of q.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage, stats
from scipy.spatial import cKDTree

from dsnb.checks import BadInput
from dsnb.rivals import log_determinant, warp
from dsnb.space import Grid, load_template

SQUARINGS = 4  # of a generic change's velocity, so that it does not fold
SD_FLOOR = 0.1  # of the median SD: a voxel that never varies must not shout


def _design(covariates: np.ndarray) -> np.ndarray:
    """Return the design (N, 1 + K): a column of ones and the covariates (N, K)."""
    return np.column_stack([np.ones(len(covariates)), covariates]).astype(np.float64)


@dataclass(frozen=True)
class ComponentNorm:
    """Age and sex effects and leading principal components of features (N, F) of `fit` people.

    `coefficients` is (1 + K, F); `components` is (C, F), orthonormal, largest variance first.
    """

    coefficients: np.ndarray
    components: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, covariates: np.ndarray, count: int) -> "ComponentNorm":
        """Fit on features (N, F) and covariates (N, K); keep at most `count` components.

        Raises BadInput when a covariate is missing: a norm cannot guess an age.
        """
        if not np.isfinite(covariates).all():
            row = int(np.flatnonzero(~np.isfinite(covariates).all(1))[0])
            fix = "fill it in participants.tsv or leave the person out"
            raise BadInput("E-COVARIATE", "norm", f"age or sex, row {row}", "n/a", "a value", fix)
        design = _design(covariates)
        coefficients = (np.linalg.pinv(design) @ features).astype(np.float32)
        residual = features - design.astype(np.float32) @ coefficients
        energy, vectors = np.linalg.eigh((residual @ residual.T).astype(np.float64))
        kept = min(count, np.linalg.matrix_rank(residual @ residual.T))
        order = np.argsort(energy)[::-1][:kept]
        components = (vectors[:, order] / np.sqrt(energy[order])).T.astype(np.float32) @ residual
        return cls(coefficients, components)

    def expected(self, features: np.ndarray, covariates: np.ndarray, count: int) -> np.ndarray:
        """Return what a euploid of these covariates, within `count` components, would have (N, F).

        The person's own position is kept along the leading components: they are common variation.
        """
        mean = _design(covariates).astype(np.float32) @ self.coefficients
        kept = self.components[:count]
        return mean + ((features - mean) @ kept.T) @ kept


@dataclass(frozen=True)
class Normative:
    """Voxel-wise linear model of departures (N, V) on covariates, with its predictive spread.

    Under normal residuals z of a new person follows Student's t with `freedom` degrees exactly.
    """

    coefficients: np.ndarray
    sd: np.ndarray
    inverse: np.ndarray
    freedom: int

    @classmethod
    def fit(cls, maps: np.ndarray, covariates: np.ndarray) -> "Normative":
        """Fit on maps (N, V) and covariates (N, K) of `scale` people; N must exceed 1 + K."""
        design = _design(covariates)
        freedom = len(design) - np.linalg.matrix_rank(design)
        if freedom < 1:
            fix = "put more euploids into the scale split"
            raise BadInput("E-FEW", "norm", "scale people", len(maps), "more than 3", fix)
        coefficients = (np.linalg.pinv(design) @ maps).astype(np.float32)
        residual = maps - design.astype(np.float32) @ coefficients
        sd = np.sqrt((residual**2).sum(0, dtype=np.float64) / freedom).astype(np.float32)
        sd = np.maximum(sd, max(SD_FLOOR * float(np.median(sd)), np.finfo(np.float32).tiny))
        return cls(coefficients, sd, np.linalg.pinv(design.T @ design), int(freedom))

    def spread(self, covariates: np.ndarray) -> np.ndarray:
        """Return the predictive SD (N, V) of new people: SD sqrt(1 + leverage), float32."""
        design = _design(covariates)
        leverage = np.einsum("nk,kl,nl->n", design, self.inverse, design)
        return self.sd * np.sqrt(1 + leverage)[:, None].astype(np.float32)

    def residual(self, maps: np.ndarray, covariates: np.ndarray) -> np.ndarray:
        """Return maps (N, V) less what their covariates predict."""
        return maps - _design(covariates).astype(np.float32) @ self.coefficients

    def z(self, maps: np.ndarray, covariates: np.ndarray) -> np.ndarray:
        """Return predictive z (N, V): residual / predictive SD, float32."""
        return self.residual(maps, covariates) / self.spread(covariates)


@dataclass(frozen=True)
class Calibration:
    """Two inflations of |z| learnt from calibration people: for p (coverage) and q (any voxel).

    `coverage` makes the pooled 95 % interval hold 95 % of their voxels. `family` is the split
    conformal bound: BH at `rate` on |z| / family flags a new exchangeable euploid anywhere with
    probability at most `guarantee`. It never sharpens (>= 1).
    """

    coverage: float
    family: float
    guarantee: float
    freedom: int
    rate: float

    @classmethod
    def fit(cls, z: np.ndarray, freedom: int, rate: float) -> "Calibration":
        """Fit on z (N, V) of calibration people; below 1 / rate - 1 of them the largest counts."""
        sizes = np.sort(np.array([_silencing(row, freedom, rate) for row in z]))
        rank = min(int(np.ceil((1 - rate) * (len(sizes) + 1))), len(sizes))
        coverage = np.quantile(np.abs(z), 0.95) / stats.t.isf(0.025, freedom)
        guarantee = 1 - rank / (len(sizes) + 1)
        return cls(float(coverage), max(float(sizes[rank - 1]), 1.0), guarantee, freedom, rate)

    def p(self, z: np.ndarray) -> np.ndarray:
        """Return two-sided p (N, V) of Student's t, voxel by voxel, after the coverage factor."""
        return (2 * stats.t.sf(np.abs(z) / self.coverage, self.freedom)).astype(np.float32)

    def q(self, z: np.ndarray) -> np.ndarray:
        """Return Benjamini-Hochberg q (N, V) of each person's map after the family factor."""
        p = 2 * stats.t.sf(np.abs(z) / self.family, self.freedom)
        return stats.false_discovery_control(p, axis=1).astype(np.float32)


def _silencing(z: np.ndarray, freedom: int, rate: float) -> float:
    """Return the smallest factor c for which BH at `rate` on |z| / c (V,) rejects nothing."""
    size = np.sort(np.abs(z))[::-1]
    bounds = stats.t.isf(rate * np.arange(1, len(z) + 1) / (2 * len(z)), freedom)
    return float((size / bounds).max())


def smooth(maps: np.ndarray, brain: np.ndarray, fwhm_mm: float, grid: Grid) -> np.ndarray:
    """Smooth maps (N, V) inside a mask (X, Y, Z) by a Gaussian that counts only brain voxels."""
    if fwhm_mm == 0:
        return maps
    box = ndimage.find_objects(brain.astype(np.int8))[0]
    inside = brain[box]
    sigma = fwhm_mm / 2.3548 / grid.voxel_mm
    share = inside.astype(np.float32)
    weight = ndimage.gaussian_filter(share, sigma, truncate=3, mode="constant")[inside]
    smoothed, volume = np.empty_like(maps), np.zeros(inside.shape, np.float32)
    for row, values in enumerate(maps):
        volume[inside] = values
        filtered = ndimage.gaussian_filter(volume, sigma, truncate=3, mode="constant")
        smoothed[row] = filtered[inside] / weight
    return smoothed


def generic_change(
    brain: np.ndarray, grid: Grid, seed: int, share: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a volume change that knows no disease: displacement and its truth.

    By seed in turn a random smooth field, ellipsoids, or random parcels of one tissue, which swell
    or shrink at the cost of their neighbourhood. Returns the backward displacement (3, X, Y, Z) in
    mm and the log volume change in the changed grid (X, Y, Z); about `share` of the brain changes
    by more than 0.1.
    """
    rng = np.random.default_rng([seed, 20])
    draw = (_random_field, _ellipsoids, _parcels)[seed % 3]
    field = draw(brain, grid, rng)
    slope = np.abs(log_determinant(field * np.float32(1e-3), grid.voxel_mm)[brain]) * 1e3
    field = field * np.float32(0.1 / max(float(np.quantile(slope, 1 - share)), 1e-6) / 2**SQUARINGS)
    for _ in range(SQUARINGS):
        field = field + np.stack([warp(part, field, grid.voxel_mm) for part in field])
    return field, -log_determinant(field, grid.voxel_mm)


def _random_field(brain: np.ndarray, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth random displacement (3, X, Y, Z), fading out at the brain's surface."""
    sigma = rng.uniform(8, 14) / grid.voxel_mm
    noise = rng.standard_normal((3, *grid.shape)).astype(np.float32)
    window = ndimage.gaussian_filter(brain.astype(np.float32), 6 / grid.voxel_mm)
    return np.stack([ndimage.gaussian_filter(part, sigma) for part in noise]) * window


def _ellipsoids(brain: np.ndarray, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Return the gradient flow (3, X, Y, Z) of a few random ellipsoids that grow or shrink."""
    mm, source = grid.coordinates_mm(), np.zeros(grid.shape, np.float32)
    centres = np.argwhere(brain)
    for _ in range(rng.integers(12, 25)):
        centre = mm[(slice(None), *rng.choice(centres))].reshape(3, 1, 1, 1)
        radii = rng.uniform(8, 24, 3).astype(np.float32).reshape(3, 1, 1, 1)
        blob = np.exp(-((((mm - centre) / radii) ** 2).sum(0) ** 2))
        source += rng.choice([-1, 1]) * rng.uniform(0.7, 1.3) * blob
    return _gradient_flow(source, grid, 15.0)


def _parcels(brain: np.ndarray, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Return the flow (3, X, Y, Z) of random parcels, each of one tissue: a sulcus, or its gyrus.

    Parcels are what is nearest to random places of a wrinkled space; no atlas draws them.
    """
    template, mm = load_template(grid), grid.coordinates_mm()
    tissues = template.gm, template.wm, template.csf, template.gm + template.wm
    centres = mm[:, brain][:, rng.integers(0, brain.sum(), rng.integers(15, 60))]
    for part in mm:  # 9 mm smooth, some 10 mm deep
        noise = rng.standard_normal(grid.shape).astype(np.float32)
        wrinkle = ndimage.gaussian_filter(noise, 9 / grid.voxel_mm)
        part += np.float32(10 / wrinkle.std()) * wrinkle
    parcel = cKDTree(centres.T).query(mm.reshape(3, -1).T)[1].reshape(grid.shape)
    source = np.zeros(grid.shape, np.float32)
    for number in np.flatnonzero(rng.random(centres.shape[1]) < 0.5):
        tissue = tissues[rng.integers(len(tissues))]
        source += np.float32(rng.standard_normal()) * tissue * (parcel == number)
    source = brain * ndimage.gaussian_filter(source, 2 / grid.voxel_mm)
    return _gradient_flow(source, grid, rng.uniform(8, 20))


def _gradient_flow(source: np.ndarray, grid: Grid, far_mm: float) -> np.ndarray:
    """Return grad(phi) (3, X, Y, Z), -laplace(phi) = source (X, Y, Z) less its mean within far_mm.

    As a backward displacement: a positive source grows and takes its room from the neighbourhood.
    """
    source = source - ndimage.gaussian_filter(source, far_mm / grid.voxel_mm)
    waves = [2 * np.pi * fft.fftfreq(size, grid.voxel_mm) for size in grid.shape]
    k = np.stack(np.meshgrid(*waves, indexing="ij")).astype(np.float32)
    energy = (k**2).sum(0)
    energy[0, 0, 0] = np.inf
    potential = fft.fftn(source) / energy
    return np.stack([fft.ifftn(1j * part * potential).real for part in k]).astype(np.float32)

"""How near synthetic volumes are to real ones as distributions, and what a classifier learns."""

from copy import copy

import numpy as np
import torch
from monai.metrics.regression import compute_ms_ssim
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from dsnb.config import Release
from dsnb.diffusion.remainder import slopes
from dsnb.fidelity.morphology import resample
from dsnb.space import Grid
from dsnb.vae import radial_spectrum

FEATURE_MM = 3.0  # features are taken at this voxel size or the grid's, whichever is coarser
SPLITS = 200  # random halves of the real people behind the floor
SIZES = (10, 20, 40, 90)  # real people a group who train a classifier
CHOICES = 10  # of those people
SCALES = (0.0448, 0.2856, 0.3001)  # first three weights of MS-SSIM (Wang et al. 2003)


def pooled(volumes: np.ndarray, grid: Grid, factor: int = 0) -> np.ndarray:
    """Average volumes (N, X, Y, Z) over cubes (by default of about 3 mm), as float32 (N, V)."""
    factor = factor or max(1, int(FEATURE_MM // grid.voxel_mm))
    values = torch.from_numpy(np.ascontiguousarray(volumes, np.float32))[:, None]
    return functional.avg_pool3d(values, factor).flatten(1).numpy()


def fit_features(volumes: np.ndarray, grid: Grid, components: int) -> PCA:
    """Fit a PCA, whitened to unit variance, on people who are on neither side of a comparison."""
    count = min(components, len(volumes) - 1)
    return PCA(count, whiten=True, svd_solver="full").fit(pooled(volumes, grid))


def first(space: PCA, count: int) -> PCA:
    """Return the first components of a fitted space."""
    some = copy(space)
    some.components_ = space.components_[:count]
    some.explained_variance_ = space.explained_variance_[:count]
    some.n_components_ = len(some.components_)
    return some


def _mmd(xx, yy, xy) -> float:
    """Return the unbiased squared MMD of kernel matrices (n, n), (m, m), (n, m)."""
    n, m = xy.shape
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def kid(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the kernel inception distance of features (n, K) and (m, K), and its SE by jackknife.

    Unbiased squared MMD under the cubic kernel (x.y / K + 1)^3, scikit-learn's default
    (Binkowski et al., arXiv 1801.01401, eq. 4).
    """
    xx, yy, xy = (polynomial_kernel(*pair) for pair in ((x, x), (y, y), (x, y)))
    variance = 0.0
    for own, other, across in ((xx, yy, xy), (yy, xx, xy.T)):
        people = np.arange(len(own))
        kept = (np.delete(people, one) for one in people)
        left = [_mmd(own[np.ix_(rows, rows)], other, across[rows]) for rows in kept]
        variance += (len(own) - 1) * np.var(left)
    return _mmd(xx, yy, xy), float(np.sqrt(variance))


def kid_floor(sides: list[np.ndarray], settings: Release) -> np.ndarray:
    """Return the mean KID over groups of random halves of real features, one value a split."""
    rng = np.random.default_rng([settings.seed, 3])
    kernels = [polynomial_kernel(x) for x in sides]
    values = np.zeros(SPLITS)
    for split in range(SPLITS):
        for kernel in kernels:
            a, b = np.array_split(rng.permutation(len(kernel)), 2)
            parts = (kernel[np.ix_(*pair)] for pair in ((a, a), (b, b), (a, b)))
            values[split] += _mmd(*parts) / len(kernels)
    return values


def density_coverage(real: np.ndarray, other: np.ndarray, k: int) -> dict:
    """Return density and coverage of `other` (M, K) about `real` (N, K), each with its SE.

    Balls reach each real person's k-th real neighbour (Naeem et al., arXiv 2002.09797, eq. 3-4);
    both are near 1 where the two come from one distribution.
    """
    radius = np.sort(cdist(real, real), axis=1)[:, k]
    inside = cdist(real, other) <= radius[:, None]
    density, covered = inside.sum(0) / k, inside.any(1)
    return {
        "density": density.mean(), "density_se": density.std() / np.sqrt(len(other)),
        "coverage": covered.mean(), "coverage_se": covered.std() / np.sqrt(len(real)),
    }  # fmt: skip


def diversity(volumes: np.ndarray, settings: Release) -> tuple[float, float]:
    """Return the mean MS-SSIM (3 scales) between random pairs of volumes (N, X, Y, Z), and its SE.

    Higher than among real people means that samples resemble each other too much.
    """
    rng = np.random.default_rng([settings.seed, 4])
    values = []
    for _ in range(settings.pairs):
        pair = volumes[np.sort(rng.choice(len(volumes), 2, replace=False))].astype(np.float32)
        one, other = torch.from_numpy(pair)[:, None, None]
        values.append(compute_ms_ssim(one, other, 3, 1.0, kernel_size=7, weights=SCALES).item())
    return float(np.mean(values)), float(np.std(values) / np.sqrt(len(values)))


def detail(volumes: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return what is fine in volumes (N, X, Y, Z): log power by frequency and slopes, (N, F).

    Eight bands of the radial spectrum, and nine quantiles of the gradient's magnitude in the brain.
    """
    rows = []
    for volume in volumes:
        power = np.log(radial_spectrum(volume[None], brain)[1])
        bands = [band.mean() for band in np.array_split(power, 8)]
        rows.append([*bands, *np.quantile(slopes(volume)[brain], np.linspace(0.1, 0.9, 9))])
    return np.array(rows)


def whiten(teach: np.ndarray, others: dict[str, dict[str, np.ndarray]]) -> dict:
    """Return features {side: {group: (N, K)}} without correlation, as people who teach have it."""
    model = make_pipeline(StandardScaler(), PCA(whiten=True, svd_solver="full")).fit(teach)
    return {side: {g: model.transform(some) for g, some in groups.items()}
            for side, groups in others.items()}  # fmt: skip


def _called(train: tuple, test: tuple) -> np.ndarray:
    """Return which people of `test` (features, DS or not) a classifier of `train` calls DS."""
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
    return make_pipeline(StandardScaler(), model).fit(*train).predict(test[0])


def utility(train: tuple, test: tuple, settings: Release) -> tuple[float, list[float]]:
    """Return the balanced accuracy on `test` (features, DS or not) of a classifier of `train`."""
    called = _called(train, test)
    rows = resample(test[1], settings, 5)
    values = [balanced_accuracy_score(test[1][r], called[r]) for r in rows]
    return balanced_accuracy_score(test[1], called), np.quantile(values, [0.025, 0.975]).tolist()


def augmentation(real: tuple, synthetic: tuple, test: tuple, settings: Release) -> list[dict]:
    """Return a row a number of real people: what synthetic ones add to training on them.

    Balanced accuracy on unseen people, a mean over random choices of as many of each group; the
    gain's interval is over test people, drawn within groups.
    """
    rng, rows = np.random.default_rng([settings.seed, 7]), []
    drawn, most = resample(test[1], settings, 8), min(real[1].sum(), (~real[1]).sum())
    for size in (size for size in SIZES if size <= most):
        right = np.zeros((2, len(test[1])))
        for _ in range(CHOICES):
            some = np.concatenate([
                rng.choice(np.flatnonzero(real[1] == ds), size, False) for ds in (False, True)
            ])  # fmt: skip
            alone = real[0][some], real[1][some]
            both = tuple(np.concatenate(pair) for pair in zip(alone, synthetic))
            right += [_called(train, test) == test[1] for train in (alone, both)]
        right /= CHOICES

        def score(side: np.ndarray, who: np.ndarray) -> float:
            return np.mean([side[who[test[1][who] == ds]].mean() for ds in (False, True)])

        gains = [score(right[1], who) - score(right[0], who) for who in drawn]
        everyone = np.arange(len(test[1]))
        low, high = np.quantile(gains, [0.025, 0.975])
        values = [score(side, everyone) for side in right]
        rows.append({"real people a group": size, "real alone": values[0],
                     "real and synthetic": values[1], "gain": values[1] - values[0],
                     "low": low, "high": high})  # fmt: skip
    return rows

"""How near synthetic volumes are to real ones as distributions, and what a classifier learns."""

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
from dsnb.fidelity.morphology import resample
from dsnb.space import Grid

FEATURE_MM = 3.0  # features are taken at this voxel size or the grid's, whichever is coarser
SPLITS = 200  # random halves of the real people behind the floor
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


def utility(train: tuple, test: tuple, settings: Release) -> tuple[float, list[float]]:
    """Return the balanced accuracy on `test` (features, DS or not) of a classifier of `train`."""
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
    called = make_pipeline(StandardScaler(), model).fit(*train).predict(test[0])
    rows = resample(test[1], settings, 5)
    values = [balanced_accuracy_score(test[1][r], called[r]) for r in rows]
    return balanced_accuracy_score(test[1], called), np.quantile(values, [0.025, 0.975]).tolist()

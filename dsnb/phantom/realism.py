"""How people vary: the spectrum of a cohort, to lay a phantom's beside that of real scans."""

import numpy as np

from dsnb.space import Grid

COMPONENTS = (0, 1, 2, 5, 10, 20, 30, 50, 70)
BANDS_PER_MM = (0.0, 0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.1, 0.13, 0.167)
FOLDS, BOOTSTRAPS = 5, 1000


def spectrum(volumes: np.ndarray, brain: np.ndarray, grid: Grid, seed: int = 0) -> dict:
    """Describe how prepared volumes (N, X, Y, Z) of euploids vary around their mean in the brain.

    `residual` is the share of the RMS departure of people who were left out that principal
    components of the others and their mirror images do not hold, with a 95 % interval over
    people; `power` the spectral density of the departures over spatial frequency.
    """
    both = brain & brain[::-1]
    people, mirrored = volumes[:, both], volumes[:, ::-1][:, both]
    order = np.random.default_rng(seed).permutation(len(volumes))
    left = np.full((len(volumes), len(COMPONENTS)), np.nan)
    for fold in range(FOLDS):
        out = order[fold::FOLDS]
        known = np.setdiff1d(order, out)
        train = np.concatenate([people[known], mirrored[known]]).astype(np.float32)
        mean = train.mean(0)
        _, sizes, components = np.linalg.svd(train - mean, full_matrices=False)
        components = components[sizes > 1e-4 * sizes[0]]
        departure = people[out] - mean
        total = (departure**2).sum(1)
        held = np.cumsum((departure @ components.T) ** 2, axis=1)
        for place, count in enumerate(COMPONENTS):
            kept = held[:, min(count, held.shape[1]) - 1] if count else 0
            left[out, place] = (total - kept) / both.sum()
    rng = np.random.default_rng(seed)
    draws = [left[rng.integers(0, len(left), len(left))].mean(0) for _ in range(BOOTSTRAPS)]
    shares = [np.sqrt(draw / draw[0]) for draw in draws]
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    residual = np.sqrt(left.mean(0) / left.mean(0)[0])
    return {
        "people": len(volumes), "rms": float(np.sqrt(left.mean(0)[0])),
        "mean": float(volumes[:, both].mean()), "sd": float(volumes[:, both].std(1).mean()),
        "residual": [
            {"components": k, "residual": residual[i], "low": low[i], "high": high[i]}
            for i, k in enumerate(COMPONENTS)
        ],
        "power": _power((volumes - volumes.mean(0)) * both, grid),
    }  # fmt: skip


def _power(departures: np.ndarray, grid: Grid) -> list[dict]:
    """Return mean spectral density of departures (N, X, Y, Z) in bands of cycles per mm."""
    density = (np.abs(np.fft.rfftn(departures, axes=(1, 2, 3))) ** 2).mean(0) / departures[0].size
    axes = [np.fft.fftfreq(n, grid.voxel_mm) for n in grid.shape[:2]]
    axes.append(np.fft.rfftfreq(grid.shape[2], grid.voxel_mm))
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    return [
        {"per_mm": (low + high) / 2, "power": density[(radius >= low) & (radius < high)].mean()}
        for low, high in zip(BANDS_PER_MM, BANDS_PER_MM[1:])
    ]

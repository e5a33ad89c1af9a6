"""Nearest training people of a candidate, thresholds from unseen people, and planted copies."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist
from scipy.stats import gumbel_l
from sklearn.decomposition import PCA

from dsnb import vae
from dsnb.fidelity.realism import pooled
from dsnb.space import Grid

SPACES = ("whole", "left half", "right half", "features", "latents")
RESCALED = 1.03  # of a planted copy's size
SURE = 0.95  # share of planted copies at least as near as a certain copy


def alike(volumes: np.ndarray) -> list[np.ndarray]:
    """Return what a copy may have been turned into: mirrored or not, moved by one voxel or not.

    `volumes` is (N, X, Y, Z); the answer holds 14 arrays of that shape, mirrored ones last.
    """
    turned = []
    for some in (volumes, volumes[:, ::-1]):
        turned.append(some)
        turned += [np.roll(some, step, axis) for axis in (1, 2, 3) for step in (-1, 1)]
    return turned


def _unit(departures: np.ndarray) -> np.ndarray:
    departures = departures - departures.mean(1, keepdims=True)
    return departures / np.linalg.norm(departures, axis=1, keepdims=True).clip(1e-12)


class Library:
    """Training volumes (N, X, Y, Z) to be near to, in five spaces of distance.

    Correlation of departures from the training mean at twice the voxel size, of the brain and of
    either half; whitened components of an open cohort (`space`); and the VAE's latents, which
    `encode` makes (n, D) of volumes.
    """

    def __init__(self, volumes: np.ndarray, grid: Grid, space: PCA, encode: Callable):
        self.grid, self.space, self.encode = grid, space, encode
        coarse = pooled(volumes, grid, 2)
        self.mean = coarse.mean(0)
        side = np.arange(coarse.shape[1]) // (coarse.shape[1] // (grid.shape[0] // 2))
        left = side < grid.shape[0] // 4
        self.parts = [np.ones(coarse.shape[1], bool), left, ~left]
        self.departures = [_unit((coarse - self.mean)[:, part]) for part in self.parts]
        self.scores = space.transform(pooled(volumes, grid))
        self.codes = encode(np.asarray(volumes, np.float32))

    def _distances(self, volumes: np.ndarray) -> np.ndarray:
        """Return log distances (5, n, N) of `volumes` (n, X, Y, Z) to everybody."""
        volumes = np.asarray(volumes, np.float32)
        far = np.full((len(SPACES), len(volumes), len(self.scores)), np.inf)
        for some in alike(volumes):
            departures = pooled(some, self.grid, 2) - self.mean
            steps = [np.abs(1 - _unit(departures[:, part]) @ known.T)
                     for part, known in zip(self.parts, self.departures)]  # fmt: skip
            far[:3] = np.minimum(far[:3], steps)
        for some in (volumes, volumes[:, ::-1]):  # fourteen ways would take minutes
            some = np.ascontiguousarray(some)
            scores, codes = self.space.transform(pooled(some, self.grid)), self.encode(some)
            steps = cdist(scores, self.scores), cdist(codes, self.codes)
            far[3:] = np.minimum(far[3:], steps)
        return np.log(far + 1e-6)

    def nearest(self, volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how much nearer the nearest is than the second (n, 5), and whose it is (n, 5).

        The log ratio of the two distances: a brain near the middle is near to everybody, a copy to
        one person only.
        """
        far = [self._distances(volumes[part]) for part in vae.batches(len(volumes), 16)]
        far = np.concatenate(far, axis=1)
        first, second = np.partition(far, 1, axis=2)[:, :, :2].transpose(2, 0, 1)
        return (first - second).T, far.argmin(2).T


class Detector:
    """Score candidates by nearness, standardised on unseen people A (n, S); low is near.

    The threshold is the `tail` quantile of a Gumbel distribution with the mean and SD of A's
    scores: the least of several is skewed, and an empirical quantile would rest on one person.
    """

    def __init__(self, unseen: np.ndarray, tail: float):
        self.centre, self.spread = unseen.mean(0), unseen.std(0)
        scores = self.score(unseen)
        scale = scores.std() * np.sqrt(6) / np.pi
        self.threshold = gumbel_l.ppf(tail, scores.mean() + np.euler_gamma * scale, scale)

    def score(self, nearest: np.ndarray) -> np.ndarray:
        """Return the nearest of the standardised distances (n,) of log ratios (n, S)."""
        return ((nearest - self.centre) / self.spread).min(1)

    def flags(self, nearest: np.ndarray) -> np.ndarray:
        """Return which candidates (n,) are near copies."""
        return self.score(nearest) < self.threshold


def rescale(volume: np.ndarray, factor: float) -> np.ndarray:
    """Return a volume (X, Y, Z) magnified about its middle."""
    middle = (np.array(volume.shape) - 1) / 2
    return ndimage.affine_transform(volume, np.full(3, 1 / factor), middle * (1 - 1 / factor),
                                    order=1)  # fmt: skip


def plant(volumes: np.ndarray, others: np.ndarray, draw: Callable, seed: int) -> dict:
    """Return copies {kind: (N, X, Y, Z)} of training volumes; `draw` puts them through the VAE.

    A `half` has the other half of one of `others`, who trained nothing.
    """
    rng = np.random.default_rng([seed, 11])
    volumes, half = np.asarray(volumes, np.float32), volumes.shape[1] // 2
    halves = np.asarray(others[np.arange(len(volumes)) % len(others)], np.float32)
    halves[:, :half] = volumes[:, :half]
    return {
        "exact": volumes,
        "noise": volumes + rng.normal(0, 0.05, volumes.shape).astype(np.float32),
        "shift": np.roll(volumes, 1, axis=2),
        "intensity": 1.1 * np.maximum(volumes, 0) ** 1.2,
        "flip": volumes[:, ::-1],
        "rescaled": np.stack([rescale(volume, RESCALED) for volume in volumes]),
        "half": halves,
        "decoded": draw(volumes),
    }


def neighbours(library: Library, sides: dict, copies: dict, tail: float) -> tuple[dict, dict]:
    """Judge synthetic people against thresholds from unseen people A; prove power and alarms.

    `sides` holds volumes (N, X, Y, Z) of "A", "B" (unseen, drawn through the VAE as synthetic
    people are) and "synthetic". A synthetic person as near as nearly all planted copies are is a
    certain copy; one blocks the release, however few they are.
    """
    found = {name: library.nearest(volumes) for name, volumes in sides.items()}
    detector = Detector(found["A"][0], tail)
    planted = {kind: library.nearest(volumes)[0] for kind, volumes in copies.items()}
    recall = {kind: detector.flags(near).mean() for kind, near in planted.items()}
    near, whose = found["synthetic"]
    standard = (near - detector.centre) / detector.spread
    scores, flagged = standard.min(1), detector.flags(near)
    whose = whose[np.arange(len(whose)), standard.argmin(1)]
    sure = np.quantile(detector.score(np.concatenate(list(planted.values()))), SURE)
    headline = {
        "copies_recalled": np.mean(list(recall.values())),
        "copies_recalled_least": min(recall.values()),
        "false_alarms": detector.flags(found["B"][0]).mean(),
        "near_copies": flagged.mean(),
        "certain_copies": (flagged & (scores < sure)).sum(),
    }
    spread = {name: detector.score(known) for name, (known, _) in found.items()}
    spread |= {f"planted: {kind}": detector.score(known) for kind, known in planted.items()}
    tables = {
        "threshold": detector.threshold,
        "recall": [{"kind": kind, "recalled": share} for kind, share in recall.items()],
        "nearness": [
            {"people": name, "count": len(values), "lowest": values.min(),
             "median": np.median(values), "highest": values.max()}
            for name, values in spread.items()
        ],
        "flagged": [
            {"row": row, "score": scores[row], "space": SPACES[standard[row].argmin()]}
            for row in np.flatnonzero(flagged)
        ],
        "training_people_near": len(np.unique(whose[flagged])) / len(library.scores),
    }  # fmt: skip
    return headline, tables

"""Nearest training people of a candidate, thresholds from unseen people, and planted copies."""

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import norm
from sklearn.decomposition import PCA

from dsnb import vae
from dsnb.fidelity.realism import pooled
from dsnb.space import Grid


def alike(volumes: np.ndarray) -> list[np.ndarray]:
    """Return what a copy may have been turned into: mirrored or not, moved by one voxel or not.

    `volumes` is (N, X, Y, Z); the answer holds 14 arrays of that shape.
    """
    turned = []
    for some in (volumes, volumes[:, ::-1]):
        turned.append(some)
        turned += [np.roll(some, step, axis) for axis in (1, 2, 3) for step in (-1, 1)]
    return turned


class Library:
    """Training volumes (N, X, Y, Z) to be near to, in two spaces of standardised distance.

    The spaces are whitened principal components, and the correlation of departures from the
    training mean at twice the voxel size.
    """

    def __init__(self, volumes: np.ndarray, grid: Grid, space: PCA):
        self.grid, self.space = grid, space
        coarse = pooled(volumes, grid, 2)
        self.mean = coarse.mean(0)
        self.departures = self._standard(coarse)
        self.scores = space.transform(pooled(volumes, grid))

    def _standard(self, coarse: np.ndarray) -> np.ndarray:
        departures = coarse - self.mean
        departures -= departures.mean(1, keepdims=True)
        return departures / np.linalg.norm(departures, axis=1, keepdims=True)

    def _distances(self, volumes: np.ndarray) -> np.ndarray:
        """Return log distances (2, n, N) of `volumes` (n, X, Y, Z) to everybody."""
        far = np.full((2, len(volumes), len(self.scores)), np.inf)
        for some in alike(np.asarray(volumes, np.float32)):
            angle = 1 - self._standard(pooled(some, self.grid, 2)) @ self.departures.T
            steps = cdist(self.space.transform(pooled(some, self.grid)), self.scores)
            far = np.minimum(far, np.stack([np.abs(angle), steps]))
        return np.log(far + 1e-6)

    def nearest(self, volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the smallest log distance (n, 2) in each space, and whose it is (n, 2)."""
        far = [self._distances(volumes[part]) for part in vae.batches(len(volumes), 16)]
        far = np.concatenate(far, axis=1)
        return far.min(2).T, far.argmin(2).T


class Detector:
    """Score candidates by nearness, standardised on unseen people A (n, 2); low is near.

    The threshold is the `tail` quantile of a normal fitted to A: an empirical quantile that low
    would rest on a single person.
    """

    def __init__(self, unseen: np.ndarray, tail: float):
        self.centre, self.spread = unseen.mean(0), unseen.std(0)
        scores = self.score(unseen)
        self.threshold = norm.ppf(tail, scores.mean(), scores.std())

    def score(self, nearest: np.ndarray) -> np.ndarray:
        """Return the nearer of the two standardised distances (n,) of log distances (n, 2)."""
        return ((nearest - self.centre) / self.spread).min(1)

    def flags(self, nearest: np.ndarray) -> np.ndarray:
        """Return which candidates (n,) are near copies."""
        return self.score(nearest) < self.threshold


def plant(volumes: np.ndarray, draw: Callable, seed: int) -> dict[str, np.ndarray]:
    """Return copies {kind: (N, X, Y, Z)} of training volumes; `draw` puts them through the VAE."""
    rng = np.random.default_rng([seed, 11])
    volumes = np.asarray(volumes, np.float32)
    return {
        "exact": volumes,
        "noise": volumes + rng.normal(0, 0.05, volumes.shape).astype(np.float32),
        "shift": np.roll(volumes, 1, axis=2),
        "intensity": 1.1 * np.maximum(volumes, 0) ** 1.2,
        "flip": volumes[:, ::-1],
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
    scores, flagged = detector.score(near), detector.flags(near)
    sure = np.quantile(detector.score(np.concatenate(list(planted.values()))), 0.95)
    headline = {
        "copies_recalled": np.mean(list(recall.values())),
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
             "median": np.median(values)} for name, values in spread.items()
        ],
        "flagged": [{"row": row, "score": scores[row]} for row in np.flatnonzero(flagged)],
        "training_people_near": len(np.unique(whose[flagged])) / len(library.scores),
    }  # fmt: skip
    return headline, tables

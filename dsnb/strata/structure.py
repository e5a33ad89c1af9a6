"""Are there subtypes? Two clusters, and the valley between them, against the null of one Gaussian.

Heavy tails, skew, and sites of unlike noise gain from a mixture of Gaussians without any subtype,
but they leave no valley. The null has the observed covariance and takes the whole path: components,
clusters, axis and valley are found again in every draw.
"""

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from dsnb.config import Strata
from dsnb.strata.crossval import LEVEL

COMPONENTS = 5  # leading ones, on which people are clustered
CLIP = 2.0  # SD of a component, beyond which a person is no further away
STARTS = 5  # of the mixture: one start misses clusters that lie 5 SD apart
RESAMPLES = 2  # four fifths of the people, clustered again
WIDTHS = (0.05, 1.5)  # SD: the kernels between which the valley's width is sought
PLACES = np.linspace(-4, 4, 161)  # SD, at which a density is read
FEWEST = 20  # people


def nuisance(table: pd.DataFrame, volumes: np.ndarray, *names: str) -> np.ndarray:
    """Return the columns (N, K) to take out: sex, log brain volume, site, motion, and `names`.

    `volumes` are (N, R) ml. A name of a number is one column, of words one a word.
    """
    sex = (table["sex"] == "M").astype(float).rename("male")
    parts = [sex, pd.Series(np.log(volumes.sum(1)), sex.index)]
    for name in ("site", "motion", *names):
        if table[name].dtype.kind == "f":
            parts.append(table[name].fillna(table[name].median()).fillna(0))
        else:
            parts.append(pd.get_dummies(table[name], drop_first=True, dtype=float))
    return pd.concat(parts, axis=1).to_numpy(float)


def residual_maker(known: np.ndarray) -> np.ndarray:
    """Return the (N, N) projection that removes a mean and the columns `known` (N, K)."""
    design = np.column_stack([np.ones(len(known)), known])
    return np.eye(len(design)) - design @ np.linalg.pinv(design)


def coordinates(kernel: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Return people (N, r) in the span of their features, what `out` (N, N) removes taken out.

    `kernel` (N, N) holds dot products; distances between rows are those of residual features.
    """
    values, vectors = np.linalg.eigh(out @ kernel @ out)
    kept = values > 1e-9 * values.max()
    return vectors[:, kept] * np.sqrt(values[kept])


def cluster(people: np.ndarray, settings: Strata) -> tuple[np.ndarray, np.ndarray]:
    """Return labels 0 or 1 (N,) of people (N, r), and their place (N,) between the two centres.

    A mixture of two Gaussians of one covariance, on clipped leading components of unit variance:
    clusters differ by their mean alone.
    """
    left = np.linalg.svd(people, full_matrices=False)[0][:, :COMPONENTS]
    scores = (left * np.sqrt(len(left))).clip(-CLIP, CLIP)
    mixture = GaussianMixture(
        2, covariance_type="tied", max_iter=60, reg_covar=1e-3, n_init=STARTS,
        random_state=settings.seed,
    ).fit(scores)  # fmt: skip
    axis = mixture.precisions_ @ (mixture.means_[1] - mixture.means_[0])
    return mixture.predict(scores), scores @ axis


def valley(values: np.ndarray) -> float:
    """Return the narrowest kernel (SD) that leaves the density of values (N,) a single mode.

    The wider, the deeper the valley between modes (Silverman, J R Stat Soc B 43:97, 1981).
    """
    scaled, (low, high) = (values - values.mean()) / values.std(), WIDTHS
    for _ in range(9):
        middle = (low + high) / 2
        density = np.exp(-0.5 * ((PLACES[:, None] - scaled) / middle) ** 2).sum(1)
        steps = np.sign(np.diff(density))
        modes = np.count_nonzero(np.diff(steps[steps != 0]) < 0)
        low, high = (middle, high) if modes > 1 else (low, middle)
    return high


def stability(people: np.ndarray, labels: np.ndarray, settings: Strata) -> float:
    """Return how far clusters of four fifths of people agree with `labels` (N,), chance being 0.

    The mean adjusted Rand index (Hubert and Arabie 1985).
    """
    rng, found = np.random.default_rng(settings.seed), []
    for _ in range(RESAMPLES):
        some = rng.permutation(len(people))[: 4 * len(people) // 5]
        found.append(adjusted_rand_score(labels[some], cluster(people[some], settings)[0]))
    return float(np.mean(found))


def draw_structureless(people: np.ndarray, out: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a cohort (N, r) from one Gaussian with the covariance of `people`, residualised.

    `out` (N, N) is the residual maker of the covariates.
    """
    weights = rng.standard_normal((len(people), len(people)))
    return out @ (weights @ people) / np.sqrt(np.trace(out))


def structure_test(
    people: np.ndarray, out: np.ndarray, draws: int, settings: Strata, rng: np.random.Generator
) -> dict:
    """Return labels, places, the valley and the stability of two clusters, each with its p.

    p = (b + 1) / (m + 1) over m draws of the null. Structure is called where neither is chance.
    """

    def measure(cohort: np.ndarray) -> tuple:
        labels, places = cluster(cohort, settings)
        found = valley(places), stability(cohort, labels, settings)
        return labels, places, np.array(found)

    labels, places, found = measure(people)
    null = np.stack([measure(draw_structureless(people, out, rng))[2] for _ in range(draws)])
    p = (1 + (null >= found).sum(0)) / (draws + 1)
    return {
        "labels": labels, "places": places, "valley": float(found[0]), "valley_p": float(p[0]),
        "stability": float(found[1]), "stability_p": float(p[1]),
        "structured": bool(p.max() <= LEVEL),
    }  # fmt: skip


def search(kernel: np.ndarray, known: np.ndarray, settings: Strata) -> dict:
    """Look for two subtypes in features (dot products `kernel`, N x N) beyond `known` (N, K)."""
    out = residual_maker(known)
    rng = np.random.default_rng([settings.seed, 0])
    found = structure_test(coordinates(kernel, out), out, settings.nulls, settings, rng)
    return {"people": len(kernel), "smaller": int(np.bincount(found["labels"], minlength=2).min()),
            **found}  # fmt: skip

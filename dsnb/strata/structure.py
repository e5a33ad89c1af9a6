"""Are there subtypes? Mixtures of latents against the null of one Gaussian.

The null has the observed covariance and takes the whole path: regression of covariates,
principal components and mixtures are fitted again to every draw.
"""

import warnings

import numpy as np
from joblib import Parallel, delayed
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from dsnb import record
from dsnb.config import Strata
from dsnb.strata.crossval import LEVEL

INNER_NULLS = 19  # null draws behind each structureless cohort: the fewest that can reach 5 %
CLUSTERS = (2, 3)
COMPONENTS = 10  # of the residual latents, that mixtures are fitted to
PEOPLE_A_COMPONENT = 5  # a mixture in d dimensions needs many more people than d
FEWEST = 10  # people


def coordinates(kernel: np.ndarray, nuisance: np.ndarray) -> np.ndarray:
    """Return people (N, r) in the span of their latents, covariates regressed out.

    `kernel` (N, N) holds dot products of latents, `nuisance` (N, K) the covariates; distances
    between rows are those between residual latents.
    """
    out = residual_maker(nuisance)
    values, vectors = np.linalg.eigh(out @ kernel @ out)
    kept = values > 1e-9 * values.max()
    return vectors[:, kept] * np.sqrt(values[kept])


def residual_maker(nuisance: np.ndarray) -> np.ndarray:
    """Return the (N, N) projection that removes a mean and `nuisance` (N, K)."""
    design = np.column_stack([np.ones(len(nuisance)), nuisance])
    return np.eye(len(design)) - design @ np.linalg.pinv(design)


def cluster(people: np.ndarray, settings: Strata) -> tuple[float, np.ndarray]:
    """Return the gain of the best mixture over one cloud and its labels (N,).

    `people` (N, r) are coordinates. The gain is BIC(1) - BIC(k) of mixtures of round Gaussians on
    the leading principal components. An elongated cloud gains, too: the gain is a statistic whose
    null `structure_p` draws, no evidence by itself.
    """
    count = min(COMPONENTS, len(people) // PEOPLE_A_COMPONENT, people.shape[1])
    left, sizes, _ = np.linalg.svd(people, full_matrices=False)
    scores = left[:, :count] * sizes[:count] / sizes[0] * np.sqrt(len(people))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an unsettled fit only gains less
        fits = [
            GaussianMixture(k, covariance_type="spherical", max_iter=60, random_state=settings.seed)
            .fit(scores) for k in (1, *CLUSTERS)
        ]  # fmt: skip
    gains = [fits[0].bic(scores) - fit.bic(scores) for fit in fits[1:]]
    best = int(np.argmax(gains))
    return gains[best], fits[best + 1].predict(scores)


def draw_structureless(people: np.ndarray, out: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a cohort (N, r) from one Gaussian with the covariance of `people`, residualised.

    `out` (N, N) is the residual maker of the covariates.
    """
    freedom = np.trace(out)
    weights = rng.standard_normal((len(people), len(people)))
    return out @ (weights @ people) / np.sqrt(freedom)


def structure_p(
    people: np.ndarray, out: np.ndarray, draws: int, settings: Strata, rng: np.random.Generator
) -> float:
    """Return p = (b + 1) / (m + 1) of the mixture gain under one Gaussian."""
    observed = cluster(people, settings)[0]
    beyond = sum(
        cluster(draw_structureless(people, out, rng), settings)[0] >= observed for _ in range(draws)
    )
    return (beyond + 1) / (draws + 1)


def false_discovery(people: np.ndarray, out: np.ndarray, settings: Strata) -> float:
    """Return the share of structureless cohorts that the test calls structured at 5 %.

    Every cohort has its own null, drawn from its own covariance, as an observed cohort would.
    """

    def is_called(draw: int) -> bool:
        rng = np.random.default_rng([settings.seed, 1, draw])
        cohort = draw_structureless(people, out, rng)
        return structure_p(cohort, out, INNER_NULLS, settings, rng) <= LEVEL

    draws, called = settings.null_draws, 0
    found = Parallel(2, return_as="generator")(delayed(is_called)(draw) for draw in range(draws))
    for done, answer in enumerate(found, start=1):
        called += answer
        record.progress("structureless cohorts", done, draws)
    return called / draws


def search(kernel: np.ndarray, nuisance: np.ndarray, settings: Strata) -> dict:
    """Look for subtypes in latents (dot products `kernel`, N x N) beyond `nuisance` (N, K).

    Returns the mixture's gain and labels, its p, whether it is called structured at 5 %, and the
    realised false discovery on structureless cohorts.
    """
    people, out = coordinates(kernel, nuisance), residual_maker(nuisance)
    gain, labels = cluster(people, settings)
    rng = np.random.default_rng([settings.seed, 0])
    p = structure_p(people, out, settings.nulls, settings, rng)
    return {
        "people": len(people),
        "clusters": len(np.unique(labels)),
        "bic_gain": gain,
        "p": p,
        "structured": p <= LEVEL,
        "false_discovery": false_discovery(people, out, settings),
        "labels": labels,
    }

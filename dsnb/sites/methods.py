"""To a new site: a norm re-centred on its euploids, and ComBat learnt in the training fold.

ComBat is ours because no library fitted: neuroHarmonize 2.5 wants numpy < 2, neuroCombat 0.2.12
(2021) and pycombat 0.20 (2022) know no new site, inmoose 0.9 has no train / apply, combatlearn 2.3
pools its priors over sites, the paper over features. Tests hold neuroCombat's output.
"""

from dataclasses import dataclass, replace

import numpy as np

from dsnb.checks import BadInput
from dsnb.norms import SD_FLOOR, Normative

NOT_SEPARABLE = "site and group are not separable: scan euploids there, or report the site alone"


def _check(count: int, site: str) -> None:
    """Refuse (E-SITE) a site that fewer than two people tell of."""
    if count < 2:
        raise BadInput("E-SITE", site, "known people", count, "2 or more", NOT_SEPARABLE)


def recentre(
    norm: Normative, features: np.ndarray, covariates: np.ndarray, rescale: bool = False
) -> Normative:
    """Move a norm to a new site by its k >= 2 euploids: features (k, F) and covariates (k, K).

    Under normal residuals z of a new person there follows Student's t with `freedom` degrees:
    those of the norm where the spread is the old one; k - 1 where, rescaled, it is the site's own.
    """
    known = len(features)
    _check(known, "new site")
    design = np.column_stack([np.ones(known), covariates])
    rest = features - design @ norm.coefficients
    first = np.eye(design.shape[1])[0]
    # The error of age and sex effects is met by the distance to the known people's mean.
    away = np.eye(len(first)) - np.outer(design.mean(0), first)
    inverse = away.T @ norm.inverse @ away + np.outer(first, first) / known
    moved = norm.coefficients + np.outer(first, rest.mean(0))
    if not rescale:
        return replace(norm, coefficients=moved, inverse=inverse)
    sd = np.maximum(rest.std(0, ddof=1), SD_FLOOR * norm.sd)
    return Normative(moved, sd, inverse, known - 1)


@dataclass(frozen=True)
class ComBat:
    """Every site's location and scale, by empirical Bayes (Johnson 2007; Fortin 2018).

    y = alpha + x beta + sd (gamma + delta e); `sites` holds (gamma*, delta*), each (F,), F >= 2.
    """

    alpha: np.ndarray
    beta: np.ndarray
    sd: np.ndarray
    sites: dict[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def fit(cls, features: np.ndarray, site: np.ndarray, covariates: np.ndarray) -> "ComBat":
        """Fit on features (N, F), site names (N,) and covariates (N, K) of the training fold.

        Raises BadInput (E-SITE) where the site tells a covariate, such as the group, exactly.
        """
        names, counts = np.unique(site, return_counts=True)
        _check(counts.min(), names[counts.argmin()])
        member = (site[:, None] == names).astype(float)
        design = np.hstack([member, covariates])
        effects, _, rank, _ = np.linalg.lstsq(design, features, rcond=None)
        if rank < len(names) + (np.ptp(covariates, axis=0) > 0).sum():
            said = ("a covariate", "known from the site", "several at a site", NOT_SEPARABLE)
            raise BadInput("E-SITE", "ComBat", *said)
        sd = np.sqrt(((features - design @ effects) ** 2).mean(0))
        alpha, beta = member.mean(0) @ effects[: len(names)], effects[len(names) :]
        rest = (features - alpha - covariates @ beta) / sd
        return cls(alpha, beta, sd, {name: _location_scale(rest[site == name]) for name in names})

    def apply(self, features: np.ndarray, site: np.ndarray, covariates: np.ndarray) -> np.ndarray:
        """Return harmonised features (N, F); a group given as 0 for everybody reads no label."""
        if unknown := sorted(set(site) - set(self.sites)):
            said = ("a site", str(unknown[0]), "one it knows", NOT_SEPARABLE)
            raise BadInput("E-SITE", "ComBat", *said)
        gamma, delta = (np.stack([self.sites[s][i] for s in site]) for i in (0, 1))
        expected = self.alpha + covariates @ self.beta
        return expected + self.sd * ((features - expected) / self.sd - gamma) / delta


def _location_scale(rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return gamma* and delta* (F,) of standardised rests (n, F); priors over features."""
    n, mean, variance = len(rest), rest.mean(0), rest.var(0, ddof=1)
    tau2, m, s2 = mean.var(ddof=1), variance.mean(), variance.var(ddof=1)
    shape, rate = 2 + m**2 / s2, m + m**3 / s2
    gamma, delta2 = mean, variance
    for _ in range(1000):
        last = delta2
        gamma = (n * tau2 * mean + delta2 * mean.mean()) / (n * tau2 + delta2)
        delta2 = (rate + ((rest - gamma) ** 2).sum(0) / 2) / (n / 2 + shape - 1)
        if np.allclose(delta2, last, rtol=1e-10, atol=0):
            break
    return gamma, np.sqrt(delta2)

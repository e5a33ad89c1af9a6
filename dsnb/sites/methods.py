"""To a new site: a norm re-centred on its euploids, and ComBat learnt in the training fold.

ComBat is ours because no library fitted: neuroHarmonize 2.5 wants numpy < 2, neuroCombat 0.2.12
(2021) and pycombat 0.20 (2022) know no new site, inmoose 0.9 has no train / apply, combatlearn 2.3
pools its priors over sites, the paper over features. Tests hold neuroCombat's output.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special, stats

from dsnb.checks import BadInput
from dsnb.norms import SD_FLOOR, Normative

NOT_SEPARABLE = "site and group are not separable: scan euploids there, or report the site alone"


def _check(count: int, site: str) -> None:
    """Refuse (E-SITE) a site that fewer than two people tell of."""
    if count < 2:
        raise BadInput("E-SITE", site, "known people", count, "2 or more", NOT_SEPARABLE)


@dataclass(frozen=True)
class Recentred:
    """A norm moved to a new site by the departures of its k euploids.

    With equal spread z of a new person follows Student's t with `freedom` degrees exactly, whose
    SD grows by sqrt(1 + 1/k + leverage); with a new spread nearly so.
    """

    norm: Normative
    shift: np.ndarray
    sd: np.ndarray
    centre: np.ndarray
    known: int
    freedom: float

    @classmethod
    def fit(
        cls, norm: Normative, features: np.ndarray, covariates: np.ndarray, rescale: bool = False
    ) -> "Recentred":
        """Fit on features (k, F) and covariates (k, K) of the new site's euploids, k >= 2."""
        _check(len(features), "new site")
        rest = features - _design(covariates) @ norm.coefficients
        sd, freedom = _spread(norm, rest - rest.mean(0)) if rescale else (norm.sd, norm.freedom)
        centre = _design(covariates).mean(0)
        return cls(norm, rest.mean(0), sd, centre, len(features), freedom)

    def z(self, features: np.ndarray, covariates: np.ndarray) -> np.ndarray:
        """Return predictive z (N, F) of people of the new site."""
        design = _design(covariates)
        away = design - self.centre
        leverage = np.einsum("nk,kl,nl->n", away, self.norm.inverse, away)
        rest = features - design @ self.norm.coefficients - self.shift
        return rest / (self.sd * np.sqrt(1 + 1 / self.known + leverage)[:, None])

    def p(self, z: np.ndarray) -> np.ndarray:
        """Return two-sided p (N, F) of Student's t."""
        return 2 * stats.t.sf(np.abs(z), self.freedom)


def _design(covariates: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(covariates)), covariates])


def _spread(norm: Normative, rest: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the SD (F,) at a new site from centred departures (k, F), and its freedom.

    ln s^2 has variance psi'(degrees / 2). A scanner moves all spreads together, so each ratio to
    the norm's is shrunk to their common one; `rho2`, the mean squared correlation of features,
    says how badly that is known. The freedom is that of a chi square with the variance left.
    """
    k, count = rest.shape
    a, b = (k - 1) / 2, norm.freedom / 2
    v, u = special.polygamma(1, a), special.polygamma(1, b)
    variance = np.maximum((rest**2).sum(0) / (k - 1), (SD_FLOOR * norm.sd) ** 2)
    unit = rest / np.sqrt((k - 1) * variance)
    rho2 = ((unit @ unit.T) ** 2).sum() / count**2
    known = 2 * np.log(norm.sd) - special.digamma(b) + np.log(b)
    ratio = np.log(variance) - special.digamma(a) + np.log(a) - known
    tau2 = max(float(ratio.var()) - (u + v) * (1 - rho2), 0.0)
    w = (tau2 + u) / (tau2 + u + v)
    left = (1 - w) ** 2 * (tau2 + u * (1 - rho2)) + v * (w**2 + rho2 * (1 - w**2))
    half = optimize.brentq(lambda x: special.polygamma(1, x) - left, 1e-3, 1e9)
    shrunk = known + ratio.mean() + w * (ratio - ratio.mean())
    return np.exp((shrunk + special.digamma(half) - np.log(half)) / 2), 2 * half


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
        names = np.unique(site)
        member = (site[:, None] == names).astype(float)
        design = np.hstack([member, covariates])
        varying = np.hstack([member, covariates[:, np.ptp(covariates, axis=0) > 0]])
        if np.linalg.matrix_rank(varying) < varying.shape[1]:
            raise BadInput(
                "E-SITE", "ComBat", "a covariate", "known from the site", "several at a site",
                NOT_SEPARABLE,
            )  # fmt: skip
        effects = np.linalg.lstsq(design, features, rcond=None)[0]
        sd = np.sqrt(((features - design @ effects) ** 2).mean(0))
        whole = cls(member.mean(0) @ effects[: len(names)], effects[len(names) :], sd, {})
        for name in names:
            whole = whole.add_site(name, features[site == name], covariates[site == name])
        return whole

    def add_site(self, name: str, features: np.ndarray, covariates: np.ndarray) -> "ComBat":
        """Return this model with one more site, learnt from people whose group is known."""
        _check(len(features), name)
        rest = (features - self._expected(covariates)) / self.sd
        return replace(self, sites=self.sites | {name: _location_scale(rest)})

    def apply(self, features: np.ndarray, site: np.ndarray, covariates: np.ndarray) -> np.ndarray:
        """Return harmonised features (N, F); a group given as 0 for everybody reads no label."""
        unknown = sorted(set(site) - set(self.sites))
        if unknown:
            raise BadInput("E-SITE", "ComBat", "a site", unknown[0], "one it knows", NOT_SEPARABLE)
        gamma, delta = (np.stack([self.sites[s][i] for s in site]) for i in (0, 1))
        expected = self._expected(covariates)
        return expected + self.sd * ((features - expected) / self.sd - gamma) / delta

    def _expected(self, covariates: np.ndarray) -> np.ndarray:
        return self.alpha + covariates @ self.beta


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

"""Every candidate's norm, tuned alike: components and smoothing chosen on generic changes.

Generic changes (`norms.generic_change`) are planted on validation euploids; the disease is seen by
nobody before the test people are scored.
"""

from dataclasses import dataclass, replace

import numpy as np

from dsnb import record
from dsnb.anomaly import metrics
from dsnb.anomaly.people import (
    BY_NAME,
    CANDIDATES,
    Candidate,
    People,
    Source,
    departures,
    in_own_grid,
)
from dsnb.norms import ComponentNorm, Normative, generic_change, smooth

THINNED = 4  # every fourth voxel suffices to choose settings


@dataclass(frozen=True)
class FittedNorm:
    """A candidate at its chosen settings: what it expects, and how far euploids depart from it."""

    candidate: Candidate
    model: ComponentNorm
    choice: dict
    source: Source
    normative: Normative | None = None

    def departures(self, people: People, fwhm_mm: float | None = None) -> np.ndarray:
        """Return departures (N, V) in the candidate's own unit, smoothed as was chosen or asked."""
        count, source = self.choice["components"], self.source
        maps = departures(self.candidate, people, count, self.model, source.decode)
        fwhm_mm = self.choice["fwhm_mm"] if fwhm_mm is None else fwhm_mm
        return smooth(maps, source.brain, fwhm_mm, source.grid)

    def z(self, people: People) -> np.ndarray:
        """Return predictive z (N, V)."""
        return self.normative.z(self.departures(people), people.covariates)

    def in_own_grid(self, maps: np.ndarray, points: np.ndarray | None, **how) -> np.ndarray:
        """Return maps (N, V) where the truth is; `points` as in `People`, `how` as for maps."""
        return in_own_grid(self.candidate, maps, points, self.source.brain, **how)


def tune(
    candidate: Candidate, scale: People, planted: People, truth: np.ndarray, model, source: Source
) -> list[dict]:
    """Return the mean lift over generic changes for every choice of components and smoothing.

    `truth` is the planted |log-Jacobian| (N, V) in the planted people's own grid.
    """
    settings, trials = source.study.maps, []
    changed = truth > settings.truth_change
    for count in settings.nuisance if candidate.free else (0,):
        maps = [departures(candidate, who, count, model, source.decode) for who in (scale, planted)]
        for fwhm_mm in settings.smoothing_mm:
            near, far = (smooth(values, source.brain, fwhm_mm, source.grid) for values in maps)
            z = Normative.fit(near, scale.covariates).z(far, planted.covariates)
            z = np.abs(in_own_grid(candidate, z, planted.points, source.brain))
            lift = metrics.average_precision(z[:, ::THINNED], changed[:, ::THINNED])[2].mean()
            trials.append({"norm": candidate.name, "components": count, "fwhm_mm": fwhm_mm,
                           "lift": lift})  # fmt: skip
    return trials


def fit(candidate: Candidate, model: ComponentNorm, choice: dict, scale: People, source: Source):
    """Return a candidate's FittedNorm, standardised on the scale people."""
    norm = FittedNorm(candidate, model, choice, source)
    return replace(norm, normative=Normative.fit(norm.departures(scale), scale.covariates))


def fit_model(candidate: Candidate, people: People, count: int) -> ComponentNorm:
    """Fit a candidate's expectation, with `count` components at most, on fit people."""
    return ComponentNorm.fit(getattr(people, candidate.features), people.covariates, count)


def fit_chosen(source: Source, chosen: list[dict]) -> dict[str, FittedNorm]:
    """Fit candidates at settings chosen before: rows with norm, components and fwhm_mm."""
    fit_people, scale = (source.people(source.rows("euploid", s)) for s in ("fit", "scale"))
    fitted = {}
    for row in chosen:
        candidate = BY_NAME[row["norm"]]
        model = fit_model(candidate, fit_people, row["components"])
        fitted[candidate.name] = fit(candidate, model, row, scale, source)
    return fitted


def fit_all(source: Source) -> tuple[dict[str, FittedNorm], list[dict]]:
    """Tune and fit every candidate: {name: FittedNorm}, and all trials."""
    free = {candidate.features for candidate in CANDIDATES if candidate.free}
    fit_people, scale = (source.people(source.rows("euploid", s)) for s in ("fit", "scale"))
    rows = source.rows("euploid", "validation")
    rows = np.repeat(rows, source.study.maps.changes)
    planted, truth = source.planted(rows, lambda n: generic_change(source.brain, source.grid, n))
    models, fitted, trials = {}, {}, []
    for number, candidate in enumerate(CANDIDATES, start=1):
        if candidate.features not in models:
            most = max(source.study.maps.nuisance) if candidate.features in free else 0
            models[candidate.features] = fit_model(candidate, fit_people, most)
        model = models[candidate.features]
        found = tune(candidate, scale, planted, truth, model, source)
        choice = max(found, key=lambda trial: trial["lift"])
        fitted[candidate.name] = fit(candidate, model, choice, scale, source)
        trials += found
        record.progress("norms", number, len(CANDIDATES))
    return fitted, trials

"""Region effects of DS: in real people, in synthetic ones, and in reconstructions."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dsnb.config import Release
from dsnb.space import EFFECT_REGIONS, GROUPS, REGIONS, covariates

EFFECTS = [REGIONS.index(name) for name in EFFECT_REGIONS]
REQUESTED = ("ventricles", "hippocampus", "frontal")  # regions that age moves
LEAST_DRAWN = 8  # reconstructed people a group


class People(NamedTuple):
    """Region volumes (N, R, natural log of ml), DS or not (N,), age and sex codes (N, 2)."""

    logs: np.ndarray
    ds: np.ndarray
    covariates: np.ndarray

    def take(self, rows: np.ndarray) -> "People":
        """Return these rows."""
        return People(*(part[rows] for part in self))


def people(table: pd.DataFrame, volumes: pd.DataFrame) -> People:
    """Join a participants table with its region volumes (ml) by participant_id."""
    known = volumes.set_index("participant_id").loc[table["participant_id"], list(REGIONS)]
    ds = (table["group"] == "DS").to_numpy()
    return People(np.log(known.to_numpy(float)), ds, covariates(table))


def _residuals(some: People) -> tuple[np.ndarray, np.ndarray]:
    """Return the DS coefficient (R,) and the residuals (N, R) of log volumes on group, age, sex."""
    design = np.column_stack([some.ds, np.ones(len(some.ds)), some.covariates]).astype(float)
    coefficients, *_ = np.linalg.lstsq(design, some.logs, rcond=None)
    return coefficients[0], some.logs - design @ coefficients


def effects(some: People) -> np.ndarray:
    """Return d (R,): the DS-euploid difference of log volume over the residual SD.

    Age and sex are adjusted for; logs, since ventricles are log-normal and effects are ratios.
    """
    difference, residuals = _residuals(some)
    return difference / np.sqrt((residuals**2).sum(0) / (len(some.ds) - 4))


def resample(ds: np.ndarray, settings: Release, stream: int) -> list[np.ndarray]:
    """Return bootstrap rows, drawn within each group; `stream` keeps the sides independent."""
    rng = np.random.default_rng([settings.seed, stream])
    groups = np.flatnonzero(~ds), np.flatnonzero(ds)
    return [
        np.concatenate([rng.choice(rows, len(rows)) for rows in groups])
        for _ in range(settings.bootstraps)
    ]


def agreement(real: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the correlation of effects (R,) over regions and the slope through the origin."""
    return float(np.corrcoef(real, other)[0, 1]), float(real @ other / (real @ real))


def equivalence(differences: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each column of (B, R) passes two one-sided tests at 5 %, and (R, 2) limits.

    Passed where the 90 % interval lies within +-margin (Schuirmann 1987).
    """
    limits = np.quantile(differences, [0.05, 0.95], axis=0).T
    return (np.abs(limits) < margin).all(1), limits


def compare_effects(real: People, synthetic: People, settings: Release) -> tuple[dict, list[dict]]:
    """Compare effects per region; returns headline numbers with intervals, and a row a region."""
    sides = [
        np.array([effects(one.take(rows))[EFFECTS] for rows in resample(one.ds, settings, stream)])
        for stream, one in enumerate((real, synthetic))
    ]
    d_real, d_synthetic = effects(real)[EFFECTS], effects(synthetic)[EFFECTS]
    passed, limits = equivalence(sides[1] - sides[0], settings.margin_d)
    spread = [np.sqrt((_residuals(side)[1][:, EFFECTS] ** 2).mean(0)) for side in (real, synthetic)]
    known = [np.quantile(side, [0.025, 0.975], axis=0) for side in sides]
    table = pd.DataFrame({
        "region": EFFECT_REGIONS, "real": d_real, "real_low": known[0][0], "real_high": known[0][1],
        "synthetic": d_synthetic, "synthetic_low": known[1][0], "synthetic_high": known[1][1],
        "difference": d_synthetic - d_real, "low_90": limits[:, 0], "high_90": limits[:, 1],
        "equivalent": passed, "sd_ratio": spread[1] / spread[0],
    })  # fmt: skip
    pairs = np.array([agreement(*pair) for pair in zip(*sides)])
    low, high = np.quantile(pairs, [0.025, 0.975], axis=0)
    correlation, slope = agreement(d_real, d_synthetic)
    numbers = {
        "effect_correlation": correlation, "effect_correlation_ci": [low[0], high[0]],
        "effect_slope": slope, "effect_slope_ci": [low[1], high[1]],
        "regions_equivalent": passed.sum(),
        "regions_within_margin": (np.abs(d_synthetic - d_real) < settings.margin_d).sum(),
    }  # fmt: skip
    return numbers, table.to_dict("records")


def ceiling(originals: People, drawn: People, settings: Release) -> dict:
    """Return the effect slope of reconstructions on their own originals, paired by person.

    It is None below `LEAST_DRAWN` people a group, where resampled groups have no spread.
    """

    def slope(rows: np.ndarray) -> float:
        return agreement(*(effects(side.take(rows))[EFFECTS] for side in (originals, drawn)))[1]

    error = 100 * np.abs(np.expm1(drawn.logs - originals.logs)).mean(0)
    found = {"region_error_pct": error.mean(), "region_errors_pct": dict(zip(REGIONS, error))}
    if min(originals.ds.sum(), (~originals.ds).sum()) < LEAST_DRAWN:
        return found | {"reconstruction_slope": None, "reconstruction_slope_ci": None}
    values = [slope(rows) for rows in resample(originals.ds, settings, 2)]
    return found | {
        "reconstruction_slope": slope(np.arange(len(originals.ds))),
        "reconstruction_slope_ci": np.quantile(values, [0.025, 0.975]).tolist(),
    }


def covariance(real: People, other: People, settings: Release) -> dict:
    """Compare how regions vary together within groups: correlations (R (R - 1) / 2) on each side.

    `agreement` is the correlation of the two sets of correlations, `floor` that of halves of the
    real people, of which none can be the better; `sd_ratio` the geometric mean of SD ratios.
    """

    def correlations(side: People) -> np.ndarray:
        matrix = np.corrcoef(_residuals(side)[1].T)
        return matrix[np.triu_indices(len(REGIONS), 1)]

    rng, halves = np.random.default_rng([settings.seed, 6]), []
    for _ in range(settings.bootstraps // 10):
        turned = [rng.permutation(np.flatnonzero(real.ds == ds)) for ds in (False, True)]
        sides = [np.concatenate([rows[part::2] for rows in turned]) for part in (0, 1)]
        one, two = (correlations(real.take(rows)) for rows in sides)
        halves.append(np.corrcoef(one, two)[0, 1])
    spread = [_residuals(side)[1].std(0) for side in (real, other)]
    return {
        "agreement": np.corrcoef(correlations(real), correlations(other))[0, 1],
        "floor": np.median(halves), "sd_ratio": np.exp(np.log(spread[1] / spread[0]).mean()),
    }  # fmt: skip


def age_slopes(sides: dict[str, People]) -> list[dict]:
    """Return, a group and region, the change of log volume a decade on each side, with its SE."""
    rows = []
    for code, group in enumerate(GROUPS):
        for region in REQUESTED:
            row = {"group": group, "region": region}
            for name, side in sides.items():
                some = side.take(side.ds == bool(code))
                design = np.column_stack([some.covariates, np.ones(len(some.ds))])
                logs, known = some.logs[:, REGIONS.index(region)], np.ptp(some.covariates[:, 0])
                found, *_ = np.linalg.lstsq(design, logs, rcond=None)
                left = ((logs - design @ found) ** 2).sum() / max(len(logs) - 3, 1)
                error = np.sqrt(left * np.linalg.pinv(design.T @ design)[0, 0])
                row |= {name: found[0], f"{name}_se": error} if known else {name: None}
            rows.append(row)
    return rows


def measured_age(teach: People, sides: dict[str, People]) -> list[dict]:
    """Tell ages from region volumes by a model of real people who teach; how far are requests met?

    Correlation of the known (or requested) age with the age told, a group and side.
    """
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 3, 11)))
    rows, columns = [], [np.column_stack([side.logs, side.ds]) for side in sides.values()]
    model.fit(np.column_stack([teach.logs, teach.ds]), teach.covariates[:, 0])
    for (name, side), known in zip(sides.items(), columns):
        told = model.predict(known)
        for code, group in enumerate(GROUPS):
            some = side.ds == bool(code)
            age = side.covariates[some, 0]
            found = np.corrcoef(age, told[some])[0, 1] if np.ptp(age) else None
            rows.append({"people": name, "group": group, "correlation": found})
    return rows

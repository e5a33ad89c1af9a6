"""What a map is worth: precision against the truth, healthy error, false discoveries, coverage."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import average_precision_score

from dsnb.anomaly.people import CANDIDATES, PRIMARY
from dsnb.config import Maps
from dsnb.space import REGIONS

UNCHANGED = 0.01  # |log-Jacobian| below which a discovery is false


def average_precision(score: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Return average precision, prevalence and lift of each person, (3, N).

    `score` (N, V) is two-sided (|z|), `changed` (N, V) bool. Lift = (AP - prevalence) /
    (1 - prevalence): 0 for a map that knows nothing, 1 for a perfect one. People without any
    changed voxel have no precision and are left out.
    """
    rows = [(average_precision_score(c, s), c.mean()) for s, c in zip(score, changed) if c.any()]
    precision, prevalence = np.array(rows).reshape(-1, 2).T
    return np.stack([precision, prevalence, (precision - prevalence) / (1 - prevalence)])


def bootstrap(values: np.ndarray, statistic: Callable, draws: int, seed: int) -> list[float]:
    """Return the 95 % percentile interval of statistic(values (K, N)) over the N people."""
    rng = np.random.default_rng(seed)
    people = values.shape[1]
    found = [statistic(values[:, rng.integers(0, people, people)]) for _ in range(draws)]
    return [float(bound) for bound in np.quantile(found, [0.025, 0.975])]


def flagged(q: np.ndarray, rate: float) -> dict:
    """Return how many people have any voxel below `rate`, with the exact 95 % interval."""
    count, people = int((q.min(1) < rate).sum()), len(q)
    low, high = stats.binomtest(count, people).proportion_ci(0.95, "exact")
    return {"people": people, "flagged": count, "share": count / people, "low": low, "high": high}


def discoveries(q: np.ndarray, truth: np.ndarray, rate: float, change: float) -> np.ndarray:
    """Return false-discovery proportion and power of each person, (2, N).

    A discovery (q < rate) is false where |truth| (N, V) < UNCHANGED, and found where it is above
    `change`. A person without discoveries has a proportion of 0, as in the definition of FDR.
    """
    found = q < rate
    false = (found & (truth < UNCHANGED)).sum(1) / np.maximum(found.sum(1), 1)
    changed = truth > change
    return np.stack([false, (found & changed).sum(1) / np.maximum(changed.sum(1), 1)])


def coverage(p: np.ndarray, table: pd.DataFrame) -> list[dict]:
    """Return the share of voxels inside the 95 % interval: all, by person quantile, by strata."""
    inside = (p >= 0.05).mean(1)
    rows = [("all", inside)] + [
        (f"person quantile {level}", np.quantile(inside, [level])) for level in (0.05, 0.5, 0.95)
    ]
    bands = pd.cut(table["age"], [0, 30, 45, 60, 120], right=False).astype(str)
    for name, values in (("sex", table["sex"]), ("site", table["site"]), ("age", bands)):
        rows += [(f"{name} {v}", inside[(values == v).to_numpy()]) for v in sorted(set(values))]
    return [{"people": name, "number": len(v), "coverage": float(v.mean())} for name, v in rows]


def compare(scores: dict, truth: np.ndarray, settings: Maps) -> tuple[dict, list[dict]]:
    """Judge candidates' |z| (N, V) against |truth| (N, V): headline values and table `norms`.

    The best rival is the plain candidate with the largest lift on these very people, which
    favours the rivals.
    """
    changed = truth > settings.truth_change
    found = {name: average_precision(values, changed) for name, values in scores.items()}
    deep = {candidate.name for candidate in CANDIDATES if candidate.deep}
    table = []
    for name, values in found.items():
        low, high = bootstrap(values[:1], np.mean, settings.bootstraps, settings.seed)
        bounds = bootstrap(values[2:], np.mean, settings.bootstraps, settings.seed)
        table.append({
            "norm": name, "deep": name in deep, "primary": name == PRIMARY,
            "auprc": values[0].mean(), "low": low, "high": high, "lift": values[2].mean(),
            "lift_low": bounds[0], "lift_high": bounds[1], "people": values.shape[1],
        })  # fmt: skip
    plain = [c.name for c in CANDIDATES if not c.deep]
    best = max(plain, key=lambda name: found[name][2].mean())
    lifts = np.stack([found[PRIMARY][2], found[best][2]])
    headline = {
        "lift": lifts[0].mean(), "lift_best_rival": lifts[1].mean(), "best_rival": best,
        "lift_ratio_ci": None, "auprc": found[PRIMARY][0].mean(),
        "auprc_best_rival": found[best][0].mean(), "auprc_null": found["sd_map"][0].mean(),
        "prevalence": found[PRIMARY][1].mean(),
    }  # fmt: skip
    draws = bootstrap(lifts[1:], np.mean, settings.bootstraps, settings.seed)
    if draws[0] > 0:
        headline["lift_ratio_ci"] = bootstrap(
            lifts, lambda pair: pair[0].mean() / pair[1].mean(), settings.bootstraps, settings.seed
        )
    return headline, table


def region_effects(z: np.ndarray, signed_truth: np.ndarray, masks: np.ndarray) -> list[dict]:
    """Return per region the group's mean |mean z| and |mean truth| over its voxels.

    `z` and `signed_truth` are (N, V) in people's grids, `masks` (R, V). Magnitudes, since the
    sign of an intensity departure is not the sign of a volume change.
    """
    weights = masks / np.maximum(masks.sum(1, keepdims=True), 1e-6)
    seen, true = (weights @ np.abs(values.mean(0)) for values in (z, signed_truth))
    return [{"region": r, "z": a, "truth": b} for r, a, b in zip(REGIONS, seen, true)]


def error_against_truth(q: np.ndarray, truth: np.ndarray, settings: Maps, tables: dict) -> dict:
    """Return the headline's FDP and power of DS maps q (N, V), their intervals into `tables`."""
    found = discoveries(q, np.abs(truth), settings.q, settings.truth_change)
    for name, values in zip(("fdp", "power"), found):
        low, high = bootstrap(values[None], np.mean, settings.bootstraps, settings.seed)
        tables[name] = {"mean": values.mean(), "low": low, "high": high, "people": len(q)}
    tables["fdp"]["unchanged_share"] = float((np.abs(truth) < UNCHANGED).mean())
    return {"fdp_at_q05": found[0].mean(), "power_at_q05": found[1].mean()}

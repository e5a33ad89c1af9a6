"""What a map is worth: precision against the truth, healthy error, false discoveries, coverage."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import average_precision_score

from dsnb.anomaly.people import CANDIDATES, PRIMARY, region_weights
from dsnb.config import Maps
from dsnb.space import REGIONS

TENTHS = 10
SWAPS = ("gain", "personal")  # above euploids' maps; above other patients' maps
NULLS = ("sd_map", "sd_map_tbm")  # maps without a subject
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


def coverage(p: np.ndarray, table: pd.DataFrame, masks: np.ndarray) -> list[dict]:
    """Return the share of voxels inside the 95 % range: all, by person quantile, strata, regions.

    `p` is (N, V), `table` its people, `masks` (R, V) the regions' soft ones.
    """
    voxels = p >= 0.05
    inside = voxels.mean(1)
    rows = [("all", inside)] + [
        (f"person quantile {level}", np.quantile(inside, [level])) for level in (0.05, 0.5, 0.95)
    ]
    bands = pd.cut(table["age"], [0, 30, 45, 60, 120], right=False).astype(str)
    for name, values in (("sex", table["sex"]), ("site", table["site"]), ("age", bands)):
        rows += [(f"{name} {v}", inside[(values == v).to_numpy()]) for v in sorted(set(values))]
    rows += zip((f"region {r}" for r in REGIONS), (voxels @ region_weights(masks).T).T)
    return [{"people": name, "number": len(v), "coverage": float(v.mean())} for name, v in rows]


def reliability(spread: np.ndarray, residual: np.ndarray, settings: Maps) -> list[dict]:
    """Return predicted beside observed SD of unseen euploids, voxels in tenths by predicted SD.

    `spread` and `residual` are (N, V), in the unit of the norm; intervals are over people.
    """
    size = np.sqrt((spread**2).mean(0))
    tenths, rows = np.array_split(np.argsort(size), TENTHS), []
    for tenth in tenths:
        squares = (residual[:, tenth] ** 2).mean(1)
        low, high = bootstrap(
            squares[None], lambda found: np.sqrt(found.mean()), settings.bootstraps, settings.seed
        )
        predicted = np.sqrt((size[tenth] ** 2).mean())
        rows.append({"predicted": predicted, "observed": np.sqrt(squares.mean()),
                     "low": low, "high": high})  # fmt: skip
    return rows


def mean(name: str, values: np.ndarray, settings: Maps) -> dict:
    """Return the mean over people (N,) and its interval as columns."""
    low, high = bootstrap(values[None], np.mean, settings.bootstraps, settings.seed)
    return {name: values.mean(), f"{name}_low": low, f"{name}_high": high}


def compare(found: dict, swapped: dict, settings: Maps) -> tuple[dict, dict]:
    """Compare candidates, nulls and the labelled map: headline; tables `norms`, `paired`, `each`.

    `found` is {name: (3, N) of `average_precision`}; `swapped` {name: {"gain", "personal": lifts
    (N,) of the maps of euploids and of other people with DS, laid over the same truths}}. Lift
    above those says whether a map tells a patient from a euploid, and this patient from another.
    A map without a subject, absent from `swapped`, does neither. The best rival is the plain
    candidate with the largest lift (or gain) on these very people, which favours the rivals.
    """
    above = {
        name: {kind: own[2] - swapped.get(name, {}).get(kind, own[2]) for kind in SWAPS}
        for name, own in found.items()
    }
    deep, table = {candidate.name for candidate in CANDIDATES if candidate.deep}, []
    for name, (precision, _, lift) in found.items():
        values = {"auprc": precision, "lift": lift} | above[name]
        row = {"norm": name, "deep": name in deep, "primary": name == PRIMARY}
        for column, of_people in values.items():
            row |= mean(column, of_people, settings)
        table.append(row | {"people": len(lift)})
    gains = {name: values["gain"] for name, values in above.items()}
    plain = [c.name for c in CANDIDATES if not c.deep]
    best = max(plain, key=lambda name: found[name][2].mean())
    best_gain = max(plain, key=lambda name: gains[name].mean())
    paired = [
        {"rival": name} | mean("lift", found[PRIMARY][2] - found[name][2], settings)
        | mean("gain", gains[PRIMARY] - gains[name], settings) for name in plain
    ]  # fmt: skip
    own, rival = found[PRIMARY], found[best]
    headline = {
        "lift": own[2].mean(), "lift_best_rival": rival[2].mean(), "best_rival": best,
        "lift_ratio_ci": ratio_interval(own[2], rival[2], settings), "auprc": own[0].mean(),
        "auprc_best_rival": rival[0].mean(), "auprc_null": found["sd_map"][0].mean(),
        "prevalence": own[1].mean(), "gain": gains[PRIMARY].mean(),
        "gain_best_rival": gains[best_gain].mean(), "best_rival_gain": best_gain,
        "gain_ratio_ci": ratio_interval(gains[PRIMARY], gains[best_gain], settings),
        "lift_best_null": max(found[name][2].mean() for name in NULLS),
    }  # fmt: skip
    each = {name: {"lift": found[name][2], "gain": gains[name]} for name in found}
    return headline, {"norms": table, "paired": paired, "each": each}


def ratio_interval(one: np.ndarray, other: np.ndarray, settings: Maps) -> list[float] | None:
    """Return the interval of a ratio of means over the same people (N,), if `other` is above 0."""
    draws = settings.bootstraps, settings.seed
    if bootstrap(other[None], np.mean, *draws)[0] <= 0:
        return None
    return bootstrap(np.stack([one, other]), lambda pair: pair[0].mean() / pair[1].mean(), *draws)


def tell(headline: dict) -> list[str]:
    """Put the primary deep norm, its best plain rivals and the best null into sentences."""
    best = max(headline["lift"], headline["lift_best_rival"])
    said = [
        f"The best map without a subject lifts by {headline['lift_best_null']:.3f}; `{PRIMARY}` "
        f"and the best plain rival by at most {best:.3f}."
    ]
    for value, key in (("lift", "best_rival"), ("gain", "best_rival_gain")):
        rival, interval = f"the best plain rival, `{headline[key]}`,", headline[f"{value}_ratio_ci"]
        if interval is None:
            said.append(f"By {value}, {rival} is not shown to be above 0; no ratio is given.")
            continue
        low, high = interval
        verdict = f"neither `{PRIMARY}` nor {rival} is shown to be better"
        if high < 1:
            verdict = f"{rival} beats `{PRIMARY}`"
        elif low > 1:
            verdict = f"`{PRIMARY}` beats {rival[:-1]}"
        said.append(f"By {value}, {verdict}: the ratio lies in {low:.2f} to {high:.2f} (95 %).")
    return said


def region_effects(departures: np.ndarray, truth: np.ndarray, signed: bool) -> list[dict]:
    """Return per region the group's mean departure beside its mean true log volume change.

    Both are (N, R), of the same people. Unless `signed`, magnitudes of the group's mean: the sign
    of an intensity departure is not the sign of a volume change.
    """
    means = (values.mean(0) for values in (departures, truth))
    seen, true = (mean if signed else np.abs(mean) for mean in means)
    return [{"region": r, "departure": a, "truth": b} for r, a, b in zip(REGIONS, seen, true)]


def error_against_truth(q: np.ndarray, truth: np.ndarray, settings: Maps, tables: dict) -> dict:
    """Return the headline's FDP and power of DS maps q (N, V), their intervals into `tables`."""
    found = discoveries(q, np.abs(truth), settings.q, settings.truth_change)
    for name, values in zip(("fdp", "power"), found):
        tables[name] = mean("mean", values, settings) | {"people": len(q)}
    tables["fdp"]["unchanged_share"] = float((np.abs(truth) < UNCHANGED).mean())
    return {"fdp_at_q05": found[0].mean(), "power_at_q05": found[1].mean()}

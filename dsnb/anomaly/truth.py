"""What the maps of every candidate are worth where the true change of volume is known."""

import numpy as np
from scipy import stats

from dsnb import record
from dsnb.anomaly import metrics
from dsnb.anomaly.people import PRIMARY, People, Source
from dsnb.anomaly.regions import Ruler
from dsnb.anomaly.tuning import THINNED, FittedNorm

SWAPPED = 3  # others' maps laid over each person's truth


def score(norm: FittedNorm, people: People, euploids: People, changed: np.ndarray) -> tuple:
    """Return average precision (3, N) of people's maps, and lifts (N,) of others' over their truth.

    `changed` (N, V) is the truth in people's own grids; others are euploids (`gain`) and other
    people of the same set (`personal`), a few for each person.
    """

    def precision(maps: np.ndarray, step: int = 1) -> np.ndarray:
        moved = norm.in_own_grid(maps, people.points)
        return metrics.average_precision(np.abs(moved)[:, ::step], changed[:, ::step])

    def lift(maps: np.ndarray) -> np.ndarray:
        places, turns = np.arange(len(changed)), range(1, min(SWAPPED, len(maps) - 1) + 1)
        swaps = (maps[(places + turn) % len(maps)] for turn in turns)
        return np.mean([precision(swap, THINNED)[2] for swap in swaps], axis=0)

    own, healthy = norm.z(people), norm.z(euploids)
    return precision(own), {"gain": lift(healthy), "personal": lift(own)}


def against_truth(source: Source, fitted: dict[str, FittedNorm], people: People, truth) -> tuple:
    """Score every candidate, the nulls and the labelled map on test DS: headline and tables.

    The nulls are SD maps of norms. `labelled` is the mean image z of DS `generator-fit` people,
    known by their labels. `truth` is signed, (N, V), in people's own grids.
    """
    changed = np.abs(truth) > source.study.maps.truth_change
    euploids = source.people(source.rows("euploid", "test"))
    found, swapped = {}, {}
    for number, (name, norm) in enumerate(fitted.items(), start=1):
        found[name], swapped[name] = score(norm, people, euploids, changed)
        record.progress("judge", number, len(fitted))

    def of_all(norm: FittedNorm, values: np.ndarray) -> np.ndarray:
        moved = norm.in_own_grid(np.broadcast_to(values, truth.shape), people.points)
        return metrics.average_precision(np.abs(moved), changed)

    for name, of in zip(metrics.NULLS, (PRIMARY, "tbm")):
        found[name] = of_all(fitted[of], fitted[of].normative.sd)
    labelled = source.rows("DS", "generator-fit")
    if len(labelled):
        mean = fitted["image"].z(source.people(labelled)).mean(0)
        found["labelled"] = of_all(fitted["image"], mean)
    return metrics.compare(found, swapped, source.study.maps)


def judge_ds(ruler: Ruler, fitted: dict, people: People, q: np.ndarray, rows: np.ndarray) -> tuple:
    """Judge the maps of DS test people against the truth: headline and tables.

    `q` (N, V) are the written maps of the people of `rows`, by the norm of the `ruler`.
    """
    norm, tables = ruler.norm, {}
    source, truth = norm.source, norm.source.truth_of(rows)
    own = norm.in_own_grid(q, people.points, outside=1, order=0)
    headline = metrics.error_against_truth(own, truth, source.study.maps, tables)
    tables["regions"] = metrics.region_effects(
        ruler.departures(people), source.region_truth_of(rows), norm.candidate.of_volume
    )
    pairs = np.array([(row["departure"], row["truth"]) for row in tables["regions"]])
    rank = stats.spearmanr(*pairs.T).statistic
    headline["effect_rank_correlation"] = float(rank) if np.isfinite(rank) else None
    found = against_truth(source, fitted, people, truth)
    return headline | found[0], tables | found[1]

"""What stands behind single maps: two sessions, stages of disease, and how euploids vary."""

import numpy as np
import pandas as pd
from scipy import stats

from dsnb.anomaly import metrics, regions
from dsnb.anomaly.people import BY_NAME, Source
from dsnb.anomaly.tuning import fit_model
from dsnb.space import STAGES

LEADING = 20  # components of how euploids vary
FEWEST = 10  # people who came twice, or of a stage


def compare_sessions(ruler: regions.Ruler) -> list[dict]:
    """Return how well two sessions of the same euploid test people agree, a region a row.

    The smallest detectable change is in per cent of local volume, or in intensity.
    """
    source = ruler.norm.source
    again = source.rows("euploid", "repeat", kind="repeat")
    first = source.rows("euploid", "test")
    origin, known = source.table["origin"].iloc[again], source.table["participant_id"].iloc[first]
    place = pd.Index(known).get_indexer(origin)
    again, first = again[place >= 0], first[place[place >= 0]]
    if len(again) < FEWEST:
        return []
    values = np.stack([ruler.departures(source.people(rows)) for rows in (first, again)])
    if ruler.norm.candidate.of_volume:
        values = 100 * np.expm1(values)
    found = zip(regions.REGIONS, *regions.repeatability(values))
    return [
        {"region": r, "people": len(again), "icc": a, "smallest_change": b} for r, a, b in found
    ]


def compare_stages(ruler: regions.Ruler) -> list[dict]:
    """Return how well maps show what a stage of Alzheimer's disease adds, a stage a row.

    Rank correlation over regions between the mean departure and the mean true change, with its
    interval over people: asymptomatic DS against the norm, later stages against asymptomatic
    people, all of them people no norm was made of. Magnitudes where the norm's unit is not volume.
    Nothing where the truth is not known.
    """
    source = ruler.norm.source
    rows = source.rows("DS")
    if not len(rows) or not source.has_truth(rows):
        return []
    seen, truth = ruler.departures(source.people(rows)), source.region_truth_of(rows)
    stage, settings = source.table["stage"].to_numpy()[rows], source.study.maps

    def agree(values: np.ndarray) -> float:
        """Return the rank correlation of (1 + 2R, N): who is at the stage, seen and true."""
        at, both = values[0] == 1, values[1:]
        means = both[:, at].mean(1) - (0 if at.all() else both[:, ~at].mean(1))
        means = means if ruler.norm.candidate.of_volume else np.abs(means)
        return float(stats.spearmanr(*means.reshape(2, -1)).statistic)

    table = []
    for name in STAGES:
        some = (stage == name) | (stage == STAGES[0])
        count = int((stage == name).sum())
        if min(count, (stage == STAGES[0]).sum()) < FEWEST:
            continue
        values = np.concatenate([(stage == name)[None], seen.T, truth.T])[:, some]
        low, high = metrics.bootstrap(values, agree, settings.bootstraps, settings.seed)
        against = "the norm" if name == STAGES[0] else STAGES[0]
        table.append({"stage": name, "against": against, "people": count,
                      "rank_correlation": agree(values), "low": low, "high": high})  # fmt: skip
    return table


def compare_with_variation(source: Source) -> list[dict]:
    """Return how large departures of log volume are, and how much of them is how euploids vary.

    A row each for unseen euploids, for changes planted on euploids as the registration saw them,
    and for the mean of DS `generator-fit` people: root mean square over the brain, and the share
    of its square that leading components of the fit people explain.
    """
    fit_people = source.people(source.rows("euploid", "fit"))
    norm = fit_model(BY_NAME["tbm_pca"], fit_people, LEADING)
    rows = source.rows("euploid", "scale"), source.rows("DS", "generator-fit")
    euploid, ds = (
        people.log_jacobian - norm.expected(people.log_jacobian, people.covariates, 0)
        for people in map(source.people, rows)
    )
    planted = np.asarray(source.responses, np.float32)
    parts = {"one euploid, unseen": euploid, "one planted change": planted}
    if len(ds):
        parts["mean of people with DS"] = ds.mean(0, keepdims=True)
    table = []
    for name, values in parts.items():
        inside = ((values @ norm.components.T) ** 2).sum(1) / (values**2).sum(1)
        size = float(np.sqrt((values**2).mean()))
        table.append({"departure": name, "rms": size, "share_in_variation": inside.mean()})
    return table

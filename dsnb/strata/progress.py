"""A continuous score of how far Alzheimer's disease has come in DS, followed over two sessions."""

from pathlib import Path

import numpy as np
from scipy import stats

from dsnb import dataset, latents
from dsnb.anomaly.regions import repeatability
from dsnb.config import Study
from dsnb.space import STAGES, covariates
from dsnb.strata import crossval
from dsnb.strata.discrimination import sets_of
from dsnb.strata.people import People, known_truth, relative

FEWEST = 10  # people who came twice
DEALS = 3  # of the folds, where people are few


def follow(root: Path, study: Study) -> tuple[dict, dict, dict]:
    """Predict the stage as a number from age, sex, volumes and a set of features beside them.

    First sessions teach; second ones are predicted by the fold that left their person out. The
    rank correlation with the phantom's true progress, agreement of the two sessions (ICC(2,1)), and
    the mean change beside the true one, with intervals by person; with reasons where there is none.
    """
    settings, table = study.strata, latents.load(root)[0]
    if (table.iloc[dataset.select(table, "DS")]["seen_by"] != "n/a").all():
        return {}, {}, {"progress": "nobody with DS whom the VAE never saw"}
    people = People(root, ("DS",), (*dataset.OWN_PEOPLE, "repeat"))
    staged = np.flatnonzero(people.table["stage"].isin(STAGES))
    table = people.table.iloc[staged].reset_index(drop=True)
    first = table["kind"].isin(dataset.OWN_PEOPLE).to_numpy()
    target = table["stage"].map(list(STAGES).index).to_numpy(float)
    if len(np.unique(target[first])) < 2 or first.sum() < 5 * settings.outer_folds:
        return {}, {}, {"progress": f"{first.sum()} staged people with DS are too few or alike"}
    known = covariates(table), relative(people.volumes[staged])
    truth, rows, word = known_truth(root, table), [], "age, sex, volumes"
    asked = {word: crossval.Features(columns=known)}
    for name, features in sets_of(people, study, voxels=False).items():
        asked[f"{word}, {name}"] = features.of(staged).beside(*known)
    for name, features in asked.items():
        score = crossval.predict(table, target, settings, features, first, DEALS)[:, 0]
        true = None if truth is None else truth["progress"].to_numpy(float)
        rows.append({"features": name} | judge(table, first, score, true, settings))
    return {}, {"progress": rows}, {}


def judge(table, first: np.ndarray, score: np.ndarray, truth: np.ndarray | None, settings) -> dict:
    """Return how a score (N,) follows the truth (N,), and what two sessions of a person say."""
    families, row = table["family"].to_numpy(str), {"people": int(first.sum())}

    def rank(rows: np.ndarray) -> float:
        return float(stats.spearmanr(score[rows], truth[rows]).statistic)

    if truth is not None:
        once = np.flatnonzero(first)
        row["rank_correlation"] = rank(once)
        bounds = crossval.interval(lambda rows: rank(once[rows]), families[once], settings)
        row["rank_low"], row["rank_high"] = bounds
    known = {name: place for place, name in enumerate(table["participant_id"])}
    pairs = np.array([
        (known[origin], place) for place, origin in enumerate(table["origin"])
        if not first[place] and origin in known
    ], int).reshape(-1, 2)  # fmt: skip
    row["twice"] = len(pairs)
    if len(pairs) < FEWEST:
        return row
    sessions = score[pairs.T][:, :, None]
    row["icc"] = float(repeatability(sessions)[0][0])
    changes = {"change": score[pairs[:, 1]] - score[pairs[:, 0]]}
    if truth is not None:
        changes["true_change"] = truth[pairs[:, 1]] - truth[pairs[:, 0]]
    for name, values in changes.items():
        row[name] = float(values.mean())
        bounds = crossval.interval(
            lambda rows, values=values: values[rows].mean(), families[pairs[:, 0]], settings
        )
        row[f"{name}_low"], row[f"{name}_high"] = bounds
    return row

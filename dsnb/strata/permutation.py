"""The null of the headline task: labels permuted within site, and where that says nothing."""

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from dsnb.config import Strata
from dsnb.strata import crossval


def permute(target: np.ndarray, site: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return labels shuffled within each site, or over all where every site has one group."""
    if site_is_group(site, target):
        return rng.permutation(target)
    shuffled = target.copy()
    for name in np.unique(site):
        rows = np.flatnonzero(site == name)
        shuffled[rows] = rng.permutation(target[rows])
    return shuffled


def site_is_group(site: np.ndarray, target: np.ndarray) -> bool:
    """Say whether every site holds one group only, so that the two cannot be told apart."""
    counts = pd.crosstab(site, target).to_numpy()
    return len(counts) > 1 and bool((np.count_nonzero(counts, axis=1) == 1).all())


def permutation_p(
    table: pd.DataFrame, target: np.ndarray, kernel: np.ndarray, settings: Strata
) -> float:
    """Return p = (b + 1) / (m + 1) of the AUROC of dot products under permuted labels.

    Observed and permuted labels take one path, fixed before any label was seen: a penalty of one
    mean variance, on the folds of the observed ones.
    """
    crossval.refuse_seen(table)
    rng, site = np.random.default_rng(settings.seed), table["site"].to_numpy(str)
    shuffled = [permute(target, site, rng) for _ in range(settings.permutations)]
    labels = np.stack([target, *shuffled], axis=1).astype(float)
    decision, families = np.empty(labels.shape), table["family"].to_numpy(str)
    for train, test in crossval.split(target, families, settings.outer_folds, settings.seed):
        blocks = crossval.Features(kernel).blocks(train, test)
        decision[test] = crossval.ridge(blocks, (1.0,), labels[train], (1.0,))[0]
    # All labels have equally many people with DS, so their rank sums order as their AUROCs do.
    wins = np.where(labels == 1, rankdata(decision, axis=0), 0).sum(0)
    return float((wins >= wins[0]).sum() / len(wins))

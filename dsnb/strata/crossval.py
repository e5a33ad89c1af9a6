"""Nested cross-validation by family on unseen people, with intervals and a permutation null.

Every question goes to ridge regression on dot products: with few people and many voxels it costs
people x people, its penalties come from one decomposition, and it beat logistic regression on
whitened components, for latents and for volumes alike.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, r2_score, recall_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dsnb.checks import BadInput
from dsnb.config import Strata

LEVEL = 0.05  # two-sided: every interval holds 1 - LEVEL


@dataclass(frozen=True)
class Features:
    """What is told of N people: dot products (N, N) of something large, and sets of columns (N, E).

    Each is one block of variance one; how they are mixed is chosen in inner folds.
    """

    kernel: np.ndarray | None = None
    columns: tuple[np.ndarray, ...] = ()

    def of(self, rows: np.ndarray) -> "Features":
        """Return those of some people."""
        kernel = None if self.kernel is None else self.kernel[np.ix_(rows, rows)]
        return Features(kernel, tuple(block[rows] for block in self.columns))

    def beside(self, *columns: np.ndarray) -> "Features":
        """Return these features with further sets of columns."""
        return Features(self.kernel, (*self.columns, *columns))

    def blocks(self, train: np.ndarray, test: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return each block's dot products within train and of test with train people.

        What is missing takes the median; centre, scale and median are those of train people.
        """
        found = []
        if self.kernel is not None:
            found.append((self.kernel[np.ix_(train, train)], self.kernel[np.ix_(test, train)]))
        for block in self.columns:
            steps = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
            known, new = steps.fit_transform(block[train]), steps.transform(block[test])
            found.append((known @ known.T, new @ known.T))
        return [_centre(*pair) for pair in found]


def _centre(known: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return dot products less the mean of train people, in units of their mean variance.

    Of a test person's own constant nothing is taken: the weights of train people sum to zero.
    """
    middle = known.mean(0)
    centred = known - middle - (middle - known.mean())[:, None]
    unit = max(float(np.trace(centred)) / len(known), np.finfo(float).tiny)
    return centred / unit, (new - middle) / unit


def mixtures(blocks: int) -> list[tuple[float, ...]]:
    """Return the weights of blocks that are tried: quarters (or finer) that sum to one."""
    parts = max(4, blocks)
    tried = product(range(1, parts + 1), repeat=blocks)
    return [tuple(w / parts for w in weights) for weights in tried if sum(weights) == parts]


def refuse_seen(table: pd.DataFrame) -> None:
    """Refuse rows that a model of this analysis has seen in training or in its early choice."""
    seen = table[~table["seen_by"].isin(["", "n/a"])]
    if len(seen):
        raise BadInput(
            "E-SEEN", "latents/participants.tsv", "seen_by", seen["seen_by"].iloc[0],
            f"nobody seen ({len(seen)} of {len(table)} rows are)", "select unseen people",
        )  # fmt: skip


def too_few(target: np.ndarray, families: np.ndarray, classes: int, settings: Strata) -> str | None:
    """Return why `target` (N,) cannot be cross-validated by family, or None when it can."""
    counts = [len(np.unique(families[target == c])) for c in range(classes)]
    needed = 2 * settings.outer_folds
    if np.count_nonzero(counts) < 2:
        return "one class only: sensitivity alone could be reported, an AUROC cannot"
    if min(counts) < needed:
        return f"{min(counts)} families in the smallest class, {needed} needed for the outer folds"
    return None


def auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Return the area under the ROC curve by ranks; NaN when one class is absent."""
    wins = rankdata(score)[positive].sum()
    n_positive, n_negative = positive.sum(), (~positive).sum()
    if not n_positive or not n_negative:
        return np.nan
    return float((wins - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def ordinal_auroc(target: np.ndarray, probability: np.ndarray) -> float:
    """Return the mean AUROC of `target` >= c over the cuts c; the plain one for two classes.

    `target` is (N,) of 0..K-1 and `probability` (N, K).
    """
    cuts = range(1, probability.shape[1])
    return float(np.mean([auroc(target >= c, probability[:, c:].sum(1)) for c in cuts]))


def is_score(target: np.ndarray) -> bool:
    """Say whether a target (N,) is a score to predict, and not a class 0..K-1."""
    return target.dtype.kind == "f"


def agreement(target: np.ndarray, answer: np.ndarray) -> float:
    """Return the ordinal AUROC of classes, or R2 of a score; `answer` as `predict` gives it."""
    if is_score(target):
        return float(r2_score(target, answer[:, 0]))
    return ordinal_auroc(target, answer)


def outcomes(target: np.ndarray, classes: int) -> np.ndarray:
    """Return what is regressed: whether the class is >= c, by cut (N, K-1); or a score (N, 1)."""
    if is_score(target):
        return target[:, None]
    return (target[:, None] >= np.arange(1, classes)).astype(float)


def ridge(
    blocks: list, weights: tuple[float, ...], outcome: np.ndarray, penalties: tuple[float, ...]
) -> list[np.ndarray]:
    """Return predicted outcomes of test people (M, C) for each penalty (in mean variances)."""
    known, new = (sum(w * pair[i] for w, pair in zip(weights, blocks)) for i in (0, 1))
    values, vectors = np.linalg.eigh(known)
    mean = outcome.mean(0)
    turned, new = vectors.T @ (outcome - mean), new @ vectors
    return [new @ (turned / (values.clip(0)[:, None] + p)) + mean for p in penalties]


def split(target: np.ndarray, families: np.ndarray, folds: int, seed: int) -> list:
    """Return (train, test) row numbers, stratified by class or fifths of a score, by family."""
    classes = pd.qcut(target, 5, labels=False, duplicates="drop") if is_score(target) else target
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(parts.split(classes, classes, families))


def fit(
    features: Features, target: np.ndarray, families: np.ndarray, train: np.ndarray,
    test: np.ndarray, settings: Strata,
) -> np.ndarray:  # fmt: skip
    """Return the answer for test people, everything chosen and fitted on train people.

    Mixture and penalty are the best of the inner folds, whose predictions also set how a predicted
    outcome becomes a probability, classes weighing the same (Platt 1999).
    """
    outcome = outcomes(target, 0 if is_score(target) else int(target.max()) + 1)
    count = (features.kernel is not None) + len(features.columns)
    tried = list(product(mixtures(count), settings.penalties))
    inner = np.empty((len(tried), *outcome[train].shape))
    for learn, check in split(target[train], families[train], settings.inner_folds, settings.seed):
        blocks = features.blocks(train[learn], train[check])
        inner[:, check] = [
            found for weights in mixtures(count)
            for found in ridge(blocks, weights, outcome[train[learn]], settings.penalties)
        ]  # fmt: skip
    agreed = [_agree(outcome[train], found, is_score(target)) for found in inner]
    best = int(np.nanargmax(agreed))
    weights, penalty = tried[best]
    found = ridge(features.blocks(train, test), weights, outcome[train], (penalty,))[0]
    if is_score(target):
        return found
    return _as_probability(outcome[train], inner[best], found)


def _agree(outcome: np.ndarray, found: np.ndarray, score: bool) -> float:
    """Return R2 of a score, or the mean AUROC over cuts."""
    if score:
        return r2_score(outcome, found)
    return np.mean([auroc(one == 1, by) for one, by in zip(outcome.T, found.T)])


def _as_probability(outcome: np.ndarray, known: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return probabilities (M, K) of predicted outcomes (M, K-1), learnt on known ones (N, K-1)."""
    beyond = [np.ones(len(found))]
    for cut in range(outcome.shape[1]):
        model = LogisticRegression(C=1e6, class_weight="balanced")
        model.fit(known[:, [cut]], outcome[:, cut])
        beyond.append(np.minimum(beyond[-1], model.predict_proba(found[:, [cut]])[:, 1]))
    return -np.diff(np.stack([*beyond, np.zeros(len(found))]), axis=0).T


def predict(
    table: pd.DataFrame,
    target: np.ndarray,
    settings: Strata,
    features: Features,
    learners: np.ndarray | None = None,
    repeats: int = 1,
) -> np.ndarray:
    """Return out-of-fold answers: probabilities (N, K) of classes 0..K-1, or scores (N, 1).

    Mixture and penalty are chosen in inner folds; answers are averaged over `repeats`
    deals of the folds. Only `learners` (N,) bool train, a later session say does not. Rows seen by
    a model are refused.
    """
    refuse_seen(table)
    families, answers = table["family"].to_numpy(str), []
    learners = np.ones(len(target), bool) if learners is None else learners
    for repeat in range(repeats):
        answer = np.empty((len(target), 1 if is_score(target) else target.max() + 1))
        for train, test in split(target, families, settings.outer_folds, settings.seed + repeat):
            some = train[learners[train]]
            answer[test] = fit(features, target, families, some, test, settings)
        answers.append(answer)
    return np.mean(answers, axis=0)


def interval(statistic, families: np.ndarray, settings: Strata) -> list[float]:
    """Return the 95 % percentile interval of `statistic(rows)` over families, twins included."""
    rng, values = np.random.default_rng(settings.seed), []
    members = [np.flatnonzero(families == family) for family in np.unique(families)]
    for _ in range(settings.bootstraps):
        drawn = rng.integers(len(members), size=len(members))
        values.append(statistic(np.concatenate([members[i] for i in drawn])))
    return np.nanquantile(values, [LEVEL / 2, 1 - LEVEL / 2]).tolist()


def gain(
    target: np.ndarray, better: np.ndarray, base: np.ndarray, families: np.ndarray, settings: Strata
) -> tuple[float, list[float]]:
    """Return the agreement of `better` minus that of `base` and its paired 95 % interval."""

    def difference(rows: np.ndarray) -> float:
        return agreement(target[rows], better[rows]) - agreement(target[rows], base[rows])

    return difference(np.arange(len(target))), interval(difference, families, settings)


def score(
    name: str, target: np.ndarray, answer: np.ndarray, families: np.ndarray, settings: Strata,
    classes: tuple[str, ...] = (),
) -> dict:  # fmt: skip
    """Return one table row for out-of-fold answers of `predict`; intervals are by person.

    `classes` name 0..K-1. Brier score and calibration slope are class-balanced, as the classifier
    is, and for two classes only; a slope above 10 (a perfect separation has none) is left out.
    """
    low, high = interval(lambda rows: agreement(target[rows], answer[rows]), families, settings)
    word, value = "r2" if is_score(target) else "auc", agreement(target, answer)
    row = {"features": name, "people": len(target), word: value, f"{word}_low": low,
           f"{word}_high": high}  # fmt: skip
    if is_score(target):
        return row | {"mean_error": float(np.abs(answer[:, 0] - target).mean())}
    called = answer.argmax(1)
    row["bacc"] = balanced_accuracy_score(target, called)
    for word, recall in zip(classes, recall_score(target, called, average=None)):
        row[f"sensitivity_{word}"] = recall
    if answer.shape[1] > 2:
        return row | {"kappa": cohen_kappa_score(target, called, weights="quadratic")}
    weights = len(target) / 2 / np.bincount(target)[target]
    row["brier"] = np.average((answer[:, 1] - target) ** 2, weights=weights)
    clipped = np.clip(answer[:, 1], 1e-6, 1 - 1e-6)
    logits = np.log(clipped / (1 - clipped))[:, None]
    slope = LogisticRegression(C=1e6, class_weight="balanced").fit(logits, target).coef_[0, 0]
    return row | {"calibration_slope": slope if slope <= 10 else None}

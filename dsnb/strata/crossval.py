"""Nested cross-validation by family on unseen people, with intervals and a permutation null.

Principal components are fitted on the training part of every outer fold: a kernel PCA on dot
products equals PCA of the latents, at the cost of people x people instead of people x voxels.
"""

from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.decomposition import KernelPCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, recall_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dsnb import record
from dsnb.checks import BadInput
from dsnb.config import Strata
from dsnb.space import GROUPS, STAGES

LEVEL = 0.05  # two-sided: every interval holds 1 - LEVEL


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


def _scale(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both for the classifier: median for what is missing, then unit variance, of train.

    Whitened components with a strong penalty come close to linear discriminant analysis with a
    shrunken covariance; components in their own variance found less.
    """
    steps = make_pipeline(SimpleImputer(strategy="median"), StandardScaler()).fit(train)
    return steps.transform(train), steps.transform(test)


def _classifier(penalty: float) -> LogisticRegression:
    return LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000)


def _reduce(
    kernel: np.ndarray | None, extras: np.ndarray, train: np.ndarray, test: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return features of train and test, extras first, then components fitted on train alone."""
    if kernel is None:
        return extras[train], extras[test], 0
    count = min(most, len(train) - 1)
    pca = KernelPCA(count, kernel="precomputed", eigen_solver="dense")
    fitted = pca.fit_transform(kernel[np.ix_(train, train)])
    others = pca.transform(kernel[np.ix_(test, train)])
    return np.hstack([extras[train], fitted]), np.hstack([extras[test], others]), count


def _choose(
    features: np.ndarray, target: np.ndarray, families: np.ndarray, widths: list, settings: Strata
) -> tuple[int, float]:
    """Return the width and penalty with the best inner-fold AUROC."""
    inner = StratifiedGroupKFold(settings.inner_folds, shuffle=True, random_state=settings.seed)
    scores: dict[tuple[int, float], list[float]] = {}
    for train, test in inner.split(features, target, families):
        fitted, others = _scale(features[train], features[test])
        for width, penalty in product(widths, settings.penalties):
            model = _classifier(penalty).fit(fitted[:, :width], target[train])
            found = ordinal_auroc(target[test], model.predict_proba(others[:, :width]))
            scores.setdefault((width, penalty), []).append(found)
    return max(scores, key=lambda choice: np.nanmean(scores[choice]))


def outer_folds(table: pd.DataFrame, target: np.ndarray, settings: Strata) -> list:
    """Return (train, test) row numbers, stratified by `target` and split by family."""
    folds = StratifiedGroupKFold(settings.outer_folds, shuffle=True, random_state=settings.seed)
    return list(folds.split(target, target, table["family"].to_numpy(str)))


def predict(
    table: pd.DataFrame,
    target: np.ndarray,
    settings: Strata,
    kernel: np.ndarray | None = None,
    extras: np.ndarray | None = None,
) -> np.ndarray:
    """Return out-of-fold probabilities (N, K) of the classes 0..K-1 of `target` (N,).

    `kernel` (N, N) holds dot products of latents, `extras` (N, E) further features; components
    and penalty are chosen in inner folds. Rows seen by a model are refused.
    """
    refuse_seen(table)
    extras = np.empty((len(target), 0)) if extras is None else extras
    families = table["family"].to_numpy(str)
    probability = np.empty((len(target), target.max() + 1))
    for train, test in outer_folds(table, target, settings):
        most = max(settings.components)
        fitted, others, count = _reduce(kernel, extras, train, test, most)
        widths = sorted({min(c, count) + extras.shape[1] for c in settings.components})
        width, penalty = _choose(fitted, target[train], families[train], widths, settings)
        fitted, others = _scale(fitted, others)
        model = _classifier(penalty).fit(fitted[:, :width], target[train])
        probability[test] = model.predict_proba(others[:, :width])
    return probability


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
    """Return the AUROC of `better` minus that of `base` and its paired 95 % interval."""

    def difference(rows: np.ndarray) -> float:
        return ordinal_auroc(target[rows], better[rows]) - ordinal_auroc(target[rows], base[rows])

    return difference(np.arange(len(target))), interval(difference, families, settings)


def score(
    name: str, target: np.ndarray, probability: np.ndarray, families: np.ndarray, settings: Strata
) -> dict:
    """Return one table row for out-of-fold probabilities (N, K); intervals are by person.

    Brier score and calibration slope are class-balanced, as the classifier is, and for two
    classes only; a slope above 10 (a perfect separation has none) is left out.
    """
    low, high = interval(
        lambda rows: ordinal_auroc(target[rows], probability[rows]), families, settings
    )
    called = probability.argmax(1)
    row = {
        "features": name,
        "people": len(target),
        "auc": ordinal_auroc(target, probability),
        "auc_low": low,
        "auc_high": high,
        "bacc": balanced_accuracy_score(target, called),
    }
    names = GROUPS if probability.shape[1] == 2 else STAGES
    for word, recall in zip(names, recall_score(target, called, average=None)):
        row[f"sensitivity_{word}"] = recall
    if probability.shape[1] == 2:
        weights = len(target) / 2 / np.bincount(target)[target]
        row["brier"] = np.average((probability[:, 1] - target) ** 2, weights=weights)
        clipped = np.clip(probability[:, 1], 1e-6, 1 - 1e-6)
        logits = np.log(clipped / (1 - clipped))[:, None]
        slope = LogisticRegression(C=1e6, class_weight="balanced").fit(logits, target).coef_[0, 0]
        row["calibration_slope"] = slope if slope <= 10 else None
    else:
        row["kappa"] = cohen_kappa_score(target, called, weights="quadratic")
    return row


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
    """Return p = (b + 1) / (m + 1) of the AUROC of latents under permuted labels.

    Observed and permuted labels take one fixed path: the middle of each grid of settings, set
    before any label was seen, on folds and components that are shared by all permutations.
    """
    refuse_seen(table)
    rng = np.random.default_rng(settings.seed)
    site = table["site"].to_numpy(str)
    penalty = sorted(settings.penalties)[len(settings.penalties) // 2]
    count = sorted(settings.components)[len(settings.components) // 2]
    empty = np.empty((len(target), 0))
    folds = outer_folds(table, target, settings)
    parts = []
    for train, test in folds:
        fitted, others, _ = _reduce(kernel, empty, train, test, count)
        parts.append((train, test, *_scale(fitted, others)))

    def statistic(labels: np.ndarray) -> float:
        decision = np.empty(len(labels))
        for train, test, fitted, others in parts:
            if len(np.unique(labels[train])) < 2:
                return 0.5  # a permutation that leaves one class in a fold predicts nothing
            model = _classifier(penalty).fit(fitted, labels[train])
            decision[test] = model.decision_function(others)
        return auroc(labels == 1, decision)

    observed, beyond = statistic(target), 0
    for draw in range(settings.permutations):
        beyond += statistic(permute(target, site, rng)) >= observed
        record.progress("permutations", draw + 1, settings.permutations)
    return (beyond + 1) / (settings.permutations + 1)

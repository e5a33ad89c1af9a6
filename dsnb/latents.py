"""The VAE's latents of everybody: their posteriors, their statistics, and who was seen by whom."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dsnb import bids, dataset, record, vae
from dsnb.config import Study

CODE = ("latents", "vae/networks", "vae/task", "dataset")
SEEN_SPLITS = ("fit", "validation")  # what a VAE learnt from, and what chose its checkpoint
UNSEEN_EUPLOID = ("scale", "calibration", "test")
LEAST = 10  # people a side, below which no classifier is fitted
COMPONENTS = 10  # of the latents, for the leak floor
BOOTSTRAPS = 1000


def seen_by(table: pd.DataFrame, model: str = "vae") -> pd.Series:
    """Name the models that saw each row's family (`vae` or empty), so that twins are not unseen."""
    known = (table["group"] == "euploid") & table["split"].isin(SEEN_SPLITS)
    families = set(table.loc[known, "family"])
    return table["family"].isin(families).map({True: model, False: "n/a"})


def encode(root: Path, study: Study) -> None:
    """Encode every prepared volume: posterior mean and log-variance, and fit people's statistics.

    The statistics (mean and SD of each channel over fit people and positions) standardise latents
    for diffusion; there is no default for them.
    """
    settings = {"model": "runs/vae"}
    product = record.begin(root, "latents", "encode", settings, ("prepared", "runs/vae"), CODE)
    if product.done:
        return
    model, table = vae.load(root), dataset.load_table(root)
    volumes, parts = dataset.load_volumes(root), []
    for part in vae.batches(len(volumes), 32):
        parts.append(vae.encode(model, volumes[part]))
        record.progress("encode", min(part.stop, len(volumes)), len(volumes))
    mean, logvar = (np.concatenate(values) for values in zip(*parts))  # (N, C, d, h, w)
    fit = mean[dataset.select(table, "euploid", "fit")]
    np.save(product.folder / "mean.npy", mean)
    np.save(product.folder / "logvar.npy", logvar)
    np.savez(
        product.folder / "statistics.npz", mean=fit.mean((0, 2, 3, 4)), std=fit.std((0, 2, 3, 4))
    )
    table["seen_by"] = seen_by(table)
    bids.write_table(product.folder / "participants.tsv", table)
    product.finish()


def load(root: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return table, posterior mean and log-variance (N, C, d, h, w), and channel statistics."""
    table, folder = dataset.load_table(root, "latents"), root / "latents"
    mean, logvar = (
        np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in ("mean", "logvar")
    )
    with np.load(folder / "statistics.npz", allow_pickle=False) as file:
        return table, mean, logvar, dict(file)


def shift_sd(reference: np.ndarray, patients: np.ndarray, euploids: np.ndarray) -> float:
    """Return how far unseen patients lie from unseen euploids, in SD of the latter.

    The axis is the mean difference of half of the patients to `reference` people; the shift is
    measured along it on the other half, and the two halves are averaged, so no one chooses the
    axis they are measured on. All are (N, D).
    """
    shifts = []
    for first in (0, 1):
        axis = patients[first::2].mean(0) - reference.mean(0)
        shown, base = patients[1 - first :: 2] @ axis, euploids @ axis
        shifts.append((shown.mean() - base.mean()) / base.std(ddof=1))
    return float(np.mean(shifts))


def leak_floor(unseen: np.ndarray, seen: np.ndarray, seed: int = 0) -> dict:
    """Tell unseen from seen euploids (N, D) by cross-validated logistic regression on components.

    An AUC above 0.5 says that having been trained on leaves a mark, which no later contrast
    between a seen and an unseen group may exploit. Interval by bootstrap over people.
    """
    rows = np.concatenate([unseen, seen])
    label = np.repeat([1, 0], [len(unseen), len(seen)])
    components = min(COMPONENTS, len(rows) // 4)
    model = make_pipeline(
        PCA(components, svd_solver="full"),
        StandardScaler(),
        LogisticRegression(class_weight="balanced", C=0.1),
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    score = cross_val_predict(model, rows, label, cv=folds, method="decision_function")
    one, other = score[label == 1][:, None], score[label == 0]
    wins = (one > other) + 0.5 * (one == other)  # (unseen, seen); their mean is the AUC
    rng, draws = np.random.default_rng(seed), []
    for _ in range(BOOTSTRAPS):
        people = [rng.integers(0, size, size) for size in wins.shape]
        draws.append(wins[np.ix_(*people)].mean())
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"auc": wins.mean(), "low": low, "high": high, "unseen": len(unseen), "seen": len(seen)}


def summarise(root: Path, study: Study) -> dict:
    """Describe the latents: size, spread over components, shift of DS, and the leak floor."""
    table, mean, logvar, statistics = load(root)
    standard = (mean - statistics["mean"][:, None, None, None]) / statistics["std"][
        :, None, None, None
    ]
    flat = standard.reshape(len(mean), -1)
    fit, unseen = (
        flat[dataset.select(table, "euploid", *splits)] for splits in (("fit",), UNSEEN_EUPLOID)
    )
    patients = dataset.select(table, "DS")
    patients = flat[patients[table.iloc[patients]["seen_by"] == "n/a"]]
    pca = PCA(svd_solver="full").fit(fit)
    headline = {
        "latent_size": int(np.prod(mean.shape[1:])),
        "pca_variance_2": float(pca.explained_variance_ratio_[:2].sum()),
        "ds_shift_sd": None,
        "leak_floor_auc": None,
    }
    tables = {"spectrum": _spectrum(pca), "channels": _channels(statistics, logvar), "reasons": {}}
    few = {"ds_shift_sd": len(patients), "leak_floor_auc": min(len(fit), len(unseen))}
    for name, people in few.items():
        if people < LEAST:
            tables["reasons"][name] = f"{people} unseen people, fewer than {LEAST}"
    if "ds_shift_sd" not in tables["reasons"]:
        headline["ds_shift_sd"] = shift_sd(fit, patients, unseen)
    if "leak_floor_auc" not in tables["reasons"]:
        tables["leak_floor"] = leak_floor(unseen, fit)
        headline["leak_floor_auc"] = float(tables["leak_floor"]["auc"])
    tables["components"] = _positions(pca, table, flat)
    return {"headline": headline, "tables": record.plain(tables), "timing": {}}


def _spectrum(pca: PCA) -> list[dict]:
    """Return the cumulative variance of fit people's latents by number of components."""
    shares = pca.explained_variance_ratio_.cumsum()
    kept = [n for n in (1, 2, 5, 10, 20, 40, 80, 160) if n <= len(shares)]
    return [{"components": n, "variance": shares[n - 1]} for n in kept]


def _channels(statistics: dict[str, np.ndarray], logvar: np.ndarray) -> list[dict]:
    """Return each channel's mean, SD over fit people, and mean posterior SD."""
    posterior = np.exp(0.5 * np.asarray(logvar)).mean((0, 2, 3, 4))
    return [
        {"channel": c, "mean": mean, "sd": std, "posterior_sd": posterior[c]}
        for c, (mean, std) in enumerate(zip(statistics["mean"], statistics["std"]))
    ]


def _positions(pca: PCA, table: pd.DataFrame, flat: np.ndarray) -> list[dict]:
    """Return group means and SDs on the first two components, by group and seen or unseen."""
    own = np.flatnonzero(table["kind"].isin(dataset.OWN_PEOPLE))
    frame = table.iloc[own][["group", "seen_by"]].reset_index(drop=True)
    frame[["pc1", "pc2"]] = pca.transform(flat[own])[:, :2]
    rows = []
    for (group, seen), part in frame.groupby(["group", "seen_by"]):
        if len(part) >= 5:  # a smaller cell would point at people
            spread = {f"{pc}_{what}": getattr(part[pc], what)() for pc in ("pc1", "pc2")
                      for what in ("mean", "std")}  # fmt: skip
            rows.append({"group": group, "seen_by": seen, "people": len(part), **spread})
    return rows

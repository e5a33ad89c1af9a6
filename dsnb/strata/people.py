"""The unseen people of a question and what can be told of them: latents, rivals, confounders."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from dsnb import bids, dataset, latents, record, rivals
from dsnb.anomaly import undo
from dsnb.config import Study
from dsnb.space import REGIONS, covariates, load_template
from dsnb.strata.crossval import Features
from dsnb.strata.permutation import site_is_group

APART = 5.0  # years between two matched people at most


class People:
    """Unseen people of some groups: table, group (N,) as 0 or 1, latents and estimated volumes."""

    def __init__(self, root: Path, groups: tuple[str, ...], kind: tuple = dataset.OWN_PEOPLE):
        table, z, _, statistics = latents.load(root)
        rows = np.concatenate([dataset.select(table, group, kind=kind) for group in groups])
        rows = rows[table["seen_by"].iloc[rows].isin(["", "n/a"]).to_numpy()]
        self.root, self.table = root, table.iloc[rows].reset_index(drop=True)
        self.families = self.table["family"].to_numpy(str)
        self.target = (self.table["group"] == "DS").to_numpy(int)
        self.latents = Features(dot_products(standardise(z[rows], statistics)))
        self.volumes = _estimated_volumes(root, self.table)  # (N, R) ml

    def others(self, study: Study) -> dict[str, Features]:
        """Return dot products of voxels, of log-Jacobians, and of what `undo` sees in these."""
        brain = load_template(study.grid).brain
        place = pd.Index(dataset.load_table(self.root)["participant_id"])
        rows = place.get_indexer(self.table["participant_id"])
        voxels, deformation = (
            np.stack([np.asarray(values[row], np.float32)[brain] for row in rows])
            for values in (dataset.load_volumes(self.root), rivals.load_deformation(self.root)[1])
        )
        found = {"voxels": voxels, "deformation": deformation}
        if (self.root / undo.RUN).is_dir():  # not where people were too few for a norm
            net = undo.load(self.root, study)
            found["undone"] = undo.find(net, deformation, covariates(self.table))
        return {name: Features(dot_products(values)) for name, values in found.items()}


def dot_products(values: np.ndarray) -> np.ndarray:
    """Return the (N, N) dot products of values (N, ...), less their mean, per element."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    flat = flat - flat.mean(0)  # only for precision: every fold takes its own mean off
    return flat @ flat.T / flat.shape[1]


def standardise(z: np.ndarray, statistics: dict) -> np.ndarray:
    """Return latents (N, C, d, h, w) in units of their channels' SD."""
    mean, sd = (np.asarray(statistics[k]).reshape(-1, 1, 1, 1) for k in ("mean", "std"))
    return (z - mean) / sd


def _estimated_volumes(root: Path, table: pd.DataFrame) -> np.ndarray:
    """Return the registration's region volumes (N, R) in ml, in the row order of `table`."""
    record.require(root, "deformation")
    volumes = bids.typed(bids.read_table(root / "deformation" / "volumes.tsv"))
    volumes = volumes.set_index("participant_id")
    return volumes.loc[table["participant_id"], list(REGIONS)].to_numpy(float)


def relative(volumes: np.ndarray) -> np.ndarray:
    """Return the log share of each region (N, R) in the sum of all, so that size is removed."""
    return np.log(volumes / volumes.sum(1, keepdims=True))


def known_truth(root: Path, table: pd.DataFrame) -> pd.DataFrame | None:
    """Return the phantom's truth of people, in their order; None where somebody's is unknown."""
    path = root / "raw" / "derivatives" / "truth" / "truth.tsv"
    if not path.is_file():
        return None
    truth = bids.typed(bids.read_table(path)).set_index("participant_id")
    known = table["participant_id"].isin(truth.index).all()
    return truth.loc[table["participant_id"]] if known else None


def true_volumes(root: Path, table: pd.DataFrame) -> np.ndarray | None:
    """Return the phantom's true region volumes (N, R) in ml, None where somebody's are unknown."""
    truth = known_truth(root, table)
    return None if truth is None else truth[[f"{name}_after" for name in REGIONS]].to_numpy(float)


def confounders(people: People) -> dict[str, np.ndarray]:
    """Return the feature tables (N, E) that know nothing of the latents, by name.

    A covariate that nobody has, or one site only, is left out. Where a site holds one group only
    it is no part of the joint set: it would answer the question by itself.
    """
    table = people.table
    found = {"age and sex": covariates(table)}
    if table["motion"].notna().any():
        found["motion"] = table[["motion"]].to_numpy(float)
    joint = list(found.values())
    if table["site"].nunique() > 1:
        found["site"] = pd.get_dummies(table["site"]).to_numpy(float)
        if not site_is_group(table["site"], people.target):
            joint.append(found["site"])
    found["age, sex, site, motion"] = np.hstack(joint)
    if table["tiv_ml"].notna().any():
        found["head size"] = table[["tiv_ml"]].to_numpy(float)
    return found


def match(table: pd.DataFrame, target: np.ndarray) -> np.ndarray:
    """Return rows of people of both groups in pairs of one sex, at most 5 years apart.

    As many pairs as there can be, and the closest of those.
    """
    chosen = []
    for sex in table["sex"].unique():
        sides = [np.flatnonzero((table["sex"] == sex) & (target == group)) for group in (0, 1)]
        ages = [table["age"].to_numpy(float)[side] for side in sides]
        apart = np.abs(ages[0][:, None] - ages[1])
        pairs = linear_sum_assignment(np.where(apart <= APART, apart, 1e6))
        close = apart[pairs] <= APART
        chosen += [side[rows[close]] for side, rows in zip(sides, pairs)]
    return np.sort(np.concatenate(chosen))

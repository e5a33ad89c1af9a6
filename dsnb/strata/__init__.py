"""From latents to discrimination, staging and strata, on people whom the VAE never saw."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import bids, dataset, latents, phantom, record
from dsnb.config import Cohort, Strata, Study
from dsnb.space import REGIONS, STAGES, covariates
from dsnb.strata import structure
from dsnb.strata.crossval import (
    gain, interval, permutation_p, permute, predict, refuse_seen, score, site_is_group, too_few,
)  # fmt: skip

HARD = "the hard arm (a severity chosen on another cohort) needs a second phantom seed"


class People:
    """The unseen people of one question: table, target, dot products of latents, covariates."""

    def __init__(self, root: Path, groups: tuple[str, ...]):
        table, z, _, statistics = latents.load(root)
        rows = np.concatenate([dataset.select(table, group) for group in groups])
        rows = rows[table["seen_by"].iloc[rows].isin(["", "n/a"]).to_numpy()]
        self.table = table.iloc[rows].reset_index(drop=True)
        refuse_seen(self.table)
        self.families = self.table["family"].to_numpy(str)
        self.target = (self.table["group"] == "DS").to_numpy(int)
        self.kernel = dot_products(z[rows], statistics)
        self.volumes = _estimated_volumes(root, self.table)  # (N, R) ml


def dot_products(z: np.ndarray, statistics: dict) -> np.ndarray:
    """Return the (N, N) dot products of latents (N, C, d, h, w) in units of their channels' SD."""
    mean, sd = (np.asarray(statistics[k]).reshape(-1, 1, 1, 1) for k in ("mean", "std"))
    flat = ((z - mean) / sd).reshape(len(z), -1).astype(np.float64)
    return flat @ flat.T


def _estimated_volumes(root: Path, table: pd.DataFrame) -> np.ndarray:
    """Return the registration's region volumes (N, R) in ml, in the row order of `table`."""
    record.require(root, "deformation")
    volumes = bids.typed(bids.read_table(root / "deformation" / "volumes.tsv"))
    return volumes.set_index("participant_id").loc[table["participant_id"], list(REGIONS)].to_numpy(float)


def relative(volumes: np.ndarray) -> np.ndarray:
    """Return the log share of each region (N, R) in the sum of all, so that size is removed."""
    return np.log(volumes / volumes.sum(1, keepdims=True))


def true_volumes(root: Path, study: Study, table: pd.DataFrame) -> np.ndarray | None:
    """Return the phantom's true region volumes (N, R) in ml, or None where data are real.

    People with DS have theirs in the truth table; a euploid's follow from the seed.
    """
    if json.loads((root / "study.json").read_text())["data"] != "phantom":
        return None
    truth = dataset.load_truth(root)[0].set_index("participant_id")
    people = phantom.draw_people(study.cohort).set_index("participant_id")
    columns = [f"{name}_after" for name in REGIONS]
    rows = []
    for done, name in enumerate(table["participant_id"], start=1):
        if name in truth.index:
            rows.append(truth.loc[name, columns].to_numpy(float))
        else:
            own = phantom.individual_velocity(people.loc[name], study.cohort.seed)
            rows.append(phantom.measure(phantom.exponentiate(own)))
        record.progress("true volumes", done, len(table))
    return np.array(rows)


def confounders(people: People) -> dict[str, np.ndarray]:
    """Return the feature tables (N, E) that know nothing of the latents, by name.

    A covariate that nobody has, or one site only, is left out. Where a site holds one group only
    it is no part of the joint set: it would answer the question by itself.
    """
    table = people.table
    found = {"age and sex": covariates(table)}
    if table["site"].nunique() > 1:
        found["site"] = pd.get_dummies(table["site"]).to_numpy(float)
    if table["motion"].notna().any():
        found["motion"] = table[["motion"]].to_numpy(float)
    joint = [v for k, v in found.items() if k != "site" or not site_is_group(table["site"], people.target)]
    found["age, sex, site, motion"] = np.hstack(joint)
    if table["tiv_ml"].notna().any():
        found["head size"] = table[["tiv_ml"]].to_numpy(float)
    return found


def discriminate(people: People, oracle: np.ndarray | None, settings: Strata) -> tuple[dict, dict, dict]:
    """Ask every set of features for DS against euploid; return headline, tables, reasons."""
    target, families, reasons = people.target, people.families, {}
    rng = np.random.default_rng(settings.seed)
    size = people.table[["tiv_ml"]].to_numpy(float)
    sets = {"latents": (people.kernel, None), "estimated volumes": (None, relative(people.volumes))}
    sets |= {name: (None, extras) for name, extras in confounders(people).items()}
    if "head size" in sets:
        sets["latents and head size"] = (people.kernel, size)
    if oracle is not None:
        sets["true volumes"] = (None, relative(oracle))
    found, rows = {}, {}
    for done, (name, (kernel, extras)) in enumerate(sets.items(), start=1):
        found[name] = predict(people.table, target, settings, kernel, extras)
        rows[name] = score(name, target, found[name], families, settings)
        record.progress("discrimination", done, len(sets))
    shuffled = permute(target, people.table["site"].to_numpy(str), rng)
    null = predict(people.table, shuffled, settings, people.kernel)
    rows["null"] = score("latents, labels permuted", shuffled, null, families, settings)
    if site_is_group(people.table["site"], target):
        reasons["site"] = "not separable: every site holds one group only"
    if "head size" not in sets:
        reasons["bacc_ds_with_size"] = "no head size in participants.tsv"
    if oracle is None:
        reasons["auc_ds_oracle"] = "true volumes are known for the phantom only"
    ahead, ahead_ci = gain(target, found["latents"], found["estimated volumes"], families, settings)
    nothing: dict = {}
    headline = {
        "bacc_ds_with_size": rows.get("latents and head size", nothing).get("bacc"),
        "auc_ds": rows["latents"]["auc"],
        "auc_ds_volumes": rows["estimated volumes"]["auc"],
        "auc_ds_confounds": rows["age, sex, site, motion"]["auc"],
        "auc_ds_oracle": rows.get("true volumes", nothing).get("auc"),
        "auc_ds_gain": ahead,
        "auc_ds_gain_ci": ahead_ci,
        "permutation_p": permutation_p(people.table, target, people.kernel, settings),
    }
    return headline, {"discrimination": list(rows.values())}, reasons


def stage(people: People, settings: Strata) -> tuple[dict, dict, dict]:
    """Ask what latents add to age, sex and estimated volumes in telling Alzheimer stages in DS."""
    staged = np.flatnonzero(people.table["stage"].isin(STAGES) & (people.target == 1))
    table = people.table.iloc[staged].reset_index(drop=True)
    target = table["stage"].map(list(STAGES).index).to_numpy(int)
    reason = too_few(target, len(STAGES), settings)
    if reason:
        names = ("stage_gain", "stage_gain_ci")
        return dict.fromkeys(names), {"staging": []}, dict.fromkeys(names, f"stages: {reason}")
    families = table["family"].to_numpy(str)
    kernel, volumes = people.kernel[np.ix_(staged, staged)], relative(people.volumes[staged])
    known = np.hstack([covariates(table), volumes])
    sets = {
        "age and sex": (None, covariates(table)),
        "age, sex, volumes": (None, known),
        "latents": (kernel, None),
        "age, sex, volumes, latents": (kernel, known),
    }
    found, rows = {}, []
    for done, (name, (dots, extras)) in enumerate(sets.items(), start=1):
        found[name] = predict(table, target, settings, dots, extras)
        rows.append(score(name, target, found[name], families, settings))
        record.progress("staging", done, len(sets))
    added = gain(target, found["age, sex, volumes, latents"], found["age, sex, volumes"],
                 families, settings)  # fmt: skip
    return dict(zip(("stage_gain", "stage_gain_ci"), added)), {"staging": rows}, {}


def stratify(people: People, settings: Strata) -> tuple[dict, dict, dict]:
    """Look for subtypes of DS beyond age, sex and brain volume, against one Gaussian."""
    rows = np.flatnonzero(people.target)
    if len(rows) < structure.FEWEST:
        reason = f"{len(rows)} people with DS, {structure.FEWEST} needed"
        return {"strata_false_discovery": None}, {}, {"strata_false_discovery": reason}
    size = np.log(people.volumes[rows].sum(1))
    nuisance = np.column_stack([covariates(people.table.iloc[rows]), size])
    found = structure.search(people.kernel[np.ix_(rows, rows)], nuisance, settings)
    labels, stages = found.pop("labels"), people.table["stage"].iloc[rows].to_numpy(str)
    table = {"strata": found, "strata_stages": pd.crosstab(labels, stages).to_dict("index")}
    return {"strata_false_discovery": found["false_discovery"]}, table, {}


def analyse(root: Path, study: Study) -> dict:
    """Answer the page's three questions on people whom the VAE never saw.

    Groups that are too small for the folds give null with the reason.
    """
    began, settings = time.perf_counter(), study.strata
    people = People(root, GROUPS)
    parts = [stage(people, settings), stratify(people, settings)]
    reason = too_few(people.target, 2, settings)
    if reason:
        parts.append((dict.fromkeys(DISCRIMINATION), {"discrimination": []},
                      dict.fromkeys(DISCRIMINATION, reason)))  # fmt: skip
    else:
        parts.append(discriminate(people, true_volumes(root, study, people.table), settings))
    hard = ("bacc_ds_hard", "bacc_ds_hard_volumes")
    parts.append((dict.fromkeys(hard), {}, dict.fromkeys(hard, HARD)))
    headline, tables, reasons = ({k: v for part in column for k, v in part.items()}
                                 for column in zip(*parts))  # fmt: skip
    tables["people"] = people.table.groupby(["group", "site"]).size().unstack(fill_value=0).to_dict("index")
    tables["reasons"] = reasons
    return {"headline": headline, "tables": tables,
            "timing": {"seconds": time.perf_counter() - began}}  # fmt: skip

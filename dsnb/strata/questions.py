"""From latents to discrimination, staging and strata, on people whom the VAE never saw."""

import time
from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import bids, dataset, latents, record
from dsnb.config import Strata, Study
from dsnb.space import GROUPS, REGIONS, STAGES, covariates
from dsnb.strata import crossval, structure
from dsnb.strata.crossval import site_is_group, too_few

DISCRIMINATION = (
    "bacc_ds_with_size", "auc_ds", "auc_ds_volumes", "auc_ds_confounds", "auc_ds_oracle",
    "auc_ds_gain", "auc_ds_gain_ci", "permutation_p",
)  # fmt: skip
ABSENT = {
    "bacc_ds_with_size": "no head size in participants.tsv",
    "auc_ds_oracle": "not everybody's true volumes are known: real scans, or no truth for euploids",
}
HARD = "the hard arm (a severity chosen on another cohort) needs a second phantom seed"
Part = tuple[dict, dict, dict]  # headline, tables, reasons


class People:
    """The unseen people of one question: table, target, dot products of latents, covariates."""

    def __init__(self, root: Path, groups: tuple[str, ...]):
        table, z, _, statistics = latents.load(root)
        rows = np.concatenate([dataset.select(table, group) for group in groups])
        rows = rows[table["seen_by"].iloc[rows].isin(["", "n/a"]).to_numpy()]
        self.table = table.iloc[rows].reset_index(drop=True)
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
    volumes = volumes.set_index("participant_id")
    return volumes.loc[table["participant_id"], list(REGIONS)].to_numpy(float)


def relative(volumes: np.ndarray) -> np.ndarray:
    """Return the log share of each region (N, R) in the sum of all, so that size is removed."""
    return np.log(volumes / volumes.sum(1, keepdims=True))


def true_volumes(root: Path, table: pd.DataFrame) -> np.ndarray | None:
    """Return the phantom's true region volumes (N, R) in ml, None where somebody's are unknown."""
    path = root / "raw" / "derivatives" / "truth" / "truth.tsv"
    if not path.is_file():
        return None
    truth = bids.typed(bids.read_table(path)).set_index("participant_id")
    if not table["participant_id"].isin(truth.index).all():
        return None
    columns = [f"{name}_after" for name in REGIONS]
    return truth.loc[table["participant_id"], columns].to_numpy(float)


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


def _ask(
    label: str, sets: dict, table: pd.DataFrame, target: np.ndarray, settings: Strata
) -> tuple[dict, dict]:
    """Return out-of-fold probabilities and a table row for each set of (dot products, features)."""
    families, found, rows = table["family"].to_numpy(str), {}, {}
    for done, (name, (kernel, extras)) in enumerate(sets.items(), start=1):
        found[name] = crossval.predict(table, target, settings, kernel, extras)
        rows[name] = crossval.score(name, target, found[name], families, settings)
        record.progress(label, done, len(sets))
    return found, rows


def _controls(people: People, settings: Strata) -> list[dict]:
    """Return table rows that say how far latents can be trusted.

    Labels permuted over everybody must be chance; permuted within site, what is left is what
    site alone lends to latents; sites that hold both groups compare like with like.
    """
    rng, table = np.random.default_rng(settings.seed), people.table
    site, asked = table["site"].to_numpy(str), []
    everybody = np.arange(len(site))
    asked.append(("latents, labels permuted", everybody, rng.permutation(people.target)))
    if len(np.unique(site)) > 1 and not site_is_group(site, people.target):
        shuffled = crossval.permute(people.target, site, rng)
        asked.append(("latents, labels permuted within site", everybody, shuffled))
        both = np.flatnonzero(pd.Series(people.target).groupby(site).transform("nunique") > 1)
        asked.append(("latents, sites with both groups", both, people.target[both]))
    rows = []
    for name, chosen, target in asked:
        if too_few(target, people.families[chosen], 2, settings) is None:
            sets = {name: (people.kernel[np.ix_(chosen, chosen)], None)}
            part = table.iloc[chosen].reset_index(drop=True)
            rows += _ask("controls", sets, part, target, settings)[1].values()
    return rows


def discriminate(people: People, oracle: np.ndarray | None, settings: Strata) -> Part:
    """Ask every set of features for DS against euploid; `oracle` (N, R) are true volumes in ml."""
    table, target = people.table, people.target
    sets = {"latents": (people.kernel, None), "estimated volumes": (None, relative(people.volumes))}
    sets |= {name: (None, extras) for name, extras in confounders(people).items()}
    if "head size" in sets:
        sets["latents and head size"] = (people.kernel, sets["head size"][1])
    if oracle is not None:
        sets["true volumes"] = (None, relative(oracle))
    found, rows = _ask("discrimination", sets, table, target, settings)
    ahead, interval = crossval.gain(
        target, found["latents"], found["estimated volumes"], people.families, settings
    )
    headline = {
        "bacc_ds_with_size": rows.get("latents and head size", {}).get("bacc"),
        "auc_ds": rows["latents"]["auc"],
        "auc_ds_volumes": rows["estimated volumes"]["auc"],
        "auc_ds_confounds": rows["age, sex, site, motion"]["auc"],
        "auc_ds_oracle": rows.get("true volumes", {}).get("auc"),
        "auc_ds_gain": ahead,
        "auc_ds_gain_ci": interval,
        "permutation_p": crossval.permutation_p(table, target, people.kernel, settings),
    }
    reasons = {name: ABSENT[name] for name, value in headline.items() if value is None}
    if site_is_group(table["site"], target):
        reasons["site"] = "not separable: every site holds one group only"
    return headline, {"discrimination": [*rows.values(), *_controls(people, settings)]}, reasons


def stage(people: People, settings: Strata) -> Part:
    """Ask what latents add to age, sex and estimated volumes in telling Alzheimer stages in DS."""
    staged = np.flatnonzero(people.table["stage"].isin(STAGES) & (people.target == 1))
    table = people.table.iloc[staged].reset_index(drop=True)
    target = table["stage"].map(list(STAGES).index).to_numpy(int)
    reason = too_few(target, people.families[staged], len(STAGES), settings)
    if reason:
        return _unanswered(("stage_gain", "stage_gain_ci"), f"stages: {reason}")
    kernel = people.kernel[np.ix_(staged, staged)]
    known = np.hstack([covariates(table), relative(people.volumes[staged])])
    sets = {
        "age and sex": (None, covariates(table)),
        "age, sex, volumes": (None, known),
        "latents": (kernel, None),
        "age, sex, volumes, latents": (kernel, known),
    }
    found, rows = _ask("staging", sets, table, target, settings)
    families = table["family"].to_numpy(str)
    base, more = found["age, sex, volumes"], found["age, sex, volumes, latents"]
    gain, interval = crossval.gain(target, more, base, families, settings)
    return {"stage_gain": gain, "stage_gain_ci": interval}, {"staging": list(rows.values())}, {}


def _unanswered(names: tuple[str, ...], reason: str) -> Part:
    """Return the part of a question that these people cannot answer."""
    return dict.fromkeys(names), {}, dict.fromkeys(names, reason)


def stratify(people: People, settings: Strata) -> Part:
    """Look for subtypes of DS beyond age, sex and brain volume, against one Gaussian."""
    rows = np.flatnonzero(people.target)
    if len(rows) < structure.FEWEST:
        reason = f"{len(rows)} people with DS, {structure.FEWEST} needed"
        return _unanswered(("strata_false_discovery",), reason)
    size = np.log(people.volumes[rows].sum(1))
    nuisance = np.column_stack([covariates(people.table.iloc[rows]), size])
    found = structure.search(people.kernel[np.ix_(rows, rows)], nuisance, settings)
    found.pop("labels")
    return {"strata_false_discovery": found["false_discovery"]}, {"strata": found}, {}


def analyse(root: Path, study: Study) -> dict:
    """Answer the page's three questions on people whom the VAE never saw.

    Groups that are too small for the folds give null with the reason.
    """
    began, settings = time.perf_counter(), study.strata
    people = People(root, GROUPS)
    reason = too_few(people.target, people.families, 2, settings)
    if reason:
        first = _unanswered(DISCRIMINATION, reason)
    else:
        first = discriminate(people, true_volumes(root, people.table), settings)
    hard = _unanswered(("bacc_ds_hard", "bacc_ds_hard_volumes"), HARD)
    headline, tables, reasons = {}, {}, {}
    for part in (first, hard, stage(people, settings), stratify(people, settings)):
        for whole, piece in zip((headline, tables, reasons), part):
            whole |= piece
    counts = people.table.groupby(["group", "site"]).size().unstack(fill_value=0)
    tables |= {"people": counts.to_dict("index"), "reasons": reasons}
    timing = {"seconds": time.perf_counter() - began}
    return {"headline": headline, "tables": tables, "timing": timing}

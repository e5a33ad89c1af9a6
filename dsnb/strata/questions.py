"""From latents to discrimination, staging and strata, on people whom the VAE never saw."""

import time
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from dsnb import record
from dsnb.config import Strata, Study
from dsnb.space import GROUPS, STAGES, covariates
from dsnb.strata import crossval, structure
from dsnb.strata.axes import correlate
from dsnb.strata.crossval import Features, too_few
from dsnb.strata.curves import learn
from dsnb.strata.people import (
    People,
    confounders,
    known_truth,
    match,
    relative,
    true_volumes,
)
from dsnb.strata.permutation import permutation_p, permute, site_is_group
from dsnb.strata.progress import DEALS, follow

DISCRIMINATION = (
    "bacc_ds_with_size", "auc_ds", "auc_ds_volumes", "auc_ds_confounds", "auc_ds_oracle",
    "auc_ds_gain", "auc_ds_gain_ci", "permutation_p",
)  # fmt: skip
ABSENT = {
    "bacc_ds_with_size": "no head size in participants.tsv",
    "auc_ds_oracle": "not everybody's true volumes are known: real scans, or no truth for euploids",
}
DISABILITY = ("mild", "moderate", "severe")
Part = tuple[dict, dict, dict]  # headline, tables, reasons


def _ask(
    label: str, sets: dict[str, Features], table: pd.DataFrame, target: np.ndarray,
    settings: Strata, classes: tuple[str, ...] = (), deals: int = 1,
) -> tuple[dict, dict]:  # fmt: skip
    """Return out-of-fold answers and a table row for each set of features."""
    families, found, rows = table["family"].to_numpy(str), {}, {}
    for done, (name, features) in enumerate(sets.items(), start=1):
        found[name] = crossval.predict(table, target, settings, features, repeats=deals)
        rows[name] = crossval.score(name, target, found[name], families, settings, classes)
        record.progress(label, done, len(sets))
    return found, rows


def _controls(people: People, settings: Strata) -> list[dict]:
    """Return table rows that say how far latents can be trusted.

    Labels permuted over everybody must be chance; permuted within site, what is left is what
    site alone lends to latents; sites that hold both groups, and pairs of an age and sex, compare
    like with like.
    """
    rng, table = np.random.default_rng(settings.seed), people.table
    site, asked = table["site"].to_numpy(str), []
    everybody = np.arange(len(site))
    asked.append(("latents, labels permuted", everybody, rng.permutation(people.target)))
    if len(np.unique(site)) > 1 and not site_is_group(site, people.target):
        shuffled = permute(people.target, site, rng)
        asked.append(("latents, labels permuted within site", everybody, shuffled))
        both = np.flatnonzero(pd.Series(people.target).groupby(site).transform("nunique") > 1)
        asked.append(("latents, sites with both groups", both, people.target[both]))
    pairs = match(table, people.target)
    asked.append(("latents, pairs of an age and sex", pairs, people.target[pairs]))
    rows = []
    for name, chosen, target in asked:
        if too_few(target, people.families[chosen], 2, settings) is None:
            part, sets = (
                table.iloc[chosen].reset_index(drop=True),
                {name: people.latents.of(chosen)},
            )
            rows += _ask("controls", sets, part, target, settings, GROUPS)[1].values()
    return rows


def discriminate(
    people: People, others: dict[str, Features], oracle: np.ndarray | None, settings: Strata
) -> Part:
    """Ask every set of features for DS against euploid; `oracle` (N, R) are true volumes in ml."""
    table, target, known = people.table, people.target, relative(people.volumes)
    sets = {"latents": people.latents, "estimated volumes": Features(columns=(known,))} | others
    sets |= {name: Features(columns=(extras,)) for name, extras in confounders(people).items()}
    sets["latents and volumes"] = people.latents.beside(known)
    if "head size" in sets:
        sets["latents and head size"] = people.latents.beside(*sets["head size"].columns)
    if oracle is not None:
        sets["true volumes"] = Features(columns=(relative(oracle),))
    found, rows = _ask("discrimination", sets, table, target, settings, GROUPS)
    for name, row in rows.items():  # paired with the volumes that any clinic can measure
        if name != "estimated volumes":
            row["gain"], (row["gain_low"], row["gain_high"]) = crossval.gain(
                target, found[name], found["estimated volumes"], people.families, settings
            )
    headline = {
        "bacc_ds_with_size": rows.get("latents and head size", {}).get("bacc"),
        "auc_ds": rows["latents"]["auc"],
        "auc_ds_volumes": rows["estimated volumes"]["auc"],
        "auc_ds_confounds": rows["age, sex, site, motion"]["auc"],
        "auc_ds_oracle": rows.get("true volumes", {}).get("auc"),
        "auc_ds_gain": rows["latents"]["gain"],
        "auc_ds_gain_ci": [rows["latents"]["gain_low"], rows["latents"]["gain_high"]],
        "permutation_p": permutation_p(table, target, people.latents.kernel, settings),
    }
    reasons = {name: ABSENT[name] for name, value in headline.items() if value is None}
    if site_is_group(table["site"], target):
        reasons["site"] = "not separable: every site holds one group only"
    tables = {"discrimination": [*rows.values(), *_controls(people, settings)]}
    asked = ("latents", "estimated volumes", *(name for name in others if name != "voxels"))
    tables["learning"] = learn(people, {name: sets[name] for name in asked}, settings)
    return headline, tables, reasons


def cross_sites(people: People, settings: Strata) -> Part:
    """Ask a classifier of everybody else for each site; where a site has one group, sensitivity.

    And one of the cohort CLINIC alone for EXTERNAL, as it would be sent out.
    """
    table, target, rows = people.table, people.target, []
    site, cohort = (table[name].to_numpy(str) for name in ("site", "cohort"))
    asked = [
        (f"all but {name}", name, site != name, site == name) for name in map(str, np.unique(site))
    ]
    asked = asked if len(asked) > 1 else []
    if {"CLINIC", "EXTERNAL"} <= {*cohort}:
        asked.append(("CLINIC", "EXTERNAL", cohort == "CLINIC", cohort == "EXTERNAL"))
    sets = {
        "latents": people.latents,
        "estimated volumes": Features(columns=(relative(people.volumes),)),
    }
    for (learnt, judged, train, test), (name, features) in product(asked, sets.items()):
        train, test = np.flatnonzero(train), np.flatnonzero(test)
        reason = too_few(target[train], people.families[train], 2, settings)
        row = {"features": name, "learnt_on": learnt, "judged_on": judged, "people": len(test)}
        if reason:
            rows.append(row | {"note": reason})
            continue
        crossval.refuse_seen(table)
        answer = crossval.fit(features, target, people.families, train, test, settings)
        called, truth = answer.argmax(1), target[test]
        for group, word in enumerate(GROUPS):
            some = truth == group
            row[f"sensitivity_{word}"] = (
                float((called[some] == group).mean()) if some.any() else None
            )
        row["auc"] = crossval.auroc(truth == 1, answer[:, 1]) if np.ptp(truth) else None
        rows.append(row | {"note": "" if np.ptp(truth) else "one group only: no AUROC"})
    return {}, {"sites": rows}, {}


def stage(people: People, settings: Strata) -> Part:
    """Ask what latents add to age, sex and estimated volumes in telling Alzheimer stages in DS.

    All stages in their order, and each pair of them.
    """
    staged = np.flatnonzero(people.table["stage"].isin(STAGES) & (people.target == 1))
    table = people.table.iloc[staged].reset_index(drop=True)
    target = table["stage"].map(list(STAGES).index).to_numpy(int)
    reason = too_few(target, people.families[staged], len(STAGES), settings)
    if reason:
        return _unanswered(("stage_gain", "stage_gain_ci"), f"stages: {reason}")
    known = covariates(table), relative(people.volumes[staged])
    base = {"age and sex": known[:1], "age, sex, volumes": known}
    rows = _beyond("staging", people.latents.of(staged), base, table, target, settings, STAGES)
    headline = {"stage_gain": rows[-1]["gain"],
                "stage_gain_ci": [rows[-1]["gain_low"], rows[-1]["gain_high"]]}  # fmt: skip
    pairs = []
    for pair in combinations(range(len(STAGES)), 2):
        some, names = np.flatnonzero(np.isin(target, pair)), tuple(STAGES[i] for i in pair)
        part = table.iloc[some].reset_index(drop=True)
        base = {"age, sex, volumes": tuple(block[some] for block in known)}
        later, latents = (target[some] == pair[1]).astype(int), people.latents.of(staged[some])
        found = _beyond(
            " against ".join(names), latents, base, part, later, settings, ("first", "second")
        )
        pairs += [{"pair": " / ".join(names)} | row for row in found]
    return headline, {"staging": rows, "stage_pairs": pairs}, {}


def _beyond(
    label: str, latents: Features, base: dict[str, tuple], table: pd.DataFrame,
    target: np.ndarray, settings: Strata, classes: tuple[str, ...] = (),
) -> list[dict]:  # fmt: skip
    """Return rows of latents alone, of known columns, and of both; the last has the paired gain.

    The gain is that over the last of `base`.
    """
    last = list(base)[-1]
    sets = {name: Features(columns=columns) for name, columns in base.items()}
    both = f"{last}, latents"
    sets |= {"latents": latents, both: latents.beside(*base[last])}
    found, rows = _ask(label, sets, table, target, settings, classes, DEALS)
    families = table["family"].to_numpy(str)
    rows[both]["gain"], (rows[both]["gain_low"], rows[both]["gain_high"]) = crossval.gain(
        target, found[both], found[last], families, settings
    )
    return list(rows.values())


def ask_others(people: People, settings: Strata) -> Part:
    """Ask disability and cognition in DS, and age and sex in euploids, which latents must know."""
    table, rows, reasons = people.table, [], {}
    ds, volumes = people.target == 1, relative(people.volumes)
    level = table["disability"].map(dict(zip(DISABILITY, range(3)))).to_numpy(float)
    size, plain = np.log(people.volumes.sum(1))[:, None], (covariates(table), volumes)
    cognition, scored = table["cognition"].to_numpy(float), ds & ~np.isnan(level)
    asked = {  # who, target, what is known before
        "disability": (scored, level, {"age, sex, volumes": plain}),
        "cognition": (
            scored & ~np.isnan(cognition), cognition,
            {"age, sex, disability, volumes": (*plain, level[:, None])},
        ),
        "age": (~ds, table["age"].to_numpy(float), {"volumes": (volumes,)}),
        "sex": (
            ~ds, (table["sex"] == "M").to_numpy(int), {"volumes and brain size": (volumes, size)}
        ),
    }  # fmt: skip
    for name, (who, target, known) in asked.items():
        some, classes = np.flatnonzero(who), {"disability": DISABILITY, "sex": ("F", "M")}
        target = target[some].astype(int if name in classes else float)
        reason = None
        if name in classes:
            reason = too_few(target, people.families[some], len(classes[name]), settings)
        elif len(some) < 5 * settings.outer_folds or np.ptp(target) == 0:
            reason = f"{len(some)} people with a score, {5 * settings.outer_folds} needed"
        if reason:
            reasons[name] = reason
            continue
        part = table.iloc[some].reset_index(drop=True)
        known = {word: tuple(block[some] for block in columns) for word, columns in known.items()}
        found = _beyond(name, people.latents.of(some), known, part, target, settings,
                        classes.get(name, ()))  # fmt: skip
        rows += [{"task": name} | row for row in found]
    return {}, {"tasks": rows}, reasons


def _unanswered(names: tuple[str, ...], reason: str) -> Part:
    """Return the part of a question that these people cannot answer."""
    return dict.fromkeys(names), {}, dict.fromkeys(names, reason)


def stratify(
    people: People, others: dict[str, Features], severity: np.ndarray | None, settings: Strata
) -> Part:
    """Look for two subtypes of DS in latents and rivals: beyond confounds, and beyond stage too.

    What the clusters follow is asked of a person's place between the two centres: age, stage,
    disability, cognition and, where known, the true `severity` (N,).
    """
    rows = np.flatnonzero(people.target)
    if len(rows) < structure.FEWEST:
        return {}, {}, {"strata": f"{len(rows)} people with DS, {structure.FEWEST} needed"}
    table, volumes = people.table.iloc[rows], people.volumes[rows]
    orders = {"stage": STAGES, "disability": DISABILITY}
    asked = {name: table[name].map(list(of).index, na_action="ignore").to_numpy(float)
             for name, of in orders.items()}  # fmt: skip
    asked |= {name: table[name].to_numpy(float) for name in ("age", "cognition")}
    if severity is not None:
        asked["true severity"] = severity[rows]
    sets = {"latents": people.latents} | {n: f for n, f in others.items() if n != "voxels"}
    known = {
        beyond: structure.nuisance(table, volumes, *more)
        for beyond, more in (("confounds", ()), ("confounds, age, stage", ("age", "stage")))
    }
    pairs, related = list(product(sets, known)), []
    jobs = (delayed(structure.search)(sets[name].of(rows).kernel, known[beyond], settings)
            for name, beyond in pairs)  # fmt: skip
    strata = [
        {"features": name, "beyond": beyond} | found
        for (name, beyond), found in zip(pairs, Parallel(2)(jobs))
    ]
    for row in strata:
        row.pop("labels")
        places = row.pop("places")[:, None]
        if row["beyond"] == "confounds":
            related += [{"features": row["features"]} | found for found in correlate(places, asked)]
    return {}, {"strata": strata, "strata_related": related}, {}


def analyse(root: Path, study: Study) -> dict:
    """Answer the page's questions on people whom the VAE never saw.

    Groups that are too small for the folds give null with the reason.
    """
    began, settings = time.perf_counter(), study.strata
    people = People(root, GROUPS)
    others, truth = people.others(study), known_truth(root, people.table)
    severity = None if truth is None else truth["factor"].to_numpy(float)
    reason = too_few(people.target, people.families, 2, settings)
    if reason:
        first = _unanswered(DISCRIMINATION, reason)
    else:
        first = discriminate(people, others, true_volumes(root, people.table), settings)
    headline, tables, reasons = {}, {}, {}
    parts = (
        first, cross_sites(people, settings), stage(people, settings),
        ask_others(people, settings), follow(root, settings),
        stratify(people, others, severity, settings),
    )  # fmt: skip
    for part in parts:
        for whole, piece in zip((headline, tables, reasons), part):
            whole |= piece
    counts = people.table.groupby(["group", "site"]).size().unstack(fill_value=0)
    tables |= {"people": counts.to_dict("index"), "reasons": reasons}
    timing = {"seconds": time.perf_counter() - began}
    return {"headline": headline, "tables": tables, "timing": timing}

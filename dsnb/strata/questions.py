"""From latents to discrimination, staging and strata, on people whom the VAE never saw."""

import time
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from dsnb.config import Strata, Study
from dsnb.space import GROUPS, STAGES, covariates
from dsnb.strata import crossval, structure
from dsnb.strata.axes import correlate
from dsnb.strata.crossval import Features, too_few
from dsnb.strata.discrimination import (
    DISCRIMINATION,
    NO_UNDO,
    Part,
    ask,
    cross_sites,
    discriminate,
    sets_of,
)
from dsnb.strata.people import People, known_truth, relative, true_volumes
from dsnb.strata.progress import DEALS, follow

STAGING = ("stage_gain", "stage_gain_ci", "stage_gain_undone", "stage_gain_undone_ci")
DISABILITY = ("mild", "moderate", "severe")


def stage(people: People, sets: dict[str, Features], settings: Strata) -> Part:
    """Ask what latents and rivals add to age, sex and volumes in telling Alzheimer stages in DS.

    All stages in their order, and each pair of them.
    """
    staged = np.flatnonzero(people.table["stage"].isin(STAGES) & (people.target == 1))
    table = people.table.iloc[staged].reset_index(drop=True)
    target = table["stage"].map(list(STAGES).index).to_numpy(int)
    reason = too_few(target, people.families[staged], len(STAGES), settings)
    if reason:
        return _unanswered(STAGING, f"stages: {reason}")
    known = covariates(table), relative(people.volumes[staged])
    base = {"age and sex": known[:1], "age, sex, volumes": known}
    asked = {name: features.of(staged) for name, features in sets.items()}
    rows = _beyond("staging", asked, base, table, target, settings, STAGES)
    headline, found = dict.fromkeys(STAGING), {row["features"]: row for row in rows}
    for word, name in (("stage_gain", "latents"), ("stage_gain_undone", "undone")):
        row = found.get(f"age, sex, volumes, {name}")
        if row:
            headline |= {word: row["gain"], f"{word}_ci": [row["gain_low"], row["gain_high"]]}
    reasons = {name: NO_UNDO for name, value in headline.items() if value is None}
    pairs = []
    for pair in combinations(range(len(STAGES)), 2):
        some, names = np.flatnonzero(np.isin(target, pair)), tuple(STAGES[i] for i in pair)
        part = table.iloc[some].reset_index(drop=True)
        base = {"age, sex, volumes": tuple(block[some] for block in known)}
        later = (target[some] == pair[1]).astype(int)
        asked = {name: features.of(staged[some]) for name, features in sets.items()}
        words = " against ".join(names), asked, base, part, later, settings, ("first", "second")
        pairs += [{"pair": " / ".join(names)} | row for row in _beyond(*words)]
    return headline, {"staging": rows, "stage_pairs": pairs}, reasons


def _beyond(
    label: str, asked: dict[str, Features], base: dict[str, tuple], table: pd.DataFrame,
    target: np.ndarray, settings: Strata, classes: tuple[str, ...] = (),
) -> list[dict]:  # fmt: skip
    """Return rows of each of `asked` alone, of known columns, and of both, with the paired gain.

    The gain is that over the last of `base`; the last row is that of the first of `asked`.
    """
    last = list(base)[-1]
    sets = {name: Features(columns=columns) for name, columns in base.items()} | asked
    both = {f"{last}, {name}": asked[name].beside(*base[last]) for name in reversed(asked)}
    found, rows = ask(label, sets | both, table, target, settings, classes, DEALS)
    families = table["family"].to_numpy(str)
    for name in both:
        gain = crossval.gain(target, found[name], found[last], families, settings)
        rows[name]["gain"], (rows[name]["gain_low"], rows[name]["gain_high"]) = gain
    return list(rows.values())


def ask_others(people: People, sets: dict[str, Features], settings: Strata) -> Part:
    """Ask disability and cognition in DS; age and sex in euploids; and site, a confounder."""
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
    classes = {"disability": DISABILITY, "sex": ("F", "M")}
    for name, (who, target, known) in asked.items():
        some = np.flatnonzero(who)
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
        told = {word: features.of(some) for word, features in sets.items()}
        found = _beyond(name, told, known, part, target, settings, classes.get(name, ()))
        rows += [{"task": name} | row for row in found]
    sets = sets | {"volumes": Features(columns=(volumes,))}
    euploid, sites = np.flatnonzero(~ds), []
    part = table.iloc[euploid].reset_index(drop=True)
    told = {word: features.of(euploid) for word, features in sets.items()}
    for name in map(str, part["site"].unique()):
        here = (part["site"] == name).to_numpy(int)
        if too_few(here, people.families[euploid], 2, settings) is None:
            found = ask(f"site {name}", told, part, here, settings)[1]
            sites += [{"site": name} | row for row in found.values()]
    return {}, {"tasks": rows, "site_told": sites}, reasons


def _unanswered(names: tuple[str, ...], reason: str) -> Part:
    """Return the part of a question that these people cannot answer."""
    return dict.fromkeys(names), {}, dict.fromkeys(names, reason)


def stratify(
    people: People, sets: dict[str, Features], severity: np.ndarray | None, settings: Strata
) -> Part:
    """Look for two subtypes of DS in sets of features: beyond confounds, and beyond stage too.

    What the clusters follow is asked of a person's place between the two centres: age, stage,
    disability, cognition and, where known, the true `severity` (N,).
    """
    rows = np.flatnonzero(people.target)
    if len(rows) < structure.FEWEST:
        return {}, {}, {"strata": f"{len(rows)} people with DS, {structure.FEWEST} needed"}
    table, volumes = people.table.iloc[rows], people.volumes[rows]
    orders = {"stage": STAGES, "disability": DISABILITY}
    asked = {name: table[name].map({word: place for place, word in enumerate(of)}).to_numpy(float)
             for name, of in orders.items()}  # fmt: skip
    asked |= {name: table[name].to_numpy(float) for name in ("age", "cognition")}
    if severity is not None:
        asked["true severity"] = severity[rows]
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
    asked, truth = sets_of(people, study), known_truth(root, people.table)
    severity = None if truth is None else truth["factor"].to_numpy(float)
    sets = {name: features for name, features in asked.items() if name != "voxels"}
    reason = too_few(people.target, people.families, 2, settings)
    if reason:
        first = delayed(_unanswered)(DISCRIMINATION, reason)
    else:
        first = delayed(discriminate)(people, asked, true_volumes(root, people.table), settings)
    questions = (
        first, delayed(ask_others)(people, sets, settings), delayed(stage)(people, sets, settings),
        delayed(follow)(root, study), delayed(cross_sites)(people, settings),
    )  # fmt: skip
    headline, tables, reasons = {}, {}, {}
    # Side by side, the longest first: small matrices keep one core busy, however many threads.
    answers = Parallel(2, batch_size=1, pre_dispatch="all")(questions)
    for part in (*answers, stratify(people, sets, severity, settings)):
        for whole, piece in zip((headline, tables, reasons), part):
            whole |= piece
    counts = people.table.groupby(["group", "site"]).size().unstack(fill_value=0)
    tables |= {"people": counts.to_dict("index"), "reasons": reasons}
    timing = {"seconds": time.perf_counter() - began}
    return {"headline": headline, "tables": tables, "timing": timing}

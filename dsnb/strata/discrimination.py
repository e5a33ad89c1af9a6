"""DS against euploid: every set of features on one footing, controls, and sites never seen."""

from itertools import product

import numpy as np
import pandas as pd

from dsnb import bids, dataset, record, rivals
from dsnb.anomaly import undo
from dsnb.config import Strata, Study
from dsnb.space import GROUPS, covariates, load_template
from dsnb.strata import crossval
from dsnb.strata.crossval import Features, too_few
from dsnb.strata.curves import learn
from dsnb.strata.people import People, confounders, dot_products, match, relative
from dsnb.strata.permutation import permutation_p, permute, site_is_group

DISCRIMINATION = (
    "bacc_ds_with_size", "auc_ds", "auc_ds_volumes", "auc_ds_confounds", "auc_ds_oracle",
    "auc_ds_gain", "auc_ds_gain_ci", "auc_ds_undone", "auc_ds_undone_gain_ci", "permutation_p",
)  # fmt: skip
NO_UNDO = "people were too few for the network of page 05"
ABSENT = {
    "auc_ds_undone": NO_UNDO,
    "auc_ds_undone_gain_ci": NO_UNDO,
    "bacc_ds_with_size": "no head size in participants.tsv",
    "auc_ds_oracle": "not everybody's true volumes are known: real scans, or no truth for euploids",
}
OUTLINE = ("head_ap", "head_lr", "head_si")
WITH_OUTLINE = "latents, head size, outline"
Part = tuple[dict, dict, dict]  # headline, tables, reasons


def ask(
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
            rows += ask("controls", sets, part, target, settings, GROUPS)[1].values()
    return rows


def sets_of(people: People, study: Study, voxels: bool = True) -> dict[str, Features]:
    """Return latents, `voxels` if asked, deformation and `undone` of the same people.

    `undo` takes off what a person's age and sex predict, which would write both into its answer:
    here everybody is told as of one age and sex.
    """
    root, brain = people.root, load_template(study.grid).brain
    place = pd.Index(dataset.load_table(root)["participant_id"])
    rows = place.get_indexer(people.table["participant_id"])

    def inside(volumes: np.ndarray) -> np.ndarray:
        return np.stack([np.asarray(volumes[row], np.float32)[brain] for row in rows])

    grown, found = inside(rivals.load_deformation(root)[1]), {"latents": people.latents}
    if voxels:
        found["voxels"] = Features(dot_products(inside(dataset.load_volumes(root))))
    found["deformation"] = Features(dot_products(grown))
    if (root / undo.RUN).is_dir():  # not where people were too few for a norm
        alike = np.tile(covariates(people.table).mean(0), (len(rows), 1))
        seen = undo.find(undo.load(root, study), grown, alike)
        found["undone"] = Features(dot_products(seen))
    return found


def gaussian_kernel(products: np.ndarray) -> np.ndarray:
    """Return exp(-d^2 / median d^2), (N, N), of the distances d behind dot products (N, N)."""
    squares = np.diag(products)[:, None] + np.diag(products) - 2 * products
    return np.exp(-squares / np.median(squares[np.triu_indices(len(squares), 1)]))


def head_outline(people: People) -> np.ndarray | None:
    """Return log length, width and height of the native head over the template's (N, 3), or None.

    `prepare` takes them away with the affine; the phantom's table alone tells them.
    """
    path = people.root / "raw" / "participants.tsv"
    table = bids.typed(bids.read_table(path)) if path.is_file() else pd.DataFrame()
    if not {*OUTLINE} <= {*table}:
        return None
    known = table.set_index("participant_id")[list(OUTLINE)]
    return np.log(known.reindex(people.table["participant_id"]).to_numpy(float))


def discriminate(
    people: People, asked: dict[str, Features], oracle: np.ndarray | None, settings: Strata
) -> Part:
    """Ask every set of features for DS against euploid; `oracle` (N, R) are true volumes in ml."""
    table, target, known = people.table, people.target, relative(people.volumes)
    sets = asked | {"estimated volumes": Features(columns=(known,))}
    sets |= {name: Features(columns=(extras,)) for name, extras in confounders(people).items()}
    sets["latents, Gaussian kernel"] = Features(gaussian_kernel(people.latents.kernel))
    sets["latents and volumes"] = people.latents.beside(known)
    if "head size" in sets:
        size, shape = sets["head size"].columns, head_outline(people)
        sets["latents and head size"] = people.latents.beside(*size)
        if shape is not None:
            sets["head size and outline"] = Features(columns=(*size, shape))
            sets[WITH_OUTLINE] = people.latents.beside(*size, shape)
    if oracle is not None:
        sets["true volumes"] = Features(columns=(relative(oracle),))
    found, rows = ask("discrimination", sets, table, target, settings, GROUPS)
    for name, row in rows.items():  # paired with the volumes that any clinic can measure
        if name != "estimated volumes":
            row["gain"], (row["gain_low"], row["gain_high"]) = crossval.gain(
                target, found[name], found["estimated volumes"], people.families, settings
            )
    with_size = rows.get(WITH_OUTLINE, rows.get("latents and head size", {}))
    headline = {
        "bacc_ds_with_size": with_size.get("bacc"),
        "auc_ds": rows["latents"]["auc"],
        "auc_ds_volumes": rows["estimated volumes"]["auc"],
        "auc_ds_confounds": rows["age, sex, site, motion"]["auc"],
        "auc_ds_oracle": rows.get("true volumes", {}).get("auc"),
        "auc_ds_gain": rows["latents"]["gain"],
        "auc_ds_gain_ci": [rows["latents"]["gain_low"], rows["latents"]["gain_high"]],
        "permutation_p": permutation_p(table, target, people.latents.kernel, settings),
    }
    row = rows.get("undone")
    headline["auc_ds_undone"] = row and row["auc"]
    headline["auc_ds_undone_gain_ci"] = row and [row["gain_low"], row["gain_high"]]
    reasons = {name: ABSENT[name] for name, value in headline.items() if value is None}
    if site_is_group(table["site"], target):
        reasons["site"] = "not separable: every site holds one group only"
    tables = {"discrimination": [*rows.values(), *_controls(people, settings)]}
    taught = {name: sets[name] for name in (*asked, "estimated volumes") if name != "voxels"}
    tables["learning"] = learn(people, taught, settings)
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

"""Did the generator copy its people? Nearest neighbours, membership attacks, and proof of power.

Each test is shown able to fire: planted copies must be found, an over-fitted model must be caught.
A pass is worded "no evidence of copying under these tests". On a phantom it proves the machinery.
"""

import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import dataset, fidelity, record, vae
from dsnb.config import Study
from dsnb.fidelity.realism import fit_features
from dsnb.privacy import attacks, copies
from dsnb.privacy.gate import release
from dsnb.space import GROUPS

# The bars of a release; constants, since a bar that can be set is no bar.
LEAST_PEOPLE = 100  # a side
LEAST_RECALL, MOST_ALARMS = 0.95, 0.02
LEAST_OVERFIT_AUC, MOST_ATTACK_AUC = 0.9, 0.60
FEWEST = 8  # people a side, below which nothing is estimated
KEYS = record.HEADLINE["08_fidelity"].split()[8:]
PASSED = "no evidence of copying under these tests"
TOO_FEW = "not enough people"


def judge(headline: dict, people: dict[str, int]) -> tuple[bool | str, list[str]]:
    """Return the release verdict, and what failed in words."""
    small = [f"{count} people in {side}" for side, count in people.items() if count < LEAST_PEOPLE]
    if small:
        return TOO_FEW, [f"{text}, {LEAST_PEOPLE} needed" for text in small]
    bars = {
        "planted copies were missed": headline["copies_recalled"] >= LEAST_RECALL,
        "too many false alarms": headline["false_alarms"] <= MOST_ALARMS,
        "the over-fitted model was not caught": headline["overfit_attack_auc"] > LEAST_OVERFIT_AUC,
        "too many near copies": headline["near_copies"] <= MOST_ALARMS,
        "certain copies": headline["certain_copies"] == 0,
        "members can be told": headline["attack_auc_upper"] <= MOST_ATTACK_AUC,
    }
    failed = [text for text, passed in bars.items() if not passed]
    return not failed, failed


def _log(root: Path, headline: dict, failed: list[str]) -> None:
    """Append this attempt to `results/audit.jsonl`: what was audited and how it ended."""
    keys = {name: record.require(root, name) for name in ("runs/diffusion", "synthetic")}
    path = root / "results" / "audit.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record.plain({**keys, **headline, "failed": failed})) + "\n")


def _rows(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return rows of training people and of two halves of unseen people, A and B."""
    unseen = [fidelity.held_out(table, group) for group in GROUPS]
    known = fidelity.generator_people(table)
    return {
        "training": np.concatenate(list(known.values())),
        "unseen": np.concatenate(unseen),
        "A": np.concatenate([rows[::2] for rows in unseen]),
        "B": np.concatenate([rows[1::2] for rows in unseen]),
    }


def audit(root: Path, study: Study) -> dict:
    """Audit the product `synthetic` and its model for copies; every attempt is logged."""
    began = time.perf_counter()
    table, made = dataset.load_table(root), dataset.load_table(root, "synthetic")
    volumes = dataset.load_volumes(root)
    rows = _rows(table)
    people = {name: len(rows[name]) for name in ("training", "A", "B")} | {"synthetic": len(made)}
    if min(people.values()) < FEWEST:
        headline = dict.fromkeys(KEYS) | {"release": TOO_FEW}
        _, failed = judge(headline, people)
        reasons = {name: "; ".join(failed) for name in KEYS if headline[name] is None}
        tables = {"people": people, "failed": failed, "reasons": reasons}
    else:
        headline, tables = _tests(root, study, rows, table, volumes)
        headline["release"], failed = judge(headline, people)
        ids = made["participant_id"]
        for entry in tables["flagged"]:
            entry["participant_id"] = ids.iloc[entry.pop("row")]
        tables |= {"people": people, "failed": failed, "reasons": {}}
    tables["verdict"] = PASSED if headline["release"] is True else "; ".join(failed)
    _log(root, headline, failed)
    return {
        "headline": record.plain(headline),
        "tables": record.plain(tables),
        "timing": {"audit_seconds": time.perf_counter() - began},
    }


def _tests(root: Path, study: Study, rows: dict, table: pd.DataFrame, volumes) -> tuple[dict, dict]:
    """Run neighbour tests, attacks and positive controls; returns headline and tables."""
    settings, model = study.release, vae.load(root)
    space = fit_features(volumes[fidelity.basis(table)], study.grid, settings.components)
    library = copies.Library(volumes[rows["training"]], study.grid, space)
    rng = np.random.default_rng([settings.seed, 10])
    originals = np.sort(rng.choice(rows["training"], settings.copies, replace=False))
    draw = partial(vae.reconstruct, model)
    sides = {name: draw(volumes[rows[name]]) for name in ("A", "B")}
    sides["synthetic"] = dataset.load_volumes(root, "synthetic")
    planted = copies.plant(volumes[originals], draw, settings.seed)
    near, tables = copies.neighbours(library, sides, planted, settings.tail)
    attack, tables["attacks"] = attacks.membership(root, study, rows)
    return near | attack | {"overfit_attack_auc": attacks.overfit(root, study)}, tables

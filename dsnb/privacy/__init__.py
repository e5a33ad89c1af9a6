"""Did the generator copy its people? Nearest neighbours, membership attacks, and proof of power.

Each test is shown able to fire: planted copies must be found, an over-fitted model must be caught;
where they are not, the audit is not valid. A pass is worded "no evidence of copying under these
tests". On a phantom it proves the machinery.
"""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import dataset, diffusion, fidelity, further, latents, record, vae
from dsnb.config import Study
from dsnb.fidelity.realism import pooled
from dsnb.privacy import attacks, copies
from dsnb.privacy.gate import release, release_in_study
from dsnb.space import GROUPS, load_template

# The bars of a release; constants, since a bar that can be set is no bar.
LEAST_PEOPLE = 100  # a side
LEAST_RECALL, MOST_ALARMS = 0.95, 0.02
LEAST_OVERFIT_AUC, MOST_ATTACK_AUC = 0.9, 0.60
FEWEST = 8  # people a side, below which nothing is estimated
KEYS = record.HEADLINE["08_fidelity"].split()[8:]
PASSED = "no evidence of copying under these tests"
TOO_FEW, NOT_VALID = "not enough people", "not valid"


def judge(headline: dict, people: dict[str, int]) -> tuple[bool | str, list[str]]:
    """Return the release verdict of samples, and what failed in words.

    It is `not enough people`, `not valid` where a positive control failed, True or False.
    """
    small = [f"{count} people in {side}" for side, count in people.items() if count < LEAST_PEOPLE]
    if small:
        return TOO_FEW, [f"{text}, {LEAST_PEOPLE} needed" for text in small]
    controls = {
        "planted copies were missed": headline["copies_recalled"] >= LEAST_RECALL,
        "too many false alarms": headline["false_alarms"] <= MOST_ALARMS,
        "the over-fitted model was not caught": headline["overfit_attack_auc"] > LEAST_OVERFIT_AUC,
    }
    bars = {
        "too many near copies": headline["near_copies"] <= MOST_ALARMS,
        "certain copies": headline["certain_copies"] == 0,
        "members can be told": headline["attack_auc_upper"] <= MOST_ATTACK_AUC,
    }
    invalid, failed = ([text for text, passed in tests.items() if not passed]
                       for tests in (controls, bars))  # fmt: skip
    return (NOT_VALID if invalid else not failed), invalid + failed


def _log(root: Path, headline: dict, failed: list[str]) -> None:
    """Append this attempt to `results/audit.jsonl`: what was audited and how it ended."""
    keys = {name: record.require(root, name) for name in ("runs/diffusion", "synthetic")}
    path = root / "results" / "audit.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record.plain({**keys, **headline, "failed": failed})) + "\n")


def audit(root: Path, study: Study) -> dict:
    """Audit the product `synthetic` and its model for copies; every attempt is logged."""
    began = time.perf_counter()
    table, made = dataset.load_table(root), dataset.load_table(root, "synthetic")
    sides = Sides(root, study, table)
    people = {name: len(rows) for name, rows in sides.rows.items()} | {"synthetic": len(made)}
    if min(people.values()) < FEWEST:
        headline = dict.fromkeys(KEYS) | {"release": TOO_FEW}
        _, failed = judge(headline, people)
        reasons = {name: "; ".join(failed) for name in KEYS if headline[name] is None}
        tables = {"people": people, "failed": failed, "reasons": reasons}
    else:
        headline, tables = _tests(root, study, sides)
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


class Sides:
    """Everybody of an audit in one row of tables: training people, unseen people A and B, known.

    `A` and `B` are halves of all whom no model saw: the study's, and, of a phantom, further ones.
    `known` are an attacker's own, further phantoms in any study.
    """

    def __init__(self, root: Path, study: Study, table: pd.DataFrame):
        further.encode(root, study)
        more, scans, z = further.load(root, study)
        own = [fidelity.held_out(table, group) for group in GROUPS]
        if record.read_mark(root)["data"] == "phantom":
            beside = [np.flatnonzero((more["role"] == "unseen") & (more["group"] == group))
                      for group in GROUPS]  # fmt: skip
            own = [np.r_[one, len(table) + two] for one, two in zip(own, beside)]
        known = np.flatnonzero(more["role"].isin(["public", "reference"]))
        self.rows = {
            "training": np.concatenate([*fidelity.generator_people(table).values()]),
            "A": np.concatenate([rows[::2] for rows in own]),
            "B": np.concatenate([rows[1::2] for rows in own]),
            "known": len(table) + known,
        }
        self.unseen = np.concatenate([self.rows["A"], self.rows["B"]])
        self.table = pd.concat([table, more], ignore_index=True)
        self.ds = (self.table["group"] == "DS").to_numpy()
        self._parts = {"scans": (dataset.load_volumes(root), scans),
                       "z": (latents.load(root)[1], z)}  # fmt: skip

    def take(self, what: str, rows: np.ndarray) -> np.ndarray:
        """Return `scans` (n, X, Y, Z) or `z` (n, C, d, h, w) of some rows, float32."""
        first, second = self._parts[what]
        own = rows < len(first)
        found = np.zeros((len(rows), *first.shape[1:]), np.float32)
        found[own], found[~own] = first[rows[own]], second[rows[~own] - len(first)]
        return found


def _tests(root: Path, study: Study, sides: Sides) -> tuple[dict, dict]:
    """Run neighbour tests, attacks and positive controls; returns headline and tables."""
    settings, model, flow = study.release, vae.load(root), diffusion.load(root)[0]
    space, rng = fidelity.public_features(root, study), np.random.default_rng([settings.seed, 10])
    wide = fidelity.public_features(root, study, settings.attack_components)
    training = sides.rows["training"]

    def draw(volumes: np.ndarray) -> np.ndarray:
        """Return volumes (N, X, Y, Z) as the generator would have drawn them."""
        return flow.finish(vae.reconstruct(model, volumes))

    def encode(volumes: np.ndarray) -> np.ndarray:
        """Return standardised latents, in single precision, (n, D)."""
        parts = [vae.encode(model, volumes[part])[0] for part in vae.batches(len(volumes))]
        z = np.concatenate(parts) / flow.latent_sd.numpy()
        return z.reshape(len(z), -1)

    library = copies.Library(sides.take("scans", training), study.grid, space, encode)
    originals = np.sort(rng.choice(training, settings.copies, replace=False))
    halves = sides.take("scans", sides.rows["B"])
    planted = copies.plant(sides.take("scans", originals), halves, draw, settings.seed)
    judged = {name: draw(sides.take("scans", sides.rows[name])) for name in ("A", "B")}
    judged["synthetic"] = dataset.load_volumes(root, "synthetic")
    near, tables = copies.neighbours(library, judged, planted, settings.tail)
    tables["attacks"] = _attack(root, study, sides, wide, model)
    # Of one group alone, ninety people are too few for a bound: such rows are told, no bar.
    judging = [row for row in tables["attacks"] if "alone" not in row["attack"]]
    leaving = [row for row in judging if row["on"] == "samples"]
    worst, weights = (max(rows, key=lambda r: r["upper"]) for rows in (leaving, judging))
    overfit = attacks.overfit(root, study)
    attack = {
        "attack_auc": worst["auc"], "attack_auc_upper": worst["upper"],
        "weights_attack_auc_upper": weights["upper"], "overfit_attack_auc": overfit,
        "release_weights": bool(weights["upper"] <= MOST_ATTACK_AUC < LEAST_OVERFIT_AUC < overfit),
    }  # fmt: skip
    return near | attack, tables


def _attack(root: Path, study: Study, sides: Sides, space, model) -> list[dict]:
    """Return a row a membership attack on the diffusion model, its samples and the VAE."""

    def people(rows: np.ndarray) -> attacks.People:
        scans = space.transform(pooled(sides.take("scans", rows), study.grid))
        return attacks.People(sides.take("z", rows), sides.table.iloc[rows], scans, sides.ds[rows])

    members, others, known = map(people, (sides.rows["training"], sides.unseen,
                                          sides.rows["known"]))  # fmt: skip
    made = dataset.load_table(root, "synthetic")
    drawn = space.transform(pooled(dataset.load_volumes(root, "synthetic"), study.grid))
    synthetic = attacks.People(drawn, made, drawn, (made["group"] == "DS").to_numpy())
    brain, euploid = load_template(study.grid).brain, ~sides.ds
    given = [sides.take("scans", rows[euploid[rows]])
             for rows in (sides.rows["training"], sides.unseen, sides.rows["known"])]  # fmt: skip
    redrawn = [vae.reconstruct(model, some)[:, brain] for some in given[:2]]
    voxels = [some[:, brain] for some in given]
    mean_volume = model.mean_volume[0, 0].numpy()[brain]
    return [
        *attacks.on_samples(synthetic, known, members, others, study.release.components),
        *attacks.on_flow(root, study, members, others),
        *attacks.on_vae(redrawn, mean_volume, *voxels),
    ]

"""How hard must it be? DS against euploid as the disease grows faint, in the ledger.

The disease's local field is planted on half of the unseen euploids, whom no confounder tells from
the others; everybody is shifted by a part of a voxel, so that resampling tells nobody either.
"""

from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dsnb import dataset, latents, phantom, record, rivals
from dsnb.anomaly.people import People, Source
from dsnb.checks import BadInput
from dsnb.config import Study
from dsnb.space import GROUPS
from dsnb.strata import crossval
from dsnb.strata.crossval import Features
from dsnb.strata.people import dot_products, relative, standardise

LEDGER = "06_hard"
CODE = ("space", "rivals", "latents", "phantom", "anomaly", "vae/networks", "vae/task",
        "strata/crossval", "strata/people", "search/hard")  # fmt: skip
SEVERITIES = (0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
SEEDS = {"choose": 1, "judge": 2}  # who is planted, and how strongly; the first chooses a severity
SPLITS = ("scale", "calibration", "test")
FEWEST = 40


def plant(source: Source, rows: np.ndarray, severity: float, seed: int) -> tuple:
    """Return People of shifted volumes, half of them with the disease, and who has it (N,)."""
    rng = np.random.default_rng(seed)
    target = rng.permutation(np.arange(len(rows)) % 2)
    volumes = []
    for number, (row, planted) in enumerate(zip(rows, target)):
        shift = rng.uniform(-0.5, 0.5, (3, 1, 1, 1)) * source.grid.voxel_mm
        flow = np.broadcast_to(shift, (3, *source.grid.shape)).astype(np.float32)
        if planted:
            drawn = 10_000 * seed + number
            flow = flow + phantom.disease_displacement(source.grid, severity, drawn)[0]
        volume = np.asarray(source.volumes[row], np.float32)
        volumes.append(rivals.warp(volume, flow, source.grid.voxel_mm, order=3))
    volumes = rivals.without_halo(np.stack(volumes))
    return source.from_volumes(source.table.iloc[rows], volumes, moved=False), target


def judge(
    source: Source, table: pd.DataFrame, people: People, target: np.ndarray, statistics: dict
) -> list[dict]:
    """Return a row of scores a set of features: volumes, latents, deformation, what undo sees.

    A gain is the difference of AUROC from estimated volumes, paired by person.
    """
    settings = source.study.strata
    whole = np.stack([source.fill(values) for values in people.log_jacobian])
    z = people.latents.reshape(-1, *source.latents.shape[1:])
    volumes = relative(rivals.region_volumes(whole, source.grid))
    sets = {
        "estimated volumes": Features(columns=(volumes,)),
        "latents": Features(dot_products(standardise(z, statistics))),
        "deformation": Features(dot_products(people.log_jacobian)),
        "undone": Features(dot_products(people.undone)),
    }
    families, found, rows = table["family"].to_numpy(str), {}, []
    for name, features in sets.items():
        found[name] = crossval.predict(table, target, settings, features)
        row = crossval.score(name, target, found[name], families, settings, GROUPS)
        row["gain"], (row["gain_low"], row["gain_high"]) = crossval.gain(
            target, found[name], found["estimated volumes"], families, settings
        )
        rows.append(row)
    return rows


def grow_faint(root: Path, study: Study) -> None:
    """Fill the ledger with every severity of both seeds; refuses (E-FEW) fewer than 40 people."""
    torch.set_num_threads(1)  # the same arithmetic on any machine
    source, (table, _, _, statistics) = Source(root, study), latents.load(root)
    rows = source.rows("euploid", *SPLITS)
    if len(rows) < FEWEST:
        fix = "give a cohort with more euploids"
        raise BadInput("E-FEW", "prepared", "unseen euploids", len(rows), f"{FEWEST}", fix)
    table = table.set_index("participant_id").loc[source.table["participant_id"].iloc[rows]]
    parts = ("strata", "vae", "undo")
    settings = {name: asdict(getattr(study, name)) for name in parts}
    for (use, seed), severity in product(SEEDS.items(), SEVERITIES):
        task = {**dataset.identify(root), "part": use, "change": severity, "seed": seed}
        key = record.row_key(task | {"settings": settings}, CODE)
        if record.find_row(LEDGER, key):
            continue
        people, target = plant(source, rows, severity, seed)
        found = judge(source, table.reset_index(), people, target, statistics)
        record.add_row(LEDGER, key, {"features": found})
        told = ", ".join(f"{row['features']} {row['bacc']:.2f}" for row in found)
        record.say(f"severity {severity:g}, to {use}: balanced accuracy {told}")

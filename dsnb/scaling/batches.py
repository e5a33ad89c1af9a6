"""What a larger global batch costs in volumes, steps and time to one validation score.

More ranks mean a larger batch, and a larger batch learns less from a volume. The target is fixed
before any other batch is looked at: the score of the default batch at half of its volumes, mean
over seeds. The rate grows with the square root of the batch, the average forgets as many volumes.
"""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dsnb import dataset, distributed, record, space, training, vae
from dsnb.config import Study, Vae, replace
from dsnb.scaling.speed import FOREVER, WARMUP
from dsnb.scaling.tables import read_rows

LEDGER = "10_batch"
CODE = ("vae/networks", "vae/losses", "vae/task", "training/state", "scaling/batches")
BATCHES = (2, 4, 8, 16)  # the first is the default, which sets the target
SEEDS = (1, 2, 3)
VOLUMES = 576  # seen by the default; the others go on to twice as many at most
EVERY = 48  # volumes between judgements, a multiple of every batch
JUDGED = 10  # validation people who judge


def settings_of(study: Study, batch: int, seed: int) -> Vae:
    """Return the VAE's settings at a batch: rate and average follow the rule, the rate stays."""
    plan, times = study.vae.training, batch / BATCHES[0]
    rule = {"lr": plan.lr * times**0.5, "ema": plan.ema**times}
    plan = replace(plan, volumes=FOREVER, warmup=WARMUP / FOREVER, batch=batch, seed=seed, **rule)
    return replace(study.vae, training=plan)


def run(root: Path, study: Study, batch: int, seed: int, target_db: float | None) -> dict:
    """Train on one thread until `target_db`, or for all volumes; the scores along the way."""
    torch.set_num_threads(1)
    settings, brain = settings_of(study, batch, seed), space.load_template(study.grid).brain
    task = vae.VaeTask(root, settings, torch.device("cpu"))
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    judges = volumes[dataset.select(table, "euploid", "validation")[:JUDGED]].astype(np.float32)
    curve, spent, limit = [], 0.0, VOLUMES if target_db is None else 2 * VOLUMES
    with distributed.joined() as ranks:
        state = training.State(task, settings.training, {}, ranks)
        while state.counts["seen"] < limit:
            began, seen = time.process_time(), state.counts["seen"]
            rows = distributed.ordered_rows(task.rows, seed, seen, batch)
            training.step(state, task, rows, ranks)
            spent += time.process_time() - began
            if state.counts["seen"] % EVERY:
                continue
            score = vae.psnr_db(vae.reconstruct(state.ema, judges), judges, brain).mean()
            curve.append({"volumes": state.counts["seen"], "cpu_s": spent, "db": float(score)})
            if target_db is not None and score >= target_db:
                break
    return {"curve": curve, "target_db": target_db, "cpu_seconds": spent}


def bench_batch(root: Path, study: Study) -> None:
    """Fill the ledger with every batch and seed; the default's rows come first and set the target.

    What is there already stays.
    """
    cohort, target = dataset.identify(root), None
    for batch in BATCHES:
        rows = []
        for seed in SEEDS:
            about = {"part": "batch", "change": batch, "seed": seed, "target_db": target}
            about["settings"] = asdict(settings_of(study, batch, seed))
            key = record.row_key({**cohort, **about}, CODE)
            row = record.find_row(LEDGER, key)
            if row is None:
                found = run(root, study, batch, seed, target)
                record.add_row(LEDGER, key, found)
                row = key | found
                record.say(f"batch {batch} seed {seed}: {found['curve'][-1]}")
            rows.append(row)
        if batch == BATCHES[0]:
            target = round(float(np.mean([_middle(row["curve"]) for row in rows])), 2)


def _middle(curve: list[dict]) -> float:
    """Return the score at half of the default's volumes."""
    return next(point["db"] for point in curve if point["volumes"] >= VOLUMES // 2)


def read_batches(data: str) -> tuple[pd.DataFrame, dict]:
    """Return a row a batch and seed: volumes, steps and CPU-seconds to the target; and about it.

    Where the target was not reached, these are NaN, and `reached` is False.
    """
    known, about = read_rows(LEDGER, CODE, data)
    targets = [] if not len(known) else known["target_db"].dropna().unique()
    if not len(targets):
        return pd.DataFrame(), about
    rows = []
    for row in known.to_dict("records"):
        points = [point for point in row["curve"] if point["db"] >= targets[-1]]
        first = points[0] if points else {"volumes": np.nan, "cpu_s": np.nan}
        rows.append({"batch": row["change"], "seed": row["seed"], "reached": bool(points),
                     "volumes": first["volumes"], "steps": first["volumes"] / row["change"],
                     "cpu_s": first["cpu_s"]})  # fmt: skip
    return pd.DataFrame(rows), about | {"target_db": float(targets[-1])}

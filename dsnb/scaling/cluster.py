"""Steps on as many ranks as the launcher starts: strong and weak, by part, with their memory.

`python -m dsnb.launcher [torchrun options] bench cluster`: the same on two CPU processes over gloo
and on 32 GPUs over NCCL. Rank 0 adds one row to the ledger.
"""

import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch

from dsnb import dataset, distributed, record, training, vae
from dsnb.config import Study, replace
from dsnb.distributed import Ranks
from dsnb.scaling.parallel import LAPS

LEDGER = "10_cluster"
CODE = ("vae/networks", "vae/losses", "vae/task", "training/state", "scaling/cluster")
WARM_UP = 3  # steps of each kind before any is timed
TURNS = 3  # of steps with and without summed gradients


def _device_name(ranks: Ranks) -> str:
    """Return the GPU's name, or CPU and its threads a rank."""
    if ranks.device.type == "cuda":
        return torch.cuda.get_device_name(ranks.device)
    return f"CPU, {torch.get_num_threads()} threads a rank"


def _steps(state: training.State, task: vae.VaeTask, count: int, ranks: Ranks) -> list[dict]:
    """Take steps; each entry has the seconds of the slowest rank and of a step's parts here."""
    entries, plan = [], state.settings
    for _ in range(count):
        rows = distributed.ordered_rows(task.rows, plan.seed, state.counts["seen"], plan.batch)
        distributed.any_over_ranks(False, ranks.device)  # all are here, and the GPU is idle
        began = time.perf_counter()
        entry = training.step(state, task, rows, ranks)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
        entries.append(entry | {"step_s": time.perf_counter() - began})
    return entries


def measure(root: Path, study: Study, kind: str, batch: int, ranks: Ranks) -> dict:
    """Return a kind of scaling's medians over steps: seconds, parts, volumes/s, memory."""
    distributed.shares(batch, ranks.world, 1)
    settings = replace(study.vae, training=replace(study.vae.training, batch=batch, accumulate=1))
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)
    task = vae.VaeTask(root, settings, ranks.device)
    state = training.State(task, settings.training, {}, ranks)
    summed, apart = [], []
    for entries, silent in ((summed, False), (apart, True)) * TURNS:
        with state.objective.no_sync() if silent else nullcontext():
            some = _steps(state, task, WARM_UP + study.scaling.cluster_steps, ranks)
        entries += some[WARM_UP:]
    own = {"step_s": median(entry["step_s"] for entry in summed)}
    own["apart_s"] = median(entry["step_s"] for entry in apart)
    own |= {f"{lap}_s": median(entry[f"{lap}_s"] for entry in apart) for lap in LAPS}
    own["peak_mib"] = max(entry["peak_mib"] for entry in summed)
    everyone = distributed.gathered(ranks, own)
    slowest = {name: max(other[name] for other in everyone) for name in own}
    speed = batch / slowest["step_s"]
    return {"kind": kind, "batch": batch, "volumes_per_second": speed, **slowest}


def bench_cluster(root: Path, study: Study) -> None:
    """Measure strong and weak scaling on the ranks that were launched; add one row."""
    plan, began = study.scaling, time.process_time()
    with distributed.joined() as ranks:
        batches = {"strong": plan.cluster_batch, "weak": plan.cluster_share * ranks.world}
        task = {
            **dataset.identify(root), "part": "cluster", "world": ranks.world,
            "nodes": int(os.environ.get("GROUP_WORLD_SIZE", 1)), "device": _device_name(ranks),
            "backend": torch.distributed.get_backend(), "scaling": asdict(plan),
            "settings": asdict(study.vae),
        }  # fmt: skip
        key = record.row_key(task, CODE)
        known = distributed.from_first(ranks, lambda: record.find_row(LEDGER, key))
        if known:
            return
        kinds = [measure(root, study, kind, batch, ranks) for kind, batch in batches.items()]
        spent = sum(distributed.gathered(ranks, time.process_time() - began))
        if ranks.first:
            record.add_row(LEDGER, key, {"kinds": kinds, "cpu_seconds": spent})
            said = ", ".join(f"{k['kind']} {k['volumes_per_second']:.2f} volumes/s" for k in kinds)
            record.say(f"cluster: {ranks.world} ranks on {task['nodes']} nodes: {said}")


def read_cluster(gpus: bool | None = None) -> pd.DataFrame:
    """Return a row a run and kind: who, speed, parts, and efficiency against one rank where known.

    `gpus`: only rows measured on GPUs (True) or CPUs (False).
    """
    rows = []
    for row in record.ledger_rows(LEDGER):
        words = ("preset", "data", "device", "backend", "nodes", "world")
        about = {name: row[name] for name in words} | {"stale": record.is_stale(row, CODE)}
        rows += [{**about, **kind} for kind in row["kinds"]]
    table = pd.DataFrame(rows)
    if not len(table):
        return table
    if gpus is not None:
        table = table[(table["backend"] == "nccl") == gpus]
    table = table.drop_duplicates(["preset", "device", "nodes", "world", "kind"], keep="last")
    table["efficiency"] = np.nan
    for _, part in table.groupby(["preset", "device", "kind"]):
        alone = part.loc[part["world"] == 1, "volumes_per_second"]
        if len(alone):
            ratio = part["volumes_per_second"] / part["world"] / alone.iloc[-1]
            table.loc[part.index, "efficiency"] = ratio
    return table.reset_index(drop=True)

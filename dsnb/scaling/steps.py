"""Memory and time of real training steps on this machine: grids, networks, batches, recompute.

Each row is two fresh processes of one thread: one is timed, the other gives freed memory back at
once, so that its peak is what was in use.
"""

import json
import os
import subprocess
import sys
import time
from statistics import median

import numpy as np
import pandas as pd
import torch

from dsnb import distributed, record, training
from dsnb.config import PRESETS, Study, load_study, replace
from dsnb.scaling import cost

LEDGER = "10_steps"
CODE = (*cost.CODE, "scaling/steps")
NETWORKS = ("lean", "eighth", "pooled", "flat", "morph", "sharp", "monai")
BATCHES = {"small": (1, 4), "medium": (1,)}  # preset: volumes a step
LARGEST = ("full", "lean", 1)  # what 24 GB hold of the full grid
STEPS, FEWER = 3, {"full": 1}  # timed, after one that warms up
KNOWN = ["preset", "network", "recompute", "volumes"]


def time_steps(study: Study, network: str, recompute: bool, volumes: int) -> float:
    """Return the median seconds of a training step of a fresh process, one thread."""
    words = [sys.executable, "-m", "dsnb.scaling.steps", study.name, network, str(int(recompute))]
    answer = subprocess.run(
        [*words, str(volumes)], capture_output=True, text=True, cwd=record.HOME.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if answer.returncode:
        raise RuntimeError(f"{network} could not be timed: {answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])["step_s"]


def _time_here(study: Study, network: str, recompute: bool, volumes: int) -> None:
    """Take the steps in this process and print the median of their seconds."""
    torch.set_num_threads(1)
    settings = cost.settings_of(study, network, recompute)
    plan, spent = replace(settings.training, batch=volumes, accumulate=1), []
    with distributed.joined() as ranks:
        task = cost._make_task(study.grid.shape, replace(settings, training=plan))
        state = training.State(task, plan, {}, ranks)
        for first in range(1 + FEWER.get(study.name, STEPS)):
            began = time.perf_counter()
            training.step(state, task, np.arange(volumes) + first, ranks)
            spent.append(time.perf_counter() - began)
    sys.stdout.write(json.dumps({"step_s": median(spent[1:])}))


def bench_steps() -> None:
    """Fill the ledger: every network at 3 and 2 mm, the leanest at 1 mm; what is there stays."""
    asked = [
        (preset, network, volumes)
        for preset, sizes in BATCHES.items() for volumes in sizes for network in NETWORKS
    ]  # fmt: skip
    for preset, network, volumes in (*asked, LARGEST):
        for recompute in (False, True):
            _add(PRESETS[preset], network, recompute, volumes)


def _add(study: Study, network: str, recompute: bool, volumes: int) -> None:
    """Add one row, unless the ledger has it."""
    row = dict(zip(KNOWN, (study.name, network, recompute, volumes)))
    key = record.row_key(row | {"shape": study.grid.shape}, CODE)
    if record.find_row(LEDGER, key) is None:
        words = study, network, recompute, volumes
        rise = cost.calculate(study, network, recompute, volumes=volumes)["rise_mib"]
        found = {"measured_mib": cost.measure(*words)["measured_mib"], "calculated_mib": rise}
        record.add_row(LEDGER, key, found | {"step_s": time_steps(*words)})
        record.say(f"{study.name} {network} x {volumes}: {found['measured_mib']:.0f} MiB")


def read_steps() -> tuple[pd.DataFrame, dict]:
    """Return a row a grid, network, batch and `recompute`: MiB, seconds; and about the rows."""
    rows = pd.DataFrame(record.ledger_rows(LEDGER))
    if not len(rows):
        return rows, {"rows": 0, "stale": 0}
    rows = rows.drop_duplicates(KNOWN, keep="last")
    stale = sum(record.is_stale(row, CODE) for row in rows.to_dict("records"))
    sizes = ["measured_mib", "calculated_mib", "step_s"]
    table = rows[[*KNOWN, *sizes]].reset_index(drop=True)
    return table, {"rows": len(rows), "stale": stale}


if __name__ == "__main__":
    _time_here(load_study(sys.argv[1]), sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]))

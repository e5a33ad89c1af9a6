"""Benchmarks of data-parallel training: speed, equal losses, and resume to the bit.

Two arrangements of the same cores (1 process x n threads, n processes x 1 thread) stay alive side
by side and step in turns, so that whatever else the machine does falls on both.
"""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import torch

from dsnb import checkpoints, distributed, record, training, vae
from dsnb.config import Scaling, Study, Training, Vae, replace
from dsnb.training.clock import host_peak_mib

CODE = ("scaling/parallel", "checkpoints", "training/loop", *vae.CODE)
PATIENCE_S = 300  # for one round of one arrangement


def _plan(study: Study) -> Training:
    """Return the VAE's training settings at the benchmark's global batch."""
    return replace(study.vae.training, batch=study.scaling.batch, accumulate=1)


def _work(pipe: Connection, place: dict, threads: int, root: Path, settings: Vae) -> None:
    """Be one process of an arrangement: take as many steps as the pipe says, again and again.

    Each answer holds seconds, losses and peak memory.
    """
    os.environ |= place
    torch.set_num_threads(threads)
    plan = settings.training
    with distributed.joined() as ranks:
        task = vae.VaeTask(root, settings, ranks.device)
        state = training.State(task, plan, {}, ranks)
        while True:
            count = pipe.recv()
            distributed.any_over_ranks(False, ranks.device)  # all are here
            began, losses = time.perf_counter(), []
            for _ in range(count):
                seen = state.counts["seen"]
                rows = distributed.ordered_rows(task.rows, plan.seed, seen, plan.batch)
                loss = training.step(state, task, rows, ranks)["loss"]
                losses.append(loss.hex())  # every bit: results files round to six digits
            seconds = time.perf_counter() - began
            pipe.send({"seconds": seconds, "losses": losses, "peak_mib": host_peak_mib()})


@contextmanager
def arrangement(root: Path, study: Study, processes: int) -> Iterator[Callable[[], dict]]:
    """Keep an arrangement of processes alive; yields a function that runs one round."""
    fresh, threads = get_context("spawn"), max(1, max(study.scaling.processes) // processes)
    settings, workers = replace(study.vae, training=_plan(study)), []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    place["WORLD_SIZE"] = str(processes)
    if sys.platform == "linux":
        place["GLOO_SOCKET_IFNAME"] = "lo"  # one machine needs no name service
    for rank in range(processes):
        ours, theirs = fresh.Pipe()
        own = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = fresh.Process(target=_work, args=(theirs, own, threads, root, settings))
        process.start()
        theirs.close()  # or the end of the process would not be heard
        workers.append((process, ours))

    def go() -> dict:
        for _, pipe in workers:
            pipe.send(study.scaling.steps)
        try:
            if all(pipe.poll(PATIENCE_S) for _, pipe in workers):
                return [pipe.recv() for _, pipe in workers][0]
        except (EOFError, OSError):
            raise RuntimeError("a process of the benchmark ended: see its last words") from None
        raise RuntimeError(f"the benchmark's round did not end within {PATIENCE_S} s")

    try:
        yield go
    finally:
        for process, _ in workers:
            process.terminate()


def race(root: Path, study: Study) -> dict[str, list[dict]]:
    """Let all arrangements step in turns; their rounds, warm-up first, by name `1x2`, `2x1`."""
    scaling, goes = study.scaling, {}
    with ExitStack() as stack:
        for processes in scaling.processes:
            name = f"{processes}x{max(scaling.processes) // processes}"
            goes[name] = stack.enter_context(arrangement(root, study, processes))
        answers = {name: [] for name in goes}
        for number in range(scaling.rounds + 1):
            turns = list(goes)[:: 1 if number % 2 else -1]  # who goes first alternates
            for name in turns:
                answers[name].append(goes[name]())
            record.progress("bench", number, scaling.rounds)
    return answers


def train_alike(root: Path, study: Study) -> dict[str, list[dict]]:
    """Let more processes than cores take the first steps; their rounds by name, as of `race`."""
    scaling, processes = study.scaling, study.scaling.parity_processes
    if not processes:
        return {}
    with arrangement(root, study, processes) as go:
        rounds = -(-scaling.parity_steps // scaling.steps)
        return {f"{processes}x1": [go() for _ in range(rounds)]}


def resumes_identically(root: Path, folder: Path, study: Study, steps: int = 3) -> bool:
    """Train 2 x `steps` steps, then the second half again from the checkpoint between; compare.

    Weights, their average, optimizer and counters are compared to the bit, since a lost average
    leaves the losses as they were.
    """
    plan, whole, ends = _plan(study), folder / "whole", []
    every = plan.batch * steps
    plan = replace(plan, volumes=2 * every, checkpoint_every=every, validate_every=2 * every)
    settings = replace(study.vae, training=plan)
    for run in (whole, folder / "resumed"):
        run.mkdir(parents=True, exist_ok=True)
        if run != whole:
            shutil.copy(checkpoints.listed(whole)[-1], run)
        training.train(run, vae.VaeTask(root, settings, torch.device("cpu")), plan, {})
        ends.append(checkpoints.require(run, "seen"))
    for run in (whole, folder / "resumed"):
        shutil.rmtree(run)
    return ends[0]["seen"] == plan.volumes and checkpoints.identical(*ends)


def bench(root: Path, study: Study) -> dict:
    """Measure efficiency (2 processes against 1 on the same cores), parity and exact resume."""
    settings = {"scaling": asdict(study.scaling), "vae": asdict(study.vae)}
    product = record.begin(root, "runs/scaling", "bench", settings, ("prepared",), CODE)
    if not product.done:
        found = {
            "rounds": race(root, study),
            "alike": train_alike(root, study),
            "resume_identical": resumes_identically(root, product.folder, study),
            "cores": os.cpu_count(),
        }
        record.write_json(product.folder / "bench.json", found)
        product.finish()
    return _results(json.loads((product.folder / "bench.json").read_text()), study.scaling)


def _losses(found: dict, steps: int) -> dict[str, np.ndarray]:
    """Return the losses (steps,) of every arrangement, to the last bit."""
    return {
        name: np.array(
            [float.fromhex(loss) for entry in entries for loss in entry["losses"]][:steps]
        )
        for name, entries in (found["rounds"] | found["alike"]).items()
    }


def _results(found: dict, scaling: Scaling) -> dict:
    """Turn the rounds into headline, tables and timing; the warm-up round is left out of times."""
    volumes = scaling.steps * scaling.batch
    speeds = {
        name: [volumes / entry["seconds"] for entry in entries[1:]]
        for name, entries in found["rounds"].items()
    }
    losses, (one, many) = _losses(found, scaling.parity_steps), list(speeds)
    gaps = {name: np.abs(losses[name] / losses[one] - 1) for name in losses if name != one}
    reasons = {"model_error_pct": "a predicted curve needs more arrangements"}
    efficiency = median(speeds[many]) / median(speeds[one])
    if found["cores"] < max(scaling.processes):
        efficiency, reasons["ddp_efficiency"] = None, f"this machine has {found['cores']} core"
    rows = [
        {"arrangement": name, "volumes_per_second": median(speeds[name]),
         "slowest": min(speeds[name]), "fastest": max(speeds[name]),
         "peak_mib": max(entry["peak_mib"] for entry in found["rounds"][name])}
        for name in speeds
    ]  # fmt: skip
    headline = {
        "ddp_efficiency": efficiency,
        "parity_error": float(max(gap.max() for gap in gaps.values())),
        "resume_identical": found["resume_identical"],
        "model_error_pct": None,
    }
    tables = {
        "parity": [{"step": n, **{name: losses[name][n] for name in losses},
                    **{f"gap_{name}": gap[n] for name, gap in gaps.items()}}
                   for n in range(len(losses[one]))],
        "reasons": reasons,
    }  # fmt: skip
    timing = {"volumes_per_second": median(speeds[one]), "arrangements": rows}
    return {"headline": headline, "tables": record.plain(tables), "timing": record.plain(timing)}

"""Benchmarks of data-parallel training: speed, equal losses, and resume to the bit.

Arrangements of cores (1 process x n threads, n processes x 1 thread, ...) stay alive side by side
and step in turns, so that whatever else the machine does falls on all of them. Those of one shape
share their processes.
"""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import torch

from dsnb import checkpoints, distributed, record, training, vae
from dsnb.config import Scaling, Study, Training, replace
from dsnb.training.clock import host_peak_mib

CODE = ("scaling/parallel", "checkpoints", "training/loop", *vae.CODE)
PATIENCE_S = 300  # for one round of one arrangement
LAPS = ("load", "forward", "backward", "update")


@dataclass(frozen=True)
class Arrangement:
    """Processes and threads each, their global batch in multiples of the benchmark's."""

    processes: int
    threads: int = 1
    batches: int = 1
    summed: bool = True  # gradients over processes; without it, what the sum costs is left


def arrangements(many: int) -> dict[str, Arrangement]:
    """Return who steps in turns, by name; the first two share all cores in two ways."""
    return {
        f"1x{many}": Arrangement(1, many), f"{many}x1": Arrangement(many),
        "1x1": Arrangement(1), f"{many}x1 weak": Arrangement(many, batches=many),
        f"{many}x1 apart": Arrangement(many, summed=False),
    }  # fmt: skip


def _plan(study: Study, batches: int = 1) -> Training:
    """Return the VAE's training settings at the benchmark's global batch, or some of them."""
    return replace(study.vae.training, batch=batches * study.scaling.batch, accumulate=1)


def _work(pipe: Connection, place: dict, some: dict, root: Path, study: Study) -> None:
    """Be one process of `some` arrangements: step as the one that the pipe names, again and again.

    Each arrangement trains a network of its own. An answer holds seconds, those of a step's parts,
    losses and peak memory.
    """
    os.environ |= place
    torch.set_num_threads(max(one.threads for one in some.values()))
    with distributed.joined() as ranks:
        states = {}
        for name, one in some.items():
            settings = replace(study.vae, training=_plan(study, one.batches))
            task = vae.VaeTask(root, settings, ranks.device)
            states[name] = task, training.State(task, settings.training, {}, ranks)
        while True:
            name = pipe.recv()
            distributed.any_over_ranks(False, ranks.device)  # all are here
            began = time.perf_counter()
            with nullcontext() if some[name].summed else states[name][1].objective.no_sync():
                entries = [_step(*states[name], ranks) for _ in range(study.scaling.steps)]
            seconds = time.perf_counter() - began
            laps = {lap: sum(entry[f"{lap}_s"] for entry in entries) for lap in LAPS}
            losses = [entry["loss"].hex() for entry in entries]  # results files round to six digits
            answer = {"seconds": seconds, "losses": losses, "peak_mib": host_peak_mib()}
            pipe.send(answer | {"laps": laps})


def _step(task: vae.VaeTask, state: training.State, ranks: distributed.Ranks) -> dict:
    """Take the next step of a training."""
    plan, seen = state.settings, state.counts["seen"]
    rows = distributed.ordered_rows(task.rows, plan.seed, seen, plan.batch)
    return training.step(state, task, rows, ranks)


@contextmanager
def alive(root: Path, study: Study, some: dict) -> Iterator[Callable[[str], dict]]:
    """Keep processes alive, all of `some` arrangements; yields a function that runs a round."""
    fresh, workers, (processes,) = get_context("spawn"), [], {a.processes for a in some.values()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    place["WORLD_SIZE"] = str(processes)
    if sys.platform == "linux":
        place["GLOO_SOCKET_IFNAME"] = "lo"  # one machine needs no name service
    for rank in range(processes):
        ours, theirs = fresh.Pipe()
        own = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = fresh.Process(target=_work, args=(theirs, own, some, root, study))
        process.start()
        theirs.close()  # or the end of the process would not be heard
        workers.append((process, ours))

    def go(name: str) -> dict:
        for _, pipe in workers:
            pipe.send(name)
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
    """Let all arrangements step in turns; their rounds, warm-up first, by name."""
    scaling, goes = study.scaling, {}
    everyone = arrangements(scaling.processes)
    with ExitStack() as stack:
        for shape in dict.fromkeys((one.processes, one.threads) for one in everyone.values()):
            some = {k: one for k, one in everyone.items() if shape == (one.processes, one.threads)}
            goes |= dict.fromkeys(some, stack.enter_context(alive(root, study, some)))
        answers = {name: [] for name in everyone}
        for number in range(scaling.rounds + 1):
            turns = list(everyone)[:: 1 if number % 2 else -1]  # who goes first alternates
            for name in turns:
                answers[name].append(goes[name](name))
            record.progress("bench", number, scaling.rounds)
    return answers


def train_alike(root: Path, study: Study) -> dict[str, list[dict]]:
    """Let more processes than cores take the first steps; their rounds by name, as of `race`."""
    scaling, processes = study.scaling, study.scaling.parity_processes
    if not processes:
        return {}
    name = f"{processes}x1"
    with alive(root, study, {name: Arrangement(processes)}) as go:
        return {name: [go(name) for _ in range(-(-scaling.parity_steps // scaling.steps))]}


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


def _losses(found: dict, names: list[str], steps: int) -> dict[str, np.ndarray]:
    """Return the losses (steps,) of some arrangements, to the last bit."""
    rounds = found["rounds"] | found["alike"]
    return {
        name: np.array(
            [float.fromhex(loss) for entry in rounds[name] for loss in entry["losses"]][:steps]
        )
        for name in names
    }


def _efficiencies(speeds: dict[str, list[float]], many: int) -> list[dict]:
    """Return the speed of many processes over that of as many times one: medians and quartiles.

    Quartiles are those of the ratio in one round. `shared` compares two ways to use all cores.
    """
    pairs = {
        "shared": (f"{many}x1", f"1x{many}", 1), "strong": (f"{many}x1", "1x1", many),
        "weak": (f"{many}x1 weak", "1x1", many),
    }  # fmt: skip
    rows = []
    for kind, (own, other, times) in pairs.items():
        ratios = np.divide(speeds[own], speeds[other]) / times
        low, high = np.quantile(ratios, (0.25, 0.75))
        middle = median(speeds[own]) / median(speeds[other]) / times
        rows.append({"kind": kind, "processes": many, "efficiency": middle,
                     "low": low, "high": high, "rounds": len(ratios)})  # fmt: skip
    return rows


def _split(rounds: dict[str, list[dict]], steps: int, many: int) -> list[dict]:
    """Return the milliseconds of a step by part, medians over rounds, of 1 and many processes.

    `sum` is by how much a step is longer than the same one without summing gradients, whose parts
    are shown; `rest` is clipping, and agreeing on the loss terms.
    """

    def parts(name: str) -> dict[str, float]:
        laps = [entry["laps"] | {"step": entry["seconds"]} for entry in rounds[name][1:]]
        return {lap: 1000 * median(one[lap] for one in laps) / steps for lap in (*LAPS, "step")}

    whole = parts(f"{many}x1")
    rows = []
    for name, own, step in (
        ("1x1", parts("1x1"), parts("1x1")["step"]),
        (f"{many}x1", parts(f"{many}x1 apart"), whole["step"]),
    ):
        rest = own["step"] - sum(own[lap] for lap in LAPS)
        split = {f"{lap}_ms": own[lap] for lap in LAPS}
        split |= {"rest_ms": rest, "sum_ms": step - own["step"], "step_ms": step}
        rows.append({"arrangement": name, **split})
    return rows


def _results(found: dict, scaling: Scaling) -> dict:
    """Turn the rounds into headline, tables and timing; the warm-up round is left out of times."""
    rounds, many, reasons = found["rounds"], scaling.processes, {}
    made, volumes = arrangements(many), scaling.steps * scaling.batch
    speeds = {
        name: [made[name].batches * volumes / entry["seconds"] for entry in entries[1:]]
        for name, entries in rounds.items()
    }
    one, same = f"1x{many}", [f"1x{many}", f"{many}x1", *found["alike"]]
    losses = _losses(found, same, scaling.parity_steps)
    gaps = {name: np.abs(losses[name] / losses[one] - 1) for name in same[1:]}
    efficiencies = _efficiencies(speeds, many)
    ratios = {row["kind"]: row["efficiency"] for row in efficiencies}
    headline = {
        "ddp_efficiency": ratios["shared"],
        "strong_efficiency": ratios["strong"],
        "weak_efficiency": ratios["weak"],
        "parity_error": float(max(gap.max() for gap in gaps.values())),
        "resume_identical": found["resume_identical"],
    }
    if found["cores"] < many:
        for name in ("ddp_efficiency", "strong_efficiency", "weak_efficiency"):
            headline[name], reasons[name] = None, f"this machine has {found['cores']} core"
    rows = [
        {"arrangement": name, "volumes_per_second": median(speeds[name]),
         "slowest": min(speeds[name]), "fastest": max(speeds[name]),
         "peak_mib": max(entry["peak_mib"] for entry in rounds[name])}
        for name in speeds
    ]  # fmt: skip
    tables = {
        "efficiency": efficiencies if found["cores"] >= many else [],
        "split": _split(rounds, scaling.steps, many),
        "parity": [{"step": n, **{name: losses[name][n] for name in losses},
                    **{f"gap_{name}": gap[n] for name, gap in gaps.items()}}
                   for n in range(len(losses[one]))],
        "reasons": reasons,
    }  # fmt: skip
    timing = {"volumes_per_second": median(speeds[one]), "arrangements": rows}
    return {"headline": headline, "tables": record.plain(tables), "timing": record.plain(timing)}

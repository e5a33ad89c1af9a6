"""Benchmarks of data-parallel training: speed, equal losses, and resume to the bit.

Two arrangements of the same cores (1 process x n threads, n processes x 1 thread) stay alive side
by side and step in turns, so that whatever else the machine does falls on both.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import torch

from dsnb import checkpoints, distributed, record, training, vae
from dsnb.config import Scaling, Study, Training, Vae, replace, vae_settings
from dsnb.search import count_cost
from dsnb.training.clock import host_peak_mib

CODE = ("scaling/parallel", "checkpoints", "training/loop", *vae.CODE)
PATIENCE_S = 300  # for one round of one arrangement


def _plan(study: Study) -> Training:
    """Return the VAE's training settings at the benchmark's global batch."""
    return replace(study.vae.training, batch=study.scaling.batch, accumulate=1)


class _Worker:
    """One process of an arrangement: a training that takes some steps whenever it is told to."""

    def __init__(self, root: Path, settings: Vae, ranks: distributed.Ranks):
        self.ranks, self.plan = ranks, settings.training
        self.task = vae.VaeTask(root, settings, ranks.device)
        self.state = training.State(self.task, self.plan, {}, ranks)

    def steps(self, count: int) -> dict:
        """Take `count` steps together with the other ranks; seconds and losses."""
        distributed.any_over_ranks(False, self.ranks.device)  # all are here
        began, losses = time.perf_counter(), []
        for _ in range(count):
            seen = self.state.counts["seen"]
            rows = distributed.ordered_rows(self.task.rows, self.plan.seed, seen, self.plan.batch)
            loss = training.step(self.state, self.task, rows, self.ranks)["loss"]
            losses.append(loss.hex())  # every bit: results files round to six digits
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "losses": losses, "peak_mib": host_peak_mib()}


def work(root: Path, folder: Path) -> None:
    """Be one process of an arrangement: answer each `go-<n>` file with `done-<n>.json`."""
    plan = json.loads((folder / "plan.json").read_text())
    settings = vae_settings(plan["vae"] | {"training": plan["training"]})
    with distributed.joined() as ranks:
        worker = _Worker(root, settings, ranks)
        for number in range(plan["rounds"] + 1):  # the first is a warm-up
            if ranks.first:
                _wait(folder / f"go-{number}")
            answer = worker.steps(plan["steps"])
            if ranks.first:
                record.write_json(folder / f"done-{number}.json", answer)


def _wait(path: Path, process: subprocess.Popen | None = None) -> None:
    """Wait for a file; RuntimeError when it does not come or the process that owes it is gone."""
    ends = time.monotonic() + PATIENCE_S
    while not path.exists():
        gone = process is not None and process.poll() is not None
        if gone or time.monotonic() > ends:
            told = (path.parent / "log.txt").read_text()[-2000:]
            raise RuntimeError(f"the benchmark's {path.name} did not come: {told}")
        time.sleep(0.01)


@contextmanager
def arrangement(
    root: Path, folder: Path, study: Study, processes: int, rounds: int | None = None
) -> Iterator:
    """Keep an arrangement of processes alive; yields a function that runs a round by number."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("go-*"), *folder.glob("done-*")):
        old.unlink()
    scaling = study.scaling
    plan = {"rounds": scaling.rounds if rounds is None else rounds, "steps": scaling.steps}
    plan |= {"vae": asdict(study.vae), "training": asdict(_plan(study))}
    record.write_json(folder / "plan.json", plan)
    threads = max(1, max(scaling.processes) // processes)
    search_path = os.pathsep.join([str(record.HOME.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": search_path,
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # one machine needs no name service
    with (folder / "log.txt").open("w") as log:
        words = [*_torchrun(processes), "-m", "dsnb.scaling.parallel", str(root), str(folder)]
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)

        def go(number: int) -> dict:
            (folder / f"go-{number}").touch()
            _wait(folder / f"done-{number}.json", process)
            return json.loads((folder / f"done-{number}.json").read_text())

        try:
            yield go
        finally:
            process.terminate()  # the launcher passes it on
            process.wait(timeout=60)


def _torchrun(processes: int) -> list[str]:
    """Return the launcher's words for some processes on this machine, at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return [*words, "--master-addr", "127.0.0.1", "--master-port", str(port)]


def race(root: Path, folder: Path, study: Study) -> dict[str, list[dict]]:
    """Let all arrangements step in turns; their rounds, warm-up first, by name `1x2`, `2x1`."""
    scaling, goes = study.scaling, {}
    with ExitStack() as stack:
        for processes in scaling.processes:
            name = f"{processes}x{max(scaling.processes) // processes}"
            held = arrangement(root, folder / name, study, processes)
            goes[name] = stack.enter_context(held)
        answers = {name: [] for name in goes}
        for number in range(scaling.rounds + 1):
            turns = list(goes)[:: 1 if number % 2 else -1]  # who goes first alternates
            for name in turns:
                answers[name].append(goes[name](number))
            record.progress("bench", number, scaling.rounds)
    return answers


def train_alike(root: Path, folder: Path, study: Study) -> dict[str, list[dict]]:
    """Let more processes than cores take the first steps; their rounds by name, as of `race`."""
    scaling, name = study.scaling, f"{study.scaling.parity_processes}x1"
    processes, rounds = scaling.parity_processes, -(-scaling.parity_steps // scaling.steps)
    if not processes:
        return {}
    with arrangement(root, folder / name, study, processes, rounds - 1) as go:
        return {name: [go(number) for number in range(rounds)]}


class _Cut(Exception):
    """The end that `resumes_identically` puts to its first training."""


class _CutTask(vae.VaeTask):
    """A task that dies as it loads batch number `after`."""

    after = -1

    def load(self, rows: np.ndarray) -> torch.Tensor:
        self.after -= 1
        if self.after == -1:
            raise _Cut
        return super().load(rows)


def resumes_identically(root: Path, folder: Path, study: Study, steps: int = 3) -> bool:
    """Train 2 x `steps` steps at once, and broken off after `steps` and resumed; compare all bits.

    Weights, their average, optimizer and counters are compared, since a lost average leaves the
    losses as they were.
    """
    plan, ends = _plan(study), []
    every = plan.batch * steps
    plan = replace(plan, volumes=2 * every, checkpoint_every=every, validate_every=2 * every)
    settings = replace(study.vae, training=plan)
    for name, cuts in (("whole", (-1,)), ("broken", (steps + 1, -1))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for cut in cuts:
            task = _CutTask(root, settings, torch.device("cpu"))
            task.after = cut
            with suppress(_Cut):
                training.train(folder / name, task, plan, {})
        ends.append(checkpoints.require(folder / name, "seen"))
        shutil.rmtree(folder / name)
    return ends[0]["seen"] == plan.volumes and checkpoints.identical(*ends)


def bench(root: Path, study: Study) -> dict:
    """Measure efficiency (2 processes against 1 on the same cores), parity and exact resume."""
    settings = {"scaling": asdict(study.scaling), "vae": asdict(study.vae)}
    product = record.begin(root, "runs/scaling", "bench", settings, ("prepared",), CODE)
    if not product.done:
        rounds = race(root, product.folder, study)
        alike = train_alike(root, product.folder, study)
        found = {
            "rounds": rounds,
            "alike": alike,
            "resume_identical": resumes_identically(root, product.folder, study),
            "gigaflop": count_cost(vae.VaeTask(root, study.vae, torch.device("cpu")))["gigaflop"],
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
        "gigaflop_per_volume": found["gigaflop"],
        "reasons": reasons,
    }  # fmt: skip
    timing = {
        "volumes_per_second": median(speeds[one]), "arrangements": rows, "rounds": speeds,
        "cores": found["cores"],
    }  # fmt: skip
    return {"headline": headline, "tables": record.plain(tables), "timing": record.plain(timing)}


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]))

"""What summing gradients costs on links of known rate: real DDP between hosts that are none.

The model (`model.py`) is fitted on three layouts of 2 and 4 ranks, two gradient sizes and two
rates, chosen before the ledger was filled; all else is held out: sizes and rates between, larger
sizes, other ranks and hosts.
"""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsnb import record, vae
from dsnb.config import SMALL
from dsnb.scaling import hosts

LEDGER = "10_links"
CODE = ("scaling/links", "scaling/hosts", "scaling/rank")
RANK = Path(__file__).with_name("rank.py")
TIMES = (1, 4, 16, 44)  # gradients of the lean VAE at `small`, times this; 44: those of `full`
GIGABITS = (0.1, 1.0, 3.0, 10.0)
FITTED = {"layout": ((2, 2), (4, 4), (4, 2)), "times": (1, 16), "gigabits": (0.1, 10.0)}
COMPUTE_S = 0.2  # that a whole step sleeps
# A kind of step: what it sleeps, and whether gradients are summed over the ranks.
KINDS = {"local": (0.0, False), "bare": (0.0, True), "whole": (COMPUTE_S, True)}
ROUNDS, STEPS = 3, 3  # over all configurations, and steps each time
SLOW_S = 3.0  # wire time of a step from which on a configuration is left out
MIB_A_RANK = 300


@dataclass(frozen=True)
class Layout:
    """Ranks, hosts, and what they sum."""

    world: int
    count: int  # hosts
    times: tuple[int, ...] = TIMES
    gigabits: tuple[float, ...] = GIGABITS


LAYOUTS = (
    Layout(2, 2), Layout(3, 3, TIMES[:3]), Layout(4, 4, TIMES[:3]), Layout(4, 2, TIMES[:3]),
    Layout(8, 8, (1, 16), (1.0, 10.0)), Layout(8, 2, (1, 16), (1.0, 10.0)),
    Layout(16, 4, (1, 16), (1.0, 10.0)), Layout(32, 8, (1, 16), (1.0, 10.0)),
)  # fmt: skip


def sizes(times: int) -> list[int]:
    """Return `times` the lean VAE's gradient sizes (numbers) at `small`, in order."""
    mean = np.zeros(SMALL.grid.shape, np.float32)
    return [times * one.numel() for one in vae.build(SMALL.vae, mean, mean).parameters()]


class Ranks:
    """Emulated ranks that run; `ask` gives all of them a task."""

    def __init__(self, made: hosts.Hosts, world: int):
        per_host, self.workers = world // len(made.names), []
        own = {"MASTER_ADDR": hosts.address(0), "MASTER_PORT": "29577", "WORLD_SIZE": str(world),
               "GLOO_SOCKET_IFNAME": hosts.DEVICE, "OMP_NUM_THREADS": "1",
               "TORCH_CPP_LOG_LEVEL": "ERROR"}  # fmt: skip
        for rank in range(world):
            words = made.inside(made.names[rank // per_host], [sys.executable, "-P", str(RANK)])
            place, out = os.environ | own | {"RANK": str(rank)}, None if rank else subprocess.PIPE
            self.workers.append(
                subprocess.Popen(words, stdin=subprocess.PIPE, stdout=out, env=place, text=True)
            )

    def ask(self, task: dict) -> dict:
        """Return what rank 0 answers to a task that all ranks take on."""
        for worker in self.workers:
            worker.stdin.write(json.dumps(task) + "\n")
            worker.stdin.flush()
        answer = self.workers[0].stdout.readline()
        if not answer:
            raise RuntimeError("an emulated rank ended: see its last words")
        return json.loads(answer)

    def close(self) -> None:
        """End the ranks, whatever they do."""
        for worker in self.workers:
            with suppress(OSError):
                worker.stdin.close()
        for worker in self.workers:
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()


def wire_bytes(world: int, gradient_bytes: float) -> float:
    """Return what each rank of a ring sends to sum gradients: 2 (P - 1) / P of their bytes."""
    return 2 * (world - 1) / world * gradient_bytes


def measure(layout: Layout) -> dict:
    """Return the seconds of steps of each gradient size and rate, by kind; and all CPU-seconds.

    Rounds over all configurations, back and forth, so that a busy spell falls on many of them.
    """
    shapes = {times: sizes(times) for times in layout.times}
    plans = [
        (times, rate) for rate in layout.gigabits for times in layout.times
        if wire_bytes(layout.world, 4 * sum(shapes[times])) * 8e-9 / rate < SLOW_S
    ]  # fmt: skip
    found = {plan: {name: [] for name in KINDS} for plan in plans}
    with ExitStack() as stack:
        made = stack.enter_context(hosts.hosts(layout.count))
        ranks = Ranks(made, layout.world)
        stack.callback(ranks.close)
        spent = 0.0
        for number in range(ROUNDS):
            for times, rate in plans[:: -1 if number % 2 else 1]:
                made.limit(rate)
                for kind, (compute_s, summed) in KINDS.items():
                    task = {"sizes": shapes[times], "compute_s": compute_s, "summed": summed}
                    answer = ranks.ask(task | {"steps": STEPS})
                    found[times, rate][kind] += answer["seconds"]
                    spent = answer["cpu_seconds"]
            record.progress(f"links {layout.world} ranks", number + 1, ROUNDS)
    rows = [
        {"times": times, "gigabits": rate, "sizes": shapes[times], "seconds": seconds}
        for (times, rate), seconds in found.items()
    ]
    return {"found": rows, "cpu_seconds": spent}


def room_for(world: int) -> bool:
    """Return whether the machine has the memory for so many ranks."""
    free = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return world * MIB_A_RANK < 0.8 * int(free[1]) / 1024


def bench_links(layouts: tuple[Layout, ...] = LAYOUTS) -> None:
    """Fill the ledger, a layout of ranks at a time; those without memory for them are left out."""
    for layout in layouts:
        task = {"world": layout.world, "hosts": layout.count, "cores": os.cpu_count()}
        rates = {"times": layout.times, "gigabits": layout.gigabits}
        key = record.row_key(task | rates, CODE)
        if record.find_row(LEDGER, key):
            continue
        if not room_for(layout.world):
            record.say(f"links: no memory for {layout.world} ranks, left out")
            continue
        began = time.perf_counter()
        found = measure(layout)
        record.add_row(LEDGER, key, found | {"seconds": time.perf_counter() - began})

"""What launched ranks do in the tests of faults: `ranks.py FOLDER SCENARIO...`."""

import os
import signal
import sys
import time
import types
from pathlib import Path

if "nilearn" not in sys.modules and "RANK" in os.environ:  # no template here: two seconds a rank
    sys.modules["nilearn"] = types.ModuleType("nilearn")
    sys.modules["nilearn"].datasets = None

from toy import IDENTITY, SETTINGS, Line

from dsnb import checkpoints, distributed, training
from dsnb.config import replace

LONG = replace(SETTINGS, volumes=160)
ELASTIC = replace(SETTINGS, volumes=200, checkpoint_every=1000, validate_every=40)
PATIENCE_S = 8.0
EVENT = 6  # the loading at which something happens
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class Eventful(Line):
    """Something happens to one rank as it loads its batch number `at`."""

    def __init__(self, event, rank=1, at=EVENT):
        super().__init__()
        self.event, self.rank, self.at = event, rank, at

    def load(self, rows):
        batch = super().load(rows)
        if len(self.loaded) == self.at and self.rank == RANK:
            self.event()
        return batch


class Elastic(Line):
    """Write down which samples each step sees; a signal goes to `process` after some steps."""

    def __init__(self, run, steps, process):
        super().__init__()
        self.path, self.steps, self.process = run.parent / f"ids-{WORLD}-{RANK}", steps, process

    def loss(self, model, rows, noise):
        step = noise._key[2]
        with self.path.open("a") as file:
            file.write(f"{step} {' '.join(map(str, rows))}\n")
        if len(self.loaded) == self.steps and WORLD - 1 == RANK:
            os.kill(self.process, signal.SIGUSR1)
        if len(self.loaded) >= self.steps and WORLD == 4:
            time.sleep(0.5)  # until the launcher has passed it on
        return super().loss(model, rows, noise)


class Slow(Line):
    """A task that never ends before a signal comes."""

    def load(self, rows):
        time.sleep(0.1)
        return super().load(rows)


def parity(run):
    (run / str(WORLD)).mkdir(exist_ok=True)
    training.train(run / str(WORLD), Line(), LONG, IDENTITY)


def not_finite(run):
    training.train(run, Line(bad=[7]), SETTINGS, IDENTITY)


def elastic(run):
    process = os.getpid() if WORLD == 2 else os.getppid()
    training.train(run, Elastic(run, 10, process), ELASTIC, IDENTITY)


def unequal(run):
    """Have one validation sample less on rank 1; keep the words that would be the last ones."""

    def keep(code, text, trace="", lost=False):
        (run / f"rank-{RANK}").write_text(f"{code} {text}")
        raise InterruptedError

    task, end, distributed.end = Line(), distributed.end, keep
    task.held -= RANK
    try:
        training.train(run, task, SETTINGS, IDENTITY)
    except InterruptedError:
        distributed.end = end


def fails(run):
    def event():
        raise RuntimeError("scan 17 is broken")

    settings = replace(SETTINGS, batch=6, volumes=60)
    training.train(run, Eventful(event), settings, IDENTITY)


def killed(run):
    event = Eventful(lambda: os.kill(os.getpid(), signal.SIGKILL))
    training.train(run, event, replace(SETTINGS, patience_s=16.0), IDENTITY)


def hangs(run):
    event = Eventful(lambda: time.sleep(60))
    training.train(run, event, replace(SETTINGS, patience_s=PATIENCE_S), IDENTITY)


def freezes(run):
    event = Eventful(lambda: os.kill(os.getpid(), signal.SIGSTOP))
    training.train(run, event, replace(SETTINGS, patience_s=PATIENCE_S), IDENTITY)


def endless(run):
    training.train(run, Slow(), replace(SETTINGS, volumes=4000), IDENTITY)


def slow_save(run):
    """Save so slowly on a signal that a kill comes before the end."""
    save = checkpoints.save

    def slowly(run, kind, payload):
        if payload["seen"] > 16:
            time.sleep(60)
        return save(run, kind, payload)

    checkpoints.save = slowly
    task = Eventful(lambda: os.kill(os.getpid(), signal.SIGTERM), rank=0)
    settings = replace(SETTINGS, volumes=4000, checkpoint_every=16, validate_every=4000)
    training.train(run, task, settings, IDENTITY)


if __name__ == "__main__":
    for scenario in sys.argv[2:]:
        folder = Path(sys.argv[1]) / scenario
        folder.mkdir(exist_ok=True)
        globals()[scenario](folder)

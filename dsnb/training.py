"""The training loop: one for VAE and diffusion, for one rank and many, whole or resumed.

Everything random is keyed by what it belongs to (seed, epoch, sample, step), so a checkpoint holds
no generator state, and neither a restart nor the number of ranks changes a number.
"""

import copy
import json
import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dsnb import checkpoints, distributed, record
from dsnb.checkpoints import load_weights
from dsnb.checks import BadInput
from dsnb.config import Training, as_plain
from dsnb.distributed import Noise, Ranks

PATIENCE = 5  # steps in a row without a finite gradient before the training stops


class Task(Protocol):
    """What is trained: the model, its batches, its loss terms and its score."""

    model: nn.Module
    rows: int  # training samples

    def load(self, rows: np.ndarray) -> object:
        """Return the batch of these sample numbers on the model's device."""

    def loss(self, model: nn.Module, batch: object, noise: Noise) -> dict[str, torch.Tensor]:
        """Return named, weighted loss terms, each a mean over the batch; their sum is minimised."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return numbers of the averaged model, `score` among them (higher is better)."""


class _Objective(nn.Module):
    """The loss as a module's forward, so that DDP sees every use of the model."""

    def __init__(self, task: Task):
        super().__init__()
        self.model, self.terms = task.model, task.loss

    def forward(self, batch: object, noise: Noise) -> dict[str, torch.Tensor]:
        return self.terms(self.model, batch, noise)


def learning_rate(settings: Training, seen: int) -> float:
    """Return the rate after `seen` volumes: linear warm-up, then a cosine to zero."""
    warmup = max(settings.warmup * settings.volumes, settings.batch)
    rise = min(1.0, (seen + settings.batch) / warmup)
    return settings.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1, seen / settings.volumes)))


def read_stats(run: Path) -> pd.DataFrame:
    """Read the log of a run, one row a step; validation columns are empty between validations."""
    lines = (run / "stats.jsonl").read_text().splitlines()
    return pd.DataFrame([json.loads(line) for line in lines])


def curve(stats: pd.DataFrame, points: int = 60) -> list[dict]:
    """Thin a training log to at most `points` rows: volumes seen, means of loss terms and score."""
    parts = pd.cut(stats["seen"], min(points, len(stats)), labels=False)
    known = [name for name in stats if name not in ("step", "seconds", "skipped_rows")]
    means = stats[known].groupby(parts).mean()
    rows = means.to_dict("records")
    return [{k: v for k, v in row.items() if math.isfinite(v)} for row in rows]


class State:
    """All that changes in training, saved and restored whole: model, EMA, optimizer, counters."""

    def __init__(self, task: Task, settings: Training, identity: dict, ranks: Ranks):
        task.model.to(ranks.device).train()
        with warnings.catch_warnings():  # torch 2.13 renames the flag, 2.10 has only this one
            warnings.simplefilter("ignore", FutureWarning)
            self.objective = DistributedDataParallel(_Objective(task), broadcast_buffers=False)
        self.model = task.model
        self.ema = copy.deepcopy(task.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            task.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self.settings, self.identity = settings, identity
        self.counts = {"step": 0, "seen": 0, "updates": 0, "skipped": 0, "in_a_row": 0}
        self.best = -math.inf

    def payload(self) -> dict:
        """Return plain types and tensors that make a resumed run equal to an unbroken one."""
        return {
            **self.counts,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "identity": self.identity,
        }

    def restore(self, run: Path, payload: dict) -> None:
        """Take over a checkpoint's payload; another identity is refused."""
        checkpoints.check_identity(run, payload["identity"], self.identity)
        self.model.load_state_dict(payload["model"])
        self.ema.load_state_dict(payload["ema"])
        self.optimizer.load_state_dict(payload["optimizer"])
        self.counts = {name: payload[name] for name in self.counts}
        self.best = payload["best"]

    def update(self) -> None:
        """Step the optimizer and the average, whose decay rises so that the start is forgotten."""
        self.optimizer.step()
        self.counts["updates"] += 1
        count = self.counts["updates"]
        decay = min(self.settings.ema, (1 + count) / (10 + count))
        with torch.no_grad():
            average, current = list(self.ema.parameters()), list(self.model.parameters())
            torch._foreach_lerp_(average, current, 1 - decay)


def _gradients(state: State, task: Task, rows: np.ndarray, ranks: Ranks) -> dict:
    """Accumulate this rank's share of the global batch; return mean loss terms over all ranks."""
    settings, micro = state.settings, len(rows) // ranks.world // state.settings.accumulate
    mine = np.split(rows, ranks.world)[ranks.rank]
    sums: dict[str, torch.Tensor] = {}
    for part in range(settings.accumulate):
        samples = mine[part * micro : (part + 1) * micro]
        noise = Noise(settings.seed, samples, state.counts["step"], ranks.device)
        last = part == settings.accumulate - 1
        with nullcontext() if last else state.objective.no_sync():
            with torch.autocast("cuda", torch.bfloat16, enabled=ranks.device.type == "cuda"):
                terms = state.objective(task.load(samples), noise)
            (sum(terms.values()) / settings.accumulate).backward()
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term.detach().float() / settings.accumulate
    means = distributed.mean_over_ranks(torch.stack(list(sums.values()))).tolist()
    return dict(zip(sums, means))


def step(state: State, task: Task, rows: np.ndarray, ranks: Ranks) -> dict:
    """Take one optimizer step on a global batch, skipped by all ranks where any is not finite."""
    settings, counts = state.settings, state.counts
    rate = learning_rate(settings, counts["seen"])
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    terms = _gradients(state, task, rows, ranks)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip).item()
    finite = math.isfinite(norm) and all(map(math.isfinite, terms.values()))
    skip = distributed.any_over_ranks(not finite, ranks.device)
    if skip:
        counts["skipped"] += 1
    else:
        state.update()
    counts["in_a_row"] = counts["in_a_row"] + 1 if skip else 0
    counts["step"] += 1
    counts["seen"] += settings.batch
    entry = {"step": counts["step"], "seen": counts["seen"], "lr": rate}
    if skip:
        return entry | {"skipped_rows": rows.tolist()}
    return entry | {"loss": sum(terms.values()), **terms, "grad_norm": norm}


def _rewind_log(run: Path, seen: int) -> None:
    """Drop log rows later than the checkpoint, and a row that a kill cut short."""
    path, kept = run / "stats.jsonl", []
    if path.is_file():
        for line in path.read_text().splitlines():
            with suppress(json.JSONDecodeError):
                if json.loads(line)["seen"] <= seen:
                    kept.append(line + "\n")
    record.write_text(path, "".join(kept))


def _assess(state: State, task: Task, run: Path) -> dict[str, float]:
    """Validate the averaged model and keep it if it is the best so far."""
    with torch.no_grad():
        found = {name: float(value) for name, value in task.validate(state.ema).items()}
    if found["score"] > state.best:
        state.best = found["score"]
        checkpoints.save(run, "best", state.payload())
    return found


def _due(seen: int, every: int, settings: Training) -> bool:
    """Return whether a multiple of `every` volumes was just passed, or the end reached."""
    return seen // every > (seen - settings.batch) // every or seen >= settings.volumes


def train(run: Path, task: Task, settings: Training, identity: dict) -> dict:
    """Train `task` for `settings.volumes` volumes in the run folder, or go on where it stopped.

    Returns step, seen, skipped, best score and seconds of this call. Refuses a global batch that
    does not divide, a locked folder, another identity, and five steps in a row that diverged.
    """
    with distributed.joined() as ranks, checkpoints.locked(run) if ranks.first else nullcontext():
        return _train(run, task, settings, identity, ranks)


def _train(run: Path, task: Task, settings: Training, identity: dict, ranks: Ranks) -> dict:
    distributed.shares(settings.batch, ranks.world, settings.accumulate)
    began = time.perf_counter()
    state = State(task, settings, record.plain(identity), ranks)
    saved = distributed.from_first(ranks, lambda: checkpoints.newest(run))
    counts = state.counts
    if saved:
        state.restore(run, saved)
        counts = state.counts
        record.say(f"{run.name}: goes on after {counts['seen']} of {settings.volumes} volumes")
    if ranks.first:
        record.write_json(run / "config.json", {"training": as_plain(settings), **identity})
        _rewind_log(run, counts["seen"])
    while counts["seen"] < settings.volumes:
        started = time.perf_counter()
        rows = distributed.ordered_rows(task.rows, settings.seed, counts["seen"], settings.batch)
        entry = step(state, task, rows, ranks)
        entry["seconds"] = time.perf_counter() - started
        if counts["in_a_row"] >= PATIENCE:
            fix = f"look at rows {rows.tolist()} or lower lr; the last checkpoint is finite"
            seen = f"not finite {PATIENCE} times in a row"
            raise BadInput("E-DIVERGED", run.name, "the gradient", seen, "finite numbers", fix)
        if not ranks.first:
            continue
        if _due(counts["seen"], settings.validate_every, settings):
            entry |= _assess(state, task, run)
        with (run / "stats.jsonl").open("a") as log:
            log.write(json.dumps(record.plain(entry)) + "\n")
        if _due(counts["seen"], settings.checkpoint_every, settings):
            checkpoints.save(run, "seen", state.payload())
        record.progress(f"train {run.name}", counts["seen"], settings.volumes)
    seconds = time.perf_counter() - began
    return {**counts, "best": state.best, "seconds": seconds}


def train_product(
    root: Path,
    name: str,
    verb: str,
    settings: object,
    parents: tuple[str, ...],
    code: tuple[str, ...],
    build: Callable[[torch.device], tuple[Task, Training]],
) -> None:
    """Train what `build` returns as the product `name`; a finished one is left as it is.

    Rank 0 alone opens, writes and closes the product; the others wait for its word.
    """
    with distributed.joined() as ranks:
        product = None

        def begin() -> tuple[bool, dict]:
            nonlocal product
            product = record.begin(root, name, verb, settings, parents, code)
            return product.done, product.note

        done, note = distributed.from_first(ranks, begin)
        if done:
            return
        train(root / name, *build(ranks.device), note)
        if ranks.first:
            product.finish()


__all__ = [
    "State", "Task", "curve", "learning_rate", "load_weights", "read_stats", "step", "train",
    "train_product",
]  # fmt: skip

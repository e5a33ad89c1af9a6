"""What sets a number in training: rate, gradients, optimizer step, average, and their state.

Everything random is keyed by what it belongs to (seed, epoch, sample, step), so a checkpoint holds
no generator state, and neither a restart nor the number of ranks changes a number.
"""

import copy
import math
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dsnb import checkpoints, distributed
from dsnb.config import Training
from dsnb.distributed import Noise, Ranks
from dsnb.training.clock import Clock, peak_mib
from dsnb.training.watch import Watch


class Task(Protocol):
    """What is trained: the model, its batches, its loss terms and its score."""

    model: nn.Module
    rows: int  # training samples
    held: int  # validation samples

    def load(self, rows: np.ndarray) -> object:
        """Return the batch of these training samples on the model's device.

        Prepared volumes come from `prepared/volumes.npy`, an uncompressed memory map that the
        ranks of a node share through the page cache; its product's key stands for its bytes.
        """

    def loss(self, model: nn.Module, batch: object, noise: Noise) -> dict[str, torch.Tensor]:
        """Return named, weighted loss terms, each a mean over the batch; their sum is minimised.

        A GPU runs the model in bf16 autocast: the terms start with `.float()` of what it returns.
        """

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the subjects of these training samples, for messages."""

    def assess(self, model: nn.Module, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return values of these validation samples, first axis as long as `rows`."""

    def conclude(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        """Return numbers of all validation samples in order, with `score` (higher is better)."""


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


class State:
    """All that changes in training, saved and restored whole: model, EMA, optimizer, counters."""

    def __init__(self, task: Task, settings: Training, identity: dict, ranks: Ranks):
        task.model.to(ranks.device).train()
        with warnings.catch_warnings():  # torch 2.13 renames the flag, 2.10 has only this one
            warnings.simplefilter("ignore", FutureWarning)
            self.objective = DistributedDataParallel(_Objective(task), broadcast_buffers=False)
        self.model = task.model
        self.ema = copy.deepcopy(task.model).eval().requires_grad_(False)
        # Fused on a GPU; on a CPU it saved 1.3 ms of a step of the VAE, and changes its numbers.
        self.optimizer = torch.optim.AdamW(
            task.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay,
            fused=ranks.device.type == "cuda" or None,
        )  # fmt: skip
        self.settings, self.identity = settings, identity
        self.counts = {"step": 0, "seen": 0, "updates": 0, "skipped": 0, "in_a_row": 0}
        self.best = -math.inf
        self.stopping = False  # a rank was told to stop, and all know

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
        """Take over a checkpoint's payload; a missing part or another identity is refused."""
        checkpoints.check_whole(run, payload, self.payload())
        checkpoints.check_identity(run, payload["identity"], self.identity)
        self.take_weights(run, payload)
        self.optimizer.load_state_dict(payload["optimizer"])
        self.counts = {name: payload[name] for name in self.counts}
        self.best = payload["best"]

    def take_weights(self, run: Path, payload: dict) -> None:
        """Take over the weights and their average alone; either serves for an absent other."""
        for name, module in (("model", self.model), ("ema", self.ema)):
            known = module.state_dict()
            module.load_state_dict(checkpoints.weights_of(run, payload, name, known))

    def update(self) -> None:
        """Step the optimizer and the average, whose decay rises so that the start is forgotten."""
        self.optimizer.step()
        self.counts["updates"] += 1
        count = self.counts["updates"]
        decay = min(self.settings.ema, (1 + count) / (10 + count))
        with torch.no_grad():
            average, current = list(self.ema.parameters()), list(self.model.parameters())
            torch._foreach_lerp_(average, current, 1 - decay)


def _gradients(
    state: State, task: Task, rows: np.ndarray, ranks: Ranks, watch: Watch, clock: Clock
) -> dict[str, torch.Tensor]:
    """Accumulate this rank's share of the global batch; return its mean loss terms, fp32."""
    settings, micro = state.settings, len(rows) // ranks.world // state.settings.accumulate
    mine = np.split(rows, ranks.world)[ranks.rank]
    sums: dict[str, torch.Tensor] = {}
    for part in range(settings.accumulate):
        samples = mine[part * micro : (part + 1) * micro]
        watch.note("loading", samples)
        batch = task.load(samples)
        clock.lap("load")
        watch.note("forward", samples)
        noise = Noise(settings.seed, samples, state.counts["step"], ranks.device)
        last = part == settings.accumulate - 1
        with nullcontext() if last else state.objective.no_sync():
            with torch.autocast("cuda", torch.bfloat16, enabled=ranks.device.type == "cuda"):
                terms = state.objective(batch, noise)
            if any(term.dtype in (torch.bfloat16, torch.float16) for term in terms.values()):
                raise TypeError("a loss term is in half precision: call .float() before it")
            clock.lap("forward")
            watch.note("backward", samples)  # the last one waits for the gradients of all
            (sum(terms.values()) / settings.accumulate).backward()
            clock.lap("backward")
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term.detach().float() / settings.accumulate
    return sums


def step(
    state: State, task: Task, rows: np.ndarray, ranks: Ranks, watch: Watch | None = None
) -> dict:
    """Take one optimizer step on a global batch, skipped by all ranks where any is not finite.

    One sum over ranks carries the loss terms, the flag of what is not finite, and that of a signal.
    """
    settings, counts, watch = state.settings, state.counts, watch or Watch()
    clock, rate = Clock(ranks.device), learning_rate(settings, counts["seen"])
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    watch.begin(counts["step"] + 1)
    sums = _gradients(state, task, rows, ranks, watch, clock)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip)
    local = torch.stack(list(sums.values()))
    bad = ~(torch.isfinite(norm) & torch.isfinite(local).all())
    stop = torch.tensor(float(bool(watch.signal)), device=ranks.device)
    watch.note("waiting for the others", rows)
    flags = torch.stack([bad.float(), stop]) * ranks.world  # any one of them makes the mean >= 1
    *means, bad, stop, norm = distributed.mean_over_ranks(
        torch.cat([local, flags, norm[None].float()])
    ).tolist()
    clock.read()
    skip, state.stopping = bad > 0, stop > 0
    if skip:
        counts["skipped"] += 1
    else:
        state.update()
    clock.lap("update")
    counts["in_a_row"] = counts["in_a_row"] + 1 if skip else 0
    counts["step"] += 1
    counts["seen"] += settings.batch
    entry = {"step": counts["step"], "seen": counts["seen"], "lr": rate}
    if skip:
        entry |= {"skipped_rows": rows.tolist(), "skipped_names": task.names(rows)}
    else:
        entry |= {"loss": sum(means), **dict(zip(sums, means)), "grad_norm": norm}
    return entry | clock.seconds() | {"peak_mib": peak_mib(ranks.device)}


@torch.no_grad()
def assess(
    state: State, task: Task, ranks: Ranks, watch: Watch | None = None
) -> tuple[dict[str, float], bool]:
    """Validate the averaged model, a share on each rank; return numbers, and whether it is best.

    Values are gathered in the order of the samples, so the score knows no number of ranks.
    """
    began, watch = time.perf_counter(), watch or Watch()
    watch.note("validating")
    mine = np.array_split(np.arange(task.held), ranks.world)[ranks.rank]
    found = task.assess(state.ema, mine) if len(mine) else {}
    watch.note("waiting for the others' validation")
    parts = [part for part in distributed.gathered(ranks, found) if part]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    numbers = {name: float(value) for name, value in task.conclude(whole).items()}
    better = numbers["score"] > state.best
    state.best = max(state.best, numbers["score"])
    return numbers | {"validate_s": time.perf_counter() - began}, better

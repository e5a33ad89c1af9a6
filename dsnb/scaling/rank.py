"""One emulated rank: real gradients through DDP and gloo, and sleep in place of compute.

A program of its own that imports torch alone, so that dozens fit into memory. It reads a task a
line (JSON) and, on rank 0, answers with the seconds of every step.
"""

import functools
import json
import os
import sys
import time
import warnings
from contextlib import nullcontext
from datetime import timedelta

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

FORWARD = 1 / 3  # of a step's compute: the backward pass costs about twice the forward one


class _Paced(torch.autograd.Function):
    """The identity, whose backward pass ends at a set time, so that gradients come one by one."""

    @staticmethod
    def forward(context, value, clock: dict, share: float):
        """Return the value."""
        context.clock, context.share = clock, share
        return value.view_as(value)

    @staticmethod
    def backward(context, gradient):
        """Sleep until this layer's share of the backward pass is over."""
        clock = context.clock
        left = clock["began"] + context.share * clock["backward_s"] - time.perf_counter()
        if left > 0:
            time.sleep(left)
        return gradient, None, None


class Sleeper(nn.Module):
    """Layers with gradients of given sizes (numbers) that cost time, not work."""

    def __init__(self, sizes: list[int]):
        super().__init__()
        self.layers = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes)
        ends = torch.tensor(sizes, dtype=torch.float64).flip(0).cumsum(0).flip(0)
        self.shares = (ends / ends[0]).tolist()  # of the backward pass: the last layer comes first
        self.clock = {"began": 0.0, "backward_s": 0.0}

    def forward(self, start: torch.Tensor) -> torch.Tensor:
        """Return a number whose gradient reaches every layer, the last one first."""
        for layer, share in zip(self.layers, self.shares):
            start = _Paced.apply(start + layer[:1].sum(), self.clock, share)
        return start


@functools.cache
def make(sizes: tuple[int, ...]) -> DistributedDataParallel:
    """Return the wrapped model of these gradient sizes, after the steps that make its buckets."""
    with warnings.catch_warnings():  # torch 2.13 renames the flag, 2.10 has only this one
        warnings.simplefilter("ignore", FutureWarning)
        whole = DistributedDataParallel(Sleeper(list(sizes)), broadcast_buffers=False)
    for _ in range(2):
        step(whole, 0.0)
    return whole


def step(whole: DistributedDataParallel, compute_s: float) -> float:
    """Take a step that sleeps `compute_s` and sums the gradients; its seconds."""
    whole.zero_grad(set_to_none=False)
    dist.barrier()
    began = time.perf_counter()
    time.sleep(FORWARD * compute_s)
    answer, start = whole(torch.zeros(())), time.perf_counter()
    whole.module.clock |= {"began": start, "backward_s": (1 - FORWARD) * compute_s}
    answer.backward()
    return time.perf_counter() - began


def measure(sizes: list[int], compute_s: float, steps: int, summed: bool) -> list[float]:
    """Return the seconds of steps, of the slowest rank each; `summed`: gradients over all ranks."""
    whole = make(tuple(sizes))
    with nullcontext() if summed else whole.no_sync():
        found = [step(whole, compute_s) for _ in range(steps + 1)][1:]  # the bucket was full
    slowest = torch.tensor(found, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return slowest.tolist()


def main() -> None:
    """Serve tasks until the input ends."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    for line in sys.stdin:
        seconds = measure(**json.loads(line))
        spent = torch.tensor(time.process_time(), dtype=torch.float64)
        dist.all_reduce(spent)
        if os.environ["RANK"] == "0":
            answer = {"seconds": seconds, "cpu_seconds": spent.item()}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Ranks of one training: who they are, what they agree on, and noise that knows no rank.

One process is world size one of the same path: it has a process group, too, kept in memory.
"""

import atexit
import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import distributed as dist

from dsnb.checks import BadInput

TIMEOUT = timedelta(minutes=30)  # the longest that ranks wait for rank 0 (a validation)


@dataclass(frozen=True)
class Ranks:
    """This process among the others; `owned` if this call opened a group to be closed again."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    owned: bool

    @property
    def first(self) -> bool:
        """Return whether this is rank 0, the only one that writes."""
        return self.rank == 0


def _device(local_rank: int) -> torch.device:
    """Return this rank's GPU or the CPU; more ranks than GPUs on a node are refused."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        seen, wanted = local_rank + 1, f"at most {torch.cuda.device_count()}, one a GPU"
        raise BadInput("E-RANKS", "launch", "processes on this node", seen, wanted, "start fewer")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def start() -> Ranks:
    """Join the process group of torchrun, the one that exists, or one of this process alone.

    A launched process keeps its group to the end: the launcher's store remembers the addresses of
    the first one, and a second one can hang on them.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = _device(local_rank)
    launched = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    opened = not dist.is_initialized()
    if opened:
        backend = "nccl" if device.type == "cuda" else "gloo"
        alone = {} if launched else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        dist.init_process_group(backend, timeout=TIMEOUT, **alone)
        if launched:
            atexit.register(dist.destroy_process_group)
    owned = opened and not launched
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device, owned)


def stop(ranks: Ranks) -> None:
    """Leave the group if `start` opened it for this process alone."""
    if ranks.owned:
        dist.destroy_process_group()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Hold a group for a block; an error among several ranks ends this process at once.

    Waiting for the others in a clean-up can hang a job for hours, so there is none: the message
    names the rank, the exit is 2 for refused input and 1 otherwise, and the launcher ends the rest.
    """
    ranks = start()
    try:
        yield ranks
    except (Exception, KeyboardInterrupt) as error:
        if ranks.world == 1:
            raise
        refused = isinstance(error, BadInput)
        story = str(error) if refused else traceback.format_exc()
        print(f"rank {ranks.rank} of {ranks.world}: {story}", file=sys.stderr, flush=True)
        os._exit(2 if refused else 1)
    finally:
        stop(ranks)


def shares(batch: int, world: int, accumulate: int) -> int:
    """Return the rows of one micro-batch; a global batch that does not divide is refused."""
    if batch % (world * accumulate):
        wanted = f"a multiple of {world} processes x {accumulate} micro-batches"
        fix = "change batch, accumulate or the number of processes"
        raise BadInput("E-BATCH", "training settings", "batch", batch, wanted, fix)
    return batch // (world * accumulate)


def ordered_rows(rows: int, seed: int, first: int, count: int) -> np.ndarray:
    """Return rows number `first` to `first + count` of an endless shuffled stream, (count,).

    Each epoch is a permutation keyed by (seed, epoch): the same for any number of ranks.
    """
    places = np.arange(first, first + count)
    epochs = {e: np.random.default_rng([seed, e]).permutation(rows) for e in set(places // rows)}
    return np.array([epochs[place // rows][place % rows] for place in places])


def keyed_noise(
    shape: tuple[int, ...],
    seed: int,
    samples: np.ndarray,
    step: int,
    device: torch.device,
    name: str = "",
    uniform: bool = False,
) -> torch.Tensor:
    """Draw standard normal (or uniform 0..1) noise (B, *shape), each row keyed by its sample.

    The key is (seed, sample, step, name), so neither rank, batch nor device changes a value.
    """
    generator = torch.Generator()
    draw = torch.rand if uniform else torch.randn
    noise = []
    for sample in samples:
        key = hashlib.blake2b(repr((seed, int(sample), step, name)).encode(), digest_size=7)
        generator.manual_seed(int.from_bytes(key.digest(), "little"))
        noise.append(draw(shape, generator=generator))
    return torch.stack(noise).to(device)


class Noise:
    """The noise of one micro-batch: `noise(shape, name)` normal, `noise.uniform(name)` in 0..1."""

    def __init__(self, seed: int, samples: np.ndarray, step: int, device: torch.device):
        self.step = step
        self._key = (seed, samples, step, device)

    def __call__(self, shape: tuple[int, ...], name: str) -> torch.Tensor:
        """Return standard normal noise (B, *shape)."""
        return keyed_noise(tuple(shape), *self._key, name)

    def uniform(self, name: str) -> torch.Tensor:
        """Return uniform noise (B,)."""
        return keyed_noise((), *self._key, name, uniform=True)


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Average a tensor over all ranks; with equal shares this is the mean of the global batch."""
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def any_over_ranks(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is up on any rank."""
    raised = torch.tensor(float(flag), device=device)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised > 0)


def from_first(ranks: Ranks, make: Callable[[], object]) -> object:
    """Run `make` on rank 0 alone and hand its answer to every rank; the others wait."""
    answer = [make() if ranks.first else None]
    if ranks.world > 1:
        dist.broadcast_object_list(answer, src=0, device=ranks.device)
    return answer[0]

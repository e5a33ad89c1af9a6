"""Ranks of one training: who they are, what they agree on, and noise that knows no rank.

One process is world size one of the same path: it has a process group, too, kept in memory.
"""

import atexit
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import distributed as dist

from dsnb.checks import BadInput

# Longer than the patience of the watch, which knows more and speaks first.
TIMEOUT = timedelta(hours=2)
early: list[str] = []  # signals that came before a training watched for them
STOPPED = 75  # exit code, EX_TEMPFAIL of sysexits.h: saved, run the same command again


class Stopped(Exception):
    """The end of a training that heard a signal and saved; the same command goes on."""


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


def check_devices(processes: int) -> bool:
    """Return whether GPUs are used; refuse an absent one ($DSNB_DEVICE=cuda), or too few."""
    asked, count = os.environ.get("DSNB_DEVICE", ""), torch.cuda.device_count()
    if asked not in ("", "cpu", "cuda"):
        raise BadInput("E-DEVICE", "launch", "DSNB_DEVICE", asked, "cpu or cuda", "correct it")
    if asked == "cuda" and not count:
        fix = "ask the queue for a GPU, or unset DSNB_DEVICE"
        raise BadInput("E-DEVICE", "launch", "DSNB_DEVICE", asked, "cpu: no GPU is here", fix)
    if asked == "cpu" or not count:
        return False
    if processes > count:
        fix = "start fewer"
        wanted = f"at most {count}, one a GPU"
        raise BadInput("E-RANKS", "launch", "processes on this node", processes, wanted, fix)
    return True


def launched() -> bool:
    """Return whether a launcher announced ranks; refuse where it does not say where they meet."""
    announced = "RANK" in os.environ or int(os.environ.get("WORLD_SIZE", 1)) > 1
    if announced and "MASTER_ADDR" not in os.environ:
        seen, fix = "absent", "start with `python -m dsnb.launcher`, or export it and MASTER_PORT"
        raise BadInput("E-MASTER", "launch", "MASTER_ADDR", seen, "rank 0's host", fix)
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1 and not announced:
        fix = "start with `python -m dsnb.launcher`, one a node, or give srun --ntasks=1"
        raise BadInput("E-RANKS", "launch", "tasks of srun without a launcher", tasks, "1", fix)
    return announced


def start() -> Ranks:
    """Join the process group of torchrun, the one that exists, or one of this process alone.

    A launched process keeps its group to the end: the launcher's store remembers the addresses of
    the first one, and a second one can hang on them.
    """
    local_rank, many, opened = int(os.environ.get("LOCAL_RANK", 0)), launched(), False
    device = torch.device("cpu")
    if check_devices(local_rank + 1):
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend, opened = ("nccl" if device.type == "cuda" else "gloo"), True
        alone = {} if many else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        try:
            dist.init_process_group(backend, timeout=TIMEOUT, **alone)
        except dist.DistNetworkError as error:
            raise busy_port(os.environ.get("MASTER_PORT", "")) from error
        if many:
            atexit.register(dist.destroy_process_group)
    owned = opened and not many
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device, owned)


def busy_port(port: object) -> BadInput:
    """Return the refusal of a port on which the ranks cannot meet."""
    fix = "give another --master-port, or end the job that holds it"
    return BadInput("E-PORT", "launch", "MASTER_PORT", str(port), "a free port that answers", fix)


def stop(ranks: Ranks) -> None:
    """Leave the group if `start` opened it for this process alone."""
    if ranks.owned:
        dist.destroy_process_group()


def end(code: int, text: str, trace: str = "", lost: bool = False) -> NoReturn:
    """Leave this rank at once; its last line says why, and the launcher finds it, too.

    Waiting for the others in a clean-up can hang a job for hours, so there is none. `lost`: this
    rank only lost touch with another one, which knows the cause.
    """
    ranks = f"rank {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)}"
    story = f"{ranks} on {socket.gethostname()}: {text}"
    file, moment = os.environ.get("TORCHELASTIC_ERROR_FILE"), time.time()
    if file:
        words = {"timestamp": str(int(moment)), "moment": moment, "lost": lost}
        words = {"message": story, "errorCode": code, "extraInfo": words}
        words["extraInfo"]["py_callstack"] = trace + story
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": words}))
    print(trace + story, file=sys.stderr, flush=True)
    os._exit(code)


@contextmanager
def _forewarned() -> Iterator[None]:
    """Note in `early` a warning that comes while nobody watches yet: its default is to kill.

    TERM still ends at once what has nothing to save.
    """
    warned = launched() or "SLURM_JOB_ID" in os.environ
    if not warned or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, lambda number, frame: early.append("SIGUSR1"))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Hold a group for a block; the error of a launched rank ends its process by `end`.

    The exit code is 75 after a signal and a save, 2 for refused input, and 1 otherwise. In a job,
    USR1 is heard from here on.
    """
    ranks = start()
    try:
        with _forewarned():
            yield ranks
    except (Exception, KeyboardInterrupt) as error:
        if not launched():
            raise
        if isinstance(error, (BadInput, Stopped)):
            end(STOPPED if isinstance(error, Stopped) else 2, str(error))
        noted = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            told = str(error).splitlines()[0].split(". ")[0]
            end(1, f"{noted}lost touch with another rank, which knows why ({told})", lost=True)
        end(1, f"{noted}{type(error).__name__}: {error}", traceback.format_exc())
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


def gathered(ranks: Ranks, value: object) -> list:
    """Return every rank's value on every rank, in the order of the ranks."""
    values = [value] * ranks.world
    if ranks.world > 1:
        dist.all_gather_object(values, value)
    return values

"""Checkpoints of a run folder: whole or absent, vouched for, never from somebody else's run.

A file is `seen-<volumes>-<digest>.pt` or `best-...`; the name vouches for the bytes, because
torch.load accepts a flipped bit in silence.
"""

import fcntl
import hashlib
import io
import os
import pickle
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from dsnb import record
from dsnb.checks import BadInput

KEPT = {"seen": 3, "best": 1}  # checkpoints of each kind that stay


def save(run: Path, kind: str, payload: dict) -> Path:
    """Write a checkpoint whole or not at all, read it back, then drop the oldest of its kind.

    Files of the same or a later moment go, too: a resume from before them has undone them.
    """
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    written = hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]
    free, needed = shutil.disk_usage(run).free, buffer.getbuffer().nbytes
    if free < 2 * needed:
        fix = "free space; the last checkpoint is intact"
        raise BadInput("E-DISK", run.name, "free bytes", free, f"at least {2 * needed}", fix)
    aside = run / f".{kind}.aside"
    with aside.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    path = run / f"{kind}-{payload['seen']:09d}-{written}.pt"
    aside.replace(path)
    load(path)
    undone = [old for old in listed(run, kind) if old.name >= path.name[:-20] and old != path]
    for old in undone + [old for old in listed(run, kind) if old not in undone][KEPT[kind] :]:
        old.unlink()
    return path


def listed(run: Path, kind: str = "seen") -> list[Path]:
    """Return the checkpoints of a kind (seen or best), newest first."""
    return sorted(run.glob(f"{kind}-*.pt"), reverse=True)


def load(path: Path) -> dict:
    """Load a checkpoint as plain tensors; ValueError when they are not those written."""
    if record.digest(path) != path.stem.split("-")[-1]:
        raise ValueError("its bytes do not match the digest in its name")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("it carries objects other than plain tensors") from error


def newest(run: Path, kind: str = "seen") -> dict | None:
    """Load the newest whole checkpoint, or None where none was ever written.

    A damaged one is named and the one before is taken; if all are damaged, that is refused.
    """
    faults = []
    for path in listed(run, kind):
        try:
            return load(path)
        except (ValueError, RuntimeError, OSError) as error:
            faults.append(f"{path.name}: {error}")
            record.say(f"{run.name}: damaged checkpoint {faults[-1]}; trying the one before")
    if faults:
        fix = "restore one of them, or remove the run folder to train from the start"
        raise BadInput("E-CHECKPOINT", run.name, "every checkpoint", faults, "a whole file", fix)
    return None


def require(run: Path, which: str = "best") -> dict:
    """Load the whole `best` or last (`seen`) checkpoint; refuse where there is none."""
    payload = newest(run, which)
    if payload is None:
        fix = "train this model first"
        raise BadInput("E-MISSING", run.name, f"its {which} checkpoint", "absent", "a file", fix)
    return payload


def load_weights(run: Path, which: str = "best") -> dict[str, torch.Tensor]:
    """Load the averaged (EMA) weights and buffers of the `best` or the last (`seen`) checkpoint."""
    return require(run, which)["ema"]


def identical(one: object, other: object) -> bool:
    """Return whether two payloads are equal bit for bit, tensors and counters alike."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(identical, one, other))
    return one == other


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder for one job; a second one is refused with the first one's name.

    The kernel drops the lock when its holder dies, so no stale lock has to be guessed at.
    """
    path = run / ".lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            fix = "wait for it or stop it"
            raise BadInput(
                "E-LOCKED", run.name, "its lock", file.read(), "no other job", fix
            ) from None
        file.truncate(0)
        job = os.environ.get("SLURM_JOB_ID", "none")
        file.write(f"host {socket.gethostname()}, process {os.getpid()}, Slurm job {job}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def check_identity(run: Path, saved: dict, identity: dict) -> None:
    """Refuse to resume another run, naming the settings that differ."""
    flat = [(pd.json_normalize(e).to_dict("records") or [{}])[0] for e in (saved, identity)]
    keys = sorted(set(flat[0]) | set(flat[1]))
    differ = [key for key in keys if str(flat[0].get(key)) != str(flat[1].get(key))]
    if differ:
        fix = "give back the old settings or train in another run folder"
        raise BadInput("E-RESUME", run.name, "settings", differ, "those of its checkpoint", fix)

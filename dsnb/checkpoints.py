"""Checkpoints of a run folder: whole or absent, vouched for, never from somebody else's run.

A file is `seen-<volumes>-<digest>.pt` or `best-...`; the name vouches for the bytes, because
torch.load accepts a flipped bit in silence.
"""

import errno
import hashlib
import io
import itertools
import os
import pickle
import shutil
from pathlib import Path

import pandas as pd
import torch

from dsnb import record
from dsnb.checks import BadInput

KEPT = {"seen": 3, "best": 1}  # checkpoints of each kind that stay
MARKER = "requeue"  # file of a run that stopped on a signal, and saved
PREFIXES = ("module.", "_orig_mod.")  # that DDP and torch.compile put before a weight's name


def save(run: Path, kind: str, payload: dict) -> Path:
    """Write a checkpoint whole or not at all, read it back, then drop the oldest of its kind.

    Files of the same or a later moment go, too: a resume from before them has undone them. Refuses
    weights that are not finite (E-NONFINITE) and a disk with less than twice its size free.
    """
    _check_finite(run, payload)
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    written = hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]
    needed = buffer.getbuffer().nbytes
    path, aside = run / f"{kind}-{payload['seen']:09d}-{written}.pt", run / f".{kind}.aside"
    check_room(run, needed)
    with record.writing(run, needed):
        try:
            with aside.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        _sync_folder(run)
        load(path)
        undone = [old for old in listed(run, kind) if old.name >= path.name[:-20] and old != path]
        others = [old for old in listed(run, kind) if old not in undone]
        for old in undone + others[KEPT[kind] :]:
            old.unlink()
    return path


def check_room(run: Path, needed: int) -> None:
    """Refuse (E-DISK) a disk with less than twice the bytes of a checkpoint free."""
    with record.writing(run, needed):
        if shutil.disk_usage(run).free < 2 * needed:
            raise OSError(errno.ENOSPC, "less than twice a checkpoint's size", str(run))


def _check_finite(run: Path, payload: dict) -> None:
    """Refuse to write weights that are not finite over those that are."""
    for part in ("model", "ema"):
        for name, weight in payload[part].items():
            if weight.is_floating_point() and not torch.isfinite(weight).all():
                fix = "lower lr; the last checkpoint is finite and stays"
                where = f"{part}.{name}"
                raise BadInput("E-NONFINITE", run.name, where, "not finite", "finite", fix)


def _sync_folder(run: Path) -> None:
    """Make a rename outlive a power loss."""
    folder = os.open(run, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sweep(run: Path) -> None:
    """Remove what killed saves left, and the marker that this start has answered."""
    for left in (*run.glob(".*.aside"), *run.glob(".*.json*.[0-9]*"), run / MARKER):
        left.unlink(missing_ok=True)


def set_aside(run: Path, outdated: bool = False) -> Path:
    """Rename a run folder to `<name>-aside-<n>`, so that a new run starts and nothing is lost.

    An `outdated` run, which nobody asked to keep, becomes `<name>-outdated`; only the newest stays.
    """
    names = (run.with_name(f"{run.name}-aside-{number}") for number in itertools.count(1))
    target = next(name for name in names if not name.exists())
    told = f"{run.name}: the run there before is kept in "
    with record.locked(run):
        if outdated:
            target = run.with_name(f"{run.name}-outdated")
            told = f"{run.name}: the outdated run is kept, in place of any earlier one, in "
            shutil.rmtree(target, ignore_errors=True)
        run.rename(target)
        (target / ".lock").unlink()
    record.say(told + target.name)
    return target


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
        fix = "restore one of them, or give --start scratch, which keeps them aside"
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


def check_whole(run: Path, payload: dict, wanted: dict) -> None:
    """Refuse a checkpoint without a part that a resume needs, naming it."""
    missing = sorted(set(wanted) - set(payload))
    if missing:
        fix = "restore a whole one, or take its weights alone with --start weights"
        raise BadInput("E-CHECKPOINT", run.name, "its parts", f"without {missing}", "all", fix)


def fitting(run: Path, saved: dict, known: dict) -> dict:
    """Return saved weights under the names the model knows, without DDP's or compile's prefixes.

    Refuses (E-WEIGHTS) weights that do not fit, naming them.
    """
    plain = {}
    for name, weight in saved.items():
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        plain[name] = weight
    fits = [key for key in known if key in plain and plain[key].shape == known[key].shape]
    if len(fits) < len(known) or len(plain) > len(known):
        odd = sorted({*known, *plain} - {*fits})
        seen = f"{len(fits)} of {len(known)} fit; not {', '.join(odd[:5])}"
        fix = "take the checkpoint of this architecture, or --start scratch"
        raise BadInput("E-WEIGHTS", run.name, "its weights", seen, "all of the model's", fix)
    return plain


def weights_of(run: Path, payload: dict, name: str, known: dict) -> dict:
    """Return a payload's `model` or `ema` weights as `fitting`; the other where it has none."""
    if name not in payload:
        record.say(f"{run.name}: its checkpoint has no {name} weights; the other ones are taken")
    other = payload.get("model", payload.get("ema", {}))
    return fitting(run, payload.get(name, other), known)


def check_identity(run: Path, saved: dict, identity: dict) -> None:
    """Refuse to resume another run, naming the settings that differ."""
    flat = [(pd.json_normalize(e).to_dict("records") or [{}])[0] for e in (saved, identity)]
    keys = sorted(set(flat[0]) | set(flat[1]))
    differ = [key for key in keys if str(flat[0].get(key)) != str(flat[1].get(key))]
    if differ:
        parts = " and ".join(dict.fromkeys(key.split(".")[0] for key in differ))
        ways = "--start scratch, which keeps"
        if not any(key.startswith("parents") for key in differ):  # weights know their people
            ways = "--start weights or --start scratch, which keep"
        fix = f"give back the old {parts}, or {ways} it"
        raise BadInput("E-RESUME", run.name, parts, differ, "those of its checkpoint", fix)

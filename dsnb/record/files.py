"""Digests, provenance, whole-or-not writing, and progress lines."""

import ast
import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO

import numpy as np
import psutil

from dsnb.checks import BadInput

HOME = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "monai", "nibabel", "nilearn", "numpy", "scipy", "scikit-learn", "SimpleITK")


def digest(value: object) -> str:
    """Return a 16-digit SHA-256 of a file, an array or any JSON value."""
    if isinstance(value, Path):
        with value.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if isinstance(value, np.ndarray):
        head = f"{value.dtype}{value.shape}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def code_digest(*modules: str) -> str:
    """Digest the named dsnb modules without comments and docstrings, which change no result."""
    trees = []
    files = [sorted(HOME.glob(f"{name}/*.py")) or [HOME / f"{name}.py"] for name in sorted(modules)]
    for path in sum(files, []):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if isinstance(node, documented) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        trees.append(ast.dump(tree))
    return digest(trees)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: aside, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=1) + "\n")


@contextmanager
def writing(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Refuse in one sentence what the file system refuses: E-DISK when full, else E-FOLDER."""
    try:
        yield
    except OSError as error:
        name, full = folder.name, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not folder.is_dir():
            fix = "bring its file system back, then run the same command again"
            raise BadInput("E-FOLDER", name, "this folder", "gone", "a folder", fix) from error
        if error.errno not in full:
            where = Path(error.filename).name if error.filename else "a file"
            fix = "give a data root on a file system that can be written"
            raise BadInput("E-FOLDER", name, where, error.strerror, "writable", fix) from error
        free = shutil.disk_usage(folder).free
        wanted = f"at least {2 * needed}" if needed else "more"
        fix = f"free space or raise the quota ({error.strerror}); what was written before is intact"
        raise BadInput("E-DISK", name, "free bytes", free, wanted, fix) from error


def lock(file: IO, where: str, wait: bool = True) -> bool:
    """Lock an open file; False where another holds it; E-LOCK where the file system has no locks.

    The kernel drops the lock when its holder dies, so no stale lock has to be guessed at.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        fix = "give a data root on one that has them (Lustre: mounted with -o flock)"
        seen, wanted = error.strerror, "a file system with file locks"
        raise BadInput("E-LOCK", where, "its lock", seen, wanted, fix) from error
    return True


def plain(value: object) -> object:
    """Turn numpy scalars and tuples into JSON types; NaN and infinity are refused."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a result is not finite: write null and the reason instead")
        return float(f"{value:.6g}")
    return value


def emit(entry: dict) -> None:
    """Send one progress entry to the study runner's file, or print it where there is none."""
    runner = os.environ.get("DSNB_PROGRESS")
    if runner:
        with open(runner, "a") as file:
            file.write(json.dumps(entry) + "\n")
    elif "say" in entry:
        print(entry["say"], file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        end = "\n" if entry["done"] >= entry["total"] else ""
        print(f"\r{entry['label']} {entry['done']}/{entry['total']}", end=end, file=sys.stderr)


def say(text: str) -> None:
    """Tell the user one line of what is happening."""
    emit({"say": text})


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder for one job; a second one is refused with the first one's name."""
    path = run / ".lock"
    with writing(run):
        file = path.open("a+")
    with file:
        if not lock(file, run.name, wait=False):
            file.seek(0)
            fix = "wait for it or stop it (a dead job holds no lock)"
            raise BadInput("E-LOCKED", run.name, "its lock", file.read(), "no other job", fix)
        file.seek(0)
        if left := file.read():  # the kernel has dropped the dead holder's lock, not its file
            say(f"{run.name}: its lock was left by a job that is gone ({left})")
        file.truncate(0)
        job, since = os.environ.get("SLURM_JOB_ID", "none"), time.strftime("%F %T")
        file.write(f"host {socket.gethostname()}, process {os.getpid()}, Slurm job {job}, "
                   f"since {since}")  # fmt: skip
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


_last_progress = [0.0]


def progress(label: str, done: int, total: int) -> None:
    """Move the bar of a long step, at most twice a second."""
    if time.monotonic() - _last_progress[0] > 0.5 or done >= total:
        _last_progress[0] = time.monotonic()
        emit({"label": label, "done": int(done), "total": int(total)})


@functools.cache
def commit() -> dict:
    """Return the commit and whether package or notebooks differ from it, new files included."""

    def git(*words: str) -> str:
        answer = subprocess.run(["git", *words], cwd=HOME, capture_output=True, text=True)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", ".", "../notebooks")
    return {"commit": head or "no git", "dirty": bool(changed) if head else None}


@functools.cache
def machine() -> dict:
    """Return the class of this machine, never its name: processor, cores, memory in GB."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory_gb = round(psutil.virtual_memory().total / 1e9)
    named = models[0] if models else platform.machine()
    return {"processor": named, "cores": os.cpu_count(), "memory_gb": memory_gb}


def seeds(settings: object, at: str = "") -> dict[str, int]:
    """Return every field named `seed` of nested settings, by its dotted name."""
    if not isinstance(settings, dict):
        return {}
    found = {f"{at}seed": settings["seed"]} if "seed" in settings else {}
    for name, part in settings.items():
        found |= seeds(part, f"{at}{name}.")
    return found


def provenance(verb: str, settings: object, parents: dict[str, str]) -> dict:
    """Describe a run: verb, settings, seeds, parents' keys, commit, versions, machine, time."""
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    torch, pins = sys.modules.get("torch"), HOME.parent / "constraints.txt"
    return {
        "verb": verb,
        "settings": plain(settings),
        "seeds": seeds(settings),
        "parents": parents,
        **commit(),
        "python": platform.python_version(),
        "packages": versions,
        "lock": digest(pins) if pins.is_file() else None,
        "threads": torch.get_num_threads() if torch else os.cpu_count(),
        "device": "cuda" if torch and torch.cuda.is_available() else "cpu",
        "machine": machine(),
        "time": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
    }

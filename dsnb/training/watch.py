"""A rank's guard: it notes what the rank does, hears signals, and ends a job that hangs.

A broken collective cannot be asked who is missing. So each rank leaves notes in a store beside the
process group, from a thread, and whoever sees no progress anywhere says who did not arrive.
"""

import json
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
from torch import distributed as dist

from dsnb import distributed, record
from dsnb.distributed import Ranks
from dsnb.training.clock import host_peak_mib

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
STARTING_S = 60.0  # at least, up to the end of the first step: a busy machine imports slowly
SHOWN = 8  # subjects that a message names


class Watch:
    """Notes of one rank; as a context it hears signals and, among several ranks, ends a hang."""

    def __init__(self, names=None, ranks: Ranks | None = None, patience_s: float = 600.0):
        self.signal = ""  # the name of the first signal heard
        self._names, self._ranks, self._patience = names, ranks, patience_s
        self._tick = min(10.0, patience_s / 8)
        self._now = (0, 0, "starting", (), time.monotonic())
        self._over, self._beat, self._handlers = threading.Event(), 0, {}
        self._heard: dict[int, tuple[float, dict]] = {}  # rank: when its beat last moved, its note
        self._asked = time.monotonic()  # when the store last answered

    def begin(self, step: int) -> None:
        """Begin a step."""
        self._now = (step, 0, "starting", (), time.monotonic())

    def note(self, doing: str, rows: np.ndarray | tuple = ()) -> None:
        """Note what this rank does now, with which training samples."""
        step, turn, *_ = self._now
        self._now = (step, turn + 1, doing, rows, time.monotonic())

    def _note(self) -> dict:
        step, turn, doing, rows, since = self._now
        subjects = list(self._names(np.asarray(rows[:SHOWN]))) if len(rows) else []
        subjects += [f"and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
        return {
            "step": step, "turn": turn, "doing": doing, "subjects": subjects, "beat": self._beat,
            "seconds": round(time.monotonic() - since, 1), "host": socket.gethostname(),
            "peak_mib": round(host_peak_mib()), "rank": self._ranks.rank if self._ranks else 0,
        }  # fmt: skip

    def __enter__(self) -> "Watch":
        store = _open_store(self._ranks, self._patience) if self._ranks.world > 1 else None
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._hear) for number in SIGNALS}
            while distributed.early:
                self.signal = distributed.early.pop()
        for work, words in ((self._report, (store,)), (self._judge, ())):
            threading.Thread(target=work, args=words, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._over.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if error is not None:
            error.add_note(_words(self._note()))

    def _hear(self, number: int, frame: object) -> None:
        self.signal = self.signal or signal.Signals(number).name

    def _report(self, store: dist.TCPStore | None) -> None:
        """Leave a sign of life again and again; read those of the others."""
        error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        while True:
            self._beat += 1
            note = json.dumps(self._note())
            if error_file:  # for the launcher, should this process be killed
                with suppress(OSError):
                    Path(error_file).with_name("heartbeat.json").write_text(note)
            if store is not None:
                with suppress(RuntimeError):  # a late answer, or none: `_judge` sees how old it is
                    self._exchange(store, note)
            if self._over.wait(self._tick):
                return

    def _exchange(self, store: dist.TCPStore, note: str) -> None:
        store.set(f"note-{self._ranks.rank}", note)
        for rank in range(self._ranks.world):
            if store.check([f"note-{rank}"]):
                other, now = json.loads(store.get(f"note-{rank}")), time.monotonic()
                if rank not in self._heard or other["beat"] != self._heard[rank][1]["beat"]:
                    self._heard[rank] = (now, other)
        self._asked = time.monotonic()

    def _judge(self) -> None:
        """End this rank where no rank has gone on for `patience_s`; a lone process only says so."""
        known, moved = None, time.monotonic()
        while not self._over.wait(self._tick / 2):
            notes = {rank: note for rank, (_, note) in self._heard.copy().items()}
            notes[self._ranks.rank] = self._note()
            places = {rank: (note["step"], note["turn"]) for rank, note in notes.items()}
            if places != known:
                known, moved = places, time.monotonic()
            quiet = time.monotonic() - moved
            starting = max(places.values())[0] < 2  # whoever is at step 2 waited for all at 1
            if quiet < max(self._patience, STARTING_S * starting) or self._over.is_set():
                continue
            if self._ranks.world > 1:
                distributed.end(1, self._verdict(notes, places, quiet))
            record.say(f"no progress for {quiet:.0f} s: {_words(notes[0])}")
            moved = time.monotonic()

    def _verdict(self, notes: dict[int, dict], places: dict, quiet: float) -> str:
        """Name the ranks that are behind all others, and those that give no sign of life."""
        heard, limit = self._heard.copy(), 3 * self._tick
        deaf = time.monotonic() - self._asked > limit  # rank 0 keeps the notes
        silent = {rank for rank, (when, _) in heard.items() if self._asked - when > limit}
        silent |= set(range(self._ranks.world)) - set(notes) | ({0} if deaf else set())
        silent.discard(self._ranks.rank)
        first, last = max(places.values()), min(places.values())
        late = {rank for rank in places if places[rank] == last < first} | silent
        told = [
            f"rank {rank} ({_place(notes[rank]) if rank in notes else 'never heard of'}"
            f"{', no sign of life' if rank in silent else ''})"
            for rank in sorted(late or places)
        ]
        who = "did not arrive" if late else "all wait for each other (the network?)"
        return f"no progress for {quiet:.0f} s, {who}: " + "; ".join(told)


def _words(note: dict) -> str:
    """Put a note into words."""
    subjects = f" [{', '.join(note['subjects'])}]" if note["subjects"] else ""
    return f"step {note['step']}, {note['doing']}{subjects}"


def _place(note: dict) -> str:
    """Put a note of another rank into words."""
    return f"host {note['host']}, {_words(note)}"


def _open_store(ranks: Ranks, patience_s: float) -> dist.TCPStore:
    """Open the store of notes on a free port of rank 0's host."""
    host, limit = os.environ["MASTER_ADDR"], timedelta(seconds=max(1.0, patience_s / 4))
    store = None
    if ranks.first:
        store = dist.TCPStore(host, 0, None, True, limit, wait_for_workers=False)
    port = distributed.from_first(ranks, lambda: store.port)
    return store or dist.TCPStore(host, port, None, False, limit, wait_for_workers=False)

"""The training loop: one for VAE and diffusion, for one rank and many, whole or resumed."""

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from dsnb import checkpoints, distributed, record
from dsnb.checks import BadInput
from dsnb.config import Training
from dsnb.distributed import Ranks, Stopped
from dsnb.training import log
from dsnb.training.state import State, Task, assess, step
from dsnb.training.watch import Watch

PATIENCE = 5  # steps in a row without a finite gradient before the training stops
# Settings that change no number but by rounding, as the number of ranks does: a resume takes them.
KEEPING = ("patience_s", "checkpoint_minutes", "checkpoint_every", "accumulate")


def train(
    run: Path, task: Task, settings: Training, identity: dict, weights: dict | None = None
) -> dict:
    """Train `task` for `settings.volumes` volumes in the run folder, or go on where it stopped.

    `weights`: a checkpoint's payload whose weights a new training starts from. Returns step, seen,
    skipped and best score. Refuses a global batch that does not divide, ranks that differ, a locked
    folder, another identity, and five steps in a row that diverged. USR1 and TERM save a checkpoint
    and raise `Stopped`.
    """
    with (
        distributed.joined() as ranks,
        Watch(task.names, ranks, settings.patience_s) as watch,
        record.locked(run) if ranks.first else nullcontext(),
    ):
        _check_ranks(task, settings, identity, ranks)
        state = State(task, settings, record.plain(identity), ranks)
        saved = distributed.from_first(ranks, lambda: checkpoints.newest(run))
        if saved:
            state.restore(run, saved)
        elif weights:
            state.take_weights(run, weights)
        counts, keeper = state.counts, _Keeper(run, state, settings)
        if ranks.first:
            _begin(run, state, identity, ranks)
            if weights and not saved:
                keeper.save("seen")  # or a kill before the first one would start from zero
        while counts["seen"] < settings.volumes:
            started = time.perf_counter()
            rows = distributed.ordered_rows(
                task.rows, settings.seed, counts["seen"], settings.batch
            )
            entry = step(state, task, rows, ranks, watch)
            entry["seconds"] = time.perf_counter() - started
            if counts["in_a_row"] >= PATIENCE:
                raise _diverged(run, task.names(rows))
            if _due(counts["seen"], settings.validate_every, settings):
                found, better = assess(state, task, ranks, watch)
                entry |= found
                if better and ranks.first:
                    watch.note("saving")
                    keeper.save("best")
            if ranks.first:
                watch.note("writing")
                log.append(run, entry | keeper.cost())
                if _due(counts["seen"], settings.checkpoint_every, settings) or keeper.late():
                    keeper.save("seen")
                record.progress(f"train {run.name}", counts["seen"], settings.volumes)
            if state.stopping and counts["seen"] < settings.volumes:
                distributed.from_first(ranks, lambda: keeper.leave(watch.signal))
                raise Stopped(f"{run.name}: stopped and saved after {counts['seen']} volumes")
        if ranks.first:
            log.amend(run, keeper.cost())
        return {k: counts[k] for k in ("step", "seen", "skipped")} | {"best": state.best}


def _check_ranks(task: Task, settings: Training, identity: dict, ranks: Ranks) -> None:
    """Refuse ranks that differ before the first step, and say how the batch is shared."""
    micro = distributed.shares(settings.batch, ranks.world, settings.accumulate)
    limit = distributed.TIMEOUT.total_seconds()
    if settings.patience_s >= limit:
        wanted, fix = f"under {limit:.0f} s, when collectives end", "lower it"
        raise BadInput("E-PATIENCE", "settings", "patience_s", settings.patience_s, wanted, fix)
    settled = record.digest(record.plain([identity, asdict(settings)]))
    mine = {"training samples": task.rows, "validation samples": task.held, "settings": settled}
    everyone = distributed.gathered(ranks, mine)
    for name in mine:
        seen = [other[name] for other in everyone]
        if len(set(seen)) > 1:
            seen = {f"rank {rank}": value for rank, value in enumerate(seen)}
            fix = "give every rank the same data and settings"
            raise BadInput("E-UNEQUAL", "ranks", name, seen, "the same on every rank", fix)
    for name in ("training samples", "validation samples"):
        if not mine[name]:
            fix = "give more people, or move some in the table's column split"
            raise BadInput("E-SPLIT", "the split", name, 0, "at least one", fix)
    if ranks.first and settings.batch > micro:
        record.say(
            f"global batch {settings.batch} = {ranks.world} ranks x {settings.accumulate} "
            f"micro-batches x {micro}"
        )


def _begin(run: Path, state: State, identity: dict, ranks: Ranks) -> None:
    """Clear what a stop left, cut the log back to the checkpoint, and say where this goes on."""
    settings, seen = state.settings, state.counts["seen"]
    checkpoints.check_room(run, 4 * sum(weight.nbytes for weight in state.model.parameters()))
    with record.writing(run):
        record.write_json(run / "config.json", {"training": asdict(settings), **identity})
        checkpoints.sweep(run)
        lost = log.rewind(run, seen)
    if seen or lost:
        text = f"{run.name}: goes on after {seen} of {settings.volumes} volumes"
        record.say(text + (f"; {lost} later ones are trained again" if lost else ""))


def _diverged(run: Path, names: list[str]) -> BadInput:
    """Return the refusal to go on, with the subjects and the checkpoint that is finite."""
    finite = [path.name for path in checkpoints.listed(run)[:1]] or ["none was written yet"]
    fix = f"look at {', '.join(names)}, or lower lr; the last finite checkpoint: {finite[0]}"
    seen = f"not finite {PATIENCE} times in a row"
    return BadInput("E-DIVERGED", run.name, "the gradient", seen, "finite numbers", fix)


def _due(seen: int, every: int, settings: Training) -> bool:
    """Return whether a multiple of `every` volumes was just passed, or the end reached."""
    return seen // every > (seen - settings.batch) // every or seen >= settings.volumes


@dataclass
class _Keeper:
    """Saves checkpoints on rank 0; knows when the last one was, and what it cost."""

    run: Path
    state: State
    settings: Training
    seen: int = field(init=False)  # volumes seen that are safe
    seconds: float = 0.0  # of the last save that a resume starts from
    untold: float = 0.0  # seconds of all saves that the log does not have yet

    def __post_init__(self):
        self.seen, self.when = self.state.counts["seen"], time.monotonic()

    def late(self) -> bool:
        """Return whether the last checkpoint is too old; clusters do not always warn."""
        return time.monotonic() - self.when > 60 * self.settings.checkpoint_minutes

    def save(self, kind: str) -> None:
        """Save, and time it; the first time, compare it with the launcher's patience."""
        began, grace = time.monotonic(), float(os.environ.get("DSNB_SHUTDOWN_S", "inf"))
        checkpoints.save(self.run, kind, self.state.payload())
        ended = time.monotonic()
        self.untold += ended - began
        if kind == "best":
            return
        first = not self.seconds
        self.seen, self.when, self.seconds = self.state.counts["seen"], ended, ended - began
        if first and 2 * self.seconds > grace:
            record.say(f"a save takes {self.seconds:.0f} s: raise --shutdown-timeout={grace:.0f}")

    def cost(self) -> dict[str, float]:
        """Return `save_s`, the seconds of the saves since the last row of the log, once."""
        untold, self.untold = self.untold, 0.0
        return {"save_s": untold} if untold else {}

    def leave(self, name: str) -> None:
        """Save on a signal, and leave a marker for whoever starts the next job."""
        counts = self.state.counts
        lost = counts["seen"] - self.seen
        if lost:
            said = f"{name or 'a signal on another rank'}: saving after step {counts['step']}"
            record.say(f"{said}; {lost} volumes would be lost if this save is cut")
            self.save("seen")
        log.amend(self.run, self.cost())
        marker = {"step": counts["step"], "seen": counts["seen"], "save_s": self.seconds}
        with record.writing(self.run):
            record.write_json(self.run / checkpoints.MARKER, marker)


def train_product(
    root: Path,
    name: str,
    verb: str,
    settings: dict,
    parents: tuple[str, ...],
    code: tuple[str, ...],
    build: Callable[[torch.device], tuple[Task, Training]],
    start: str = "resume",
) -> None:
    """Train the product `name` unless it is current; `build` makes the task once it is needed.

    Rank 0 alone asks, and clears, the product folder; all then follow its answer. `start` is
    `resume`, `weights` (of the run there, as the start of a new one) or `scratch`; both keep the
    old run beside the new one. Settings, code or parents other than those of an unfinished run are
    refused; a finished run that is outdated is set aside.
    """
    plan = {k: v for k, v in settings.get("training", {}).items() if k not in KEEPING}
    settings = settings | ({"training": plan} if plan else {})
    with distributed.joined() as ranks:
        product, built = None, build(ranks.device) if start == "weights" else None

        def begin() -> tuple[bool, dict, dict | None]:
            nonlocal product
            words = verb, settings, parents, code
            planned = record.planned(root, *words)
            weights = _start_over(root / name, planned, start, built and built[0])
            product = record.begin(root, name, *words, _keep)
            return product.done, product.note, weights

        done, note, weights = distributed.from_first(ranks, begin)
        if done:
            return
        train(root / name, *(built or build(ranks.device)), note, weights)
        if ranks.first:
            product.finish()


def _start_over(run: Path, planned: dict, start: str, task: Task | None) -> dict | None:
    """Set an old run aside where a new start is asked for; return the weights it starts from.

    Not so where this very start (its product's key) was stopped by a signal, and goes on. Weights
    of other parents are refused: they may have seen people whom the new split holds out.
    """
    if start == "resume":
        return None
    key = record.digest(planned)
    goes_on, begun = f"so it goes on in spite of --start {start}", run / ".begun"
    again = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if again and (start == "scratch" or checkpoints.listed(run)):
        record.say(f"{run.name}: requeued, {goes_on}")
        return None
    if (run / checkpoints.MARKER).is_file() and begun.is_file() and begun.read_text() == key:
        how = f"remove {checkpoints.MARKER} in its folder to start over"
        record.say(f"{run.name}: it stopped on a signal and saved, {goes_on}; {how}")
        return None
    weights = checkpoints.require(run, "seen") if start == "weights" else None
    if weights:  # all is checked before the old run is moved
        known = json.loads((run / "config.json").read_text()).get("parents")
        checkpoints.check_identity(run, {"parents": known}, {"parents": planned["parents"]})
    for name in ("model", "ema") if weights else ():
        checkpoints.weights_of(run, weights, name, task.model.state_dict())
    if run.is_dir():
        checkpoints.set_aside(run)
    return weights


def _keep(run: Path, note: dict) -> None:
    """Never let checkpoints be cleared: set a finished run aside, refuse to leave an unfinished."""
    kinds = [kind for kind in checkpoints.KEPT if checkpoints.listed(run, kind)]
    if not kinds:
        return
    if not (run / "product.json").is_file():
        old = checkpoints.newest(run, kinds[0]).get("identity", {})
        checkpoints.check_identity(run, old, note)
    checkpoints.set_aside(run, outdated=True)

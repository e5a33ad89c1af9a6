"""A search over the VAE's settings: short trainings, scored on validation people, resumable.

Any number of tasks (of a Slurm array, say) may share one search. Each holds the lock of the trial
that it trains; a running trial whose lock is free was killed, and the next task goes on with it.
"""

import json
import math
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dsnb import dataset, record, training, vae
from dsnb.checks import BadInput
from dsnb.config import Search, Study, Vae, replace
from dsnb.distributed import Noise
from dsnb.search import ablations, grids

CODE = ("search/trials", *vae.CODE)
RUN, LEDGER = "runs/search", grids.TRIALS
LONG = Search(trials=24, volumes=ablations.VOLUMES)  # the ledger's
MARKS = 4  # validations of a trial; from the second on, a pruner may end it
BEGUN = tuple(state for state in TrialState if state != TrialState.WAITING)
STARTUP = 5  # whole trials before the first is pruned


def space(settings: Vae) -> dict[str, optuna.distributions.BaseDistribution]:
    """Return what is searched, around the defaults; `lr` belongs to the training."""
    lr, kl, width, channels = (
        defaults(settings)[name] for name in ("lr", "kl", "width", "channels")
    )
    widths = {max(8, round(width * share / 8) * 8) for share in (0.5, 1, 1.5)}  # norm: 8 groups
    return {
        "lr": optuna.distributions.FloatDistribution(lr / 4, lr * 4, log=True),
        "width": optuna.distributions.CategoricalDistribution(sorted(widths)),
        "channels": optuna.distributions.CategoricalDistribution(
            sorted({max(1, channels // 2), channels, channels * 2})
        ),
        "kl": optuna.distributions.FloatDistribution(kl / 100, kl * 10, log=True),
    }


def defaults(settings: Vae) -> dict:
    """Return the default values of what is searched."""
    own = {name: getattr(settings, name) for name in ("width", "channels", "kl")}
    return {"lr": settings.training.lr, **own}


def shortened(study: Study, values: dict) -> Vae:
    """Return VAE settings with the tried values and the short budget of a trial."""
    values, volumes = dict(values), study.search.volumes
    every = max(1, volumes // MARKS)
    plan = replace(
        study.vae.training, lr=values.pop("lr"), volumes=volumes, checkpoint_every=every,
        validate_every=every,
    )  # fmt: skip
    return replace(study.vae, **values, training=plan)


def draw(trial: optuna.Trial, settings: Vae, seed: int) -> dict:
    """Return a trial's values; those it has stay, others are drawn by its own number's seed."""
    trial.study.sampler = optuna.samplers.TPESampler(seed=1000 * seed + trial.number)
    return {
        name: trial.suggest_categorical(name, known.choices)
        if isinstance(known, optuna.distributions.CategoricalDistribution)
        else trial.suggest_float(name, known.low, known.high, log=known.log)
        for name, known in space(settings).items()
    }


class TriedTask(vae.VaeTask):
    """Tell the journal each validation, and end a hopeless trial; the defaults are never ended."""

    def __init__(self, root: Path, settings: Vae, trial: optuna.Trial):
        super().__init__(root, settings, torch.device("cpu"))
        self.trial, self.seen = trial, 0

    def loss(self, model: vae.NormativeVae, batch: torch.Tensor, noise: Noise) -> dict:
        """Return the VAE's terms, and note how many volumes will then have been seen."""
        self.seen = (noise.step + 1) * self.settings.training.batch
        return super().loss(model, batch, noise)

    def conclude(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        """Return the VAE's numbers; raise `TrialPruned` where the pruner gives the trial up."""
        numbers, trial = super().conclude(found), self.trial
        told = trial.study.get_trials()[trial.number].intermediate_values
        if numbers["score"] > max(told.values(), default=-math.inf):
            trial.set_user_attr("each_db", record.plain(found["score"]))
        if self.seen not in told:  # else trained again after a kill
            trial.report(float(numbers["score"]), self.seen)
        if trial.number and trial.should_prune():
            raise optuna.TrialPruned
        return numbers


def try_out(root: Path, folder: Path, study: Study, trial: optuna.Trial) -> None:
    """Train one trial in its folder, or go on with it, and tell the journal how it ended."""
    settings = shortened(study, draw(trial, study.vae, study.search.seed))
    began, before = time.process_time(), trial.user_attrs.get("cpu_seconds", 0.0)
    run, state, score = folder / "run", TrialState.COMPLETE, None
    run.mkdir(exist_ok=True)
    try:
        task = TriedTask(root, settings, trial)
        ended = training.train(run, task, settings.training, {"settings": asdict(settings)})
        score = float(ended["best"])
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except BadInput as refusal:
        if refusal.code != "E-DIVERGED" or not trial.number:
            raise
        state = TrialState.FAIL
    finally:
        trial.set_user_attr("cpu_seconds", before + time.process_time() - began)
    trial.study.tell(trial, score, state)
    shutil.rmtree(run)  # only the score is wanted


class KernelLock:
    """The house's lock on the journal, which the kernel drops when its holder dies.

    Optuna's own locks are files, taken over after 30 s: from a dead task, or from one that sleeps.
    """

    def __init__(self, path: Path):
        self.path = path

    def acquire(self) -> bool:
        """Wait for the lock."""
        self.file = self.path.open("a")
        return record.lock(self.file, self.path.name)

    def release(self) -> None:
        """Let the next one in."""
        self.file.close()


def _storage(folder: Path) -> JournalStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock = KernelLock(folder / "journal.lock")
    return JournalStorage(JournalFileBackend(str(folder / "journal.log"), lock_obj=lock))


def open_journal(folder: Path, study: Study) -> optuna.Study:
    """Open the search's journal; the defaults are its first trial."""
    journal = optuna.create_study(
        storage=_storage(folder), study_name="vae", direction="maximize", load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(STARTUP, n_warmup_steps=study.search.volumes // 2),
    )  # fmt: skip
    if not journal.trials:
        journal.enqueue_trial(defaults(study.vae))
    return journal


def rows(journal: optuna.Study) -> list[dict]:
    """Return a row a trial that has ended, in order: its values, validation PSNR (dB) and cost.

    A pruned one has the PSNR it had by then; one that diverged may have none.
    """
    ended = []
    for trial in journal.get_trials():
        if trial.state.is_finished():
            curve = sorted(trial.intermediate_values.items())
            ended.append({
                "trial": trial.number, "default": trial.number == 0,
                "state": trial.state.name.lower(), **trial.params,
                "psnr_db": max((db for _, db in curve), default=None),
                "volumes": curve[-1][0] if curve else 0, "curve": curve, **trial.user_attrs,
            })  # fmt: skip
    return record.plain(ended)


def _start(held: ExitStack, product: record.Product, study: Study) -> optuna.Trial | None:
    """Return a trial with its lock: one whose task is gone, else a new one; None where none is.

    Tasks ask one after the other, so together they start as many as the settings say. The one that
    finds all trials ended finishes the product.
    """
    folder, total = product.folder, study.search.trials + 1
    with (folder / "start.lock").open("a") as file:
        record.lock(file, folder.name)
        if (folder / "product.json").is_file():  # another task was faster
            return None
        journal = open_journal(folder, study)
        for known in journal.get_trials(states=(TrialState.RUNNING,)):
            if _take(held, folder, known.number):
                if not journal.get_trials()[known.number].state.is_finished():
                    return optuna.Trial(journal, known._trial_id)
                held.close()  # it ended just now
        started, ended = journal.get_trials(states=BEGUN), rows(journal)
        record.progress("search", len(ended), total)
        if len(started) < total:
            trial = journal.ask()
            _take(held, folder, trial.number)
            return trial
        if len(ended) == total:
            record.write_json(folder / "trials.json", ended)
            product.finish()
        else:
            record.say(f"search: other tasks still train {total - len(ended)} of {total} trials")
    return None


def _take(held: ExitStack, folder: Path, number: int) -> bool:
    """Lock a trial's folder; False where another task holds it."""
    own = folder / f"trial-{number}"
    own.mkdir(exist_ok=True)
    try:
        held.enter_context(record.locked(own))
    except BadInput as refusal:
        if refusal.code != "E-LOCKED":
            raise
        return False
    return True


def _refuse_running(folder: Path, note: dict) -> None:
    """Never let a search be cleared while a task trains one of its trials (E-LOCKED)."""
    for lock in sorted(folder.glob("trial-*/.lock")):
        with record.locked(lock.parent):
            pass


def take_part(root: Path, study: Study, name: str = RUN) -> Path:
    """Run trials until none is left to start, alone or beside other tasks; return the folder.

    Settings are tried by a tree of Parzen estimators (Bergstra 2011), seeded by a trial's number;
    the median of the whole trials at the same volumes prunes.
    """
    settings = {"search": asdict(study.search), "vae": asdict(study.vae)}
    words = "search", settings, ("prepared",), CODE
    product = record.begin(root, name, *words, _refuse_running)
    while not product.done:
        with ExitStack() as held:
            trial = _start(held, product, study)
            if trial is None:
                break
            try_out(root, product.folder / f"trial-{trial.number}", study, trial)
    return product.folder


def search(root: Path, study: Study) -> dict:
    """Search by short trials on validation people, to the end; return their table and its best."""
    folder = take_part(root, study)
    record.require(root, RUN)
    table = json.loads((folder / "trials.json").read_text())
    best = max((row for row in table if row["state"] == "complete"), key=lambda r: r["psnr_db"])
    tables = {"trials": table, "best": best, "volumes": study.search.volumes}
    timing = {"cpu_seconds": sum(row["cpu_seconds"] for row in table)}
    return {"headline": {}, "tables": tables, "timing": timing}


def fill_trials(root: Path, study: Study) -> None:
    """Fill the ledger with a search of the ablations' budget, a row a trial that has ended."""
    torch.set_num_threads(1)  # the same arithmetic on any machine
    study = replace(study, search=LONG)
    try:
        folder = take_part(root, study, "runs/trials")
    finally:
        _add_rows(root, study, root / "runs/trials")
    record.say(f"search: the trials of {folder.name} are in the ledger")


def _add_rows(root: Path, study: Study, folder: Path) -> None:
    if not (folder / "journal.log").is_file():
        return
    settings = {"volumes": study.search.volumes, "vae": asdict(study.vae)}
    for row in rows(optuna.load_study(study_name="vae", storage=_storage(folder))):
        values = {name: row.pop(name) for name in space(study.vae)}
        task = {**dataset.identify(root), "seed": study.search.seed, "trial": row.pop("trial"),
                "variant": "-".join(map(str, values.values())), "values": values,
                "settings": settings}  # fmt: skip
        key = record.row_key(task, CODE)
        if record.find_row(LEDGER, key) is None:
            record.add_row(LEDGER, key, row)

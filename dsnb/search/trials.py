"""A search over the VAE's settings: short trainings, scored on validation people, resumable."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from dsnb import checkpoints, record, training, vae
from dsnb.config import Study, Vae, replace
from dsnb.search.ablations import LEDGER

CODE = ("search/trials", *vae.CODE)


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
    plan = replace(
        study.vae.training,
        lr=values.pop("lr"),
        volumes=volumes,
        checkpoint_every=volumes,
        validate_every=volumes,
    )
    return replace(study.vae, **values, training=plan)


def try_out(root: Path, folder: Path, study: Study, values: dict) -> dict:
    """Train one trial in its folder; return its values, validation PSNR (dB) and cost."""
    settings, began, cpu = shortened(study, values), time.perf_counter(), time.process_time()
    task = vae.VaeTask(root, settings, torch.device("cpu"))
    folder.mkdir(exist_ok=True)
    ended = training.train(folder, task, settings.training, {"settings": asdict(settings)})
    for path in (*checkpoints.listed(folder), *checkpoints.listed(folder, "best")):
        path.unlink()  # only the score is wanted
    cost = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return {**values, "psnr_db": ended["best"], "skipped": ended["skipped"], **cost}


def open_journal(folder: Path, settings: Vae) -> optuna.Study:
    """Open the search's journal, so that a killed search goes on; the defaults are its first trial.

    A trial that a kill cut short is marked as failed and does not count.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    found = optuna.create_study(
        storage=storage, study_name="vae", direction="maximize", load_if_exists=True
    )
    for trial in found.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        found.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    if not finished(found):
        found.enqueue_trial(defaults(settings), skip_if_exists=False)
    return found


def finished(journal: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that ran to their end, in order; the first is the defaults'."""
    return journal.get_trials(states=(optuna.trial.TrialState.COMPLETE,))


def search(root: Path, study: Study) -> dict:
    """Try settings by a tree of Parzen estimators (Bergstra 2011) on validation people.

    The defaults are trained for the same budget first. Returns trials, best and default PSNR.
    """
    settings = {"search": asdict(study.search), "vae": asdict(study.vae)}
    product = record.begin(root, "runs/search", "search", settings, ("prepared",), CODE)
    if not product.done:
        _run(root, product.folder, study)
        product.finish()
    rows = json.loads((product.folder / "trials.json").read_text())
    default, tried = rows[0], rows[1:]
    best = max(tried, key=lambda row: row["psnr_db"])
    headline = {
        "trials": len(tried),
        "best_psnr_db": best["psnr_db"],
        "default_psnr_db": default["psnr_db"],
        "ablations": len({row["variant"] for row in record.ledger_rows(LEDGER) if row["seed"]}),
    }
    tables = {"trials": rows, "best": best, "volumes": study.search.volumes}
    timing = {"cpu_seconds": sum(row["cpu_seconds"] for row in rows)}
    return {"headline": headline, "tables": tables, "timing": timing}


def _run(root: Path, folder: Path, study: Study) -> None:
    """Run what is missing of the defaults and `trials` tries; write their table.

    The sampler is seeded by trial number, so a search that was killed draws what it would have.
    """
    journal, total = open_journal(folder, study.vae), study.search.trials + 1
    while (count := len(finished(journal))) < total:
        record.progress("search", count, total)
        journal.sampler = optuna.samplers.TPESampler(seed=1000 * study.search.seed + count)
        trial = journal.ask(space(study.vae))
        row = try_out(root, folder / f"trial-{count}", study, trial.params)
        trial.set_user_attr("row", record.plain(row))
        journal.tell(trial, row["psnr_db"])
    rows = [
        {"trial": number, "default": number == 0, **trial.user_attrs["row"]}
        for number, trial in enumerate(finished(journal))
    ]
    record.write_json(folder / "trials.json", rows)
    record.progress("search", total, total)

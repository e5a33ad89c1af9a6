"""A search over the VAE's settings: short trainings, scored on validation people, resumable."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from dsnb import checkpoints, record, training, vae
from dsnb.config import Study, Vae, replace
from dsnb.search.ablations import LEDGER

CODE = ("search/trials", *vae.CODE)


def space(settings: Vae) -> dict[str, BaseDistribution]:
    """Return what is searched, around the defaults; `lr` belongs to the training."""
    lr, kl, width, channels = settings.training.lr, settings.kl, settings.width, settings.channels
    counts = {max(1, channels // 2), channels, channels * 2}
    widths = {max(8, round(width * share / 8) * 8) for share in (0.5, 1, 1.5)}  # norm: 8 groups
    return {
        "lr": FloatDistribution(lr / 4, lr * 4, log=True),
        "width": CategoricalDistribution(sorted(widths)),
        "channels": CategoricalDistribution(sorted(counts)),
        "kl": FloatDistribution(kl / 100, kl * 10, log=True),
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
    """Run what is missing of the defaults and `trials` tries, each a row of their table.

    The sampler is seeded by trial number and told of all rows before, so a search that was killed
    draws what it would have.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path, asked, total = folder / "trials.json", space(study.vae), study.search.trials + 1
    rows = json.loads(path.read_text()) if path.is_file() else []
    while (count := len(rows)) < total:
        record.progress("search", count, total)
        sampler = optuna.samplers.TPESampler(seed=1000 * study.search.seed + count)
        known = optuna.create_study(direction="maximize", sampler=sampler)
        for row in rows:
            values = {name: row[name] for name in asked}
            known.add_trial(
                optuna.create_trial(params=values, distributions=asked, value=row["psnr_db"])
            )
        values = known.ask(asked).params if rows else defaults(study.vae)
        row = try_out(root, folder / f"trial-{count}", study, record.plain(values))
        rows.append(record.plain({"trial": count, "default": not rows, **row}))
        record.write_json(path, rows)
    record.progress("search", total, total)

"""How faithfully the VAE redraws people it never saw: beside PCA, the mean and the noise floor."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA

from dsnb import dataset, record, rivals, space, training
from dsnb.config import Study
from dsnb.phantom.people import SITES
from dsnb.vae.losses import kl_divergence
from dsnb.vae.metrics import psnr_db, region_errors, region_logs, residual_bands, ssim
from dsnb.vae.networks import NormativeVae
from dsnb.vae.task import ACTIVE, encode, load, reconstruct

RULED = 20  # test people whose regions are measured by registration


def noise_floor_db(root: Path, study: Study, table: pd.DataFrame) -> float | None:
    """Return the PSNR (dB) of a phantom volume against its noise-free self; None on real data.

    No reconstruction can know the noise of the volume it is compared with: its mean squared error
    is at least the noise variance, that of the site's scanner. Prepared volumes keep the phantom's
    unit (white matter at 0.85), and Rician noise is nearly Gaussian in tissue.
    """
    if record.read_mark(root)["data"] != "phantom":
        return None
    sd = study.cohort.noise * np.array([SITES[site][1] for site in table["site"]])
    return float(np.mean(-20 * np.log10(sd)))


def channel_table(model: NormativeVae, volumes: np.ndarray) -> list[dict]:
    """Describe each latent channel on volumes (N, X, Y, Z): KL in nats a position, active share."""
    z_mean, z_logvar = encode(model, volumes)
    kl = kl_divergence(torch.from_numpy(z_mean), torch.from_numpy(z_logvar)).mean((0, 2, 3, 4))
    units = z_mean.var(0).reshape(z_mean.shape[1], -1)  # (C, positions)
    return [
        {"channel": c, "kl_nats": float(kl[c]), "active_share": float((unit > ACTIVE).mean()),
         "active": bool(unit.mean() > ACTIVE)}
        for c, unit in enumerate(units)
    ]  # fmt: skip


def linear_rivals(fit: np.ndarray, test: np.ndarray, brain: np.ndarray) -> dict[str, np.ndarray]:
    """Reconstruct test volumes (N, X, Y, Z) by the fit people's mean and by all of their PCA."""
    known = fit[:, brain].astype(np.float32)
    pca = PCA(svd_solver="full").fit(known)
    answers = {"mean": np.broadcast_to(known.mean(0), (len(test), known.shape[1]))}
    answers["pca"] = pca.inverse_transform(pca.transform(test[:, brain].astype(np.float32)))
    volumes = {name: np.zeros(test.shape, np.float32) for name in answers}
    for name, values in answers.items():
        volumes[name][:, brain] = values
    return volumes


def evaluate(root: Path, study: Study) -> dict:
    """Measure the VAE on test euploids beside PCA, the mean volume and the noise floor."""
    rivals.make_template(root, study)
    model, table = load(root), dataset.load_table(root)
    volumes, brain = dataset.load_volumes(root), space.load_template(study.grid).brain
    rows = dataset.select(table, "euploid", "test")
    test, began = volumes[rows].astype(np.float32), time.perf_counter()
    drawn = {study.vae.architecture: reconstruct(model, test)}
    seconds, own = (time.perf_counter() - began) / len(test), drawn[study.vae.architecture]
    drawn |= linear_rivals(volumes[dataset.select(table, "euploid", "fit")], test, brain)
    psnr = {name: psnr_db(volumes, test, brain) for name, volumes in drawn.items()}
    stats = training.read_stats(root / "runs/vae")
    template, channels = rivals.load_template(root), channel_table(model, test)
    sides = test[:RULED], rivals.without_halo(own[:RULED])
    sides = (region_logs(some, template, study) for some in sides)
    regions = region_errors(*sides)
    headline = {
        "psnr_db": psnr[study.vae.architecture].mean(),
        "psnr_db_floor": noise_floor_db(root, study, table.iloc[rows]),
        "ssim": ssim(own, test, brain).mean(),
        "psnr_db_pca": psnr["pca"].mean(),
        "psnr_db_mean": psnr["mean"].mean(),
        "region_error_pct": np.mean([row["error_pct"] for row in regions.values()]),
        "active_channels": sum(channel["active"] for channel in channels),
    }
    tables = {
        "psnr": _summary(psnr),
        "by_site": _by_site(psnr[study.vae.architecture], table.iloc[rows]["site"]),
        "channels": channels,
        "regions": [{"region": name, **row} for name, row in regions.items()],
        "spectrum": residual_bands(own, test, brain),
        "curve": training.curve(stats),
        "reasons": {},
    }
    if headline["psnr_db_floor"] is None:
        tables["reasons"]["psnr_db_floor"] = "real scans have no noise-free self to compare with"
    timing = {
        "reconstruct_seconds_per_volume": seconds,
        "train_seconds": training.wall_seconds(stats),
        "train_volumes": stats["seen"].max(),
    }
    return record.plain({"headline": headline, "tables": tables, "timing": timing})


def _summary(psnr: dict[str, np.ndarray]) -> list[dict]:
    """Describe the PSNR of each reconstruction over people, dB."""
    return [
        {"model": name, "people": len(values), "mean_db": values.mean(), "sd_db": values.std(),
         "lowest_db": values.min()}
        for name, values in psnr.items()
    ]  # fmt: skip


def _by_site(psnr: np.ndarray, sites: pd.Series) -> list[dict]:
    """Describe the PSNR by site, dB; sites with fewer than 5 people are left out."""
    table = pd.DataFrame({"site": sites.to_numpy(), "psnr": psnr}).groupby("site")["psnr"]
    table = table.agg(people="size", mean_db="mean").reset_index()
    return table[table["people"] >= 5].to_dict("records")

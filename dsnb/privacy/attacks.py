"""Membership attacks: who trained a model, judged by its loss; and a model made to over-fit."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from dsnb import diffusion, latents, training
from dsnb.config import Study
from dsnb.diffusion.flow import velocity_error
from dsnb.distributed import keyed_noise

SHARES = (0.35, 0.5, 0.65, 0.8)  # of the path from noise to data, where the attack looks


def attack_auc(
    members: np.ndarray, others: np.ndarray, member_ds: np.ndarray, other_ds: np.ndarray
) -> tuple[float, float]:
    """Return the AUC of "lower loss means member", and its SE, within groups and then pooled.

    SE by DeLong et al. (1988); groups weigh as their number of pairs.
    """
    total, weights = 0.0, 0.0
    variance = 0.0
    for ds in (False, True):
        x, y = members[member_ds == ds], others[other_ds == ds]
        if min(len(x), len(y)) < 2:
            continue
        wins = (x[:, None] < y) + 0.5 * (x[:, None] == y)
        weight = wins.size
        total, weights = total + weight * wins.mean(), weights + weight
        parts = (wins.mean(axis).var(ddof=1) / wins.shape[1 - axis] for axis in (0, 1))
        variance += weight**2 * sum(parts)
    return total / weights, float(np.sqrt(variance)) / weights


@torch.no_grad()
def losses(model: diffusion.Flow, z: np.ndarray, table: pd.DataFrame, draws: int) -> dict:
    """Return what an attacker with the model sees of each person's latent (N, C, d, h, w).

    `loss` (N,) is the denoising error at fixed shares and the same keyed noise for everybody;
    `span` (N,) the squared part of the latent that the model's components cannot reach.
    """
    device = model.latent_mean.device
    z = torch.tensor(z, device=device)
    conditions = diffusion.condition(table).to(device)
    data, count = model.project(z), len(SHARES) * draws
    start = keyed_noise(data.shape[1:], 0, np.arange(count), 0, device, "attack")
    share = torch.tensor(SHARES, device=device).repeat_interleave(draws)
    kept = torch.ones(count, device=device)
    pairs = ((one.expand(count, -1), wish.expand(count, -1)) for one, wish in zip(data, conditions))
    errors = [velocity_error(model, pair, start, share, kept).mean().item() for pair in pairs]
    outside = ((z - model.expand(data)) / model.latent_sd).square().flatten(1).mean(1)
    return {"loss": np.array(errors), "span": outside.cpu().numpy()}


def overfit(root: Path, study: Study) -> float:
    """Train a flow on few people far too long; return the attack's AUC on it.

    Non-members are other generator people, alike in all but the training of the flow.
    """
    settings = study.release
    task = diffusion.FlowTask(root, study, torch.device("cpu"))
    table, z, _, _ = latents.load(root)
    rows = diffusion.generator_rows(table)[0]
    ds = (table["group"].iloc[rows] == "DS").to_numpy()
    shuffled = np.random.default_rng([settings.seed, 12]).permutation(len(rows))
    half = settings.overfit_people // 2
    chosen = np.concatenate([shuffled[~ds[shuffled]][:half], shuffled[ds[shuffled]][:half]])
    task.data, task.rows = tuple(part[chosen] for part in task.data), len(chosen)
    task.people = task.people[chosen]
    volumes = settings.overfit_volumes
    plan = replace(study.diffusion.training, volumes=volumes, validate_every=volumes)
    with tempfile.TemporaryDirectory() as folder:
        training.train(Path(folder), task, replace(plan, checkpoint_every=volumes), {})
    loss = losses(task.model.eval(), z[rows], table.iloc[rows], settings.draws)["loss"]
    member = np.isin(np.arange(len(rows)), chosen)
    return attack_auc(loss[member], loss[~member], ds[member], ds[~member])[0]


def membership(root: Path, study: Study, halves: dict[str, np.ndarray]) -> tuple[dict, list]:
    """Attack the diffusion model and the VAE; the headline is the stronger attack on the former.

    Lower loss means member, fixed in advance. The upper bound is one-sided, at 95 %.
    """
    table, z, _, _ = latents.load(root)
    ds = (table["group"] == "DS").to_numpy()
    known, unseen = halves["training"], halves["unseen"]
    found = losses(diffusion.load(root)[0], z, table, study.release.draws)
    rows = []
    for name, loss in found.items():
        auc, error = attack_auc(loss[known], loss[unseen], ds[known], ds[unseen])
        upper = min(auc + norm.ppf(0.95) * error, 1.0)
        rows.append({"attack": name, "members": len(known), "others": len(unseen), "auc": auc,
                     "se": error, "upper": upper})  # fmt: skip
    worst = max(rows, key=lambda row: row["upper"])
    return {"attack_auc": worst["auc"], "attack_auc_upper": worst["upper"]}, rows

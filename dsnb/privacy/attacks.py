"""Membership attacks: who trained a model, judged by the model, by its samples, or by a mean.

Each gives every person a score that is lower for members, in a direction fixed in advance (of a
model's loss in either: it may fit its people less well than others), and is judged within groups.
The attacker knows further people of the same kind: an open cohort of euploids, and some with DS.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from scipy.stats import norm
from sklearn.decomposition import PCA

from dsnb import diffusion, further, latents, training
from dsnb.config import Study
from dsnb.distributed import keyed_noise

SHARES = (0.35, 0.5, 0.65, 0.8)  # of the path from noise to data, where the attack looks
FALSE_POSITIVES = 0.01  # at which the share of members found is told


def attack_auc(
    members: np.ndarray, others: np.ndarray, member_ds: np.ndarray, other_ds: np.ndarray
) -> tuple[float, float]:
    """Return the AUC of "lower score means member", and its SE, within groups and then pooled.

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


def found_at(members: np.ndarray, others: np.ndarray, share: float = FALSE_POSITIVES) -> float:
    """Return the share of members below the score that this share of others falls below."""
    return float((members < np.quantile(others, share)).mean())


def attack_row(
    name: str, on: str, members, others, member_ds, other_ds, either: bool = False
) -> dict:
    """Return an attack's row; `on` says what the attacker holds. The bound is one-sided, 95 %.

    With `either`, higher scores tell members as well as lower ones do.
    """
    auc, error = attack_auc(members, others, member_ds, other_ds)
    if either and auc < 0.5:
        members, others, auc = -np.asarray(members), -np.asarray(others), 1 - auc
    upper = min(auc + norm.ppf(0.95) * error, 1.0)
    return {"attack": name, "on": on, "members": len(members), "others": len(others), "auc": auc,
            "se": error, "upper": upper, "found_at_1_pct": found_at(members, others)}  # fmt: skip


@torch.no_grad()
def losses(model: diffusion.Flow, z: np.ndarray, table: pd.DataFrame, draws: int) -> dict:
    """Return what an attacker with the model sees of each person's latent (N, C, d, h, w).

    `loss` (N,) is the denoising error at fixed shares and the same keyed noise for everybody;
    `span` (N,) the squared part of the latent that the model's components cannot reach.
    """
    device = model.latent_mean.device
    z = torch.tensor(np.asarray(z), device=device)
    conditions = diffusion.condition(table).to(device)
    data, count = model.project(z), len(SHARES) * draws
    start = keyed_noise(data.shape[1:], 0, np.arange(count), 0, device, "attack")
    share = torch.tensor(SHARES, device=device).repeat_interleave(draws)
    kept = torch.ones(count, device=device)
    pairs = ((one.expand(count, -1), wish.expand(count, -1)) for one, wish in zip(data, conditions))
    errors = [
        diffusion.velocity_error(model, pair, start, share, kept).mean().item() for pair in pairs
    ]
    outside = ((z - model.expand(data)) / model.latent_sd).square().flatten(1).mean(1)
    return {"loss": np.array(errors), "span": outside.cpu().numpy()}


def train_aside(task: diffusion.FlowTask, plan) -> diffusion.Flow:
    """Train a task in a folder that does not stay; return its averaged weights, best checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        training.train(Path(folder), task, plan, {})
        task.model.load_state_dict(training.load_weights(Path(folder)))
    return task.model.eval().requires_grad_(False)


def overfit(root: Path, study: Study) -> float:
    """Train a flow on few people far too long; return the attack's AUC on it.

    Non-members are other generator people, alike in all but the training of the flow.
    """
    settings = study.release
    task = diffusion.study_task(root, study, torch.device("cpu"))
    table, z, _, _ = latents.load(root)
    rows = diffusion.generator_rows(table)[0]
    ds = (table["group"].iloc[rows] == "DS").to_numpy()
    shuffled = np.random.default_rng([settings.seed, 12]).permutation(len(rows))
    half = settings.overfit_people // 2
    chosen = np.concatenate([shuffled[~ds[shuffled]][:half], shuffled[ds[shuffled]][:half]])
    task.data, task.rows = tuple(part[chosen] for part in task.data), len(chosen)
    task.people = task.people[chosen]
    volumes = settings.overfit_volumes
    plan = replace(study.diffusion.training, volumes=volumes, validate_every=volumes,
                   checkpoint_every=volumes)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        training.train(Path(folder), task, plan, {})
    loss = losses(task.model.eval(), z[rows], table.iloc[rows], settings.draws)["loss"]
    member = np.isin(np.arange(len(rows)), chosen)
    return attack_auc(loss[member], loss[~member], ds[member], ds[~member])[0]


def reference_flow(root: Path, study: Study) -> diffusion.Flow:
    """Train the generator on an attacker's own people, as many as the study's, in its basis."""
    table, _, z = further.load(root, study)
    task = diffusion.study_task(root, study, torch.device("cpu"))
    euploid, ds = (np.flatnonzero(table["role"] == role) for role in ("public", "reference"))
    own = np.concatenate([euploid[-max(task.rows - len(ds), 1) :], ds])
    diffusion.refit(task.model, diffusion.Teachers(np.asarray(z[own]), table.iloc[own], None))
    held, rows = euploid[: task.held], own
    task.people, task.rows = table["participant_id"].to_numpy()[own], len(own)
    task.data, task.held_data = (
        (task.model.project(torch.from_numpy(np.asarray(z[some]))),
         diffusion.condition(table.iloc[some]))
        for some in (rows, held)
    )  # fmt: skip
    return train_aside(task, study.diffusion.training)


class People(NamedTuple):
    """Who is attacked: latents (N, C, d, h, w), table, features (N, K) of volumes, DS (N,)."""

    z: np.ndarray
    table: pd.DataFrame
    features: np.ndarray
    ds: np.ndarray


def on_flow(root: Path, study: Study, members: People, others: People) -> list[dict]:
    """Attack the diffusion model: its loss, its span, and its loss beside a reference model's.

    The latter is the likelihood-ratio attack with one reference (Carlini et al., arXiv 2112.03570).
    """
    draws, found = study.release.draws, []
    models = {"own": diffusion.load(root)[0], "reference": reference_flow(root, study)}
    for side in (members, others):
        seen = {name: losses(model, side.z, side.table, draws) for name, model in models.items()}
        beside = seen["own"]["loss"] - seen["reference"]["loss"]
        found.append(seen["own"] | {"loss beside a reference": beside})
    return [attack_row(name, "diffusion model", found[0][name], found[1][name], members.ds,
                       others.ds, either=True) for name in found[0]]  # fmt: skip


def on_samples(
    synthetic: People, known: People, members: People, others: People, near: int
) -> list[dict]:
    """Attack the synthetic cohort: are members nearer to it, or to its mean, than others are?

    `distance`, in the first `near` features, is to the nearest sample of the person's group over
    that to the nearest known person (a density ratio, after van Breugel et al., arXiv 2302.12580);
    `mean` is the agreement of a person's departure from the known mean with that of the samples'
    mean, features in their own variance (Homer et al. 2008). A row each for everybody and for DS.
    """
    scale = known.features[known.ds].std(0) if known.ds.sum() > near else 1.0
    scores = {"distance": [], "mean": []}
    for side in (members, others):
        ratio, alike = np.zeros(len(side.ds)), np.zeros(len(side.ds))
        for ds in (False, True):
            rows, made, base = (some.ds == ds for some in (side, synthetic, known))
            if not (rows.any() and made.any() and base.any()):
                continue
            steps = [cdist(side.features[rows, :near], some[:, :near]).min(1)
                     for some in (synthetic.features[made], known.features[base])]  # fmt: skip
            ratio[rows] = np.log(steps[0]) - np.log(steps[1])
            middle = known.features[base].mean(0)
            lead = (synthetic.features[made].mean(0) - middle) / scale
            alike[rows] = -((side.features[rows] - middle) / scale) @ lead
        scores["distance"].append(ratio)
        scores["mean"].append(alike)
    rows = []
    for name, pair in scores.items():
        rows.append(attack_row(name, "samples", *pair, members.ds, others.ds))
        patients = [score[side.ds] for score, side in zip(pair, (members, others))]
        if min(map(len, patients)) > 1:
            ds = [np.ones(len(side), bool) for side in patients]
            rows.append(attack_row(f"{name}, DS alone", "samples", *patients, *ds))
    return rows


def on_vae(drawn, mean_volume, members, others, public: np.ndarray) -> list[dict]:
    """Attack the VAE by voxels in the brain (N, V) of members, others and an open cohort.

    `drawn` holds the VAE's reconstructions of members and of others. The error alone, the error
    over that of the public people's components, and the agreement with the stored mean volume.
    """
    pca = PCA(min(len(public) - 1, 100), svd_solver="randomized", random_state=0).fit(public)
    middle, scores = public.mean(0), []
    for given, made in zip((members, others), drawn):
        error = np.log(((given - made) ** 2).mean(1))
        plain = np.log(((given - pca.inverse_transform(pca.transform(given))) ** 2).mean(1))
        lead = (given - middle) @ (mean_volume - middle)
        scores.append({"error": error, "error beside components": error - plain, "mean": -lead})
    ds = [np.zeros(len(side), bool) for side in (members, others)]
    return [attack_row(name, "VAE", scores[0][name], scores[1][name], *ds) for name in scores[0]]

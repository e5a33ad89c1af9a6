"""Train the normative VAE on euploid people, load it, and pass volumes through it."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from dsnb import checkpoints, dataset, distributed, record, rivals, training
from dsnb.config import Study, Training, Vae, vae_settings
from dsnb.distributed import Noise
from dsnb.vae import features, losses
from dsnb.vae.metrics import psnr_db
from dsnb.vae.networks import NormativeVae, build

CODE = (
    "vae/networks", "vae/losses", "vae/features", "vae/metrics", "vae/task", "training/state",
    "distributed", "dataset",
)  # fmt: skip
ACTIVE = 0.01  # variance over people of an active unit's posterior mean (Burda, arXiv 1509.00519)
UNITS = 4096  # latent elements, evenly spread, whose activity is watched in training
TISSUE = 0.3  # intensity of the mean volume inside the brain, whatever the template


class VaeTask:
    """Fit people's volumes, the loss and the validation PSNR, for the training loop.

    `people` are the rows (fit, validation) of other people than the study's split; `template` and
    `feature_net` are what `morph` and the perceptual loss need.
    """

    def __init__(
        self,
        root: Path,
        settings: Vae,
        device: torch.device,
        people: tuple[np.ndarray, np.ndarray] | None = None,
        template: np.ndarray | None = None,
        feature_net: features.FeatureNet | None = None,
    ):
        self.table, self.volumes = dataset.load_table(root), dataset.load_volumes(root)
        splits = (dataset.select(self.table, "euploid", name) for name in ("fit", "validation"))
        self.fit, self.validation = people or splits
        self.settings, self.device = settings, device
        self.rows, self.held = len(self.fit), len(self.validation)
        mean = dataset.mean_volume(self.volumes, self.fit)
        if settings.architecture == "morph" and template is None:
            template = rivals.load_template(root)
        if settings.perceptual and feature_net is None:
            feature_net = features.features_of(root)
        self.model = build(settings, mean, template)
        self.feature_net = feature_net.to(device) if feature_net else None
        self.brain = mean > TISSUE  # for the score only

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the ids of these fit people."""
        return self.table["participant_id"].to_numpy()[self.fit[rows]].tolist()

    def load(self, rows: np.ndarray) -> torch.Tensor:
        """Return the volumes (B, 1, X, Y, Z) of these fit people."""
        return dataset.as_batch(self.volumes, self.fit[rows], self.device)

    def loss(self, model: NormativeVae, batch: torch.Tensor, noise: Noise) -> dict:
        """Return the weighted terms of one posterior draw, all in fp32."""
        settings, seen = self.settings, noise.step * self.settings.training.batch
        z_mean, z_logvar = model.encode(batch)
        epsilon = noise(z_mean.shape[1:], "latent")
        volumes, terms = model.draw(z_mean + torch.exp(0.5 * z_logvar) * epsilon)
        drawn, given = volumes * model.support, batch * model.support
        terms |= losses.voxel_terms(drawn, given, model.support, settings.mse)
        terms["kl"] = losses.kl_term(z_mean, z_logvar, settings, seen)
        if settings.perceptual:
            terms["perceptual"] = settings.perceptual * self.feature_net.distance(drawn, given)
        if settings.adversarial:
            terms |= losses.adversarial_terms(model.critic, drawn, given, settings.adversarial)
        return terms

    def assess(self, model: NormativeVae, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return PSNR (dB), KL (nats) and parts of the posterior of these validation people."""
        volumes = np.asarray(self.volumes[self.validation[rows]])
        z_mean, z_logvar = encode(model, volumes)
        nats = losses.kl_divergence(torch.from_numpy(z_mean), torch.from_numpy(z_logvar))
        return {
            "score": psnr_db(decode(model, z_mean), volumes, self.brain),
            "kl_nats": nats.flatten(1).sum(1).numpy(),
            "logvar_low": z_logvar.min((1, 2, 3, 4)),
            "logvar_high": z_logvar.max((1, 2, 3, 4)),
            "units": z_mean.reshape(len(z_mean), -1)[:, :: -(-z_mean[0].size // UNITS)],
        }

    def conclude(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        """Return mean PSNR as the score, and the monitors that `health` reads."""
        return {
            "score": found["score"].mean(),
            "kl_nats": found["kl_nats"].mean(),
            "logvar_low": found["logvar_low"].min(),
            "logvar_high": found["logvar_high"].max(),
            "active_share": (found["units"].var(0) > ACTIVE).mean(),
        }


def batches(rows: int, size: int = 8) -> list[slice]:
    """Return slices of at most `size` that cover `rows`."""
    return [slice(start, start + size) for start in range(0, rows, size)]


@torch.no_grad()
def reconstruct(model: NormativeVae, volumes: np.ndarray) -> np.ndarray:
    """Reconstruct volumes (N, X, Y, Z) in small batches, float32 of the same shape."""
    device, answers = model.mean_volume.device, []
    for part in batches(len(volumes)):
        batch = dataset.as_batch(volumes, part, device)
        answers.append(model.reconstruct(batch)[:, 0].cpu().numpy())
    return np.concatenate(answers)


@torch.no_grad()
def encode(model: NormativeVae, volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode volumes (N, X, Y, Z) in small batches; posterior mean and log-variance, float32."""
    device, answers = model.mean_volume.device, []
    for part in batches(len(volumes)):
        batch = dataset.as_batch(volumes, part, device)
        answers.append([values.cpu().numpy() for values in model.encode(batch)])
    return tuple(np.concatenate(parts) for parts in zip(*answers))


@torch.no_grad()
def decode(model: NormativeVae, z: np.ndarray) -> np.ndarray:
    """Decode latents (N, C, d, h, w) in small batches into volumes (N, X, Y, Z), float32."""
    device, answers = model.mean_volume.device, []
    for part in batches(len(z)):
        batch = torch.from_numpy(np.ascontiguousarray(z[part], np.float32)).to(device)
        answers.append(model.decode(batch)[:, 0].cpu().numpy())
    return np.concatenate(answers)


def train(root: Path, study: Study, run: str = "runs/vae", start: str = "resume") -> None:
    """Train the normative VAE on the prepared euploid fit people as the product `run`.

    The template of `morph` and the feature network of the perceptual loss are made first.
    """
    settings, parents = study.vae, ["prepared"]
    if settings.architecture == "morph":
        with distributed.joined() as ranks:
            distributed.from_first(ranks, lambda: rivals.make_template(root, study))
        parents.append("template")
    if settings.perceptual:
        features.train_features(root, study, "resume" if start == "weights" else start)
        parents.append(features.RUN)

    def make(device: torch.device) -> tuple[VaeTask, Training]:
        return VaeTask(root, settings, device), settings.training

    words = "train vae", asdict(settings), tuple(parents), CODE
    training.train_product(root, run, *words, make, start)


def load(root: Path, run: str = "runs/vae") -> NormativeVae:
    """Load a finished VAE: averaged weights of its best checkpoint, in evaluation mode."""
    record.require(root, run)
    return restore(checkpoints.require(root / run))


def restore(payload: dict) -> NormativeVae:
    """Build the VAE of a checkpoint's payload, with its averaged weights, frozen."""
    settings, weights = vae_settings(payload["identity"]["settings"]), payload["ema"]
    maps = (weights[name][0, 0].numpy() for name in ("mean_volume", "template") if name in weights)
    model = build(settings, *maps)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)

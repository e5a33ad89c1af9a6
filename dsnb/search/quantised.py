"""A small VQ-VAE, one of the deep norms that others have tried on brains: a discrete latent."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import VQVAE

from dsnb import checkpoints, dataset, record, training, vae
from dsnb.config import Study, Vae, vae_settings
from dsnb.distributed import Noise

CODE = (*vae.CODE, "search/quantised")
CODEBOOK = {"num_embeddings": 256, "embedding_dim": 32}


class QuantisedVae(torch.nn.Module):
    """MONAI's VQVAE (van den Oord et al., arXiv 1711.00937) on the departure from the mean brain.

    `lean`'s mean volume, unit and support, so that only the latent differs.
    """

    def __init__(self, settings: Vae, mean_volume: np.ndarray):
        super().__init__()
        base, self.unit = vae.build(settings, mean_volume), settings.residual_scale
        for name in ("mean_volume", "support"):
            self.register_buffer(name, getattr(base, name))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.training.seed)
            self.net = VQVAE(
                3, 1, 1, channels=(16, 32), num_res_layers=1, num_res_channels=(16, 32),
                downsample_parameters=((2, 4, 1, 1),) * 2, ddp_sync=False,
                upsample_parameters=((2, 4, 1, 1, 0),) * 2, **CODEBOOK,
            )  # fmt: skip

    def forward(self, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return volumes (N, 1, X, Y, Z) drawn again from their codes, and the codebook's loss."""
        departure, loss = self.net((volumes - self.mean_volume) / self.unit)
        return self.mean_volume + self.unit * self.support * departure.float(), loss.float()

    def reconstruct(self, volumes: torch.Tensor) -> torch.Tensor:
        """Return the volumes (N, 1, X, Y, Z) drawn again."""
        return self(volumes)[0]


class QuantisedTask(vae.VaeTask):
    """The VAE's people and score for a VQ-VAE; its loss."""

    def __init__(self, root: Path, settings: Vae, device: torch.device):
        super().__init__(root, settings, device)
        self.model = QuantisedVae(settings, dataset.mean_volume(self.volumes, self.fit))

    def loss(self, model: QuantisedVae, batch: torch.Tensor, noise: Noise) -> dict:
        """Return squared error on the support, in the departure's unit, and the codebook's loss."""
        drawn, codebook = model(batch)
        error = ((drawn - batch) * model.support / model.unit).square().sum()
        return {"mse": error / model.support.sum() / len(batch), "codebook": codebook}

    def assess(self, model: QuantisedVae, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the PSNR (dB) of these validation people."""
        volumes = np.asarray(self.volumes[self.validation[rows]], np.float32)
        return {"score": vae.psnr_db(vae.reconstruct(model, volumes), volumes, self.brain)}

    def conclude(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        """Score by the mean PSNR."""
        return {"score": found["score"].mean()}


def train(root: Path, study: Study, run: str) -> None:
    """Train the VQ-VAE on the prepared euploid fit people, as long as the VAE, as product `run`."""

    def build(device: torch.device) -> tuple:
        return QuantisedTask(root, study.vae, device), study.vae.training

    words = "train quantised", asdict(study.vae), ("prepared",), CODE
    training.train_product(root, run, *words, build)


def load(root: Path, run: str) -> QuantisedVae:
    """Load a finished VQ-VAE: averaged weights of its best checkpoint."""
    record.require(root, run)
    payload = checkpoints.require(root / run)
    mean = payload["ema"]["mean_volume"][0, 0].numpy()
    model = QuantisedVae(vae_settings(payload["identity"]["settings"]), mean)
    model.load_state_dict(payload["ema"])
    return model.eval().requires_grad_(False)

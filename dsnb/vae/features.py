"""A feature network of the study's own, for a perceptual loss: nothing is downloaded.

It learns on euploid fit people to fill in blocks that were cut out of a volume; what its layers
see of two volumes is then compared.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from monai.networks.utils import pixelunshuffle
from torch import nn
from torch.nn import functional

from dsnb import checkpoints, dataset, record, training
from dsnb.config import Study, Training, Vae, replace
from dsnb.distributed import Noise
from dsnb.vae.losses import voxel_terms

FOLD = 2  # voxels a side that become channels: a full-size level would cost more than the VAE
WIDTHS = (16, 24, 32)  # channels at 1/2, 1/4 and 1/8 of the resolution
BLOCK = 8  # voxels a side of what is cut out
CUT = 0.674  # standard normal above which a block goes: a quarter of them
RUN = "runs/features"
CODE = ("vae/features", "vae/losses", "training/state", "distributed", "dataset")


class FeatureNet(nn.Module):
    """Volumes (N, 1, X, Y, Z) -> features at three resolutions, and the volumes without holes."""

    def __init__(self, seed: int = 1):
        super().__init__()
        torch.manual_seed(seed)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(before, width, 3, stride=1 if before == FOLD**3 else 2, padding=1),
                nn.GroupNorm(8, width), nn.SiLU(), nn.Conv3d(width, width, 3, padding=1),
            )
            for before, width in zip((FOLD**3, *WIDTHS), WIDTHS)
        )  # fmt: skip
        coarse = FOLD * 2 ** (len(WIDTHS) - 1)  # voxels a position of the last level
        self.fill = nn.Sequential(nn.SiLU(), nn.ConvTranspose3d(WIDTHS[-1], 1, coarse, coarse))

    def forward(self, volumes: torch.Tensor) -> list[torch.Tensor]:
        """Return features (N, 16, X/2, ...), (N, 24, X/4, ...), (N, 32, X/8, ...)."""
        hidden, found = pixelunshuffle(volumes, 3, FOLD), []
        for level in self.levels:
            hidden = level(hidden)
            found.append(hidden)
        return found

    def distance(self, drawn: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Return the mean squared gap of unit features (Zhang, arXiv 1801.03924, eq. 1), a scalar.

        Levels weigh the same; no learnt weights.
        """
        gaps = []
        for one, other in zip(self(drawn), self(given)):
            one, other = (functional.normalize(part.float(), dim=1) for part in (one, other))
            gaps.append((one - other).square().sum(1).mean())
        return sum(gaps) / len(gaps)


class FeatureTask:
    """Fit people's volumes with blocks cut out, for the training loop."""

    def __init__(self, root: Path, device: torch.device, rows: np.ndarray | None = None):
        self.table, self.volumes = dataset.load_table(root), dataset.load_volumes(root)
        self.fit = dataset.select(self.table, "euploid", "fit") if rows is None else rows
        self.model, self.device = FeatureNet(), device
        self.rows, self.held = len(self.fit), 1  # no choice hangs on its score

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the ids of these fit people."""
        return self.table["participant_id"].to_numpy()[self.fit[rows]].tolist()

    def load(self, rows: np.ndarray) -> torch.Tensor:
        """Return the volumes (B, 1, X, Y, Z) of these fit people."""
        return dataset.as_batch(self.volumes, self.fit[rows], self.device)

    def loss(self, model: FeatureNet, batch: torch.Tensor, noise: Noise) -> dict:
        """Return L1 and squared error of the volumes filled in from what was left of them."""
        blocks = tuple(-(-side // BLOCK) for side in batch.shape[2:])
        kept = (noise((1, *blocks), "blocks") < CUT).float()
        kept = functional.interpolate(kept, scale_factor=BLOCK)
        kept = kept[(..., *(slice(side) for side in batch.shape[2:]))]
        filled = model.fill(model(batch * kept)[-1]).float()
        return voxel_terms(filled, batch, torch.ones_like(batch[:1]), mse=2.0)

    def assess(self, model: FeatureNet, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return minus the error on these people, with blocks cut as if at step 0."""
        terms = [
            self.loss(model, self.load(row), Noise(0, row, 0, self.device)) for row in rows[:, None]
        ]
        return {"score": np.array([-float(sum(term.values())) for term in terms])}

    def conclude(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        """Return the mean score."""
        return {"score": found["score"].mean()}


def feature_plan(settings: Vae) -> Training:
    """Return how the feature network is trained: a fifth of the VAE's length, once validated."""
    volumes = max(settings.training.volumes // 5, settings.training.batch)
    once = {"validate_every": volumes, "checkpoint_every": volumes}
    return replace(settings.training, volumes=volumes, lr=1e-3, **once)


def train_features(root: Path, study: Study, start: str = "resume") -> None:
    """Train the feature network on euploid fit people as the product runs/features."""
    settings = feature_plan(study.vae)

    def make(device: torch.device) -> tuple[FeatureTask, Training]:
        return FeatureTask(root, device), settings

    words = "train features", {"training": asdict(settings)}, ("prepared",), CODE
    training.train_product(root, RUN, *words, make, start)


def load_features(folder: Path) -> FeatureNet:
    """Load the trained feature network of a run folder, frozen."""
    model = FeatureNet()
    model.load_state_dict(checkpoints.load_weights(folder, "seen"))
    return model.eval().requires_grad_(False)


def features_of(root: Path) -> FeatureNet:
    """Load the feature network of a data root; refuse where it is missing or outdated."""
    record.require(root, RUN)
    return load_features(root / RUN)

"""Networks that see noisy components (N, K), the angle and the conditions: an MLP, and a U-Net."""

import numpy as np
import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import nn
from torch.nn import functional

from dsnb.config import Diffusion

EMBEDDING = 64  # sinusoids of the angle
TIMES = 1000  # of MONAI's embeddings, on the quarter circle
MULTIPLE = 4  # sides that a U-Net of three levels can halve


class _Block(nn.Module):
    """A residual block of the MLP; angle and conditions enter by addition."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.context = nn.LayerNorm(width), nn.Linear(width, width)
        self.net = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return hidden + self.net(self.norm(hidden) + self.context(context))


class Mlp(nn.Module):
    """A residual MLP on components; it begins at zero."""

    def __init__(self, settings: Diffusion, components: int, conditions: int):
        super().__init__()
        width = settings.width
        self.enter = nn.Linear(components, width)
        self.context = nn.Sequential(
            nn.Linear(EMBEDDING + conditions, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(_Block(width) for _ in range(settings.blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, components))
        nn.init.zeros_(self.leave[1].weight)
        nn.init.zeros_(self.leave[1].bias)

    def forward(self, y: torch.Tensor, angle: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """Return (N, K) for components (N, K), angles (N,) and conditions (N, C)."""
        sinusoids = get_timestep_embedding(2 * TIMES / torch.pi * angle, EMBEDDING)
        context, hidden = self.context(torch.cat([sinusoids, asked], dim=1)), self.enter(y)
        for block in self.blocks:
            hidden = block(hidden, context)
        return self.leave(hidden)


class UNet(nn.Module):
    """MONAI's DiffusionModelUNet on the latent grid; conditions are constant channels beside it.

    Its last convolution begins at zero, as MONAI makes it.
    """

    def __init__(self, settings: Diffusion, latent_shape: tuple[int, ...], conditions: int):
        super().__init__()
        self.latent_shape, channels = latent_shape, settings.width // 4
        rest = [-side % MULTIPLE for side in latent_shape[:0:-1]]
        self.padding = [size for side in rest for size in (side // 2, side - side // 2)]
        self.net = DiffusionModelUNet(
            3, latent_shape[0] + conditions, latent_shape[0], num_res_blocks=settings.blocks,
            channels=(channels, 2 * channels, 2 * channels), attention_levels=(False, False, True),
            norm_num_groups=min(16, channels), num_head_channels=2 * channels,
        )  # fmt: skip

    def forward(self, y: torch.Tensor, angle: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """Return (N, K) for whole latents (N, K), angles (N,) and conditions (N, C)."""
        volume = functional.pad(y.reshape(-1, *self.latent_shape), self.padding)
        planes = asked[:, :, None, None, None].expand(-1, -1, *volume.shape[2:])
        drawn = self.net(torch.cat([volume, planes], dim=1), 2 * TIMES / torch.pi * angle)
        inside = [slice(low, low + side)
                  for low, side in zip(self.padding[-2::-2], self.latent_shape[1:])]  # fmt: skip
        return drawn[(..., *inside)].flatten(1)


def build(settings: Diffusion, components: int, latent_shape: tuple, conditions: int) -> nn.Module:
    """Make the network asked for, of `components` inputs (a U-Net: all latent positions)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        if settings.denoiser == "unet":
            assert components == np.prod(latent_shape)
            return UNet(settings, latent_shape, conditions)
        return Mlp(settings, components, conditions)

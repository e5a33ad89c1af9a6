"""Volume <-> latent: three architectures behind one interface.

`lean` folds voxels into channels and works at a quarter of the resolution; `monai` is the
AutoencoderKL that latent-diffusion readers know; `morph` warps a sharp euploid template. Unless
`departure` is off, all see the departure from the training people's mean; all but `morph` draw it.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from monai.networks.blocks import DVF2DDF, Warp
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets import AutoencoderKL, PatchDiscriminator
from monai.networks.nets.autoencoderkl import AEKLResBlock
from monai.networks.utils import pixelshuffle, pixelunshuffle
from scipy import ndimage
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dsnb.checks import BadInput
from dsnb.config import Vae

FOLD = 4  # voxels a side that become channels: networks work on a quarter of the grid
POOLED = 4  # positions a side of the `pooled` latent
HALF = 2  # voxels a side of the velocity of `morph`
START_LOGVAR = -4.0  # of a quiet start: wide posteriors drown channels before they carry anything
LOGVAR_RANGE = (-20.0, 10.0)  # of the posterior, so that exp stays finite in fp32
OUTLINE = 0.05  # intensity of the mean volume above which a voxel may be head


class NormativeVae(nn.Module, ABC):
    """Volumes (N, 1, X, Y, Z) in 0..1.5 and latents (N, C, d, h, w); (1, 1, 1) for a flat code.

    `mean_volume` (X, Y, Z) is the training people's; it is a buffer and so part of every
    checkpoint. Outside its dilated support a reconstruction is the mean volume itself (of `morph`:
    the warped template).
    """

    def __init__(self, settings: Vae, mean_volume: np.ndarray):
        super().__init__()
        self.settings = settings
        mean = torch.as_tensor(np.asarray(mean_volume, np.float32))[None, None]
        support = ndimage.binary_dilation(mean[0, 0].numpy() > OUTLINE, iterations=2)
        self.register_buffer("mean_volume", mean)
        self.register_buffer("support", torch.as_tensor(support, dtype=torch.float32)[None, None])
        self.critic = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.training.seed)
            self.build(tuple(mean.shape[2:]))
            if settings.adversarial:  # for training only; no BatchNorm, as ranks must agree
                self.critic = PatchDiscriminator(3, 8, 1, num_layers_d=2, norm="INSTANCE")

    @abstractmethod
    def build(self, grid_shape: tuple[int, int, int]) -> None:
        """Make the layers for volumes of this shape."""

    @abstractmethod
    def posterior(self, departure: torch.Tensor) -> torch.Tensor:
        """Return posterior mean and log-variance, stacked (N, 2C, d, h, w), of (N, 1, X, Y, Z)."""

    @abstractmethod
    def depart(self, z: torch.Tensor) -> torch.Tensor:
        """Return the departure (N, 1, X, Y, Z), in units of `residual_scale`, of latents."""

    def encode(self, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return posterior mean and log-variance, each fp32 (N, C, d, h, w), of (N, 1, X, Y, Z)."""
        if self.settings.departure:
            volumes = (volumes - self.mean_volume) / self.settings.residual_scale
        z_mean, z_logvar = self.posterior(volumes).float().chunk(2, dim=1)
        return z_mean, z_logvar.clamp(*LOGVAR_RANGE)

    def draw(self, z: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return volumes (N, 1, X, Y, Z), fp32, of latents, and loss terms of the drawing."""
        departure = self.depart(z).float()
        if not self.settings.departure:
            return departure, {}
        return self.mean_volume + self.settings.residual_scale * self.support * departure, {}

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return the volumes (N, 1, X, Y, Z), fp32, of latents (N, C, d, h, w)."""
        return self.draw(z)[0]

    def reconstruct(self, volumes: torch.Tensor) -> torch.Tensor:
        """Return decode(posterior mean), the same for the same input, (N, 1, X, Y, Z)."""
        return self.decode(self.encode(volumes)[0])


def _silence(layer: nn.Module) -> None:
    """Zero a layer: a residual block begins as the identity, a VAE with its mean volume.

    After Goyal et al., arXiv 1706.02677, section 5.1; the ablations say what it is worth.
    """
    for weights in layer.parameters():
        nn.init.zeros_(weights)


class _Blocks(nn.Sequential):
    """Pre-activation residual blocks (He, arXiv 1603.05027); activations may be recomputed."""

    def __init__(self, width: int, count: int, settings: Vae):
        norm = ("GROUP", {"num_groups": 8})
        super().__init__(*(ResBlock(3, width, norm=norm, act="SWISH") for _ in range(count)))
        self.recompute = settings.recompute
        if settings.quiet_start:
            for block in self:
                _silence(block.conv2.conv)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self:
            again = self.recompute and torch.is_grad_enabled()
            hidden = checkpoint(block, hidden, use_reentrant=False) if again else block(hidden)
        return hidden


def _trunk(settings: Vae) -> list[nn.Module]:
    """Return residual blocks and the norm and activation that close them."""
    blocks = _Blocks(settings.width, settings.blocks, settings)
    return [blocks, nn.GroupNorm(8, settings.width), nn.SiLU()]


def _coarse(settings: Vae, grid: tuple[int, ...]) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return the ways down from (N, W, *grid) to the latent, the posterior, and the way up.

    `quarter` keeps the grid, `eighth` halves it, `pooled` averages it to 4x4x4 positions, and
    `flat` makes one code of those.
    """
    width, channels, latent = settings.width, settings.channels, settings.latent
    if latent == "quarter":
        return (
            nn.Identity(),
            nn.Conv3d(width, 2 * channels, 1),
            nn.Conv3d(channels, width, 3, padding=1),
        )
    down = [nn.Conv3d(width, 2 * width, 2, stride=2), _Blocks(2 * width, 1, settings)]
    up = [_Blocks(2 * width, 1, settings), nn.ConvTranspose3d(2 * width, width, 2, 2)]
    posterior = nn.Conv3d(2 * width, 2 * channels, 1)
    enter = nn.Conv3d(channels, 2 * width, 1)
    if latent in ("pooled", "flat"):
        down.append(nn.AdaptiveAvgPool3d(POOLED))
        size = tuple(side // 2 for side in grid)
        up.insert(0, nn.Upsample(size, mode="trilinear"))
    if latent == "flat":
        posterior = nn.Conv3d(2 * width, 2 * channels, POOLED)
        enter = nn.ConvTranspose3d(channels, 2 * width, POOLED)
    return nn.Sequential(*down), posterior, nn.Sequential(enter, *up)


class LeanVae(NormativeVae):
    """Space-to-depth at the door, residual blocks at 1/4, depth-to-space at the exit.

    The folding is that of Shi et al., arXiv 1609.05158; a convolution at 1/4 of the resolution
    costs a 64th of one at the full.
    """

    exit_channels = FOLD**3

    def build(self, grid_shape: tuple[int, int, int]) -> None:
        """Make the layers; each side must be a multiple of 8."""
        settings, width = self.settings, self.settings.width
        self.encoder = nn.Sequential(nn.Conv3d(FOLD**3, width, 3, padding=1), *_trunk(settings))
        quarter = tuple(side // FOLD for side in grid_shape)
        self.down, self.to_posterior, self.up = _coarse(settings, quarter)
        self.decoder = nn.Sequential(
            *_trunk(settings), nn.Conv3d(width, self.exit_channels, 3, padding=1)
        )
        if settings.quiet_start:
            _silence(self.decoder[-1])
            nn.init.constant_(self.to_posterior.bias[settings.channels :], START_LOGVAR)
        for module in self.modules():  # 1.2 times as fast on a CPU
            if isinstance(module, nn.Conv3d) and module.kernel_size[0] == 3:
                module.to(memory_format=torch.channels_last_3d)

    def posterior(self, departure: torch.Tensor) -> torch.Tensor:
        """Return the posterior's parameters (N, 2C, d, h, w)."""
        folded = pixelunshuffle(departure, 3, FOLD)  # (N, 64, X/4, Y/4, Z/4)
        folded = folded.contiguous(memory_format=torch.channels_last_3d)
        features = self.encoder(folded).contiguous()  # a 1x1 kernel has no channels-last order
        return self.to_posterior(self.down(features))

    def features(self, z: torch.Tensor) -> torch.Tensor:
        """Return what the exit convolution draws, (N, exit channels, X/4, Y/4, Z/4)."""
        hidden = self.up(z.contiguous(memory_format=torch.channels_last_3d))
        return self.decoder(hidden)

    def depart(self, z: torch.Tensor) -> torch.Tensor:
        """Return the departure (N, 1, X, Y, Z) by unfolding the channels."""
        return pixelshuffle(self.features(z).float(), 3, FOLD)


class MonaiVae(NormativeVae):
    """MONAI's AutoencoderKL (Rombach et al., arXiv 2112.10752) without attention, latent at 1/4."""

    def build(self, grid_shape: tuple[int, int, int]) -> None:
        """Make the network; `widths` are the channels of its three levels."""
        widths = self.settings.widths
        self.net = AutoencoderKL(
            3, 1, 1, num_res_blocks=1, channels=widths, attention_levels=(False,) * len(widths),
            latent_channels=self.settings.channels, norm_num_groups=min(16, *widths),
            with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
            use_checkpoint=self.settings.recompute, include_fc=False,
        )  # fmt: skip
        if self.settings.quiet_start:  # the same start as `lean`, so that they compare
            _silence(self.net.decoder.blocks[-1].conv)
            nn.init.constant_(self.net.quant_conv_log_sigma.conv.bias, START_LOGVAR)
            for module in self.modules():
                if isinstance(module, AEKLResBlock):
                    _silence(module.conv2.conv)

    def posterior(self, departure: torch.Tensor) -> torch.Tensor:
        """Return the posterior's parameters (N, 2C, X/4, Y/4, Z/4)."""
        again = self.settings.recompute and torch.is_grad_enabled()
        encoder = self.net.encoder
        features = (
            checkpoint(encoder, departure, use_reentrant=False) if again else encoder(departure)
        )
        pair = self.net.quant_conv_mu(features), self.net.quant_conv_log_sigma(features)
        return torch.cat(pair, dim=1)

    def depart(self, z: torch.Tensor) -> torch.Tensor:
        """Return the network's output (N, 1, X, Y, Z)."""
        return self.net.decode(z)


class MorphVae(LeanVae):
    """Draw a stationary velocity field that warps a sharp template, and a coarse intensity.

    Scaling and squaring as in Arsigny et al. 2006 (MONAI's DVF2DDF); the deformation has the
    unit of volume change. `template` (X, Y, Z) replaces the mean volume as what is drawn upon.
    """

    exit_channels = 3 * HALF**3 + 1

    def __init__(self, settings: Vae, mean_volume: np.ndarray, template: np.ndarray):
        super().__init__(settings, mean_volume)
        drawn = torch.as_tensor(np.asarray(template, np.float32))[None, None]
        self.register_buffer("template", drawn)

    def build(self, grid_shape: tuple[int, int, int]) -> None:
        """Make the layers; with a quiet start the field is zero and the template is drawn."""
        super().build(grid_shape)
        self.integrate = DVF2DDF(num_steps=5, padding_mode="border")
        self.warp = Warp()

    def displacement(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return displacement (N, 3, X, Y, Z) in voxels, velocity at 1/2, and intensity at 1/4."""
        features = self.features(z).float()
        velocity = pixelshuffle(features[:, :-1], 3, HALF)  # (N, 3, X/2, Y/2, Z/2)
        size = self.mean_volume.shape[2:]
        field = functional.interpolate(self.integrate(velocity), size, mode="trilinear")
        return field * HALF, velocity, features[:, -1:]

    def draw(self, z: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the warped template plus intensity (N, 1, X, Y, Z), and the field's roughness."""
        field, velocity, coarse = self.displacement(z)
        drawn = self.warp(self.template.expand(len(z), -1, -1, -1, -1), field)
        shade = functional.interpolate(coarse, drawn.shape[2:], mode="trilinear")
        slopes = [velocity.diff(dim=axis).square().mean() for axis in (2, 3, 4)]
        return (
            drawn + self.settings.residual_scale * self.support * shade,
            {"rough": self.settings.roughness * sum(slopes)},
        )


def build(
    settings: Vae, mean_volume: np.ndarray, template: np.ndarray | None = None
) -> NormativeVae:
    """Return an untrained VAE for volumes of the mean volume's shape; `morph` needs a template.

    Refuses (E-ARCHITECTURE) a coarse latent of `monai`, and `morph` without a template.
    """
    kind, latent = settings.architecture, settings.latent
    if kind == "monai" and latent != "quarter":
        fix = "choose lean or morph"
        raise BadInput("E-ARCHITECTURE", "settings", "latent", latent, "quarter for monai", fix)
    if kind != "morph":
        return {"lean": LeanVae, "monai": MonaiVae}[kind](settings, mean_volume)
    if template is None:
        fix = "make the template first"
        raise BadInput("E-ARCHITECTURE", "settings", "template", None, "a volume for morph", fix)
    return MorphVae(settings, mean_volume, template)

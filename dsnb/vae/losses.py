"""Loss terms of the VAE, each a mean over the batch, so that shares of ranks can be averaged."""

import torch
from monai.losses import PatchAdversarialLoss
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from dsnb.config import Vae

KINK = 0.01  # L1 is smooth below it: where only rounding is left, it would decide the gradient


def kl_divergence(z_mean: torch.Tensor, z_logvar: torch.Tensor) -> torch.Tensor:
    """Return KL(q(z|x) || N(0, I)) in nats, each latent element (Kingma, arXiv 1312.6114, B)."""
    return 0.5 * (z_mean**2 + z_logvar.exp() - 1 - z_logvar)


def kl_term(z_mean: torch.Tensor, z_logvar: torch.Tensor, settings: Vae, seen: int) -> torch.Tensor:
    """Return the weighted KL: nats a volume, as MONAI's latent-diffusion tutorials weigh it.

    Elements below `free_bits` are left alone (Kingma, arXiv 1606.04934, eq. 15, each element);
    the weight rises over the first `kl_warmup` of the volumes (Bowman, arXiv 1511.06349).
    """
    nats = kl_divergence(z_mean, z_logvar).clamp(min=settings.free_bits).sum() / len(z_mean)
    rise = settings.kl_warmup * settings.training.volumes
    return settings.kl * (min(1.0, seen / rise) if rise else 1.0) * nats


def voxel_terms(
    drawn: torch.Tensor, given: torch.Tensor, support: torch.Tensor, mse: float
) -> dict[str, torch.Tensor]:
    """Return smooth L1 and weighted squared error of volumes (B, 1, X, Y, Z), support means."""
    voxels = support.sum() * len(given)
    return {
        "l1": functional.smooth_l1_loss(drawn, given, reduction="sum", beta=KINK) / voxels,
        "mse": mse * functional.mse_loss(drawn, given, reduction="sum") / voxels,
    }


def adversarial_terms(
    critic: nn.Module, drawn: torch.Tensor, given: torch.Tensor, weight: float
) -> dict[str, torch.Tensor]:
    """Return the least-squares terms of the VAE and of its patch critic (Mao, arXiv 1611.04076).

    Both are minimised in one step: the VAE's term holds the critic's weights fixed, the critic's
    term holds the drawn volume fixed, so neither gradient reaches the other's parameters.
    """
    judge = PatchAdversarialLoss(criterion="least_squares")
    fixed = {name: weights.detach() for name, weights in critic.named_parameters()}
    fooled = functional_call(critic, fixed, (drawn,))[-1].float()
    real, fake = (critic(volumes)[-1].float() for volumes in (given, drawn.detach()))
    own = judge(real, target_is_real=True, for_discriminator=True)
    own = own + judge(fake, target_is_real=False, for_discriminator=True)
    return {
        "adversarial": weight * judge(fooled, target_is_real=True, for_discriminator=False),
        "critic": 0.5 * own,
    }

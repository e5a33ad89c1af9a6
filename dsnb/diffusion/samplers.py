"""Noise -> latents in a few steps: Euler of the flow, DDIM and DDPM, each with guidance.

MONAI's schedulers are the reference in the tests, not used: their steps draw from one generator,
so a sample would depend on its batch, and RFlowScheduler takes images only.
"""

from functools import partial

import numpy as np
import torch

from dsnb.diffusion.flow import Flow
from dsnb.distributed import keyed_noise


def euler(y, velocity, angle, stride, noise):
    """Step along the velocity in the middle of the stride; exact for a Gaussian."""
    return y + stride * velocity(y, angle + stride / 2)


def ddim(y, velocity, angle, stride, noise):
    """Turn predicted data and noise by the stride (Song et al., arXiv 2010.02502, eq. 12)."""
    return np.cos(stride) * y + np.sin(stride) * velocity(y, angle)


def ddpm(y, velocity, angle, stride, noise):
    """Draw from the posterior given predicted data (Ho et al., arXiv 2006.11239, eq. 6 and 7)."""
    data = np.sin(angle) * y + np.cos(angle) * velocity(y, angle)
    now, then = np.sin(angle) ** 2, np.sin(angle + stride) ** 2  # alpha bar
    step, left = 1 - now / then, 1 - now
    mean = np.sqrt(then) * step / left * data + np.sqrt(now / then) * (1 - then) / left * y
    return mean + np.sqrt(max(step * (1 - then) / left, 0.0)) * noise()


SAMPLERS = {"euler": euler, "ddim": ddim, "ddpm": ddpm}


@torch.no_grad()
def draw(
    model: Flow, conditions: torch.Tensor, seed: int, steps: int, guidance: float = 1.0,
    samples: np.ndarray | None = None, sampler: str = "euler", remainder: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Return latents (N, C, d, h, w) for conditions (N, 4) in `steps` equal steps of the angle.

    The noise of a row is keyed by (seed, its number in `samples`, by default its place), so a
    sample is the same in any batch. Guidance as in Ho and Salimans, arXiv 2207.12598, eq. 6.
    """
    samples = np.arange(len(conditions)) if samples is None else samples
    device, stride = model.spread.device, np.pi / 2 / steps
    conditions = conditions.to(device)
    kept = torch.ones(len(conditions), device=device)

    def noise(step: int, name: str, shape=model.spread.shape) -> torch.Tensor:
        return keyed_noise(tuple(shape), seed, samples, step, device, name)

    def velocity(y: torch.Tensor, angle: float) -> torch.Tensor:
        angles = torch.full_like(kept, angle)
        found = model(y, angles, conditions, kept)
        if guidance != 1:
            free = model(y, angles, conditions, torch.zeros_like(kept))
            found = free + guidance * (found - free)
        return found

    y = noise(0, "start")
    for step in range(steps):
        fresh = partial(noise, step + 1, "step")
        y = SAMPLERS[sampler](y, velocity, step * stride, stride, fresh)
    shape = model.latent_shape.tolist()
    return model.expand(y, noise(0, "remainder", shape) if remainder else None)

"""Noise <-> latents of a wanted group, stage, age and sex: the process and its velocity.

The straight path x_t = t data + (1 - t) noise of a rectified flow (Liu et al., arXiv 2209.03003),
divided by its SD sqrt(t^2 + (1 - t)^2) for data of unit variance, is the quarter circle y = sin(a)
data + cos(a) noise with tan(a) = t / (1 - t). It is also the path of DDPM with a cosine schedule
(Nichol and Dhariwal, arXiv 2102.09672), and dy/da is the v of Salimans and Ho (arXiv 2202.00512,
appendix D): one model serves the samplers of both. What differs is what the network predicts.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import nn

from dsnb import space
from dsnb.config import Diffusion
from dsnb.diffusion import denoisers, remainder

CONDITIONS = ("DS", "stage", "age_decades", "sex")
LEAST_SINE = 0.02  # of an angle: a predicted noise says nothing of data where there is only noise


class Flow(nn.Module):
    """The velocity of unit-variance components (N, K), and the way from them to latents.

    Latent statistics, basis, remainder, gain, conditioning statistics, ages and affine are
    buffers, so they are part of every checkpoint. Without components (`grid`) a component is a
    latent position. Conditions move components along `moved` (D, K) only, where it has rows.
    """

    def __init__(self, settings: Diffusion, components: int, latent_shape: tuple[int, ...],
                 frequencies: int = 0, moved: int = 0):  # fmt: skip
        super().__init__()
        size, channels = int(np.prod(latent_shape)), latent_shape[0]
        on_grid = settings.basis == "grid"
        components = size if on_grid else components
        shapes = {
            "latent_mean": (channels, 1, 1, 1), "latent_sd": (channels, 1, 1, 1),
            "centre": (size,), "basis": (0 if on_grid else components, size),
            "spread": (components,), "moved": (moved, components),
            "condition_mean": (len(CONDITIONS),), "condition_sd": (len(CONDITIONS),),
            "effects": (len(CONDITIONS), components), "rest": (components,),
            "age_range": (2,), "affine": (4, 4),
            "left_spread": latent_shape, "left_mixing": (channels, channels),
            "left_amplitude": latent_shape[1:],
            "gain": (frequencies,), "gain_frequency": (frequencies,),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("latent_shape", torch.tensor(latent_shape))
        self.prediction = settings.prediction
        conditions = len(CONDITIONS) + 1
        self.net = denoisers.build(settings, components, latent_shape, conditions)

    def forward(
        self, y: torch.Tensor, angle: torch.Tensor, conditions: torch.Tensor, kept: torch.Tensor
    ) -> torch.Tensor:
        """Return dy/da (N, K) at components `y` (N, K), angle (N,) in 0..pi/2, conditions (N, 4).

        `kept` (N,) is 1, or 0 where the conditions are to be ignored. The network adds to what a
        Gaussian would predict; of a predicted sample, y' = (sample - sin y) / cos, and of a noise
        y' = (cos y - noise) / sin.
        """
        kept = kept[:, None]
        standard = (conditions - self.condition_mean) / self.condition_sd * kept
        more = self.net(y, angle, torch.cat([standard, kept], dim=1))
        angle = angle[:, None]
        if self.prediction == "epsilon":
            more = -more / angle.sin().clamp(min=LEAST_SINE)
        if self.prediction == "sample":
            more = more / angle.cos().clamp(min=LEAST_SINE)
        return self.gaussian(y, angle, standard, kept) + more

    def weight(self, angle: torch.Tensor) -> torch.Tensor:
        """Return what a squared error of the velocity (N,) weighs in that of the prediction."""
        if self.prediction == "epsilon":
            return angle.sin() ** 2
        return angle.cos() ** 2 if self.prediction == "sample" else torch.ones_like(angle)

    def gaussian(
        self, y: torch.Tensor, angle: torch.Tensor, standard: torch.Tensor, kept: torch.Tensor
    ) -> torch.Tensor:
        """Return dy/da (N, K) of a Gaussian whose mean is linear in the standardised conditions.

        It is E[cos(a) data - sin(a) noise | y]; a few hundred people show little beyond it, and
        the network need learn only that little.
        """
        mean, variance = standard @ self.effects, 1 + kept * (self.rest - 1)
        sine, cosine = angle.sin(), angle.cos()
        slope = sine * cosine * (variance - 1) / (sine**2 * variance + cosine**2)
        return cosine * mean + slope * (y - sine * mean)

    def project(self, z: torch.Tensor) -> torch.Tensor:
        """Return unit-variance components (N, K) of latents (N, C, d, h, w)."""
        flat = ((z - self.latent_mean) / self.latent_sd).flatten(1) - self.centre
        return (flat @ self.basis.T if len(self.basis) else flat) / self.spread

    def finish(self, drawn: np.ndarray) -> np.ndarray:
        """Return drawn volumes (N, X, Y, Z) as sharp as scans are; plain where there is no gain."""
        if not len(self.gain):
            return np.clip(drawn, 0, 1.5)
        return remainder.sharpen(drawn, self.gain.cpu().numpy(), self.gain_frequency.cpu().numpy())

    def expand(self, components: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the latents (N, C, d, h, w) of components (N, K).

        White `noise` of that shape becomes what people have outside the components.
        """
        flat = components * self.spread
        flat = (flat @ self.basis if len(self.basis) else flat) + self.centre
        if noise is not None and len(self.basis):
            parts = self.left_spread, self.left_mixing, self.left_amplitude
            left = remainder.draw_remainder(noise, *parts).flatten(1)
            flat = flat + left - left @ self.basis.T @ self.basis
        z = flat.reshape(-1, *self.latent_shape.tolist())
        return z * self.latent_sd + self.latent_mean


def condition(table: pd.DataFrame) -> torch.Tensor:
    """Code group (0 or 1), stage (0, 0.5, 1; no stage is 0), decades and sex of people, (N, 4)."""
    stage = table["stage"].map({name: i / 2 for i, name in enumerate(space.STAGES)}).fillna(0)
    coded = np.column_stack([table["group"] == "DS", stage, space.covariates(table)])
    return torch.from_numpy(coded.astype(np.float32))


class Teachers(NamedTuple):
    """Who teaches a flow: latents (N, C, d, h, w), table, and log region volumes (N, R)."""

    z: np.ndarray
    table: pd.DataFrame
    regions: np.ndarray


def _directions(flat: np.ndarray, conditions: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Return orthonormal latent directions (D, size) of region volumes, age and sex in euploids.

    A group differs along them: what a condition does to a brain is what it does to its regions. A
    few numbers say it, where the mean difference of a group would tell who is in it.
    """
    euploid = conditions[:, 0] == 0
    known, flat = np.column_stack([regions, conditions[:, 2:]])[euploid], flat[euploid]
    known = (known - known.mean(0)) / known.std(0).clip(1e-6)
    found = np.linalg.lstsq(known, flat - flat.mean(0), rcond=None)[0]
    _, sizes, turned = np.linalg.svd(found, full_matrices=False)
    return turned[sizes > 1e-3 * sizes[0]]


def build(
    settings: Diffusion, teachers: Teachers, statistics: dict, affine: np.ndarray,
    others: tuple[np.ndarray, np.ndarray] | None = None, fine: dict | None = None,
) -> Flow:  # fmt: skip
    """Return an untrained flow in the space of the teachers' latents.

    `others` are latents (M, C, d, h, w) and directions of them (S, C, d, h, w) that volumes show.
    The basis spans the directions of region volumes, those, and components of the others. Without
    `others` it holds components of the teachers, who then can be told by it. `fine` is what
    `remainder.fit_gain` found.
    """
    mean, sd = (np.asarray(statistics[k]).reshape(-1, 1, 1, 1) for k in ("mean", "std"))

    def flatten(some: np.ndarray) -> np.ndarray:
        return ((some - mean) / sd).reshape(len(some), -1).astype(np.float32)

    z, people, regions = teachers
    flat, size = flatten(z), z[0].size
    state = {"latent_mean": mean, "latent_sd": sd, "affine": affine, **(fine or {})}
    state["centre"], basis = np.zeros(size, np.float32), np.zeros((0, size), np.float32)
    moved = np.zeros((0, size), np.float32)
    if others is None and settings.basis != "grid":
        state["centre"] = flat.mean(0)
        count = min(settings.components, len(flat) - 1)
        basis = PCA(count, svd_solver="full").fit(flat).components_
    if others is not None:
        known, shown = flatten(others[0]), (others[1] * sd).reshape(len(others[1]), size)
        state["centre"], known = known.mean(0), known - known.mean(0)
        moved = _directions(flat, condition(people).numpy(), regions)
        basis = np.linalg.qr(np.concatenate([moved, shown]).T)[0].T
        left = known - known @ basis.T @ basis
        count = min(settings.components, len(known) - 1)
        own = PCA(count, svd_solver="randomized", random_state=0).fit(left[::2]).components_
        basis = np.linalg.qr(np.concatenate([basis, own]).T)[0].T
        further = known[1::2]  # nobody whom these components were fitted to
        codes = further @ basis.T  # turned until components do not correlate
        basis = (np.linalg.eigh(codes.T @ codes)[1].T[::-1] @ basis).astype(np.float32)
        left = further - further @ basis.T @ basis
        state |= remainder.fit_remainder(left.reshape(len(left), *z.shape[1:]))
        state["moved"] = moved @ basis.T
    frequencies = len((fine or {}).get("gain", ()))
    flow = Flow(settings, len(basis) or size, z.shape[1:], frequencies, len(moved))
    state["basis"] = basis if len(basis) else flow.basis
    for name, value in state.items():
        getattr(flow, name).copy_(torch.as_tensor(value))
    return refit(flow, teachers)


def refit(flow: Flow, teachers: Teachers) -> Flow:
    """Set middle, spread and effects of conditions by the teachers, in the basis that is there.

    Middle and effects are theirs along the moved directions alone, where there are any.
    """
    flow.spread.fill_(1)
    scores = flow.project(torch.from_numpy(teachers.z)).numpy()
    middle, spread, along = scores.mean(0), scores.std(0), flow.moved.numpy()
    if len(along):  # a mean of hundreds of numbers tells whose it is; elsewhere it is the others'
        middle = middle @ along.T @ along
    components = (scores - middle) / spread
    conditions, ages = condition(teachers.table), teachers.table["age"].to_numpy(float)
    condition_sd = conditions.std(0)
    condition_sd = torch.where(condition_sd > 0, condition_sd, 1.0)
    standard = ((conditions - conditions.mean(0)) / condition_sd).numpy()
    effects, *_ = np.linalg.lstsq(standard, components, rcond=None)  # a constant gets none
    if len(along):
        effects = (effects * spread) @ along.T @ along / spread
    shift = middle @ flow.basis.numpy() if len(flow.basis) else middle
    state = {
        "centre": flow.centre.numpy() + shift, "spread": spread, "effects": effects,
        "condition_mean": conditions.mean(0), "condition_sd": condition_sd,
        "rest": (components - standard @ effects).var(0), "age_range": [ages.min(), ages.max()],
    }  # fmt: skip
    for name, value in state.items():
        getattr(flow, name).copy_(torch.as_tensor(value))
    return flow


def velocity_error(
    model: Flow, batch: tuple, start: torch.Tensor, share: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """Return the mean squared error (B,) of dy/da at `share` (B,) of the quarter circle, fp32."""
    data, conditions = batch
    angle = share * torch.pi / 2
    sine, cosine = angle.sin()[:, None], angle.cos()[:, None]
    found = model(sine * data + cosine * start, angle, conditions, kept).float()
    return (found - (cosine * data - sine * start)).square().mean(1)

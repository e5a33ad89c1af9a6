"""Latents -> new brains of a wanted group, stage, age and sex: a rectified flow on components.

The straight path x_t = t data + (1 - t) noise (Liu et al., arXiv 2209.03003), divided by its SD
sqrt(t^2 + (1 - t)^2) for data of unit variance, is the quarter circle y = sin(a) data +
cos(a) noise with tan(a) = t / (1 - t), and its velocity dy/da is the v of Salimans and Ho (arXiv
2202.00512, appendix D). Equal Euler steps in the angle a are exact for a Gaussian; twenty in t
would lose 6 % of its SD. MONAI's RFlowScheduler is not used: it takes whole-number times, images
only, and the global generator, so a sample would depend on its batch.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from sklearn.decomposition import PCA
from torch import nn

from dsnb import checkpoints, dataset, latents, record, space, training
from dsnb.checks import BadInput
from dsnb.config import Diffusion, Study, Training
from dsnb.distributed import Noise, keyed_noise

CODE = ("diffusion", "training/state", "distributed", "dataset", "latents")
CONDITIONS = ("DS", "stage", "age_decades", "sex")
PREDICTION = "velocity"  # of the angle; part of the checkpoint's state, refused when another
FEWEST_DS = 4  # below this the group is a constant
EMBEDDING = 64  # sinusoids of the angle


class _Block(nn.Module):
    """A residual block of the MLP; angle and conditions enter by addition."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.context = nn.LayerNorm(width), nn.Linear(width, width)
        self.net = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return hidden + self.net(self.norm(hidden) + self.context(context))


class Flow(nn.Module):
    """The velocity of unit-variance components (N, K), and the way from them to latents.

    Nothing is added outside the components: they hold nearly all of the training variance.
    Latent statistics, basis, conditioning statistics, ages and affine are buffers, so they are
    part of every checkpoint.
    """

    def __init__(self, settings: Diffusion, components: int, latent_shape: tuple[int, ...]):
        super().__init__()
        torch.manual_seed(settings.training.seed)
        size, width, channels = int(np.prod(latent_shape)), settings.width, latent_shape[0]
        shapes = {
            "latent_mean": (channels, 1, 1, 1), "latent_sd": (channels, 1, 1, 1),
            "centre": (size,), "basis": (components, size), "spread": (components,),
            "condition_mean": (len(CONDITIONS),), "condition_sd": (len(CONDITIONS),),
            "effects": (len(CONDITIONS), components), "rest": (components,),
            "age_range": (2,), "affine": (4, 4),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("latent_shape", torch.tensor(latent_shape))
        self.enter = nn.Linear(components, width)
        self.context = nn.Sequential(
            nn.Linear(EMBEDDING + len(CONDITIONS) + 1, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(_Block(width) for _ in range(settings.blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, components))
        nn.init.zeros_(self.leave[1].weight)  # untrained, it samples the conditional Gaussian
        nn.init.zeros_(self.leave[1].bias)

    def forward(
        self, y: torch.Tensor, angle: torch.Tensor, conditions: torch.Tensor, kept: torch.Tensor
    ) -> torch.Tensor:
        """Return dy/da (N, K) at components `y` (N, K), angle (N,) in 0..pi/2, conditions (N, 4).

        `kept` (N,) is 1, or 0 where the conditions are to be ignored.
        """
        kept = kept[:, None]
        standard = (conditions - self.condition_mean) / self.condition_sd * kept
        sinusoids = get_timestep_embedding(angle * 1000, EMBEDDING)
        context = self.context(torch.cat([sinusoids, standard, kept], dim=1))
        hidden = self.enter(y)
        for block in self.blocks:
            hidden = block(hidden, context)
        return self.gaussian(y, angle[:, None], standard, kept) + self.leave(hidden)

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
        return flat @ self.basis.T / self.spread

    def expand(self, components: torch.Tensor) -> torch.Tensor:
        """Return the latents (N, C, d, h, w) of components (N, K)."""
        flat = (components * self.spread) @ self.basis + self.centre
        z = flat.reshape(-1, *self.latent_shape.tolist())
        return z * self.latent_sd + self.latent_mean


def condition(table: pd.DataFrame) -> torch.Tensor:
    """Code group (0 or 1), stage (0, 0.5, 1; no stage is 0), decades and sex of people, (N, 4)."""
    stage = table["stage"].map({name: i / 2 for i, name in enumerate(space.STAGES)}).fillna(0)
    coded = np.column_stack([table["group"] == "DS", stage, space.covariates(table)])
    return torch.from_numpy(coded.astype(np.float32))


def _build(
    settings: Diffusion, z: np.ndarray, statistics: dict, people: pd.DataFrame, affine: np.ndarray
) -> Flow:
    """Return an untrained flow in the space of training latents (N, C, d, h, w) of `people`."""
    mean, sd = (np.asarray(statistics[k]).reshape(-1, 1, 1, 1) for k in ("mean", "std"))
    flat = ((z - mean) / sd).reshape(len(z), -1).astype(np.float32)
    count = min(settings.components, len(z) - 1)
    pca = PCA(count, svd_solver="full").fit(flat)
    conditions, ages = condition(people), people["age"].to_numpy(float)
    condition_sd = conditions.std(0)
    condition_sd = torch.where(condition_sd > 0, condition_sd, 1.0)
    spread = np.sqrt(pca.explained_variance_)
    standard = ((conditions - conditions.mean(0)) / condition_sd).numpy()
    components = pca.transform(flat) / spread
    effects = np.linalg.lstsq(standard, components, rcond=None)[0]  # a constant gets none
    flow = Flow(settings, count, z.shape[1:])
    state = {
        "latent_mean": mean, "latent_sd": sd, "centre": pca.mean_, "basis": pca.components_,
        "spread": spread, "condition_mean": conditions.mean(0), "condition_sd": condition_sd,
        "effects": effects, "rest": (components - standard @ effects).var(0),
        "age_range": [ages.min(), ages.max()], "affine": affine,
    }  # fmt: skip
    for name, value in state.items():
        getattr(flow, name).copy_(torch.as_tensor(value))
    return flow


class FlowTask:
    """Components and conditions of people, the loss and the validation score.

    `people` are the rows (fit, validation) of others than the generator's.
    """

    def __init__(
        self, root: Path, study: Study, device: torch.device,
        people: tuple[np.ndarray, np.ndarray] | None = None,
    ):  # fmt: skip
        table, z, _, statistics = latents.load(root)
        fit, held = people or generator_rows(table)
        self.model = _build(study.diffusion, z[fit], statistics, table.iloc[fit], study.grid.affine)
        self.settings, self.device = study.diffusion, device
        self.rows, self.held = len(fit), len(held)
        self.people = table["participant_id"].to_numpy()[fit]
        self.data, self.held_data = (
            (self.model.project(torch.from_numpy(z[rows])).to(device),
             condition(table.iloc[rows]).to(device))
            for rows in (fit, held)
        )  # fmt: skip

    def load(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return components (B, K) and conditions (B, 4) of these people."""
        return self.data[0][rows], self.data[1][rows]

    def loss(self, model: Flow, batch: tuple, noise: Noise) -> dict[str, torch.Tensor]:
        """Return the squared error of the velocity; some rows are trained without conditions."""
        kept = noise.uniform("drop") >= self.settings.drop_condition
        start, share = noise(batch[0].shape[1:], "start"), noise.uniform("angle")
        return {"velocity": velocity_error(model, batch, start, share, kept.float()).mean()}

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the ids of these people."""
        return self.people[rows].tolist()

    @torch.no_grad()
    def assess(self, model: Flow, rows: np.ndarray, draws: int = 16) -> dict[str, np.ndarray]:
        """Return each validation person's mean error over draws, the same noise at every call."""
        batch, errors = tuple(part[rows] for part in self.held_data), []
        for draw in range(draws):
            start = keyed_noise(batch[0].shape[1:], 0, rows, draw, self.device, "validation")
            share = torch.full((len(rows),), (draw + 0.5) / draws, device=self.device)
            kept = torch.ones_like(share)
            errors.append(velocity_error(model, batch, start, share, kept))
        return {"error": torch.stack(errors).mean(0).cpu().numpy()}

    def conclude(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        """Score by minus the mean error over validation people."""
        return {"score": -float(found["error"].mean())}


def velocity_error(
    model: Flow, batch: tuple, start: torch.Tensor, share: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """Return the mean squared error (B,) of dy/da at `share` (B,) of the quarter circle, fp32."""
    data, conditions = batch
    angle = share * torch.pi / 2
    sine, cosine = angle.sin()[:, None], angle.cos()[:, None]
    found = model(sine * data + cosine * start, angle, conditions, kept).float()
    return (found - (cosine * data - sine * start)).square().mean(1)


def generator_rows(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that train the flow and those that choose when to stop.

    With fewer than `FEWEST_DS` people with DS it learns euploids alone; that is said.
    """
    fit, held = (dataset.select(table, "euploid", split) for split in ("fit", "validation"))
    ds = dataset.select(table, "DS", "generator-fit")
    if len(ds) < FEWEST_DS:
        record.say(f"diffusion: {len(ds)} people with DS, {FEWEST_DS} needed: euploids alone")
        return fit, held
    held_ds = dataset.select(table, "DS", "validation")
    return np.concatenate([fit, ds]), np.concatenate([held, held_ds])


def train(root: Path, study: Study, start: str = "resume") -> None:
    """Train the flow on euploid `fit` and DS `generator-fit` latents as product runs/diffusion."""

    def build(device: torch.device) -> tuple[FlowTask, Training]:
        return FlowTask(root, study, device), study.diffusion.training

    settings = asdict(study.diffusion) | {"prediction": PREDICTION}
    for name in ("steps", "guidance", "synthetic"):  # of the sampler: no reason to train again
        settings.pop(name)
    parents, run, verb = ("latents", "runs/vae"), "runs/diffusion", "train diffusion"
    training.train_product(root, run, verb, settings, parents, CODE, build, start)


def load(root: Path) -> tuple[Flow, dict]:
    """Load the finished flow (averaged weights, best checkpoint) and its identity.

    Refuses E-MISMATCH when it was trained for another VAE, prediction type or set of conditions.
    """
    payload = checkpoints.require(root / "runs/diffusion")
    identity, state = payload["identity"], payload["ema"]
    for name, seen, wanted in (
        ("runs/vae", identity["parents"].get("runs/vae"), record.require(root, "runs/vae")),
        ("prediction", identity["settings"].get("prediction"), PREDICTION),
        ("conditions", len(state["condition_mean"]), len(CONDITIONS)),
    ):
        if seen != wanted:
            fix = "train the diffusion model again (stage 07_diffusion)"
            raise BadInput("E-MISMATCH", "runs/diffusion", name, seen, str(wanted), fix)
    record.require(root, "runs/diffusion")
    return restore(payload), identity


def restore(payload: dict) -> Flow:
    """Build the flow of a checkpoint's payload, with its averaged weights, frozen."""
    settings, state = payload["identity"]["settings"], payload["ema"]
    kept = {name: settings[name] for name in ("width", "blocks")}
    flow = Flow(Diffusion(**kept), len(state["spread"]), tuple(state["latent_shape"].tolist()))
    flow.load_state_dict(state)
    return flow.eval().requires_grad_(False)


@torch.no_grad()
def draw(
    model: Flow,
    conditions: torch.Tensor,
    seed: int,
    steps: int,
    guidance: float = 1.0,
    samples: np.ndarray | None = None,
) -> torch.Tensor:
    """Return latents (N, C, d, h, w) for conditions (N, 4) by `steps` Euler steps in the angle.

    The noise of a row is keyed by (seed, its number in `samples`, by default its place), so a
    sample is the same in any batch. Guidance as in Ho and Salimans, arXiv 2207.12598, eq. 6.
    """
    samples = np.arange(len(conditions)) if samples is None else samples
    device = model.spread.device
    conditions = conditions.to(device)
    y = keyed_noise(model.spread.shape, seed, samples, 0, device, "start")
    kept = torch.ones(len(y), device=device)
    for step in range(steps):
        angle = torch.full_like(kept, (step + 0.5) * torch.pi / 2 / steps)
        velocity = model(y, angle, conditions, kept)
        if guidance != 1:
            free = model(y, angle, conditions, torch.zeros_like(kept))
            velocity = free + guidance * (velocity - free)
        y = y + velocity * (torch.pi / 2 / steps)
    return model.expand(y)

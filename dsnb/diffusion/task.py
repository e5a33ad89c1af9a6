"""Training of the generator on euploid `fit` and DS `generator-fit` latents; its checkpoints."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from dsnb import checkpoints, latents, record, training
from dsnb.checks import BadInput
from dsnb.config import Diffusion, Study, Training
from dsnb.diffusion import components
from dsnb.diffusion.components import generator_rows, teachers
from dsnb.diffusion.flow import CONDITIONS, Flow, Teachers, build, condition, velocity_error
from dsnb.distributed import Noise, keyed_noise

CODE = (*components.CODE, "training/state", "distributed")


class FlowTask:
    """Components and conditions of people, the loss and the validation score.

    `fit` and `held` are who trains the untrained `model`, and who chooses when to stop.
    """

    def __init__(
        self, settings: Diffusion, device: torch.device, model: Flow, fit: Teachers, held: Teachers
    ):
        self.model, self.settings, self.device = model, settings, device
        self.rows, self.held = len(fit.z), len(held.z)
        self.people = fit.table["participant_id"].to_numpy()
        self.data, self.held_data = (
            (model.project(torch.from_numpy(some.z)).to(device), condition(some.table).to(device))
            for some in (fit, held)
        )

    def load(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return components (B, K) and conditions (B, 4) of these people."""
        return self.data[0][rows], self.data[1][rows]

    def loss(self, model: Flow, batch: tuple, noise: Noise) -> dict[str, torch.Tensor]:
        """Return the squared error of the prediction; some rows are trained without conditions."""
        kept = noise.uniform("drop") >= self.settings.drop_condition
        start, share = noise(batch[0].shape[1:], "start"), noise.uniform("angle")
        weight = self.model.weight(share * torch.pi / 2)
        error = velocity_error(model, batch, start, share, kept.float())
        return {self.settings.prediction: (weight * error).mean()}

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the ids of these people."""
        return self.people[rows].tolist()

    @torch.no_grad()
    def assess(self, model: Flow, rows: np.ndarray, draws: int = 16) -> dict[str, np.ndarray]:
        """Return each validation person's mean error over draws, the same noise at every call."""
        batch, errors = tuple(part[rows] for part in self.held_data), []
        for number in range(draws):
            start = keyed_noise(batch[0].shape[1:], 0, rows, number, self.device, "validation")
            share = torch.full((len(rows),), (number + 0.5) / draws, device=self.device)
            kept = torch.ones_like(share)
            errors.append(velocity_error(model, batch, start, share, kept))
        return {"error": torch.stack(errors).mean(0).cpu().numpy()}

    def conclude(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        """Score by minus the mean error over validation people, and tell what they look like."""
        spread = float(self.held_data[0].std())
        return {"score": -float(found["error"].mean()), "component_sd": spread}


def study_task(
    root: Path, study: Study, device: torch.device,
    people: tuple[np.ndarray, np.ndarray] | None = None,
) -> FlowTask:  # fmt: skip
    """Return the task of a study's latents; `people` are rows of others than the generator's.

    Those have components of their own; the generator's lie in the product `components`.
    """
    table, z, _, statistics = latents.load(root)
    sides = [teachers(z[rows], table.iloc[rows]) for rows in people or generator_rows(table)]
    if people is None:
        model = components.load(root, study.diffusion)
    else:
        model = build(study.diffusion, sides[0], statistics, study.grid.affine)
    return FlowTask(study.diffusion, device, model, *sides)


def train(root: Path, study: Study, start: str = "resume") -> None:
    """Train the flow on euploid `fit` and DS `generator-fit` latents as product runs/diffusion."""
    components.make(root, study)
    parents = ("latents", "runs/vae", "components")

    def begin(device: torch.device) -> tuple[FlowTask, Training]:
        return study_task(root, study, device), study.diffusion.training

    settings = asdict(study.diffusion) | {"conditions": CONDITIONS}
    for name in ("sampler", "steps", "guidance", "synthetic"):  # no reason to train again
        settings.pop(name)
    run, verb = "runs/diffusion", "train diffusion"
    training.train_product(root, run, verb, settings, parents, CODE, begin, start)


def load(root: Path) -> tuple[Flow, dict]:
    """Load the finished flow (averaged weights, best checkpoint) and its identity.

    Refuses E-MISMATCH when it was trained for another VAE, prediction type or set of conditions.
    """
    payload = checkpoints.require(root / "runs/diffusion")
    identity, state = payload["identity"], payload["ema"]
    known = Diffusion.__dataclass_fields__["prediction"].type.__args__
    for name, seen, wanted in (
        ("runs/vae", identity["parents"].get("runs/vae"), record.require(root, "runs/vae")),
        ("conditions", len(state["condition_mean"]), len(CONDITIONS)),
        ("prediction", identity["settings"].get("prediction") in known, True),
    ):
        if seen != wanted:
            fix = "train the diffusion model again (stage 07_diffusion)"
            raise BadInput("E-MISMATCH", "runs/diffusion", name, seen, str(wanted), fix)
    record.require(root, "runs/diffusion")
    kept = Diffusion(**{name: identity["settings"][name] for name in components.OF_NETWORK})
    return components.restore(kept, state).eval().requires_grad_(False), identity

"""A toy task that trains in milliseconds, and can be told to misbehave."""

import torch
from torch import nn

from dsnb import checkpoints, training
from dsnb.config import Training
from dsnb.training.log import COSTS

SETTINGS = Training(
    volumes=24, batch=4, lr=0.02, ema=0.9, checkpoint_every=8, validate_every=8, seed=3
)
IDENTITY = {"settings": {"width": 4}, "parents": {"prepared": "abc"}}


class Line:
    """Fit y = x @ w with keyed noise on the input; `bad` rows give a loss that is not finite."""

    def __init__(self, bad=(), stop_at=None):
        torch.manual_seed(0)
        self.model, self.rows, self.held = nn.Linear(6, 1), 10, 10
        self.bad, self.stop_at = set(bad), stop_at
        self.x = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))
        self.y = self.x @ torch.arange(6.0)[:, None]
        self.loaded = []

    def load(self, rows):
        if self.stop_at is not None and len(self.loaded) == self.stop_at:
            raise KeyboardInterrupt
        self.loaded.append(rows.tolist())
        return rows

    def loss(self, model, rows, noise):
        error = model(self.x[rows] + 0.1 * noise((6,), "input")) - self.y[rows]
        wrong = torch.tensor([[row in self.bad] for row in rows.tolist()])
        terms = {"fit": (error**2).masked_fill(wrong, float("nan")).mean()}
        return terms | {"size": 1e-3 * (model.weight**2).sum() + 1e-3 * noise.uniform("u").mean()}

    def names(self, rows):
        return [f"sub-{row:03d}" for row in rows]

    def assess(self, model, rows):
        return {"error": ((model(self.x[rows]) - self.y[rows]) ** 2)[:, 0].numpy()}

    def conclude(self, found):
        return {"score": -found["error"].mean(), "worst": found["error"].max()}


def trained(run, task=None, settings=SETTINGS):
    run.mkdir(exist_ok=True)
    training.train(run, task or Line(), settings, IDENTITY)
    return checkpoints.newest(run)


def log(run):
    """Return a run's log without times and memory."""
    return training.read_stats(run).drop(columns=list(COSTS), errors="ignore")

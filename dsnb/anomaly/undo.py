"""A network that has learnt, on euploids alone, to tell planted volume changes from variation.

Generic changes are planted on `fit` people, who are registered with and without them. What the
registration saw of a change is laid over the log-Jacobian of somebody else; the network gives back
the change itself, which is what it would take to undo it. It never sees a person with DS.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import UNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import nn
from torch.nn.functional import avg_pool3d

from dsnb import bids, checkpoints, dataset, distributed, record, rivals, training
from dsnb.anomaly import shares
from dsnb.config import Study, Training, Undo
from dsnb.distributed import Noise
from dsnb.norms import Normative, generic_change
from dsnb.space import Grid, covariates, load_template

CODE = ("space", "rivals", "norms", "anomaly/undo", "training/state", "distributed", "dataset")
RUN, PLANTED = "runs/undo", "planted"
FOLD = 2  # voxels a side that become channels
UNIT = 0.1  # log volume; what the network sees and gives is in this unit
FIRST_SEED = 10_000  # of the planted changes; the tuning's own begin at 0
EXTENT = (0.1, 0.35)  # share of the brain that a planted change moves by more than 0.1
MOST = 3  # changes laid over one person
REACH = (0.3, 1.2)  # of a change that is laid over somebody, either sign
MIXED = 0.7  # share of the difference of two other people that half of the people get on top


def plant(root: Path, study: Study) -> None:
    """Make `planted`: generic changes on some euploid fit and all validation people, seen and true.

    `response.npy` is how the log-Jacobian moved and `change.npy` the true log volume change, both
    (N, V) float16 on the template's grid, V voxels of its brain; row i is that of participants.tsv.
    """
    settings = {"people": study.undo.planted, "demons_iterations": study.maps.demons_iterations}
    product = record.begin(root, PLANTED, "plant", settings, ("prepared", "deformation"), CODE)
    if product.done:
        return
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    template, before = rivals.load_deformation(root)
    brain = load_template(study.grid).brain
    fit, held = (dataset.select(table, "euploid", name) for name in ("fit", "validation"))
    rows = np.concatenate([fit[: study.undo.planted], held])
    begun, size = (product.folder / "done.npy").is_file(), int(brain.sum())
    response, change, done = (
        np.lib.format.open_memmap(
            product.folder / f"{name}.npy", "r+" if begun else "w+", kind, (len(rows), *shape)
        )
        for name, kind, shape in (
            ("response", np.float16, (size,)), ("change", np.float16, (size,)), ("done", bool, ())
        )
    )  # fmt: skip
    left = np.flatnonzero(~done)
    for start in range(0, len(left), rivals.BLOCK):
        part = left[start : start + rivals.BLOCK]
        drawn = [_draw(brain, study.grid, FIRST_SEED + row) for row in rows[part]]
        changed = [
            rivals.warp(np.asarray(volumes[row], np.float32), flow, study.grid.voxel_mm, order=3)
            for row, (flow, _) in zip(rows[part], drawn)
        ]
        changed = rivals.without_halo(np.stack(changed))  # a cubic spline rings around the brain
        after, fields = rivals.register_volumes(changed, template, study, fields=True)
        response[part] = after[:, brain] - before[rows[part]][:, brain]
        for place, field, (_, truth) in zip(part, fields, drawn):
            moved = rivals.warp(truth, field.astype(np.float32), study.grid.voxel_mm)
            change[place] = moved[brain]
        response.flush()
        change.flush()
        done[part] = True  # last: a killed run goes on from here
        done.flush()
        record.progress("plant", int(done.sum()), len(rows))
    bids.write_table(product.folder / "participants.tsv", table.iloc[rows])
    product.finish()


def _draw(brain: np.ndarray, grid: Grid, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a generic change of random extent."""
    return generic_change(brain, grid, seed, np.random.default_rng(seed).uniform(*EXTENT))


class UndoNet(nn.Module):
    """Departures of log volume (N, V) from what age and sex predict -> changes (N, V).

    A U-Net (Ronneberger et al., arXiv 1505.04597; MONAI's) on voxels folded into channels. It is
    told where it is by the template's tissues, the spread of euploids and the place, left as right.
    """

    def __init__(self, settings: Undo, grid: Grid):
        super().__init__()
        template = load_template(grid)
        place = grid.coordinates_mm() / 60
        place[0] = np.abs(place[0])
        tissues = template.t1w, template.gm, template.wm, template.csf
        anatomy = np.concatenate([np.stack(tissues), place]).astype(np.float32)
        self.register_buffer("brain", torch.from_numpy(template.brain))
        self.register_buffer("anatomy", avg_pool3d(torch.from_numpy(anatomy), FOLD))
        self.register_buffer("coefficients", torch.zeros(3, int(template.brain.sum())))
        self.register_buffer("sd", torch.ones(int(template.brain.sum())))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.training.seed)
            self.net = UNet(
                3, FOLD**3 + len(anatomy) + 1, FOLD**3, settings.widths,
                [2] * (len(settings.widths) - 1), num_res_units=1, norm=None,
            )  # fmt: skip

    def forward(self, departures: torch.Tensor) -> torch.Tensor:
        """Return the changes (N, V) in departures (N, V), both log volume."""
        where = torch.cat([self.anatomy, avg_pool3d(self.volumes(self.sd[None])[0], FOLD) / UNIT])
        seen = pixelunshuffle(self.volumes(departures) / UNIT, 3, FOLD)
        where = where.expand(len(seen), *where.shape)
        return UNIT * pixelshuffle(self.net(torch.cat([seen, where], 1)), 3, FOLD)[:, 0, self.brain]

    def volumes(self, values: torch.Tensor) -> torch.Tensor:
        """Return brain values (N, V) as volumes (N, 1, X, Y, Z), zero around them."""
        volumes = values.new_zeros((len(values), 1, *self.brain.shape))
        volumes[:, 0, self.brain] = values
        return volumes

    def mirror(self, values: torch.Tensor) -> torch.Tensor:
        """Return brain values (N, V) with left and right exchanged; the template is symmetric."""
        return self.volumes(values).flip(2)[:, 0, self.brain]

    def residual(self, log_jacobian: torch.Tensor, covariates: torch.Tensor) -> torch.Tensor:
        """Return log-Jacobians (N, V) less what covariates (N, 2) predict in fit people."""
        design = torch.cat([torch.ones_like(covariates[:, :1]), covariates], 1)
        return log_jacobian - design @ self.coefficients


class UndoTask:
    """People to lay planted changes over, the changes, the loss and the validation score."""

    def __init__(self, root: Path, study: Study, device: torch.device):
        self.model = UndoNet(study.undo, study.grid)
        table, log_jacobian = dataset.load_table(root), rivals.load_deformation(root)[1]
        fit, held = (dataset.select(table, "euploid", name) for name in ("fit", "validation"))
        own, held_own = (
            np.asarray(log_jacobian[rows], np.float32)[:, self.model.brain.numpy()]
            for rows in (fit, held)
        )
        norm = Normative.fit(own, covariates(table.iloc[fit]))
        self.model.coefficients.copy_(torch.from_numpy(norm.coefficients))
        self.model.sd.copy_(torch.from_numpy(norm.sd))
        response, change = (
            np.load(root / PLANTED / f"{name}.npy").astype(np.float32)
            for name in ("response", "change")
        )
        count = len(change) - len(held)
        parts = {
            "own": norm.residual(own, covariates(table.iloc[fit])),
            "response": response[:count], "change": change[:count],
            "held_seen": norm.residual(held_own, covariates(table.iloc[held])) + response[count:],
            "held_change": change[count:],
        }  # fmt: skip
        for name, values in parts.items():
            setattr(self, name, torch.from_numpy(values).to(device))
        self.rows, self.held = len(fit), len(held)
        self.people = table["participant_id"].to_numpy()[fit]

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the ids of these fit people."""
        return self.people[rows].tolist()

    def load(self, rows: np.ndarray) -> torch.Tensor:
        """Return the departures (B, V) of these fit people."""
        return self.own[rows]

    def mix(self, batch: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, torch.Tensor]:
        """Return departures (B, V) with changes of other people laid over them, and the changes.

        Half of the people are somebody new first: two others' difference is added, so that the
        network cannot know them by heart.
        """

        def pick(name: str, values: torch.Tensor) -> torch.Tensor:
            return (noise.uniform(name) * len(values)).long()

        new = MIXED * (noise.uniform("new") < 0.5)[:, None]
        one, apart = pick("one", self.own), 1 + pick("other", self.own[1:])
        away = self.own[one] - self.own[(one + apart) % self.rows]
        seen, truth = (batch + new * away) / (1 + 2 * new**2).sqrt(), torch.zeros_like(batch)
        count = noise.uniform("count") * MOST
        for number in range(MOST):
            which, low = (
                pick(f"change {number}", self.change),
                noise.uniform(f"amount {number}") * 2 - 1,
            )
            amount = low.sign() * (REACH[0] + low.abs() * (REACH[1] - REACH[0])) * (number < count)
            seen = seen + amount[:, None] * self.response[which]
            truth = truth + amount[:, None] * self.change[which]
        turned = (noise.uniform("side") < 0.5)[:, None]
        return tuple(torch.where(turned, self.model.mirror(v), v) for v in (seen, truth))

    def loss(self, model: UndoNet, batch: torch.Tensor, noise: Noise) -> dict[str, torch.Tensor]:
        """Return the mean squared error of the changes given back, log volume squared."""
        seen, truth = self.mix(batch, noise)
        return {"error": (model(seen).float() - truth).square().mean()}

    @torch.no_grad()
    def assess(self, model: UndoNet, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return error and size of each validation person's planted change."""
        change, found = self.held_change[rows], model(self.held_seen[rows]).float()
        answer = {"error": (found - change).square().mean(1), "size": change.square().mean(1)}
        return {name: values.cpu().numpy() for name, values in answer.items()}

    def conclude(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        """Score by the share of the planted changes' energy that is found."""
        return {"score": 1 - float(found["error"].sum() / found["size"].sum())}


def train(root: Path, study: Study, run: str = RUN, start: str = "resume") -> None:
    """Train the network as the product `run`; registration and planting are made first."""
    with distributed.joined() as ranks:
        distributed.from_first(ranks, lambda: (shares.register(root, study), plant(root, study)))

    def build(device: torch.device) -> tuple[UndoTask, Training]:
        return UndoTask(root, study, device), study.undo.training

    words = "train undo", asdict(study.undo), ("prepared", "deformation", PLANTED), CODE
    training.train_product(root, run, *words, build, start)


def load_responses(root: Path) -> np.ndarray:
    """Return how log-Jacobians moved with the planted changes, (N, V) as a memory map."""
    record.require(root, PLANTED)
    return np.load(root / PLANTED / "response.npy", mmap_mode="r", allow_pickle=False)


def load(root: Path, study: Study, run: str = RUN) -> UndoNet:
    """Load the finished network: averaged weights of its best checkpoint."""
    record.require(root, run)
    payload = checkpoints.require(root / run)
    plain = payload["identity"]["settings"]
    net = UndoNet(Undo(widths=tuple(plain["widths"])), study.grid)
    net.load_state_dict(payload["ema"])
    return net.eval().requires_grad_(False)


@torch.no_grad()
def find(net: UndoNet, log_jacobian: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """Return the changes (N, V) that a network sees in log-Jacobians (N, V) of people.

    The mean of what it says of them and of their mirror images; covariates are (N, 2).
    """
    answers = np.empty_like(log_jacobian)
    for start in range(0, len(log_jacobian), 8):
        part = slice(start, start + 8)
        pair = (torch.from_numpy(values[part].astype(np.float32)).to(net.sd.device)
                for values in (log_jacobian, covariates))  # fmt: skip
        seen = net.residual(*pair)
        answers[part] = ((net(seen) + net.mirror(net(net.mirror(seen)))) / 2).cpu().numpy()
    return answers

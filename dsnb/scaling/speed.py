"""Quality against CPU time: the lean VAE, MONAI's networks and PCA on the same people.

All share optimizer, batch, loss, voxels and one thread. A short sweep on validation people chooses
each network's learning rate, and its width or start where the entrant's tries say so; the best
try then races with three seeds. The rate is constant after a warm-up and the averaged weights are
judged, so that one run gives the whole curve. Test people judge the races.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import VarAutoEncoder

from dsnb import dataset, distributed, record, space, training, vae
from dsnb.config import Training, Vae, replace

LEDGER = "03_speed"
CODE = (
    "vae/networks", "vae/losses", "vae/task", "vae/metrics", "vae/quality", "training/state",
    "scaling/speed",
)  # fmt: skip
JUDGED = 10  # validation people, and as many test people, that judge each point of a curve
MARKS = (2, 5, 10, 15, 20, 30, 40, 50, 60, 75, 100, 125, 150, 200, 250, 300, 350, 400)  # CPU-s
FOREVER = 10**9  # volumes: the loop's cosine stays at its top
WARMUP = 40  # volumes with rising rate
SEEDS = (1, 2, 3)


class FlatMonaiVae(vae.NormativeVae):
    """MONAI's VarAutoEncoder with its tutorial's widths: a flat code behind strided layers."""

    def build(self, grid_shape: tuple[int, int, int]) -> None:
        """Make the network for volumes of this shape."""
        self.net = VarAutoEncoder(
            3, (1, *grid_shape), 1, self.settings.channels, (16, 32, 64), (2, 2, 2),
            use_sigmoid=False,
        )  # fmt: skip

    def posterior(self, departure: torch.Tensor) -> torch.Tensor:
        """Return the posterior's parameters (N, 2C, 1, 1, 1)."""
        return torch.cat(self.net.encode_forward(departure), dim=1)[..., None, None, None]

    def depart(self, z: torch.Tensor) -> torch.Tensor:
        """Return the network's output (N, 1, X, Y, Z)."""
        return self.net.decode_forward(z.flatten(1), use_sigmoid=False)


@dataclass(frozen=True)
class Entrant:
    """A network with its budgets in CPU-seconds and what its sweep tries."""

    name: str
    settings: Vae
    tries: tuple[dict, ...]  # changes of the settings; `lr` belongs to the training
    sweep_s: float
    budget_s: float


def _entrants() -> tuple[Entrant, ...]:
    """Return who takes part, and what their sweeps try; tutorial widths for the stock one."""
    rates = [{"lr": rate} for rate in (5e-4, 1e-3, 3e-3, 1e-2)]
    shrunk = Vae(architecture="monai", channels=8)
    widths = ((8, 16, 32), (16, 16, 32))
    stock = Vae(architecture="monai", channels=3, widths=(32, 64, 64), departure=False,
                quiet_start=False)  # fmt: skip
    flat = Vae(channels=256, departure=False)
    loud = {"lr": 3e-3, "quiet_start": False}  # MONAI's own start
    return (
        Entrant("lean", Vae(),
                tuple(rate | {"width": width} for width in (32, 48) for rate in rates), 50, 300),
        Entrant("monai_shrunk", shrunk,
                (*(rate | {"widths": width} for width in widths for rate in rates), loud),
                100, 400),
        Entrant("monai_stock", stock, tuple({"lr": rate} for rate in (1e-4, 1e-3, 3e-3)), 100, 100),
        Entrant("monai_flat", flat, tuple({"lr": rate, "departure": departed} for rate, departed in
                ((1e-3, False), (1e-3, True), (3e-3, True))), 50, 100),
    )  # fmt: skip


def _settings(entrant: Entrant, change: dict, seed: int) -> Vae:
    """Return the VAE settings of one try."""
    change = dict(change)
    plan = Training(
        volumes=FOREVER, warmup=WARMUP / FOREVER, lr=change.pop("lr"), seed=seed, batch=2
    )
    return replace(entrant.settings, **change, training=plan)


def _task(root: Path, entrant: Entrant, settings: Vae) -> vae.VaeTask:
    task = vae.VaeTask(root, settings, torch.device("cpu"))
    if entrant.name == "monai_flat":
        task.model = FlatMonaiVae(settings, task.model.mean_volume[0, 0].numpy())
    return task


def race(root: Path, entrant: Entrant, settings: Vae, budget_s: float, brain: np.ndarray) -> dict:
    """Train for `budget_s` CPU-seconds on one thread; the PSNR (dB) of judges along the way."""
    torch.set_num_threads(1)
    task, curve, spent = _task(root, entrant, settings), [], 0.0
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    judges = {
        split: volumes[dataset.select(table, "euploid", split)[:JUDGED]].astype(np.float32)
        for split in ("validation", "test")
    }
    marks = [mark for mark in MARKS if mark <= budget_s]
    with distributed.joined() as ranks:
        state = training.State(task, settings.training, {}, ranks)
        while marks:
            began, seen = time.process_time(), state.counts["seen"]
            rows = distributed.ordered_rows(task.rows, settings.training.seed, seen, 2)
            training.step(state, task, rows, ranks)
            spent += time.process_time() - began
            if spent < marks[0]:
                continue
            while marks and spent >= marks[0]:
                marks.pop(0)
            scores = {
                f"{split}_db": vae.psnr_db(vae.reconstruct(state.ema, some), some, brain).mean()
                for split, some in judges.items()
            }
            curve.append({"cpu_s": spent, "volumes": state.counts["seen"], **scores})
    return {"curve": curve, "cpu_seconds": spent, "skipped": state.counts["skipped"]}


def run_entrant(root: Path, cohort: dict, entrant: Entrant, brain: np.ndarray) -> None:
    """Sweep an entrant, then train its best try for its whole budget with three seeds."""

    def run(change: dict, seed: int, budget_s: float, part: str) -> dict:
        settings = _settings(entrant, change, seed)
        task = {**cohort, "entrant": entrant.name, "part": part,
                "change": change, "seed": seed, "budget_s": budget_s,
                "settings": asdict(settings)}  # fmt: skip
        key = record.row_key(task, CODE)
        known = record.find_row(LEDGER, key)
        if known is None:
            found = race(root, entrant, settings, budget_s, brain)
            record.add_row(LEDGER, key, found)
            known = {**key, **found}
            record.say(f"{entrant.name} {part} {change} seed {seed}: {found['curve'][-1]}")
        return known

    tried = [run(change, SEEDS[0], entrant.sweep_s, "sweep") for change in entrant.tries]
    best = max(range(len(tried)), key=lambda i: tried[i]["curve"][-1]["validation_db"])
    for seed in SEEDS:
        run(entrant.tries[best], seed, entrant.budget_s, "race")


def run_linear(root: Path, cohort: dict, brain: np.ndarray) -> None:
    """Add the row of the mean volume and of PCA with all components."""
    key = record.row_key({**cohort, "entrant": "pca", "part": "race", "seed": 0}, CODE)
    if record.find_row(LEDGER, key):
        return
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    fit, test = (volumes[dataset.select(table, "euploid", name)] for name in ("fit", "test"))
    began = time.process_time()
    drawn = vae.linear_rivals(fit, test[:JUDGED], brain)
    spent = time.process_time() - began
    scores = {
        f"{name}_test_db": vae.psnr_db(some, test[:JUDGED], brain).mean()
        for name, some in drawn.items()
    }
    record.add_row(LEDGER, key, {"cpu_seconds": spent, **scores})


def bench_speed(root: Path, grid: space.Grid) -> None:
    """Fill the ledger with every entrant's sweep and race; what is there already stays."""
    cohort, brain = dataset.identify(root), space.load_template(grid).brain
    run_linear(root, cohort, brain)
    for entrant in _entrants():
        run_entrant(root, cohort, entrant, brain)

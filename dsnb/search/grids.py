"""One setting at a time over a few values: the people, budget and measures of the ablations.

The base of every grid is `lean` of the same seed, run here again: a phantom drawn by another kind
of processor differs in its last digits. The best settings that the search found (`dsnb search
trials`) are a grid, too: judged on people whom no search saw.
"""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose, RandAdjustContrast, RandBiasField
from torch import nn
from torch.nn import functional

from dsnb import checkpoints, dataset, record, training, vae
from dsnb.config import Study, Vae, replace
from dsnb.distributed import Noise
from dsnb.search import ablations
from dsnb.search.folds import FOLDS, Trial, count_cost

LEDGER, TRIALS = "09_grids", "09_trials"
CODE = (*ablations.CODE, "search/grids")
# Grid -> variant -> what differs from `lean`: settings, `people` of the fit people, `way` to train,
# and how many times the volumes (`times`). The learning rate is the same for every batch.
GRIDS: dict[str, dict[str, dict]] = {
    "base": {"lean": {}},
    "KL weight": {f"KL {kl:g}": {"kl": kl} for kl in (1e-4, 1e-2)},
    "cohort": {f"{people} people": {"people": people} for people in (20, 60)},
    "augmentation": {"mirrored": {"way": "mirror"}, "intensities": {"way": "intensity"}},
    "batch": {f"batch of {size}": {"batch": size} for size in (1, 4, 8)},
    "resolution": {
        "half, lossless": {"way": "lossless"},  # what halving alone costs; nothing is trained
        "half": {"way": "half"},
        "half, 8 times as long": {"way": "half", "times": 8},  # about the CPU-seconds of `lean`
    },
}
FOUND = "search", "found"  # the grid and variant of the search's best settings


def shrink(volumes: torch.Tensor) -> torch.Tensor:
    """Average volumes (N, 1, X, Y, Z) over blocks of 2x2x2 voxels."""
    return functional.avg_pool3d(volumes, 2)


def enlarge(volumes: torch.Tensor) -> torch.Tensor:
    """Return volumes (N, 1, X, Y, Z) of half the resolution at the full one, trilinear."""
    return functional.interpolate(volumes, scale_factor=2, mode="trilinear")


class Halved(nn.Module):
    """A VAE of half the resolution, judged at the full one."""

    def __init__(self, inner: vae.NormativeVae):
        super().__init__()
        self.inner, self.mean_volume = inner, inner.mean_volume

    def encode(self, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return posterior mean and log-variance of volumes (N, 1, X, Y, Z), as the VAE does."""
        return self.inner.encode(shrink(volumes))

    def reconstruct(self, volumes: torch.Tensor) -> torch.Tensor:
        """Return volumes (N, 1, X, Y, Z) as the VAE draws them, enlarged."""
        return enlarge(self.inner.reconstruct(shrink(volumes)))


class HalfTask(vae.VaeTask):
    """Train on volumes of half the resolution."""

    def __init__(self, root: Path, settings: Vae, *others):
        super().__init__(root, settings, *others)
        parts = (torch.from_numpy(np.asarray(one, np.float32))[None] for one in self.volumes)
        self.volumes = np.stack([shrink(part)[0].numpy() for part in parts])
        mean = dataset.mean_volume(self.volumes, self.fit)
        self.model, self.brain = vae.build(settings, mean), mean > vae.task.TISSUE


class MirrorTask(vae.VaeTask):
    """Show half of the volumes with left and right exchanged, input and target alike."""

    def loss(self, model: vae.NormativeVae, batch: torch.Tensor, noise: Noise) -> dict:
        """Return the terms of volumes (B, 1, X, Y, Z), each mirrored by a keyed coin."""
        turned = (noise.uniform("mirror") < 0.5)[:, None, None, None, None]
        return super().loss(model, torch.where(turned, batch.flip(2), batch), noise)


class IntensityTask(vae.VaeTask):
    """Show volumes with a faint bias field and another contrast, input and target alike."""

    change = Compose([RandBiasField(prob=1, degree=2, coeff_range=(-0.05, 0.05)),
                      RandAdjustContrast(prob=1, gamma=(0.9, 1.1))])  # fmt: skip

    def loss(self, model: vae.NormativeVae, batch: torch.Tensor, noise: Noise) -> dict:
        """Return the terms of volumes (B, 1, X, Y, Z), each changed by keyed draws."""
        keys = (noise.uniform("intensity") * 2**31).long().tolist()
        seen = [torch.as_tensor(self.change.set_random_state(key)(volume))
                for key, volume in zip(keys, batch)]  # fmt: skip
        return super().loss(model, torch.stack(seen).as_subclass(torch.Tensor), noise)


WAYS = {"": vae.VaeTask, "mirror": MirrorTask, "intensity": IntensityTask, "half": HalfTask}


def changed(study: Study, change: dict, seed: int, data: str) -> Vae:
    """Return the settings of `lean` with a variant's changes."""
    base = ablations.variant(study, "lean", seed, data)
    lengths = ("volumes", "checkpoint_every", "validate_every")
    plan = {name: change.get("times", 1) * getattr(base.training, name) for name in lengths}
    plan |= {name: value for name, value in change.items() if name in vars(base.training)}
    own = {name: value for name, value in change.items() if name in vars(base)}
    return replace(base, **own, training=replace(base.training, **plan))


def learn(trial: Trial, change: dict, settings: Vae) -> dict:
    """Train a variant on a split's people; its measures at full resolution, and its cost.

    Fewer people are drawn anew by each seed.
    """
    draw = np.random.default_rng(settings.training.seed).permutation(len(trial.fit))
    fit = trial.fit[np.sort(draw[: change.get("people", len(draw))])]
    began, way = time.process_time(), change.get("way", "")
    people = fit, trial.validation
    task = WAYS[way](trial.root, settings, torch.device("cpu"), people, trial.template)
    with tempfile.TemporaryDirectory(dir=trial.folder) as name:
        ended = training.train(Path(name), task, settings.training, {"settings": asdict(settings)})
        spent = {"cpu_seconds": time.process_time() - began, "skipped": ended["skipped"]}
        model = vae.restore(checkpoints.require(Path(name)))
    judged = Halved(model) if way == "half" else model
    return trial.measure(judged) | spent | count_cost(task)


def halve(trial: Trial) -> dict:
    """Return the measures of volumes that are halved and enlarged, and nothing else."""

    def redraw(volumes: np.ndarray) -> np.ndarray:
        return enlarge(shrink(torch.from_numpy(volumes)[:, None]))[:, 0].numpy()

    return trial._measure(redraw) | {"cpu_seconds": 0.0}


def known_grids(trial: Trial) -> dict[str, dict[str, dict]]:
    """Return the grids; with the best settings, where the ledger has a search of this cohort."""
    rows = record.ledger_rows(TRIALS, **trial.cohort, state="complete")
    tried = [row for row in rows if row["trial"]]  # 0: the defaults
    if not tried:
        return GRIDS
    best, (grid, variant) = max(tried, key=lambda row: row["psnr_db"]), FOUND
    return GRIDS | {grid: {variant: best["values"]}}


def run(trial: Trial, grid: str, variant: str, change: dict, seed: int) -> None:
    """Measure one variant and seed on one split, unless the ledger has it."""
    settings = changed(trial.study, change, seed, trial.data)
    task = {**trial.cohort, "fold": trial.fold, "grid": grid, "variant": variant,
            "change": change, "seed": seed, "settings": asdict(settings)}  # fmt: skip
    key = record.row_key(task, CODE)
    if record.find_row(LEDGER, key) is None:
        lossless = change.get("way") == "lossless"
        found = halve(trial) if lossless else learn(trial, change, settings)
        record.add_row(LEDGER, key, found)
        said = f"{grid}: {variant}, fold {trial.fold} seed {seed}: {found['psnr_db']:.2f} dB"
        record.say(f"{trial.data} {said}, effect kept {found.get('effect_kept', 0):.3f}")


def fill(root: Path, study: Study) -> None:
    """Fill the ledger with every grid, variant, fold and seed of a data root."""
    torch.set_num_threads(1)  # the same arithmetic on any machine
    phantom = dataset.identify(root)["data"] == "phantom"
    trials = [Trial(root, study, fold) for fold in range(1 if phantom else FOLDS)]
    for grid, variants in known_grids(trials[0]).items():
        for variant, change in variants.items():
            once = change.get("way") == "lossless"  # without a seed
            for seed in (0,) if once else ablations.SEEDS:
                for trial in trials:
                    run(trial, grid, variant, change, seed)

"""What makes a drawn brain sharp: other VAEs, and ways to finish what one draws; in the ledger.

VAEs learn from the people of the ablations and for as long; each is judged as it draws, and with
its fine detail raised. Of the plain one, noise and a refinement network are tried in its place.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np
import torch
from monai.networks.nets import PatchDiscriminator, SegResNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import nn

from dsnb import checkpoints, dataset, record, rivals, training, vae
from dsnb.config import Study, replace
from dsnb.diffusion import remainder
from dsnb.diffusion.remainder import slopes
from dsnb.distributed import keyed_noise
from dsnb.search.ablations import variant
from dsnb.search.folds import JUDGED, Trial
from dsnb.vae import losses

LEDGER = "07_sharpness"
CODE = ("vae/networks", "vae/losses", "vae/features", "vae/task", "vae/metrics", "training/state",
        "search/folds", "search/sharpness", "rivals", "space", "diffusion/remainder")  # fmt: skip
NETWORKS = ("lean", "long", "perceptual", "adversarial", "sharp", "morph")
SEED, SHARES = 1, (0.1, 0.5, 0.9)  # of voxels by their slope: flat tissue to edges
STEEPNESS = 16  # steps of the slope, each with noise of its own variance
REFINED = 600  # volumes seen by the refinement network, as by a VAE
CRITIC = 0.01  # weight of its adversarial term, as in the VAE's


class Refiner(nn.Module):
    """Drawn volume (N, 1, X, Y, Z) -> sharper volume: MONAI's SegResNet on voxels folded by two."""

    def __init__(self):
        super().__init__()
        self.net = SegResNet(3, 32, 8, 8, blocks_down=(1, 2), blocks_up=(1,))
        self.critic = PatchDiscriminator(3, 8, 1, num_layers_d=2, norm="INSTANCE")
        for weights in self.net.conv_final[-1].parameters():
            nn.init.zeros_(weights)  # it begins with the drawn volume

    def forward(self, drawn: torch.Tensor) -> torch.Tensor:
        """Return the drawn volume and what is added to it."""
        return drawn + pixelshuffle(self.net(pixelunshuffle(drawn, 3, 2)), 3, 2)


class RefinerTask(vae.VaeTask):
    """Learn from pairs of volumes and what a VAE, which never saw them, draws of them."""

    def __init__(self, trial: Trial, model: vae.NormativeVae, people: np.ndarray):
        sides = people, trial.validation
        super().__init__(trial.root, trial.study.vae, torch.device("cpu"), sides, trial.template)
        self.drawing, self.model = model, Refiner()

    def loss(self, model: Refiner, batch: torch.Tensor, noise) -> dict[str, torch.Tensor]:
        """Return the VAE's voxel terms and the adversarial ones."""
        support = self.drawing.support
        with torch.no_grad():
            before = self.drawing.reconstruct(batch)
        drawn, given = model(before) * support, batch * support
        terms = losses.voxel_terms(drawn, given, support, self.settings.mse)
        return terms | losses.adversarial_terms(model.critic, drawn, given, CRITIC)

    @torch.no_grad()
    def assess(self, model: Refiner, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the PSNR (dB) of these validation people."""
        given = np.asarray(self.volumes[self.validation[rows]], np.float32)
        drawn = refine(model, vae.reconstruct(self.drawing, given))
        return {"score": vae.psnr_db(drawn, given, self.brain)}

    def conclude(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        """Score by PSNR; it is asked once, at the end."""
        return {"score": found["score"].mean()}


@torch.no_grad()
def refine(model: Refiner, drawn: np.ndarray) -> np.ndarray:
    """Return refined volumes (N, X, Y, Z) of drawn ones."""
    volumes = torch.from_numpy(drawn)[:, None]
    made = torch.cat([model(volumes[part])[:, 0] for part in vae.batches(len(drawn))])
    return rivals.without_halo(made.clamp(0, 1.5).numpy())


def noisy(given: np.ndarray, drawn: np.ndarray, brain: np.ndarray) -> Callable:
    """Return a function that adds noise of the power that `drawn` lacks of `given`, (N, X, Y, Z).

    Its variance follows the slope of what was drawn; its spectrum is one for all places.
    """
    left = given - drawn
    steep = np.stack([slopes(one) for one in drawn])
    x, y = steep[:, brain].ravel(), (left[:, brain] ** 2).ravel()
    order = np.array_split(np.argsort(x), STEEPNESS)
    curve = np.array([[x[part].mean() for part in order], [y[part].mean() for part in order]])
    spread = np.sqrt(np.interp(steep, *curve))
    shaped = torch.from_numpy(remainder.amplitude(np.where(brain, left / spread, 0)))

    def add(some: np.ndarray) -> np.ndarray:
        noise = keyed_noise(some.shape[1:], SEED, np.arange(len(some)), 0, "cpu", "texture")
        steep = np.stack([slopes(one) for one in some])
        loud = np.sqrt(np.interp(steep, *curve)) * remainder.colour(noise, shaped).numpy()
        return rivals.without_halo(np.clip(np.where(some < rivals.HALO, 0, some + loud), 0, 1.5))

    return add


def judge(trial: Trial, model: vae.NormativeVae, finish: Callable) -> dict[str, float]:
    """Return how sharp and how true unseen people are redrawn, and what of DS stays.

    `flat` and `steep` are slopes of what is drawn over those of scans, at the tenth and ninetieth
    hundredth of voxels; `spectrum_db` the mean gap of the spectrum up to the Nyquist frequency.
    """
    given, brain = trial.volumes[trial.test[:JUDGED]].astype(np.float32), trial.brain
    drawn = finish(vae.reconstruct(model, given))
    powers = [10 * np.log10(vae.radial_spectrum(some, brain)[1]) for some in (given, drawn)]
    steep = [np.quantile([slopes(one)[brain] for one in some], SHARES)
             for some in (given, drawn)]  # fmt: skip
    flat, middle, edges = steep[1] / steep[0]
    found = {"spectrum_db": np.abs(powers[1] - powers[0]).mean(), "flat": flat, "middle": middle,
             "steep": edges, "psnr_db": vae.psnr_db(drawn, given, brain).mean()}  # fmt: skip
    if len(trial.pairs):
        both = trial.volumes[trial.pairs.ravel()].astype(np.float32)
        drawn = rivals.without_halo(finish(vae.reconstruct(model, both)))
        after = vae.region_logs(drawn, trial.template, trial.study)
        found["effect_kept"] = vae.effect_kept(
            trial.before, after, np.tile([False, True], len(trial.pairs))
        )
    return {name: float(value) for name, value in found.items()}


def _train(trial: Trial, name: str) -> vae.NormativeVae:
    """Train a VAE of the ablations in a folder that does not stay."""
    settings = variant(trial.study, name, SEED, trial.data)
    net = trial.features(settings)[0] if settings.perceptual else None
    sides = trial.fit, trial.validation
    task = vae.VaeTask(trial.root, settings, torch.device("cpu"), sides, trial.template, net)
    with tempfile.TemporaryDirectory(dir=trial.folder) as folder:
        training.train(Path(folder), task, settings.training, {"settings": asdict(settings)})
        return vae.restore(checkpoints.require(Path(folder)))


def finishes(trial: Trial, name: str, model: vae.NormativeVae) -> dict[str, Callable]:
    """Return {way: function of drawn volumes}; the plain VAE has all, the others two."""
    given = trial.volumes[trial.validation].astype(np.float32)
    drawn = vae.reconstruct(model, given)
    gain = remainder.fit_gain(given, drawn, trial.brain)
    ways = {"as drawn": lambda some: some,
            "raised": lambda some: remainder.sharpen(some, *gain.values())}  # fmt: skip
    if name != NETWORKS[0]:
        return ways
    unseen = np.concatenate([dataset.select(trial.table, "euploid", split)
                             for split in ("scale", "calibration")])  # fmt: skip
    people = unseen if trial.data == "phantom" else trial.fit
    task, plan = RefinerTask(trial, model, people), trial.study.vae.training
    plan = replace(plan, volumes=REFINED, validate_every=REFINED, checkpoint_every=REFINED)
    with tempfile.TemporaryDirectory(dir=trial.folder) as folder:
        training.train(Path(folder), task, plan, {})
        task.model.load_state_dict(training.load_weights(Path(folder)))
    return ways | {"noise": noisy(given, drawn, trial.brain),
                   "refinement network": partial(refine, task.model.eval())}  # fmt: skip


def compare_sharpness(root: Path, study: Study) -> None:
    """Fill the ledger with VAEs and ways to finish that are not in it yet."""
    torch.set_num_threads(1)  # the same arithmetic on any machine
    trial = Trial(root, study, 0)
    for name in NETWORKS:
        about = {**trial.cohort, "part": "sharpness", "variant": name, "seed": SEED}
        settings = asdict(variant(study, name, SEED, trial.data))
        key = record.row_key(about | {"settings": settings}, CODE)
        if record.find_row(LEDGER, key):
            continue
        began, model = process_time(), _train(trial, name)
        spent = process_time() - began
        rows = [{"finish": way} | judge(trial, model, finish)
                for way, finish in finishes(trial, name, model).items()]  # fmt: skip
        record.add_row(LEDGER, key, {"ways": rows, "cpu_seconds": spent})
        gaps = (f"{row['finish']} {row['spectrum_db']:.2f} dB" for row in rows)
        record.say(f"{name}: {', '.join(gaps)}")

"""What each part of the VAE is worth: the same people, budget and measures, one change at a time.

On the phantom the study's split is used; on real scans, five folds by person, so that everybody
is redrawn by a network that never saw them. One row a run in the ledger, with three seeds.
"""

from dataclasses import asdict
from pathlib import Path

import torch

from dsnb import dataset, record
from dsnb.config import Study, Vae, replace
from dsnb.search.folds import FOLDS, Trial

LEDGER = "03_ablations"
CODE = (
    "vae/networks", "vae/losses", "vae/features", "vae/task", "vae/metrics", "vae/quality",
    "training/state", "search/folds", "rivals", "space",
)  # fmt: skip
VOLUMES = 600  # seen by each run, half of it on real scans: their folds are five runs
# Name -> changes of the default settings. AutoencoderKL costs twelve times as much a volume, so it
# sees fewer, and its row says how many CPU-seconds that took.
VARIANTS = {
    "lean": {},
    "long": {"volumes": 2000},
    "no_departure": {"departure": False},
    "loud_start": {"quiet_start": False},
    "four_channels": {"channels": 4},
    "eighth": {"latent": "eighth", "channels": 64},
    "pooled": {"latent": "pooled", "channels": 64},
    "flat": {"latent": "flat", "channels": 256},
    "morph": {"architecture": "morph"},
    "perceptual": {"perceptual": 0.1},
    "adversarial": {"adversarial": 0.01},
    "sharp": {"perceptual": 0.1, "adversarial": 0.01},
    "monai": {"architecture": "monai", "share": 0.3},  # of the volumes
}
# What five folds of real scans repeat: networks, latents and the sharp mode.
REAL = ("lean", "long", "eighth", "pooled", "flat", "morph", "sharp", "monai")
LINEAR = ("pca", "mean")  # beside them, without a seed
SEEDS = (1, 2, 3)


def variant(study: Study, name: str, seed: int, data: str = "phantom") -> Vae:
    """Return the settings of a variant, trained for the ablations' budget on a cohort."""
    changes = dict(VARIANTS[name])
    budget = (VOLUMES if data == "phantom" else VOLUMES // 2) * changes.pop("share", 1)
    volumes = changes.pop("volumes", round(budget))
    plan = replace(
        study.vae.training, volumes=volumes, seed=seed, checkpoint_every=volumes // 2,
        validate_every=volumes // 4,
    )  # fmt: skip
    return replace(study.vae, **changes, training=plan)


def run(trial: Trial, name: str, seed: int) -> None:
    """Measure one variant, or `pca` or `mean`, on one split, unless the ledger has it."""
    settings = None if name in LINEAR else variant(trial.study, name, seed, trial.data)
    task = {**trial.cohort, "fold": trial.fold, "variant": name, "seed": seed}
    key = record.row_key(task | ({"settings": asdict(settings)} if settings else {}), CODE)
    if record.find_row(LEDGER, key) is None:
        found = trial.train(settings) if settings else trial.measure_linear(name)
        record.add_row(LEDGER, key, found)
        record.say(f"{trial.data} fold {trial.fold} {name} seed {seed}: {found['psnr_db']:.2f} dB")


def ablate(root: Path, study: Study, names: tuple[str, ...] = ()) -> None:
    """Fill the ledger with every variant, fold and seed of a data root; what is there stays."""
    torch.set_num_threads(1)  # the same arithmetic on any machine
    phantom = dataset.identify(root)["data"] == "phantom"
    names = names or (tuple(VARIANTS) if phantom else REAL)
    trials = [Trial(root, study, fold) for fold in range(1 if phantom else FOLDS)]
    for seed in (0, *SEEDS):  # 0: what has no seed
        for trial in trials:
            for name in names if seed else LINEAR:
                run(trial, name, seed)

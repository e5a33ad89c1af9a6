"""Other generators on the same people: processes, networks, bases and lengths; in the ledger.

Each is trained as its settings say, and judged by validation people, by unseen people, and by how
well its weights tell who trained it. None chooses anything on unseen people.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from dsnb import dataset, diffusion, fidelity, latents, record, vae
from dsnb.config import Study, replace
from dsnb.fidelity import realism
from dsnb.privacy import attacks
from dsnb.space import GROUPS

LEDGER = "07_synthesis"
CODE = ("space", "latents", "vae/networks", "vae/task", "diffusion", "further", "fidelity",
        "privacy/attacks", "training/state", "search/synthesis")  # fmt: skip
LONG = {"volumes": 40_000, "ema": 0.999, "checkpoint_every": 20_000, "validate_every": 5_000}
UNET = {"volumes": 1_920, "batch": 16, "lr": 1e-3, "ema": 0.95, "checkpoint_every": 960,
        "validate_every": 480}  # fmt: skip
VARIANTS = {
    "no network": {"volumes": 128, "lr": 1e-12},
    "velocity (the study's)": {},
    "noise": {"prediction": "epsilon"},
    "data": {"prediction": "sample"},
    "long": LONG,
    "components of its people": {"basis": "members", "components": 160},
    "the same, long": {"basis": "members", "components": 160, **LONG},
    "U-Net on the latent grid": {"basis": "grid", "denoiser": "unet", "width": 64, "blocks": 1,
                                 **UNET},
}  # fmt: skip


def vary(settings, changes: dict):
    """Return the settings of a generator with changes of its own or of its training."""
    own = {k: v for k, v in changes.items() if k in settings.__dataclass_fields__}
    rest = {k: v for k, v in changes.items() if k not in own}
    return replace(settings, **own, training=replace(settings.training, **rest))


def judge(root: Path, study: Study) -> dict:
    """Train one generator aside and return its numbers."""
    table, z, _, statistics = latents.load(root)
    fit, held = diffusion.generator_rows(table)
    people = None if study.diffusion.basis == "public" else (fit, held)
    task = diffusion.study_task(root, study, torch.device("cpu"), people)
    everyone = np.arange(task.held)
    before = task.assess(task.model, everyone)["error"].mean()
    flow = attacks.train_aside(task, study.diffusion.training)
    after = task.assess(flow, everyone)["error"].mean()
    unseen = np.concatenate([fidelity.held_out(table, group) for group in GROUPS])
    seen = [attacks.losses(flow, z[rows], table.iloc[rows], 1)["loss"] for rows in (fit, unseen)]
    ds = [(table["group"].iloc[rows] == "DS").to_numpy() for rows in (fit, unseen)]
    attack = attacks.attack_row("loss", "diffusion model", *seen, *ds, either=True)
    return {"error_without": before, "error": after, "attack": attack["auc"],
            "attack_upper": attack["upper"], **compare(root, study, flow)}  # fmt: skip


def compare(root: Path, study: Study, flow) -> dict:
    """Return KID and density of drawn brains beside unseen people, a mean over groups."""
    table, space = dataset.load_table(root), fidelity.public_features(root, study)
    volumes, model, found = dataset.load_volumes(root), vae.load(root), []
    rows = diffusion.generator_rows(table)[0]
    people = diffusion.bootstrap_people(table.iloc[rows], study.diffusion.synthetic,
                                        flow.age_range.tolist(), 2)  # fmt: skip
    z = diffusion.draw(flow, diffusion.condition(people), 2, study.diffusion.steps)
    drawn = space.transform(realism.pooled(vae.decode(model, z.numpy()), study.grid))
    for group in GROUPS:
        real = np.asarray(volumes[fidelity.held_out(table, group)], np.float32)
        real = space.transform(realism.pooled(vae.reconstruct(model, real), study.grid))
        made = drawn[(people["group"] == group).to_numpy()]
        near = realism.density_coverage(real, made, study.release.neighbours)
        found.append([realism.kid(real, made)[0], near["density"], near["coverage"]])
    return dict(zip(("kid", "density", "coverage"), np.mean(found, axis=0).tolist()))


def compare_generators(root: Path, study: Study) -> None:
    """Fill the ledger with generators that are not in it yet."""
    torch.set_num_threads(1)  # the same arithmetic on any machine
    task, diffused = dataset.identify(root), None
    for name, changes in VARIANTS.items():
        own = vary(study.diffusion, changes)
        about = {**task, "part": "generators", "variant": name, "seed": own.training.seed}
        settings = {"diffusion": asdict(own), "further": asdict(study.further),
                    "vae": asdict(study.vae)}  # fmt: skip
        key = record.row_key(about | {"settings": settings}, CODE)
        if record.find_row(LEDGER, key):
            continue
        if diffused is None:
            diffusion.train(root, study)
            diffused = True
        found = judge(root, replace(study, diffusion=own))
        record.add_row(LEDGER, key, {"numbers": found})
        record.say(f"{name}: error {found['error']:.4f}, attack {found['attack']:.2f}")

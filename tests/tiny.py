"""A data root of a few tiny brains with known variation, for tests beyond `prepare`."""

from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import bids, latents, record, vae
from dsnb.config import SMOKE, Scaling, Search, Study, Training, Vae, replace
from dsnb.space import Grid

SHAPE = (16, 16, 16)
PEOPLE = {
    ("euploid", "fit"): 24, ("euploid", "validation"): 4, ("euploid", "scale"): 8,
    ("euploid", "calibration"): 8, ("euploid", "test"): 8, ("DS", "generator-fit"): 8,
    ("DS", "validation"): 2, ("DS", "test"): 8,
}  # fmt: skip
NOISE = 0.01
STUDY: Study = replace(
    SMOKE,
    grid=Grid(12.0, SHAPE),
    vae=Vae(
        width=8, blocks=1, channels=2,
        training=Training(volumes=480, batch=4, lr=0.01, checkpoint_every=240, validate_every=120),
    ),
    search=Search(trials=2, volumes=16),
    scaling=Scaling(rounds=2, steps=2, parity_steps=4),
)  # fmt: skip


def brain() -> np.ndarray:
    """Return the tiny brain's mask, a ball, (X, Y, Z) bool."""
    return sum((axis - 7.5) ** 2 for axis in np.indices(SHAPE)) < 6**2


def people() -> pd.DataFrame:
    """Return everybody's table; every DS person has a twin of the same family."""
    rows = []
    for (group, split), count in PEOPLE.items():
        for _ in range(count):
            name = f"sub-{len(rows):03d}"
            rows.append({"participant_id": name, "family": name, "group": group, "split": split})
    table = pd.DataFrame(rows).assign(kind="recorded", origin="n/a", site="clinic", sex="F")
    twins = table[table["group"] == "DS"].assign(group="euploid", split="truth", kind="twin")
    twins["origin"], twins["participant_id"] = (
        twins["participant_id"],
        twins["participant_id"] + "t",
    )
    return pd.concat([table, twins], ignore_index=True).assign(age=40.0)


def volumes(table: pd.DataFrame) -> np.ndarray:
    """Draw (N, X, Y, Z): a ball, four smooth modes of variation, a dent for DS, and noise."""
    rng, (x, y, z) = np.random.default_rng(0), np.indices(SHAPE) / 16 * np.pi
    modes = np.stack([np.sin(x + 1), np.cos(2 * y), np.sin(z) * np.cos(x), np.cos(y + z)])
    scores = rng.normal(0, 0.06, (len(table), 4))
    dent = 0.15 * (table["group"] == "DS").to_numpy()[:, None, None, None] * (x > 2)
    noise = NOISE * rng.standard_normal((len(table), *SHAPE))
    drawn = 0.6 + np.tensordot(scores, modes, 1) - dent + noise
    return (drawn * brain()).astype(np.float16)


def make_root(root: Path) -> Path:
    """Write the finished product `prepared` under a root marked as the phantom's."""
    record.write_json(root / "study.json", {"preset": "smoke", "data": "phantom"})
    product, table = record.begin(root, "prepared", "prepare", {}, (), ("space",)), people()
    np.save(product.folder / "volumes.npy", volumes(table))
    bids.write_table(product.folder / "participants.tsv", table)
    product.finish()
    return root


def make_latents(root: Path) -> Path:
    """Write `prepared`, a VAE of a short training and everybody's latents under a root."""
    made, plan = make_root(root), replace(STUDY.vae.training, volumes=240, checkpoint_every=240,
                                          validate_every=240)  # fmt: skip
    study = replace(STUDY, vae=replace(STUDY.vae, training=plan))
    vae.train(made, study)
    latents.encode(made, study)
    return made

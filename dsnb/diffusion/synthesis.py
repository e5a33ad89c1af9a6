"""The synthetic cohort: people bootstrapped from the real ones, drawn, decoded and written."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dsnb import bids, latents, record, space, vae
from dsnb.config import Study
from dsnb.diffusion.flow import Flow, condition, draw, generator_rows, load

JITTER_YEARS = 2.0  # SD of the age added to a bootstrapped person's


def bootstrap_people(table: pd.DataFrame, count: int, ages: list[float], seed: int) -> pd.DataFrame:
    """Draw `count` people a group whose stage, age (years) and sex are those of real ones.

    Each row of `table` is drawn with replacement within its group; ages get a jitter and stay in
    the range that the model was trained on. A group without people is left out.
    """
    rng, groups = np.random.default_rng(seed), []
    for group in space.GROUPS:
        real = table[table["group"] == group]
        if len(real):
            drawn = real.iloc[rng.integers(len(real), size=count)]
            years = drawn["age"].to_numpy(float) + rng.normal(0, JITTER_YEARS, count)
            groups.append(drawn.assign(age=np.clip(years, *ages).round(1)))
    people = pd.concat(groups, ignore_index=True)[["group", "stage", "age", "sex"]]
    people.insert(0, "participant_id", [f"sub-syn{i + 1:04d}" for i in range(len(people))])
    return people


def sample(root: Path, study: Study) -> None:
    """Draw the synthetic cohort as product `synthetic`: BIDS derivatives, a table and volumes.npy.

    volumes.npy is float16 (N, X, Y, Z), row i the person of row i; a killed run goes on with the
    batches that lack a scan.
    """
    settings = {name: getattr(study.diffusion, name) for name in ("steps", "guidance", "synthetic")}
    settings["seed"] = study.diffusion.training.seed
    parents = ("runs/diffusion", "runs/vae", "latents")
    product = record.begin(root, "synthetic", "sample", settings, parents, ("diffusion", "vae"))
    if product.done:
        return
    flow, decoder = load(root)[0], vae.load(root)
    table = latents.load(root)[0]
    people = bootstrap_people(table.iloc[generator_rows(table)[0]], study.diffusion.synthetic,
                              flow.age_range.tolist(), settings["seed"])  # fmt: skip
    path, shape = product.folder / "volumes.npy", (len(people), *study.grid.shape)
    mode = "r+" if path.is_file() else "w+"
    volumes = np.lib.format.open_memmap(path, mode, np.float16, shape)
    for part in vae.batches(len(people)):
        names = people["participant_id"][part]
        if not all(_scan(product.folder, name).is_file() for name in names):
            volumes[part] = decode(flow, decoder, people, part, settings)
            volumes.flush()
            for row in range(len(people))[part]:
                _write_scan(product.folder, people.iloc[row], volumes[row], flow.affine.numpy())
        record.progress("sample", min(part.stop, len(people)), len(people))
    bids.write_table(product.folder / "participants.tsv", people)
    bids.describe(product.folder, "dsnb synthetic cohort, not audited", "runs/diffusion")
    product.finish()


def decode(
    flow: Flow, decoder: vae.NormativeVae, people: pd.DataFrame, part: slice, settings: dict
) -> np.ndarray:
    """Return the volumes (B, X, Y, Z), intensity 0 to 1.5, of one batch of requested people."""
    how = {name: settings[name] for name in ("seed", "steps", "guidance")}
    z = draw(flow, condition(people.iloc[part]), samples=np.arange(len(people))[part], **how)
    with torch.no_grad():
        return decoder.decode(z)[:, 0].clamp(0, 1.5).cpu().numpy()


def _scan(folder: Path, name: str) -> Path:
    return folder / name / "anat" / f"{name}_space-{space.SPACE}_desc-synthetic_T1w.nii.gz"


def _write_scan(folder: Path, person: pd.Series, volume: np.ndarray, affine: np.ndarray) -> None:
    """Write one synthetic scan with what was asked for in its sidecar."""
    asked = {name: person[name] for name in ("group", "stage", "age", "sex")}
    sidecar = {"SpatialReference": space.SPACE, "SkullStripped": True, "Synthetic": True,
               "Requested": asked}  # fmt: skip
    bids.save_volume(_scan(folder, person["participant_id"]), volume, affine, sidecar, step=1e-4)

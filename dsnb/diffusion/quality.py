"""How good is the sampler: sharpness of its volumes, strength of its effects, time of a volume."""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dsnb import dataset, latents, space, training, vae
from dsnb.config import Study
from dsnb.diffusion.flow import FEWEST_DS, condition, draw, generator_rows, load
from dsnb.diffusion.synthesis import decode


def _spectra(root: Path, study: Study) -> list[dict]:
    """Return the spectrum (dB) of real held-out, reconstructed and synthetic volumes.

    Groups weigh the same in all three, as they do in the synthetic cohort.
    """
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    made, drawn = dataset.load_table(root, "synthetic"), dataset.load_volumes(root, "synthetic")
    brain, decoder = space.load_template(study.grid).brain, vae.load(root)
    sums: dict[str, list] = {"real": [], "reconstructed": [], "synthetic": []}
    for group in made["group"].unique():
        real = volumes[dataset.select(table, group, "test")]
        synthetic = drawn[np.flatnonzero(made["group"] == group)]
        sources = (real, vae.reconstruct(decoder, real), synthetic)
        for name, source in zip(sums, sources):
            frequencies, power = vae.radial_spectrum(source, brain)
            sums[name].append(power)
    levels = {name: 10 * np.log10(np.mean(powers, axis=0)) for name, powers in sums.items()}
    table = pd.DataFrame({"cycles_per_mm": frequencies / study.grid.voxel_mm, **levels})
    return table.to_dict("records")


def guidance_table(root: Path, study: Study) -> list[dict]:
    """Compare the DS-euploid difference of drawn components with that of held-out people.

    Slope = drawn . held / (learnt . held), with components in their own variance: held people
    (validation and test) are independent of the generator's, so their noise does not bias it.
    """
    table, z, _, _ = latents.load(root)
    flow = load(root)[0]
    held = [dataset.select(table, group, "validation", "test") for group in space.GROUPS]
    trained = generator_rows(table)[0]
    ds = (table["group"].iloc[trained] == "DS").to_numpy()
    if min(*map(len, held), ds.sum()) < FEWEST_DS:
        return []

    def difference(sides: list[torch.Tensor]) -> np.ndarray:
        euploid, patients = (flow.project(side).mean(0) * flow.spread for side in sides)
        return (patients - euploid).numpy()

    real, learnt = (
        difference([torch.from_numpy(z[rows]) for rows in sides])
        for sides in (held, (trained[~ds], trained[ds]))
    )
    asked = [condition(table.iloc[rows]).repeat(4, 1) for rows in held]
    found = []
    for guidance in (1.0, 1.25, 1.5, 2.0):
        made = difference([draw(flow, one, seed, study.diffusion.steps, guidance)
                           for seed, one in enumerate(asked)])  # fmt: skip
        found.append({"guidance": guidance, "effect_slope": made @ real / (learnt @ real)})
    return found


def evaluate(root: Path, study: Study) -> dict:
    """Measure the synthetic cohort's sharpness, guidance and time of a volume for page 07."""
    spectra = _spectra(root, study)
    gaps = [abs(row["synthetic"] - row["real"]) for row in spectra]
    reconstructed = [abs(row["reconstructed"] - row["real"]) for row in spectra]
    flow, decoder = load(root)[0], vae.load(root)
    people = dataset.load_table(root, "synthetic").iloc[:8]
    settings = asdict(study.diffusion) | {"seed": study.diffusion.training.seed}
    began = time.perf_counter()
    decode(flow, decoder, people, slice(0, 8), settings)
    seconds = (time.perf_counter() - began) / len(people)
    stats = training.read_stats(root / "runs/diffusion")
    tables = {"spectrum": spectra, "guidance": guidance_table(root, study), "reasons": {}}
    headline = {
        "sampler_steps": study.diffusion.steps,
        "guidance": study.diffusion.guidance,
        "spectrum_error_db": np.mean(gaps),
        "spectrum_error_db_reconstructed": np.mean(reconstructed),
        "components": len(flow.spread),
    }
    timing = {"seconds_per_volume": seconds, "train_seconds": training.wall_seconds(stats)}
    return {"headline": headline, "tables": tables, "timing": timing}

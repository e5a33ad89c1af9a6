"""How good is the sampler: sharpness of its volumes, strength of its effects, steps and time."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dsnb import dataset, latents, space, training, vae
from dsnb.config import Study
from dsnb.diffusion.components import FEWEST_DS, generator_rows
from dsnb.diffusion.flow import condition
from dsnb.diffusion.guidance import difference, guidance_table, settle
from dsnb.diffusion.remainder import slopes
from dsnb.diffusion.samplers import SAMPLERS, draw
from dsnb.diffusion.synthesis import decode, decode_means
from dsnb.diffusion.task import load

STEPS = (1, 2, 5, 10, 20, 50)


def _sides(root: Path, study: Study) -> dict[str, list[np.ndarray]]:
    """Return real held-out, reconstructed, plain and finished synthetic volumes, a group each."""
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    made, drawn = dataset.load_table(root, "synthetic"), dataset.load_volumes(root, "synthetic")
    decoder, flow = vae.load(root), load(root)[0]
    settings = settle(root, study, study.diffusion.training.seed)
    sides = {name: [] for name in ("real", "reconstructed", "decoded", "synthetic")}
    for group in made["group"].unique():
        rows = np.flatnonzero(made["group"] == group)
        real = np.asarray(volumes[dataset.select(table, group, "test")], np.float32)
        found = (real, vae.reconstruct(decoder, real),
                 decode_means(flow, decoder, made, rows[:20], settings),
                 np.asarray(drawn[rows], np.float32))  # fmt: skip
        for name, some in zip(sides, found):
            sides[name].append(some)
    return sides


def _spectra(sides: dict, study: Study, brain: np.ndarray) -> list[dict]:
    """Return the spectrum (dB) of each side; groups weigh the same, as in the synthetic cohort."""
    levels = {}
    for name, groups in sides.items():
        found = [vae.radial_spectrum(some, brain) for some in groups if len(some)]
        levels[name] = 10 * np.log10(np.mean([power for _, power in found], axis=0))
    table = {"cycles_per_mm": found[0][0] / study.grid.voxel_mm, **levels}
    return pd.DataFrame(table).to_dict("records")


def _slopes(sides: dict, brain: np.ndarray) -> list[dict]:
    """Return quantiles of the gradient's magnitude (intensity a voxel) in the brain, by side."""
    rows, shares = [], (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
    for name, groups in sides.items():
        values = [slopes(volume)[brain] for some in groups for volume in some[:20]]
        found = np.quantile(np.concatenate(values), shares)
        rows.append({"volumes": name, **dict(zip(map(str, shares), found))})
    return rows


def steps_table(root: Path, study: Study) -> list[dict]:
    """Return, a sampler and number of steps, spread and effect of what it draws.

    Against training people: the ratio of the components' SDs and of the DS-euploid difference, both
    1 where nothing is lost; and the seconds a brain without its decoding.
    """
    table, z, _, _ = latents.load(root)
    flow, rows = load(root)[0], generator_rows(table)[0]
    ds = (table["group"].iloc[rows] == "DS").to_numpy()
    if ds.sum() < FEWEST_DS:
        return []
    asked = [condition(table.iloc[rows[side]]).repeat(2, 1) for side in (~ds, ds)]
    real = [torch.from_numpy(z[rows[side]]) for side in (~ds, ds)]
    wanted, spread = difference(flow, real), flow.project(torch.cat(real)).std(0)
    found = []
    for sampler in SAMPLERS:
        for steps in STEPS:
            began = time.perf_counter()
            made = [draw(flow, one, seed, steps, sampler=sampler) for seed, one in enumerate(asked)]
            seconds = (time.perf_counter() - began) / sum(map(len, made))
            ratio = (flow.project(torch.cat(made)).std(0) / spread).mean()
            slope = difference(flow, made) @ wanted / (wanted @ wanted)
            found.append({"sampler": sampler, "steps": steps, "sd_ratio": float(ratio),
                          "effect_slope": slope, "seconds": seconds})  # fmt: skip
    return found


def evaluate(root: Path, study: Study) -> dict:
    """Measure the synthetic cohort's sharpness, guidance, steps and time of a volume, page 07."""
    brain = space.load_template(study.grid).brain
    sides = _sides(root, study)
    spectra, half = _spectra(sides, study, brain), 0.25 / study.grid.voxel_mm
    flow, decoder = load(root)[0], vae.load(root)

    def gap(name: str, most: float = np.inf) -> float:
        return np.mean([abs(r[name] - r["real"]) for r in spectra if r["cycles_per_mm"] <= most])

    people = dataset.load_table(root, "synthetic").iloc[:8]
    settings = settle(root, study, study.diffusion.training.seed)
    began = time.perf_counter()
    decode(flow, decoder, people, np.arange(len(people)), settings)
    seconds = (time.perf_counter() - began) / len(people)
    stats = training.read_stats(root / "runs/diffusion")
    tables = {"spectrum": spectra, "slopes": _slopes(sides, brain),
              "guidance": guidance_table(root, study), "steps": steps_table(root, study),
              "reasons": {}}  # fmt: skip
    headline = {
        "sampler_steps": study.diffusion.steps,
        "guidance": settings["guidance"],
        "spectrum_error_db": gap("synthetic"),
        "spectrum_error_db_half_nyquist": gap("synthetic", half),
        "spectrum_error_db_decoded": gap("decoded"),
        "spectrum_error_db_reconstructed": gap("reconstructed"),
        "components": len(flow.spread),
    }
    timing = {"seconds_per_volume": seconds, "train_seconds": training.wall_seconds(stats)}
    return {"headline": headline, "tables": tables, "timing": timing}

"""Guidance: how much of a condition is drawn, and the strength at which it is that of people."""

from pathlib import Path

import numpy as np
import torch

from dsnb import dataset, latents, space
from dsnb.config import Study
from dsnb.diffusion.components import FEWEST_DS, generator_rows
from dsnb.diffusion.flow import Flow, condition
from dsnb.diffusion.samplers import draw
from dsnb.diffusion.task import load

GUIDANCES = (0.75, 1.0, 1.25, 1.5, 2.0)  # 2 exaggerated the disease in our trials
COPIES = 4  # drawn for each condition of a person
SAMPLING = ("sampler", "steps", "guidance")


def difference(flow: Flow, sides: list[torch.Tensor]) -> np.ndarray:
    """Return the DS-euploid difference of latents (euploid, DS) in the components' own variance."""
    euploid, patients = (flow.project(side).mean(0) * flow.spread for side in sides)
    return (patients - euploid).numpy()


def guidance_table(root: Path, study: Study) -> list[dict]:
    """Compare the DS-euploid difference of drawn components with that of validation people.

    Slope = drawn . held / (learnt . held), with components in their own variance: held people are
    independent of the generator's, so their noise does not bias it.
    """
    table, z, _, _ = latents.load(root)
    flow = load(root)[0]
    held = [dataset.select(table, group, "validation") for group in space.GROUPS]
    trained = generator_rows(table)[0]
    ds = (table["group"].iloc[trained] == "DS").to_numpy()
    if min(*map(len, held), ds.sum()) < FEWEST_DS:
        return []
    learnt = [trained[~ds], trained[ds]]
    real, taught = (difference(flow, [torch.from_numpy(z[rows]) for rows in sides])
                    for sides in (held, learnt))  # fmt: skip
    asked = [condition(table.iloc[rows]).repeat(COPIES, 1) for rows in learnt]
    found = []
    for guidance in GUIDANCES:
        made = difference(flow, [
            draw(flow, one, seed, study.diffusion.steps, guidance, sampler=study.diffusion.sampler)
            for seed, one in enumerate(asked)
        ])  # fmt: skip
        found.append({"guidance": guidance, "effect_slope": made @ real / (taught @ real),
                      "slope_of_training": made @ taught / (taught @ taught)})  # fmt: skip
    return found


def settle(root: Path, study: Study, seed: int) -> dict:
    """Return how samples are drawn: sampler, steps, seed, and the guidance that is asked for.

    Where that is 0 it is the one whose effect-size slope is nearest to 1 on validation people; 1
    where they are too few to tell.
    """
    settings = {name: getattr(study.diffusion, name) for name in SAMPLING} | {"seed": seed}
    if not settings["guidance"]:
        found = guidance_table(root, study)
        gaps = {abs(row["effect_slope"] - 1): row["guidance"] for row in found}
        settings["guidance"] = gaps[min(gaps)] if gaps else 1.0
    return settings

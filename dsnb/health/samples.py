"""A synthetic cohort -> why its samples are bad, in plain words, and what to try.

Each check compares samples with the people who trained the generator, on both sides by numbers of
this study alone. Thresholds are orders of magnitude; none was fitted to a run.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsnb import dataset, diffusion, latents, training
from dsnb.config import Study
from dsnb.fidelity.realism import pooled
from dsnb.health import answer
from dsnb.space import GROUPS, Grid, load_template
from dsnb.vae import radial_spectrum

NOISE = 0.5  # of a latent's variance that is posterior noise; more, and it says little of a person
COMPONENT_SD = (0.5, 2.0)  # of validation people's components; noise has 1
BLUR_DB, GRAIN_DB = -3.0, 3.0  # synthetic over real power, up to half the Nyquist frequency
SPREAD = (0.6, 1.5)  # SD between samples over SD between people
SLOPE = (0.6, 1.5)  # of the groups' difference in samples on that in training people
SAME = 0.5  # of the distance to the second-nearest training person, to which a sample is a copy
COPIES = 0.02  # share of samples
FEWEST = 5  # a group and side

ADVICE = {
    "noisy latents": ("wrong", "Most of a latent is the posterior's noise.",
                      "Lower kl; train the VAE longer."),
    "wrong scale": ("wrong", "Components are not in the unit of the noise they are mixed with.",
                    "Encode again, then `dsnb train diffusion`; mix no two VAEs' latents."),
    "blurred": ("wrong", "Fine detail is missing.", "Train the VAE longer."),
    "grainy": ("wrong", "There is more fine detail than in scans.",
               "Fewer or other sampler steps; measure the gain again on this VAE."),
    "all alike": ("wrong", "Samples differ less than people do.",
                  "More sampler steps; lower guidance; is the remainder drawn?"),
    "wild": ("wrong", "Samples differ more than people do.", "Train longer; fewer components."),
    "weak effect": ("look", "The groups differ less than people do.",
                    "Raise guidance a little; is DS among the conditions?"),
    "exaggerated": ("wrong", "The disease is stronger than in people.", "Lower guidance to 1."),
    "copies": ("wrong", "Samples are training people.",
               "Train shorter; take components of public people; do not share these."),
}  # fmt: skip


class Cohorts(NamedTuple):
    """Volumes {group: (N, X, Y, Z)} of training people and of samples."""

    trained: dict[str, np.ndarray]
    made: dict[str, np.ndarray]


def judge(cohorts: Cohorts, grid: Grid, brain: np.ndarray) -> dict[str, tuple[str, str]]:
    """Return {check: (finding or empty, what was seen)} of samples beside training people."""
    groups = [g for g in GROUPS if min(len(side.get(g, ())) for side in cohorts) >= FEWEST]
    if not groups:
        return dict.fromkeys(("detail", "spread", "effect", "copies"), ("none", "too few people"))
    power = [np.mean([radial_spectrum(side[g][:20], brain)[1] for g in groups], axis=0)
             for side in cohorts]  # fmt: skip
    half = len(power[0]) // 2
    gap = 10 * np.log10(power[1][:half] / power[0][:half])[half // 3 :].mean()
    blurred = "blurred" if gap < BLUR_DB else "grainy" if gap > GRAIN_DB else ""
    found = {"detail": (blurred, f"{gap:+.1f} dB of fine detail")}
    coarse = [{g: pooled(side[g], grid, 2) for g in groups} for side in cohorts]
    inside = pooled(brain[None].astype(np.float32), grid, 2)[0] > 0.5
    trained, made = ({g: some[:, inside] for g, some in side.items()} for side in coarse)
    ratio = np.mean([made[g].std(0).mean() / trained[g].std(0).mean() for g in groups])
    alike = "all alike" if ratio < SPREAD[0] else "wild" if ratio > SPREAD[1] else ""
    found["spread"] = alike, f"samples spread {ratio:.2f} times as much as people"
    found["effect"] = "none", "one group only"
    if len(groups) == 2:
        real, drawn = (side["DS"].mean(0) - side["euploid"].mean(0) for side in (trained, made))
        slope = drawn @ real / (real @ real)
        strength = "weak effect" if slope < SLOPE[0] else "exaggerated" if slope > SLOPE[1] else ""
        found["effect"] = strength, f"the groups differ {slope:.2f} times as much as in people"
    found["copies"] = _copies(trained, made, groups)
    return found


def _copies(trained: dict, made: dict, groups: list[str]) -> tuple[str, str]:
    """Return whether samples lie at one training person, much nearer than at any other."""
    near = []
    for group in groups:
        away = ((made[group][:, None] - trained[group][None]) ** 2).mean(2) ** 0.5
        first, second = np.sort(away, axis=1)[:, :2].T
        near.append(first < SAME * second)
    share = np.concatenate(near).mean()
    seen = f"{share:.1%} of samples are at one training person"
    return ("copies" if share > COPIES else ""), seen


def diagnose(root: Path, study: Study) -> list[dict[str, str]]:
    """Return a row a check of the study's generator and samples, as `health.diagnose` does."""
    table, _, logvar, statistics = latents.load(root)
    noise = float((np.exp(np.asarray(logvar)).mean((0, 2, 3, 4)) / statistics["std"] ** 2).mean())
    found = {"latents": ("noisy latents" if noise > NOISE else "",
                         f"{noise:.0%} of a latent's variance is noise")}  # fmt: skip
    stats = training.read_stats(root / "runs/diffusion").dropna(subset=["score"])
    spread = float(stats["component_sd"].iloc[-1])
    sound = COMPONENT_SD[0] < spread < COMPONENT_SD[1]
    found["scale"] = "" if sound else "wrong scale", f"unseen components have SD {spread:.2f}"
    flow, identity = diffusion.load(root)
    prediction = identity["settings"]["prediction"]
    found["prediction"] = "", f"{prediction}, as it was trained; {len(flow.spread)} components"
    volumes, rows = dataset.load_volumes(root), diffusion.generator_rows(table)[0]
    made, drawn = dataset.load_table(root, "synthetic"), dataset.load_volumes(root, "synthetic")
    group = table["group"].to_numpy()[rows]
    cohorts = Cohorts(
        {g: volumes[rows[group == g]] for g in GROUPS},
        {g: drawn[np.flatnonzero((made["group"] == g).to_numpy())] for g in GROUPS},
    )
    found |= judge(cohorts, study.grid, load_template(study.grid).brain)
    return [answer(check, *told, ADVICE) for check, told in found.items()]

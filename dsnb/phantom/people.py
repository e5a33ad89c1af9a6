"""The phantom's people: who they are, when they fall ill, and each one's own anatomy."""

import numpy as np
import pandas as pd

from dsnb import space
from dsnb.config import Cohort
from dsnb.phantom.fields import COARSE, LATTICE, basis, draw_factor, onto, smooth_noise

# Log-volume: SD between people, change per decade after 30, and men minus women (regions.md). [E]
TRAITS = pd.DataFrame(
    {
        "cerebellum": (0.06, -0.015, 0.01), "brainstem": (0.06, -0.005, 0.01),
        "hippocampus": (0.08, -0.035, 0.0), "amygdala": (0.08, -0.025, 0.03),
        "parahippocampal": (0.06, -0.020, 0.0), "frontal": (0.05, -0.030, -0.01),
        "superior_temporal": (0.05, -0.025, -0.01), "lentiform": (0.05, -0.015, 0.01),
        "ventricles": (0.22, 0.11, 0.08), "corpus_callosum": (0.08, -0.020, -0.02),
        "thalamus": (0.05, -0.015, 0.0), "caudate": (0.05, -0.015, 0.0),
        "temporal": (0.05, -0.025, 0.0), "parietal": (0.04, -0.035, -0.01),
        "occipital": (0.04, -0.015, 0.0), "white_matter": (0.02, -0.012, 0.0),
    },
    index=["spread", "decade", "male"],
)[list(space.REGIONS)]  # fmt: skip
# Smooth displacement (mm) at each width (SD, mm): so that regions spread as in facts 2.1. [E]
WANDER_MM = ((1.6, 28.0), (0.8, 12.0))
DS_VARIABILITY = 1.2  # DS groups vary more than euploids, facts 2.1 [E]
ONSET_YEARS, ONSET_SD, PRODROMAL_YEARS, SURVIVAL_YEARS = 53.8, 6.0, 3.5, 4.6  # facts 2.2
# Site: intensity scale, noise factor, grey-matter shift, bias-field SD. [E]
SITES = {
    "public1": (600, 1.0, 0.00, 0.04), "public2": (450, 0.9, 0.02, 0.05),
    "public3": (800, 1.1, -0.02, 0.06), "clinic": (700, 1.0, 0.01, 0.05),
    "external": (520, 1.05, -0.01, 0.05),
}  # fmt: skip
STREAMS = ("anatomy", "regions", "cortex", "scanner", "noise", "sham")


def stream(seed: int, number: int, name: str) -> np.random.Generator:
    """Return the generator of one person and one purpose, independent of order and processes."""
    return np.random.default_rng([seed, number, STREAMS.index(name)])


def draw_people(settings: Cohort) -> pd.DataFrame:
    """Draw everybody's table: three cohorts, ages, stages that emerge from age and onset."""
    rows = [_draw_euploid(settings, k) for k in range(settings.euploid)]
    rows += [_draw_ds(settings, k) for k in range(settings.ds)]
    return pd.DataFrame(rows)


def _draw_euploid(settings: Cohort, k: int) -> dict:
    """Draw a euploid: three of four PUBLIC (younger), the others CLINIC or EXTERNAL siblings."""
    rng = np.random.default_rng([settings.seed, 1000 + k, 99])
    site = rng.choice(list(SITES), p=[0.3, 0.25, 0.2, 0.15, 0.1])
    public = site.startswith("public")
    age = 18 + 42 * rng.beta(1.2, 1.2) if public else np.clip(rng.normal(48, 9), 25, 70)
    shared = _draw_shared(rng, f"sub-e{k + 1:04d}", 1000 + k, "euploid", site, float(age))
    return {**shared, "stage": "n/a", "disability": "n/a", "cognition": "n/a", "factor": 0.0}


def _draw_ds(settings: Cohort, k: int) -> dict:
    """Draw a person with DS: who outlives the onset by `SURVIVAL_YEARS` is rarely scanned."""
    rng = np.random.default_rng([settings.seed, 500_000 + k, 99])
    while True:
        age = np.clip(rng.normal(49.5, 8), 20, 68)
        ill = age - rng.normal(ONSET_YEARS, ONSET_SD)
        if ill < 0 or rng.random() < np.exp(-ill / SURVIVAL_YEARS):
            break
    stage = space.STAGES[int(ill > -PRODROMAL_YEARS) + int(ill > 0)]
    site = rng.choice(["clinic", "external"], p=[0.67, 0.33])
    shared = _draw_shared(rng, f"sub-d{k + 1:04d}", 500_000 + k, "DS", site, float(age))
    level = int(rng.choice(3, p=[0.25, 0.5, 0.25]))  # independent of stage, facts 2.2
    score = (70, 52, 30)[level] - (0, 10, 25)[space.STAGES.index(stage)] + rng.normal(0, 8)
    missing = rng.random() < (0.05, 0.08, 0.35)[level]  # [E], scores floor at 0
    return {
        **shared,
        "stage": stage,
        "disability": ("mild", "moderate", "severe")[level],
        "cognition": "n/a" if missing else round(float(np.clip(score, 0, 100)), 1),
        "factor": settings.severity * draw_factor(rng),
    }


def _draw_shared(rng, name: str, number: int, group: str, site: str, age: float) -> dict:
    """Draw what everybody has; head size and brachycephaly are metadata, removed by `prepare`."""
    sex = "F" if rng.random() < 0.5 else "M"
    head = (0.83, 0.92, 1.0, 0.96) if group == "DS" else (1.0, 1.0, 1.0, 1.0)  # facts 2.1
    restless = 1.5 + 0.02 * max(age - 40, 0) if (group, site) == ("DS", "clinic") else 1.0
    return {
        "participant_id": name, "number": number, "family": name, "group": group,
        "kind": "recorded", "origin": "n/a", "age": round(age, 1), "sex": sex, "site": site,
        "session": "n/a", "motion": round(float(0.25 * restless * rng.lognormal(0, 0.4)), 3),
        "tiv_ml": round(float(head[0] * (1550 if sex == "M" else 1400) * rng.normal(1, 0.075)), 1),
        **{f"head_{axis}": round(float(factor * rng.normal(1, 0.03)), 3)
           for axis, factor in zip(("ap", "lr", "si"), head[1:])},
    }  # fmt: skip


def individual_velocities(row: dict, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one person's own anatomy without disease as two velocities, each (3, X, Y, Z) mm.

    The first holds regions (spread, age, sex), where the disease adds up; the second the head's
    axes and smooth noise, applied after it so that effects stay on the structures they belong to.
    """
    rng, wider = stream(seed, row["number"], "anatomy"), 1.0
    if row["group"] == "DS":
        wider = DS_VARIABILITY
    noise = sum(size * smooth_noise(rng, 3, width) for size, width in WANDER_MM)
    rng = stream(seed, row["number"], "regions")
    stretch = rng.normal(0, 0.013, (3, 1, 1, 1)).astype(np.float32)
    centred = LATTICE.coordinates_mm() - np.float32(space.CENTRE_MM)[:, None, None, None]
    shape = np.float32(wider) * (onto(noise, COARSE, LATTICE) + stretch * centred)
    wanted = wider * TRAITS.loc["spread"].to_numpy() * rng.standard_normal(len(space.REGIONS))
    wanted = wanted + TRAITS.loc["decade"].to_numpy() * (max(row["age"], 30) - 30) / 10
    wanted = wanted + TRAITS.loc["male"].to_numpy() * (0.5 if row["sex"] == "M" else -0.5)
    flows, _, inverse = basis()
    return np.tensordot((inverse @ wanted).astype(np.float32), flows, 1), shape

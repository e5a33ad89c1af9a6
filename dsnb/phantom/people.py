"""The phantom's people: who they are, when they fall ill, and each one's own anatomy."""

import numpy as np
import pandas as pd

from dsnb import space
from dsnb.config import Cohort
from dsnb.phantom.fields import CONSTANTS, LATTICE, basis, draw_factor, smooth_noise, swirl

# Neighbours in kind vary together: r = 0.45 inside a family, 0.25 across, ventricles -0.2. [E]
FAMILIES = (
    ("frontal", "superior_temporal", "temporal", "parietal", "occipital"),
    ("hippocampus", "amygdala", "parahippocampal"),
    ("lentiform", "thalamus", "caudate"),
    ("cerebellum", "brainstem"),
    ("white_matter", "corpus_callosum"),
)
COMMON, KIN, VENTRICLES_COMMON = 0.5, 0.45, -0.4  # loadings
WIDEST = 2.0  # SD: nobody's region lies farther out, so that nothing folds
# Shape between people, velocity SD in mm at each width (SD, mm): what keeps every volume
# (swirls, down to the width of a gyrus) and what does not. Chosen with the widths of the spectrum
# of 46 open scans in view (page 01). [E]
SWIRL_MM = ((0.9, 28.0), (0.9, 12.0), (0.75, 6.0))
WANDER_MM = ((0.6, 28.0),)
AXES_SD = 0.016  # stretch of each axis
DS_VENTRICLES = 0.5  # of their spread before the disease, so that dementia can widen all [E]
DS_VARIABILITY = 1.2  # DS groups vary more than euploids, facts 2.1 [E]
ONSET_YEARS, ONSET_SD, PRODROMAL_YEARS, SURVIVAL_YEARS = 53.8, 6.0, 3.5, 4.6  # facts 2.2
# Atrophy goes on without steps: years since onset at which `fields.targets` reads 0, 1, 2, 2.2. [E]
PROGRESS_YEARS = (-7.0, -1.75, 2.3, 3.1)
REPEAT_YEARS = 16 / 12  # between two visits, as in ABC-DS (facts 4)
# Level of intellectual disability: mean cognition and share of missing scores; floor at 0. [E]
ABILITY = {"mild": (70, 0.05), "moderate": (52, 0.08), "severe": (30, 0.35)}
# Site: intensity scale, noise factor, grey-matter shift, bias-field SD. [E]
SITES = {
    "public1": (600, 1.0, 0.00, 0.04), "public2": (450, 0.9, 0.02, 0.05),
    "public3": (800, 1.1, -0.02, 0.06), "clinic": (700, 1.0, 0.01, 0.05),
    "external": (520, 1.05, -0.01, 0.05),
}  # fmt: skip
STREAMS = ("anatomy", "regions", "cortex", "scanner", "noise", "sham", "pose", "motion")
VISIT = ("scanner", "noise", "motion")


def stream(seed: int, row: dict, name: str) -> np.random.Generator:
    """Return the generator of one person and purpose, independent of order and processes.

    What belongs to a visit (`motion` and after) is drawn anew at a repeated session.
    """
    visit = [int(row["session"])] if row["session"] != "n/a" and name in VISIT else []
    return np.random.default_rng([seed, row["number"], STREAMS.index(name), *visit])


def draw_people(settings: Cohort) -> pd.DataFrame:
    """Draw everybody's table: three cohorts, ages, stages that emerge from age and onset."""
    rows = [_draw_euploid(settings, k) for k in range(settings.euploid)]
    rows += [_draw_ds(settings, k) for k in range(settings.ds)]
    return pd.DataFrame(rows)


def _draw_euploid(settings: Cohort, k: int) -> dict:
    """Draw a euploid: three of four PUBLIC (younger), the others CLINIC or EXTERNAL siblings."""
    rng = np.random.default_rng([settings.seed, 1000 + k, 99])
    siblings = 0.1 * settings.external_euploid
    site = rng.choice(list(SITES), p=[0.3, 0.25, 0.2, 0.25 - siblings, siblings])
    age = 18 + 42 * rng.beta(1.2, 1.2) if "public" in site else np.clip(rng.normal(48, 9), 25, 70)
    shared = _draw_shared(rng, f"sub-e{k + 1:04d}", 1000 + k, "euploid", site, float(age), settings)
    healthy = {"stage": "n/a", "disability": "n/a", "cognition": "n/a"}
    return {**shared, **healthy, "factor": 0.0, "onset_years": np.inf, "progress": 0.0}


def _draw_ds(settings: Cohort, k: int) -> dict:
    """Draw a person with DS: who outlives the onset by `SURVIVAL_YEARS` is rarely scanned."""
    rng = np.random.default_rng([settings.seed, 500_000 + k, 99])
    while True:
        age, onset = np.clip(rng.normal(49.5, 8), 20, 68), rng.normal(ONSET_YEARS, ONSET_SD)
        if age < onset or rng.random() < np.exp((onset - age) / SURVIVAL_YEARS):
            break
    site = rng.choice(["clinic", "external"], p=[0.67, 0.33])
    number = 500_000 + k
    shared = _draw_shared(rng, f"sub-d{k + 1:04d}", number, "DS", site, float(age), settings)
    shared["disability"] = str(rng.choice(list(ABILITY), p=[0.25, 0.5, 0.25]))  # facts 2.2
    shared |= {"factor": settings.severity * draw_factor(rng), "onset_years": float(onset)}
    return shared | _condition(rng, shared, float(age))


def _condition(rng: np.random.Generator, person: dict, age: float) -> dict:
    """Return stage, progress and cognition of a person with DS at an age.

    All follow from the years since onset, independent of the level of disability (facts 2.2).
    """
    ill = age - person["onset_years"]
    stage = int(ill > -PRODROMAL_YEARS) + int(ill > 0)
    level, missing = ABILITY[person["disability"]]
    score = np.clip(level - (0, 10, 25)[stage] + rng.normal(0, 8), 0, 100)
    return {
        "age": round(age, 1),
        "stage": space.STAGES[stage],
        "progress": float(np.interp(ill, PROGRESS_YEARS, (0, 1, 2, 2.2))),
        "cognition": "n/a" if rng.random() < missing else round(float(score), 1),
    }


def revisit(settings: Cohort, row: dict) -> dict:
    """Return a person's second visit, `REPEAT_YEARS` later: the same anatomy, aged; a new scan."""
    name, age = row["participant_id"], row["age"] + REPEAT_YEARS
    again = {**row, "participant_id": f"{name}ses2", "session": "2", "age": round(age, 1)}
    again |= {"kind": "repeat", "origin": name}
    if row["group"] == "DS":
        rng = np.random.default_rng([settings.seed, row["number"], 98])
        again |= _condition(rng, row, age)
    return again | {"motion": _draw_motion(stream(settings.seed, again, "motion"), again, settings)}


def _draw_motion(rng: np.random.Generator, row: dict, settings: Cohort) -> float:
    """Draw the SD of the motion blur (mm); in one arm it follows group and age at one site."""
    confounded = settings.confounded_motion and (row["group"], row["site"]) == ("DS", "clinic")
    restless = 1.5 + 0.02 * max(row["age"] - 40, 0) if confounded else 1.0
    return round(float(0.25 * restless * rng.lognormal(0, 0.4)), 3)


def _draw_shared(rng, name, number: int, group: str, site: str, age: float, settings) -> dict:
    """Draw what everybody has; head size and brachycephaly are metadata, removed by `prepare`."""
    sex = "F" if rng.random() < 0.5 else "M"
    head = (0.83, 0.92, 1.0, 0.96) if group == "DS" else (1.0, 1.0, 1.0, 1.0)  # facts 2.1
    row = {
        "participant_id": name, "number": number, "family": name, "group": group,
        "kind": "recorded", "origin": "n/a", "age": round(age, 1), "sex": sex,
        "cohort": "PUBLIC" if "public" in site else site.upper(), "site": site, "session": "n/a",
        "tiv_ml": round(float(head[0] * (1550 if sex == "M" else 1400) * rng.normal(1, 0.075)), 1),
        **{f"head_{axis}": round(float(factor * rng.normal(1, 0.03)), 3)
           for axis, factor in zip(("ap", "lr", "si"), head[1:])},
    }  # fmt: skip
    return row | {"motion": _draw_motion(stream(settings.seed, row, "motion"), row, settings)}


def draw_regions(rng: np.random.Generator) -> np.ndarray:
    """Draw correlated standard normal deviations (R,), kin families closer."""
    common, kin = rng.standard_normal(), rng.standard_normal(len(FAMILIES))
    own, found = rng.standard_normal(len(space.REGIONS)), {}
    for family, shared in zip(FAMILIES, kin):
        found |= dict.fromkeys(family, COMMON * common + KIN * shared)
    alone = np.sqrt(1 - COMMON**2 - KIN**2)
    deviations = [found.get(name, 0) + alone * own[k] for k, name in enumerate(space.REGIONS)]
    k = space.REGIONS.index("ventricles")
    deviations[k] = VENTRICLES_COMMON * common + np.sqrt(1 - VENTRICLES_COMMON**2) * own[k]
    return np.clip(deviations, -WIDEST, WIDEST)


def individual_velocities(row: dict, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one person's own anatomy without disease as two velocities, each (3, X, Y, Z) mm.

    The first holds regions (spread, age, sex), where the disease adds up; the second the head's
    axes and the shape, applied after it so that effects stay on the structures they belong to.
    """
    rng = stream(seed, row, "anatomy")
    wider = DS_VARIABILITY if row["group"] == "DS" else 1.0
    noise = swirl(rng, SWIRL_MM)
    noise += sum(np.float32(size) * smooth_noise(rng, 3, width) for size, width in WANDER_MM)
    rng = stream(seed, row, "regions")
    stretch = rng.normal(0, AXES_SD, (3, 1, 1, 1)).astype(np.float32)
    centred = LATTICE.coordinates_mm() - np.float32(space.CENTRE_MM)[:, None, None, None]
    shape = np.float32(wider) * (noise + stretch * centred)
    spread = CONSTANTS["spread"] * wider
    if row["group"] == "DS":  # the disease widens them, each person's by another factor
        spread["ventricles"] *= DS_VENTRICLES
    wanted = spread.to_numpy() * draw_regions(rng)
    wanted = wanted + CONSTANTS["decade"].to_numpy() * (max(row["age"], 30) - 30) / 10
    wanted = wanted + CONSTANTS["male"].to_numpy() * (0.5 if row["sex"] == "M" else -0.5)
    flows, _, inverse = basis()
    return np.tensordot((inverse @ wanted).astype(np.float32), flows, 1), shape

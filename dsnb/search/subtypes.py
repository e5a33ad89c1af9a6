"""Are subtypes found where there are two, and none where there is none? In the ledger.

Everybody of a pool of unseen euploids gets the disease's local field and, on a second scan, a
random field of equal size. Cohorts drawn from the first have no subtypes; of half and half, two.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from scipy.stats import binomtest
from sklearn.metrics import adjusted_rand_score

from dsnb import dataset, latents, phantom, record, rivals
from dsnb.anomaly.people import Source
from dsnb.config import Strata, Study
from dsnb.strata import structure
from dsnb.strata.people import dot_products, standardise

LEDGER = "06_subtypes"
CODE = ("space", "rivals", "latents", "phantom", "anomaly", "vae/networks", "vae/task",
        "strata/structure", "strata/people", "search/subtypes")  # fmt: skip
STRENGTHS = (1.0, 2.0)  # of both fields, in severities of the disease
ARMS = {"no subtypes": 0, "two subtypes": 1}
COHORT = 90  # people, half of a pool at `small`
SPLITS = ("scale", "calibration", "test")
NULLS = 19  # draws behind a cohort's p: the fewest that can reach 5 %
FIELD = 3  # the seed of the second field; another one served to choose the method


def plant(source: Source, rows: np.ndarray, strength: float) -> list:
    """Return People with the disease's field, and the same people with the other field."""
    grid, found = source.grid, []
    fields = (phantom.disease_displacement(grid, strength, FIELD)[0],
              phantom.sham_displacement(grid, strength, FIELD)[0])  # fmt: skip
    for flow in fields:
        volumes = []
        for number, row in enumerate(rows):
            factor = np.clip(np.random.default_rng([FIELD, number]).normal(1, 0.2), 0.6, 1.4)
            volume = np.asarray(source.volumes[row], np.float32)
            moved = (factor * flow).astype(np.float32)
            volumes.append(rivals.warp(volume, moved, grid.voxel_mm, order=3))
        volumes = rivals.without_halo(np.stack(volumes))
        found.append(source.from_volumes(source.table.iloc[rows], volumes, moved=False))
    return found


def kernels(source: Source, planted: list, statistics: dict) -> dict[str, np.ndarray]:
    """Return dot products (2N, 2N) of latents, deformation, and what `undo` sees."""
    z = np.concatenate([people.latents for people in planted])
    z = standardise(z.reshape(-1, *source.latents.shape[1:]), statistics)
    values = {"latents": z} | {
        name: np.concatenate([getattr(people, field) for people in planted])
        for name, field in (("deformation", "log_jacobian"), ("undone", "undone"))
    }
    return {name: dot_products(of) for name, of in values.items()}


def draw_cohort(
    kernel: np.ndarray, known: np.ndarray, subtypes: int, draw: int, settings: Strata
) -> tuple[bool, float]:
    """Return whether one drawn cohort is called structured, and how far clusters are the subtypes.

    `kernel` is (2N, 2N): everybody with one field, then everybody with the other.
    """
    rng = np.random.default_rng([settings.seed, draw])
    size = min(COHORT, len(known) // 2)
    people, truth = rng.permutation(len(known))[:size], subtypes * (np.arange(size) % 2)
    rows, out = people + truth * len(known), structure.residual_maker(known[people])
    cohort = structure.coordinates(kernel[np.ix_(rows, rows)], out)
    found = structure.structure_test(cohort, out, NULLS, settings, rng)
    return found["structured"], adjusted_rand_score(truth, found["labels"])


def summarise(found: list[tuple[bool, float]]) -> dict:
    """Return the share of cohorts called, with its exact interval, and the median agreement."""
    calls, agreements = (np.array(values) for values in zip(*found))
    share = binomtest(int(calls.sum()), len(calls)).proportion_ci()
    return {"cohorts": len(calls), "called": float(calls.mean()), "called_low": share.low,
            "called_high": share.high, "agreement": float(np.median(agreements))}  # fmt: skip


def draw_subtypes(root: Path, study: Study) -> None:
    """Fill the ledger with calls and agreement in cohorts of no and of two subtypes."""
    torch.set_num_threads(1)  # the same arithmetic on any machine
    source, statistics = Source(root, study), latents.load(root)[3]
    rows, settings = source.rows("euploid", *SPLITS), study.strata
    grown = np.stack([source.fill(values) for values in source.people(rows).log_jacobian])
    volumes = rivals.region_volumes(grown, source.grid)
    known = structure.nuisance(source.table.iloc[rows], volumes, "age")
    made_of = {name: asdict(getattr(study, name)) for name in ("strata", "vae", "undo")}
    for strength in STRENGTHS:
        made = None
        for arm, subtypes in ARMS.items():
            task = {
                **dataset.identify(root),
                "part": arm,
                "change": strength,
                "seed": settings.seed,
            }
            key = record.row_key(task | {"settings": made_of}, CODE)
            if record.find_row(LEDGER, key):
                continue
            made = made or kernels(source, plant(source, rows, strength), statistics)
            table = []
            for name, kernel in made.items():
                jobs = (delayed(draw_cohort)(kernel, known, subtypes, draw, settings)
                        for draw in range(settings.null_draws))  # fmt: skip
                table.append({"features": name, "people": min(COHORT, len(known) // 2)}
                             | summarise(Parallel(2)(jobs)))  # fmt: skip
            record.add_row(LEDGER, key, {"features": table})
            told = ", ".join(f"{row['features']} {row['called']:.2f}" for row in table)
            record.say(f"{arm} of strength {strength:g}: called {told}")

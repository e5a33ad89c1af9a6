"""Why samples are bad: cohorts broken on purpose are named for what is wrong with them."""

import numpy as np
import pytest
from scipy import ndimage

from dsnb.health import samples
from dsnb.space import Grid

GRID = Grid(4.0, (24, 24, 24))
BRAIN = np.zeros(GRID.shape, bool)
BRAIN[3:-3, 3:-3, 3:-3] = True


def people(count: int, seed: int, ds: bool, strength: float = 1.0) -> np.ndarray:
    """Draw smooth people with noise, and a dent in DS, (N, X, Y, Z)."""
    rng = np.random.default_rng(seed)
    fields = np.stack([3 * ndimage.gaussian_filter(rng.normal(size=GRID.shape), 3)
                       for _ in range(count)])  # fmt: skip
    dent = np.zeros(GRID.shape)
    dent[6:12] = -0.3 * strength * ds
    noise = 0.05 * rng.normal(size=fields.shape)
    return ((0.6 + fields + dent + noise) * BRAIN).astype(np.float32)


def cohort(seed: int, strength: float = 1.0) -> dict[str, np.ndarray]:
    """Return both groups."""
    return {group: people(24, seed + ds, ds, strength)
            for group, ds in (("euploid", False), ("DS", True))}  # fmt: skip


TRAINED = cohort(10)


def broken(kind: str) -> dict[str, np.ndarray]:
    """Return samples with one thing wrong."""
    made = cohort(20)
    if kind == "blurred":
        return {g: ndimage.gaussian_filter(v, (0, 1, 1, 1)) for g, v in made.items()}
    if kind == "grainy":
        rng = np.random.default_rng(0)
        return {g: v + 0.2 * BRAIN * rng.normal(size=v.shape) for g, v in made.items()}
    if kind == "all alike":
        return {g: v.mean(0) + 0.3 * (v - v.mean(0)) + (v - ndimage.gaussian_filter(
            v, (0, 1, 1, 1))) for g, v in made.items()}  # fmt: skip
    if kind == "wild":
        return {g: v.mean(0) + 2 * (v - v.mean(0)) for g, v in made.items()}
    if kind == "copies":
        return {g: v + 0.01 for g, v in TRAINED.items()}
    return cohort(20, {"weak effect": 0.2, "exaggerated": 2.0}[kind])


@pytest.mark.parametrize(
    "kind", ["blurred", "grainy", "all alike", "wild", "copies", "weak effect", "exaggerated"]
)
def test_samples_made_bad_are_named_for_it(kind):
    """Falls: `dsnb health synthetic`: a broken cohort would be called sound."""
    judged = samples.judge(samples.Cohorts(TRAINED, broken(kind)), GRID, BRAIN)
    found = {finding for finding, _ in judged.values()}
    assert kind in found and kind in samples.ADVICE


def test_sound_samples_are_left_in_peace():
    """Falls: that a finding means something."""
    found = samples.judge(samples.Cohorts(TRAINED, cohort(30)), GRID, BRAIN)
    assert [finding for finding, _ in found.values()] == [""] * 4, found


def test_few_samples_are_not_judged():
    """Falls: that two brains get a verdict."""
    few = {g: v[:2] for g, v in TRAINED.items()}
    found = samples.judge(samples.Cohorts(TRAINED, few), GRID, BRAIN)
    assert {finding for finding, _ in found.values()} == {"none"}

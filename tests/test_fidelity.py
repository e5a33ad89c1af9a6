"""Fidelity: planted effects, known distances, known utility."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from dsnb import fidelity
from dsnb.config import Release
from dsnb.fidelity import morphology, realism
from dsnb.space import EFFECT_REGIONS, GRIDS, REGIONS

SETTINGS = Release(bootstraps=200, pairs=3, margin_d=0.2)
D = np.linspace(-2, 1.5, len(REGIONS))  # planted effects, in within-group SDs


def _cohort(euploid: int, ds: int, seed: int, scale: float = 1.0) -> morphology.People:
    """Draw region volumes with effect `scale * D`; people with DS are ten years older."""
    rng = np.random.default_rng(seed)
    group = np.repeat([False, True], [euploid, ds])
    codes = np.column_stack(
        [rng.normal(0, 1.5, len(group)) + group, rng.choice([-0.5, 0.5], len(group))]
    )
    logs = 0.08 * (rng.normal(size=(len(group), len(REGIONS))) + np.outer(group, scale * D))
    return morphology.People(logs - 0.05 * codes[:, :1] + 0.03 * codes[:, 1:], group, codes)


def test_effects_are_those_planted_whatever_the_ages():
    """Would fall: every d; without the adjustment each would be off by 0.6."""
    assert np.abs(morphology.effects(_cohort(3000, 2000, 0)) - D).max() < 0.12


def test_an_exaggerated_disease_shows_in_the_slope():
    """Would fall: effect_slope, effect_correlation and the choice of guidance."""
    real = _cohort(360, 120, 1)
    alike, _ = morphology.compare_effects(real, _cohort(200, 200, 2), SETTINGS)
    strong, rows = morphology.compare_effects(real, _cohort(200, 200, 3, scale=1.8), SETTINGS)
    assert 0.85 < alike["effect_slope"] < 1.15 and alike["effect_correlation"] > 0.95
    assert 1.6 < strong["effect_slope"] < 2.0 and strong["effect_slope_ci"][0] > 1.3
    assert [row["region"] for row in rows] == list(EFFECT_REGIONS)


def test_equivalence_needs_both_nearness_and_people():
    """Would fall: regions_equivalent; few people must not pass, nor a shift above the margin."""
    many, _ = morphology.compare_effects(_cohort(3000, 3000, 4), _cohort(3000, 3000, 5), SETTINGS)
    assert many["regions_equivalent"] == len(EFFECT_REGIONS)
    few, _ = morphology.compare_effects(_cohort(30, 30, 6), _cohort(30, 30, 7), SETTINGS)
    assert few["regions_equivalent"] == 0
    shifted = np.random.default_rng(0).normal(0.3, 0.02, (500, 2))
    passed, limits = morphology.equivalence(shifted, 0.2)
    assert not passed.any() and (limits > 0.2).all()


def test_the_ceiling_is_what_reconstruction_keeps():
    """Would fall: reconstruction_slope and the region error of the VAE."""
    some = _cohort(40, 40, 8)
    kept = some._replace(logs=some.logs - 0.4 * np.outer(some.ds, 0.08 * D) + 0.01)
    found = morphology.ceiling(some, kept, SETTINGS)
    assert abs(found["reconstruction_slope"] - 0.6) < 0.05
    assert found["reconstruction_slope_ci"][0] < 0.6 < found["reconstruction_slope_ci"][1]
    assert morphology.ceiling(some, some, SETTINGS)["region_error_pct"] == 0


def test_kid_is_the_formula_and_unbiased():
    """Would fall: kid, its interval, and the claim that it is zero between equals."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    def pairs(s):
        return [k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]

    wanted = np.mean(pairs(x)) + np.mean(pairs(y)) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert np.isclose(realism.kid(x, y)[0], wanted)
    found = np.array(
        [realism.kid(rng.normal(size=(40, 8)), rng.normal(size=(30, 8))) for _ in range(60)]
    )
    values, errors = found.T
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(60)
    assert 0.6 < np.median(errors) / values.std() < 1.6
    moved, error = realism.kid(rng.normal(size=(60, 8)), rng.normal(0.7, 1, (60, 8)))
    assert moved > 4 * error


def test_the_floor_is_passed_by_equals_and_not_by_others():
    """Would fall: kid_floor as the bound of a generator that is as good as real people."""
    rng = np.random.default_rng(1)
    real = [rng.normal(size=(80, 8)), rng.normal(size=(60, 8))]
    floor = np.quantile(realism.kid_floor(real, SETTINGS), 0.95)
    alike = np.mean([realism.kid(x, rng.normal(size=(80, 8)))[0] for x in real])
    other = np.mean([realism.kid(x, rng.normal(0.5, 1, (80, 8)))[0] for x in real])
    assert alike < floor < other


def test_coverage_falls_when_samples_collapse():
    """Would fall: density and coverage."""
    rng = np.random.default_rng(2)
    real = rng.normal(size=(200, 4))
    alike = realism.density_coverage(real, rng.normal(size=(200, 4)), 5)
    collapsed = realism.density_coverage(real, 0.05 * rng.normal(size=(200, 4)), 5)
    assert 0.8 < alike["density"] < 1.2 and alike["coverage"] > 0.9
    assert collapsed["coverage"] < 0.5


def test_diversity_is_one_between_equals():
    """Would fall: the MS-SSIM columns."""
    rng = np.random.default_rng(3)
    some = rng.random((6, *GRIDS["smoke"].shape), dtype=np.float32)
    assert np.isclose(realism.diversity(np.repeat(some[:1], 4, axis=0), SETTINGS)[0], 1)
    assert realism.diversity(some, SETTINGS)[0] < 0.5


def test_features_are_whitened_on_people_of_neither_side():
    """Would fall: that each feature has the same weight in every distance."""
    torch.manual_seed(0)
    grid, rng = GRIDS["smoke"], np.random.default_rng(4)
    volumes = rng.normal(size=(12, *grid.shape)).astype(np.float16)
    scores = realism.fit_features(volumes, grid, 5).transform(realism.pooled(volumes, grid))
    assert np.allclose(scores.std(0, ddof=1), 1, atol=1e-3)
    assert realism.pooled(volumes, GRIDS["full"]).shape[1] < volumes[0].size / 20


@pytest.mark.parametrize(("gap", "low", "high"), [(4.0, 0.85, 1.0), (0.0, 0.35, 0.65)])
def test_utility_is_that_of_unseen_people(gap: float, low: float, high: float):
    """Would fall: tstr_bacc and trtr_bacc; without a difference it must stay near one half."""
    rng = np.random.default_rng(5)
    ds = np.repeat([False, True], 80)
    sides = [(rng.normal(size=(160, 60)) + gap * np.outer(ds, np.eye(60)[0]), ds) for _ in range(2)]
    value, limits = realism.utility(*sides, SETTINGS)
    assert low <= value <= high and limits[0] <= value <= limits[1]


def test_too_few_people_are_named():
    """Would fall: that a small cohort gives a reason instead of a number."""
    assert fidelity.too_few({"real DS": 3, "real euploid": 90}) == "3 people in real DS, 5 needed"
    assert fidelity.too_few({"real DS": 5}) is None


def test_regions_that_go_together_are_seen_to():
    """Would fall: that samples keep how regions vary together, beside what real halves agree in."""
    rng = np.random.default_rng(0)
    mixing = np.eye(len(REGIONS)) + 0.4 * rng.normal(size=(len(REGIONS), len(REGIONS)))

    def mixed(some: morphology.People, mixing: np.ndarray) -> morphology.People:
        return some._replace(logs=some.logs @ mixing)

    real = mixed(_cohort(200, 100, 1), mixing)
    alike = morphology.covariance(real, mixed(_cohort(200, 200, 2), mixing), SETTINGS)
    apart = morphology.covariance(real, _cohort(200, 200, 3), SETTINGS)
    assert alike["agreement"] > 0.9 and alike["floor"] > 0.8 and apart["agreement"] < 0.6
    flat = morphology.covariance(real, real._replace(logs=0.5 * real.logs), SETTINGS)
    assert flat["sd_ratio"] == pytest.approx(0.5)


def test_slopes_of_age_are_those_planted():
    """Would fall: what age does to synthetic brains."""
    some = _cohort(400, 400, 4)
    rows = morphology.age_slopes({"real": some, "synthetic": some._replace(logs=2 * some.logs)})
    for row in rows:
        assert abs(row["real"] + 0.05) < 4 * row["real_se"]
        assert row["synthetic"] == pytest.approx(2 * row["real"])


def test_a_request_that_is_ignored_shows_in_the_age_that_is_read():
    """Would fall: requested against measured age; ages are read by a model of real people."""
    sides = {"kept": _cohort(300, 300, 6), "ignored": _cohort(300, 300, 7)}
    shuffled = np.random.default_rng(0).permutation(600)
    codes = sides["ignored"].covariates.copy()
    codes[:, 0] = codes[shuffled, 0]
    sides["ignored"] = sides["ignored"]._replace(covariates=codes)
    rows = morphology.measured_age(_cohort(300, 300, 5), sides)
    found = {(row["people"], row["group"]): row["correlation"] for row in rows}
    assert min(found["kept", "euploid"], found["kept", "DS"]) > 0.5
    assert abs(found["ignored", "euploid"]) < 0.2


def test_samples_help_where_people_are_few():
    """Would fall: the gain of real and synthetic people over real ones alone."""
    rng = np.random.default_rng(8)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        ds = np.repeat([False, True], count)
        return rng.normal(size=(2 * count, 30)) + np.outer(ds, np.full(30, 0.35)), ds

    test, settings = draw(150), SETTINGS
    rows = realism.augmentation(draw(100), draw(200), test, settings)
    gains = {row["real people a group"]: row["gain"] for row in rows}
    assert gains[10] > 0.05 and gains[10] > gains[90] - 0.02
    noise = rng.normal(size=(400, 30)), np.repeat([False, True], 200)
    assert realism.augmentation(draw(100), noise, test, settings)[0]["gain"] < 0.05


def test_blur_shows_in_the_detail_of_a_brain():
    """Would fall: KID of fine detail, the only one that sees blur."""
    rng, brain = np.random.default_rng(9), np.ones((24, 24, 24), bool)
    sharp = rng.normal(size=(6, 24, 24, 24))
    soft = ndimage.gaussian_filter(sharp, (0, 1, 1, 1))
    one, two = (realism.detail(some, brain) for some in (sharp, soft))
    assert (two[:, 4:8] < one[:, 4:8] - 2).all() and (two[:, 8:] < one[:, 8:]).all()

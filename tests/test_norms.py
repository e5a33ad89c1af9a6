"""The norm and its error control, against planted truths."""

import numpy as np
import pytest
from scipy import stats

from dsnb.checks import BadInput
from dsnb.norms import Calibration, ComponentNorm, Normative, generic_change, smooth
from dsnb.rivals import log_determinant
from dsnb.space import GRIDS, load_template

GRID = GRIDS["smoke"]
BRAIN = load_template(GRID).brain


def test_z_of_new_people_follows_students_t():
    """Falls: the claim that z is predictive, exact at any number of scale people."""
    rng = np.random.default_rng(0)
    z = []
    for _ in range(40):
        covariates = rng.normal(size=(14, 2))
        maps = covariates @ rng.normal(size=(2, 300)) + rng.normal(size=(14, 300)) * 3
        z.append(Normative.fit(maps[:8], covariates[:8]).z(maps[8:], covariates[8:]))
    pooled = np.stack(z).ravel()
    assert stats.kstest(pooled[::7], stats.t(5).cdf).pvalue > 0.001
    for level in (0.05, 0.01):
        assert np.mean(np.abs(pooled) > stats.t.isf(level / 2, 5)) == pytest.approx(level, rel=0.1)


def test_covariates_are_taken_out():
    """Falls: the claim that an old euploid is compared with old euploids."""
    rng = np.random.default_rng(1)
    covariates = rng.normal(size=(60, 2))
    features = 5 + covariates @ np.array([[2.0] * 30, [1.0] * 30]) + rng.normal(size=(60, 30)) / 10
    norm = ComponentNorm.fit(features.astype(np.float32), covariates, 0)
    old = norm.expected(np.zeros((1, 30), np.float32), np.array([[3.0, 1.0]]), 0)
    np.testing.assert_allclose(old, 12.0, atol=0.2)


def test_common_variation_stays_and_the_rest_departs():
    """Falls: the claim that departures leave out leading components of healthy variation."""
    rng = np.random.default_rng(2)
    common, odd = np.linalg.qr(rng.normal(size=(50, 2)))[0].T
    features = rng.normal(size=(40, 1)) * 4 * common + rng.normal(size=(40, 50)) * 0.01
    covariates = rng.normal(size=(40, 2))
    norm = ComponentNorm.fit(features.astype(np.float32), covariates, 3)
    person = (3 * common + 2 * odd).astype(np.float32)[None]
    left = person - norm.expected(person, covariates[:1], 1)
    assert abs(float(left[0] @ odd) - 2) < 0.1
    assert abs(float(left[0] @ common)) < 0.1


def test_a_missing_age_is_refused():
    """Falls: the claim that no norm is fitted on a guessed age."""
    with pytest.raises(BadInput, match="E-COVARIATE"):
        ComponentNorm.fit(np.ones((4, 3), np.float32), np.array([[1.0, np.nan]] * 4), 1)


def test_conformal_factor_bounds_any_flag():
    """Falls: the promise that at most 5 % of new euploids get any voxel at q < 0.05.

    The healthy are heavy-tailed as people (each with a spread of their own), which plain BH on
    Student's t does not survive.
    """
    rng = np.random.default_rng(3)
    plain, kept = [], []
    for _ in range(40):
        spread = rng.lognormal(0, 0.3, size=(100, 1))
        z = rng.standard_normal((100, 200)) * spread
        calibration = Calibration.fit(z[:59], 50, 0.05)
        kept.append((calibration.q(z[59:]).min(1) < 0.05).mean())
        p = 2 * stats.t.sf(np.abs(z[59:]), 50)
        plain.append((stats.false_discovery_control(p, axis=1).min(1) < 0.05).mean())
    assert calibration.guarantee == pytest.approx(0.05)
    assert np.mean(plain) > 0.15
    assert 0.02 < np.mean(kept) < 0.065


def test_p_covers_after_calibration():
    """Falls: the claim that a 95 % interval holds 95 % of unseen healthy voxels."""
    z = np.random.default_rng(4).standard_normal((200, 500)) * 1.4
    calibration = Calibration.fit(z[:100], 40, 0.05)
    assert np.mean(calibration.p(z[100:]) >= 0.05) == pytest.approx(0.95, abs=0.005)


def test_a_strong_change_is_found():
    """Falls: power, the other half of every error claim."""
    rng = np.random.default_rng(5)
    calibration = Calibration.fit(rng.standard_normal((60, 1000)), 50, 0.05)
    z = rng.standard_normal((1, 1000))
    z[:, :100] += 8
    q = calibration.q(z)[0]
    assert (q[:100] < 0.05).mean() > 0.9
    assert (q[100:] < 0.05).mean() < 0.02


def test_smoothing_counts_brain_voxels_only():
    """Falls: the claim that the brain's edge is not dimmed by the empty outside."""
    ones = np.ones((1, int(BRAIN.sum())), np.float32)
    np.testing.assert_allclose(smooth(ones, BRAIN, 9.0, GRID), 1, rtol=1e-5)
    noise = np.random.default_rng(6).standard_normal(ones.shape).astype(np.float32)
    assert smooth(noise, BRAIN, 9.0, GRID).std() < 0.5 * noise.std()


@pytest.mark.parametrize("seed", [0, 1])
def test_generic_change_is_its_own_truth_and_does_not_fold(seed):
    """Falls: the truth that smoothing and components are tuned on."""
    field, change = generic_change(BRAIN, GRID, seed)
    np.testing.assert_allclose(change, -log_determinant(field, GRID.voxel_mm), atol=1e-6)
    assert np.abs(change).max() < 2.9
    assert 0.1 < (np.abs(change[BRAIN]) > 0.1).mean() < 0.35
    assert not np.allclose(field, generic_change(BRAIN, GRID, seed + 2)[0])

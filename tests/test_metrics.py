"""What two volumes are told to differ by, against planted differences."""

import numpy as np
import pytest
from scipy import ndimage

from dsnb import rivals, vae
from dsnb.config import load_study, replace
from dsnb.space import REGIONS, load_template
from dsnb.vae.metrics import BANDS

SIDE = 32
INSIDE = sum((axis - 15.5) ** 2 for axis in np.indices((SIDE,) * 3)) < 14**2


def test_psnr_and_ssim_have_known_answers():
    """Claim: 0.1 off everywhere is 20 dB; constants have Wang's SSIM; outside the brain is moot."""
    inside = np.zeros((16, 16, 16), bool)
    inside[6:10, 6:10, 6:10] = True
    one, other = np.full((1, 16, 16, 16), 0.5), np.full((1, 16, 16, 16), 0.6)
    assert vae.psnr_db(one, other, inside) == pytest.approx(20, abs=1e-4)
    assert vae.ssim(one, one, inside) == pytest.approx(1)
    wanted = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    assert vae.ssim(one, other, inside) == pytest.approx(wanted, abs=0.005)  # fp32 variances
    other[:, 0] = 9
    assert vae.psnr_db(one, other, inside) == pytest.approx(20, abs=1e-4)


def test_ssim_falls_with_noise():
    """Claim: structure counts: louder noise over the same texture is less similar."""
    rng = np.random.default_rng(0)
    texture = rng.random((1, SIDE, SIDE, SIDE))
    noise = rng.normal(size=texture.shape)
    found = [vae.ssim(texture + sd * noise, texture, INSIDE)[0] for sd in (0, 0.05, 0.2)]
    assert found[0] == pytest.approx(1) and found[1] > found[2] + 0.1


def sine(period: float, axis: int = 0) -> np.ndarray:
    """Return a wave of this many voxels, (1, SIDE, SIDE, SIDE)."""
    return np.sin(2 * np.pi * np.indices((SIDE,) * 3)[axis] / period)[None]


@pytest.mark.parametrize("period, axis", [(8, 0), (4, 2)])
def test_the_spectrum_of_a_sine_peaks_at_its_frequency(period, axis):
    """Claim: frequencies are cycles a voxel, whatever the direction."""
    frequencies, power = vae.radial_spectrum(sine(period, axis), INSIDE)
    assert abs(frequencies[power.argmax()] - 1 / period) <= 0.5 / SIDE + 1e-9
    assert power[np.abs(frequencies - 1 / period) > 0.08].sum() < 0.05 * power.sum()


def test_the_spectrum_knows_neither_level_nor_outline():
    """Claim: a level has no power, the head's outline hardly any; twice the wave has four times."""
    one, two = (vae.radial_spectrum(k * sine(8), INSIDE)[1] for k in (1, 2))
    level = np.full((1, SIDE, SIDE, SIDE), 0.7)
    assert vae.radial_spectrum(level, INSIDE)[1].max() < 1e-9 * one.max()
    assert vae.radial_spectrum(level * INSIDE, INSIDE)[1].max() < 2e-3 * one.max()
    np.testing.assert_allclose(two, 4 * one, rtol=1e-3, atol=1e-6 * two.max())


def test_residual_bands_say_where_the_loss_lies():
    """Claim: a tenth left over is -20 dB in every band; blur leaves the high ones over."""
    given = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(2, *INSIDE.shape)),
                                    (0, 0.7, 0.7, 0.7))  # fmt: skip
    rows = vae.residual_bands(0.9 * given, given, INSIDE)
    assert [(row["from"], row["to"]) for row in rows] == [*zip(BANDS, BANDS[1:])]
    np.testing.assert_allclose([row["residual_db"] for row in rows], -20, atol=1e-3)
    blurred = ndimage.gaussian_filter(given, (0, 1.5, 1.5, 1.5))
    left = [row["residual_db"] for row in vae.residual_bands(blurred, given, INSIDE)]
    assert left == sorted(left) and left[-1] > -1 and left[0] < -10


def test_region_errors_tell_bias_from_spread():
    """Claim: 3 % for everybody is bias; +-2 % is spread and no bias; both are error."""
    before = np.random.default_rng(0).normal(2, 0.1, (6, len(REGIONS)))
    after, names = before.copy(), list(REGIONS)
    after[:, 0] += np.log(1.03)
    after[:, 1] += np.log([1.02, 0.98] * 3)
    found = vae.region_errors(before, after)
    assert list(found) == names
    assert found[names[0]] == pytest.approx({"bias_pct": 3, "spread_pct": 0, "error_pct": 3})
    spread = 2 * np.sqrt(6 / 5)
    assert found[names[1]] == pytest.approx({"bias_pct": 0, "spread_pct": spread, "error_pct": 2})
    assert found[names[2]]["error_pct"] == 0


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_effect_kept_is_the_planted_share(share):
    """Claim: it is the effect's slope, whatever people share and whatever all volumes gain."""
    rng = np.random.default_rng(1)
    people, effect = rng.normal(2, 0.3, (8, 1, 13)), rng.normal(0, 0.2, 13)
    with_it = np.array([1, 0])[None, :, None]  # pairs: with the condition first
    before = (people + with_it * effect).reshape(16, 13)
    after = (0.5 * people + 0.1 + with_it * share * effect).reshape(16, 13)
    without = np.tile([False, True], 8)
    assert vae.effect_kept(before, after, without) == pytest.approx(share, abs=1e-9)
    assert vae.effect_kept(before, after, ~without) == pytest.approx(share, abs=1e-9)


def test_region_logs_grow_with_the_person():
    """Claim: a person swollen about the centre has larger regions, by the registration's ruler."""
    study = load_study("smoke")
    study = replace(study, maps=replace(study.maps, demons_iterations=15, processes=1))
    template, grid = load_template(study.grid).t1w, study.grid
    field = -0.06 * (grid.coordinates_mm() - np.array([0, -17, 5.0]).reshape(3, 1, 1, 1))
    swollen = rivals.warp(template, field, grid.voxel_mm)  # reads nearer the centre
    logs = vae.region_logs(np.stack([swollen, template]), template, study)
    assert logs.shape == (2, len(REGIONS))
    gain = logs[0] - logs[1]
    assert np.median(gain) > 0.06 and (gain > 0).mean() > 0.8

"""What a decoder leaves out is drawn with the spread and the spectrum that it had."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from dsnb import vae
from dsnb.diffusion import remainder
from dsnb.diffusion.remainder import slopes


def _coloured(count: int, seed: int, sigma: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=(24, 24, 24)), sigma, mode="wrap")
              for _ in range(count)]  # fmt: skip
    return np.stack(fields) / np.std(fields)


def test_noise_takes_on_the_spectrum_and_keeps_its_variance():
    """Would fall: synthetic people would have white noise outside the components."""
    wanted = remainder.amplitude(_coloured(20, 0, 1.0))
    white = torch.from_numpy(np.random.default_rng(1).normal(size=(10, 24, 24, 24))).float()
    made = remainder.colour(white, torch.from_numpy(wanted)).numpy()
    assert made.std() == pytest.approx(1, abs=0.05)
    found = remainder.amplitude(made)
    assert np.corrcoef(np.log(found.ravel() + 1e-3), np.log(wanted.ravel() + 1e-3))[0, 1] > 0.98


def test_remainders_keep_the_spread_of_places_and_how_channels_go_together():
    """Would fall: what synthetic people have outside the components."""
    rng = np.random.default_rng(2)
    one, two = (_coloured(60, seed, 0.8) for seed in (3, 4))
    left = np.stack([one, 0.8 * one + 0.6 * two], axis=1)
    left *= np.linspace(0.5, 2, 24)[:, None, None]
    parts = remainder.fit_remainder(left)
    noise = torch.from_numpy(rng.normal(size=left.shape)).float()
    tables = (torch.as_tensor(value).float() for value in parts.values())
    drawn = remainder.draw_remainder(noise, *tables).numpy()
    edges = drawn.std((0, 1, 3, 4)) / left.std((0, 1, 3, 4))
    assert np.abs(edges - 1).max() < 0.15
    alike = np.corrcoef(drawn[:, 0].ravel(), drawn[:, 1].ravel())[0, 1]
    assert alike == pytest.approx(0.8, abs=0.05)


@pytest.fixture(scope="module")
def blurred():
    """Blobs with sharp rims and faint noise, and what a smoothing drawer keeps of them."""
    rng, brain = np.random.default_rng(5), np.zeros((32, 32, 32), bool)
    brain[4:-4, 4:-4, 4:-4] = True
    smooth = [ndimage.gaussian_filter(rng.normal(size=brain.shape), 3) for _ in range(12)]
    noise = 0.01 * rng.normal(size=(12, *brain.shape))
    given = brain * (0.6 + 0.2 * (np.stack(smooth) > 0) + noise)
    drawn = np.stack([ndimage.gaussian_filter(one, 0.6) for one in given])
    return given.astype(np.float32), drawn.astype(np.float32), brain


def _slopes(volumes: np.ndarray, brain: np.ndarray, share: float) -> float:
    inner = ndimage.binary_erosion(brain, iterations=3)
    return np.quantile([slopes(one)[inner] for one in volumes], share)


def test_fine_detail_of_unseen_volumes_gets_the_power_of_scans(blurred):
    """Would fall: spectrum_error_db of the synthetic cohort."""
    given, drawn, brain = blurred
    gain = remainder.fit_gain(given[:6], drawn[:6], brain)
    made = remainder.sharpen(drawn[6:], *gain.values())
    power = [vae.radial_spectrum(some, brain)[1] for some in (given[6:], drawn[6:], made)]
    before, after = (np.abs(10 * np.log10(some / power[0])).mean() for some in power[1:])
    assert before > 3 and after < 0.5


def test_sharp_edges_come_back_and_flat_tissue_stays_flat(blurred):
    """Would fall: that samples pass by eye; noise of the same power made white matter grainy."""
    given, drawn, brain = blurred
    made = remainder.sharpen(drawn[6:], *remainder.fit_gain(given[:6], drawn[:6], brain).values())
    steep, flat = ([_slopes(some, brain, share) for some in (given[6:], drawn[6:], made)]
                   for share in (0.95, 0.3))  # fmt: skip
    assert steep[1] < 0.8 * steep[0] and steep[2] > 0.9 * steep[0]
    assert flat[2] < 1.5 * flat[0]
    closer = [np.abs(some - given[6:])[:, brain].mean() for some in (drawn[6:], made)]
    assert closer[1] < closer[0]


def test_no_detail_is_taken_away_or_raised_without_end():
    """Would fall: a decoder without any detail would have its rounding errors raised."""
    rng, brain = np.random.default_rng(7), np.ones((24, 24, 24), bool)
    given = 0.6 + 0.1 * rng.normal(size=(4, 24, 24, 24))
    dull = np.stack([ndimage.gaussian_filter(one, 4) for one in given])
    assert remainder.fit_gain(given, dull, brain)["gain"].max() == remainder.MOST_GAIN
    assert (remainder.fit_gain(dull, given, brain)["gain"] == 1).all()


def test_the_rim_around_a_brain_goes_and_specks_beside_it():
    """Would fall: region volumes of samples, 8 % too large by the ruler; air around a brain."""
    drawn = np.full((1, 12, 8, 8), 0.05, np.float32)
    drawn[:, 2:6] = 0.7
    drawn[:, 9, 4, 4] = 0.5
    made = remainder.sharpen(drawn, np.ones(4), np.linspace(0, 0.5, 4))
    assert np.allclose(made[:, 2:6], drawn[:, 2:6])
    assert (made[:, :2] == 0).all() and (made[:, 6:] == 0).all()
    louder = remainder.sharpen(drawn, np.full(4, 3.0), np.linspace(0, 0.5, 4))
    assert (louder > 0).sum() == (made > 0).sum()  # nor is the rim raised into brain


def test_ringing_beyond_the_rim_is_not_drawn():
    """Would fall: stripped scans would have bright air one voxel off the brain."""
    drawn = np.zeros((1, 24, 24, 24), np.float32)
    drawn[:, 6:18, 6:18, 6:18] = 1
    made = remainder.sharpen(drawn, np.array([1.0, 4.0]), np.array([0.1, 0.5]))
    assert (made[drawn == 0] == 0).all()
    assert not remainder.sharpen(0 * drawn, np.ones(2), np.array([0, 0.5])).any()  # no brain, none

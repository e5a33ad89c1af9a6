"""What a decoder leaves out is drawn with the spread and the spectrum that it had."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from dsnb import vae
from dsnb.diffusion import texture


def _coloured(count: int, seed: int, sigma: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=(24, 24, 24)), sigma, mode="wrap")
              for _ in range(count)]  # fmt: skip
    return np.stack(fields) / np.std(fields)


def test_noise_takes_on_the_spectrum_and_keeps_its_variance():
    """Would fall: the sharpness of every sample; white noise would look like snow."""
    wanted = texture.amplitude(_coloured(20, 0, 1.0))
    white = torch.from_numpy(np.random.default_rng(1).normal(size=(10, 24, 24, 24))).float()
    made = texture.colour(white, torch.from_numpy(wanted)).numpy()
    assert made.std() == pytest.approx(1, abs=0.05)
    found = texture.amplitude(made)
    assert np.corrcoef(np.log(found.ravel() + 1e-3), np.log(wanted.ravel() + 1e-3))[0, 1] > 0.98


def test_remainders_keep_the_spread_of_places_and_how_channels_go_together():
    """Would fall: what synthetic people have outside the components."""
    rng = np.random.default_rng(2)
    one, two = (_coloured(60, seed, 0.8) for seed in (3, 4))
    left = np.stack([one, 0.8 * one + 0.6 * two], axis=1)
    left *= np.linspace(0.5, 2, 24)[:, None, None]
    parts = texture.fit_remainder(left)
    noise = torch.from_numpy(rng.normal(size=left.shape)).float()
    tables = (torch.as_tensor(value).float() for value in parts.values())
    drawn = texture.draw_remainder(noise, *tables).numpy()
    edges = drawn.std((0, 1, 3, 4)) / left.std((0, 1, 3, 4))
    assert np.abs(edges - 1).max() < 0.15
    alike = np.corrcoef(drawn[:, 0].ravel(), drawn[:, 1].ravel())[0, 1]
    assert alike == pytest.approx(0.8, abs=0.05)


def test_texture_is_as_loud_as_what_was_left_and_louder_at_edges():
    """Would fall: spectrum_error_db of the synthetic cohort."""
    rng, brain = np.random.default_rng(5), np.ones((24, 24, 24), bool)
    drawn = np.full((12, 24, 24, 24), 0.5)
    drawn[:, 12:] = 0.9
    steep = np.abs(np.arange(24) - 11.5) < 1
    spread = np.where(steep, 0.1, 0.02)[:, None, None]
    given = drawn + spread * rng.normal(size=drawn.shape)
    fine = texture.fit_texture(given, drawn, brain)
    flow = SimpleNamespace(**{name: torch.as_tensor(value) for name, value in fine.items()})
    noise = torch.from_numpy(rng.normal(size=drawn.shape)).float()
    made = texture.add_texture(torch.from_numpy(drawn).float(), noise, flow).numpy() - drawn
    assert made[:, steep].std() == pytest.approx(0.1, rel=0.15)
    assert made[:, ~steep].std() == pytest.approx(0.02, rel=0.25)
    real, synthetic = (vae.radial_spectrum(some, brain)[1] for some in (given, drawn + made))
    assert np.abs(10 * np.log10(synthetic / real)).mean() < 1


def test_the_rim_around_a_brain_goes():
    """Would fall: region volumes of samples, 8 % too large by the ruler."""
    flow = SimpleNamespace(texture=torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
                           texture_power=torch.ones(4),
                           texture_frequency=torch.linspace(0, 0.5, 4))  # fmt: skip
    drawn = torch.full((1, 8, 8, 8), 0.05)
    drawn[:, 2:6] = 0.7
    made = texture.add_texture(drawn, torch.randn(1, 8, 8, 8), flow)
    assert (made[:, :2] == 0).all() and torch.allclose(made[:, 2:6], drawn[:, 2:6])

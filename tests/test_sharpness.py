"""Ways to make a drawn brain sharp: one ruler for all, and each does what its name says."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from dsnb import vae
from dsnb.search import sharpness

SHAPE = (28, 36, 28)


@pytest.fixture(scope="module")
def scans() -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = [ndimage.gaussian_filter(rng.normal(size=SHAPE), 2) for _ in range(6)]
    noise = 0.01 * rng.normal(size=(6, *SHAPE))
    return (0.6 + 0.2 * (np.stack(smooth) > 0) + noise).astype(np.float32)


def test_the_ruler_says_nothing_of_scans_and_tells_blur(scans, monkeypatch):
    """Would fall: the table of page 07; a blurred drawing would pass for a sharp one."""
    monkeypatch.setattr(sharpness.vae, "reconstruct", lambda model, volumes: volumes)
    trial = SimpleNamespace(volumes=scans, test=np.arange(6), brain=np.ones(SHAPE, bool),
                            pairs=())  # fmt: skip
    same = sharpness.judge(trial, None, lambda some: some + 1e-5)
    assert same["spectrum_db"] < 0.01 and same["flat"] == pytest.approx(1, abs=0.01)
    blur = sharpness.judge(
        trial, None, lambda some: np.stack([ndimage.gaussian_filter(one, 1) for one in some])
    )
    assert blur["spectrum_db"] > 3 and blur["steep"] < 0.8 and blur["psnr_db"] < same["psnr_db"]


def test_noise_is_as_loud_as_what_is_lacking_and_louder_at_edges():
    """Would fall: that the rival of the gain was given its due."""
    rng, brain = np.random.default_rng(5), np.ones((24, 24, 24), bool)
    drawn = np.full((12, 24, 24, 24), 0.5)
    drawn[:, 12:] = 0.9
    steep = np.abs(np.arange(24) - 11.5) < 1
    spread = np.where(steep, 0.1, 0.02)[:, None, None]
    given = drawn + spread * rng.normal(size=drawn.shape)
    made = sharpness.noisy(given, drawn, brain)(drawn) - drawn
    assert made[:, steep].std() == pytest.approx(0.1, rel=0.15)
    assert made[:, ~steep].std() == pytest.approx(0.02, rel=0.25)
    real, synthetic = (vae.radial_spectrum(some, brain)[1] for some in (given, drawn + made))
    assert np.abs(10 * np.log10(synthetic / real)).mean() < 1


def test_a_refinement_network_begins_with_what_is_drawn(scans):
    """Would fall: that what it changes, it has learnt."""
    refined = sharpness.refine(sharpness.Refiner(), scans[:2])
    np.testing.assert_allclose(refined, scans[:2], atol=1e-6)
    model = sharpness.Refiner()
    torch.nn.init.normal_(model.net.conv_final[-1].conv.bias)
    assert np.abs(sharpness.refine(model, scans[:2]) - scans[:2]).max() > 0.1

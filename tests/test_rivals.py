"""Registration and estimated volumes, against planted deformations."""

import dataclasses

import numpy as np
import pytest

from dsnb import rivals
from dsnb.config import load_study
from dsnb.space import REGIONS, load_template, region_masks

STUDY = load_study("smoke")
STUDY = dataclasses.replace(
    STUDY, maps=dataclasses.replace(STUDY.maps, demons_iterations=30, processes=1)
)
GRID = STUDY.grid
T1W = load_template(GRID).t1w
CENTRE = np.array([0.0, -17.0, 5.0]).reshape(3, 1, 1, 1)


def expansion(gain: float, radius_mm: float = 30) -> np.ndarray:
    """Return the forward displacement (3, X, Y, Z) mm swelling the middle by about e^(3 gain)."""
    offset = GRID.coordinates_mm() - CENTRE
    return gain * offset * np.exp(-(offset**2).sum(0) / (2 * radius_mm**2))


def test_planted_expansion_has_a_positive_log_jacobian():
    """Falls: the sign of every TBM map (positive = the person is larger than the template)."""
    person = rivals.warp(T1W, rivals.invert_field(expansion(0.12), GRID.voxel_mm), GRID.voxel_mm)
    found = rivals.register_volumes(np.stack([person, T1W]), T1W, STUDY)
    truth = rivals.log_determinant(expansion(0.12), GRID.voxel_mm)
    middle = truth > 0.2
    assert middle.sum() > 500
    assert found[0][middle].mean() > 0.3 * truth[middle].mean()
    assert abs(found[1][middle].mean()) < 0.02
    brain = load_template(GRID).brain
    assert np.corrcoef(found[0][brain], truth[brain])[0, 1] > 0.6


def test_log_determinant_of_a_known_scaling():
    """Falls: the unit of the log-Jacobian (natural log of the volume ratio)."""
    axes = np.array([1.1, 0.9, 1.2]).reshape(3, 1, 1, 1) - 1
    found = rivals.log_determinant(axes * GRID.coordinates_mm(), GRID.voxel_mm)
    np.testing.assert_allclose(found, np.log(1.1 * 0.9 * 1.2), atol=1e-4)


def test_inverse_field_undoes_the_field():
    """Falls: the claim that TBM is judged in the person's own grid, where the truth is."""
    field = expansion(0.1)
    inverse = rivals.invert_field(field, GRID.voxel_mm)
    back = inverse + np.stack([rivals.warp(part, inverse, GRID.voxel_mm) for part in field])
    assert np.abs(field).max() > 1.5
    assert np.abs(back).max() < 0.2


def test_region_volumes_are_masks_times_local_volume():
    """Falls: estimated region volumes in ml."""
    expected = region_masks(GRID).sum((1, 2, 3)) * GRID.voxel_ml
    flat = np.stack([np.zeros(GRID.shape), np.full(GRID.shape, np.log(1.1))])
    found = rivals.region_volumes(flat.astype(np.float32), GRID)
    assert found.shape == (2, len(REGIONS))
    np.testing.assert_allclose(found[0], expected, rtol=1e-3)
    np.testing.assert_allclose(found[1], 1.1 * expected, rtol=1e-3)


def test_template_is_sharper_than_the_mean_and_keeps_its_shape():
    """Falls: the claim that people are registered to a re-sharpened, un-biased template."""
    gains = (-0.3, -0.15, 0.15, 0.3)
    people = np.stack([rivals.warp(T1W, expansion(gain), GRID.voxel_mm) for gain in gains])
    template = rivals.fit_template(people, STUDY)

    def error(volume: np.ndarray) -> float:
        return float(np.sqrt(((volume - T1W)[load_template(GRID).brain] ** 2).mean()))

    assert error(template) < 0.8 * error(people.mean(0))


def test_an_unfinished_registration_goes_on(tmp_path, monkeypatch):
    """Falls: the claim that a killed registration resumes instead of starting again."""
    volumes = np.stack([T1W, T1W, rivals.warp(T1W, expansion(0.1), GRID.voxel_mm)])
    monkeypatch.setattr(rivals, "BLOCK", 1)
    honest, calls = rivals.register_volume, []

    def dies_at_the_third(*inputs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(*inputs)

    monkeypatch.setattr(rivals, "register_volume", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        rivals._register_rows(tmp_path, volumes, np.arange(3), T1W, STUDY)
    assert np.load(tmp_path / "registered.npy").tolist() == [True, True, False]
    rivals._register_rows(tmp_path, volumes, np.arange(3), T1W, STUDY)
    assert len(calls) == 4
    assert np.abs(np.load(tmp_path / "log_jacobian.npy")[2]).max() > 0.02

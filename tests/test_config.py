"""Presets: known by name, refused otherwise, and honest about where they were run."""

import pytest

from dsnb import config
from dsnb.checks import BadInput


def test_presets_agree_with_the_grids():
    """A latent must fit its grid: else the decoder returns another shape."""
    for study in config.PRESETS.values():
        assert all(size % 8 == 0 for size in study.grid.shape)  # an eighth, halved three times
        assert study.wall_time and study.hardware


def test_an_unknown_preset_is_refused_by_name():
    """A misspelt preset never falls back to a default."""
    with pytest.raises(BadInput, match="E-PRESET.*'tiny'.*smoke, small, medium, full"):
        config.load_study("tiny")

"""Healthy people's maps on a new scanner: which fault is which, and what re-centring mends."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dsnb import config
from dsnb.norms import Calibration, Normative
from dsnb.search import shift
from dsnb.sites import recentre


def test_each_fault_of_the_scanner_is_one_and_none_is_none(monkeypatch):
    """Falls: the table of faults: a row named after a fault has that one and no other."""
    person = {"contrast": 0.3, "gain": 0.1, "bias": 0.2, "noise": 0.1, "blur_mm": 5.0}
    seen = {}

    def scan(volume, name, study):
        seen[name] = {fault: getattr(study.sites, fault) for fault in shift.SOUND}
        return volume

    monkeypatch.setattr(shift, "rescan", scan)
    source = SimpleNamespace(
        study=config.replace(config.SMOKE, sites=config.replace(config.SMOKE.sites, **person)),
        volumes=np.ones((9, 2, 2, 2)), from_volumes=lambda table, volumes, moved: volumes,
        grid=config.SMOKE.grid,
    )  # fmt: skip
    for row, fault in enumerate(shift.FAULTS):
        table = {"participant_id": [fault] * 9, "age": 40.0, "sex": "F"}
        source.table = pd.DataFrame(table)
        assert shift.scan_again(source, np.array([row]), fault).shape == (1, 2, 2, 2)
    assert seen["none"] == shift.SOUND and seen["all"] == person
    for name in shift.SOUND:
        assert seen[name] == shift.SOUND | {name: person[name]}


def test_a_head_that_moves_leaves_a_ghost(monkeypatch):
    """Falls: the row of motion: a still head is left alone, a moved one is read in two places."""
    volume = np.zeros((24, 32, 24), np.float32)
    volume[6:18, 8:24, 6:18] = 1 + 0.1 * np.random.default_rng(0).random((12, 16, 12))
    monkeypatch.setattr(shift, "MOVED", 0.0)
    still = shift.move(volume, np.random.default_rng(1), 4.0)
    np.testing.assert_allclose(still, volume, atol=1e-5)
    monkeypatch.setattr(shift, "MOVED", 4.0)
    moved = shift.move(volume, np.random.default_rng(1), 4.0)
    assert moved.mean() == pytest.approx(volume.mean(), rel=0.1)  # slow lines are read before
    assert np.abs(moved - volume)[volume > 0].mean() > 0.02 and (moved[volume == 0] == 0).all()


def test_recentring_on_known_people_silences_a_shifted_site():
    """Falls: the claim that a few euploids of a scanner mend its false alarms."""
    rng, people = np.random.default_rng(0), SimpleNamespace(covariates=np.zeros((60, 2)))
    here, there = rng.standard_normal((2, 60, 400))
    normative = Normative.fit(rng.standard_normal((60, 400)), rng.standard_normal((60, 2)))
    calibration = Calibration(1.0, 1.3, 0.05, normative.freedom, 0.05)
    sound = shift.judge(normative, calibration, here, people)
    faulty = shift.judge(normative, calibration, there + 4, people)
    moved = recentre(normative, 4 + rng.standard_normal((50, 400)), np.zeros((50, 2)), True)
    mended = shift.judge(moved, calibration, there + 4, people)
    assert sound["share"] < 0.2 and faulty["share"] == 1 and faulty["coverage"] < 0.3
    assert mended["share"] < 0.3 and mended["coverage"] > 0.9

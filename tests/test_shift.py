"""Healthy people's maps on a new scanner: which fault is which, and what re-centring mends."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

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
    )  # fmt: skip
    for row, fault in enumerate(shift.FAULTS):
        table = {"participant_id": [fault] * 9, "age": 40.0, "sex": "F"}
        source.table = pd.DataFrame(table)
        assert shift.scan_again(source, np.array([row]), fault).shape == (1, 2, 2, 2)
    assert seen["none"] == shift.SOUND and seen["all"] == person
    for name in shift.SOUND:
        assert seen[name] == shift.SOUND | {name: person[name]}


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

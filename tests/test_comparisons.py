"""What stands behind single maps: sessions, stages, and healthy variation, on planted truths."""

import numpy as np
import pandas as pd
import pytest

from dsnb.anomaly import comparisons, regions, tuning
from dsnb.anomaly.maps import calibrate
from dsnb.space import REGIONS, STAGES
from tests.test_anomaly import BRAIN, GRID, make_source


@pytest.fixture
def source():
    """Return people that a test may change."""
    return make_source()


def test_two_sessions_have_the_published_agreement_and_a_known_smallest_change():
    """Falls: the table of repeatability; the ratings are those of Shrout and Fleiss (1979).

    Their six targets and four judges give ICC(2,1) = 0.29.
    """
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    icc, _ = regions.repeatability(np.array(ratings, float).T[..., None])
    assert icc[0] == pytest.approx(0.29, abs=0.005)
    rng = np.random.default_rng(0)
    people = rng.standard_normal((4000, 1))
    noisy = people + 0.5 * rng.standard_normal((2, 4000, 1))
    icc, change = regions.repeatability(noisy)
    assert icc[0] == pytest.approx(1 / 1.25, abs=0.02)
    assert change[0] == pytest.approx(1.96 * np.sqrt(2) * 0.5, rel=0.05)
    assert (np.abs(noisy[1] - noisy[0]) < change).mean() == pytest.approx(0.95, abs=0.015)


def test_sessions_are_paired_by_person_whatever_their_order(source):
    """Falls: that repeatability compares a person with themselves; twice the same scan agrees."""
    test = source.rows("euploid", "test")
    again = source.table.iloc[test[::-1]].assign(kind="repeat", split="repeat")
    again["origin"] = again["participant_id"]
    again["participant_id"] += "ses2"
    source.table = pd.concat([source.table, again], ignore_index=True)
    source.order = np.r_[source.order, source.order[test[::-1]]]
    for name in ("volumes", "log_jacobian"):
        values = getattr(source, name)
        setattr(source, name, np.concatenate([values, values[test[::-1]]]))
    norm = tuning.fit_all(source)[0]["tbm"]
    ruler = calibrate(norm).ruler
    table = comparisons.compare_sessions(ruler)
    assert len(table) == len(REGIONS) and table[0]["people"] == len(test)
    assert all(row["icc"] == pytest.approx(1, abs=1e-4) for row in table)
    assert all(row["smallest_change"] < 1e-2 for row in table)
    source.table = source.table.drop(index=source.table.index[-3:])
    assert comparisons.compare_sessions(ruler) == []  # nine people are too few


def test_what_a_disease_shares_with_healthy_variation_is_measured(source):
    """Falls: the page's reason why single people are hard: a change that looks like variation.

    Euploids vary along one pattern, which the disease follows and planted changes do not.
    """
    rng, pattern = np.random.default_rng(0), np.zeros(GRID.shape, np.float32)
    pattern[10:20] = 0.1
    varied = rng.standard_normal((len(source.table), 1, 1, 1)).astype(np.float32) * pattern
    source.log_jacobian = varied + 0.001 * rng.standard_normal(varied.shape).astype(np.float32)
    ds = (source.table["group"] == "DS").to_numpy()
    source.log_jacobian[ds] = 2 * pattern
    other = np.roll(pattern, 15, 0)[BRAIN]
    source.responses = np.stack([other, -other])
    rows = {row["departure"]: row for row in comparisons.compare_with_variation(source)}
    euploid, planted, mean = (
        rows[name]["share_in_variation"]
        for name in ("one euploid, unseen", "one planted change", "mean of people with DS")
    )
    assert euploid > 0.9 and mean > 0.9 and planted < 0.1
    expected = 2 * np.sqrt((pattern[BRAIN] ** 2).mean())
    assert rows["mean of people with DS"]["rms"] == pytest.approx(expected, rel=0.35)


def test_a_stage_is_judged_by_what_it_adds(source, monkeypatch):
    """Falls: the table of stages; a ruler that sees them agrees, one that shows noise does not.

    What all people with DS share is strong, and no help: only what the stage adds counts.
    """
    rng, rows = np.random.default_rng(0), np.arange(60)
    shared, added = rng.standard_normal((2, len(REGIONS)))
    stage = np.repeat([STAGES[0], STAGES[2]], 30)
    truth = 5 * shared + (stage == STAGES[2])[:, None] * added
    source.table = pd.DataFrame({"stage": stage})
    monkeypatch.setattr(source, "rows", lambda *_: rows)
    monkeypatch.setattr(source, "has_truth", lambda _: True)
    monkeypatch.setattr(source, "people", lambda _: None)
    monkeypatch.setattr(source, "region_truth_of", lambda _: truth)
    norm = tuning.FittedNorm(tuning.BY_NAME["tbm"], None, {}, source)
    ruler = regions.Ruler(norm, None, None, {})
    noise = rng.standard_normal(truth.shape)
    for seen, low, high in ((truth + 0.3 * noise, 0.85, 1.01), (5 * shared + noise, -0.6, 0.6)):
        monkeypatch.setattr(regions.Ruler, "departures", lambda *_, seen=seen: seen)
        first, last = comparisons.compare_stages(ruler)
        assert (first["stage"], last["stage"]) == (STAGES[0], STAGES[2])
        assert first["rank_correlation"] > 0.9 and last["people"] == 30
        assert low < last["rank_correlation"] < high
        assert last["low"] <= last["rank_correlation"] <= last["high"] + 0.05

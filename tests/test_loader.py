"""Larger inputs: real steps in fresh processes, and how fast volumes reach a rank."""

import numpy as np
import pandas as pd
import pytest

from dsnb import record, scaling
from dsnb.config import PRESETS
from dsnb.scaling import loader, steps


@pytest.fixture(autouse=True)
def own_ledgers(tmp_path, monkeypatch):
    monkeypatch.setattr(record.ledger, "LEDGERS", tmp_path)


def test_a_step_at_two_millimetres(monkeypatch):
    """Falls: that the 2 mm preset trains on this machine; memory is real, near the calculated.

    The other networks, and 1 mm, stand in the ledger.
    """
    monkeypatch.setattr(steps, "STEPS", 1)
    steps._add(PRESETS["medium"], "lean", False, 1)
    (row,) = record.ledger_rows(steps.LEDGER)
    assert row["step_s"] > 0 and row["measured_mib"] == pytest.approx(
        row["calculated_mib"], rel=0.5
    )


def test_steps_are_run_once_and_read(monkeypatch):
    """Falls: that the bench resumes, and that its table has a row a configuration."""
    monkeypatch.setattr(steps, "BATCHES", {"smoke": (1,)})
    monkeypatch.setattr(steps, "NETWORKS", ("lean",))
    monkeypatch.setattr(steps, "LARGEST", ("smoke", "lean", 2))
    calls = []
    monkeypatch.setattr(
        steps.cost, "measure", lambda *words: calls.append(words) or {"measured_mib": 7.0}
    )
    monkeypatch.setattr(steps, "time_steps", lambda *words: 0.5)
    for _ in range(2):
        scaling.bench_steps()
    table, about = scaling.read_steps()
    assert len(calls) == len(table) == 4 and about == {"rows": 4, "stale": 0}
    assert table[["recompute", "volumes"]].to_numpy().tolist() == [[0, 1], [1, 1], [0, 2], [1, 2]]


def test_both_ways_read_the_same_volumes(tmp_path):
    """Falls: that the race is fair: the same people, values and order by both ways."""
    loader._draw(tmp_path, PRESETS["smoke"].grid, 3)
    rows = np.array([2, 0])
    fast, slow = (way(tmp_path, rows) for way in loader.WAYS.values())
    assert fast.shape == slow.shape == (2, 1, *PRESETS["smoke"].grid.shape)
    assert abs(fast - slow).max() < 1.1e-3 and abs(fast[0] - fast[1]).max() > 0.1


def test_the_ratio_is_that_of_rounds(monkeypatch):
    """Falls: that `ratio` is memory map over NIfTI, a median of rounds with its range."""
    monkeypatch.setattr(loader, "GRIDS", ("smoke",))
    monkeypatch.setattr(loader, "VOLUMES", {"smoke": 2})
    monkeypatch.setattr(loader, "PROCESSES", (1,))
    rates = {"memory_map": [10.0, 20.0, 30.0], "nifti": [5.0, 5.0, 5.0]}
    monkeypatch.setattr(loader, "_rates", lambda *words: rates)
    for _ in range(2):
        scaling.bench_loader()
    table, about = scaling.read_loader()
    assert about == {"rows": 1, "stale": 0}
    assert table[["ratio", "low", "high"]].to_numpy().tolist() == [[4.0, 2.0, 6.0]]
    monkeypatch.undo()
    assert loader.ROUNDS >= 9


def test_the_page_says_what_larger_grids_take():
    """Falls: that the sentences name the largest network, the ratio and what four GPUs need."""
    known = ["preset", "network", "recompute", "volumes", "measured_mib", "step_s"]
    rows = [("medium", "lean", False, 1, 100.0, 1.0), ("medium", "monai", False, 1, 900.0, 2.0),
            ("medium", "monai", False, 2, 9000.0, 9.0)]  # fmt: skip
    table = pd.DataFrame(rows, columns=known)
    fed = {"preset": ["medium"], "processes": [1], "memory_map_per_s": [50.0], "nifti_per_s": [9.0],
           "ratio": [5.0], "low": [4.0], "high": [6.0]}  # fmt: skip
    need = {"preset": ["medium"], "kind": ["weak"], "gpus": [4], "volumes_per_second_low": [7.0],
            "volumes_per_second_high": [9.0], "status": ["projected"]}  # fmt: skip
    said = scaling.tell_larger(table, pd.DataFrame(fed), pd.DataFrame(need))
    assert said == [
        "medium, one volume a step: 2 networks, at most 900 MiB (monai), 2.0 s.",
        "medium: the memory map gives 50 volumes/s a process, 5.0 times what NIfTI does "
        "(4.0 to 6.0).",
        "4 GPUs would need 7 to 9 a second, a process each (projected).",
    ]
    assert scaling.tell_larger(table, pd.DataFrame(fed), pd.DataFrame())[1:] == said[1:2]

"""The ledger: a finished run is found again, and only by its own task and its own code."""

import json

import pytest

from dsnb import record
from dsnb.record import files, ledger

TASK = {"data": "phantom", "variant": "lean", "seed": 1, "settings": {"kl": 1e-6, "widths": (8,)}}
CODE = ("toy",)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Give the ledger a folder and the package one module of its own."""
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path / "ledger")
    monkeypatch.setattr(files, "HOME", tmp_path)
    (tmp_path / "toy.py").write_text('"""A module."""\nVALUE = 1\n')
    files.code_digest.cache_clear()
    yield tmp_path
    files.code_digest.cache_clear()


def test_a_row_is_found_again():
    """Claim: what was run is found with its values, seed and versions, and is not run again."""
    key = record.row_key(TASK, CODE)
    assert record.find_row("03_toy", key) is None and record.ledger_rows("03_toy") == []
    record.add_row("03_toy", key, {"psnr_db": 25.0})
    row = record.find_row("03_toy", record.row_key(TASK, CODE))
    assert row["psnr_db"] == 25.0 and row["seed"] == 1 and row["variant"] == "lean"
    assert {"commit", "packages", "threads", "python"} <= set(row)
    record.add_row("03_toy", key, {"psnr_db": 26.0})
    assert record.find_row("03_toy", key)["psnr_db"] == 26.0  # the last word counts


@pytest.mark.parametrize("change", [{"seed": 2}, {"data": "real"}, {"settings": {"kl": 1e-5}}])
def test_another_task_is_another_row(change):
    """Claim: no other seed, cohort or setting is taken for this one."""
    record.add_row("03_toy", record.row_key(TASK, CODE), {"psnr_db": 25.0})
    assert record.find_row("03_toy", record.row_key(TASK | change, CODE)) is None


def test_other_code_makes_a_row_stale(home):
    """Claim: a changed number in the code outdates a row; a changed comment does not."""
    record.add_row("03_toy", record.row_key(TASK, CODE), {"psnr_db": 25.0})
    (home / "toy.py").write_text('"""Another word."""\nVALUE = 1  # and a comment\n')
    files.code_digest.cache_clear()  # as in a later process
    row = record.find_row("03_toy", record.row_key(TASK, CODE))
    assert row and not record.is_stale(row, CODE)
    (home / "toy.py").write_text("VALUE = 2\n")
    files.code_digest.cache_clear()
    assert record.find_row("03_toy", record.row_key(TASK, CODE)) is None
    assert record.is_stale(record.ledger_rows("03_toy")[0], CODE)


def test_rows_are_chosen_by_what_is_wanted(home):
    """Claim: rows are one JSON line each, and all wished-for values must hold, tuples as lists."""
    for seed in (1, 2):
        record.add_row("03_toy", record.row_key(TASK | {"seed": seed}, CODE), {"psnr_db": seed})
    assert len((home / "ledger/03_toy.jsonl").read_text().splitlines()) == 2
    assert [row["psnr_db"] for row in record.ledger_rows("03_toy", seed=2)] == [2]
    assert record.ledger_rows("03_toy", seed=2, data="real") == []
    assert len(record.ledger_rows("03_toy", settings=TASK["settings"])) == 2


def test_what_is_not_finite_is_no_row(home):
    """Claim: a measure that failed stops the run instead of standing in the ledger."""
    with pytest.raises(ValueError, match="not finite"):
        record.add_row("03_toy", record.row_key(TASK, CODE), {"psnr_db": float("nan")})
    assert record.ledger_rows("03_toy") == []
    key = record.row_key(TASK, CODE)
    assert json.loads(json.dumps(key)) == key

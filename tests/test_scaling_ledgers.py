"""Ledger rows: steps under the launcher, runs to a target score, and what all of it took."""

import numpy as np
import pandas as pd
import pytest
import tiny

from dsnb import launcher, record, scaling
from dsnb.checks import BadInput
from dsnb.config import replace
from dsnb.record import ledger
from dsnb.scaling import batches, cluster, tables

CHILD = """import sys
from pathlib import Path
from dsnb import __main__ as command
from dsnb.record import ledger
ledger.LEDGERS = Path(sys.argv.pop(1))
sys.exit(command.main())
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.make_root(tmp_path_factory.mktemp("cluster"))


@pytest.fixture
def ledgers(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path / "ledger")
    return tmp_path / "ledger"


def test_the_launcher_benchmarks_any_number_of_ranks(root, ledgers, tmp_path, monkeypatch):
    """Claim: two launched processes add one row, with ranks, device, parts and memory."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("DSNB_DEVICE", "cpu")
    words = ["--nnodes", "1", "--nproc-per-node", "2", str(script), str(ledgers), "bench",
             "cluster", "--preset", "smoke", "--data-root", str(root), "--vae.width", "8",
             "--scaling.cluster-steps", "2"]  # fmt: skip
    assert launcher.main(words) == 0
    (row,) = record.ledger_rows(cluster.LEDGER)
    assert (row["world"], row["nodes"], row["backend"]) == (2, 1, "gloo")
    assert row["preset"] == "smoke" and row["device"].startswith("CPU")
    table = scaling.read_cluster()
    assert table["kind"].tolist() == ["strong", "weak"] and table["batch"].tolist() == [8, 4]
    assert np.allclose(table["volumes_per_second"] * table["step_s"], table["batch"], rtol=1e-4)
    parts = table[["load_s", "forward_s", "backward_s", "update_s"]]
    assert (parts > 0).all(axis=None) and (parts.sum(axis=1) < 1.5 * table["apart_s"]).all()
    assert (table["peak_mib"] > 50).all() and table["efficiency"].isna().all()
    assert not len(scaling.read_cluster(gpus=True)), "processors are no GPUs"


def test_one_process_is_a_row_of_its_own_and_no_run_is_repeated(root, ledgers, monkeypatch):
    """Claim: without a launcher the same benchmark runs on one rank, and only once."""
    monkeypatch.setenv("DSNB_DEVICE", "cpu")
    some = replace(tiny.STUDY.scaling, cluster_batch=4, cluster_steps=1)
    for _ in range(2):
        scaling.bench_cluster(root, replace(tiny.STUDY, scaling=some))
    assert scaling.read_cluster()["world"].tolist() == [1, 1]
    assert scaling.read_cluster()["efficiency"].tolist() == [1, 1]


def test_efficiency_on_a_cluster_is_against_one_rank(ledgers):
    """Claim: 30 volumes/s on 4 GPUs against 10 on one is 0.75, of its own kind and device."""
    about = {"preset": "full", "data": "phantom", "device": "GPU", "backend": "nccl", "code": "old"}
    for world, speed in ((1, 10.0), (4, 30.0)):
        kinds = [{"kind": "weak", "volumes_per_second": speed}]
        record.add_row(cluster.LEDGER, about | {"world": world, "nodes": 1}, {"kinds": kinds})
    assert scaling.read_cluster(gpus=True)["efficiency"].tolist() == [1.0, 0.75]


def test_the_target_is_the_defaults_and_others_stop_there(root, ledgers, monkeypatch):
    """Claim: the target is what the default reached at half; a run at it ends, once in the ledger.

    The rule: four times the batch has twice the rate, and an average as long in volumes.
    """
    some = {"BATCHES": (2, 8), "SEEDS": (1,), "VOLUMES": 96, "EVERY": 16, "JUDGED": 2}
    for name, value in some.items():
        monkeypatch.setattr(batches, name, value)
    for _ in range(2):
        batches.bench_batch(root, tiny.STUDY)
        default, other = record.ledger_rows(batches.LEDGER)
    half = next(one["db"] for one in default["curve"] if one["volumes"] == 48)
    assert default["curve"][-1]["volumes"] == 96 and other["target_db"] == round(half, 2)
    below = [one["db"] < other["target_db"] for one in other["curve"]]
    assert all(below[:-1]) and (not below[-1] or other["curve"][-1]["volumes"] == 192)
    plan, rule = (batches.settings_of(tiny.STUDY, batch, 1).training for batch in (2, 8))
    assert rule.lr == 2 * plan.lr and rule.ema == pytest.approx(plan.ema**4)


def test_volumes_to_a_target_are_read_from_the_curve(ledgers):
    """Claim: the first volumes at or above the target count, and a miss is no number."""
    curve = [{"volumes": 16 * n, "cpu_s": float(n), "db": db} for n, db in enumerate((1, 3, 2, 5))]
    for batch, target, end in ((2, None, 4), (4, 3.0, 4), (8, 3.0, 1)):
        row = {"preset": "small", "data": "phantom", "part": "batch", "change": batch, "seed": 1}
        found = {"curve": curve[:end], "target_db": target, "code": "old"}
        record.add_row(batches.LEDGER, row, found)
    table, about = scaling.read_batches("phantom")
    assert table["volumes"].tolist()[:2] == [16, 16] and table["steps"].tolist()[:2] == [8, 4]
    assert table["reached"].tolist() == [True, True, False] and table["cpu_s"].isna().tolist()[2]
    assert about["target_db"] == 3.0 and about["stale"] == 3


def test_expenses_count_what_was_counted(ledgers):
    """Claim: two hours of one core are two core-hours; a row without seconds is not free."""
    for seconds in (3600, 3600, None):
        found = {} if seconds is None else {"cpu_seconds": seconds}
        record.add_row("09_some", {"code": "old"}, found)
    record.add_row("10_other", {"code": "old"}, {})
    some, other = tables.expense_table().to_dict("records")
    assert (some["rows"], some["counted"], some["core_hours"]) == (3, 2, 2.0)
    assert some["watt_hours"] == 2 * tables.WATTS_A_CORE and np.isnan(other["core_hours"])


def test_a_batch_that_does_not_divide_is_refused(root, ledgers):
    """Claim: strong scaling of a batch over ranks that do not share it evenly is one sentence."""
    ranks = scaling.cluster.Ranks(0, 2, 0, None, False)
    with pytest.raises(BadInput, match="E-BATCH"):
        cluster.measure(root, tiny.STUDY, "strong", 3, ranks)


def test_batches_that_came_too_late_are_told_and_not_averaged():
    """Falls: that the title compares batches whose every run arrived, and names the others."""
    rows = [(2, True, 100.0, 50.0), (2, True, 200.0, 100.0), (4, True, 600.0, 150.0),
            (8, True, 300.0, 38.0), (8, False, np.nan, np.nan)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["batch", "reached", "volumes", "steps"])
    said, title = scaling.tell_batches(
        table, {"rows": 5, "data": "x", "stale": 0, "target_db": 9.0}
    )
    assert said.endswith("100% at batch 2, 100% at batch 4, 50% at batch 8.")
    assert title == "Batch 4 against 2: 4.0 times the volumes in 2.0 times the steps; too late at 8"

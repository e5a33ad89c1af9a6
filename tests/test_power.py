"""Power of group maps by redraws: known power, and no discoveries where nothing differs."""

import json

import numpy as np
import pytest
from scipy import stats

from dsnb import record, scaling
from dsnb.record import ledger
from dsnb.search import power


def test_power_and_effect_size_are_those_of_the_t_test():
    """Falls: the power table. One voxel in a pool of normals; the t-test's power is tabled."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((400, 1))
    pool = (pool - pool.mean(0)) / pool.std(0, ddof=1)
    q, d = power.redraw(pool, pool + 0.8, (20, 20), 1)
    assert d[0] == pytest.approx(0.8, abs=1e-6)
    shift = 0.8 / np.sqrt(2 / 20)
    wanted = stats.nct.sf(stats.t.isf(0.025, 38), 38, shift)  # 0.69
    assert (q < 0.05).mean() == pytest.approx(wanted, abs=0.08)
    more = power.redraw(pool, pool + 0.8, (80, 20), 1)[0]
    assert (more < 0.05).mean() > (q < 0.05).mean() + 0.05


def test_alike_pools_give_few_discoveries():
    """Falls: that power is not bought with false discoveries."""
    pool = np.random.default_rng(1).standard_normal((40, 500))
    q, d = power.redraw(pool, pool.copy(), (20, 20), 1)
    assert q.shape == (power.REDRAWS, 500) and (d == 0).all()
    assert (q < 0.05).any(1).mean() < 0.1


def test_the_table_of_studies_reads_what_was_added(tmp_path, monkeypatch):
    """Falls: that numbers of people and severities are those of the row."""
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path)
    assert scaling.read_power()[1]["rows"] == 0
    rows = [
        {"preset": "small", "data": "real", "part": {"euploids": 4 * n, "ds": n}, "change": s,
         "seed": 1, "code": record.code_digest(*power.CODE), "d": s, "power": s / n, "low": 0,
         "high": 1, "false": 0, "redraws": 200, "pool": 32} for n in (10, 20) for s in (0.5, 1.0)
    ]  # fmt: skip
    (tmp_path / f"{power.LEDGER}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    table, about = scaling.read_power()
    assert about == {"data": "real", "rows": 4, "stale": 0}
    row = table[(table["ds"] == 20) & (table["severity"] == 1.0)].iloc[0]
    assert (row["euploids"], row["power"]) == (80, 1 / 20)

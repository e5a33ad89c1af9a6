"""The race against CPU time: sweeps choose on validation people, and finished rows stay."""

import numpy as np
import pytest
import tiny
import torch

from dsnb import record, scaling
from dsnb.config import replace
from dsnb.record import ledger
from dsnb.scaling import speed

LEAN = replace(tiny.STUDY.vae)
TRIES = ({"lr": 1e-6}, {"lr": 1e-2})


@pytest.fixture
def track(tmp_path, monkeypatch):
    """Give the race two short entrants, a tiny brain and a ledger of its own."""
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path / "ledger")
    monkeypatch.setattr(speed, "MARKS", (0.3, 0.6, 1.0))
    monkeypatch.setattr(speed, "SEEDS", (1, 2))
    entrants = (
        speed.Entrant("lean", LEAN, TRIES, 0.6, 1.0),
        speed.Entrant("monai_flat", replace(LEAN, departure=False), TRIES[1:], 0.3, 0.3),
    )
    monkeypatch.setattr(speed, "_entrants", lambda: entrants)
    template = type("Template", (), {"brain": tiny.brain()})
    monkeypatch.setattr(speed.space, "load_template", lambda grid: template)
    threads = torch.get_num_threads()
    yield tiny.make_root(tmp_path)
    torch.set_num_threads(threads)


def test_a_race_fills_the_ledger_once(track, monkeypatch):
    """Claim: the sweep's best goes on with every seed; what is in the ledger is not run again."""
    scaling.bench_speed(track, tiny.STUDY.grid)
    rows = record.ledger_rows(speed.LEDGER)
    told = [(row["entrant"], row["part"], row["seed"]) for row in rows]
    assert told == [
        ("pca", "race", 0), ("lean", "sweep", 1), ("lean", "sweep", 1), ("lean", "race", 1),
        ("lean", "race", 2), ("monai_flat", "sweep", 1), ("monai_flat", "race", 1),
        ("monai_flat", "race", 2),
    ]  # fmt: skip
    assert rows[0]["pca_test_db"] > rows[0]["mean_test_db"] + 3
    sweep = {row["change"]["lr"]: row["curve"][-1]["validation_db"] for row in rows[1:3]}
    best = max(sweep, key=sweep.get)
    assert all(row["change"] == {"lr": best} for row in rows[3:5])
    for row in rows[1:]:
        marks = [point["cpu_s"] for point in row["curve"]]
        assert marks == sorted(marks) and marks[0] >= 0.3 and row["skipped"] == 0
        assert row["curve"][-1]["cpu_s"] == row["cpu_seconds"] >= row["budget_s"]
        assert all(point["volumes"] % 2 == 0 for point in row["curve"])
    monkeypatch.setattr(speed, "race", None)
    scaling.bench_speed(track, tiny.STUDY.grid)
    assert record.ledger_rows(speed.LEDGER) == rows


def test_the_rate_is_constant_after_the_warm_up():
    """Claim: one run gives the whole curve, since no schedule knows where it ends."""
    plan = speed._settings(speed._entrants()[0], {"lr": 1e-3, "width": 48}, 2)
    rate = speed.training.learning_rate
    assert plan.width == 48 and plan.training.seed == 2
    assert rate(plan.training, 0) == pytest.approx(1e-3 * 2 / speed.WARMUP)
    assert rate(plan.training, 50) == pytest.approx(1e-3) == rate(plan.training, 10**5)


def test_entrants_share_all_but_their_network():
    """Claim: the same loss, batch and optimizer for all; marks reach every budget."""
    plans = [speed._settings(entrant, entrant.tries[0], 1) for entrant in speed._entrants()]
    assert len({(p.mse, p.kl, p.training.batch, p.training.weight_decay) for p in plans}) == 1
    assert all({e.sweep_s, e.budget_s} <= {*speed.MARKS} for e in speed._entrants())
    for entrant in speed._entrants():
        for change in entrant.tries:
            speed._settings(entrant, change, 1)


def test_the_flat_network_passes_through_the_one_interface():
    """Claim: MONAI's VarAutoEncoder codes and draws like the others, without BatchNorm."""
    model = speed.FlatMonaiVae(replace(LEAN, channels=5), np.full(tiny.SHAPE, 0.5)).eval()
    given = torch.rand(2, 1, *tiny.SHAPE)
    z_mean, z_logvar = model.encode(given)
    assert z_mean.shape == z_logvar.shape == (2, 5, 1, 1, 1)
    assert torch.equal(model.reconstruct(given), model.decode(z_mean))
    assert model.decode(z_mean).shape == given.shape
    kinds = {type(part).__name__ for part in model.modules()}
    assert not [kind for kind in kinds if "BatchNorm" in kind]

"""The benchmark: real processes in turns, equal losses, and arithmetic that is checked by hand."""

import json

import numpy as np
import pytest
import tiny
import torch

from dsnb import record, scaling, training, vae
from dsnb.config import Scaling
from dsnb.scaling import parallel
from dsnb.search import count_cost


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.make_root(tmp_path_factory.mktemp("scaling"))


def test_two_processes_train_as_one(root):
    """Claim: with one global batch, 2 and 4 processes have one process's losses within 1e-6."""
    found = scaling.bench(root, tiny.STUDY)
    headline = found["headline"]
    assert set(record.HEADLINE["10_scaling"].split()) - set(headline) == {"model_error_pct"}
    assert headline["parity_error"] < 1e-6 and headline["resume_identical"] is True
    names = {row["arrangement"] for row in found["timing"]["arrangements"]}
    assert names == {"1x2", "2x1", "1x1", "2x1 weak", "2x1 apart"}
    parity = found["tables"]["parity"]
    assert len(parity) == 4 and parity[0]["1x2"] != parity[1]["1x2"]
    assert set(parity[0]) == {"step", "1x2", "2x1", "4x1", "gap_2x1", "gap_4x1"}
    assert headline["ddp_efficiency"] is None or headline["ddp_efficiency"] > 0
    assert all(row["load_ms"] > 0 and row["backward_ms"] > 0 for row in found["tables"]["split"])
    assert scaling.bench(root, tiny.STUDY) == found


def entry(seconds, loss, laps=(0.1, 0.2, 0.4, 0.1)):
    """Return what a process says of a round."""
    return {"seconds": seconds, "losses": [loss.hex(), loss.hex()], "peak_mib": 100,
            "laps": dict(zip(parallel.LAPS, laps))}  # fmt: skip


def rounds(**seconds):
    """Return four rounds an arrangement, the warm-up first; 4 s each where none are given."""
    names = parallel.arrangements(2)
    return {name: [entry(s, 1.0) for s in seconds.get(name, (9, 4, 4, 4))] for name in names}


def test_speeds_leave_out_the_warm_up_and_efficiency_is_a_ratio_of_medians():
    """Claim: 16 volumes in 2 s against 4 s is half the speed, whatever the first round took."""
    made = rounds(**{"1x2": (99, 2, 2, 50), "2x1": (1, 4, 4, 4)})
    made["2x1"][1] = entry(4, 1.5)
    found = {"rounds": made, "alike": {}, "resume_identical": True, "cores": 2}
    answer = parallel._results(found, Scaling(rounds=3, steps=4, parity_steps=3, batch=4))
    assert answer["headline"]["ddp_efficiency"] == pytest.approx(0.5)
    assert answer["timing"]["volumes_per_second"] == pytest.approx(8)
    assert answer["headline"]["parity_error"] == pytest.approx(0.5)
    lonely = parallel._results(found | {"cores": 1}, Scaling(parity_steps=3))
    assert lonely["headline"]["ddp_efficiency"] is None
    assert "1 core" in lonely["tables"]["reasons"]["weak_efficiency"]


def test_strong_and_weak_efficiency_and_the_price_of_the_sum_by_hand():
    """Claim: by hand, 1x1 takes 8 s, 2x1 5 s: strong 0.8; weak takes 10 s for twice the volumes:
    0.8, too; without summing 2x1 takes 4 s of 4 steps: the sum costs 250 ms a step.
    """
    made = rounds(**{"1x1": (9, 8, 8, 8), "2x1": (9, 5, 5, 5), "2x1 weak": (9, 10, 10, 10)})
    found = {"rounds": made, "alike": {}, "resume_identical": True, "cores": 2}
    answer = parallel._results(found, Scaling(rounds=3, steps=4, parity_steps=3, batch=4))
    assert answer["headline"]["strong_efficiency"] == pytest.approx(0.8)
    assert answer["headline"]["weak_efficiency"] == pytest.approx(0.8)
    one, both = answer["tables"]["split"]
    assert both["sum_ms"] == pytest.approx(250) and one["sum_ms"] == 0
    assert both["rest_ms"] == pytest.approx(1000 * (4 - 0.8) / 4) and both["step_ms"] == 1250
    assert both["backward_ms"] == pytest.approx(100)


def test_no_difference_is_rounded_to_zero(tmp_path):
    """Claim: a difference of 1e-7 in a loss, on its way through JSON still shows.

    Results files hold six digits: rounded losses made a parity error of exactly zero.
    """

    made = rounds()
    for name in ("1x2", "2x1"):
        made[name] = [entry(1.0, 0.1)] * 4
    alike = {"4x1": [entry(1.0, 0.1)] * 3 + [entry(1.0, 0.1 * (1 + 1e-7))]}
    found = {"rounds": made, "alike": alike, "cores": 2}
    record.write_json(tmp_path / "bench.json", found | {"resume_identical": True})
    found = json.loads((tmp_path / "bench.json").read_text())
    headline = parallel._results(found, Scaling(rounds=3, steps=2))["headline"]
    assert headline["parity_error"] == pytest.approx(1e-7, rel=1e-3)


def test_a_forgetful_resume_is_noticed(root, tmp_path, monkeypatch):
    """Claim: a checkpoint that forgets the average fails the comparison, though losses agree."""
    assert scaling.resumes_identically(root, tmp_path / "good", tiny.STUDY)
    restore = training.State.restore

    def forgetful(state, run, payload):
        fresh = {name: value.clone() for name, value in state.ema.state_dict().items()}
        restore(state, run, payload)
        state.ema.load_state_dict(fresh)

    monkeypatch.setattr(training.State, "restore", forgetful)
    assert not scaling.resumes_identically(root, tmp_path / "bad", tiny.STUDY)


def test_the_flop_count_is_that_of_the_convolutions(root):
    """Claim: the GFLOP are those of the 3x3x3 convolutions, forward and twice backward."""
    settings = tiny.STUDY.vae
    forward = 2 * 27 * 4**3 * (64 * 8 + 2 * 8 * 8 + 2 * 8 + 2 * 8 * 8 + 8 * 64) / 1e9
    task = vae.VaeTask(root, settings, torch.device("cpu"))
    measured = count_cost(task)["gigaflop"]
    assert settings.width == 8 and 2.5 * forward < measured < 3.2 * forward
    assert np.isfinite(measured)

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
    assert set(headline) == set(record.HEADLINE["10_scaling"].split())
    assert headline["parity_error"] < 1e-6 and headline["resume_identical"] is True
    assert {row["arrangement"] for row in found["timing"]["arrangements"]} == {"1x2", "2x1"}
    parity = found["tables"]["parity"]
    assert len(parity) == 4 and parity[0]["1x2"] != parity[1]["1x2"]
    assert headline["ddp_efficiency"] is None or headline["ddp_efficiency"] > 0
    assert scaling.bench(root, tiny.STUDY) == found


def test_speeds_leave_out_the_warm_up_and_efficiency_is_a_ratio_of_medians():
    """Claim: 16 volumes in 2 s against 4 s is half the speed, whatever the first round took."""

    def entry(seconds, loss):
        return {"seconds": seconds, "losses": [loss.hex(), loss.hex()], "peak_mib": 100}

    rounds = {
        "1x2": [entry(99, 2.0), entry(2, 1.0), entry(2, 1.0), entry(50, 1.0)],
        "2x1": [entry(1, 2.0), entry(4, 1.5), entry(4, 1.0), entry(4, 1.0)],
    }
    found = {"rounds": rounds, "alike": {}, "resume_identical": True, "cores": 2}
    answer = parallel._results(found, Scaling(rounds=3, steps=4, parity_steps=3, batch=4))
    assert answer["headline"]["ddp_efficiency"] == pytest.approx(0.5)
    assert answer["timing"]["volumes_per_second"] == pytest.approx(8)
    assert answer["headline"]["parity_error"] == pytest.approx(0.5)
    lonely = parallel._results(found | {"cores": 1}, Scaling(parity_steps=3))
    assert lonely["headline"]["ddp_efficiency"] is None
    assert "1 core" in lonely["tables"]["reasons"]["ddp_efficiency"]


def test_no_difference_is_rounded_to_zero(tmp_path):
    """Claim: a difference of 1e-7 in a loss, on its way through JSON still shows.

    Results files hold six digits: rounded losses made a parity error of exactly zero.
    """

    def entry(loss):
        return {"seconds": 1.0, "losses": [loss.hex()], "peak_mib": 1}

    rounds = {"1x2": [entry(0.1), entry(0.1)], "2x1": [entry(0.1), entry(0.1)]}
    alike = {"4x1": [entry(0.1), entry(0.1 * (1 + 1e-7))]}
    found = {"rounds": rounds, "alike": alike, "cores": 2}
    record.write_json(tmp_path / "bench.json", found | {"resume_identical": True})
    found = json.loads((tmp_path / "bench.json").read_text())
    headline = parallel._results(found, Scaling(rounds=1, steps=1))["headline"]
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

"""Ranks: order and noise that know no rank, shares, and two real processes against one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from toy import IDENTITY, SETTINGS, Line, log, trained

from dsnb import checkpoints, distributed, record, training
from dsnb.checks import BadInput
from dsnb.config import replace

HERE = Path(__file__).parent
WORKER = """
import sys, pathlib
sys.path[:0] = sys.argv[2:4]
from toy import IDENTITY, SETTINGS, Line
from dsnb import distributed, training
from dsnb.config import replace
run = pathlib.Path(sys.argv[1])
class Failing(Line):
    def load(self, rows):
        if len(self.loaded) == 2 and distributed.dist.get_rank() == 1:
            raise RuntimeError("scan 17 is broken")
        return super().load(rows)
training.train(run / "two", Line(), replace(SETTINGS, volumes=160), IDENTITY)
training.train(run / "one-two", Line(), replace(SETTINGS, volumes=160), IDENTITY)
training.train(run / "fails", Failing(), SETTINGS, IDENTITY)
"""


def launch(words: list[str], processes: int) -> subprocess.CompletedProcess:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    start += ["--master-addr", "127.0.0.1", "--master-port", port]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        start + words, env=environment, capture_output=True, text=True, timeout=100
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Train with one rank and with two (and one then two), and let a rank of two fail."""
    run = tmp_path_factory.mktemp("ranks")
    for name in ("two", "one-two", "fails"):
        (run / name).mkdir()
    settings = replace(SETTINGS, volumes=160)
    trained(run / "one", settings=settings)
    with pytest.raises(KeyboardInterrupt):
        trained(run / "one-two", Line(stop_at=17), settings)
    (run / "worker.py").write_text(WORKER)
    words = [str(run / "worker.py"), str(run), str(HERE), str(HERE.parent)]
    return run, launch(words, 2)


@pytest.mark.parametrize("name", ["two", "one-two"])
def test_two_ranks_train_as_one(ranks, name):
    """Claim: the number of ranks, even when it changes midway, moves no loss by over 1e-6."""
    run, _ = ranks
    one, two = log(run / "one"), log(run / name)
    assert len(one) == len(two) == 40
    relative = (one["loss"] - two["loss"]).abs() / one["loss"]
    assert relative.max() < 1e-6
    first, second = (checkpoints.newest(run / which)["ema"]["weight"] for which in ("one", name))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_only_rank_zero_writes(ranks):
    """Claim: two ranks leave the files of one."""
    run, _ = ranks
    kinds = [sorted(p.name[:14] for p in (run / name).iterdir()) for name in ("one", "two")]
    assert kinds[0] == kinds[1]


def test_a_failing_rank_ends_all_and_is_named(ranks):
    """Claim: one rank's exception ends the job with a non-zero exit and says rank and reason."""
    run, answer = ranks
    assert answer.returncode != 0
    assert "rank 1 of 2" in answer.stderr and "scan 17 is broken" in answer.stderr
    assert len(log(run / "fails")) == 2


def test_the_order_is_a_permutation_an_epoch_and_resumes_anywhere():
    """Claim: everyone is seen once an epoch, in an order set by seed and epoch alone."""
    stream = distributed.ordered_rows(7, seed=5, first=0, count=21)
    for epoch in stream.reshape(3, 7):
        assert sorted(epoch) == list(range(7))
    assert not np.array_equal(stream[:7], stream[7:14])
    pieces = [distributed.ordered_rows(7, 5, first, 3) for first in range(0, 21, 3)]
    assert np.array_equal(stream, np.concatenate(pieces))
    assert not np.array_equal(stream, distributed.ordered_rows(7, 6, 0, 21))


def test_noise_belongs_to_its_sample_step_and_name():
    """Claim: a sample's noise is the same alone or in a batch, and differs for any other key."""
    cpu = torch.device("cpu")
    both = distributed.keyed_noise((500,), 1, np.array([3, 8]), 2, cpu, "z")
    assert torch.equal(both[1], distributed.keyed_noise((500,), 1, np.array([8]), 2, cpu, "z")[0])
    others = [(2, [8], 2, "z"), (1, [9], 2, "z"), (1, [8], 3, "z"), (1, [8], 2, "y")]
    for seed, sample, step, name in others:
        other = distributed.keyed_noise((500,), seed, np.array(sample), step, cpu, name)[0]
        assert abs(np.corrcoef(both[1], other)[0, 1]) < 0.2
    many = distributed.keyed_noise((), 1, np.arange(4000), 0, cpu, "t", uniform=True)
    assert many.min() >= 0 and many.max() < 1 and many.std() == pytest.approx(12**-0.5, rel=0.03)
    normal = distributed.keyed_noise((50,), 1, np.arange(200), 0, cpu)
    assert normal.mean().abs() < 0.03 and normal.std() == pytest.approx(1, abs=0.03)


def test_one_process_is_a_world_of_one_and_leaves_nothing():
    """Claim: without a launcher there is a group, closed at the end; an open one is left alone."""
    with distributed.joined() as ranks:
        assert (ranks.rank, ranks.world, ranks.first) == (0, 1, True) and dist.is_initialized()
        with distributed.joined():
            pass
        assert dist.is_initialized()
        assert distributed.mean_over_ranks(torch.tensor([2.0])).item() == 2
        assert distributed.any_over_ranks(True, ranks.device)
        assert not distributed.any_over_ranks(False, ranks.device)
    assert not dist.is_initialized()


def test_shares_are_equal_or_refused():
    """Claim: a global batch is cut into equal micro-batches, or refused with the arithmetic."""
    assert distributed.shares(8, world=2, accumulate=2) == 2
    with pytest.raises(BadInput, match="4 processes x 1 micro-batches"):
        distributed.shares(6, world=4, accumulate=1)


def test_a_finished_product_is_left_as_it_is(tmp_path, monkeypatch):
    """Claim: the product is trained once, resumed after a kill, and kept when nothing changed."""
    said = []
    monkeypatch.setattr(record, "say", said.append)
    tasks = [Line(stop_at=4), Line(), Line()]
    code = ("training",)

    def build(device):
        return tasks.pop(0), SETTINGS

    def run():
        training.train_product(tmp_path, "runs/line", "train line", IDENTITY, (), code, build)

    with pytest.raises(KeyboardInterrupt):
        run()
    run()
    run()
    assert len(tasks) == 1 and "goes on after 16 of 24" in " ".join(said)
    assert checkpoints.identical(
        checkpoints.newest(tmp_path / "runs/line")["model"], trained(tmp_path / "plain")["model"]
    )

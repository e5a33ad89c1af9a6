"""The equation of a step: planted links come back, wrong equations show, hosts leave nothing."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import distributed as dist

from dsnb import figures, record
from dsnb.checks import BadInput
from dsnb.config import FULL, SMALL
from dsnb.record import ledger
from dsnb.scaling import hosts, links, model, projection

PLANTED = model.Links(2e-3, 0.9, 4e8, 0.4, 0.8)
ROOT = hosts.os.geteuid() == 0 and all(map(hosts.shutil.which, ("ip", "tc")))
needs_root = pytest.mark.skipif(not ROOT, reason="network namespaces need root, ip and tc")


def rows(truth=PLANTED, noise=0.02, added=lambda row: 0.0):
    """Return configurations as `read_links` does, of links that are known, with 2 % noise."""
    rng, found = np.random.default_rng(0), []
    for world, count in ((2, 2), (3, 3), (4, 4), (4, 2), (8, 2)):
        for times in links.TIMES:
            for gigabits in links.GIGABITS:
                row = {"world": world, "hosts": count, "cores": 2, "stale": False, "local_s": 1e-3,
                       "times": times, "gigabits": gigabits,
                       "sizes": [times * 40_000] * 8}  # fmt: skip
                errors = np.exp(noise * rng.standard_normal(2))
                for name, compute_s, error in (
                    ("bare", 0.0, errors[0]), ("whole", links.COMPUTE_S, errors[1]),
                ):  # fmt: skip
                    seconds = model.predict(row, truth, compute_s) + added(row)
                    row[f"{name}_s"] = 1e-3 + seconds * error
                found.append(row)
    return found


def test_the_fit_finds_planted_links():
    """Claim: from a few configurations, latency and bandwidths come back, for more ranks."""
    table, found = model.compare(rows())
    assert found.latency_s == pytest.approx(PLANTED.latency_s, rel=0.1)
    assert found.share == pytest.approx(PLANTED.share, rel=0.05)
    assert found.core_bytes == pytest.approx(PLANTED.core_bytes, rel=0.05)
    assert found.near == pytest.approx(PLANTED.near, abs=0.1)
    assert found.crowding == pytest.approx(PLANTED.crowding, abs=0.1)
    seen = table[~table["held_out"]]
    assert len(seen) == 12 and set(seen["world"]) == {2, 4} and set(seen["times"]) == {1, 16}
    assert model.held_out_error(table) < 4 and model.held_out_error(table, "step") < 4


def test_a_wrong_equation_has_a_large_held_out_error():
    """Claim: were gradients sent to one rank instead of around a ring, the error would show."""

    def server(row):  # every further rank sends all bytes over the one link of the first
        return (row["world"] - 2) * 8 * 4 * sum(row["sizes"]) / (0.9e9 * row["gigabits"])

    wrong = model.compare(rows(added=server))[0]
    assert model.held_out_error(wrong) > 15
    assert model.compare([row for row in rows() if row["gigabits"] > 1])[1] is None


def test_only_held_out_configurations_count():
    """Claim: by hand, the median of 10, 30 and 2 % is 10 %, whatever the fitted ones say."""
    table = pd.DataFrame({"held_out": [True, True, True, False, False],
                          "sum_pct": [-10.0, 30.0, 2.0, 500.0, 0.0]})  # fmt: skip
    assert model.held_out_error(table) == 10


def test_buckets_are_those_of_torch():
    """Claim: buckets are filled as DDP fills them, so what is summed last has the right size."""
    for sizes in (links.sizes(1), links.sizes(44), [10, 7_000_000, 3, 300_000, 12]):
        tensors = [torch.empty(size) for size in reversed(sizes)]
        order = dist._compute_bucket_assignment_by_size(tensors, list(model.BUCKETS))[0]
        wanted = [sum(tensors[i].nbytes for i in group) for group in order]
        assert model.fill_buckets(sizes) == wanted


def test_the_backward_pass_hides_all_but_the_last_bucket():
    """Claim: by hand, of 3 s of compute, buckets are ready after 2 and 3 s, one after another."""
    assert model.step_s(0.5, 3.0, [1, 1], [0.4, 0.4]) == pytest.approx(0.5 + 3.4)
    assert model.step_s(0.0, 3.0, [1, 1], [1.5, 0.4]) == pytest.approx(3.9)
    assert model.step_s(0.0, 3.0, [1, 1], [0.0, 0.0]) == pytest.approx(3.0)
    assert model.sum_s(1, 1e6, 1.0, 1e6) == 0 and model.sum_s(4, 1e6, 0.1, 1e6) == pytest.approx(
        2.1
    )
    assert PLANTED.bandwidth(0.1, 1) == pytest.approx(0.9e8 / 8)
    assert PLANTED.bandwidth(10, 2) == pytest.approx(2e8)


def namespaces():
    return hosts._ip("netns")


@needs_root
def test_hosts_are_gone_whatever_happens():
    """Claim: after an error, after TERM and after another's kill, no namespace of ours is left."""
    own, killed = f"dsnb-{hosts.os.getpid()}-", "dsnb-999999999-hub"  # no process has that number
    hosts._ip("netns", "add", killed)
    with pytest.raises(ZeroDivisionError), hosts.hosts(2):
        assert own in namespaces() and killed not in namespaces()
        raise ZeroDivisionError
    with pytest.raises(SystemExit), hosts.hosts(1):
        hosts.os.kill(hosts.os.getpid(), hosts.signal.SIGTERM)
    assert own not in namespaces()


@needs_root
def test_gradients_take_as_long_as_the_link_says(monkeypatch):
    """Claim: at 0.02 Gb/s two ranks need the wire's time for real gradients, and little more."""
    monkeypatch.setattr(links, "ROUNDS", 1)
    (found,) = links.measure(links.Layout(2, 2, (1,), (0.02,)))["found"]
    wire = 8 * links.wire_bytes(2, 4 * sum(found["sizes"])) / 0.02e9
    fastest = {name: min(seconds) for name, seconds in found["seconds"].items()}
    assert 0.95 * wire < fastest["bare"] < 2.5 * wire  # the bucket lets a little pass at once
    assert fastest["whole"] > max(links.COMPUTE_S, 0.95 * wire) and fastest["local"] < wire / 2


def test_without_root_one_sentence_refuses(monkeypatch):
    """Claim: who may not make namespaces is told so, before anything is made."""
    monkeypatch.setattr(hosts.os, "geteuid", lambda: 1000)
    with pytest.raises(BadInput, match="E-ROOTLESS"), hosts.hosts(2):
        pass


@pytest.fixture
def costs(tmp_path, monkeypatch):
    """Plant what a step of the projected presets costs: 1 TFLOP a volume, 50 MiB of gradients."""
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path)
    for preset in projection.PROJECTED:
        row = {"preset": preset, "network": "lean", "recompute": False, "precision": "bf16",
               "part": "calculated", "gigaflop": 1000.0, "parameters": 50 * 2**18}  # fmt: skip
        record.add_row("03_cost", {"code": "any", **row}, {})


def drawn(**other):
    """Return one draw: 10 TFLOP/s, links that cost nothing."""
    ideal = {"gpu": 10.0, "inside": 1e9, "between": 1e9, "latency": 0.0, "overhead": 0.0,
             "jitter": 0.0, "loader": 1e9}  # fmt: skip
    return {name: np.array([value]) for name, value in (ideal | other).items()}


def test_a_projection_is_arithmetic(costs):
    """Claim: ideal links scale perfectly, and each assumption costs what it costs by hand."""

    def seconds(gpus, **other):
        return projection.step_seconds(FULL, gpus, 2, drawn(**other), np.ones(1), 1e9).item()

    assert seconds(1) == pytest.approx(0.2, rel=1e-3) == seconds(32)
    # The second of two full buckets is not hidden: 2 * 31 / 32 * 25 MiB at 1 GB/s between nodes.
    tail = 2 * 31 / 32 * 25 * 2**20 / 1e9
    assert seconds(32, between=1.0) == pytest.approx(0.2 + tail, rel=1e-3)
    assert seconds(4, between=1.0) == pytest.approx(0.2, rel=1e-3)
    assert seconds(1, overhead=50.0, jitter=5.0) == pytest.approx(0.25, rel=1e-3)
    assert seconds(32, jitter=5.0) == pytest.approx(0.2 * 1.104, rel=0.01)
    volume_s = 2 * 160 * 192 * 160 / 1e6
    assert seconds(1, loader=1e-3) == pytest.approx(0.2 + 2 * volume_s, rel=1e-3)


def test_projections_carry_their_label_and_their_doubt(costs):
    """Claim: a projected row says so, its band grows with the model's error, none is measured."""
    sure, unsure = (projection.project(np.array(one), 1e9) for one in ([1.0], [0.1, 10.0]))
    assert (sure["status"] == projection.LABEL).all()
    for name in ("efficiency", "volumes_per_second", "gpu_hours"):
        assert (sure[f"{name}_low"] <= sure[name]).all()
        assert (sure[name] <= sure[f"{name}_high"]).all()
    last = (sure["gpus"] == 32) & (sure["preset"] == "medium")
    low, lower = (some.loc[last, "efficiency_low"].min() for some in (sure, unsure))
    assert lower < low < 1
    measured = pd.DataFrame({"preset": ["full"], "kind": ["weak"], "world": [4],
                             "efficiency": [0.9]})  # fmt: skip
    figure = figures.plot_projection(sure, measured, "efficiency", "", "")
    lines = {one.get_label(): one for axes in figure.axes for one in axes.get_lines()}
    projected = [one for name, one in lines.items() if "projected, not yet run" in name]
    assert len(projected) == 2 and all(one.get_linestyle() == "--" for one in projected)
    assert lines["weak: measured"].get_ydata().tolist() == [0.9]
    assert lines["weak: measured"].get_linestyle() == "None"


def test_the_gradients_are_the_lean_networks():
    """Claim: emulated gradients have the size of the network's, as page 03 counts them."""
    known = record.ledger_rows("03_cost", preset="small", network="lean")
    assert sum(links.sizes(1)) == known[-1]["parameters"]
    assert SMALL.vae.architecture == "lean"

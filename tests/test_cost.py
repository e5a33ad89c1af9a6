"""Costs calculated on tensors without data, beside hand counts and a process that was measured."""

import pytest
import torch

from dsnb import scaling
from dsnb.config import FULL, SMOKE
from dsnb.scaling import cost
from dsnb.training.clock import host_peak_mib

TOLERANCE = 0.15  # of the measured rise at smoke: buffers of libraries are no tensors


def test_a_layer_costs_what_is_counted_by_hand():
    """Claim: tensors are followed to their end: 3 MiB alive at most where a fourth comes later."""
    with cost._Alive() as alive:
        one = torch.zeros(2**18)  # 1 MiB
        two = one.view(512, 512) + 1
        three = two + two
        assert (alive.now, alive.most) == (3 * 2**20, 3 * 2**20)
        del one, two
        four = three + 1
    assert (alive.now, alive.most) == (2 * 2**20, 3 * 2**20) and four.sum() == 3 * 2**18


def test_recomputing_and_half_precision_spare_activations_and_cost_flop():
    """Claim: `recompute` and bf16 keep less for the backward pass; recomputing costs FLOP."""
    plain = scaling.calculate(SMOKE, "lean")
    again = scaling.calculate(SMOKE, "lean", recompute=True)
    half = scaling.calculate(SMOKE, "lean", bf16=True)
    assert again["activations_mib"] < 0.8 * plain["activations_mib"]
    assert half["activations_mib"] < plain["activations_mib"]
    assert again["gigaflop"] > 1.02 * plain["gigaflop"]
    assert half["gigaflop"] == pytest.approx(plain["gigaflop"])
    weights = sum(weight.numel() for weight in cost._make_task(
        SMOKE.grid.shape, cost.settings_of(SMOKE, "lean")).model.parameters())  # fmt: skip
    assert plain["parameters"] == weights
    assert plain["optimizer_mib"] == pytest.approx(2 * 4 * weights / 2**20)


def test_twice_the_volumes_keep_twice_as_much():
    """Claim: activations grow with the volumes of a step, GFLOP a volume do not."""
    one, four = (scaling.calculate(SMOKE, "monai", volumes=count) for count in (1, 4))
    assert four["activations_mib"] == pytest.approx(4 * one["activations_mib"], rel=0.05)
    assert four["gigaflop"] == pytest.approx(one["gigaflop"], rel=1e-6)


@pytest.mark.parametrize("network", ["lean", "sharp"])
def test_the_full_grid_is_calculated_without_its_memory(network):
    """Claim: at 160x192x160 a GiB of activations is calculated while this process grows by less."""
    before = host_peak_mib()
    found = scaling.calculate(FULL, network)
    assert found["activations_mib"] > 1024 and host_peak_mib() - before < 512


def test_calculated_memory_is_what_a_process_needs():
    """Claim: at smoke the calculated rise of memory in a step is the measured one, within 15 %."""
    volumes = cost.MEASURED["smoke"]
    measured = scaling.measure(SMOKE, "lean", False, volumes)["measured_mib"]
    calculated = scaling.calculate(SMOKE, "lean", volumes=volumes)["rise_mib"]
    assert measured > 50 and calculated == pytest.approx(measured, rel=TOLERANCE)

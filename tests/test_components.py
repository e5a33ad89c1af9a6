"""What a generator takes from whom: effects through regions, directions that volumes show."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dsnb.config import Diffusion
from dsnb.diffusion import components, flow

SHAPE = (2, 4, 4, 4)
SIZE = int(np.prod(SHAPE))
STATISTICS = {"mean": np.zeros(2), "std": np.ones(2)}


def teachers(count: int = 200, effect: float = 1.0, seed: int = 0) -> flow.Teachers:
    """Draw people whose three regions are read from three latents; DS changes the first."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({
        "participant_id": [f"sub-{i}" for i in range(count)],
        "group": np.where(np.arange(count) % 2, "DS", "euploid"), "stage": "n/a",
        "age": rng.uniform(30, 60, count), "sex": rng.choice(["F", "M"], count),
    })  # fmt: skip
    z = rng.normal(size=(count, SIZE)).astype(np.float32)
    z[:, 0] += effect * (np.arange(count) % 2)
    regions = 0.1 * z[:, :3] + 0.005 * rng.normal(size=(count, 3))
    return flow.Teachers(z.reshape(count, *SHAPE), table, regions)


def others(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Draw latents of an open cohort, and one direction that volumes show."""
    z = np.random.default_rng(9).normal(size=(count, *SHAPE)).astype(np.float32)
    shown = np.zeros((1, *SHAPE), np.float32)
    shown[0, 1, 3, 3, 3] = 1
    return z, shown


SETTINGS = Diffusion(components=4, width=32, blocks=1)


class Ruler:
    """Reads regions off latents instead of off registered volumes, in a crooked way."""

    def __init__(self, model: flow.Flow, loss: float):
        self.flow, self.loss = model, loss

    def measure(self, z: torch.Tensor) -> np.ndarray:
        return self.loss * np.tanh(0.1 * z.flatten(1)[:, :3].numpy())

    def steps(self) -> torch.Tensor:
        return components.Ruler.steps(self)

    def response(self) -> np.ndarray:
        return components.Ruler.response(self)

    def effect(self, table: pd.DataFrame) -> np.ndarray:
        pair = [table, table.assign(group="euploid")]
        z = [components.draw(self.flow, flow.condition(one), 0, 10) for one in pair]
        return (self.measure(z[0]) - self.measure(z[1])).mean(0)


def test_effects_of_regions_are_those_of_people_after_a_lossy_decoder():
    """Falls: effect_slope: what a decoder takes away from the disease would stay lost."""
    some = teachers()
    model = flow.build(SETTINGS, some, STATISTICS, np.eye(4), others())
    ruler = Ruler(model, loss=0.6)
    gaps = components.set_region_effects(ruler, some)
    wanted = some.regions[1::2].mean(0) - some.regions[0::2].mean(0)
    assert gaps[0] > 0.015 and gaps[-1] < gaps[0] / 3
    assert np.abs(ruler.effect(some.table.iloc[1::2]) - wanted).max() < 0.02


def test_a_group_is_known_by_a_few_numbers_alone():
    """Falls: attack_auc: effects outside the directions of regions would tell who is in a group."""
    some = teachers(effect=0.0)
    some.z[1::2, 1, 2, 2, 2] += 3  # of everybody with DS, and no region shows it
    model = flow.build(SETTINGS, some, STATISTICS, np.eye(4), others())
    assert len(model.moved) <= 5  # three regions, age and sex
    effects = (model.effects * model.spread) @ model.basis
    moved = model.moved @ model.basis
    torch.testing.assert_close(effects, effects @ moved.T @ moved, atol=1e-3, rtol=1e-3)
    assert effects[0].reshape(SHAPE)[1, 2, 2, 2].abs() < 0.5


def test_directions_of_regions_do_not_know_people_with_ds():
    """Falls: that people with DS cannot be told by the directions along which DS moves brains."""
    some = teachers()
    changed = some._replace(z=some.z.copy())
    changed.z[1::2] *= -1
    models = [flow.build(SETTINGS, one, STATISTICS, np.eye(4), others()) for one in (some, changed)]
    planes = [model.moved @ model.basis for model in models]
    alike = np.linalg.svd((planes[0] @ planes[1].T).numpy())[1]
    assert alike.min() > 0.99


def test_components_of_an_open_cohort_do_not_correlate():
    """Falls: that independent noise draws whole brains: correlated components lose variance."""
    z, shown = others(600)
    z[:, 0] += 2 * z[:, 1]
    model = flow.build(SETTINGS, teachers(), STATISTICS, np.eye(4), (z, shown))
    codes = model.project(torch.from_numpy(z[1::2])).numpy()
    apart = np.corrcoef(codes.T) - np.eye(codes.shape[1])
    assert np.abs(apart).max() < 0.02


class Decoder(nn.Module):
    """Shows one latent in a corner, and no other."""

    def __init__(self):
        super().__init__()
        self.register_buffer("support", torch.ones(1, 1, 4, 4, 4))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        volume = torch.zeros(len(z), 1, 4, 4, 4)
        volume[:, :, 0] = z[:, :1, 2, 2, 2, None, None]
        return volume


def test_shown_directions_are_those_that_move_volumes():
    """Falls: the spread of samples: what latents hide in small variance, volumes would lack."""
    z = others(40)[0]
    volumes = Decoder().decode(torch.from_numpy(z))[:, 0].numpy()
    found = components.shown_directions(Decoder(), z, volumes)[0]
    place = np.unravel_index(np.abs(found).argmax(), found.shape)
    assert place == (0, 2, 2, 2) and np.count_nonzero(found) == 1


@pytest.mark.parametrize("basis", ["members", "grid"])
def test_without_an_open_cohort_all_components_are_moved(basis):
    """Falls: that a study of real scans without an open cohort still learns its groups."""
    model = flow.build(Diffusion(basis=basis, components=20, denoiser="mlp"), teachers(),
                       STATISTICS, np.eye(4))  # fmt: skip
    assert len(model.moved) == 0 and (model.effects[[0, 2, 3]] != 0).all()  # nobody has a stage

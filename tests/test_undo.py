"""The network that gives planted volume changes back: what it sees, learns and never sees."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dsnb import dataset, record, rivals, training
from dsnb.anomaly import undo
from dsnb.config import SMOKE, Training, Undo
from dsnb.distributed import Noise
from dsnb.norms import generic_change
from dsnb.space import load_template

GRID = SMOKE.grid
BRAIN = load_template(GRID).brain
PLAN = Training(volumes=320, batch=4, lr=4e-3, checkpoint_every=80, validate_every=80)
STUDY = replace(SMOKE, undo=Undo(12, (8, 16), PLAN))
CPU = torch.device("cpu")
PEOPLE = {"fit": 12, "validation": 4}
RESPONSE = 0.5  # of the toy registration, which sees half of every change


def spread(rng, count: int) -> np.ndarray:
    """Draw smooth variation (N, V) that no planted change looks like: it is left-right."""
    side = np.sign(GRID.coordinates_mm()[0][BRAIN])
    return (0.3 * rng.standard_normal((count, 1)) * side).astype(np.float32)


@pytest.fixture
def task(monkeypatch, tmp_path) -> undo.UndoTask:
    """Return the task of people who vary from left to right, with generic changes seen by half."""
    rng = np.random.default_rng(0)
    count = sum(PEOPLE.values())
    table = pd.DataFrame({
        "participant_id": [f"sub-{row}" for row in range(count)], "group": "euploid",
        "kind": "recorded", "split": np.repeat(list(PEOPLE), list(PEOPLE.values())),
        "age": rng.uniform(20, 60, count), "sex": np.where(np.arange(count) % 2, "F", "M"),
    })  # fmt: skip
    change = np.stack([generic_change(BRAIN, GRID, row)[1][BRAIN] for row in range(count)])
    (tmp_path / undo.PLANTED).mkdir()
    np.save(tmp_path / undo.PLANTED / "change.npy", change)
    np.save(tmp_path / undo.PLANTED / "response.npy", RESPONSE * change)
    own = np.zeros((count, *GRID.shape), np.float32)
    own[:, BRAIN] = spread(rng, count)
    monkeypatch.setattr(dataset, "load_table", lambda root, product=None: table)
    monkeypatch.setattr(rivals, "load_deformation", lambda root: (None, own))
    return undo.UndoTask(tmp_path, STUDY, CPU)


def test_what_is_learnt_is_the_change_and_not_the_variation(task, tmp_path):
    """Falls: that the network undoes changes nobody showed it, in people it never saw.

    Registration saw half of each change; the network must give more than was seen.
    """
    (tmp_path / "run").mkdir()
    before = task.conclude(task.assess(task.model, np.arange(4)))["score"]
    training.train(tmp_path / "run", task, PLAN, {})
    task.model.eval()
    assert abs(before) < 0.2
    assert task.conclude(task.assess(task.model, np.arange(4)))["score"] > 0.5
    seen, change = task.held_seen.numpy(), task.held_change.numpy()
    nobody = np.zeros((4, 2), np.float32)  # coefficients are of departures here
    task.model.coefficients.zero_()
    found = undo.find(task.model, seen, nobody)
    slope = (found * change).sum() / (change**2).sum()
    assert slope > 1.2 * RESPONSE
    own = seen - RESPONSE * change
    healthy = undo.find(task.model, own, nobody)
    assert (healthy**2).mean() < 0.2 * (own**2).mean()


def test_mixed_people_hold_what_was_laid_over_them(task):
    """Falls: that the truth is what was planted: responses and changes share sign and amount."""
    noise = Noise(1, np.arange(8), 3, CPU)
    seen, truth = task.mix(torch.zeros_like(task.own[:8]), noise)
    task.response, task.own = torch.zeros_like(task.response), torch.zeros_like(task.own)
    assert (truth != 0).any(1).all()
    nothing, again = task.mix(torch.zeros_like(task.own[:8]), noise)
    assert torch.equal(truth, again) and not nothing.any()
    task.response = RESPONSE * task.change
    seen, truth = task.mix(torch.zeros_like(task.own[:8]), noise)
    torch.testing.assert_close(seen, RESPONSE * truth)
    assert not torch.equal(truth, task.mix(task.own[:8], Noise(1, np.arange(8), 4, CPU))[1])


def test_a_mirrored_brain_gets_the_mirrored_answer(task):
    """Falls: that sides are treated alike: no hemisphere is favoured by the network's training."""
    nobody = np.zeros((2, 2), np.float32)
    torch.nn.init.normal_(next(task.model.net.parameters()))
    seen = task.held_seen[:2].numpy()
    turned = task.model.mirror(torch.from_numpy(seen)).numpy()
    task.model.coefficients.zero_()
    one, other = (undo.find(task.model, values, nobody) for values in (seen, turned))
    assert np.abs(one).max() > 1e-4 and not np.allclose(one, other, atol=1e-4)
    np.testing.assert_allclose(
        task.model.mirror(torch.from_numpy(one)).numpy(), other, atol=1e-5 * np.abs(one).max()
    )


def test_age_and_sex_are_taken_out_as_fit_people_have_them(task):
    """Falls: that an old brain is not taken for a changed one."""
    task.model.coefficients[0], task.model.coefficients[1] = 0.1, 0.2
    people = np.array([[1.0, 0.0], [-1.0, 1.0]], np.float32)
    seen = task.model.residual(torch.zeros(2, int(BRAIN.sum())), torch.from_numpy(people))
    effect = task.model.coefficients[2]
    torch.testing.assert_close(seen[0], torch.full_like(seen[0], -0.3))
    torch.testing.assert_close(seen[1], 0.1 - effect)


def test_planted_truth_lies_on_the_template_and_is_half_seen(tmp_path, monkeypatch):
    """Falls: that what is learnt is where and how much people changed, seen by the registration.

    Two template-like people, changed and registered: the response follows the true change.
    """
    template = load_template(GRID).t1w
    table = pd.DataFrame({"participant_id": ["sub-1", "sub-2"], "group": "euploid",
                          "kind": "recorded", "split": ["fit", "validation"]})  # fmt: skip
    study = replace(SMOKE, maps=replace(SMOKE.maps, demons_iterations=30, processes=1))
    monkeypatch.setattr(dataset, "load_table", lambda root: table)
    monkeypatch.setattr(dataset, "load_volumes", lambda root: np.stack([template] * 2))
    before = np.zeros((2, *GRID.shape), np.float16)
    monkeypatch.setattr(rivals, "load_deformation", lambda root: (template, before))
    record.write_json(tmp_path / "study.json", {"preset": "smoke", "data": "phantom"})
    for name in ("prepared", "deformation"):
        record.begin(tmp_path, name, "test", {}, (), ("space",)).finish()
    undo.plant(tmp_path, study)
    response, change = (
        np.load(Path(tmp_path, undo.PLANTED, f"{name}.npy")).astype(float)
        for name in ("response", "change")
    )
    for seen, true in zip(response, change):
        assert (np.abs(true) > 0.1).mean() > 0.05
        assert np.corrcoef(seen, true)[0, 1] > 0.4
        assert 0.1 < (seen * true).sum() / (true**2).sum() < 1.1
        # The rim that a spline leaves around a brain is no growth of its cortex.
        assert abs(seen[np.abs(true) < 0.01].mean()) < 0.02

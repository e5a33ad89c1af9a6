"""Grids: every run has one row, and each way to train does what its name says."""

import numpy as np
import pytest
import test_ablations
import tiny
import torch

from dsnb import dataset, record, vae
from dsnb.distributed import Noise
from dsnb.search import ablations, folds, grids

STUDY, CPU = test_ablations.STUDY, torch.device("cpu")
small = test_ablations.small  # a ledger of its own, eight volumes, a ruler without registration


def test_every_variant_has_one_row_beside_lean_and_is_not_run_again(tmp_path, monkeypatch):
    """Claim: each variant and seed is trained once; the search's best settings are among them."""
    root = tiny.make_root(tmp_path)
    values = {"lr": 0.002, "width": 8, "channels": 4, "kl": 1e-7}
    for trial, db in ((0, 99.0), (1, 20.0), (2, 30.0), (3, 40.0)):
        row = {"trial": trial, "state": "complete", "psnr_db": db, "values": {"kl": float(trial)}}
        if trial == 2:
            row["values"] = values
        if trial == 3:
            row["cohort"] = "others"
        record.add_row(grids.TRIALS, dataset.identify(root), row)
    grids.fill(root, STUDY)
    rows = record.ledger_rows(grids.LEDGER)
    named = grids.GRIDS | {grids.FOUND[0]: {grids.FOUND[1]: values}}
    wanted = [
        (grid, name, seed) for grid, variants in named.items() for name in variants
        for seed in ((0,) if name == "half, lossless" else (1, 2))
    ]  # fmt: skip
    assert [(row["grid"], row["variant"], row["seed"]) for row in rows] == wanted
    assert rows[-1]["change"] == values and rows[-1]["settings"]["training"]["lr"] == 0.002
    assert (rows[0]["variant"], rows[0]["seed"], rows[0]["change"]) == ("lean", 1, {})
    monkeypatch.setattr(folds.Trial, "_measure", None)
    grids.fill(root, STUDY)
    assert record.ledger_rows(grids.LEDGER) == rows


def test_a_change_alone_separates_a_variant_from_lean(tmp_path):
    """Claim: a variant without a change is `lean` to the last digit; its learning rate stays."""
    trial = folds.Trial(tiny.make_root(tmp_path), STUDY, 0)
    settings = grids.changed(STUDY, {}, 2, "phantom")
    assert settings == ablations.variant(STUDY, "lean", 2)
    own, known = grids.learn(trial, {}, settings), trial.train(settings)
    assert {k: v for k, v in own.items() if k != "cpu_seconds"} == {
        k: v for k, v in known.items() if k != "cpu_seconds"
    }
    batch = grids.changed(STUDY, {"batch": 8}, 2, "phantom").training
    assert (batch.batch, batch.volumes, batch.lr) == (8, 8, settings.training.lr)
    longer = grids.changed(STUDY, {"way": "half", "times": 8}, 2, "phantom").training
    assert (longer.volumes, longer.validate_every) == (64, 16)


def test_fewer_people_are_drawn_anew_by_each_seed_from_the_fit_people(tmp_path, monkeypatch):
    """Claim: `people` are that many fit people, others for another seed; validation stays."""
    trial, seen = folds.Trial(tiny.make_root(tmp_path), STUDY, 0), []

    class Asked(Exception):
        pass

    def ask(root, settings, device, people, template):
        seen.append(people)
        raise Asked

    monkeypatch.setitem(grids.WAYS, "", ask)
    for seed in (1, 2):
        with pytest.raises(Asked):
            settings = grids.changed(STUDY, {"people": 6}, seed, "phantom")
            grids.learn(trial, {"people": 6}, settings)
    one, other = (set(fit) for fit, _ in seen)
    assert len(one) == len(other) == 6 and one != other and one | other <= set(trial.fit)
    assert all(np.array_equal(held, trial.validation) for _, held in seen)


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Return a function: the batch that a task of a way shows the network, by samples and step."""
    root, caught = tiny.make_root(tmp_path), []

    def catch(self, model, batch, noise):
        caught.append(batch)
        return {}

    monkeypatch.setattr(vae.VaeTask, "loss", catch)

    def show(way, rows, step):
        task, rows = grids.WAYS[way](root, STUDY.vae, CPU), np.array(rows)
        batch = task.load(rows)
        task.loss(task.model, batch, Noise(1, rows, step, CPU))
        return batch, caught[-1]

    return show


def test_mirroring_flips_left_and_right_alone_and_is_keyed(shown):
    """Claim: about half of the volumes are flipped along X; a sample's coin knows no batch."""
    batch, seen = shown("mirror", range(24), 0)
    flipped = torch.tensor([torch.equal(one, two.flip(1)) for one, two in zip(seen, batch)])
    plain = torch.tensor([torch.equal(one, two) for one, two in zip(seen, batch)])
    assert (flipped ^ plain).all() and 6 <= flipped.sum() <= 18
    assert torch.equal(shown("mirror", [5, 3], 0)[1], seen[[5, 3]])
    assert not torch.equal(shown("mirror", range(24), 1)[1], seen)


def test_intensities_change_a_little_and_are_keyed(shown):
    """Claim: the change is small, smooth, of each sample and step, and repeats."""
    batch, seen = shown("intensity", range(4), 0)
    brain = torch.from_numpy(tiny.brain())
    ratio = (seen / batch)[:, 0, brain]
    assert type(seen) is torch.Tensor and (seen[:, 0, ~brain] == batch[:, 0, ~brain]).all()
    assert 0.005 < (ratio.log()).std() < 0.2 and ratio.log().abs().median() < 0.2
    assert torch.equal(shown("intensity", [2], 0)[1], seen[2:3])
    assert not torch.equal(shown("intensity", [2], 1)[1], seen[2:3])


def test_half_resolution_is_judged_at_the_full_one(tmp_path):
    """Claim: it learns means of 2x2x2 voxels; a perfect half VAE loses what halving loses."""
    root = tiny.make_root(tmp_path)
    task, whole = grids.HalfTask(root, STUDY.vae, CPU), dataset.load_volumes(root)
    assert task.load(np.array([0])).shape == (1, 1, 8, 8, 8)
    person = whole[task.fit[0]].astype(np.float32)
    assert task.load(np.array([0]))[0, 0, 3, 4, 3] == pytest.approx(
        person[6:8, 8:10, 6:8].mean(), abs=1e-3
    )
    ramp = torch.arange(16.0).expand(1, 1, 16, 16, 16)
    again = grids.enlarge(grids.shrink(ramp))
    assert torch.equal(again[..., 1:-1], ramp[..., 1:-1]), "nothing is shifted"

    class Perfect(torch.nn.Module):
        mean_volume = task.model.mean_volume
        reconstruct = staticmethod(lambda volumes: volumes)

    trial = folds.Trial(root, STUDY, 0)
    found, model = grids.halve(trial), grids.Halved(Perfect())
    volumes = trial.volumes[trial.test].astype(np.float32)
    db = vae.psnr_db(vae.reconstruct(model, volumes), volumes, trial.brain).mean()
    assert found["psnr_db"] == db and 0.7 < found["effect_kept"] < 1

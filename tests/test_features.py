"""The in-domain feature network: it learns, it compares, and it is a product like others."""

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional

from dsnb import checkpoints, dataset, record, training, vae
from dsnb.checks import BadInput
from dsnb.config import replace
from dsnb.distributed import Noise
from dsnb.vae import features

CPU = torch.device("cpu")


def plan(volumes: int, **changes):
    return replace(tiny.STUDY.vae.training, volumes=volumes, lr=5e-3, checkpoint_every=volumes,
                   validate_every=volumes, **changes)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.make_root(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def net(root):
    """Return the network trained on fit people for a few seconds."""
    run = root / "runs" / "long"
    run.mkdir(parents=True)
    training.train(run, vae.FeatureTask(root, CPU), plan(1600), {})
    return vae.load_features(run)


def test_it_fills_holes_better_than_the_mean(root, net):
    """Claim: it learns how the parts of a brain belong together, not only their mean."""
    task = vae.FeatureTask(root, CPU)
    unseen = dataset.select(task.table, "euploid", "test")
    batch = dataset.as_batch(task.volumes, unseen, CPU)
    kept = torch.ones_like(batch)
    kept[..., 8:, 8:, :8] = 0
    holes = (kept == 0) & torch.as_tensor(tiny.brain())
    filled = net.fill(net(batch * kept)[-1])
    mean = torch.as_tensor(np.mean(task.volumes[task.fit], axis=0, dtype=np.float32))
    own, plain = ((batch - drawn)[holes].square().mean() for drawn in (filled, mean))
    assert own < 0.7 * plain


def test_levels_have_the_shapes_they_promise():
    """Claim: features come at 1/2, 1/4 and 1/8; the exit has the volume's shape."""
    found = vae.FeatureNet()(torch.rand(2, 1, 16, 24, 16))
    assert [part.shape for part in found] == [
        (2, 16, 8, 12, 8), (2, 24, 4, 6, 4), (2, 32, 2, 3, 2),
    ]  # fmt: skip
    assert vae.FeatureNet().fill(found[-1]).shape == (2, 1, 16, 24, 16)


def test_the_distance_is_zero_for_equal_and_rises_with_blur(root, net):
    """Claim: it counts what blur takes away, more of it the more is gone."""
    given = dataset.as_batch(dataset.load_volumes(root), np.arange(4), CPU)
    assert net.distance(given, given) == 0
    blurred, gaps = given, []
    for _ in range(3):
        blurred = functional.avg_pool3d(blurred, 3, 1, 1)
        gaps.append(net.distance(blurred, given).item())
    assert 0 < gaps[0] < gaps[1] < gaps[2]


def test_the_distance_reaches_the_drawn_volume_and_no_weight(root, net):
    """Claim: the network is a ruler: its gradient moves what is drawn, and not itself."""
    drawn = torch.rand(1, 1, *tiny.SHAPE, requires_grad=True)
    net.distance(drawn, torch.rand(1, 1, *tiny.SHAPE)).backward()
    assert drawn.grad.abs().sum() > 0
    assert not net.training and all(part.grad is None for part in net.parameters())


def test_a_quarter_of_the_blocks_goes_keyed_by_person_and_step(root):
    """Claim: cut blocks are whole, about a quarter, and the same wherever the person is."""
    task, seen = vae.FeatureTask(root, CPU), []

    class Spy(torch.nn.Module):
        def forward(self, volumes):
            seen.append((volumes != 0).float())
            return [torch.zeros(len(volumes), 32, 2, 2, 2)]

        def fill(self, hidden):
            return torch.zeros(len(hidden), 1, *tiny.SHAPE)

    def cut(rows, step):
        rows = np.array(rows)
        task.loss(Spy(), torch.ones(len(rows), 1, *tiny.SHAPE), Noise(1, rows, step, CPU))
        return seen.pop()

    kept = torch.cat([cut(range(24), step) for step in range(8)])
    assert kept.mean().item() == pytest.approx(0.75, abs=0.04)  # of 1536 blocks
    means = functional.avg_pool3d(kept, features.BLOCK)
    assert set(means.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(cut([3, 5], 2)[1], cut([5], 2)[0])
    assert not torch.equal(cut(range(24), 2), cut(range(24), 3))


def test_the_loss_of_a_batch_is_the_mean_of_its_halves(root):
    """Claim: shares of ranks can be averaged."""
    task = vae.FeatureTask(root, CPU)

    def terms(rows):
        return task.loss(task.model, task.load(np.array(rows)), Noise(0, np.array(rows), 3, CPU))

    whole, one, other = terms([0, 1, 2, 3]), terms([0, 1]), terms([2, 3])
    for name, term in whole.items():
        torch.testing.assert_close(term, (one[name] + other[name]) / 2)


def test_the_product_is_made_once_and_outdated_with_its_people(tmp_path):
    """Claim: a finished network is left alone; other settings train again; other people refuse."""
    root = tiny.make_root(tmp_path)
    study = replace(tiny.STUDY, vae=replace(tiny.STUDY.vae, training=plan(40)))
    with pytest.raises(BadInput, match="E-MISSING runs/features"):
        features.features_of(root)
    vae.train_features(root, study)
    first = checkpoints.listed(root / features.RUN)
    saved = checkpoints.require(root / features.RUN, "seen")
    assert saved["seen"] == 8  # a fifth of the VAE's volumes
    assert checkpoints.identical(saved["ema"], dict(features.features_of(root).state_dict()))
    vae.train_features(root, study)
    assert checkpoints.listed(root / features.RUN) == first
    other = replace(study, vae=replace(study.vae, training=plan(60)))
    vae.train_features(root, other)
    assert checkpoints.require(root / features.RUN, "seen")["seen"] == 12
    product = record.begin(root, "prepared", "prepare", {"other": 1}, (), ("space",))
    table = tiny.people()
    np.save(product.folder / "volumes.npy", tiny.volumes(table))
    tiny.bids.write_table(product.folder / "participants.tsv", table)
    product.finish()
    with pytest.raises(BadInput, match="E-STALE runs/features"):
        features.features_of(root)

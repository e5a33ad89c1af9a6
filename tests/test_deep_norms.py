"""Further deep norms: what each measures, on planted truths."""

import dataclasses

import numpy as np
import pytest
import torch
from test_anomaly import BRAIN, GRID, STUDY, make_source

from dsnb import config, diffusion, training, vae
from dsnb.anomaly import tuning, undo
from dsnb.anomaly.people import BY_NAME
from dsnb.search import deep_norms, quantised

VAE = dataclasses.replace(STUDY.vae, width=16)


@pytest.fixture
def source():
    """Return people as `deep_norms` sees them, without its networks."""
    found = make_source()
    found.__class__, found.nets = deep_norms.WiderSource, {}
    return found


def test_what_a_person_is_measured_by_is_measured_once(source, monkeypatch):
    """Falls: that residuals are of the person's own decoding, and that networks run once."""
    people = source.people(source.rows("euploid", "test")[:3])
    np.testing.assert_allclose(people.residual, people.volumes - people.decoded)
    calls = []
    monkeypatch.setitem(
        deep_norms.MEASURES, "matched", lambda who: calls.append(who) or who.whole + 1
    )
    assert people.matched is people.matched and len(calls) == 1
    np.testing.assert_allclose(people.matched, people.volumes + 1, rtol=1e-6)
    with pytest.raises(AttributeError):
        _ = people.unheard_of


def test_morph_draws_growth_as_growth():
    """Falls: sign and unit of the morph norm: a brain drawn 10 % wider has 0.10 more log volume."""
    model = vae.build(dataclasses.replace(VAE, architecture="morph"), *[np.ones(GRID.shape)] * 2)
    x = torch.arange(GRID.shape[0], dtype=torch.float32)
    field = torch.zeros(1, 3, *GRID.shape)
    field[0, 0] = ((x - x.mean()) * (np.exp(-0.1) - 1))[:, None, None]  # read nearer to the middle
    model.displacement = lambda z: (field.expand(len(z), -1, -1, -1, -1), None, None)
    volumes = np.ones((2, *GRID.shape), np.float32)
    found = deep_norms.drawn_volume(model, volumes, GRID.voxel_mm)
    assert found.shape == volumes.shape and found.mean() == pytest.approx(0.1, abs=1e-4)


def test_the_gap_of_features_lies_where_volumes_differ():
    """Falls: the perceptual weight: zero where volumes are equal, local where a change is."""
    given = torch.rand(1, 1, *GRID.shape, generator=torch.Generator().manual_seed(0))
    drawn = given.clone()
    drawn[..., 4:12, 4:12, 4:12] = 0
    net = vae.FeatureNet()
    net.levels = net.levels[:1]  # a deep level's normalisation spreads a change everywhere
    net.levels[0][1] = torch.nn.Identity()
    assert deep_norms.feature_gap(net, given, given).abs().max() == 0
    gap = deep_norms.feature_gap(net, drawn, given)[0, 0]
    assert gap[4:12, 4:12, 4:12].mean() > 0.01 and gap[20:, 20:, 20:].max() < 1e-6


def test_a_person_is_renewed_the_more_the_less_is_left():
    """Falls: partial noise: all kept gives the person back, little kept a stranger."""
    flow = diffusion.Flow(config.Diffusion(width=16, blocks=1), 6, (1, 2, 2, 2))
    basis = torch.linalg.qr(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)))[0].T
    for name, value in {"basis": basis, "spread": 1.0, "latent_sd": 1.0, "rest": 1.0,
                        "condition_sd": 1.0}.items():  # fmt: skip
        getattr(flow, name).copy_(torch.as_tensor(value))
    z = flow.expand(torch.randn(400, 6, generator=torch.Generator().manual_seed(1)))
    nobody = torch.zeros(400, len(diffusion.CONDITIONS))
    away = [
        float((deep_norms.renew(flow, z, nobody, share) - z).square().mean())
        for share in (1.0, 0.8, 0.4)
    ]
    assert away[0] < 1e-10 < 0.05 < away[1] < away[2]
    for size, share in zip(away[1:], (0.8, 0.4)):  # of unit variance, before and after
        assert size == pytest.approx(2 * (1 - np.sin(share * np.pi / 2)) * 6 / 8, rel=0.1)


def test_a_mean_of_norms_is_that_of_their_z(source):
    """Falls: the ensemble: equal weights, and on its members' own grid."""
    scale = source.people(source.rows("euploid", "scale"))
    people = source.people(source.rows("DS", "test"))
    norms = tuple(
        tuning.fit(BY_NAME[name], tuning.fit_model(BY_NAME[name], scale, 0), choice, scale, source)
        for name, choice in (
            ("tbm", {"components": 0, "fwhm_mm": 0.0}), ("undo", {"components": 0, "fwhm_mm": 8.0})
        )
    )  # fmt: skip
    mean = deep_norms.Mean(norms)
    np.testing.assert_allclose(mean.z(people), (norms[0].z(people) + norms[1].z(people)) / 2)
    place = np.argwhere(BRAIN).T.astype(np.float32)[None].repeat(len(people.volumes), 0)
    np.testing.assert_allclose(mean.in_own_grid(mean.z(people), place), mean.z(people), atol=1e-5)


def test_networks_of_several_seeds_are_averaged(source, monkeypatch):
    """Falls: `undo_three`: every seed's network has a third of the say."""
    source.nets = {f"undo_{seed}": float(seed) for seed in deep_norms.SEEDS}
    monkeypatch.setattr(undo, "find", lambda net, maps, covariates: net * maps)
    people = source.people(source.rows("euploid", "test")[:2])
    np.testing.assert_allclose(people.undo_three, 2 * people.log_jacobian, rtol=1e-5)


def test_a_discrete_latent_learns_to_draw(tmp_path, monkeypatch):
    """Falls: that the VQ-VAE is trained at all, as the VAE is, and not left at the mean brain."""
    rng = np.random.default_rng(0)
    mean = np.pad(np.full((16, 16, 16), 0.5, np.float32), 4)
    shapes = rng.standard_normal((2, 1, 1, 24, 24, 24)).astype(np.float32)
    shapes = torch.nn.functional.avg_pool3d(torch.from_numpy(shapes[0]), 5, 1, 2)[:, 0].numpy()
    volumes = mean + (mean > 0) * np.concatenate([3 * shapes, -3 * shapes])
    task = object.__new__(quantised.QuantisedTask)
    plan = dataclasses.replace(
        VAE.training, volumes=240, batch=2, lr=3e-3, validate_every=120, checkpoint_every=120
    )
    task.settings = dataclasses.replace(VAE, training=plan)
    task.volumes, task.device = volumes.astype(np.float32), torch.device("cpu")
    task.fit = task.validation = np.arange(2)
    task.rows = task.held = 2
    task.brain, task.names = mean > 0.3, lambda rows: [str(row) for row in rows]
    task.model = quantised.QuantisedVae(task.settings, mean)
    start = vae.psnr_db(np.stack([mean] * 2), task.volumes, task.brain).mean()
    ended = training.train(tmp_path, task, plan, {"settings": {}})
    assert ended["best"] > start + 1.5

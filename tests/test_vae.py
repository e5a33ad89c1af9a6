"""The normative VAE: shapes, formulas against references, leaks, and that it learns."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from dsnb import checkpoints, dataset, record, vae
from dsnb.checks import BadInput
from dsnb.config import Vae, replace


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tiny.make_root(tmp_path_factory.mktemp("vae"))
    vae.train(made, tiny.STUDY)
    return made


@pytest.fixture(autouse=True)
def tiny_template(monkeypatch):
    template = SimpleNamespace(brain=tiny.brain())
    monkeypatch.setattr(vae.space, "load_template", lambda grid: template)


def test_shapes_and_what_lies_outside(root):
    """Claim: the latent is 1/factor a side, and outside the support only the mean is drawn."""
    model = vae.LeanVae(tiny.STUDY.vae, tiny.SHAPE, dataset.load_volumes(root)[0])
    z_mean, z_logvar = model.encode(torch.rand(2, 1, *tiny.SHAPE))
    assert z_mean.shape == z_logvar.shape == (2, 2, 4, 4, 4)
    volumes = model.decode(z_mean)
    assert volumes.shape == (2, 1, *tiny.SHAPE)
    outside = (model.support == 0).expand_as(volumes)
    assert torch.equal(volumes[outside], model.mean_volume.expand_as(volumes)[outside])
    assert model.support.sum() > tiny.brain().sum()


def test_the_latent_is_local_and_in_place():
    """Claim: folding keeps positions: a change in one corner moves the latents of that corner."""
    model = vae.LeanVae(replace(tiny.STUDY.vae, blocks=0), (32, 32, 32), np.zeros((32, 32, 32)))
    volume = torch.zeros(1, 1, 32, 32, 32)
    changed = volume.clone()
    changed[..., :4, :4, 28:] = 0.1
    gap = (model.encode(changed)[0] - model.encode(volume)[0]).abs().amax(1)[0]
    assert np.unravel_index(int(gap.argmax()), gap.shape) == (0, 0, 7)


def test_the_kl_is_that_of_the_reference():
    """Claim: the closed form equals torch's KL between Gaussians, element by element."""
    generator = torch.Generator().manual_seed(0)
    z_mean, z_logvar = torch.randn(2, 50, generator=generator)
    posterior = torch.distributions.Normal(z_mean, (0.5 * z_logvar).exp())
    wanted = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(vae.kl_divergence(z_mean, z_logvar), wanted)


def test_psnr_and_ssim_have_known_answers():
    """Claim: 0.1 off everywhere is 20 dB; constants have Wang's SSIM; outside the brain is moot."""
    inside = np.zeros((16, 16, 16), bool)
    inside[6:10, 6:10, 6:10] = True
    one, other = np.full((1, 16, 16, 16), 0.5), np.full((1, 16, 16, 16), 0.6)
    assert vae.psnr_db(one, other, inside) == pytest.approx(20, abs=1e-4)
    assert vae.ssim(one, one, inside) == pytest.approx(1)
    wanted = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    assert vae.ssim(one, other, inside) == pytest.approx(wanted, abs=0.005)  # fp32 variances
    other[:, 0] = 9
    assert vae.psnr_db(one, other, inside) == pytest.approx(20, abs=1e-4)


def test_loss_terms_are_means_over_the_batch(root):
    """Claim: the loss of a batch is the mean of its halves', so shares of ranks can be averaged."""
    task = vae.VaeTask(root, tiny.STUDY.vae, torch.device("cpu"))

    def terms(rows):
        noise = vae.Noise(0, np.array(rows), 3, task.device)
        return task.loss(task.model, task.load(np.array(rows)), noise)

    whole, halves = terms([0, 1, 2, 3]), (terms([0, 1]), terms([2, 3]))
    assert set(whole) == {"l1", "mse", "kl"}
    for name, term in whole.items():
        torch.testing.assert_close(term, (halves[0][name] + halves[1][name]) / 2)
    heavy = replace(tiny.STUDY.vae, kl=2 * tiny.STUDY.vae.kl, mse=6.0)
    task.settings, light = heavy, whole
    torch.testing.assert_close(terms([0, 1, 2, 3])["kl"], 2 * light["kl"])
    torch.testing.assert_close(terms([0, 1, 2, 3])["mse"], 3 * light["mse"])


def test_the_mean_volume_knows_fit_people_only(root):
    """Claim: no unseen person leaks into the normative model through its mean volume."""
    table, volumes = dataset.load_table(root), np.array(dataset.load_volumes(root))
    fit = dataset.select(table, "euploid", "fit")
    others = np.setdiff1d(np.arange(len(table)), fit)
    model = vae.load(root)
    wanted = volumes[fit].astype(np.float32).mean(0)
    np.testing.assert_allclose(model.mean_volume[0, 0], wanted, atol=1e-6)
    task = vae.VaeTask(root, tiny.STUDY.vae, torch.device("cpu"))
    batch = task.load(np.arange(task.rows)).numpy()[:, 0].astype(np.float16)
    assert np.array_equal(batch, volumes[fit])
    assert not any(np.array_equal(one, other) for one in batch for other in volumes[others])


def test_it_reconstructs_unseen_people_far_better_than_the_mean(root):
    """Claim: it learns: unseen people's departures are drawn, not only the mean volume."""
    found = vae.evaluate(root, tiny.STUDY)
    headline = found["headline"]
    assert headline["psnr_db"] > headline["psnr_db_mean"] + 3
    assert headline["psnr_db"] < headline["psnr_db_pca"]  # four linear modes: PCA is the truth here
    assert headline["psnr_db_pca"] == pytest.approx(-20 * np.log10(tiny.NOISE), abs=1.5)
    assert headline["ssim"] > 0.5 and headline["active_channels"] >= 1
    assert set(headline) >= set(record.HEADLINE["03_vae"].split())
    empty = {name for name, value in headline.items() if value is None}
    assert empty == set(found["tables"]["reasons"])
    assert [row["model"] for row in found["tables"]["psnr"]] == ["lean", "mean", "pca"]


def test_the_noise_floor_is_that_of_the_phantoms_noise(root):
    """Claim: the floor is the PSNR of the phantom's own noise, site by site; none on real data."""
    table = dataset.load_table(root).assign(site="clinic")
    assert vae.noise_floor_db(root, tiny.STUDY, table) == pytest.approx(33.98, abs=0.01)
    louder = vae.noise_floor_db(root, tiny.STUDY, table.assign(site="public3"))
    assert louder == pytest.approx(33.98 - 20 * np.log10(1.1), abs=0.01)
    mark = (root / "study.json").read_text()
    try:
        record.write_json(root / "study.json", {"preset": "smoke", "data": "real"})
        assert vae.noise_floor_db(root, tiny.STUDY, table) is None
    finally:
        record.write_text(root / "study.json", mark)


def test_rivals_reconstruct_what_they_were_fitted_on():
    """Claim: PCA with all components returns its own people, and the mean rival their mean."""
    rng, inside = np.random.default_rng(0), np.ones((4, 4, 4), bool)
    fit = rng.normal(size=(6, 4, 4, 4)).astype(np.float32)
    drawn = vae.rivals(fit, fit, inside)
    np.testing.assert_allclose(drawn["pca"], fit, atol=1e-5)
    np.testing.assert_allclose(drawn["mean"][3], fit.mean(0), atol=1e-6)


def test_a_dead_channel_is_not_active(root):
    """Claim: a channel that carries nothing is reported as such."""
    model = vae.load(root)
    with torch.no_grad():
        model.posterior.weight[0] = 0  # posterior mean of channel 0 ...
        model.posterior.weight[2] = 0  # ... and its log-variance
        model.posterior.bias[[0, 2]] = 0
    channels = vae.channel_table(model, np.asarray(dataset.load_volumes(root)[:20]))
    assert not channels[0]["active"] and channels[0]["kl_nats"] == pytest.approx(0, abs=1e-6)
    assert channels[1]["active"] and channels[1]["kl_nats"] > 0.1


def test_loading_gives_the_averaged_weights_of_the_best(root):
    """Claim: what is used later is the EMA at the best validation score, with its own settings."""
    model, best = vae.load(root), checkpoints.require(root / "runs/vae")
    assert checkpoints.identical(dict(model.state_dict()), best["ema"])
    assert not checkpoints.identical(best["ema"], best["model"])
    assert model.settings == tiny.STUDY.vae and not model.training
    with pytest.raises(BadInput, match="E-MISSING"):
        vae.load(root, "runs/other")


def test_training_again_changes_nothing(root):
    """Claim: a finished run is left alone, and its numbers are those of its seed."""
    before = checkpoints.listed(root / "runs/vae")
    vae.train(root, tiny.STUDY)
    assert checkpoints.listed(root / "runs/vae") == before
    first, second = (vae.LeanVae(Vae(), (8, 8, 8), np.ones((8, 8, 8))) for _ in range(2))
    assert checkpoints.identical(dict(first.state_dict()), dict(second.state_dict()))

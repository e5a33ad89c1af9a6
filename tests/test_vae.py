"""The normative VAE: its task, its training, its product, and the numbers of its page."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional

from dsnb import checkpoints, dataset, record, rivals, training, vae
from dsnb.checks import BadInput
from dsnb.config import Training, Vae, replace
from dsnb.distributed import Noise
from dsnb.space import REGIONS
from dsnb.vae import quality

CPU = torch.device("cpu")
SHARP = replace(tiny.STUDY.vae, perceptual=0.1, adversarial=0.1, kl=1e-4)
FROM_LEDGER = {"gain_db_over_monai", "gain_db_over_monai_shrunk", "time_ratio_to_20db"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tiny.make_root(tmp_path_factory.mktemp("vae"))
    vae.train(made, tiny.STUDY)
    return made


def ruler(volumes, template, study) -> np.ndarray:
    """Return mean intensities of slabs as log 'region volumes': registration needs real brains."""
    slabs = np.array_split(np.flatnonzero(tiny.brain()), len(REGIONS))
    flat = np.asarray(volumes, np.float32).reshape(len(volumes), -1)
    return np.log(np.stack([flat[:, slab].mean(1) for slab in slabs], axis=1))


@pytest.fixture
def page(monkeypatch):
    """Give the page's numbers a tiny brain, a template and a ruler."""
    template = SimpleNamespace(brain=tiny.brain())
    monkeypatch.setattr(quality.space, "load_template", lambda grid: template)
    monkeypatch.setattr(quality.rivals, "load_template", lambda root: 0.6 * tiny.brain())
    monkeypatch.setattr(quality, "region_logs", ruler)


def make_task(root, settings: Vae) -> vae.VaeTask:
    return vae.VaeTask(root, settings, CPU, template=0.6 * tiny.brain().astype(np.float32),
                       feature_net=vae.FeatureNet().requires_grad_(False))  # fmt: skip


def terms_of(task, rows, step: int = 3) -> dict:
    return task.loss(task.model, task.load(np.array(rows)), Noise(0, np.array(rows), step, CPU))


@pytest.mark.parametrize("architecture", ["lean", "monai", "morph"])
def test_loss_terms_are_means_over_the_batch(root, architecture):
    """Claim: every term of a batch is the mean of its halves', so ranks' shares can be averaged."""
    settings = replace(SHARP, architecture=architecture)
    task = make_task(root, settings)
    with torch.no_grad():
        for weights in task.model.parameters():
            weights += 0.01  # `morph` would be at rest
    whole, halves = terms_of(task, [0, 1, 2, 3]), (terms_of(task, [0, 1]), terms_of(task, [2, 3]))
    rough = {"rough"} if architecture == "morph" else set()
    assert set(whole) == {"l1", "mse", "kl", "perceptual", "adversarial", "critic"} | rough
    for name, term in whole.items():
        assert term > 0 and term.dtype == torch.float32
        torch.testing.assert_close(term, (halves[0][name] + halves[1][name]) / 2, rtol=1e-4,
                                   atol=1e-8, msg=name)  # fmt: skip


def test_terms_are_weighted_by_the_settings(root):
    """Claim: each weight of the settings scales its own term and no other; 0 leaves it out."""
    task, settings = make_task(root, SHARP), SHARP
    before = terms_of(task, [0, 1])
    assert set(terms_of(make_task(root, tiny.STUDY.vae), [0, 1])) == {"l1", "mse", "kl"}
    for name in ("mse", "kl", "perceptual", "adversarial"):
        task.settings = replace(settings, **{name: 3 * getattr(settings, name)})
        for other, term in terms_of(task, [0, 1]).items():
            wanted = before[other] * (3 if other == name else 1)
            torch.testing.assert_close(term, wanted, msg=f"{name} {other}")


@pytest.mark.parametrize("architecture", ["lean", "monai", "morph"])
def test_every_term_is_fp32_under_autocast(root, architecture):
    """Claim: half-precision networks keep their losses in fp32, near those of a full one."""
    task = make_task(root, replace(SHARP, architecture=architecture))
    full = terms_of(task, [0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        half = terms_of(task, [0, 1])
        z_mean, z_logvar = task.model.encode(task.load(np.array([0])))
        assert z_mean.dtype == z_logvar.dtype == task.model.decode(z_mean).dtype == torch.float32
    for name, term in half.items():
        assert term.dtype == torch.float32, name
        torch.testing.assert_close(term, full[name], rtol=0.1, atol=1e-4, msg=name)


def test_noise_belongs_to_the_person_and_the_step(root):
    """Claim: a person's loss is the same in any batch, and another one at another step."""
    task = make_task(root, replace(tiny.STUDY.vae, quiet_start=False))  # which noise could reach
    torch.rand(3)  # what else drew numbers is moot
    apart = sum(terms_of(task, [row])["l1"] for row in (2, 5)) / 2
    torch.testing.assert_close(terms_of(task, [5, 2])["l1"], apart)
    assert terms_of(task, [2], step=4)["l1"] != terms_of(task, [2])["l1"]


def test_the_kl_is_warmed_up_by_volumes_seen(root):
    """Claim: the task counts volumes, so that a larger batch warms up no faster."""
    task = make_task(root, replace(tiny.STUDY.vae, kl_warmup=0.5))  # of 480 volumes, 4 a step
    whole = terms_of(make_task(root, tiny.STUDY.vae), [0], step=30)["kl"]
    torch.testing.assert_close(terms_of(task, [0], step=30)["kl"], whole * 120 / 240)


def test_the_mean_volume_knows_fit_people_only(root):
    """Claim: no unseen person leaks into the normative model through its mean volume."""
    table, volumes = dataset.load_table(root), np.array(dataset.load_volumes(root))
    fit = dataset.select(table, "euploid", "fit")
    others = np.setdiff1d(np.arange(len(table)), fit)
    model = vae.load(root)
    wanted = volumes[fit].astype(np.float32).mean(0)
    np.testing.assert_allclose(model.mean_volume[0, 0], wanted, atol=1e-6)
    task = vae.VaeTask(root, tiny.STUDY.vae, CPU)
    batch = task.load(np.arange(task.rows)).numpy()[:, 0].astype(np.float16)
    assert np.array_equal(batch, volumes[fit])
    assert task.names(np.array([0, 2])) == table["participant_id"].iloc[fit[[0, 2]]].tolist()
    assert not any(np.array_equal(one, other) for one in batch for other in volumes[others])
    few = vae.VaeTask(root, tiny.STUDY.vae, CPU, people=(fit[:5], fit[5:7]))
    assert (few.rows, few.held) == (5, 2) and not torch.equal(
        few.model.mean_volume, task.model.mean_volume)  # fmt: skip


def test_validation_is_the_same_by_shares(root):
    """Claim: ranks that validate a share each come to the one score of all validation people."""
    task, model = vae.VaeTask(root, tiny.STUDY.vae, CPU), vae.load(root)
    whole = task.assess(model, np.arange(4))
    parts = [task.assess(model, np.array(rows)) for rows in ([0, 1, 2], [3])]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
    found, wanted = task.conclude(joined), task.conclude(whole)
    assert found == pytest.approx(wanted, rel=1e-4)
    volumes = dataset.load_volumes(root)[task.validation].astype(np.float32)
    score = vae.psnr_db(vae.reconstruct(model, volumes), volumes, task.brain).mean()
    assert wanted["score"] == pytest.approx(score, abs=1e-3)
    assert -20 <= wanted["logvar_low"] <= wanted["logvar_high"] <= 10
    assert 0 < wanted["active_share"] <= 1 and wanted["kl_nats"] > 0


def test_a_collapsed_posterior_is_seen_in_validation(root):
    """Claim: the monitors tell a posterior that carries nothing: no active unit, no nats."""
    task, model = vae.VaeTask(root, tiny.STUDY.vae, CPU), vae.load(root)
    for part in model.to_posterior.parameters():
        part.zero_()
    found = task.conclude(task.assess(model, np.arange(4)))
    assert found["active_share"] == 0 and found["kl_nats"] == pytest.approx(0, abs=1e-6)


def test_it_reconstructs_unseen_people_far_better_than_the_mean(root, page):
    """Claim: it learns: unseen people's departures are drawn, not only the mean volume."""
    found = vae.evaluate(root, tiny.STUDY)
    headline = found["headline"]
    assert headline["psnr_db"] > headline["psnr_db_mean"] + 3
    assert headline["psnr_db"] < headline["psnr_db_pca"]  # four linear modes: PCA is the truth here
    assert headline["psnr_db_pca"] == pytest.approx(-20 * np.log10(tiny.NOISE), abs=1.5)
    assert headline["ssim"] > 0.5 and headline["active_channels"] >= 1
    assert set(headline) == set(record.HEADLINE["03_vae"].split()) - FROM_LEDGER
    empty = {name for name, value in headline.items() if value is None}
    assert empty == set(found["tables"]["reasons"])
    assert [row["model"] for row in found["tables"]["psnr"]] == ["lean", "mean", "pca"]
    errors = [row["error_pct"] for row in found["tables"]["regions"]]
    assert headline["region_error_pct"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert len(errors) == len(REGIONS) and 0 < np.mean(errors) < 5
    assert found["tables"]["curve"][-1]["seen"] > 470


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
    drawn = vae.linear_rivals(fit, fit, inside)
    np.testing.assert_allclose(drawn["pca"], fit, atol=1e-5)
    np.testing.assert_allclose(drawn["mean"][3], fit.mean(0), atol=1e-6)


def test_a_dead_channel_is_not_active(root):
    """Claim: a channel that carries nothing is reported as such."""
    model = vae.load(root)
    with torch.no_grad():
        model.to_posterior.weight[[0, 2]] = 0  # posterior mean of channel 0 and its log-variance
        model.to_posterior.bias[[0, 2]] = 0
    channels = vae.channel_table(model, np.asarray(dataset.load_volumes(root)[:20]))
    assert not channels[0]["active"] and channels[0]["kl_nats"] == pytest.approx(0, abs=1e-6)
    assert channels[1]["active"] and channels[1]["kl_nats"] > 0.1


def test_loading_gives_the_averaged_weights_of_the_best(root):
    """Claim: what is used later is the EMA at the best validation score, with its own settings."""
    model, best = vae.load(root), checkpoints.require(root / "runs/vae")
    assert checkpoints.identical(dict(model.state_dict()), best["ema"])
    assert not checkpoints.identical(best["ema"], best["model"])
    kept = replace(tiny.STUDY.vae.training, checkpoint_every=Training().checkpoint_every)
    assert model.settings == replace(tiny.STUDY.vae, training=kept), "how often it saved is moot"
    assert not model.training
    with pytest.raises(BadInput, match="E-MISSING"):
        vae.load(root, "runs/other")


def test_training_again_changes_nothing(root):
    """Claim: a finished run is left alone, and its numbers are those of its seed."""
    before = checkpoints.listed(root / "runs/vae")
    vae.train(root, tiny.STUDY)
    assert checkpoints.listed(root / "runs/vae") == before


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    """Return a root with a `morph` trained with every term, shortly, and its settings."""
    made, short = tiny.make_root(tmp_path_factory.mktemp("sharp")), tiny.STUDY.vae.training
    short = replace(short, volumes=24, checkpoint_every=24, validate_every=12)
    settings = replace(SHARP, architecture="morph", training=short)
    with pytest.MonkeyPatch.context() as patch:  # tiny balls cannot be registered
        patch.setattr(rivals, "fit_template", lambda volumes, study: volumes.mean(0, np.float32))
        vae.train(made, replace(tiny.STUDY, vae=settings))
    return made


def test_a_sharp_morph_is_made_with_all_it_needs(sharp):
    """Claim: `train` makes template and features first, names them as parents, and loads whole."""
    model = vae.load(sharp)
    np.testing.assert_allclose(model.template[0, 0], rivals.load_template(sharp), atol=1e-6)
    payload = checkpoints.require(sharp / "runs/vae")
    assert set(payload["identity"]["parents"]) == {"prepared", "template", "runs/features"}
    log = training.read_stats(sharp / "runs/vae")
    assert {"l1", "kl", "rough", "perceptual", "adversarial", "critic"} <= set(log)
    given = dataset.as_batch(dataset.load_volumes(sharp), np.arange(2), CPU)
    assert functional.mse_loss(model.reconstruct(given), given) < 0.1


def test_a_new_feature_network_outdates_the_vae(sharp):
    """Claim: a VAE whose perceptual loss came from another network is refused."""
    plan = replace(tiny.STUDY.vae.training, volumes=60, checkpoint_every=24, validate_every=12)
    vae.train_features(sharp, replace(tiny.STUDY, vae=replace(SHARP, training=plan)))
    with pytest.raises(BadInput, match="E-STALE runs/vae"):
        vae.load(sharp)

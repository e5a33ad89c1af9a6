"""The flow draws the people asked for, the same in any batch, and refuses another VAE."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

from dsnb import bids, config, dataset, diffusion, latents, record, training, vae
from dsnb.checks import BadInput
from dsnb.config import Diffusion, Training
from dsnb.diffusion import flow, guidance, samplers, synthesis, task
from dsnb.distributed import Noise

CPU = torch.device("cpu")
SHAPE = (2, 4, 4, 4)
SETTINGS = Diffusion(
    basis="members", components=6, width=64, blocks=1, steps=10,
    training=Training(volumes=38_400, batch=64, lr=3e-3, ema=0.99, checkpoint_every=38_400,
                      validate_every=9_600),
)  # fmt: skip
EFFECT = 1.5  # planted shift of DS along one latent pattern, in its SD
PATTERNS = np.linalg.qr(np.random.default_rng(9).standard_normal((128, 6)))[0].T


def make_latents(count: int = 240, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, dict]:
    """Draw people and rank-6 Gaussian latents; pattern 0 carries DS, pattern 1 age."""
    rng = np.random.default_rng(seed)
    ds = np.arange(count) % 3 == 0
    age = rng.uniform(30, 60, count)
    codes = rng.standard_normal((count, 6))
    codes[:, 0] += EFFECT * ds
    codes[:, 1] += (age - 45) / 10
    z = (3 + (codes * [4, 3, 2, 2, 1, 1]) @ PATTERNS).reshape(count, *SHAPE).astype(np.float32)
    held = rng.random(count) < 0.2
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{i:03d}" for i in range(count)],
            "group": np.where(ds, "DS", "euploid"),
            "kind": "recorded",
            "split": np.where(held, "validation", np.where(ds, "generator-fit", "fit")),
            "stage": "n/a",
            "age": age,
            "sex": rng.choice(["F", "M"], count),
        }
    )
    return table, z, {"mean": np.full(2, 3.0), "std": np.full(2, 0.5)}


def make_task(settings: Diffusion = SETTINGS, others=None) -> task.FlowTask:
    """Return the task of the planted latents, without any product on disk."""
    table, z, statistics = make_latents()
    regions = np.random.default_rng(1).normal(size=(len(table), 3))
    regions[:, 0] += (z.reshape(len(z), -1) @ PATTERNS[0]) / 4
    sides = [flow.Teachers(z[rows], table.iloc[rows], regions[rows])
             for rows in task.generator_rows(table)]  # fmt: skip
    model = flow.build(settings, sides[0], statistics, np.eye(4), others)
    return task.FlowTask(settings, CPU, model, *sides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[task.FlowTask, flow.Flow]:
    """Train once on the planted Gaussian; return the task and the averaged flow."""
    run = tmp_path_factory.mktemp("run")
    made = make_task()
    training.train(run, made, SETTINGS.training, {"made": "by a test"})
    made.model.load_state_dict(training.load_weights(run))
    return made, made.model.eval().requires_grad_(False)


def ask(count: int, group: str, age: float = 45.0) -> torch.Tensor:
    """Return the conditions of `count` equal people."""
    people = {"group": group, "stage": "n/a", "age": age, "sex": "F"}
    return flow.condition(pd.DataFrame([people] * count))


def test_components_and_latents_invert_each_other():
    """Decoded volumes would be of other latents than those drawn."""
    table, z, _ = make_latents()
    model = make_task().model
    components = model.project(torch.from_numpy(z))
    np.testing.assert_allclose(model.expand(components).numpy(), z, atol=1e-3)
    fit = task.generator_rows(table)[0]
    np.testing.assert_allclose(components[fit].std(0, correction=0).numpy(), 1, atol=1e-4)


def test_untrained_flow_draws_the_conditional_gaussian_exactly():
    """Euler steps would shrink the spread of every synthetic cohort (6 % in the usual time)."""
    model = make_task().model
    z = diffusion.draw(model, ask(4000, "DS"), seed=0, steps=10)
    components = model.project(z)
    standard = (ask(1, "DS") - model.condition_mean) / model.condition_sd
    np.testing.assert_allclose(components.mean(0), (standard @ model.effects)[0], atol=0.06)
    np.testing.assert_allclose(components.std(0), model.rest.sqrt(), rtol=0.04)


def test_gaussian_part_is_the_regression_on_conditions():
    """The effect of DS would be shrunk or shared with age before anything is learnt."""
    made = make_task()
    model, (data, conditions) = made.model, made.data
    standard = (conditions - model.condition_mean) / model.condition_sd
    rest = data - standard @ model.effects
    np.testing.assert_allclose((standard.T @ rest).numpy() / len(rest), 0, atol=1e-4)
    np.testing.assert_allclose(rest.var(0, correction=0), model.rest, rtol=1e-3)


def test_loss_of_the_exact_velocity_is_the_known_floor():
    """The loss would be of another quantity than dy/da of the circle between noise and data."""

    class Zero(torch.nn.Module):
        def forward(self, y, angle, conditions, kept):
            return torch.zeros_like(y)

    generator = torch.Generator().manual_seed(0)
    data, start = (torch.randn(4000, 6, generator=generator) for _ in range(2))
    share = torch.rand(4000, generator=generator)
    unit = flow.velocity_error(Zero(), (data, None), start, share, share).mean()
    assert unit.item() == pytest.approx(1, abs=0.03)  # cos^2 + sin^2
    wide = flow.velocity_error(Zero(), (2 * data, None), start, torch.zeros(4000), share)
    assert wide.mean().item() == pytest.approx(4, abs=0.12)  # at angle 0 the velocity is the data


def test_drawn_groups_differ_as_the_planted_ones(trained):
    """The synthetic DS effect would be missing, inverted or exaggerated."""
    _, model = trained
    z, table = make_latents()[1], make_latents()[0]
    ds, euploid = (diffusion.draw(model, ask(600, group), 1, 10) for group in ("DS", "euploid"))
    made = (ds.mean(0) - euploid.mean(0)).numpy().ravel()
    rows = table["group"] == "DS"
    fit = table["split"].isin(["fit", "generator-fit"])
    real = (z[rows & fit].mean(0) - z[~rows & fit].mean(0)).ravel()
    assert np.corrcoef(made, real)[0, 1] > 0.9
    assert 0.75 < made @ real / (real @ real) < 1.25


def test_drawn_spread_and_age_follow_the_data(trained):
    """Synthetic people would all look alike, or ignore the age asked for."""
    _, model = trained
    drawn = model.project(diffusion.draw(model, ask(600, "euploid"), 2, 10))
    ratio = drawn.std(0) / model.rest.sqrt()  # of people of one age, sex and group
    assert ((ratio > 0.8) & (ratio < 1.2)).all()
    old, young = (diffusion.draw(model, ask(300, "euploid", age), 3, 10) for age in (58, 32))
    table, z, _ = make_latents()
    slope = np.polyfit(table["age"], z.reshape(len(z), -1), 1)[0] * 26
    made = (old.mean(0) - young.mean(0)).numpy().ravel()
    assert 0.6 < made @ slope / (slope @ slope) < 1.3


def test_network_learns_what_no_gaussian_has():
    """The network would be dead weight beside the Gaussian: two modes would be filled up."""
    model, generator = make_task().model, torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(400):
        data, start = (torch.randn(256, 6, generator=generator) for _ in range(2))
        data[:, 2] = data[:, 2].sign() + 0.1 * start.roll(1, 0)[:, 2]
        share = torch.rand(256, generator=generator)
        batch = data, ask(256, "DS")
        loss = flow.velocity_error(model, batch, start, share, torch.zeros(256)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = model.project(diffusion.draw(model, ask(600, "DS"), 0, 20, guidance=0.0))
    assert (drawn[:, 2].abs() < 0.4).float().mean() < 0.12  # a Gaussian has 0.31
    assert (drawn[:, 3].abs() < 0.4).float().mean() > 0.2


def test_conditions_are_dropped_at_the_rate_asked_for():
    """Guidance would start from a model that never learnt to do without conditions."""
    made, seen = make_task(), []

    def model(y, angle, conditions, kept):
        seen.append(kept)
        return y

    rows = np.arange(made.rows)
    for step in range(10):
        made.loss(model, made.load(rows), Noise(1, rows, step, CPU))
    share = 1 - torch.cat(seen).mean().item()
    assert share == pytest.approx(SETTINGS.drop_condition, abs=0.02)


def test_guidance_exaggerates_the_condition(trained):
    """Guidance would do nothing, so that its choice could not be read from the effect."""
    _, model = trained

    def distance(guidance):
        ds, euploid = (
            diffusion.draw(model, ask(200, group), 1, 10, guidance) for group in ("DS", "euploid")
        )
        return (ds.mean(0) - euploid.mean(0)).norm()

    assert distance(2.0) > 1.3 * distance(1.0)
    assert distance(0.0) < 0.05 * distance(1.0)


@pytest.mark.parametrize("name", ["euler", "ddim", "ddpm"])
def test_every_sampler_draws_the_gaussian(name):
    """Samplers would be compared although one of them is wrong."""
    model = make_task().model
    drawn = model.project(diffusion.draw(model, ask(3000, "DS"), 0, 200, sampler=name))
    standard = (ask(1, "DS") - model.condition_mean) / model.condition_sd
    np.testing.assert_allclose(drawn.mean(0), (standard @ model.effects)[0], atol=0.08)
    np.testing.assert_allclose(drawn.std(0), model.rest.sqrt(), rtol=0.06)


def test_ddim_and_ddpm_are_those_of_monai():
    """The comparators would be of our own making: each step is that of MONAI's scheduler."""
    generator = torch.Generator().manual_seed(3)
    y, velocity = (torch.randn(5, 1, 4, 4, generator=generator) for _ in range(2))
    how = {"schedule": "cosine", "prediction_type": "v_prediction", "clip_sample": False}
    for kind, ours, count in ((DDIMScheduler, samplers.ddim, 20), (DDPMScheduler, samplers.ddpm,
                                                                   1000)):  # fmt: skip
        theirs = kind(1000, **how)
        theirs.set_timesteps(count)
        when = 500
        bars = theirs.alphas_cumprod[[when, when - 1000 // count]]
        angle, then = (float(torch.asin(torch.sqrt(bar))) for bar in bars)
        wanted = theirs.step(-velocity, when, y, generator=torch.Generator().manual_seed(1))[0]
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        made = ours(y, lambda *_: velocity, angle, then - angle, lambda: noise)  # noqa: B023
        np.testing.assert_allclose(made, wanted, atol=2e-4)


@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "sample"])
def test_each_prediction_trains_and_draws_the_planted_effect(prediction, tmp_path):
    """A prediction type would be a name only, or be read as another one's in sampling."""
    settings = replace(SETTINGS, prediction=prediction)
    made = make_task(settings)
    training.train(tmp_path, made, replace(settings.training, volumes=12_800), {})
    made.model.load_state_dict(training.load_weights(tmp_path))
    made.model.eval().requires_grad_(False)
    drawn = [made.model.project(diffusion.draw(made.model, ask(600, group), 1, 20))
             for group in ("DS", "euploid")]  # fmt: skip
    plain = make_task(settings).model
    gap, wanted = drawn[0].mean(0) - drawn[1].mean(0), plain.effects[0] / plain.condition_sd[0]
    assert 0.8 < gap @ wanted / (wanted @ wanted) < 1.2
    assert 0.85 < drawn[1].std(0).mean() / plain.rest.sqrt().mean() < 1.15


def test_predictions_differ_by_their_weight_alone():
    """The loss would not be that of the noise or of the data that the network is to predict."""
    batch, share = (torch.randn(64, 6), ask(64, "DS")), torch.linspace(0.1, 0.9, 64)
    start, angle = torch.randn(64, 6), torch.linspace(0.1, 0.9, 64) * torch.pi / 2
    for prediction in ("epsilon", "sample"):
        model = make_task(replace(SETTINGS, prediction=prediction)).model
        sine, cosine = angle.sin()[:, None], angle.cos()[:, None]
        y = sine * batch[0] + cosine * start
        found = model(y, angle, batch[1], torch.ones(64)).detach()
        told = {"epsilon": (cosine * y - sine * found, start),
                "sample": (sine * y + cosine * found, batch[0])}[prediction]  # fmt: skip
        wanted = (told[0] - told[1]).square().mean(1)
        error = flow.velocity_error(model, batch, start, share, torch.ones(64))
        np.testing.assert_allclose((model.weight(angle) * error).detach(), wanted.detach(),
                                   rtol=1e-3)  # fmt: skip


def test_a_unet_learns_on_the_whole_latent_grid(tmp_path):
    """MONAI's network would be in the table without having learnt: it must beat the Gaussian."""
    settings = replace(SETTINGS, basis="grid", denoiser="unet", width=32, blocks=1)
    made, everyone = make_task(settings), np.arange(40)
    before = made.assess(made.model, everyone)["error"].mean()
    plan = replace(settings.training, volumes=2_560, batch=16, lr=2e-3, checkpoint_every=2_560,
                   validate_every=1_280)  # fmt: skip
    training.train(tmp_path, made, plan, {})
    made.model.load_state_dict(training.load_weights(tmp_path))
    assert made.assess(made.model, everyone)["error"].mean() < 0.9 * before
    drawn = diffusion.draw(made.model.eval(), ask(4, "DS"), 0, 5)
    assert drawn.shape == (4, *SHAPE) and torch.isfinite(drawn).all()


def public_people(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Draw latents of others, the same patterns and noise in all places; and shown directions."""
    rng = np.random.default_rng(5)
    codes = rng.standard_normal((count, 6)) * [4, 3, 2, 2, 1, 1]
    noise = 0.5 * rng.standard_normal((count, 128))
    z = (3 + codes @ PATTERNS + noise).reshape(count, *SHAPE).astype(np.float32)
    return z, PATTERNS[1:4].reshape(3, *SHAPE).astype(np.float32)


def test_a_public_basis_keeps_the_effect_and_no_person():
    """Members could be told by the components (AUC 1), or DS would be lost with them."""
    settings = replace(SETTINGS, basis="public", components=5)
    made, (table, z, _) = make_task(settings, public_people()), make_latents()
    model = made.model
    back = model.project(model.expand(made.data[0]))
    np.testing.assert_allclose(back, made.data[0], atol=1e-3)
    drawn = [diffusion.draw(model, ask(2000, group), 1, 10) for group in ("DS", "euploid")]
    gap = (drawn[0].mean(0) - drawn[1].mean(0)).numpy().ravel() @ PATTERNS[0]
    assert 0.75 < gap / (4 * EFFECT) < 1.25
    fit, held = task.generator_rows(table)
    outside = [(torch.from_numpy(z[rows]) - model.expand(model.project(torch.from_numpy(z[rows]))))
               .square().mean((1, 2, 3, 4)).numpy() for rows in (fit, held)]  # fmt: skip
    assert abs(np.mean(outside[0][:, None] < outside[1]) - 0.5) < 0.12


def test_the_mean_of_members_is_drawn_along_directions_of_regions_alone():
    """Whoever knows the population's mean could tell members by that of samples (0.60, not 0.5)."""
    made = make_task(replace(SETTINGS, basis="public", components=5), public_people())
    table, z, _ = make_latents()
    rows, model = task.generator_rows(table)[0], made.model
    none = torch.zeros(1, len(model.spread))
    before = model.expand(none).flatten()
    for pattern, share in ((0, 1), (3, 0)):  # 0 carries regions
        moved = z[rows] + 2 * PATTERNS[pattern].reshape(SHAPE).astype(np.float32)
        flow.refit(model, flow.Teachers(moved, table.iloc[rows], None))
        gap = (model.expand(none).flatten() - before).numpy() @ PATTERNS[pattern]
        assert gap == pytest.approx(2 * share, abs=0.5)


def test_what_components_leave_out_is_drawn_again():
    """Synthetic people would lack all that a few components do not hold, and look alike."""
    settings = replace(SETTINGS, basis="public", components=5)
    model = make_task(settings, public_people()).model
    full, plain = (diffusion.draw(model, ask(800, "euploid"), 1, 10, remainder=some)
                   for some in (True, False))  # fmt: skip
    np.testing.assert_allclose(model.project(full), model.project(plain), atol=1e-2)
    left = (full - plain).flatten(1).std(0).mean().item()
    assert left == pytest.approx(0.5, rel=0.15)  # the noise of public people, less components


def test_what_is_drawn_leaves_with_its_fine_detail_raised(monkeypatch):
    """Would fall: spectrum_error_db; samples would leave as blurred as the decoder draws them."""
    (table, z, statistics), fine = make_latents(), {"gain": [1, 3], "gain_frequency": [0, 0.5]}
    model = flow.build(SETTINGS, flow.Teachers(z, table, None), statistics, np.eye(4), None, fine)
    drawn = np.zeros((1, 16, 16, 16), np.float32)
    drawn[:, 4:12, 4:12, 4:12] = 0.5 + 0.1 * np.random.default_rng(0).random((8, 8, 8))
    monkeypatch.setattr(synthesis, "decode_means", lambda *asked: drawn)
    made = synthesis.decode(model, None, table, [0], {})
    inside = drawn > 0
    assert made[inside].std() > 1.5 * drawn[inside].std() and not made[~inside].any()


def test_sample_is_the_same_in_any_batch(trained):
    """A synthetic person would change with the batch size (and with the number of ranks)."""
    _, model = trained
    together = diffusion.draw(model, ask(6, "DS"), 7, 5)
    alone = diffusion.draw(model, ask(2, "DS"), 7, 5, samples=np.array([4, 5]))
    np.testing.assert_allclose(together[4:].numpy(), alone.numpy(), atol=1e-5)
    assert (together[4] - together[5]).abs().max() > 0.1
    other = diffusion.draw(model, ask(6, "DS"), 8, 5)
    assert (together - other).abs().max() > 0.1


def test_condition_dropout_and_validation_are_keyed(trained):
    """Early choice would depend on luck or on the ranks: a person's error is its own."""
    made, model = trained
    everyone = np.arange(made.held)
    errors = made.assess(model, everyone)["error"]
    assert len(errors) == made.held and np.array_equal(
        made.assess(model, everyone)["error"], errors
    )
    parts = [made.assess(model, part)["error"] for part in np.array_split(everyone, 3)]
    np.testing.assert_allclose(np.concatenate(parts), errors, rtol=1e-5)
    with torch.no_grad():
        fresh = made.assess(make_task().model, everyone)
    assert made.conclude({"error": errors})["score"] > made.conclude(fresh)["score"]


def test_stage_is_a_continuum_and_no_stage_is_zero():
    """The stage asked for would reach the model as another one."""
    stages = ["n/a", "asymptomatic", "prodromal", "dementia"]
    table = pd.DataFrame({"group": "DS", "stage": stages, "age": 50.0, "sex": "M"})
    coded = flow.condition(table).numpy()
    np.testing.assert_array_equal(coded[:, 1], [0, 0, 0.5, 1])
    np.testing.assert_array_equal(coded[0], [1, 0, 1, -0.5])


def test_too_few_people_with_ds_train_euploids_alone(monkeypatch):
    """Three people with DS would be learnt by heart, in silence."""
    said = []
    monkeypatch.setattr(record, "say", said.append)
    table, z, statistics = make_latents()
    table = table.iloc[:30].copy()
    ds = np.flatnonzero((table["group"] == "DS") & (table["split"] == "generator-fit"))
    table = table.drop(table.index[ds[3:]])
    fit, _ = task.generator_rows(table)
    assert set(table["group"].iloc[fit]) == {"euploid"}
    assert "3 people with DS" in said[0]


def test_bootstrapped_people_resemble_the_real_ones():
    """Synthetic people would have other ages or stages than those the model knows."""
    table = make_latents()[0]
    people = synthesis.bootstrap_people(table, 300, [33.0, 55.0], seed=1)
    assert people["group"].value_counts().to_dict() == {"euploid": 300, "DS": 300}
    assert people["age"].between(33, 55).all()
    assert len(set(people["age"])) > 100
    assert people["participant_id"].iloc[[0, -1]].tolist() == ["sub-syn0001", "sub-syn0600"]
    again = synthesis.bootstrap_people(table, 300, [33.0, 55.0], seed=1)
    pd.testing.assert_frame_equal(people, again)


def test_spectrum_of_a_wave_peaks_at_its_frequency():
    """Blur would be read off at the wrong frequency."""
    brain = np.ones((32, 32, 32), bool)
    wave = np.sin(2 * np.pi * 0.25 * np.arange(32))[:, None, None] * np.ones((32, 32, 32))
    frequencies, power = vae.radial_spectrum(wave[None], brain)
    assert abs(frequencies[power.argmax()] - 0.25) < 0.02
    louder = vae.radial_spectrum(2 * wave[None], brain)[1]
    np.testing.assert_allclose(10 * np.log10(louder / power), 6.02, atol=0.01)


@pytest.fixture
def walk(tmp_path) -> tuple:
    """Make a data root whose prepared volumes are noise and whose latents are the planted ones."""
    study = replace(config.SMOKE, diffusion=replace(
        SETTINGS, synthetic=5, steps=2,
        training=replace(SETTINGS.training, volumes=128, validate_every=64),
    ))  # fmt: skip
    grid_shape, (table, _, _) = study.grid.shape, make_latents(40)
    table = table.assign(family=table["participant_id"])
    table.loc[table.index[-8:], "split"] = "test"
    rng = np.random.default_rng(0)
    product = record.begin(tmp_path, "prepared", "test", {}, (), ("space",))
    np.save(product.folder / "volumes.npy", rng.random((40, *grid_shape)).astype(np.float16))
    bids.write_table(product.folder / "participants.tsv", table)
    product.finish()
    study = replace(study, vae=replace(study.vae, training=replace(
        study.vae.training, volumes=4, batch=2, checkpoint_every=4, validate_every=4)))  # fmt: skip
    vae.train(tmp_path, study)
    latents.encode(tmp_path, study)
    return tmp_path, study


def test_walk_from_latents_to_a_synthetic_cohort(walk):
    """Training, sampling and the page's numbers would not fit together on disk."""
    root, study = walk
    diffusion.train(root, study)
    diffusion.sample(root, study)
    people = dataset.load_table(root, "synthetic")
    volumes = dataset.load_volumes(root, "synthetic")
    assert volumes.shape == (10, *study.grid.shape)
    assert volumes.dtype == np.float16
    scan = root / "synthetic/sub-syn0003/anat"
    path = next(scan.glob("*.nii.gz"))
    saved, affine = bids.load_volume(path)
    np.testing.assert_allclose(affine, study.grid.affine)
    np.testing.assert_allclose(saved, volumes[2], atol=1e-3)
    asked = json.loads(next(scan.glob("*.json")).read_text())["Requested"]
    assert asked["age"] == people["age"].iloc[2]
    description = json.loads((root / "synthetic/dataset_description.json").read_text())
    assert description["GeneratedBy"]
    found = diffusion.evaluate(root, study)
    assert found["tables"]["guidance"] == [] and found["headline"]["guidance"] == 1  # too few
    assert found["headline"]["sampler_steps"] == 2
    assert found["headline"]["spectrum_error_db"] > 0
    assert found["timing"]["seconds_per_volume"] > 0
    record.plain(found)  # refuses NaN


@pytest.mark.parametrize("slopes, asked, chosen", [
    ({0.75: 0.7, 1.0: 0.93, 1.25: 1.2}, 0.0, 1.0), ({0.75: 1.1, 1.0: 1.5}, 0.0, 0.75),
    ({}, 0.0, 1.0), ({1.0: 1.0}, 1.5, 1.5),
])  # fmt: skip
def test_guidance_is_that_of_validation_people(slopes, asked, chosen, monkeypatch):
    """Samples would exaggerate the disease (slope 1.8 at guidance 2), or lose it."""
    rows = [{"guidance": name, "effect_slope": slope} for name, slope in slopes.items()]
    monkeypatch.setattr(guidance, "guidance_table", lambda root, study: rows)
    study = config.load_study("small")
    study = replace(study, diffusion=replace(study.diffusion, guidance=asked))
    found = guidance.settle(None, study, 7)
    assert found == {"sampler": "euler", "steps": 20, "guidance": chosen, "seed": 7}


def test_killed_sampling_goes_on_to_the_same_cohort(walk):
    """A killed `sample` would start again or leave other volumes."""
    root, study = walk
    diffusion.train(root, study)
    diffusion.sample(root, study)
    whole = np.array(dataset.load_volumes(root, "synthetic"))
    manifest = json.loads((root / "synthetic/product.json").read_text())
    (root / "synthetic/product.json").unlink()
    (root / "synthetic/.begun").write_text(manifest["key"])
    for path in (root / "synthetic/sub-syn0009").glob("anat/*"):
        path.unlink()
    diffusion.sample(root, study)
    np.testing.assert_array_equal(dataset.load_volumes(root, "synthetic"), whole)


def test_another_vae_is_refused(walk):
    """Latents would be decoded by a VAE that never made them (lessons, absorb 2)."""
    root, study = walk
    diffusion.train(root, study)
    other = replace(study, vae=replace(study.vae, kl=1e-3))
    vae.train(root, other)
    latents.encode(root, other)
    with pytest.raises(BadInput, match=r"E-STALE runs/diffusion"):
        diffusion.sample(root, other)
    with pytest.raises(BadInput, match=r"E-MISMATCH.*runs/vae"):
        diffusion.load(root)


def test_further_people_are_those_asked_for_in_any_share(walk):
    """`sample FOLDER` would draw others than were asked for, or others again in an array job."""
    root, study = walk
    diffusion.train(root, study)
    asked = diffusion.Asked(6, "DS", (40.0, 50.0), 3)
    diffusion.sample_more(root, study, root / "whole", asked)
    for share in ("2/2", "1/2"):
        diffusion.sample_more(root, study, root / "shares", asked, share)
    people = bids.typed(bids.read_table(root / "whole/participants.tsv"))
    assert (people["group"] == "DS").all() and people["age"].between(40, 50).all()
    assert len(people) == 6 and people["age"].nunique() > 3
    scans = [sorted((root / name).glob("sub-*/anat/*.nii.gz")) for name in ("whole", "shares")]
    assert len(scans[0]) == len(scans[1]) == 6
    for one, two in zip(*scans):
        np.testing.assert_array_equal(bids.load_volume(one)[0], bids.load_volume(two)[0])
    other = asked._replace(seed=4)
    with pytest.raises(BadInput, match="E-EXISTS"):
        diffusion.sample_more(root, study, root / "whole", other)


@pytest.mark.parametrize(
    ("asked", "code"),
    [(diffusion.Asked(2, "DS", (5.0, 20.0)), "E-AGE"), (diffusion.Asked(2, "other"), "E-GROUP")],
)
def test_people_it_never_learnt_are_refused(walk, asked, code):
    """Somebody would take a brain of an age or group that the generator never saw for one."""
    root, study = walk
    diffusion.train(root, study)
    with pytest.raises(BadInput, match=code):
        diffusion.sample_more(root, study, root / "out", asked)
    assert not (root / "out").exists()


def test_ages_are_read_as_a_range():
    """`--age 40-60` would be taken for another wish, or for none."""
    assert diffusion.parse_ages("40:60") == (40.0, 60.0) and diffusion.parse_ages("") is None
    for wrong in ("40", "60:40", "a:b", "-3:20", "40:1000"):
        with pytest.raises(BadInput, match="E-AGE"):
            diffusion.parse_ages(wrong)

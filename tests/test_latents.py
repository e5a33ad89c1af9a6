"""Latents: nobody unseen by name, statistics of fit people, and known shifts and leaks."""

import numpy as np
import pandas as pd
import pytest
import tiny

from dsnb import dataset, latents, record, vae
from dsnb.config import replace


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.make_latents(tmp_path_factory.mktemp("latents"))


def test_every_volume_has_its_own_latents(root):
    """Claim: row i of the latents is the VAE's posterior of volume i, for everybody, once."""
    table, mean, logvar, _ = latents.load(root)
    volumes, rows = dataset.load_volumes(root), np.array([3, 40, 70])
    wanted = vae.encode(vae.load(root), volumes[rows])
    assert mean.shape == (len(volumes), 2, 4, 4, 4) and len(table) == len(volumes)
    np.testing.assert_allclose(mean[rows], wanted[0], atol=1e-5)
    np.testing.assert_allclose(logvar[rows], wanted[1], atol=1e-5)
    before = (root / "latents/mean.npy").stat().st_mtime_ns
    latents.encode(root, tiny.STUDY)
    assert (root / "latents/mean.npy").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", [
    {"latent": "eighth"}, {"latent": "pooled"}, {"latent": "flat"}, {"architecture": "monai"},
    {"architecture": "morph"},
])  # fmt: skip
def test_every_architecture_and_grid_is_encoded(kind, tmp_path):
    """Falls: `encode` of a latent other than the default's: shape, statistics and who was seen."""
    made = tiny.make_root(tmp_path)
    plan = replace(tiny.STUDY.vae.training, volumes=8, checkpoint_every=8, validate_every=8)
    settings = replace(tiny.STUDY.vae, channels=8, widths=(8, 8, 8), training=plan, **kind)
    study = replace(tiny.STUDY, vae=settings)
    vae.train(made, study)
    latents.encode(made, study)
    table, mean, logvar, statistics = latents.load(made)
    side = {"eighth": 2, "flat": 1}.get(kind.get("latent"), 4)
    assert mean.shape == logvar.shape == (len(table), 8, side, side, side)
    fit = mean[dataset.select(table, "euploid", "fit")]
    np.testing.assert_allclose(statistics["mean"], fit.mean((0, 2, 3, 4)), rtol=1e-4, atol=1e-6)
    assert set(table.loc[table["split"] == "fit", "seen_by"]) == {"vae"}


def test_statistics_are_of_fit_people_only(root):
    """Claim: neither an unseen euploid nor a patient moves the scale of the latents."""
    table, mean, _, statistics = latents.load(root)
    fit = mean[dataset.select(table, "euploid", "fit")]
    np.testing.assert_allclose(statistics["mean"], fit.mean((0, 2, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(statistics["std"], fit.std((0, 2, 3, 4)), rtol=1e-5)
    assert not np.allclose(statistics["mean"], mean.mean((0, 2, 3, 4)), rtol=1e-3)


def test_a_family_is_seen_as_a_whole():
    """Claim: a planted scan, sham or twin of somebody the VAE saw is never called unseen."""
    rows = [
        ("a", "euploid", "fit", True), ("a", "DS", "generator-fit", True),
        ("b", "euploid", "validation", True), ("b", "DS", "validation", True),
        ("c", "euploid", "test", False), ("c", "euploid", "sham", False),
        ("d", "DS", "test", False), ("d", "euploid", "truth", False),
        ("e", "DS", "validation", False),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["family", "group", "split", "seen"])
    assert list(latents.seen_by(table) == "vae") == list(table["seen"])


def test_a_known_shift_is_measured_without_bias():
    """Claim: the shift is in euploid SD, near the planted one, and near 0 where there is none."""
    rng = np.random.default_rng(0)
    reference, euploids, patients = (rng.normal(size=(n, 30)) for n in (400, 200, 100))
    assert abs(latents.shift_sd(reference, patients, euploids)) < 0.5
    patients[:, 0] += 3
    assert latents.shift_sd(reference, patients, euploids) == pytest.approx(3, abs=0.5)
    assert latents.shift_sd(reference, 7 * patients, 7 * euploids) > 2


def test_the_leak_floor_is_chance_or_not():
    """Claim: exchangeable groups give 0.5 within the interval; a mark of training is found."""
    rng = np.random.default_rng(1)
    unseen, seen = rng.normal(size=(80, 40)), rng.normal(size=(90, 40))
    floor = latents.leak_floor(unseen, seen)
    assert floor["low"] < 0.5 < floor["high"] and floor["low"] < floor["auc"] < floor["high"]
    marked = latents.leak_floor(unseen * 1.0 + 4 * np.eye(40)[0], seen)
    assert marked["low"] > 0.9 and (marked["unseen"], marked["seen"]) == (80, 90)


def test_the_summary_keeps_the_contract(root):
    """Claim: headline keys are there; too few people give a reason and no number."""
    found = latents.summarise(root, tiny.STUDY)
    headline = found["headline"]
    assert set(headline) == set(record.HEADLINE["04_latents"].split())
    assert headline["latent_size"] == 2 * 4 * 4 * 4
    assert 0 < headline["pca_variance_2"] < 1 and headline["ds_shift_sd"] > 0.4
    spectrum = [row["variance"] for row in found["tables"]["spectrum"]]
    assert spectrum == sorted(spectrum) and spectrum[1] == pytest.approx(headline["pca_variance_2"])
    assert all(row["people"] >= 5 for row in found["tables"]["components"])


def test_too_few_people_give_a_reason(root, monkeypatch):
    """Claim: with fewer than the least number of people, null and a reason, not a number."""
    monkeypatch.setattr(latents, "LEAST", 25)
    found = latents.summarise(root, tiny.STUDY)
    empty = {name for name, value in found["headline"].items() if value is None}
    assert empty == {"ds_shift_sd", "leak_floor_auc"} == set(found["tables"]["reasons"])

"""Axes of the latents: covariates on their components, ways from euploid to DS, and back again."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny

from dsnb import dataset, latents, vae
from dsnb.config import Maps
from dsnb.space import REGIONS
from dsnb.strata import axes

SETTINGS = Maps(bootstraps=100)


def test_correlations_find_what_a_component_carries():
    """Falls: the grid of page 04: a planted age and site are seen where they are."""
    rng = np.random.default_rng(0)
    scores, site = rng.standard_normal((200, 3)), rng.choice(["a", "b", "c"], 200)
    age = 50 - 5 * scores[:, 1] + rng.standard_normal(200)
    age[:10] = np.nan
    scores[:, 2] += 2.0 * (site == "b")
    known = {"age": age, "site": site, "sex": np.full(200, "F"), "motion": np.full(200, np.nan)}
    rows = {(r["component"], r["covariate"]): r for r in axes.correlate(scores, known)}
    assert {name for _, name in rows} == {"age", "site"}
    assert rows[2, "age"]["r"] < -0.9 and rows[3, "site"]["r"] > 0.5
    assert {key for key, row in rows.items() if row["q"] < 0.01} == {(2, "age"), (3, "site")}


def make_codes(shift: np.ndarray, seed: int = 0) -> axes.Codes:
    """Return latents of length 40 of euploids and people with DS, who are older and shifted."""
    rng, rows = np.random.default_rng(seed), []
    splits = [("euploid", "fit", 60), ("euploid", "scale", 60), ("euploid", "test", 40),
              ("DS", "generator-fit", 60), ("DS", "test", 40)]  # fmt: skip
    for group, split, count in splits:
        rows += [{"group": group, "split": split} for _ in range(count)]
    table = pd.DataFrame(rows).assign(sex=rng.choice(["F", "M"], len(rows)), kind="recorded")
    ds = (table["group"] == "DS").to_numpy()
    table["age"] = rng.uniform(20, 60, len(table)) + 10 * ds
    table["participant_id"] = table["family"] = [f"sub-{i:03d}" for i in range(len(table))]
    table["seen_by"] = np.where(table["split"] == "fit", "vae", "n/a")
    z = rng.standard_normal((len(table), 40)) * np.linspace(2, 0.5, 40)
    z += ds[:, None] * shift
    z[:, 5] += 0.1 * table["age"]
    return axes.Codes(table, z.astype(np.float32), (40, 1, 1, 1), {}, None,
                      np.flatnonzero(table["split"] == "fit"))  # fmt: skip


def test_the_mean_difference_holds_age_and_is_learnt_off_the_test_split():
    """Falls: that the way to DS is DS, and not ageing or the very people who are judged."""
    shift = np.zeros(40)
    shift[2] = 1.5
    codes = make_codes(shift)
    found = axes.directions(codes)
    assert found["mean difference"][2] == pytest.approx(1.5, abs=0.6)
    assert abs(found["mean difference"][5]) < 0.6  # ageing alone would be 1
    weight = found["discriminating"]
    assert weight @ weight == pytest.approx(weight @ found["mean difference"], rel=1e-4)
    assert np.argmax(np.abs(weight)) == 2
    taught = codes.table.iloc[axes.learners(codes)]
    assert {*taught["split"]} == {"scale", "generator-fit"}


def test_who_is_recognised_is_nearest_once_the_common_change_is_off():
    """Falls: identity: people who keep their own pattern are themselves, those who lose it not."""
    known = np.random.default_rng(0).standard_normal((30, 50))
    moved = known[:10] + 5.0
    assert axes.identified(moved, known).all()
    assert not axes.identified(np.roll(moved, 1, axis=0), known).any()


def test_moved_people_are_judged_by_their_regions(monkeypatch):
    """Falls: slope and correlation: a code that holds log volumes moves as far as DS is observed.

    The ruler here reads region volumes straight from the first numbers of a code.
    """
    shift, regions = np.zeros(40), len(REGIONS)
    shift[:regions] = np.linspace(-4, 4, regions)
    codes = make_codes(shift)

    def decode(self, z):
        return np.asarray(z, np.float32).reshape(len(z), 40, 1, 1)

    def ruler(volumes, grid=None):
        return np.exp(np.asarray(volumes, float).reshape(len(volumes), -1)[:, :regions])

    monkeypatch.setattr(axes.Codes, "load", lambda root: codes)
    monkeypatch.setattr(axes.Codes, "decode", decode)
    monkeypatch.setattr(axes.Codes, "encode", lambda self, v: v.reshape(len(v), -1))
    people = SimpleNamespace(table=codes.table, volumes=ruler(codes.z),
                             target=(codes.table["group"] == "DS").to_numpy(int))  # fmt: skip
    monkeypatch.setattr(axes, "People", lambda root, groups: people)
    whole = SimpleNamespace(brain=np.ones((40, 1, 1), bool))
    monkeypatch.setattr(axes, "load_template", lambda grid: whole)
    for name, answer in (("load_template", None), ("without_halo", None)):
        monkeypatch.setattr(axes.rivals, name, lambda v, answer=answer: v)
    monkeypatch.setattr(axes.rivals, "register_volumes", lambda v, template, study: v)
    monkeypatch.setattr(axes.rivals, "region_volumes", ruler)
    monkeypatch.setattr(axes.dataset, "load_volumes", lambda root: decode(None, codes.z))
    study = SimpleNamespace(maps=SETTINGS, grid=None)
    rows = pd.DataFrame(axes.move_towards_ds(None, study))
    assert len(rows) == len(axes.DIRECTIONS) * regions
    about = rows.groupby("direction").first()
    for name in ("mean difference", "mean difference of scans"):
        assert about.loc[name, "correlation"] > 0.9
        assert about.loc[name, "slope"] == pytest.approx(1, abs=0.25)
        assert (
            about.loc[name, "slope_low"] < about.loc[name, "slope"] < about.loc[name, "slope_high"]
        )
    assert about.loc["discriminating", "score_kept"] == pytest.approx(1, rel=1e-4)
    monkeypatch.setattr(axes, "LEAST", 100)
    assert axes.move_towards_ds(None, SimpleNamespace(maps=SETTINGS, grid=None)) == []


def test_without_unseen_learners_there_is_a_reason(monkeypatch):
    """Falls: that a cohort whose people with DS are all twins of seen ones gives no NaN."""
    codes = make_codes(np.zeros(40))
    ds_learners = (codes.table["group"] == "DS") & (codes.table["split"] == "generator-fit")
    codes.table.loc[ds_learners, "seen_by"] = "vae"
    people = SimpleNamespace(table=codes.table, volumes=np.ones((len(codes.table), len(REGIONS))),
                             target=(codes.table["group"] == "DS").to_numpy(int))  # fmt: skip
    monkeypatch.setattr(axes.Codes, "load", lambda root: codes)
    monkeypatch.setattr(axes, "People", lambda root, groups: people)
    study = SimpleNamespace(maps=SETTINGS, grid=None)
    monkeypatch.setattr(axes, "covariate_table", lambda root: (np.zeros((20, 1)), {}))
    monkeypatch.setattr(axes, "midpoints", lambda codes, settings: [])
    headline, tables, reasons = axes.describe(None, study)
    assert {*headline.values()} == {None} and {*reasons} == {*headline}
    assert tables["towards_ds"] == []


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.make_latents(tmp_path_factory.mktemp("axes"))


def test_codes_lead_to_volumes_and_back(root):
    """Falls: every picture of page 04: standardised codes decode as the latents that they are."""
    codes, (_, mean, _, _) = axes.Codes.load(root), latents.load(root)
    rows = codes.rows("euploid", "test")
    wanted = vae.decode(vae.load(root), np.asarray(mean[rows]))
    np.testing.assert_allclose(codes.decode(codes.z[rows]), wanted, atol=1e-4)
    volumes = np.asarray(dataset.load_volumes(root)[rows], np.float32)
    np.testing.assert_allclose(codes.encode(volumes), codes.z[rows], atol=1e-3)
    walks = axes.traverse(codes, 2)
    assert [*walks] == [1, 2] and walks[1].shape == (3, *tiny.SHAPE)
    np.testing.assert_allclose(walks[1][1], walks[2][1], atol=1e-5)
    assert np.abs(walks[1][2] - walks[1][0]).max() > 0.02
    steps = axes.interpolate(codes, *rows[:2])
    np.testing.assert_allclose(steps[[0, -1]], wanted[:2], atol=1e-4)


def test_the_middle_of_two_unlike_volumes_is_blurred(root):
    """Falls: the sharpness of middles: a mean of unlike pictures has less edge than its ends."""
    edges = np.zeros((2, 8, 8, 8))
    edges[0, :4], edges[1, 4:] = 1, 1
    ends = axes.edge_energy(edges)
    assert axes.edge_energy(edges.mean(0)[None])[0] < 0.6 * ends.mean()
    codes = axes.Codes.load(root)
    rows = {row["middle of"]: row for row in axes.midpoints(codes, SETTINGS)}
    pairs = codes.rows("euploid", "test").reshape(4, 2)
    wanted = []
    for pair in pairs:
        steps = axes.interpolate(codes, *pair)
        wanted.append(axes.edge_energy(steps[2:3])[0] / axes.edge_energy(steps[[0, -1]]).mean())
    assert rows["latents"]["edge"] == pytest.approx(np.mean(wanted), rel=1e-3)
    assert rows["latents"]["pairs"] == 4

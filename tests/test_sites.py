"""New sites: planted shifts are undone by k euploids, ComBat is the published one, folds hold."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tiny import STUDY, make_root

from dsnb import sites
from dsnb.checks import BadInput
from dsnb.config import SMOKE, Sites, replace
from dsnb.norms import Normative
from dsnb.sites import ComBat, recentre, trial
from dsnb.sites.trial import METHODS, NEW, People

SHIFT, EFFECT = 2.5, -1.5  # planted, in SD of the training people


def people(
    rng: np.random.Generator,
    count: int,
    ds: float = 0.0,
    sites_of: int = 1,
    spread: float = 1.0,
    common: float = 1.0,
) -> People:
    """Draw people whose 16 features share a part; DS have `EFFECT` in half of the features."""
    covariates = rng.normal(size=(count, 2))
    noise = rng.normal(size=(count, 16)) + common * rng.normal(size=(count, 1))
    group = (np.arange(count) < ds * count).astype(int)
    effect = EFFECT * np.sqrt(2) * (np.arange(16) < 8)
    features = covariates @ np.full((2, 16), 0.5) + spread * noise + group[:, None] * effect
    site = rng.integers(0, sites_of, count).astype(str)
    return People(features, covariates, site, group, features)


def p_of(norm: Normative, some: People) -> np.ndarray:
    return 2 * stats.t.sf(np.abs(norm.z(some.features, some.covariates)), norm.freedom)


def at_new(some: People, shift: float = SHIFT * np.sqrt(2)) -> People:
    return some._replace(features=some.features + shift, site=np.full(len(some.site), NEW))


@pytest.mark.parametrize("k", [2, 10, 50])
def test_recentring_restores_the_false_positive_rate_exactly(k):
    """Falls: the claim that k euploids undo a shift, whatever k, and that p says what it says."""
    rng, p, before = np.random.default_rng(k), [], []
    for _ in range(300):
        train, known, new = (people(rng, n) for n in (30, k, 20))
        known, new = at_new(known), at_new(new)
        norm = Normative.fit(train.features, train.covariates)
        moved = recentre(norm, known.features, known.covariates)
        p.append(p_of(moved, new)[:, 0])
        before.append(np.abs(norm.z(new.features, new.covariates))[:, 0])
    assert np.mean(np.stack(before) > 1.96) > 0.5
    # One site's people share its error, so sites are the units of the interval.
    rate = (np.stack(p) < 0.05).mean(1)
    assert abs(rate.mean() - 0.05) < 3 * stats.sem(rate) < 0.02


@pytest.mark.parametrize(("k", "common"), [(10, 1.0), (20, 1.0), (50, 1.0), (10, 4.0)])
def test_rescaling_answers_a_wider_spread_without_trusting_k_people_blindly(k, common):
    """Falls: the claim that rescaled p hold at a noisier site; the plain shift does not there."""
    rng, p = np.random.default_rng(k), {True: [], False: []}
    for _ in range(200):
        train = people(rng, 60, common=common)
        known, new = (at_new(people(rng, n, spread=1.5, common=common)) for n in (k, 40))
        norm = Normative.fit(train.features, train.covariates)
        for rescale, found in p.items():
            moved = recentre(norm, known.features, known.covariates, rescale)
            found.append(p_of(moved, new))
    rates = {
        name: [np.mean(np.stack(found) < q) for q in (0.05, 0.01)] for name, found in p.items()
    }
    assert rates[False][0] > 0.13
    assert 0.035 < rates[True][0] < 0.065 and 0.005 < rates[True][1] < 0.015


def test_recentring_keeps_the_effect_of_the_condition():
    """Falls: the claim that what is taken out is the site's and not the group's."""
    rng = np.random.default_rng(0)
    train, known, ds = people(rng, 400), at_new(people(rng, 50)), at_new(people(rng, 400, ds=1))
    norm = Normative.fit(train.features, train.covariates)
    for rescale in (False, True):
        moved = recentre(norm, known.features, known.covariates, rescale)
        effect = moved.z(ds.features, ds.covariates).mean(0)
        assert effect[:8].mean() == pytest.approx(EFFECT, abs=0.35)
        assert effect[8:].mean() - effect[:8].mean() == pytest.approx(-EFFECT, abs=0.25)


def test_combat_gives_the_numbers_of_the_reference_implementation():
    """Falls: the claim that this is ComBat as published; made once with neuroCombat 0.2.12."""
    row, column = np.arange(14)[:, None], np.arange(4)[None]
    features = np.sin(1.7 * row + 0.9 * column**2) + 0.3 * column
    site = np.repeat(["a", "b"], [6, 8])
    features[6:] = 1.5 * features[6:] + 0.5 + 0.2 * column
    covariate = (np.arange(14)[:, None] % 5 - 2) / 2
    found = ComBat.fit(features, site, covariate).apply(features, site, covariate)
    expected = [
        [0.31292, 1.59787, 0.80752, 2.6479],
        [-0.66088, -0.4545, 2.50933, 1.28723],
        [0.13907, -0.248, 1.95666, 0.7329],
    ]
    np.testing.assert_allclose(found[[0, 6, 13]], expected, atol=2e-5)


@pytest.mark.parametrize("name", METHODS)
def test_only_the_faulty_way_lets_test_people_into_what_is_learnt(name):
    """Falls: row S02, that test rows times 1000 move no parameter of the training fold by a bit."""
    rng = np.random.default_rng(1)
    train, known, test = people(rng, 90, 0.4, 3), at_new(people(rng, 10)), people(rng, 40, 0.5)
    test = test._replace(site=np.where(np.arange(40) % 4 == 0, NEW, test.site))
    wild = test._replace(features=1000 * test.features)
    clean, marked = (METHODS[name](train, some, known) for some in (test, wild))
    same = np.array_equal(clean[0], marked[0]) and clean[2] == marked[2]
    assert same is ("everybody" not in name)
    flipped = METHODS[name](train, test._replace(ds=1 - test.ds), known)
    assert np.array_equal(flipped[1], clean[1]) is ("everybody" not in name)


def test_where_site_is_group_everything_is_refused():
    """Falls: row S04, that what nothing can separate is not separated."""
    rng = np.random.default_rng(2)
    some = people(rng, 40, ds=0.5)
    norm = Normative.fit(some.features, some.covariates)
    with pytest.raises(BadInput, match="E-SITE new site: known people is 0.*not separable"):
        recentre(norm, some.features[:0], some.covariates[:0])
    told = np.column_stack([some.covariates, some.ds])
    with pytest.raises(BadInput, match="E-SITE.*known from the site.*not separable"):
        ComBat.fit(some.features, np.where(some.ds == 1, "clinic", "public"), told)
    fitted = ComBat.fit(some.features, some.site, told)
    with pytest.raises(BadInput, match="E-SITE ComBat.*'elsewhere'"):
        fitted.apply(some.features, np.full(40, "elsewhere"), told)


def test_the_null_shows_the_leak_of_combat_on_everybody_only():
    """Falls: the claim that a gain of ComBat told the group can be leakage where site is group."""
    rng = np.random.default_rng(3)
    train, held = people(rng, 120, 0.3, 3), people(rng, 90, 0.33, 3)
    held = held._replace(features=held.features + SHIFT * np.sqrt(2))
    rows = []
    for draw in range(16):
        rows += trial._draw(train, held, [20], np.random.default_rng(draw))
    table = trial._summarise(pd.DataFrame(rows)).droplevel("known")
    mixed, alone = (table.xs(share, level="entanglement") for share in (0, 1))
    assert alone.loc[trial.FAULTY, "auc_null"] > 0.55 and alone.loc[trial.FAULTY, "auc"] > 0.85
    fold = mixed.index.str.contains("fold|re-c")
    assert mixed.loc[fold, "auc_null"].between(0.45, 0.55).all()
    assert mixed.loc[fold, "kept"].between(0.85, 1.2).all()
    assert alone.loc[fold, "auc"].isna().all()
    assert alone.loc[fold, "reason"].str.contains("not separable").all()
    assert (alone["auc_site_alone"] == 1).all() and (mixed["auc_site_alone"] == 0.5).all()


def test_rescan_moves_grey_and_leaves_anchored_white():
    """Falls: the claim that the simulated scanner's contrast survives white-matter anchoring."""
    quiet = Sites(gain=1.0, bias=0.0, noise=0.0, blur_mm=0.0)
    volume = np.full(SMOKE.grid.shape, 0.55, np.float32)
    volume[:20], volume[0] = 0.85, 0
    seen = trial.rescan(volume, "sub-1", replace(SMOKE, sites=quiet))
    assert seen[30].max() < 0.53 and seen[0].max() == 0
    np.testing.assert_allclose(seen[1:20], 0.85, atol=1e-5)
    one, same, other = (trial.rescan(volume, f"sub-{n}", SMOKE) for n in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("tiny"))


def test_trial_answers_or_says_why_not(root):
    """Falls: the claim that a number or a reason stands in every cell, alike in every run."""
    study = replace(STUDY, sites=Sites(known=(10, 50), draws=3))
    found = sites.entangle(root, study)
    assert found == sites.entangle(root, study)
    table = pd.DataFrame(found["tables"]["sites"])
    assert set(table["known"]) == {0, 10}  # of 28 held-out euploids, 50 cannot be known
    balanced = table[table["entanglement"] == 0]
    assert balanced[trial.STATISTICS].notna().all(axis=None)
    refused = table[(table["entanglement"] == 1) & (table["known"] > 0)]
    assert len(refused) == 3 and refused["auc"].isna().all() and refused["reason"].notna().all()
    assert all(found["headline"][key] is not None for key in ("new_site_fpr", "combat_leak_auc"))
    few = sites.entangle(root, replace(STUDY, sites=Sites(known=(20,))))
    assert set(few["headline"].values()) == {None}
    assert set(few["tables"]["reasons"]) == set(found["headline"])

"""Discrimination, staging, strata: chance stays chance, a planted truth is found, leaks refused."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score, roc_auc_score

from dsnb import config
from dsnb.checks import BadInput
from dsnb.config import Strata
from dsnb.space import REGIONS
from dsnb.strata import crossval, curves, discrimination, permutation, progress, questions
from dsnb.strata.crossval import Features
from dsnb.strata.people import People, match

SETTINGS = Strata(
    outer_folds=3, inner_folds=2, penalties=(0.03, 0.3, 3.0), permutations=39, bootstraps=100,
    nulls=19, null_draws=4,
)  # fmt: skip


def make_people(count: int, seed: int = 0, shift: float = 0.0, features: int = 60):
    """Draw a table, labels and low-rank features; `shift` (in SD) separates DS along one axis."""
    rng = np.random.default_rng(seed)
    target = np.arange(count) % 2
    values = rng.standard_normal((count, features)) / np.sqrt(1 + np.arange(features))
    values[:, 1] += shift * target * values[:, 1].std()
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{i:03d}" for i in range(count)],
            "family": [f"f{i:03d}" for i in range(count)],
            "group": np.where(target == 1, "DS", "euploid"),
            "seen_by": "",
            "age": rng.uniform(30, 60, count),
            "sex": rng.choice(["F", "M"], count),
            "site": rng.choice(["a", "b"], count),
            "motion": rng.uniform(0.1, 0.5, count),
            "tiv_ml": rng.normal(1500, 100, count),
            "stage": "n/a",
            "cohort": "PUBLIC",
            "kind": "recorded",
            "origin": "n/a",
            "disability": "n/a",
            "cognition": np.nan,
        }
    )
    return table, target, values


def make_question(count: int, shift: float, seed: int = 0) -> People:
    """Return the people of a question without any product on disk."""
    table, target, values = make_people(count, seed, shift)
    people = object.__new__(People)
    people.table, people.target, people.families = table, target, table["family"].to_numpy(str)
    people.latents = Features(values @ values.T)
    people.volumes = np.exp(np.random.default_rng(seed).normal(3, 0.1, (count, len(REGIONS))))
    return people


def test_auroc_equals_scikit_learn():
    """Every AUROC of page 06 would be wrong, ties included."""
    rng = np.random.default_rng(0)
    target, scores = rng.random(80) < 0.4, rng.integers(0, 9, 80)
    assert crossval.auroc(target, scores) == pytest.approx(roc_auc_score(target, scores))


def test_ordinal_auroc_averages_the_cuts():
    """The staging gain would weigh another question than "at least this stage"."""
    rng = np.random.default_rng(0)
    target, probability = rng.integers(0, 3, 90), rng.dirichlet([1, 1, 1], 90)
    cuts = [roc_auc_score(target >= c, probability[:, c:].sum(1)) for c in (1, 2)]
    assert crossval.ordinal_auroc(target, probability) == pytest.approx(np.mean(cuts))


def test_dot_products_give_ridge_regression_on_the_training_part():
    """The answer would not be that of ridge regression, or would have seen test people (S02)."""
    _, target, values = make_people(40)
    values[30:] *= 1000  # the canary: test people far away must leave centre and unit alone
    train, test = np.arange(30), np.arange(30, 40)
    blocks = Features(values @ values.T).blocks(train, test)
    found = crossval.ridge(blocks, (1.0,), target[train, None].astype(float), (0.5,))[0]
    centred = values[train] - values[train].mean(0)
    unit = (centred**2).sum() / 30
    plain = Ridge(0.5 * unit).fit(centred, target[train])
    expected = plain.predict(values[test] - values[train].mean(0))
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)


def test_columns_are_scaled_and_filled_by_training_people():
    """A missing covariate would drop a person, or the scale would come from test people."""
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((30, 2)) * [1, 100] + [0, 500]
    columns[3, 1] = np.nan
    train, test = np.arange(20), np.arange(20, 30)
    ((known, new),) = Features(columns=(columns,)).blocks(train, test)
    assert np.isfinite(known).all() and np.trace(known) / 20 == pytest.approx(1)
    middle = np.nanmedian(columns[train, 1])
    filled = np.where(np.isnan(columns), middle, columns)
    scaled = (filled - filled[train].mean(0)) / filled[train].std(0)
    np.testing.assert_allclose(new, scaled[test] @ scaled[train].T / 2, atol=1e-9)


def test_only_learners_teach():
    """A second session would teach, here the opposite of what is true and more loudly."""
    table, target, values = make_people(120, shift=3.0)
    learners, features = np.arange(120) % 3 > 0, Features(values @ values.T)
    score = np.where(learners, target, 5.0 * (1 - target))
    for who, right in ((learners, True), (None, False)):
        answer = crossval.predict(table, score, SETTINGS, features, who)[:, 0]
        assert bool(np.corrcoef(answer, target)[0, 1] > 0.5) is right


def test_every_mixture_of_blocks_sums_to_one():
    """A block could be left out of a mixture, or weights would not be shares."""
    for count in (1, 2, 3, 4, 5):
        tried = crossval.mixtures(count)
        assert all(min(weights) > 0 and sum(weights) == pytest.approx(1) for weights in tried)
        assert len(set(tried)) == len(tried) == {1: 1, 2: 3, 3: 3, 4: 1, 5: 1}[count]


def test_a_score_is_predicted_and_its_gain_is_paired():
    """R2 of cognition, and what latents add to it, would be wrong."""
    table, _, values = make_people(150)
    families, known = table["family"].to_numpy(str), np.arange(150.0)[:, None]
    truth = 0.02 * known[:, 0] + 3 * values[:, 0]
    base = crossval.predict(table, truth, SETTINGS, Features(columns=(known,)))
    both = crossval.predict(table, truth, SETTINGS, Features(values @ values.T, (known,)))
    row = crossval.score("latents", truth, both, families, SETTINGS)
    assert 0.8 < row["r2_low"] < row["r2"] < row["r2_high"]
    assert row["mean_error"] == pytest.approx(np.abs(both[:, 0] - truth).mean())
    gain, (low, high) = crossval.gain(truth, both, base, families, SETTINGS)
    assert 0.2 < low < gain < high
    assert gain == pytest.approx(r2_score(truth, both[:, 0]) - r2_score(truth, base[:, 0]))


def test_probabilities_are_calibrated_and_sum_to_one():
    """A predicted outcome would be called a probability that it is not."""
    rng = np.random.default_rng(0)
    outcome = (rng.random((4000, 2)) < [0.6, 0.3]).astype(float)
    outcome[:, 1] *= outcome[:, 0]
    known = outcome + rng.standard_normal(outcome.shape)
    found = crossval._as_probability(outcome, known, known)
    assert (found >= 0).all() and found.sum(1) == pytest.approx(1)
    weights = np.where(
        outcome[:, 0] == 1, 0.5 / outcome[:, 0].mean(), 0.5 / (1 - outcome[:, 0].mean())
    )
    likely = 1 - found[:, 0] > 0.8
    share = np.average(outcome[likely, 0], weights=weights[likely])
    assert share == pytest.approx(
        np.average(1 - found[likely, 0], weights=weights[likely]), abs=0.02
    )


def test_pairs_are_of_one_sex_and_close_in_age():
    """The matched analysis would compare the old with the young."""
    table, target, _ = make_people(80)
    table["age"] = np.where(target == 1, 30 + table["age"] / 2, table["age"])
    rows = match(table, target)
    assert len(rows) > 40 and target[rows].mean() == 0.5
    for sex in ("F", "M"):
        ages = [np.sort(table["age"].to_numpy()[rows[(table["sex"].iloc[rows] == sex).to_numpy()
                & (target[rows] == group)]]) for group in (0, 1)]  # fmt: skip
        assert np.abs(ages[0] - ages[1]).max() <= 5


def test_a_site_is_judged_by_all_others_and_one_group_has_no_auroc():
    """A site's own people would teach its classifier, or AUROC be printed for one group (G23)."""
    people = make_question(120, 3.0)
    people.table["site"] = np.array(["a", "b", "c"])[np.arange(120) // 2 % 3]
    people.table.loc[people.table["site"] == "a", "cohort"] = "CLINIC"
    gone = (people.table["site"] == "c") & (people.target == 1)
    people.table.loc[gone, "site"] = "b"  # c keeps euploids alone
    people.table.loc[people.table["site"] == "c", "cohort"] = "EXTERNAL"
    rows = questions.cross_sites(people, SETTINGS)[1]["sites"]
    found = {(row["learnt_on"], row["features"]): row for row in rows}
    assert found["all but a", "latents"]["auc"] > 0.8
    assert found["all but a", "latents"]["people"] == (people.table["site"] == "a").sum()
    for learnt in ("all but c", "CLINIC"):
        alone = found[learnt, "latents"]
        assert alone["auc"] is None and alone["sensitivity_DS"] is None
        assert alone["note"] == "one group only: no AUROC" and alone["sensitivity_euploid"] > 0.7
    people.target = 1 - people.target  # a canary: labels of the judged site must not matter
    people.target[people.table["site"] != "a"] = 1 - people.target[people.table["site"] != "a"]
    turned = questions.cross_sites(people, SETTINGS)[1]["sites"][0]
    assert turned["auc"] == pytest.approx(1 - found["all but a", "latents"]["auc"])


def test_a_learning_curve_rises_and_compares_the_same_people(monkeypatch):
    """The page's answer to "how many people" would compare sets on other people, or not rise."""
    people, seen, fit = make_question(150, 0.0), [], crossval.fit
    people.latents = Features(make_people(150, shift=1.5)[2] @ make_people(150, shift=1.5)[2].T)

    def watch(features, target, families, train, test, settings):
        seen.append((len(train), target[train].mean(), tuple(train), tuple(test)))
        return fit(features, target, families, train, test, settings)

    monkeypatch.setattr(crossval, "fit", watch)
    sets = {"latents": people.latents, "again": people.latents}
    rows = curves.learn(people, sets, SETTINGS)
    one, other = ([row for row in rows if row["features"] == name] for name in sets)
    assert [row["learners"] for row in one] == [20, 40, 80]  # 100 people teach, half with DS
    assert one[-1]["auc"] > one[0]["auc"] + 0.05 and one[0]["low"] < one[0]["auc"] < one[0]["high"]
    assert [row["auc"] for row in one] == [row["auc"] for row in other]
    assert all(share == 0.5 and not {*train} & {*test} for _, share, train, test in seen)
    assert seen[0][2:] == seen[1][2:] and {count for count, *_ in seen} == {20, 40, 80}


def test_progress_follows_the_truth_and_sessions_are_paired():
    """The disease-progress score: rank, agreement of sessions and change have known answers."""
    rng = np.random.default_rng(0)
    truth = np.r_[rng.uniform(0, 2, 60), np.zeros(20)]
    truth[60:] = truth[:20] + 0.3
    names = [f"sub-{i:02d}" for i in range(80)]
    table = pd.DataFrame({"participant_id": names, "family": names[:60] + names[:20],
                          "origin": ["n/a"] * 60 + names[:20]})  # fmt: skip
    first = np.arange(80) < 60
    row = progress.judge(
        table, first, 0.5 * truth + 0.01 * rng.standard_normal(80), truth, SETTINGS
    )
    assert row["rank_correlation"] > 0.98 and row["rank_low"] > 0.95
    assert row["people"] == 60 and row["twice"] == 20 and row["icc"] > 0.85
    assert row["true_change"] == pytest.approx(0.3) and row["change"] == pytest.approx(
        0.15, abs=0.01
    )
    assert row["change_low"] < 0.15 < row["change_high"]
    unknown = progress.judge(table.iloc[:65], first[:65], truth[:65], None, SETTINGS)
    assert "rank_correlation" not in unknown and "icc" not in unknown and unknown["twice"] == 5


def test_later_sessions_do_not_teach_the_progress_score(monkeypatch):
    """Falls: that a second session is only judged: here they would teach the opposite."""
    people = make_question(120, 0.0, seed=1)
    stages = np.random.default_rng(5).integers(0, 3, 120)
    later = np.arange(120) >= 60
    stages[later] = 2 - stages[:60]
    people.table["stage"] = np.array(["asymptomatic", "prodromal", "dementia"])[stages]
    people.table["kind"] = np.where(later, "repeat", "recorded")
    values = make_people(120, seed=1)[2]
    values[:, 0] += 3 * np.where(later, 2 - stages, stages)
    truth = pd.DataFrame({"progress": stages.astype(float)})
    people.table["split"] = people.table["group"] = "DS"
    people.table["seen_by"] = "n/a"
    monkeypatch.setattr(progress.latents, "load", lambda root: (people.table,))
    monkeypatch.setattr(progress, "People", lambda root, groups, kind: people)
    monkeypatch.setattr(progress, "known_truth", lambda root, table: truth)
    sets = {"latents": Features(values @ values.T)}
    monkeypatch.setattr(progress, "sets_of", lambda people, study, voxels: sets)
    study = config.replace(config.load_study("smoke"), strata=SETTINGS)
    plain, beside = progress.follow(None, study)[1]["progress"]
    assert plain["features"] + ", latents" == beside["features"]
    assert beside["rank_correlation"] > 0.8 > 0.3 > plain["rank_correlation"]
    people.table["seen_by"] = "vae"
    assert "never saw" in progress.follow(None, study)[2]["progress"]


def test_planted_difference_is_found_and_shuffled_labels_are_chance():
    """An AUROC would not mean separation, or would be above chance by construction (G18, S01)."""
    table, target, values = make_people(120, shift=2.0)
    kernel, families = values @ values.T, table["family"].to_numpy(str)
    found = crossval.predict(table, target, SETTINGS, Features(kernel))
    row = crossval.score("latents", target, found, families, SETTINGS)
    assert row["auc_low"] > 0.7
    assert row["auc_low"] < row["auc"] < row["auc_high"]
    covered = 0
    for seed in range(6):
        shuffled = np.random.default_rng(seed).permutation(target)
        chance = crossval.predict(table, shuffled, SETTINGS, Features(kernel))
        null = crossval.score("null", shuffled, chance, families, SETTINGS)
        covered += null["auc_low"] <= 0.5 <= null["auc_high"]
    assert covered >= 5


def test_many_noise_features_do_not_beat_chance():
    """Any fit outside the folds would separate random labels (a leak through the features)."""
    rng = np.random.default_rng(3)
    table, target, _ = make_people(60)
    values = rng.standard_normal((60, 3000))
    found = crossval.predict(table, target, SETTINGS, Features(values @ values.T))
    assert 0.3 < crossval.ordinal_auroc(target, found) < 0.7


def test_seen_people_are_refused():
    """People from the VAE's training could raise the AUROC (a leak)."""
    table, target, values = make_people(30)
    table.loc[4, "seen_by"] = "vae"
    with pytest.raises(BadInput, match=r"E-SEEN.*1 of 30"):
        crossval.predict(table, target, SETTINGS, Features(values @ values.T))
    with pytest.raises(BadInput, match="E-SEEN"):
        permutation.permutation_p(table, target, values @ values.T, SETTINGS)


def test_families_are_never_split():
    """A planted scan and its original could stand on both sides of a fold (G16)."""
    table, target, _ = make_people(60)
    table["family"] = [f"f{i // 2}" for i in range(60)]  # a euploid and its planted scan
    families = table["family"].to_numpy()
    for train, test in crossval.split(target, families, 3, 1):
        assert not set(families[train]) & set(families[test])


def test_interval_resamples_families():
    """Repeats of one person would be counted as evidence and narrow every interval."""
    rng = np.random.default_rng(0)
    target = np.repeat(rng.permutation(np.arange(40) % 2), 10)
    score = np.repeat(rng.normal(size=40), 10) + target
    families = np.repeat(np.arange(40), 10).astype(str)

    def width(groups):
        low, high = crossval.interval(
            lambda rows: crossval.auroc(target[rows] == 1, score[rows]), groups, SETTINGS
        )
        return high - low

    assert width(families) > 2 * width(np.arange(400).astype(str))


def test_permutation_stays_within_site_and_p_is_never_zero():
    """The null would mix sites, or a p of 0 could be printed (G19)."""
    table, target, values = make_people(80, shift=3.0)
    site = table["site"].to_numpy(str)
    shuffled = permutation.permute(target, site, np.random.default_rng(0))
    assert (shuffled != target).any()
    for name in ("a", "b"):
        assert shuffled[site == name].sum() == target[site == name].sum()
    assert permutation.permutation_p(table, target, values @ values.T, SETTINGS) == 1 / 40


def test_s03_too_few_people_give_a_reason():
    """A fold without one class would raise or print NaN (S03)."""
    alone = np.arange(50)
    assert "one class only" in crossval.too_few(np.zeros(50, int), alone, 2, SETTINGS)
    few = np.array([0] * 40 + [1] * 5)
    assert "5 families" in crossval.too_few(few, alone[:45], 2, SETTINGS)
    assert crossval.too_few(np.array([0, 1] * 10), alone[:20], 2, SETTINGS) is None
    siblings = alone[:40] // 2 % 2 * 100 + np.array([0, 1] * 20)  # 20 people in 2 families
    assert "2 families" in crossval.too_few(np.array([0, 1] * 20), siblings, 2, SETTINGS)


@pytest.mark.parametrize("patients", [0, 1, 5, 6, 40])
def test_s03_every_cohort_gives_numbers_or_reasons(patients, monkeypatch, tmp_path):
    """A test set of one class, or of hardly another, would raise or write NaN into a table."""
    people = make_question(40, 1.0)
    people.root = tmp_path
    people.target = (np.arange(40) < patients).astype(int)
    people.table["group"] = np.where(people.target, "DS", "euploid")
    monkeypatch.setattr(questions, "People", lambda root, groups: people)
    for name in ("true_volumes", "known_truth"):
        monkeypatch.setattr(questions, name, lambda root, table: None)
    monkeypatch.setattr(questions, "follow", lambda root, study: ({}, {}, {}))
    monkeypatch.setattr(questions, "sets_of", lambda people, study: {"latents": people.latents})
    study = config.replace(config.load_study("smoke"), strata=SETTINGS)
    found = questions.analyse(None, study)
    json.dumps(found, allow_nan=False, default=lambda value: value.item())
    index = (Path(__file__).parents[1] / "book/index.md").read_text()
    glued = {*re.findall(r"06_strata\.ipynb::(\w+):", index)}
    later = ("hard", "false_discovery", "finding")  # of ledgers, and in words
    later = {name for name in glued if any(word in name for word in later)}
    assert glued - later <= {*found["headline"]}
    silent = [key for key, value in found["headline"].items() if value is None]
    assert set(silent) <= set(found["tables"]["reasons"])
    assert (found["headline"]["auc_ds"] is None) == (patients != 6)


def test_s04_site_that_is_the_group_is_not_separable(tmp_path):
    """A site effect would be sold as Down syndrome (S04)."""
    people = make_question(60, 2.0)
    people.table["site"] = np.where(people.target == 1, "clinic", "public")
    people.root = tmp_path
    headline, tables, reasons = discrimination.discriminate(
        people, {"latents": people.latents}, None, SETTINGS
    )
    rows = {row["features"]: row for row in tables["discrimination"]}
    assert rows["site"]["auc"] == 1.0
    assert "not separable" in reasons["site"]
    assert headline["auc_ds_confounds"] < 0.8
    assert headline["auc_ds_oracle"] is None
    assert "truth" in reasons["auc_ds_oracle"]


def test_controls_show_what_site_lends_to_latents():
    """A site effect in the latents would go unseen where a site holds euploids only (G18, G20)."""
    people = make_question(150, 0.0, seed=2)
    site = np.where(people.target == 1, "b", np.where(np.arange(150) % 3 == 0, "b", "a"))
    people.table["site"] = site
    values = make_people(150, seed=2)[2]
    values[:, 0] += 3 * (site == "a")
    people.latents = Features(values @ values.T)
    rows = {row["features"]: row for row in discrimination._controls(people, SETTINGS)}
    assert rows["latents, labels permuted"]["auc_low"] < 0.5
    assert rows["latents, labels permuted within site"]["auc_low"] > 0.6
    like = rows["latents, sites with both groups"]
    assert like["people"] == (site == "b").sum()
    assert like["auc_low"] < 0.5


def test_latents_that_add_to_staging_show_a_gain():
    """The staging gain would be missed where latents know the stage, or claimed where not."""
    found = []
    for shift in (2.5, 0.0):
        people = make_question(240, 0.0, seed=1)
        stages = np.random.default_rng(5).integers(0, 3, 240)
        people.table["stage"] = np.array(["asymptomatic", "prodromal", "dementia"])[stages]
        values = make_people(240, seed=1)[2]
        values[:, 0] += shift * stages
        people.latents = Features(values @ values.T)
        headline, tables, _ = questions.stage(people, {"latents": people.latents}, SETTINGS)
        found.append(headline["stage_gain_ci"])
        assert "kappa" in tables["staging"][0]
    assert found[0][0] > 0.1
    assert found[1][0] < 0.05


def test_no_stage_gives_null_and_a_reason():
    """A cohort without stages would raise instead of saying so."""
    people = make_question(40, 0.0)
    headline, _, reasons = questions.stage(people, {"latents": people.latents}, SETTINGS)
    assert headline == dict.fromkeys(questions.STAGING)
    assert "one class only" in reasons["stage_gain"]

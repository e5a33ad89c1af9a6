"""Rows S01, S04, G18 to G20 and G23 of the table of faults, for discrimination: one test a row."""

import numpy as np
import pandas as pd
import pytest
from test_strata import SETTINGS, make_people, make_question

from dsnb import config
from dsnb.space import GROUPS
from dsnb.strata import crossval, discrimination, permutation, questions
from dsnb.strata.crossval import Features
from dsnb.strata.people import confounders

SEEDS = 20


def balanced_accuracy(people, target: np.ndarray) -> list[float]:
    """Return the 95 % interval of the balanced accuracy of latents, by family."""
    answer = crossval.predict(people.table, target, SETTINGS, people.latents)
    right = answer.argmax(1) == target

    def statistic(rows: np.ndarray) -> float:
        return float(np.mean([right[rows][target[rows] == group].mean() for group in (0, 1)]))

    return crossval.interval(statistic, people.families, SETTINGS)


def test_g18_s01_permuted_labels_are_chance():
    """Falls: the null control: in 18 of 20 draws the interval of permuted labels covers 0.5."""
    covered = 0
    for seed in range(SEEDS):
        people = make_question(90, 2.0, seed=seed)
        rng = np.random.default_rng(seed)
        shuffled = permutation.permute(people.target, people.table["site"].to_numpy(str), rng)
        low, high = balanced_accuracy(people, shuffled)
        covered += low <= 0.5 <= high
    assert covered >= 18


def test_g18_a_planted_leak_is_found():
    """Falls: that a mark of the label in one voxel of a thousand would be seen by the control."""
    people = make_question(90, 0.0)
    values = np.random.default_rng(0).standard_normal((90, 1000))
    values[:, 7] = 15 * people.target  # 5 % of the variance
    people.latents = Features(values @ values.T / 1000)
    assert balanced_accuracy(people, people.target)[0] > 0.9


def test_g19_p_has_a_least_value_and_the_study_draws_a_thousand():
    """Falls: p = (b + 1) / (m + 1) with m of at least 1,000 on the headline task."""
    assert config.load_study("small").strata.permutations >= 1000
    table, target, values = make_people(60, shift=4.0)
    p = permutation.permutation_p(table, target, values @ values.T, SETTINGS)
    assert p == 1 / (SETTINGS.permutations + 1)


def test_g20_plain_baselines_stand_beside_and_site_is_asked_of_latents():
    """Falls: site, age and sex, motion, brain size beside the classifier; site told by latents."""
    people = make_question(120, 0.0, seed=3)
    assert {"site", "age and sex", "motion", "head size"} <= {*confounders(people)}
    values = make_people(120, seed=3)[2]
    values[:, 0] += 3 * (people.table["site"] == "a")
    sets = {"latents": Features(values @ values.T)}
    rows = questions.ask_others(people, sets, SETTINGS)[1]["site_told"]
    told = {row["site"]: row["auc"] for row in rows if row["features"] == "latents"}
    assert {*told} == {"a", "b"} and min(told.values()) > 0.9


def test_g23_a_set_of_one_class_gives_sensitivity_and_no_auroc():
    """Falls: a cohort of DS alone (as ABC-DS) judged by a classifier that came from elsewhere."""
    people = make_question(120, 3.0)
    people.table["cohort"] = np.where(np.arange(120) < 80, "CLINIC", "EXTERNAL")
    kept = np.flatnonzero((people.table["cohort"] == "CLINIC") | (people.target == 1))
    people.table = people.table.iloc[kept].reset_index(drop=True)
    people.target, people.families = people.target[kept], people.families[kept]
    people.latents, people.volumes = people.latents.of(kept), people.volumes[kept]
    rows = discrimination.cross_sites(people, SETTINGS)[1]["sites"]
    (sent,) = [r for r in rows if r["learnt_on"] == "CLINIC" and r["features"] == "latents"]
    assert sent["sensitivity_DS"] > 0.8 and sent["sensitivity_euploid"] is None
    assert sent["auc"] is None and "one group only" in sent["note"]


def test_a_gaussian_kernel_sees_what_no_line_can():
    """Falls: the kernel row: groups that differ by their distance from the middle alone."""
    rng = np.random.default_rng(0)
    target = np.arange(200) % 2
    values = rng.standard_normal((200, 3)) * (1 + 3 * target[:, None])
    table = make_people(200)[0]
    auc = {}
    products = values @ values.T
    curved = discrimination.gaussian_kernel(products)
    for name, kernel in (("line", products), ("kernel", curved)):
        answer = crossval.predict(table, target, SETTINGS, Features(kernel))
        auc[name] = crossval.auroc(target == 1, answer[:, 1])
    assert auc["line"] < 0.65 and auc["kernel"] > 0.9


@pytest.mark.parametrize("columns", [True, False])
def test_s04_outline_is_asked_where_the_cohort_has_it(columns, tmp_path):
    """Falls: the published task, head size and outline in; and a cohort without them still runs."""
    people = make_question(80, 0.0, seed=4)
    people.root = tmp_path
    if columns:
        (tmp_path / "raw").mkdir()
        width = np.where(people.target == 1, 1.05, 1.0)
        given = people.table[["participant_id"]].assign(head_ap=1.0, head_lr=width, head_si=1.0)
        given.sample(frac=1, random_state=0).to_csv(
            tmp_path / "raw/participants.tsv", sep="\t", index=False
        )
    headline, tables, _ = discrimination.discriminate(
        people, {"latents": people.latents}, None, SETTINGS
    )
    rows = {row["features"]: row for row in tables["discrimination"]}
    assert (discrimination.WITH_OUTLINE in rows) == columns
    name = discrimination.WITH_OUTLINE if columns else "latents and head size"
    assert headline["bacc_ds_with_size"] == rows[name]["bacc"]
    assert (headline["bacc_ds_with_size"] > 0.95) == columns
    assert {f"sensitivity_{group}" for group in GROUPS} <= {*rows["latents"]}


def test_age_and_sex_are_not_written_into_what_undo_sees(monkeypatch, tmp_path):
    """Falls: that `undone` tells groups by anatomy: taking covariates off would tell the age."""
    people = make_question(40, 0.0)
    people.root, told = tmp_path, []
    (tmp_path / discrimination.undo.RUN).mkdir(parents=True)
    names = people.table["participant_id"]
    monkeypatch.setattr(
        discrimination.dataset, "load_table", lambda root: pd.DataFrame({"participant_id": names})
    )
    grown = np.random.default_rng(0).standard_normal((40, 2, 2, 2))
    monkeypatch.setattr(discrimination.rivals, "load_deformation", lambda root: (None, grown))
    brain = type("Template", (), {"brain": np.ones((2, 2, 2), bool)})
    monkeypatch.setattr(discrimination, "load_template", lambda grid: brain)
    monkeypatch.setattr(discrimination.undo, "load", lambda root, study: None)

    def find(net, values, known):
        told.append(known)
        return values

    monkeypatch.setattr(discrimination.undo, "find", find)
    sets = discrimination.sets_of(people, config.load_study("smoke"), voxels=False)
    assert [*sets] == ["latents", "deformation", "undone"]
    assert np.ptp(told[0], axis=0).max() == 0
    flat = grown.reshape(40, -1) - grown.reshape(40, -1).mean(0)
    np.testing.assert_allclose(sets["undone"].kernel, flat @ flat.T / 8, atol=1e-5)

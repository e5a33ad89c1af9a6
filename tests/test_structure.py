"""Subtypes: two clouds are found, and heavy tails, skew or unlike noise are not taken for two."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dsnb import scaling
from dsnb.config import Strata
from dsnb.record import code_digest, ledger
from dsnb.search import subtypes
from dsnb.space import REGIONS
from dsnb.strata import questions, structure

SETTINGS = Strata(nulls=39, null_draws=3)
COUNT = 120


def cloud(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw people (N, 60) of falling variance, and two covariates."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((COUNT, 60)) / np.sqrt(1 + np.arange(60))
    return values, rng.standard_normal((COUNT, 2))


def test_two_planted_subtypes_are_found():
    """Falls: that subtypes which differ in their mean are found, whole, and stable."""
    values, known = cloud()
    kind = np.random.default_rng(1).random(COUNT) < 0.5
    values[:, 1] += 5 * kind * values[:, 1].std()
    found = structure.search(values @ values.T, known, SETTINGS)
    assert found["structured"] and found["valley_p"] == 1 / 40 == found["stability_p"]
    agreement = pd.crosstab(found["labels"], kind).max(axis=1).sum() / COUNT
    assert agreement > 0.9 and found["stability"] > 0.8
    assert abs(np.corrcoef(found["places"], kind)[0, 1]) > 0.9
    assert found["smaller"] == np.bincount(found["labels"]).min()


@pytest.mark.parametrize("kind", ["one cloud", "heavy tails", "skew", "noisy site"])
def test_one_cloud_of_any_shape_is_not_two(kind):
    """Falls: that a scanner's noise, outliers or a gradient of severity are called no subtypes."""
    called = []
    for seed in range(6):
        values, known = cloud(seed)
        rng = np.random.default_rng(100 + seed)
        if kind == "heavy tails":
            values *= rng.standard_t(3, (COUNT, 1)) ** 2
        elif kind == "skew":
            values[:, 1] += 2 * rng.exponential(1.0, COUNT) * values[:, 1].std()
        elif kind == "noisy site":
            values *= 1 + 2.0 * (np.arange(COUNT)[:, None] % 2)
        called.append(structure.search(values @ values.T, known, SETTINGS)["structured"])
    assert sum(called) <= 1


def test_a_valley_is_as_wide_as_modes_are_apart():
    """Falls: the statistic: it grows with the distance of two modes, and has no unit."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal(400)
    two = one + np.repeat([0, 4], 200)
    four = one + np.repeat([0, 8], 200)
    assert structure.valley(one) < 0.4 < structure.valley(two) < structure.valley(four)
    assert structure.valley(7 * two + 3) == pytest.approx(structure.valley(two), abs=0.01)


def test_null_cohorts_have_the_observed_covariance_and_no_covariate():
    """Falls: a null that is easier or harder to call structured than the observed cohort."""
    rng = np.random.default_rng(0)
    values, known = rng.standard_normal((80, 5)) * [3, 2, 1, 1, 1], rng.standard_normal((80, 2))
    out = structure.residual_maker(known)
    people = structure.coordinates(values @ values.T, out)
    draws = [structure.draw_structureless(people, out, rng) for _ in range(200)]
    sums = np.mean([draw.T @ draw for draw in draws], axis=0)
    np.testing.assert_allclose(np.diag(sums), np.diag(people.T @ people), rtol=0.1)
    assert np.abs(known.T @ draws[0]).max() < 1e-9
    np.testing.assert_allclose(people @ people.T, out @ values @ values.T @ out, atol=1e-8)


def test_confounds_are_taken_out_and_stage_where_asked():
    """Falls: that a site, a sex or motion is no subtype; the stage is one unless it is asked."""
    rng = np.random.default_rng(2)
    stage = rng.choice(["asymptomatic", "dementia"], COUNT)
    table = pd.DataFrame({
        "sex": rng.choice(["F", "M"], COUNT), "site": rng.choice(["a", "b"], COUNT),
        "motion": rng.uniform(0.1, 0.5, COUNT), "age": rng.uniform(30, 60, COUNT), "stage": stage,
    })  # fmt: skip
    volumes = np.exp(rng.normal(3, 0.1, (COUNT, len(REGIONS))))
    for column, other in (("site", "a"), ("stage", "dementia")):
        values = cloud(3)[0]
        values[:, 0] += 6 * (table[column] == other)
        plain, more = (
            structure.search(
                values @ values.T, structure.nuisance(table, volumes, *names), SETTINGS
            )
            for names in ((), ("age", "stage"))
        )
        assert plain["structured"] == (column == "stage") and not more["structured"]


def test_the_page_tells_what_clusters_follow():
    """Falls: association: a place between two centres that follows the stage, and not the age."""
    rng, target = np.random.default_rng(4), np.ones(COUNT, int)
    stages = rng.integers(0, 3, COUNT)
    table = pd.DataFrame({
        "sex": rng.choice(["F", "M"], COUNT), "site": "a", "motion": np.nan,
        "age": rng.uniform(30, 60, COUNT), "cognition": np.nan, "disability": "n/a",
        "stage": np.array(list(questions.STAGES))[stages],
    })  # fmt: skip
    values = cloud(5)[0]
    values[:, 0] += 7 * (stages > 1)
    features = questions.Features(values @ values.T)
    people = SimpleNamespace(table=table, target=target, families=np.arange(COUNT).astype(str),
                             volumes=np.exp(rng.normal(3, 0.1, (COUNT, len(REGIONS)))))  # fmt: skip
    tables = questions.stratify(people, {"latents": features}, stages * 1.0, SETTINGS)[1]
    related = {row["covariate"]: row for row in tables["strata_related"]}
    assert {*related} == {"age", "stage", "true severity"}
    assert related["stage"]["q"] < 0.01 < 0.05 < related["age"]["q"]
    assert [row["beyond"] for row in tables["strata"]] == ["confounds", "confounds, age, stage"]
    assert [row["structured"] for row in tables["strata"]] == [True, False]


@pytest.mark.parametrize("kinds", [0, 1])
def test_drawn_cohorts_have_the_subtypes_that_they_should(kinds):
    """Falls: the ledger's arms: everybody once, of one field or half and half of two."""
    values, known = cloud()
    other = values.copy()
    other[:, 1] += 8 * values[:, 1].std()
    both = np.concatenate([values, other])
    settings = Strata()
    found = [subtypes.draw_cohort(both @ both.T, known, kinds, draw, settings) for draw in range(3)]
    row = subtypes.summarise(found)
    assert row["cohorts"] == 3 and row["called_low"] <= row["called"] <= row["called_high"]
    assert row["called"] == kinds and (row["agreement"] > 0.9) == bool(kinds)


def test_false_discovery_counts_cohorts_without_subtypes_alone(tmp_path, monkeypatch):
    """Falls: the headline: cohorts with true subtypes would count as false calls."""
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path)
    assert scaling.read_subtypes("phantom")["headline"] == {"strata_false_discovery": None}
    rows = [
        {"preset": "small", "data": "phantom", "part": arm, "change": strength, "seed": 1,
         "code": code_digest(*subtypes.CODE),
         "features": [{"features": "latents", "called": called}, {"features": "undone",
                                                                  "called": called + 0.02}]}
        for arm, strength, called in (("no subtypes", 1.0, 0.03), ("no subtypes", 2.0, 0.05),
                                      ("two subtypes", 1.0, 0.8))
    ]  # fmt: skip
    (tmp_path / f"{subtypes.LEDGER}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = scaling.read_subtypes("phantom")
    assert found["headline"]["strata_false_discovery"] == pytest.approx(0.05)
    assert len(found["tables"]["subtypes"]) == 6

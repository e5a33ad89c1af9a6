"""Contrasts between people, on maps with a planted difference."""

import numpy as np
import pandas as pd
import pytest

from dsnb.anomaly import groups


def _table(people: int, seed: int) -> pd.DataFrame:
    """People of either sex and several ages; the older are ill, so that age confounds."""
    rng = np.random.default_rng(seed)
    ill = np.arange(people) % 2 == 0
    return pd.DataFrame({
        "age": 40 + 12 * ill + rng.normal(0, 8, people), "sex": rng.choice(["F", "M"], people),
        "ill": ill.astype(float),
    })  # fmt: skip


def test_the_effect_is_the_planted_one_and_age_is_not_it():
    """Falls: the claim that a contrast gives the effect at fixed age, in units of the SD."""
    table = _table(400, 0)
    rng = np.random.default_rng(1)
    maps = rng.standard_normal((400, 300)) + 0.05 * table["age"].to_numpy()[:, None]
    maps[:, :100] += 0.8 * table["ill"].to_numpy()[:, None]
    found = groups.contrast("DS", maps, table["ill"].to_numpy(), table, 200, 0)
    assert found["effect"][:100].mean() == pytest.approx(0.8, abs=0.05)
    assert found["effect"][100:].mean() == pytest.approx(0, abs=0.05)
    held = (found["low"] < np.repeat([0.8, 0], [100, 200])) & (
        found["high"] > np.repeat([0.8, 0], [100, 200])
    )
    assert 0.90 < held.mean() < 0.99
    assert (found["pfwe"][:100] < 0.05).mean() > 0.8
    assert not (found["pfwe"][100:] < 0.05).any()
    assert (found["q"][:100] < 0.05).all()


def test_a_score_gives_the_partial_correlation():
    """Falls: the claim that cognition's map is a correlation at fixed age and sex."""
    table = _table(200, 2)
    rng = np.random.default_rng(3)
    score = rng.standard_normal((200, 1))
    maps = 0.1 * table["age"].to_numpy()[:, None] + rng.standard_normal((200, 400))
    maps[:, :200] += score
    score = score[:, 0] - 0.1 * table["age"].to_numpy()
    found = groups.contrast("cognition", maps, score, table, 20, 0)
    wanted = np.repeat([np.sqrt(0.5), 0], 200)
    assert np.abs(found["effect"] - wanted).reshape(2, 200).mean(1).max() < 0.12
    held = (found["low"] < wanted) & (wanted < found["high"])
    assert held[:200].mean() > 0.85 and 0.9 < held[200:].mean() < 0.99


@pytest.mark.parametrize("people, sexes", [(20, "FM"), (60, "FM"), (40, "F")])
def test_healthy_maps_are_called_different_as_often_as_promised(people, sexes):
    """Falls: the family-wise error of 5 % over all voxels, with age's effect and one sex, too."""
    rng, wrong = np.random.default_rng(people), 0
    for seed in range(100):
        table = _table(people, seed)
        table["sex"] = rng.choice(list(sexes), people)
        shared = rng.standard_normal((people, 5)) @ rng.standard_normal((5, 40))
        maps = rng.exponential(size=(people, 40)) + shared
        maps += 0.1 * table["age"].to_numpy()[:, None]
        found = groups.contrast("DS", maps, table["ill"].to_numpy(), table, 99, seed)
        wrong += (found["pfwe"] <= 0.05).any()
    assert wrong <= 12  # 5 expected; more than 12 of 100 by chance in 1 of 800


def test_a_voxel_that_never_varies_has_no_effect():
    """Falls: the claim that an empty corner of a map is no crash and no finding."""
    table = _table(40, 5)
    maps = np.random.default_rng(6).standard_normal((40, 3))
    maps[:, 1] = 0
    found = groups.contrast("DS", maps, table["ill"].to_numpy(), table, 20, 0)
    assert (found["effect"][1], found["q"][1]) == (0, 1)


def test_relatives_are_never_exchanged_and_stages_are_within_ds():
    """Falls: the claim that permutations exchange unrelated people only."""
    table = pd.DataFrame({
        "group": ["euploid", "euploid", "DS", "DS", "DS", "DS"],
        "family": list("abbccd"), "cognition": [np.nan, np.nan, 3.0, 2.0, np.nan, 1.0],
        "stage": ["n/a", "n/a", "asymptomatic", "dementia", "dementia", "prodromal"],
    })  # fmt: skip
    found = groups.choose(table)
    assert found["DS"].sort_index().to_dict() == {0: 0, 2: 1, 3: 1, 5: 1}
    assert found["dementia"].to_dict() == {2: 0, 3: 1}
    assert found["prodromal"].to_dict() == {2: 0, 5: 1}
    assert found["cognition"].to_dict() == {2: 3.0, 3: 2.0, 5: 1.0}


def test_a_small_group_is_refused_with_its_size():
    """Falls: the claim that nobody is told a group effect from a handful of people."""
    few = pd.Series([1.0] * 9 + [0.0] * 30)
    assert groups.too_few("DS", few) == "9 unrelated people in the smallest group, 10 needed"
    assert groups.too_few("DS", pd.Series([1.0] * 30)).startswith("0 unrelated people")
    assert groups.too_few("DS", pd.Series([], dtype=float)).startswith("0 unrelated people")
    assert groups.too_few("dementia", pd.Series([0.0, 1.0] * 10)) == ""
    assert groups.too_few("cognition", pd.Series(np.arange(12.0))) == ""
    assert groups.too_few("cognition", pd.Series([1.0] * 12)) == "everybody has the same score"

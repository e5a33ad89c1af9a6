"""Nobody, no family, no session and no scan content stands on two sides of a split."""

import numpy as np
import pandas as pd
import pytest

from dsnb import cohort, config
from dsnb.space import DS_SPLITS, EUPLOID_SPLITS

STUDY = config.load_study("smoke")
BESIDE = {"twin": ["truth"], "sham": ["sham"], "repeat": ["repeat"], "native": ["native"]}


def draw_people(rng: np.random.Generator) -> pd.DataFrame:
    """Draw a random cohort: families of one to four of either group, sessions, drawn rows."""
    rows, patients = [], rng.choice([0, 0.3])
    for family in range(rng.integers(1, 25)):
        for _ in range(rng.integers(1, 5)):
            name = f"sub-{len(rows)}"
            group = "DS" if rng.random() < patients else "euploid"
            own = {"family": f"f{family}", "group": group, "origin": name, "person": name}
            rows.append({**own, "participant_id": name, "kind": "recorded", "origin": "n/a"})
            chance = {"repeat": 0.3, "native": 0.05, "sham": 0.05, "twin": 0.9 * (group == "DS")}
            for kind, share in chance.items():
                if rng.random() < share:
                    also = "euploid" if kind in ("sham", "twin") else group
                    row = {**own, "participant_id": name + kind, "kind": kind, "group": also}
                    rows.append(row)
    table = pd.DataFrame(rows)
    table["t1w"] = table["voxels"] = table["participant_id"] + "_T1w"
    return table.assign(
        age=rng.uniform(18, 70, len(table)),
        sex=rng.choice(["F", "M"], len(table)),
        site=rng.choice(["a", "b"], len(table)),
        stage="n/a",
    )


def two_sided(keys, splits) -> bool:
    """Tell whether one key stands on two sides; an oracle that shares no line with the code."""
    sides: dict[str, set] = {}
    for key, split in zip(keys, splits):
        sides.setdefault(key, set()).add("fit" if split == "generator-fit" else split)
    return max(map(len, sides.values())) > 1


def test_1000_random_cohorts_have_no_leak():
    """Falls: that persons, families, sessions and contents stay whole, whoever is in a cohort."""
    rng = np.random.default_rng(0)
    for number in range(1000):
        table = draw_people(rng)
        table["split"] = cohort.assign_splits(table, config.replace(STUDY.cohort, seed=number))
        if not (table["group"] == "DS").any():
            table = cohort.plant(table)
        rows = table.to_dict("records")
        own = [row for row in rows if row["kind"] in ("recorded", "planted")]
        for key in ("family", "person", "voxels"):
            assert not two_sided([row[key] for row in own], [row["split"] for row in own])
        shams = {row["family"] for row in rows if row["kind"] == "sham"}
        for row in rows:
            allowed = DS_SPLITS if row["group"] == "DS" else EUPLOID_SPLITS
            assert row["split"] in BESIDE.get(row["kind"], allowed)
            if row["kind"] == "recorded" and row["family"] in shams:
                assert row["split"] == "test"


def test_1000_stated_splits_are_refused_exactly_where_they_leak():
    """Falls: that a split of the table's own is used when it is sound, and only then."""
    rng, refused = np.random.default_rng(1), 0
    for _ in range(1000):
        table = draw_people(rng).query("kind in ['recorded', 'repeat']")
        families = table["family"].unique()
        sides = dict(zip(families, rng.choice(["fit", "validation", "test"], len(families))))
        table["split"] = table["family"].map(sides)
        if rng.random() < 0.5:
            table.loc[rng.choice(table.index), "split"] = "test"
        if rng.random() < 0.2:
            table.loc[rng.choice(table.index, 2), "voxels"] = "the same"
        ds = (table["group"] == "DS") & (table["split"] == "fit")
        table.loc[ds, "split"] = "generator-fit"
        leaks = any(two_sided(table[key], table["split"]) for key in ("family", "voxels"))
        problems = cohort.check_stated(table)
        assert bool(problems) == leaks and {problem.code for problem in problems} <= {"E-LEAK"}
        refused += leaks
        if not leaks:
            kept = dict(zip(table["participant_id"], cohort.assign_splits(table, STUDY.cohort)))
            first = table[table["kind"] == "recorded"]
            assert [kept[name] for name in first["participant_id"]] == first["split"].tolist()
    assert 200 < refused < 800


def test_a_leak_names_person_and_both_files():
    """Falls: that a user can find the two scans of a leak."""
    table = draw_people(np.random.default_rng(2)).head(1).assign(group="euploid")
    table = pd.concat([table, table.assign(kind="repeat", t1w="ses-2")], ignore_index=True)
    (problem,) = cohort.check_stated(table.assign(split=["fit", "test"], voxels=["a", "b"]))
    for word in ("E-LEAK", "family f0", "sub-0_T1w", "ses-2", "fit", "test"):
        assert word in str(problem)


def alone(people: int) -> pd.DataFrame:
    """Return unrelated euploids, half of them women, at two sites, 20 to 70 years old."""
    rng = np.random.default_rng(1)
    names = [f"sub-{k:04d}" for k in range(people)]
    return pd.DataFrame(
        {
            "participant_id": names, "family": names, "group": "euploid", "kind": "recorded",
            "age": rng.uniform(20, 70, people), "sex": np.where(np.arange(people) % 2, "F", "M"),
            "site": rng.choice(["a", "b"], people, p=[0.7, 0.3]),
        }
    )  # fmt: skip


def test_shares_hold_and_strata_are_balanced():
    """400 people are dealt 200 / 20 / 60 / 60 / 60, alike in age, sex and site."""
    table = alone(400)
    table["split"] = cohort.assign_splits(table, STUDY.cohort)
    assert table["split"].value_counts().to_dict() == dict(
        zip(EUPLOID_SPLITS, (200, 20, 60, 60, 60))
    )
    for name in ("fit", "scale", "calibration", "test"):
        part = table[table["split"] == name]
        assert abs((part["sex"] == "F").mean() - 0.5) < 0.05
        assert abs((part["site"] == "a").mean() - (table["site"] == "a").mean()) < 0.05
        assert abs(part["age"].mean() - table["age"].mean()) < 2.5


def test_splits_depend_on_seed_and_people_only():
    """The same people get the same split in any order; another seed deals anew."""
    table = alone(60)
    first = dict(zip(table["participant_id"], cohort.assign_splits(table, STUDY.cohort)))
    mixed = table.sample(frac=1, random_state=3)
    again = dict(zip(mixed["participant_id"], cohort.assign_splits(mixed, STUDY.cohort)))
    assert first == again
    other = config.replace(STUDY.cohort, seed=2)
    assert list(first.values()) != cohort.assign_splits(table, other)


@pytest.mark.parametrize("people", [0, 1, 3, 5, 12, 46, 400])
def test_quotas_sum_and_leave_no_split_empty(people):
    """Every split gets somebody as soon as there are people enough."""
    counts = cohort.quota(np.array(STUDY.cohort.euploid_split, float), people)
    assert counts.sum() == people and (people < 5 or counts.min() >= 1)

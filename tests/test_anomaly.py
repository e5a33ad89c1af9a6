"""Maps, error rates and the comparison with the truth, on planted departures."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dsnb import bids, record
from dsnb.anomaly import maps, metrics
from dsnb.anomaly.people import CANDIDATES, Candidate, People, Source, in_own_grid
from dsnb.config import load_study
from dsnb.norms import ComponentNorm
from dsnb.space import load_template

STUDY = load_study("smoke")
STUDY = dataclasses.replace(
    STUDY,
    maps=dataclasses.replace(
        STUDY.maps, demons_iterations=3, processes=1, changes=1, smoothing_mm=(0.0, 8.0)
    ),
)
GRID = STUDY.grid
BRAIN = load_template(GRID).brain
PEOPLE = {
    ("euploid", "recorded", "fit"): 24, ("euploid", "recorded", "validation"): 2,
    ("euploid", "recorded", "scale"): 16, ("euploid", "recorded", "calibration"): 19,
    ("euploid", "recorded", "test"): 8, ("euploid", "sham", "sham"): 3,
    ("DS", "recorded", "generator-fit"): 3, ("DS", "recorded", "test"): 4,
}  # fmt: skip


class Pooling(nn.Module):
    """A latent that keeps block means: linear, so that every expected map is known."""

    mean_volume = torch.zeros(1)

    def encode(self, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pool (N, 1, X, Y, Z) by 4."""
        z = nn.functional.avg_pool3d(volumes, 4)
        return z, z

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Repeat every latent 4 x 4 x 4 times."""
        return nn.functional.interpolate(z, scale_factor=4, mode="nearest")


@pytest.fixture
def source() -> Source:
    """People of noise around the template; DS are brighter where their truth says changed."""
    rng = np.random.default_rng(0)
    rows = [
        {"group": group, "kind": kind, "split": split}
        for (group, kind, split), count in PEOPLE.items() for _ in range(count)
    ]  # fmt: skip
    found = object.__new__(Source)
    found.study, found.grid, found.brain = STUDY, GRID, BRAIN
    table = pd.DataFrame(rows)
    table["participant_id"] = [f"sub-{row:03d}" for row in range(len(table))]
    table["age"], table["site"] = rng.uniform(20, 60, len(table)), "one"
    table["sex"] = np.where(rng.random(len(table)) < 0.5, "F", "M")
    found.table = table
    found.template = load_template(GRID).t1w
    noise = rng.standard_normal((len(table), 10, 12, 10)).repeat(4, 1).repeat(4, 2).repeat(4, 3)
    volumes = found.template + 0.05 * noise + 0.02 * rng.standard_normal(noise.shape)
    found.truth = np.zeros((7, *GRID.shape), np.float32)
    found.truth[:, 12:20, 12:28, 12:20] = 0.3
    found.truth_table = table[table["group"] == "DS"][["participant_id"]].reset_index(drop=True)
    volumes[table["group"] == "DS"] += found.truth
    found.volumes = volumes.astype(np.float32)
    found.log_jacobian = 0.1 * rng.standard_normal(volumes.shape).astype(np.float32)
    found.model = Pooling()
    with torch.no_grad():
        encoded = found.model.encode(torch.from_numpy(found.volumes)[:, None])[0]
    found.latents, found.order = encoded.numpy(), np.arange(len(table))
    return found


def test_the_planted_change_lights_up_end_to_end(source, tmp_path):
    """Falls: the claim that the written maps find a known change at the promised error."""
    headline, tables, _ = maps._measure(tmp_path, source)
    assert headline["auprc"] > 0.8
    assert headline["lift"] == pytest.approx(
        np.mean([(headline["auprc"] - headline["prevalence"]) / (1 - headline["prevalence"])]),
        abs=1e-6,
    )
    assert headline["auprc"] > headline["auprc_null"] + 0.5
    assert headline["power_at_q05"] > 0.5
    assert headline["fdp_at_q05"] < 0.2
    assert headline["euploids_flagged"] < 0.4
    assert headline["coverage_error_points"] < 2
    assert headline["best_rival"] in {"image", "pca", "tbm", "tbm_pca"}
    assert {row["norm"] for row in tables["norms"]} >= {c.name for c in CANDIDATES} | {"sd_map"}
    assert [row["people"] for row in tables["flagged"]] == [8, 3, 4]
    json.dumps(record.plain({"headline": headline, "tables": tables}), allow_nan=False)
    ds = source.table["participant_id"][source.rows("DS", "test")[0]]
    q, affine = bids.load_volume(
        tmp_path / ds / "anat" / f"{ds}_space-MNI152NLin2009aSym_res-4mm_desc-q_statmap.nii.gz"
    )
    np.testing.assert_allclose(affine, GRID.affine)
    inside = BRAIN & (source.truth[0] > 0.1)
    assert (q[inside] < 0.05).mean() > 10 * (q[BRAIN & ~inside] < 0.05).mean()
    regions = bids.read_table(tmp_path / "regions.tsv")
    assert len(regions) == 16 * 15


def test_people_without_ds_still_give_healthy_errors(source, tmp_path):
    """Falls: the claim that a cohort without DS runs and says what it cannot compute."""
    source.table = source.table[source.table["group"] == "euploid"].reset_index(drop=True)
    headline, _, _ = maps._measure(tmp_path, source)
    assert headline["lift"] is None
    assert headline["power_at_q05"] is None
    assert headline["euploids_flagged"] is not None


def test_too_few_people_is_a_reason(source):
    """Falls: the claim that a tiny cohort is answered with a sentence, not with a number."""
    assert maps.too_few(source) is None
    keep = (source.table["split"] != "scale") | (np.arange(len(source.table)) % 8 == 0)
    source.table = source.table[keep].reset_index(drop=True)
    assert "euploid scale people" in maps.too_few(source)


def test_tuning_prefers_the_smoothing_that_finds_the_generic_change(source):
    """Falls: the claim that tuning follows the planted truth (broad change in white noise)."""
    rng = np.random.default_rng(1)
    size = int(BRAIN.sum())
    truth = np.zeros((3, *GRID.shape))
    truth[:, 10:30, 10:30, 10:30] = 0.2

    def people(count: int, change: np.ndarray | float) -> People:
        noise = rng.standard_normal((count, size)).astype(np.float32)
        empty = np.zeros((count, 0), np.float32)
        age = rng.normal(size=(count, 2))
        return People(age, noise + np.float32(change), empty, empty, empty)

    change = truth[:, BRAIN]
    candidate = next(c for c in CANDIDATES if c.name == "image")
    norm = ComponentNorm(np.zeros((3, size), np.float32), np.zeros((0, size), np.float32))
    trials = maps.tune(candidate, people(30, 0), people(3, 5 * change), change, norm, source)
    lift = {trial["fwhm_mm"]: trial["lift"] for trial in trials}
    assert lift[8.0] > lift[0.0] + 0.2


def test_average_precision_known_answers():
    """Falls: the headline metric."""
    changed = np.array([[1, 1, 0, 0, 0, 0, 0, 0], [0] * 8], bool)
    score = np.arange(16)[::-1].reshape(2, 8)
    perfect, prevalence, lift = metrics.average_precision(score, changed)
    assert (perfect.tolist(), prevalence.tolist(), lift.tolist()) == ([1], [0.25], [1])
    rng = np.random.default_rng(2)
    nothing = metrics.average_precision(rng.random((5, 20000)), rng.random((5, 20000)) < 0.2)
    assert abs(nothing[2].mean()) < 0.01


def test_false_discoveries_and_power_known_answers():
    """Falls: realised FDP and power."""
    q = np.array([[0.01, 0.01, 0.01, 0.9, 0.9], [0.9] * 5])
    truth = np.array([[0.3, 0.05, 0.0, 0.3, 0.0]] * 2)
    false, power = metrics.discoveries(q, truth, 0.05, 0.1)
    np.testing.assert_allclose(false, [1 / 3, 0])
    np.testing.assert_allclose(power, [1 / 2, 0])


def test_flagged_has_the_exact_interval():
    """Falls: the interval on the share of healthy people flagged (Clopper-Pearson)."""
    q = np.ones((60, 10))
    q[:3, 4] = 0.01
    found = metrics.flagged(q, 0.05)
    assert (found["flagged"], found["share"]) == (3, 0.05)
    assert (found["low"], found["high"]) == pytest.approx((0.0104, 0.1392), abs=1e-4)


def test_lift_ratio_is_paired_and_against_the_best_plain_rival():
    """Falls: the claim of the primary against the best plain rival."""
    rng = np.random.default_rng(3)
    truth = (rng.random((12, 3000)) < 0.2) * 0.3

    def score(strength: float) -> np.ndarray:
        return truth * strength + rng.random(truth.shape)

    strengths = {"latent": 3.0, "image": 0.5, "pca": 1.5, "tbm": 1.0, "tbm_pca": 0.2, "sd_map": 0}
    scores = {name: score(strength) for name, strength in strengths.items()}
    headline, table = metrics.compare(scores, truth, STUDY.maps)
    assert headline["best_rival"] == "pca"
    ratio = headline["lift"] / headline["lift_best_rival"]
    low, high = headline["lift_ratio_ci"]
    assert 1 < low < ratio < high
    assert high - low < 0.6 * ratio
    assert [row["norm"] for row in table if row["primary"]] == ["latent"]


def test_only_tbm_moves_into_the_persons_grid():
    """Falls: fairness to TBM, whose map lies on the template's grid while the truth does not."""
    ramp = np.indices(GRID.shape)[0].astype(np.float32)
    points = np.argwhere(BRAIN).T.astype(np.float32) + np.array([[2], [0], [0]])
    empty = np.zeros((1, 0))
    people = People(empty, empty, empty, empty, empty, points[None].astype(np.float32))
    tbm = Candidate("tbm", "log_jacobian", "log_jacobian", False, False)
    image = Candidate("image", "volumes", "volumes", False, False)
    maps_of = ramp[BRAIN][None]
    inner = np.argwhere(BRAIN)[:, 0] < 20
    moved = in_own_grid(tbm, maps_of, people, BRAIN)
    assert np.median((moved - maps_of)[0][inner]) == pytest.approx(2, abs=0.01)
    assert in_own_grid(image, maps_of, people, BRAIN) is maps_of

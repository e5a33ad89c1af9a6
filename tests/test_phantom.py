"""The phantom's truth is exact, its targets are reached, and its files do not depend on luck."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, stats

from dsnb import config, phantom, space
from dsnb.phantom import fields, people, render, scans

SMOKE = space.GRIDS["smoke"]
SMALL = space.GRIDS["small"]


def warp(masks, displacement, grid):
    """Warp label maps (R, X, Y, Z) by a backward displacement (3, X, Y, Z) in mm."""
    voxels = np.indices(grid.shape) + displacement / grid.voxel_mm
    return np.stack([ndimage.map_coordinates(mask, voxels, order=1) for mask in masks])


def study_of(euploid=2, ds=1, sham=1, **asked):
    """Return the smoke study with a handful of people."""
    asked = {"repeat": 0, "native": 0, **asked}
    cohort = config.Cohort(euploid=euploid, ds=ds, sham=sham, **asked)
    return replace(config.PRESETS["smoke"], cohort=cohort)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Write a cohort of three people with two processes."""
    root, study = tmp_path_factory.mktemp("two"), study_of()
    phantom.make_cohort(root, study, processes=2)
    return root, study


@pytest.mark.parametrize("progress", [0.0, 1.0, 2.0])
def test_warped_labels_change_as_wanted(progress):
    """Falls: that the disease changes each region by its named target and folds nothing."""
    backward = fields.exponentiate(-fields.disease_velocity(progress))
    assert fields.log_jacobian(backward, SMALL)[1] == 0
    masks = space.region_masks(SMALL)
    warped = warp(masks, fields.onto(backward, fields.LATTICE, SMALL), SMALL)
    reached = warped.sum((1, 2, 3)) / masks.sum((1, 2, 3))
    wanted = np.exp(fields.targets(progress, 1.0))
    assert np.abs(np.log(reached / wanted)).max() < 0.05
    assert np.corrcoef(reached, wanted)[0, 1] > 0.99


def test_log_jacobian_undoes_the_change_of_warped_labels():
    """Falls: that the truth is the log local volume change in the patient's own grid."""
    displacement, truth = phantom.disease_displacement(SMALL, 1.0, seed=3)
    masks = space.region_masks(SMALL)
    warped = warp(masks, displacement, SMALL)
    restored = (warped * np.exp(-truth)).sum((1, 2, 3)) / masks.sum((1, 2, 3))
    assert np.abs(restored - 1).max() < 0.03
    cerebellum, lentiform = (space.REGIONS.index(name) for name in ("cerebellum", "lentiform"))
    assert np.average(truth, weights=warped[cerebellum]) < -0.05
    assert np.average(truth, weights=warped[lentiform]) > 0.05


def test_exponential_matches_a_known_flow():
    """Falls: the integrator; a linear velocity a x moves x to x exp(a), log-volume 3 a."""
    centred = fields.LATTICE.coordinates_mm() - np.array(space.CENTRE_MM)[:, None, None, None]
    moved = fields.exponentiate(np.float32(0.1) * centred.astype(np.float32))
    inner = (slice(None), slice(8, -8), slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(moved[inner], (np.expm1(0.1) * centred)[inner], atol=0.06)
    change = np.log(fields.jacobian(moved, fields.LATTICE))
    np.testing.assert_allclose(change[inner[1:]], 0.3, atol=0.01)


def test_sham_is_as_large_as_the_disease_and_unrelated():
    """Falls: that a sham differs from the disease by pattern only, not by size."""
    brain = space.load_template(SMALL).brain
    disease = phantom.disease_displacement(SMALL, 1.0, seed=5)[1][brain]
    sham = phantom.sham_displacement(SMALL, 1.0, seed=5)[1][brain]
    assert np.std(sham) / np.std(disease) == pytest.approx(1, abs=0.15)
    assert abs(np.corrcoef(sham, disease)[0, 1]) < 0.3
    assert not np.array_equal(sham, phantom.sham_displacement(SMALL, 1.0, seed=6)[1][brain])


def test_a_seed_is_one_person_on_every_grid():
    """Falls: that presets show the same people, sampled more finely."""
    study = study_of()
    row = people.draw_people(study.cohort).to_dict("records")[0]
    backward = fields.exponentiate(-people.individual_velocities(row, study.cohort.seed)[1])
    fine = render.render(backward, row, study, SMALL)
    coarse = render.render(backward, row, study, SMOKE)
    seen = space.onto_grid(fine, SMALL.affine, SMOKE)
    inside = (seen > 0.4) & (coarse > 0.4)
    assert inside.sum() > 0.9 * (coarse > 0.4).sum()
    assert np.corrcoef(seen[inside], coarse[inside])[0, 1] > 0.97


def test_people_are_as_published():
    """Falls: the stage mix, the independence of disability and stage, the overlap of ages."""
    table = people.draw_people(config.Cohort(euploid=400, ds=900))
    ds, euploid = (table[table["group"] == name] for name in ("DS", "euploid"))
    mix = ds["stage"].value_counts(normalize=True)[list(space.STAGES)].to_numpy()
    np.testing.assert_allclose(mix, (0.64, 0.16, 0.20), atol=0.05)
    crossed = pd.crosstab(ds["disability"], ds["stage"])
    assert stats.chi2_contingency(crossed).pvalue > 0.01
    low, high = ds["age"].quantile([0.1, 0.9])
    assert euploid["age"].between(low, high).mean() > 0.3
    scores = (
        ds[ds["cognition"] != "n/a"]
        .groupby("stage")["cognition"]
        .apply(lambda values: values.astype(float).mean())
    )
    assert scores["dementia"] < scores["prodromal"] < scores["asymptomatic"]
    assert ds["cognition"].eq("n/a").any()
    ratio = ds["tiv_ml"].mean() / euploid["tiv_ml"].mean()
    assert ratio == pytest.approx(0.83, abs=0.03)


def test_files_do_not_depend_on_processes(cohort, tmp_path):
    """Falls: that one process and two write the same bytes."""
    root, study = cohort
    phantom.make_cohort(tmp_path, study, processes=1)
    names = [path.relative_to(root / "raw") for path in (root / "raw").rglob("*.nii.gz")]
    assert len(names) == 7  # two euploids, one DS, twin, two truths, sham
    for name in names:
        assert (root / "raw" / name).read_bytes() == (tmp_path / "raw" / name).read_bytes()


def test_without_disease_a_patient_is_the_twin(tmp_path):
    """Falls: that twin and patient differ by the disease alone."""
    phantom.make_cohort(tmp_path, study_of(euploid=1, sham=0, severity=0.0), processes=1)
    table = pd.read_csv(tmp_path / "raw/participants.tsv", sep="\t", keep_default_na=False)
    patient, twin = (table[table["kind"] == kind].iloc[-1] for kind in ("recorded", "twin"))
    assert patient["group"] == "DS" and twin["origin"] == patient["participant_id"]
    assert patient["sha"] == twin["sha"] and patient["family"] == twin["family"]


def test_a_killed_cohort_goes_on(cohort):
    """Falls: that a killed run keeps finished people and ends with the same product."""
    root, study = cohort
    raw, product = root / "raw", root / "raw/product.json"
    key = json.loads(product.read_text())["key"]
    table = pd.read_csv(raw / "participants.tsv", sep="\t", keep_default_na=False)
    kept, lost = raw / table["t1w"][0], raw / table["t1w"][1]
    stamp, content = kept.stat().st_mtime_ns, lost.read_bytes()
    product.unlink()
    (raw / ".begun").write_text(key)
    lost.with_name(lost.name.replace(".nii.gz", ".json")).unlink()
    lost.unlink()
    phantom.make_cohort(root, study, processes=1)
    assert kept.stat().st_mtime_ns == stamp and lost.read_bytes() == content


def test_summary_reports_the_largest_gap(cohort):
    """Falls: that the page's numbers come from the truth table."""
    root, study = cohort
    headline = phantom.summarise(root, study)["headline"]
    assert headline["folded_voxels"] == 0 and headline["target_error_points"] < 2
    assert (headline["subjects"], headline["euploid"], headline["ds"]) == (3, 2, 1)
    path = root / "raw/derivatives/truth/truth.tsv"
    truth = pd.read_csv(path, sep="\t", keep_default_na=False)
    healthy = truth[truth["stage"] == "n/a"]
    assert len(truth) == 3 and (healthy["frontal_before"] == healthy["frontal_after"]).all()
    truth["cerebellum_after"] += 0.1 * truth["cerebellum_before"]
    rows = {row["region"]: row for row in scans.region_rows(truth)}
    assert rows["cerebellum"]["gap_points"] == pytest.approx(10, abs=2)

"""The phantom's truth is exact, its targets are reached, and its files do not depend on luck."""

import json
from dataclasses import replace

import bench_cohort
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, stats

from dsnb import bids, config, phantom, space
from dsnb.phantom import fields, people, render, summary

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


def test_a_swirl_moves_tissue_and_keeps_every_volume():
    """Falls: that shape varies down to a gyrus's width while volumes follow the constants."""
    velocity = fields.swirl(np.random.default_rng(0), ((1.0, 12.0), (1.0, 6.0)))
    spread = np.sqrt((velocity**2).mean((1, 2, 3)))
    np.testing.assert_allclose(spread, np.sqrt(2), rtol=0.2)
    ratio = fields.measure(fields.exponentiate(velocity)) / fields.measure(0 * velocity)
    assert np.abs(np.log(ratio)).max() < 0.03


def test_regions_vary_as_asked_and_together():
    """Falls: the spread of facts 2.1, and that regions of a family vary together."""
    rng = np.random.default_rng(0)
    drawn = np.stack([people.draw_regions(rng) for _ in range(4000)])
    np.testing.assert_allclose(drawn.std(0), 0.95, atol=0.06)  # cut at two SD
    r = pd.DataFrame(np.corrcoef(drawn.T), space.REGIONS, space.REGIONS)
    assert r.loc["frontal", "parietal"] == pytest.approx(0.45, abs=0.06)
    assert r.loc["hippocampus", "amygdala"] == pytest.approx(0.45, abs=0.06)
    assert r.loc["frontal", "cerebellum"] == pytest.approx(0.25, abs=0.06)
    assert r.loc["frontal", "ventricles"] == pytest.approx(-0.2, abs=0.06)
    table = people.draw_people(config.Cohort(euploid=30, ds=0)).to_dict("records")
    measured = []
    for row in ({**row, "age": 30.0, "sex": "F"} for row in table):
        regions, shape = people.individual_velocities(row, seed=1)
        forward = fields.compose(fields.exponentiate(shape), fields.exponentiate(regions))
        measured.append(fields.measure(forward))
    reached = dict(zip(space.REGIONS, np.log(measured).std(0, ddof=1)))
    bands = {
        "cerebellum": (6, 8),
        "frontal": (6, 8),
        "temporal": (6, 8),
        "occipital": (6, 8),
        "hippocampus": (10, 10),
        "thalamus": (8, 10),
        "lentiform": (8, 10),
    }  # facts 2.1, %
    for name, (low, high) in bands.items():  # 30 people tell an SD within a quarter
        assert 0.75 * low < 100 * reached[name] < 1.25 * high, name
    assert 0.3 < reached["ventricles"] < 0.6


def test_nobody_folds():
    """Falls: that every backward map is one to one (20 people, half of them with DS)."""
    table = people.draw_people(config.Cohort(euploid=10, ds=10)).to_dict("records")
    found = [bench_cohort.check_person(row, seed=1) for row in table]
    assert sum(folded for folded, _ in found) == 0


def test_progress_is_continuous_and_ends_in_the_named_constants():
    """Falls: that stages emerge from years since onset, without a step of volume between them."""
    steps = np.stack([fields.targets(p, 1.0) for p in np.linspace(0, 2.2, 45)])
    assert np.abs(np.diff(steps, axis=0)).max() < 0.02
    k = space.REGIONS.index("hippocampus")
    reached = [np.expm1(steps[place][k] - steps[0][k]) for place in (20, 40)]
    np.testing.assert_allclose(reached, [-0.08, -0.20], atol=1e-6)
    np.testing.assert_allclose(np.expm1(steps[0][k]), -0.12)


def test_arms_of_the_cohort():
    """Falls: the arm without confounded motion, and EXTERNAL with DS only."""
    table = people.draw_people(config.Cohort(euploid=300, ds=300))
    calm = people.draw_people(
        config.Cohort(euploid=300, ds=300, confounded_motion=False, external_euploid=False)
    )
    clinic = table[(table["site"] == "clinic")].groupby("group")["motion"].mean()
    assert clinic["DS"] > 1.4 * clinic["euploid"]
    clinic = calm[(calm["site"] == "clinic")].groupby("group")["motion"].mean()
    assert clinic["DS"] == pytest.approx(clinic["euploid"], rel=0.15)
    assert set(table.loc[table["cohort"] == "EXTERNAL", "group"]) == {"euploid", "DS"}
    assert set(calm.loc[calm["cohort"] == "EXTERNAL", "group"]) == {"DS"}
    assert table.groupby("site")["cohort"].nunique().max() == 1


def test_a_second_visit_is_the_same_person_later(tmp_path):
    """Falls: that repeat sessions share anatomy, move on with the disease, and are new scans."""
    study = study_of(euploid=1, ds=1, sham=0, repeat=1)
    phantom.make_cohort(tmp_path, study, processes=1)
    table = bids.read_table(tmp_path / "raw/participants.tsv").set_index("participant_id")
    truth = bids.typed(bids.read_table(tmp_path / "raw/derivatives/truth/truth.tsv"))
    truth = truth.set_index("participant_id")
    for name in ("sub-e0001", "sub-d0001"):
        again = table.loc[f"{name}ses2"]
        assert (again["kind"], again["origin"], again["family"]) == ("repeat", name, name)
        assert again["t1w"] == f"{name}/ses-2/anat/{name}_ses-2_T1w.nii.gz"
        assert float(again["age"]) == pytest.approx(float(table.loc[name, "age"]) + 1.33, abs=0.1)
        one, two = (
            bids.load_volume(tmp_path / "raw" / table.loc[which, "t1w"])[0]
            for which in (name, f"{name}ses2")
        )
        assert not np.array_equal(one, two) and np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.97
        change = np.log(
            truth.loc[f"{name}ses2", "frontal_after"] / truth.loc[name, "frontal_after"]
        )
        assert -0.08 < change < 0.005
    assert truth.loc["sub-d0001ses2", "progress"] >= truth.loc["sub-d0001", "progress"]
    assert truth.loc["sub-d0001ses2", "factor"] == truth.loc["sub-d0001", "factor"]
    settings = config.Cohort(euploid=0, ds=60)
    for row in people.draw_people(settings).to_dict("records"):
        again = people.revisit(settings, row)
        years = again["age"] - row["onset_years"]
        moving = people.PROGRESS_YEARS[0] + 2 < years < people.PROGRESS_YEARS[-1]
        assert again["progress"] > row["progress"] or not moving
        assert (again["stage"] == "dementia") == (years > 0)


def test_intensity_truth_is_what_the_disease_changed(cohort):
    """Falls: that the intensity truth is the difference to the twin, noise and scanner apart."""
    root, _ = cohort
    anat = root / "raw/derivatives/truth/sub-d0001/anat"
    change, twin = (
        bids.load_volume(anat / f"sub-d0001_desc-{what}.nii.gz")[0]
        for what in ("truth_intensity", "twin_T1w")
    )
    patient = bids.load_volume(root / "raw/sub-d0001/anat/sub-d0001_T1w.nii.gz")[0]
    row = people.draw_people(study_of().cohort).iloc[-1]
    seen = (patient - twin) / people.SITES[row["site"]][0]
    both = (patient > 0) & (twin > 0)
    assert np.corrcoef(seen[both], change[both])[0, 1] > 0.95
    assert np.abs(change[both]).mean() > 0.01


def test_a_native_scan_is_the_same_brain_in_another_pose(tmp_path):
    """Falls: that native scans carry the true affine: turned back they are the shortcut."""
    study = study_of(euploid=1, ds=0, sham=0, native=2)
    phantom.make_cohort(tmp_path, study, processes=1)
    table = bids.read_table(tmp_path / "raw/participants.tsv").set_index("participant_id")
    native, reference = table.loc["sub-e0001native"], table.loc["sub-e0001"]
    assert (native["kind"], native["origin"]) == ("native", "sub-e0001")
    path = tmp_path / "raw" / native["t1w"]
    volume, affine = bids.load_volume(path)
    to_mni = np.array(json.loads(bids.sidecar_of(path).read_text())["NativeToMNI"])
    size = np.linalg.det(to_mni)  # native head size over the template's
    brain_ml = space.load_template(SMALL).brain.sum() * SMALL.voxel_ml
    assert brain_ml / size == pytest.approx(float(reference["tiv_ml"]), rel=0.02)
    smooth = ndimage.gaussian_filter(volume, 0.425 * SMOKE.voxel_mm)
    mm = SMOKE.coordinates_mm().reshape(3, -1)
    back = np.linalg.inv(to_mni @ affine)
    seen = ndimage.map_coordinates(smooth, back[:3, :3] @ mm + back[:3, 3:], order=1)
    expected = bids.load_volume(tmp_path / "raw" / reference["t1w"])[0].ravel()
    brain = expected > 0
    assert np.corrcoef(seen[brain], expected[brain])[0, 1] > 0.95


def test_spectrum_finds_the_dimensions_that_were_planted():
    """Falls: that the residual after k components says how many dimensions people vary in."""
    rng, brain = np.random.default_rng(0), space.load_template(SMOKE).brain
    modes = rng.standard_normal((5, *SMOKE.shape))
    modes = modes + modes[:, ::-1]
    stack = np.tensordot(rng.standard_normal((40, 5)), modes, 1)
    stack = (stack + 0.1 * rng.standard_normal(stack.shape)).astype(np.float32) * brain
    found = bench_cohort.spectrum(stack, brain, SMOKE)
    left = {row["components"]: row for row in found["residual"]}
    assert left[0]["residual"] == 1 and left[2]["residual"] > 0.5
    expected = 0.1 / found["rms"]
    assert left[5]["residual"] == pytest.approx(expected, rel=0.15)
    assert left[5]["low"] <= left[5]["residual"] <= left[5]["high"]
    white = [row["power"] for row in found["power"][3:]]
    assert max(white) < 1.5 * min(white)


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
    rows = {row["region"]: row for row in summary.region_rows(truth)}
    assert rows["cerebellum"]["gap_points"] == pytest.approx(10, abs=2)

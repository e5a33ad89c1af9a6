"""Native scans find the template, lose their shading, and are judged; heads are never guessed."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from dsnb import bids, cohort, config, dataset, figures, phantom, record, space, volumes
from dsnb.checks import BadInput
from dsnb.volumes import native, product, quality, scan

STUDY = config.load_study("smoke")
GRID = STUDY.grid
VOXEL_MM = np.array([1.9, 2.0, 2.2])
# Turned, smaller, narrower and moved: MNI mm to native mm.
POSE = np.array(
    [[0.82, -0.12, 0.05, 9], [0.14, 0.88, 0.1, -14], [-0.06, -0.1, 0.9, 21], [0, 0, 0, 1]]
)
UPRIGHT = np.diag([0.9, 0.9, 0.9, 1.0])


def to_native(volume, affine, pose, voxel_mm=VOXEL_MM) -> tuple[np.ndarray, np.ndarray]:
    """Return an MNI-space volume as a scanner would see it in that pose, and its affine."""
    shape = np.ceil(np.array([190, 220, 190]) / voxel_mm).astype(int)
    out = np.diag([*voxel_mm, 1.0])
    out[:3, 3] = (pose @ [*space.CENTRE_MM, 1])[:3] - voxel_mm * (shape - 1) / 2
    voxels = np.linalg.inv(affine) @ np.linalg.inv(pose) @ out
    moved = ndimage.affine_transform(volume, voxels[:3, :3], voxels[:3, 3], tuple(shape), order=1)
    return moved, out


def brain(noise: float = 0.02, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the template's brain at 1 mm with noise inside, near 400 units, and its affine."""
    t1w, _, _, mask, affine = space.template_1mm()
    grain = np.random.default_rng(seed).normal(0, noise, t1w.shape).astype(np.float32)
    return 460 * np.clip(t1w + grain, 0.05, None) * mask, affine


@pytest.fixture(scope="module")
def posed() -> tuple[np.ndarray, np.ndarray]:
    return to_native(*brain(), POSE)


def away_mm(found: np.ndarray, pose: np.ndarray) -> float:
    """Return the RMS distance in mm, over the template brain, of a matrix from the true one."""
    error = found @ pose
    mm = GRID.coordinates_mm()[:, space.load_template(GRID).brain]
    moved = error[:3, :3] @ mm + error[:3, 3:] - mm
    return float(np.sqrt((moved**2).sum(0).mean()))


def test_registration_finds_the_pose(posed):
    """Would fall: that a native brain lands on the template, and its head size with it."""
    volume, affine, _ = native.strip(*posed, "scan")
    found = native.register(volume, affine, "scan")
    assert away_mm(found, POSE) < 0.4
    assert abs(np.log(np.linalg.det(found) * np.linalg.det(POSE))) < 0.01
    expected = 1882 * np.linalg.det(POSE)  # ml of the template's brain, shrunk
    assert abs(native.estimate_head_ml(found) / expected - 1) < 0.015
    assert np.array_equal(found, native.register(volume, affine, "scan")), "not repeatable"
    assert record.plain(found) == found.tolist(), "the sidecar must hold the matrix that was used"


def test_registration_that_runs_away_is_refused(posed, monkeypatch):
    """Would fall: that a failed registration is an exclusion with a reason, no bad volume."""
    volume, affine, _ = native.strip(*posed, "scan")

    def lost(fixed, moving, mask, transform, shrink, smooth_mm):
        if shrink == 1:
            transform.SetMatrix((0.2 * np.eye(3)).ravel().tolist())
        return -1.0

    monkeypatch.setattr(native, "_match", lost)
    with pytest.raises(BadInput, match="E-REGISTER"):
        native.register(volume, affine, "scan")


def test_a_start_without_overlap_leaves_the_others(posed, monkeypatch):
    """Would fall: that a scan is refused only where no start finds the template."""
    whole, starts = native._match, []

    def fails_first(*words, **more):
        starts.append(more["shrink"])
        if len(starts) == 1:
            raise RuntimeError("all samples map outside")
        return whole(*words, **more)

    monkeypatch.setattr(native, "_match", fails_first)
    assert away_mm(native.register(*posed, "scan"), POSE) < 0.4 and starts == [2, 2, 2, 1]


def test_brain_that_lands_the_wrong_way_is_refused(tmp_path, monkeypatch):
    """Would fall: that a brain which fills the template's outline back to front is left out."""
    make_native_root(tmp_path)
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])  # half a turn about the template's middle
    turn[1, 3] = 2 * space.CENTRE_MM[1]
    wrong = turn @ np.linalg.inv(POSE)
    monkeypatch.setattr(native, "register", lambda volume, affine, where: wrong)
    monkeypatch.setattr(native, "correct_bias", lambda volume, affine, where: volume)
    volumes.prepare(tmp_path, STUDY, processes=1)
    out = bids.read_table(tmp_path / "prepared" / "exclusions.tsv")
    assert out["code"].eq("E-REGISTER").all() and len(out) == 2
    found = volumes.summarise(tmp_path, STUDY)
    assert found["headline"]["native_error"] is found["headline"]["mask_dice_min"] is None
    assert found["tables"]["reasons"]["native_error"]


def test_shading_is_taken_away(posed):
    """Would fall: that N4 sees the shading; what is left is a fraction of what was planted."""
    volume, affine, _ = native.strip(*posed, "scan")
    field = np.exp(0.3 * np.linspace(-1, 1, volume.shape[1])).astype(np.float32)[:, None]
    inside, plain = volume > 0, native.correct_bias(volume, affine, "scan")
    corrected = native.correct_bias(volume * field, affine, "scan")
    left = np.log(corrected[inside] / plain[inside]).std()
    planted = np.log(np.broadcast_to(field, volume.shape)[inside]).std()
    assert left < 0.25 * planted


def test_a_head_is_not_taken_for_a_brain(posed, monkeypatch):
    """Would fall: that a skull is refused where nothing strips it, however much air is around."""
    volume, affine = posed
    grown = ndimage.binary_dilation(volume > 0, iterations=9)
    whole = np.pad(np.where(grown, np.maximum(volume, 150), 0), 40)
    assert (whole == 0).mean() > 0.8
    monkeypatch.setattr(native, "can_strip", lambda: False)
    with pytest.raises(BadInput, match=r"E-SKULL.*pip install -e '\.\[strip\]'"):
        native.strip(whole, affine, "scan")
    with pytest.raises(BadInput, match="E-EMPTY"):
        native.strip(np.zeros_like(volume), affine, "scan")
    assert native.strip(volume, affine, "scan")[2] == []
    monkeypatch.setattr(native, "can_strip", lambda: True)
    for found, code in ((0 * whole, "E-EMPTY"), (whole, "E-SKULL")):
        monkeypatch.setattr(native, "_extract_brain", lambda *a, found=found: found)
        with pytest.raises(BadInput, match=code):
            native.strip(whole, affine, "scan")
    absent = lambda image, steps: native.sitk.ReadImage("absent.nii")  # noqa: E731  a RuntimeError
    monkeypatch.setattr(native.sitk, "Shrink", absent)
    with pytest.raises(BadInput, match="E-BIAS"):
        native.correct_bias(volume, affine, "scan")


def test_a_large_upright_brain_is_not_taken_for_registered():
    """Would fall: that only what fits the template skips its registration."""
    volume, affine = brain()
    assert scan.lies_in_mni(volume, affine, GRID)
    assert not scan.lies_in_mni(*to_native(volume, affine, UPRIGHT), GRID)


def shaken(volume: np.ndarray, moved: float) -> np.ndarray:
    """Return a scan whose head moved (voxels) while a third of k-space was read."""
    lines = np.fft.fft(volume, axis=1)
    late = np.abs(np.fft.fftfreq(volume.shape[1])) > 0.12
    other = np.fft.fft(ndimage.shift(volume, (moved, moved, 0), order=1), axis=1)
    lines[:, late] = other[:, late]
    return np.where(volume > 0, np.abs(np.fft.ifft(lines, axis=1)), 0).astype(np.float32)


def test_motion_score_grows_with_blur_and_motion():
    """Would fall: that the score ranks scans by their motion, and that noise is none."""
    values, affine = brain(0.02)

    def score(volume):
        return quality.measure_edge_spread(volume, affine)

    for axis in range(3):
        blurred = [
            score(np.where(values > 0, ndimage.gaussian_filter1d(values, sd, axis), 0))
            for sd in (0.3, 1.0, 1.5, 2.0)
        ]
        assert (np.diff(blurred) > 0).all(), f"axis {axis}: {blurred}"
    ghosts = [score(shaken(values, moved)) for moved in (0, 1, 2, 3)]
    assert (np.diff(ghosts) > 0).all(), ghosts
    assert score(brain(0.03)[0]) - score(values) < ghosts[1] - ghosts[0]


def test_cropped_brain_is_measured_and_refused():
    """Would fall: that a brain beyond the field of view is noticed."""
    mask = space.load_template(GRID).brain
    cut = GRID.affine.copy()
    cut[2, 3] += 4 * GRID.voxel_mm
    shape = (GRID.shape[0], GRID.shape[1], GRID.shape[2] - 4)
    covered = scan.measure_coverage(shape, cut, GRID)
    assert np.isclose(1 - covered, mask[:, :, :4].sum() / mask.sum())
    cut[2, 3] += 8 * GRID.voxel_mm
    with pytest.raises(BadInput, match="E-CROP"):
        scan.check_coverage(shape, cut, GRID, "scan")


def test_doubtful_scans_come_first():
    """Would fall: the order of the sheet; native scans and others are judged apart."""
    table = pd.DataFrame({name: np.linspace(0.90, 0.95, 22) for name in quality.QC})
    table["cropped"] = 0.0
    table.loc[11:, list(quality.QC)[:-2]] *= 2  # another kind of scan, with numbers of its own
    table.loc[11:, "mask_ml"] = np.nan
    table.loc[3, "asymmetry"], table.loc[15, "cropped"] = 3.0, 0.05
    for half, off in ((5, 0.5), (6, 1.5)):  # half a brain's mask, and one with a neck
        table.loc[half, "mask_ml"] = off
    found = quality.find_outliers(table)
    assert found["flag"].drop([3, 5, 6, 15]).eq("ok").all()
    assert found["flag"][[5, 6]].eq("odd mask_ml").all()
    table["mask_ml"] = table["mask_ml"].clip(0.9, 0.95)
    found = quality.find_outliers(table)
    assert found["flag"][3] == "high asymmetry" and found["flag"][15] == "high cropped"
    assert set(found["doubt"].nlargest(2).index) == {3, 15}


# The whole way


def make_native_root(root) -> None:
    """Write a root with two people on the study grid, and each again as a native scan."""
    record.write_json(root / "study.json", {"people_may_be_shown": True, "data": "phantom"})
    raw, rows = record.begin(root, "raw", "phantom", {}, (), ("space",)), []
    for number, group in enumerate(("euploid", "DS")):
        name, (values, affine) = f"sub-{number}", brain(0.02, number)
        own = space.onto_grid(values, affine, GRID)
        seen, native_affine = to_native(values, affine, POSE)
        for who, kind, volume, at, about in (
            (name, "recorded", own, GRID, {}),
            (name + "native", "native", seen, native_affine, {"NativeToMNI": np.linalg.inv(POSE)}),
        ):
            path = raw.folder / name / "anat" / f"{who}_T1w.nii.gz"
            bids.save_volume(path, volume, at, about, 0.05)
            rows.append({
                "participant_id": who, "family": name, "group": group, "kind": kind,
                "origin": name if kind == "native" else "n/a", "tiv_ml": "n/a",
                "split": "fit" if kind == "recorded" else "native",
                "t1w": str(path.relative_to(raw.folder)), "sha": record.digest(path),
            })  # fmt: skip
    raw.finish()
    made = record.begin(root, "cohort", "import", {}, ("raw",), ("space",))
    bids.write_table(made.folder / "participants.tsv", pd.DataFrame(rows))
    made.finish()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Prepare the two people, half of the scans by each of two shards, then the rest."""
    root = tmp_path_factory.mktemp("native")
    make_native_root(root)
    for made, shard in enumerate(("2/2", "1/2"), start=1):
        volumes.prepare(root, STUDY, processes=1, shard=shard)
        assert not (root / "prepared" / "volumes.npy").exists()
        assert len(list((root / "prepared").rglob("*.nii.gz"))) == 2 * made
    left = root / "prepared" / "sub-0" / "anat" / ".sub-0_T1w.nii.gz.99"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    volumes.prepare(root, STUDY, processes=1)
    return root


def test_native_way_and_shortcut_agree(root):
    """Would fall: the page's table of what the native way costs."""
    found = volumes.summarise(root, STUDY)
    headline, lost = found["headline"], found["tables"]["native"]
    assert headline["native_error"] < 0.015 and headline["mask_dice_min"] > 0.95
    assert [row["group"] for row in lost] == ["euploid", "DS"]
    for row in lost:
        assert row["moved_mm"] < 0.4 and row["correlation"] > 0.98 and row["psnr_db"] > 25
    assert (
        headline["seconds_per_volume"] is None
        and "seconds_per_volume" in found["tables"]["reasons"]
    )
    assert "sub-" not in json.dumps(record.plain(found)), "the page must not name people"


def test_native_error_is_the_matrix_error(root, tmp_path):
    """Would fall: that the error is measured against the truth, with its sign and unit."""
    shutil.copytree(root, tmp_path / "copy")
    path = product.prepared_path(tmp_path / "copy" / "prepared", "sub-0native", GRID)
    about = json.loads(bids.sidecar_of(path).read_text())
    about["NativeToMNI"] = np.diag([1.1, 1, 1, 1]) @ about["TrueNativeToMNI"]
    about["NativeToMNI"][0, 3] += 3
    record.write_json(bids.sidecar_of(path), about)
    row = volumes.compare_native(tmp_path / "copy", GRID).iloc[0]
    x = GRID.coordinates_mm()[0][space.load_template(GRID).brain]
    assert np.isclose(row["log_det"], np.log(1.1), atol=1e-4)
    assert np.isclose(row["moved_mm"], np.sqrt(((0.1 * x + 3) ** 2).mean()), rtol=0.02)


def test_native_rows_know_their_head_size(root):
    """Would fall: that a real cohort has head size as a covariate; grids without a pose do not."""
    table = dataset.load_table(root).set_index("participant_id")
    expected = 1882 * np.linalg.det(POSE)
    assert np.isclose(table.loc["sub-0native", "tiv_ml"], expected, rtol=0.02)
    assert np.isnan(table.loc["sub-0", "tiv_ml"]) and np.isnan(table.loc["sub-0", "mask_ml"])
    assert np.isclose(table.loc["sub-0native", "mask_ml"], expected, rtol=0.04)
    assert "registered (affine)" in table.loc["sub-0native", "notes"]


def test_shards_and_straight_run_write_the_same(root, tmp_path):
    """Would fall: that several shards may fill one folder, and that leftovers are swept."""
    make_native_root(tmp_path)
    volumes.prepare(tmp_path, STUDY, processes=1)

    def contents(folder):
        files = (
            path for path in folder.rglob("*") if path.suffix in (".gz", ".npy", ".tsv", ".99")
        )
        return {path.relative_to(folder): path.read_bytes() for path in files}

    assert contents(tmp_path / "prepared") == contents(root / "prepared")
    for wrong in ("0/2", "3/2", "1", "a/b", "1/0"):
        with pytest.raises(BadInput, match="E-SHARD"):
            volumes.prepare(tmp_path, STUDY, shard=wrong)


def test_pictures_lie_beside_real_scans_only(root, tmp_path):
    """Would fall: that a cohort can be looked at, and that pictures are no part of the product."""
    figures.save_checks(root, GRID)
    assert [path.name for path in root.rglob("*.png")] == ["quality.png"]
    shutil.copytree(root, tmp_path / "copy")
    record.write_json(tmp_path / "copy" / "study.json", {"preset": "smoke", "data": "clinic"})
    figures.save_checks(tmp_path / "copy", GRID)
    assert len(list((tmp_path / "copy" / "prepared").glob("sub-*/anat/*.png"))) == 4
    assert record.require(tmp_path / "copy", "prepared")


def test_sheet_is_sorted_by_doubt(root):
    """Would fall: that the worst scan is looked at first, with its flag and its sides marked."""
    table, stack = dataset.load_table(root), dataset.load_volumes(root)
    table["doubt"], table["flag"] = [0.0, 1.0, 9.0, 2.0], ["ok", "ok", "low snr", "ok"]
    figure = figures.plot_sheet(stack, table, GRID, named=True)
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    titles = [word for word in words if ": " in word]
    assert titles[0].endswith(": low snr") and titles[-1].startswith("sub-0:")
    page = figures.plot_sheet(stack, table, GRID)
    said = [text.get_text() for axes in page.axes for text in axes.texts]
    assert "low snr" in said and not any("sub-" in word for word in said), "a page names nobody"
    assert words.count("L") == words.count("R") == len(titles)
    assert sum(bool(axes.collections) for axes in figure.axes) == len(titles), "outlines are drawn"


def test_planted_native_scan_is_resampled_once(posed, monkeypatch):
    """Would fall: that displacement and registration are one step: the patient's x shows x + u."""
    displacement = np.zeros((3, *GRID.shape), np.float32)
    displacement[1] = 8.0
    calls, whole = [], ndimage.map_coordinates
    monkeypatch.setattr(
        scan.ndimage, "map_coordinates", lambda *a, **k: calls.append(1) or whole(*a, **k)
    )
    volume, affine = posed[0], np.linalg.inv(POSE) @ posed[1]
    plain = scan.place(volume, affine, GRID, None, "scan")[0]
    moved = scan.place(volume, affine, GRID, displacement, "scan")[0]
    assert len(calls) == 2 and np.allclose(moved[:, :-2], plain[:, 2:], atol=0.5)


# Real scans


@pytest.mark.real
def test_real_native_scans_land_on_the_template(real_scans, tmp_path, monkeypatch):
    """Would fall: that scanners' scans are prepared and land on the template."""
    native_folder, raw = real_scans.parent / "ds002748", tmp_path / "in"
    if not native_folder.is_dir():
        pytest.skip("the native open scans ds002748 are absent")
    table = bids.read_table(native_folder / "participants.tsv")
    table = table[table["participant_id"].isin(["sub-07", "sub-58", "sub-61"])]
    for name in table["participant_id"]:
        shutil.copytree(native_folder / name, raw / name)
    bids.write_table(raw / "participants.tsv", table)
    monkeypatch.setattr(phantom, "disease_displacement", lambda grid, severity, seed: (
        np.zeros((3, *grid.shape), np.float32), np.zeros(grid.shape, np.float32)))  # fmt: skip
    cohort.gather(tmp_path, STUDY, raw)
    volumes.prepare(tmp_path, STUDY, raw, processes=2)
    people = dataset.load_table(tmp_path).query("kind == 'recorded'").set_index("participant_id")
    assert people["mask_dice"].min() > 0.92 and people["template_r"].min() > 0.5
    assert people["tiv_ml"].between(1000, 1700).all()
    # Of three: its stripping is doubtful. Of all 12 its edges are only the third widest (before
    # N4), so this shows that the order works on real scans, not that the score finds motion.
    assert people["doubt"].idxmax() == "sub-07"


@pytest.mark.real
def test_real_head_is_stripped(real_scans):
    """Would fall: that deepbet works here; a head's brain has a plausible size."""
    pytest.importorskip("deepbet", reason="deepbet is not installed: pip install -e '.[strip]'")
    path = real_scans.parent / "pumi-minitest" / "sub-001" / "anat" / "sub-001_T1w.nii.gz"
    if not path.is_file():
        pytest.skip("the open head pumi-minitest is absent")
    volume, affine, notes = native.strip(*bids.load_volume(path), path.name)
    assert notes and 1200 < native.measure_ml(volume, affine) < 1700

"""Raw scans reach the study grid once, in the right place, on one scale, or are refused."""

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dsnb import bids, cohort, config, dataset, phantom, record, space, volumes
from dsnb.checks import BadInput
from dsnb.volumes import product, quality, scan

STUDY = config.load_study("smoke")
GRID, FINER = STUDY.grid, space.GRIDS["small"]
SHIFT_MM = 8.0  # two voxels of the smoke grid


def head(seed: int = 0, grid=GRID, noise: float = 0.02) -> np.ndarray:
    """Return the template with noise inside its brain, raw units near 400, (X, Y, Z)."""
    template = space.load_template(grid)
    grain = np.random.default_rng(seed).normal(0, noise, grid.shape)
    return np.float32(460 * np.clip(template.t1w + grain, 0, None) * template.brain)


def test_volume_on_the_grid_stays_as_it_is():
    """The phantom's volumes pass without a resampling, to the bit."""
    placed, resampled = scan.place(head(), GRID.affine, GRID, None, "scan")
    assert not resampled and np.array_equal(placed, head())


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PIR"])
def test_scan_on_another_grid_lands_in_place(axes):
    """A 3 mm scan in any axis order becomes the 4 mm template, not its mirror image."""
    volume = head(grid=FINER, noise=0)
    volume[FINER.shape[0] // 2 :] *= 1.3  # the right half is brighter
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(FINER.affine), nib.orientations.axcodes2ornt(axes)
    )
    turned = nib.apply_orientation(volume, turn)
    affine = FINER.affine @ nib.orientations.inv_ornt_aff(turn, FINER.shape)
    placed, resampled = scan.place(*bids.as_ras(turned, affine), GRID, None, "scan")
    expected = space.onto_grid(volume, FINER.affine, GRID)
    assert resampled and np.allclose(placed, expected, atol=0.5)
    assert expected[22:].mean() > 1.2 * expected[:18].mean()


def test_displacement_is_backward_in_millimetres():
    """The patient's voxel at x takes its value from x + u(x): u = +8 mm moves the brain left."""
    displacement = np.zeros((3, *GRID.shape), np.float32)
    displacement[0] = SHIFT_MM
    placed, resampled = scan.place(head(), GRID.affine, GRID, displacement, "scan")
    assert resampled and np.allclose(placed[:-2], head()[2:], atol=0.5)


def with_skull() -> np.ndarray:
    return head() + 150 * (np.random.default_rng(1).random(GRID.shape) < 0.7)


UNFIT = {
    "E-SKULL": (with_skull(), GRID.affine),
    "E-EMPTY": (np.zeros(GRID.shape, np.float32), GRID.affine),
    "E-NOTMNI": (np.roll(head(), 6, axis=1), GRID.affine),
}


@pytest.mark.parametrize("code", UNFIT)
def test_unfit_scans_are_refused(code):
    """A head with skull, a blank and an unregistered brain are told apart."""
    with pytest.raises(BadInput, match=code):
        scan.place(*UNFIT[code], GRID, None, "scan")


def test_mode_is_the_most_frequent_value():
    """Neither a dark tail nor bright vessels move the white-matter mode."""
    rng = np.random.default_rng(0)
    parts = rng.normal(200, 8, 3000), rng.uniform(20, 190, 900), rng.normal(400, 9, 100)
    assert abs(scan.find_mode(np.concatenate(parts)) - 200) < 3


@pytest.mark.parametrize("gain", [0.004, 1.0, 300.0])
def test_white_matter_is_anchored_whatever_the_scanner(gain):
    """Gain does not matter, neither dark cortex nor bright vessels move it, the air is 0."""
    template = space.load_template(GRID)
    values, qc = scan.normalise(head() * gain, GRID, "scan")
    assert abs(scan.find_mode(values[template.wm > 0.9]) - 0.85) < 0.01
    for factor in (0.7, 1.6):
        cortex = np.where(template.gm > 0.5, factor, 1).astype(np.float32)
        changed = scan.normalise(head() * cortex * gain, GRID, "scan")[0]
        assert np.allclose(changed[template.wm > 0.95], values[template.wm > 0.95], rtol=0.02)
    kept = scan.find_brain(GRID, max(scan.MARGIN_MM, GRID.voxel_mm))
    assert (values[~kept] == 0).all() and 0 <= values.min() <= values.max() <= 1.5
    assert kept[template.brain].all() and qc["mask_dice"] > 0.95


def test_signal_to_noise_follows_the_noise():
    """Twice the noise halves the SNR; its value is the mode over the SD that was planted."""
    quiet, loud = (
        scan.normalise(head(noise=noise), GRID, "scan")[1]["snr"] for noise in (0.04, 0.08)
    )
    mode = space.load_template(GRID).t1w[space.load_template(GRID).wm > 0.9].mean()
    assert abs(quiet / loud - 2) < 0.5 and abs(quiet / (mode / 0.04) - 1) < 0.35


def test_outliers_are_flagged_on_the_bad_side_only():
    """A lone noisy scan earns a flag, an unusually clean one does not."""
    table = pd.DataFrame({name: np.linspace(0.90, 0.95, 21) for name in volumes.QC})
    table["cropped"], table["mask_ml"] = 0.0, np.nan
    table.loc[3, "snr"], table.loc[4, "snr"] = 0.2, 3.0
    flags = quality.find_outliers(table)["flag"]
    assert flags[3] == "low snr" and flags.drop(3).eq("ok").all()


def make_raw(raw, people: int = 10, group: str = "control", bad: tuple[int, ...] = ()) -> None:
    """Write a BIDS folder of MNI-space scans at 3 mm; those in `bad` are blank."""
    names = [f"sub-{k:02d}" for k in range(people)]
    for k, name in enumerate(names):
        volume = head(k, FINER)
        volume = np.zeros(FINER.shape, np.float32) if k in bad else volume
        volume[0, 0, k] = 0.1  # no two files alike
        path = raw / name / "anat" / f"{name}_T1w.nii.gz"
        bids.save_volume(path, volume, FINER, None, 0.1)
    table = pd.DataFrame({"participant_id": names, "age": 30.0, "sex": "F", "group": group})
    bids.write_table(raw / "participants.tsv", table)


@pytest.fixture
def stub_fields(monkeypatch):
    """Let the disease be a shift of 8 mm and the sham one in the other direction."""

    def shift(sign: float):
        def field(grid, severity, seed):
            displacement = np.zeros((3, *grid.shape), np.float32)
            displacement[0] = sign * SHIFT_MM
            return displacement, np.full(grid.shape, sign * 0.25, np.float32)

        return field

    monkeypatch.setattr(phantom, "disease_displacement", shift(1.0))
    monkeypatch.setattr(phantom, "sham_displacement", shift(-1.0))


def gathered(tmp_path, **asked):
    make_raw(tmp_path / "in", **asked)
    record.write_json(tmp_path / "study.json", {"people_may_be_shown": True})
    cohort.gather(tmp_path, STUDY, tmp_path / "in")
    return tmp_path / "in"


def test_prepared_rows_volumes_and_truth_agree(tmp_path, stub_fields):
    """Row i of the table is volume i and its file; planted rows are the original, displaced."""
    volumes.prepare(tmp_path, STUDY, gathered(tmp_path, bad=(4,)), processes=1)
    table, arrays = dataset.load_table(tmp_path), dataset.load_volumes(tmp_path)
    place_of = {name: row for row, name in enumerate(table["participant_id"])}
    out = bids.read_table(tmp_path / "prepared" / "exclusions.tsv")
    kinds = dict(zip(out["participant_id"], out["code"]))
    assert kinds["sub-04"] == "E-EMPTY" and not table["family"].eq("sub-04").any()
    assert len(table) + len(out) == len(cohort.load(tmp_path)) and len(table) == len(arrays)
    for name, row in place_of.items():
        path = product.prepared_path(tmp_path / "prepared", name, GRID)
        volume, affine = bids.load_volume(path)
        assert np.array_equal(volume.astype(np.float16), arrays[row])
        assert np.allclose(affine, GRID.affine)
        about = json.loads(bids.sidecar_of(path).read_text())
        assert about["SourceDigest"] == table["sha"][row] and about["Sources"][0].endswith(
            ".nii.gz"
        )
    truth, maps = dataset.load_truth(tmp_path)
    drawn = table[table["kind"] != "recorded"]
    assert truth["participant_id"].tolist() == drawn["participant_id"].tolist()
    inner = np.s_[6:-6, 8:-8, 8:-8]
    for name, origin, kind, known in zip(
        drawn["participant_id"], drawn["origin"], drawn["kind"], maps
    ):
        sign = 1 if kind == "planted" else -1
        expected = np.roll(arrays[place_of[origin]].astype(float), -2 * sign, axis=0)
        seen = arrays[place_of[name]].astype(float)
        assert np.corrcoef(seen[inner].ravel(), expected[inner].ravel())[0, 1] > 0.95
        assert np.allclose(known, sign * 0.25, atol=1e-3)


def test_what_is_drawn_from_a_bad_scan_goes_with_it(tmp_path, stub_fields, monkeypatch):
    """A planted scan without its original would stand in a paired comparison alone."""
    raw, whole = gathered(tmp_path), product.normalise
    table = cohort.load(tmp_path)
    name = table.loc[table["kind"] == "planted", "origin"].iloc[0]

    def fails(volume, grid, where):
        if where.startswith(f"{name}_"):
            raise BadInput("E-EMPTY", where, "it", 0, "tissue", "look")
        return whole(volume, grid, where)

    monkeypatch.setattr(product, "normalise", fails)
    volumes.prepare(tmp_path, STUDY, raw, processes=1)
    out = bids.read_table(tmp_path / "prepared" / "exclusions.tsv").set_index("participant_id")
    assert out.loc[name, "code"] == "E-EMPTY"
    assert out.loc[f"{name}planted", "code"] == "E-ORIGIN"
    assert not dataset.load_table(tmp_path)["family"].eq(name).any()


def test_summary_counts_and_explains_what_is_missing(tmp_path, stub_fields):
    """The page's numbers come from the product, and every null has its reason."""
    volumes.prepare(tmp_path, STUDY, gathered(tmp_path, bad=(4,)), processes=1)
    found = volumes.summarise(tmp_path, STUDY)
    headline, reasons = found["headline"], found["tables"]["reasons"]
    assert set(record.HEADLINE["02_volumes"].split()) <= set(headline)
    assert all(reasons[key] for key, value in headline.items() if value is None)
    assert headline["prepared"] == len(dataset.load_table(tmp_path))
    assert headline["excluded"] == sum(found["tables"]["exclusions"].values()) >= 1
    record.plain(found)  # every number is finite and JSON-able
    assert "sub-" not in json.dumps(record.plain(found)), "the page must not name people"


def test_small_groups_of_hidden_people_are_left_out(tmp_path, stub_fields):
    """Would fall: that a page of a clinic's people shows no single person's number."""
    volumes.prepare(tmp_path, STUDY, gathered(tmp_path), processes=1)
    shown = volumes.summarise(tmp_path, STUDY)["tables"]
    record.write_json(tmp_path / "study.json", {"people_may_be_shown": False})
    hidden = volumes.summarise(tmp_path, STUDY)["tables"]
    sizes = [row["size"] for row in shown["flags"]]
    assert min(sizes) < 5 <= max(sizes)
    assert hidden["flags"] == [row for row in shown["flags"] if row["size"] >= 5]
    assert {row["quantile"] for row in hidden["qc"]} == {0.05, 0.5, 0.95}
    few = sum(size < 5 for size in sizes)
    assert hidden["reasons"]["qc"].startswith(f"{few} groups") and "qc" not in shown["reasons"]


def test_finished_product_is_not_read_again(tmp_path, stub_fields, monkeypatch):
    """Would fall: that nothing is refused or read where nothing changed, deepbet or not."""
    raw = gathered(tmp_path)
    volumes.prepare(tmp_path, STUDY, raw, processes=1)
    key, stripped = record.require(tmp_path, "prepared"), product.native.can_strip()
    monkeypatch.setattr(product, "_load", None)
    monkeypatch.setattr(product.native, "can_strip", lambda: not stripped)
    volumes.prepare(tmp_path, STUDY, raw, processes=1)
    assert record.require(tmp_path, "prepared") == key


def test_head_sizes_have_one_ruler(tmp_path):
    """Would fall: that a table's head sizes are never mixed with those of our registration."""
    table = pd.DataFrame({"participant_id": ["a", "b"], "kind": "recorded", "origin": "n/a"})
    for told, expected in (([1500.0, np.nan], [1500.0, np.nan]), ([np.nan] * 2, [1.0, 2.0])):
        answers = [
            {"participant_id": name, "notes": "", "head_ml": float(ml)}
            | dict.fromkeys(quality.QC, 1.0)
            for ml, name in enumerate("ab", start=1)
        ]
        product._write_tables(tmp_path, table.assign(tiv_ml=told), answers)
        found = bids.typed(bids.read_table(tmp_path / "participants.tsv"))["tiv_ml"]
        assert np.allclose(found, expected, equal_nan=True)


def contents(folder) -> dict:
    """Return every data file's bytes (the product's own record names times and stamps)."""
    kept = [path for path in folder.rglob("*") if path.is_file()]
    skipped = ("product.json", "timing.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept if p.name not in skipped}


def test_killed_run_goes_on_to_the_same_bytes(tmp_path, stub_fields, monkeypatch):
    """A run stopped half-way keeps what it made and ends like a straight one."""
    raw = gathered(tmp_path)
    volumes.prepare(tmp_path, STUDY, raw, processes=1)
    straight = contents(tmp_path / "prepared")
    shutil.rmtree(tmp_path / "prepared")
    made, whole = [], product.normalise

    def counted(volume, grid, where):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(where)
        return whole(volume, grid, where)

    monkeypatch.setattr(product, "normalise", counted)
    with pytest.raises(KeyboardInterrupt):
        volumes.prepare(tmp_path, STUDY, raw, processes=1)
    monkeypatch.setattr(product, "normalise", whole)
    first = product.prepared_path(tmp_path / "prepared", "sub-00", GRID)
    stamp = first.stat().st_mtime_ns
    volumes.prepare(tmp_path, STUDY, raw, processes=1)
    assert first.stat().st_mtime_ns == stamp, "finished volumes must not be made again"
    assert contents(tmp_path / "prepared") == straight


def test_processes_change_nothing(tmp_path):
    """One process and two write the same bytes."""
    raw = gathered(tmp_path, people=4, group="DS")
    found = []
    for processes in (1, 2):
        shutil.rmtree(tmp_path / "prepared", ignore_errors=True)
        volumes.prepare(tmp_path, STUDY, raw, processes)
        found.append(contents(tmp_path / "prepared"))
    assert found[0] == found[1] and len(found[0]) > 4


def test_unusable_cohort_is_refused_untouched(tmp_path, stub_fields, monkeypatch):
    """Where no scan can be used, the earlier product stays, and the user hears why."""
    raw = gathered(tmp_path)
    volumes.prepare(tmp_path, STUDY, raw, processes=1)
    before = contents(tmp_path / "prepared")
    make_raw(raw, bad=tuple(range(10)))
    cohort.gather(tmp_path, STUDY, raw)
    with pytest.raises(BadInput, match="3 problems(.|\n)*E-EMPTY"):
        volumes.prepare(tmp_path, STUDY, raw, processes=1)
    assert contents(tmp_path / "prepared") == before


def test_scan_changed_since_the_import_is_not_used(tmp_path, stub_fields):
    """A scan replaced behind the cohort's back is named, not taken for the old one."""
    raw = gathered(tmp_path)
    path = raw / "sub-07" / "anat" / "sub-07_T1w.nii.gz"
    bids.save_volume(path, head(99, FINER), FINER, None, 0.1)
    with pytest.raises(BadInput, match="E-CHANGED sub-07/anat/sub-07_T1w"):
        volumes.prepare(tmp_path, STUDY, raw, processes=1)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.real
def test_real_scans_are_prepared(real_scans, tmp_path):
    """Open scans of 2 mm land on the template, and a planted one loses cerebellum."""
    raw, table = tmp_path / "in", bids.read_table(real_scans / "participants.tsv").head(6)
    for name in table["participant_id"]:
        shutil.copytree(real_scans / name, raw / name)
    bids.write_table(raw / "participants.tsv", table)
    cohort.gather(tmp_path, STUDY, raw)
    volumes.prepare(tmp_path, STUDY, raw, processes=1)
    prepared, arrays = dataset.load_table(tmp_path), dataset.load_volumes(tmp_path)
    people = prepared[prepared["kind"] == "recorded"]
    assert len(people) == 6 and people["mask_dice"].min() > 0.9
    mean, template = arrays[people.index].astype(np.float32).mean(0), space.load_template(GRID)
    alike = [
        np.corrcoef(np.flip(mean, axis)[template.brain], template.t1w[template.brain])[0, 1]
        for axis in ((), 1, 2)
    ]
    assert alike[0] > 0.6 and alike[0] > 0.2 + max(alike[1:])
    truth, _ = dataset.load_truth(tmp_path)
    planted = truth[truth["participant_id"].str.endswith("planted")]
    assert (
        len(planted) and (planted["cerebellum_after"] < 0.95 * planted["cerebellum_before"]).all()
    )

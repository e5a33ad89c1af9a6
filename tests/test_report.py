"""One person's report: maps where the raw scan lies, the product's numbers, equal bytes."""

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial.transform import Rotation
from test_anomaly import BRAIN, GRID, STUDY, make_source

from dsnb import bids, config, figures, record, report
from dsnb.anomaly import maps, tuning
from dsnb.anomaly.people import BY_NAME, Source
from dsnb.checks import BadInput
from dsnb.cohort import manifest
from dsnb.norms import Calibration
from dsnb.space import REGIONS
from dsnb.volumes import prepared_path

TBM = config.replace(STUDY, maps=dataclasses.replace(STUDY.maps, norm="tbm"))
# Scanner mm to MNI mm: turned about three axes, grown by a tenth, and shifted.
TURN = Rotation.from_euler("xyz", [14, -9, 21], degrees=True).as_matrix()
NATIVE_TO_MNI = from_matvec(1.1 * TURN, [11.0, -23.0, 8.0])
# Oblique, its first axis towards the left, three voxel sizes.
SCAN = from_matvec(
    Rotation.from_euler("y", 6, degrees=True).as_matrix() @ np.diag([-1.9, 2.2, 2.6]),
    [80.0, -90.0, -75.0],
).astype(np.float32)
SHAPE = 84, 94, 62


def write_scan(raw: Path, name: str) -> Path:
    """Write a raw scan whose voxels nobody reads: only its shape and affine count."""
    path = raw / name / "anat" / f"{name}_T1w.nii.gz"
    bids.save_volume(path, np.ones(SHAPE, np.int16), SCAN, {}, space=1)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Source]:
    """Return a data root with finished `maps` of volume, scans in their own space, and people."""
    root, source = tmp_path_factory.mktemp("root"), make_source()
    source.study = TBM
    names = source.table["participant_id"]
    source.table["t1w"] = names + "/anat/" + names + "_T1w.nii.gz"
    source.table["origin"] = "n/a"
    record.write_json(root / "study.json", {"preset": "smoke", "data": "phantom"})
    record.write_json(root / manifest.SOURCE, {"raw": "scans"})  # where an import read
    for name in names:
        write_scan(root / "scans", name)
        sidecar = bids.sidecar_of(prepared_path(root / "prepared", name, GRID))
        record.write_json(sidecar, {"NativeToMNI": NATIVE_TO_MNI})
    settings = {k: v for k, v in dataclasses.asdict(TBM.maps).items() if k != "processes"}
    product = record.begin(root, "maps", "map", settings, (), ("space",))
    source.truth_table, source.truth = source.truth_table[:0], source.truth[:0]  # no judging
    with pytest.MonkeyPatch.context() as patch:  # nor any other norm
        patch.setattr(tuning, "CANDIDATES", (BY_NAME["tbm"],))
        headline, tables, _ = maps._measure(product.folder, source)
    found = {"headline": headline, "tables": tables}
    record.write_json(product.folder / "metrics.json", found)
    product.finish()
    return root, source


@pytest.fixture
def root(finished, monkeypatch) -> Path:
    """Return the data root, whose people `report` finds."""
    monkeypatch.setattr(report, "Source", lambda root, study: finished[1])
    return finished[0]


def ds_person(source: Source) -> str:
    return source.table["participant_id"].iloc[source.rows("DS", "test")[0]]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_planted_blob_lands_where_it_was_planted_in_the_raw_scan(finished, tmp_path):
    """Falls: the claim that a map in the own space can be laid over the person's own scan."""
    _, source = finished
    planted_mm = np.array([26.0, -40.0, 18.0])
    away = np.linalg.norm(np.moveaxis(GRID.coordinates_mm(), 0, -1) - planted_mm, axis=-1)
    blob = {"z": 5 * np.exp(-((away / 8) ** 2))[BRAIN], "q": np.where(away < 9, 0.01, 0.7)[BRAIN]}
    path = write_scan(tmp_path / "raw", "sub-1")
    report.write_own_space(tmp_path, "sub-1", blob, source, path, NATIVE_TO_MNI)
    expected_mm = np.linalg.inv(NATIVE_TO_MNI) @ [*planted_mm, 1]
    for desc in ("z", "q"):
        image = nib.load(tmp_path / f"sub-1_space-T1w_desc-{desc}_statmap.nii.gz")
        assert image.shape == SHAPE and nib.aff2axcodes(image.affine) == ("L", "A", "S")
        np.testing.assert_array_equal(image.affine, nib.load(path).affine)
        values = image.get_fdata()
        weight = values if desc == "z" else values < 0.05
        centre = np.average(np.argwhere(weight > 0), axis=0, weights=weight[weight > 0])
        np.testing.assert_allclose(apply_affine(image.affine, centre), expected_mm[:3], atol=0.6)
    assert set(np.unique(values.round(3))) == {0.01, 0.7, 1.0}  # every q is one that was computed
    assert values[0, 0, 0] == 1


def test_maps_of_volume_leave_the_template_before_they_reach_the_scan(root, finished, monkeypatch):
    """Falls: that own-space maps of TBM show a person's place, not the template's."""
    _, source = finished
    name, start = ds_person(source), np.argwhere(BRAIN).T
    shifted = (start + np.array([[3], [0], [0]])).astype(np.float32)
    monkeypatch.setattr(Source, "_points", lambda self, volumes: (None, shifted[None]))
    sidecar = bids.sidecar_of(prepared_path(root / "prepared", name, GRID))
    told, scan = sidecar.read_text(), root / "scans" / name / "anat" / f"{name}_T1w.nii.gz"
    record.write_json(sidecar, {})  # a scan in MNI space, on the study's grid
    bids.save_volume(scan, np.ones(GRID.shape, np.int16), GRID)
    report.report(root, TBM, [name], own_space=True)
    anat = root / "reports" / name / "anat"
    own, there = (nib.load(next(anat.glob(f"*_{what}_statmap.nii.gz"))).get_fdata()
                  for what in ("space-T1w_desc-z", "res-4mm_desc-z"))  # fmt: skip
    np.testing.assert_allclose(own[:-3][BRAIN[:-3]], there[3:][BRAIN[:-3]], atol=2e-3)
    assert np.abs(own - there).max() > 1
    sidecar.write_text(told)
    write_scan(root / "scans", name)


def test_a_report_holds_the_products_numbers_and_one_page(root, finished, capsys):
    """Falls: that a report and the product `maps` tell the same of a test person."""
    _, source = finished
    name = ds_person(source)
    scaled = source.table["participant_id"].iloc[source.rows("euploid", "scale")[0]]
    report.report(root, TBM, [name, scaled, name], own_space=True)
    told = capsys.readouterr().err
    assert told.count("s from the prepared volume to the maps, registration included") == 2
    mine, product = root / "reports" / name, root / "maps"
    for desc in ("z", "p", "q", "uncertainty"):
        file = f"anat/{name}_space-MNI152NLin2009aSym_res-4mm_desc-{desc}_statmap.nii.gz"
        found, known = (nib.load(f / file).get_fdata() for f in (mine, product / name))
        np.testing.assert_allclose(found, known, atol=2e-3, rtol=1e-4)
    found, known = (
        bids.typed(bids.read_table(path))
        for path in (mine / f"{name}_regions.tsv", product / "regions.tsv")
    )
    known = known[known["participant_id"] == name].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, known, rtol=0, atol=2e-3)
    assert len(found) == len(REGIONS) and (mine / f"{name}_regions.json").is_file()
    for person in (name, scaled):
        height, width = plt.imread(root / "reports" / person / f"{person}_report.png").shape[:2]
        assert height / width == pytest.approx(297 / 210, rel=0.01)
        assert len([*(root / "reports" / person / "anat").glob("*_space-T1w_*")]) == 4


def test_a_second_run_gives_equal_bytes_and_a_broken_one_changes_nothing(root, finished):
    """Falls: that reports can be compared byte by byte, and none is half-written."""
    name = ds_person(finished[1])
    report.report(root, TBM, [name], own_space=True)
    first = contents(root / "reports")
    report.report(root, TBM, [name], own_space=True)
    assert contents(root / "reports") == first and len(first) > 14
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(figures, "save_figure", lambda *_, **__: (_ for _ in ()).throw(
            KeyboardInterrupt))  # fmt: skip
        report.report(root, TBM, [name])
    assert contents(root / "reports") == first
    report.report(root, TBM, [name])
    left = [path for path in contents(root / "reports") if path.startswith(name)]
    assert left and not [path for path in left if "space-T1w" in path]


def test_what_cannot_be_reported_is_refused(root, finished, monkeypatch):
    """Falls: that a wrong id, other settings, a drawn scan or somebody's notes give a sentence."""
    source = finished[1]
    name = ds_person(source)

    def refused(code: str, *names: str, study=TBM, **how) -> str:
        with pytest.raises(BadInput) as caught:
            report.report(root, study, names, **how)
        assert caught.value.code == code
        return str(caught.value)

    assert "'005', expected an id of the prepared cohort, the nearest are sub-005" in refused(
        "E-UNKNOWN", name, "005"
    )
    other = config.replace(TBM, maps=dataclasses.replace(TBM.maps, demons_iterations=4))
    assert "demons_iterations is 4, expected 3 as mapped" in refused("E-STALE", name, study=other)
    drawn = prepared_path(root / "prepared", name, GRID, "truth_logjac")
    drawn.touch()
    refused("E-DRAWN", name, own_space=True)
    drawn.unlink()
    report.report(root, TBM, [name])
    notes = root / "reports" / name / "my notes.txt"
    notes.write_text("mine")
    assert "my notes.txt" in refused("E-FOREIGN", name) and notes.read_text() == "mine"
    notes.unlink()
    twins = source.table.assign(kind=source.table["kind"].where(source.table.index > 1, "twin"))
    monkeypatch.setattr(source, "table", twins)
    refused("E-UNKNOWN", "sub-000")
    few = {"tables": {"reasons": {"lift": "0 euploid scale people, 5 needed"}}}
    monkeypatch.setattr(maps, "evaluate", lambda root, study: few)
    assert "0 euploid scale people, 5 needed" in refused("E-FEW", name)


def told(
    q: float = 0.9, age: float = 40, made: tuple = (), bound: float = 2, p: float = 0.5
) -> list[str]:
    """Return what is said of a euploid with two of three regions beyond z 2."""
    measured = pd.DataFrame({"region": ["frontal", "corpus_callosum", "thalamus"],
                             "z": [2.5, -4, 1], "bound": bound})  # fmt: skip
    measured["outside"] = np.where(np.isnan(measured["bound"]), None, measured["z"].abs() > bound)
    norm = maps.Reference(None, Calibration(1, 1, 0.05, 9, 0.05), None, (20, 60), 0.4, 19)
    about = pd.Series({"age": age, "group": "euploid"})
    return report.tell(norm, about, list(made), measured, np.array([0.9, p]),
                       np.array([0.5, q]))  # fmt: skip


def test_the_sentence_counts_what_is_outside_and_warns():
    """Falls: that the title tells what was found, and where the norm does not hold."""
    assert told() == [
        "2 of 3 regions lie outside the bound that 95 % of euploids of this sex keep "
        "(corpus callosum, frontal); no voxel passes q < 0.05."
    ]
    assert told(q=0.01)[0].endswith("; 1 of 2 brain voxels passes q < 0.05.")
    assert told(bound=np.nan)[0].startswith("No region has a bound")
    assert "20 to 60 years" in told(age=73)[1] and len(told(age=60)) == 1
    assert told(p=0.01)[1].startswith(
        "50 % of the brain is beyond its 95 % range, and in no calibration euploid more than 40 %"
    )
    assert "made with this person or a relative (scale)" in told(made=("scale",))[1]


def test_who_is_part_of_the_norm_is_found_through_the_family():
    """Falls: that a second session or a planted twin of a norm's person is told apart from news."""
    table = pd.DataFrame({
        "family": ["a", "a", "b", "b", "c"], "group": ["euploid", "DS", "euploid", "euploid", "DS"],
        "split": ["scale", "test", "test", "repeat", "test"],
    })  # fmt: skip
    found = [report.made_with(table, table.iloc[row]) for row in range(5)]
    assert found == [["scale"], ["scale"], [], [], []]


def test_the_page_cuts_through_what_passes_and_draws_bounds():
    """Falls: that the page shows the strongest voxel that passes, and who is outside."""
    z = np.zeros(GRID.shape, np.float32)
    z[10, 30, 20], z[25, 20, 20] = -5, 6
    regions = pd.DataFrame({
        "region": REGIONS, "departure": -3.0, "z": -2.5, "centile": 1.0, "bound": 2.0,
        "outside": [True] + [False] * 15, "low": -1.0, "high": 1.0,
    })  # fmt: skip
    for passes, where in ((True, GRID.affine @ [10, 30, 20, 1]), (False, figures.slices.POINT)):
        q = np.where((z == -5) & passes, 0.01, 1)
        volumes = {"T1w": BRAIN.astype(np.float32), "z": z, "q": q}
        figure = figures.plot_report(["sub-1"], ["said"], [], volumes, GRID.affine, regions, "%",
                                     0.05)  # fmt: skip
        words = {text.get_text() for axes in figure.axes for text in axes.texts}
        assert {f"{axis}={mm:.0f}" for axis, mm in zip("xyz", where)} <= words
        assert {"L", "R", "-3.0 %", "-2.5"} <= words
        assert any("outlined: q < 0.05" in text for text in words) is passes
    chart = next(axes for axes in figure.axes if axes.get_yticklabels()[:1] and
                 axes.get_yticklabels()[0].get_text() == "cerebellum")  # fmt: skip
    dots = [line for line in chart.lines if line.get_marker() == "o"]
    assert [dot.get_color() == "black" for dot in dots] == [False] + [True] * 15
    ticks = [list(line.get_xdata()) for line in chart.lines if line.get_marker() == "|"]
    assert ticks == [[-2, 2]] * 16


def test_a_maps_product_must_be_finished(tmp_path):
    """Falls: that a report never guesses settings that were not chosen."""
    with pytest.raises(BadInput, match="E-MISSING"):
        report.report(tmp_path, TBM, ["sub-1"])

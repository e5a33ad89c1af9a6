"""What goes through a BIDS folder comes back as it was, without names, times or lost ids."""

import gzip
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dsnb import bids
from dsnb.checks import BadInput
from dsnb.space import GRIDS

GRID = GRIDS["smoke"]


def write(folder, text: str, encoding: str = "utf-8"):
    """Write participants.tsv with spaces for tabs."""
    lines = "\n".join(text.split("\n")).replace(" ", "\t")
    (folder / "participants.tsv").write_bytes(lines.encode(encoding))
    return folder / "participants.tsv"


def test_ids_and_labels_survive_reading(tmp_path):
    """An id 001 keeps its zeros, a group called NA is not lost, a BOM is no part of a name."""
    path = write(tmp_path, "participant_id group\n001 NA\n010 null\n", "utf-8-sig")
    table = bids.read_table(path)
    assert table.columns.tolist() == ["participant_id", "group"]
    assert table.to_numpy().tolist() == [["001", "NA"], ["010", "null"]]


def test_tables_come_back_as_written(tmp_path):
    """Text, numbers, truth values and gaps survive writing, reading and typing."""
    table = pd.DataFrame(
        {"participant_id": ["sub-001", "sub-2"], "site": ["1", "2"], "age": [30.25, np.nan],
         "seen": [True, False], "stage": ["n/a", "dementia"]}
    )  # fmt: skip
    bids.write_table(tmp_path / "t.tsv", table)
    again = bids.typed(bids.read_table(tmp_path / "t.tsv"))
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    assert again["age"].dtype == float and again["seen"].dtype == bool
    assert again["site"].tolist() == ["1", "2"]
    with pytest.raises(BadInput, match="E-TABLE"):
        bids.write_table(tmp_path / "t.tsv", table.assign(site=["a\tb", "c"]))
    assert len(bids.read_table(tmp_path / "t.tsv")) == 2, "a refused table must leave the old one"


@pytest.mark.parametrize(
    "content, code, said",
    [
        ("participant_id site\nsub-1 a\nsub-2 Zürich\n", "E-ENCODING", "line 3"),
        ("participant_id site\nsub-1\n", "E-TABLE", "[2]"),
        ("site site\na b\n", "E-TABLE", "one name a column"),
        ("", "E-TABLE", "header"),
    ],
)
def test_broken_tables_are_refused(content, code, said, tmp_path):
    """A table that cannot be read safely names its line; it is not guessed at."""
    path = write(tmp_path, content, "latin-1")
    with pytest.raises(BadInput, match=code) as caught:
        bids.read_table(path)
    assert said in str(caught.value)


def test_participants_get_our_names_and_codes(tmp_path):
    """`gender`, m / female and control / T21 become sex, M / F and euploid / DS."""
    write(tmp_path, "participant_id age gender group\nsub-001 30 m HC\nsub-010 41.5 female T21\n")
    table, problems = bids.read_participants(tmp_path)
    assert problems == []
    assert table["sex"].tolist() == ["M", "F"] and table["group"].tolist() == ["euploid", "DS"]
    assert table["group_recorded"].tolist() == ["HC", "T21"]
    assert table["family"].tolist() == table["participant_id"].tolist() == ["sub-001", "sub-010"]


def test_cohort_without_ds_counts_as_euploid_aloud(tmp_path, capsys):
    """Patients of another kind serve as euploid, and the user reads it."""
    write(tmp_path, "participant_id age sex group\nsub-1 30 M depr\nsub-2 31 F control\n")
    table, problems = bids.read_participants(tmp_path)
    assert problems == [] and set(table["group"]) == {"euploid"}
    assert table["group_recorded"].tolist() == ["depr", "control"]
    assert "everyone counts as euploid (control, depr)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["DownSyndrome", "DS-AD", "T21mosaic", "trisomy21", "AD_DS", "aDS", "T-21", "mosaic"]
)
def test_no_name_of_ds_passes_as_euploid(name, tmp_path):
    """A misspelt Down syndrome group must never train a norm."""
    write(tmp_path, f"participant_id age sex group\nsub-1 30 M control\nsub-2 31 F {name}\n")
    _, problems = bids.read_participants(tmp_path)
    assert [problem.code for problem in problems] == ["E-GROUP"]
    assert f"line 3: {name}" in str(problems[0])


@pytest.mark.parametrize(
    "header, cells",
    [
        ("group karyotype", "HC trisomy21"),
        ("group stage", "patient dementia"),
        ("diagnosis", "DS"),
        ("dx", "2"),
    ],
)
def test_what_only_people_with_ds_have_makes_nobody_a_control(header, cells, tmp_path):
    """Falls: that a group under another name, or none, cannot turn people with DS into euploids."""
    write(tmp_path, f"participant_id age sex {header}\nsub-1 30 M {cells}\n")
    assert [problem.code for problem in bids.read_participants(tmp_path)[1]] == ["E-GROUP"]
    rule = (
        "  group: {from: [diagnosis, dx, group], codes: {'2': DS, hc: DS, patient: DS, ds: DS}}\n"
    )
    rest = "".join(f"  {name}: {{from: [{name}]}}\n" for name in ("participant_id", "age", "sex"))
    (tmp_path / "columns.yml").write_text("missing: [n/a]\ncolumns:\n" + rest + rule)
    table, problems = bids.read_participants(tmp_path)
    assert problems == [] and table["group"].tolist() == ["DS"]


def test_every_wrong_cell_is_reported_at_once(tmp_path):
    """One report names every column, its lines and what is allowed."""
    write(
        tmp_path,
        "participant_id age sex group stage cognition\n"
        "sub-1 -3 M DS ill 50\n"
        "sub-1 45,5 2 control n/a high\n"
        "../../x 1e3 F patient n/a n/a\n",
    )
    _, problems = bids.read_participants(tmp_path)
    said = {problem.code: str(problem) for problem in problems}
    assert set(said) == {
        "E-ID", "E-DUPLICATE", "E-AGE", "E-SEX", "E-GROUP", "E-STAGE", "E-NUMBER",
    }  # fmt: skip
    assert all(f"line {line}" in said["E-AGE"] for line in (2, 3, 4))
    assert "line 3: 2" in said["E-SEX"] and "F or M" in said["E-SEX"]
    assert "line 4: patient" in said["E-GROUP"]


@pytest.mark.parametrize(
    "text, code", [(None, "E-NOTABLE"), ("participant_id sex\nsub-1 F\n", "E-COLUMN")]
)
def test_missing_table_or_column_is_a_problem(text, code, tmp_path):
    """Without ages there is no norm, so the table must have them."""
    if text:
        write(tmp_path, text)
    table, problems = bids.read_participants(tmp_path)
    assert table.empty and [problem.code for problem in problems] == [code]


def touch(raw, *paths: str) -> None:
    for path in paths:
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        (raw / path).write_bytes(b"x")


def test_t1w_scans_are_found_by_person_and_session(tmp_path):
    """Sessions are kept apart; other modalities and derivatives are no T1w."""
    touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_acq-x_T1w.nii",
        "derivatives/truth/sub-01/anat/sub-01_desc-twin_T1w.nii.gz",
    )
    found, problems = bids.find_t1w(tmp_path)
    assert problems == []
    assert found.to_numpy().tolist() == [
        ["sub-01", "n/a", "sub-01/anat/sub-01_T1w.nii.gz"],
        ["sub-02", "a", "sub-02/ses-a/anat/sub-02_ses-a_acq-x_T1w.nii"],
    ]


def test_t1w_faults_are_listed_together(tmp_path):
    """Somebody else's name, two runs and a dead link are all in one list; none is an error too."""
    touch(
        tmp_path,
        "sub-01/anat/sub-99_T1w.nii.gz",
        "sub-02/anat/sub-02_run-1_T1w.nii.gz",
        "sub-02/anat/sub-02_run-2_T1w.nii.gz",
        "sub-03/anat/readme",
    )
    (tmp_path / "sub-03/anat/sub-03_T1w.nii.gz").symlink_to(tmp_path / "gone")
    _, problems = bids.find_t1w(tmp_path)
    assert sorted(problem.code for problem in problems) == ["E-NAME", "E-PATH", "E-RUNS"]
    (tmp_path / "none").mkdir()
    assert [problem.code for problem in bids.find_t1w(tmp_path / "none")[1]] == ["E-NOT1W"]


def test_volumes_come_back_with_their_place(tmp_path):
    """Voxels within half a step, the affine in both forms, millimetres, and the sidecar."""
    volume = np.random.default_rng(0).random(GRID.shape).astype(np.float32)
    path, step = tmp_path / "sub-1_T1w.nii.gz", 1 / 20000
    bids.save_volume(path, volume, GRID, {"Units": "1"}, step)
    again, affine = bids.load_volume(path)
    assert np.abs(again - volume).max() <= step / 2 + 1e-7 and np.allclose(affine, GRID.affine)
    header = nib.load(path).header
    assert int(header["sform_code"]) == int(header["qform_code"]) == 4
    assert np.allclose(header.get_qform(), GRID.affine) and header.get_xyzt_units()[0] == "mm"
    assert json.loads((tmp_path / "sub-1_T1w.json").read_text()) == {"Units": "1"}
    with pytest.raises(ValueError, match="too far"):
        bids.save_volume(path, volume * 10, GRID, None, step)


def test_saved_bytes_name_nobody_and_no_time(tmp_path):
    """Equal volumes are equal bytes; neither a file name nor a date hides in the stream."""
    volume = np.zeros(GRID.shape, np.float32)
    for name in ("one", "two"):
        bids.save_volume(tmp_path / f"{name}.nii.gz", volume, GRID)
    one, two = ((tmp_path / f"{name}.nii.gz").read_bytes() for name in ("one", "two"))
    assert one == two
    assert one[3] & 0b1000 == 0 and one[4:8] == b"\0\0\0\0", "a name or a time in the gzip header"
    assert gzip.decompress(one)[148:252].strip(b"\0") == b"", "descrip or aux_file is filled"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.nii.gz", "two.nii.gz"]


def test_axes_are_turned_to_ras(tmp_path):
    """A voxel keeps its millimetres when the axes are flipped and permuted."""
    affine = np.array([[0, -2, 0, 10], [0, 0, 3, 20], [1.5, 0, 0, 30], [0, 0, 0, 1]], float)
    volume = np.zeros((4, 5, 6), np.float32)
    volume[1, 2, 3] = 1
    turned, ras = bids.as_ras(volume, affine)
    where = np.argwhere(turned)[0]
    assert nib.aff2axcodes(ras) == ("R", "A", "S")
    assert np.allclose(ras @ [*where, 1], affine @ [1, 2, 3, 1])

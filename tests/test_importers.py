"""Cohorts as people receive them become BIDS: right people, right side, nobody's name."""

import gzip
import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dsnb import bids, cohort
from dsnb.bids import columns
from dsnb.checks import BadInput

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (6, 7, 8)
SECRET = "DOE^JANE"
RAS_MM = np.array([[1, 0, 0, -3], [0, 1.5, 0, -4], [0, 0, 2, -5], [0, 0, 0, 1.0]])


def scan(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.int16)


def save_nifti(path: Path, seed: int = 0, affine: np.ndarray = RAS_MM) -> None:
    """Write a small scan whose header and gzip stream name a patient, in all places there are."""
    image = nib.Nifti1Image(scan(seed), affine)
    image.header.set_qform(affine, 1)
    image.header.set_sform(affine, 1)
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = SECRET.encode()
    extension = nib.nifti1.Nifti1Extension("comment", SECRET.encode())
    image.header.extensions.append(extension)
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(SECRET, "wb", fileobj=path.open("wb"), mtime=1e9) as file:
        file.write(image.to_bytes())


def save_analyze(path: Path, volume: np.ndarray) -> None:
    """Write a big-endian pair as OASIS-1 has them: four axes, no orientation, a filled header."""
    header = nib.AnalyzeHeader(endianness=">")
    header.set_data_shape((*volume.shape, 1))
    header.set_data_dtype(np.int16)
    header["pixdim"][1:4] = 1, 1, 1.25
    header["descrip"] = header["aux_file"] = header["db_name"] = SECRET.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.binaryblock)
    path.with_suffix(".img").write_bytes(volume.astype(">i2").tobytes(order="F"))


def make_ixi(folder: Path) -> Path:
    """Lay out six people: sound, aged, twice alike, twice torn, without row, without scan."""
    for number, site in ((2, "Guys"), (12, "HH"), (13, "IOP"), (219, "Guys"), (400, "HH")):
        save_nifti(folder / f"IXI{number:03d}-{site}-0828-T1.nii.gz", number)
    save_nifti(folder / "IXI002-Guys-0828-T2.nii.gz")
    (folder / "IXI.csv").write_text(
        'IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,AGE\n'
        f"2,2,164,35.800137\n12,1,{SECRET},89.5\n13,2,160,41.0\n13,0,0,\n"
        "219,1,170,60.1\n219,1,170,62.4\n500,1,180,30\n600,1,,\n,,,\n"
    )
    return folder


def make_oasis(folder: Path) -> Path:
    """Lay out a young person with a repeat session, and old ones: well, ill, and not rated."""
    for name, runs in (("0001_MR1", 3), ("0001_MR2", 1), ("0002_MR1", 1), ("0003_MR1", 1)):
        for run in range(1, runs + 1):
            raw = folder / f"disc1/OAS1_{name}/RAW"
            save_analyze(raw / f"OAS1_{name}_mpr-{run}_anon.hdr", scan(run))
    save_analyze(folder / "disc1/OAS1_0004_MR1/RAW/OAS1_0004_MR1_mpr-1_anon.hdr", scan(9))
    save_analyze(
        folder / "disc1/OAS1_0001_MR1/PROCESSED/OAS1_0001_MR1_mpr_n4_anon_sbj_111.hdr", scan(0)
    )
    (folder / "oasis_cross-sectional.csv").write_text(
        "ID;M/F;Hand;Age;Educ;SES;MMSE;CDR;eTIV\n"
        "OAS1_0001_MR1;F;R;24;2;3;29;;1344\nOAS1_0001_MR2;F;R;24;;;;;1344\n"
        "OAS1_0002_MR1;M;R;96;4;1;29;0.0;1200\nOAS1_0003_MR1;F;R;73;4;3;27;0.5;1454\n"
        "OAS1_0004_MR1;M;R;61;4;3;27;;1454\n"
    )
    return folder


def make_abcds(folder: Path) -> Path:
    """Lay out three tables and five people: two visits, a sibling, no consensus, a FLAIR alone."""
    for name in (
        "1001_bl_T1",
        "1001_m16_MPRAGE",
        f"1002_bl_{SECRET}_IR-FSPGR",
        "1003_bl",
        "1004_bl",
        "1001_bl_FLAIR_reg_T1w",
        "1001_bl_PiB_in_T1",
        "1001_bl-AV1451_T1space",
        "1001_bl_T1_brainmask",
    ):
        save_nifti(folder / f"visits/{name}.nii.gz", len(name))
    save_nifti(folder / "visits/1005_bl_FLAIR.nii.gz")
    (folder / "DEMOGRAPH.csv").write_text(
        '"","subject_label","event_code","ds_vs_control_flag","age_at_visit","de_gender",'
        '"site_id","sibling_of"\n'
        '"1",1001,bl,DS,45.5,1,36,\n"2",1001,m16,DS,46.9,1,36,\n"3",1002,bl,Control,50,2,36,1001\n'
        '"4",1003,bl,DS,52,2,53,NA\n"5",1004,bl,DS,,1,53,NA\n"6",1005,bl,DS,33,1,53,\n'
    )
    (folder / "CLINICAL.csv").write_text(
        f"subject_label,event_code,consensus,note\n1001,bl,0.0,{SECRET}\n"
        "1001,m16,1.0,\n1002,bl,0,\n1003,bl,3,\n"
    )
    (folder / "GENETICS.csv").write_text("subject_label,karyotype\n1001,1\n1002,\n1003,2\n")
    (folder / "LOG.csv").write_text("day,who\n1,2\n")
    return folder


MAKE = {"ixi": make_ixi, "oasis1": make_oasis, "abcds": make_abcds}


def digests(folder: Path) -> dict:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def taken(source: str, tmp_path: Path) -> tuple[pd.DataFrame, pd.DataFrame, Path]:
    """Import a look-alike; return the people that the study reads, what is left out, and where."""
    out = tmp_path / "out"
    left_out = bids.import_cohort(source, MAKE[source](tmp_path / "in"), out)
    people, problems = bids.read_participants(out)
    assert problems == [] and bids.find_t1w(out)[1] == []
    first = people.drop_duplicates("participant_id")  # later visits: the test of the study
    return first.set_index("participant_id"), left_out, out


def test_ixi_takes_each_person_once(tmp_path, capsys):
    """Repeated rows would multiply people, torn ones give somebody another's age."""
    people, left_out, out = taken("ixi", tmp_path)
    assert people.index.tolist() == ["sub-IXI002", "sub-IXI012", "sub-IXI013"]
    assert people["age"].tolist() == ["35.800137", "89", "41"]
    assert people["sex"].tolist() == ["F", "M", "F"]
    assert people["site"].tolist() == ["Guys", "HH", "IOP"] and set(people["group"]) == {"euploid"}
    counts = left_out.groupby("code")["participant_id"].agg(sorted).to_dict()
    assert counts == {
        "E-CONFLICT": ["sub-IXI219"], "E-NOROW": ["sub-IXI400"],
        "E-NOSCAN": ["sub-IXI500", "sub-IXI600"], "E-REPEAT": ["sub-IXI013", "sub-IXI219"],
    }  # fmt: skip
    again = bids.read_table(out / "exclusions.tsv")
    pd.testing.assert_frame_equal(again, left_out, check_dtype=False)
    said = capsys.readouterr().err
    assert "1 other images were not read" in said and "2 left out, E-NOSCAN" in said
    assert "89+" in (out / "participants.tsv").read_text(), "BIDS caps the age"


def test_oasis_leaves_the_ill_out_and_takes_the_first_run(tmp_path):
    """A person with dementia among euploids bends the norm; two runs are no two people."""
    people, left_out, out = taken("oasis1", tmp_path)
    assert people.index.tolist() == ["sub-OAS10001", "sub-OAS10002"]
    assert people["session"].tolist() == ["MR1", "MR1"] and people["age"].tolist() == ["24", "89"]
    assert left_out["code"].value_counts().to_dict() == {
        "E-RUNS": 2, "E-DEMENTIA": 1, "E-NOTRATED": 1,
    }  # fmt: skip
    scans = bids.find_t1w(out)[0]
    assert scans["session"].tolist() == ["MR1", "MR2", "MR1"], "the repeat is of the same person"
    first = nib.load(out / scans["t1w"][0])
    assert np.array_equal(np.asarray(first.dataobj), scan(1))
    sidecar = json.loads(bids.sidecar_of(out / scans["t1w"][0]).read_text())
    assert sidecar["Runs"] == "the first of 3" and sidecar["Orientation"] == "declared: ASL"


def test_oasis_left_stays_left(tmp_path):
    """The capsule beside the left ear must come out on the left, in front in front, top on top."""
    volume = np.zeros((10, 12, 8), np.int16)  # anterior, superior, left
    volume[7, 9, 6] = 500
    path = tmp_path / "OAS1_0001_MR1_mpr-1_anon.hdr"
    save_analyze(path, volume)
    turned, affine = bids.as_ras(*bids.layouts.read_analyze(path, tmp_path, "ASL")[:2])
    x, y, z = nib.affines.apply_affine(affine, np.argwhere(turned == 500)[0])
    assert (x, y, z) == pytest.approx((-1.25 * 2.5, 2.5, 3.5))
    with pytest.raises(BadInput, match="E-NOAFFINE"):
        bids.layouts.read_analyze(path, tmp_path, "")


@pytest.mark.parametrize(
    "damage, code", [("cut", "E-TRUNC"), ("gone", "E-PATH"), ("form", "E-FORMAT")]
)
def test_broken_analyze_is_left_out(damage, code, tmp_path):
    """Half a pair must not become a scan of zeros."""
    folder = make_oasis(tmp_path / "in")
    header = folder / "disc1/OAS1_0002_MR1/RAW/OAS1_0002_MR1_mpr-1_anon.hdr"
    data = header.with_suffix(".img")
    {
        "cut": lambda: data.write_bytes(data.read_bytes()[:-2]),
        "gone": data.unlink,
        "form": lambda: header.write_bytes(b"x" * 400),
    }[damage]()
    left_out = bids.import_cohort("oasis1", folder, tmp_path / "out")
    assert left_out.set_index("participant_id")["code"]["sub-OAS10002"] == code
    assert not (tmp_path / "out" / "sub-OAS10002").exists()


def test_abcds_joins_tables_visits_and_siblings(tmp_path):
    """Stage and karyotype belong to the visit and person they were written for; families hold."""
    people, left_out, out = taken("abcds", tmp_path)
    assert people.index.tolist() == ["sub-1001", "sub-1002", "sub-1003"]
    assert people["group"].tolist() == ["DS", "euploid", "DS"]
    assert people["stage"].tolist() == ["asymptomatic", "n/a", "n/a"], "3 is no consensus"
    assert people["karyotype"].tolist() == ["trisomy 21", "n/a", "mosaicism"]
    assert people["family"].tolist() == ["sub-1001", "sub-1001", "sub-1003"]
    assert people["session"].tolist() == ["bl"] * 3 and people["site"].tolist() == [
        "36",
        "36",
        "53",
    ]
    sessions = bids.read_table(out / "sub-1001/sub-1001_sessions.tsv").set_index("session_id")
    assert sessions["age"].tolist() == ["45.5", "46.9"]
    assert sessions["stage"].to_dict() == {"ses-bl": "asymptomatic", "ses-m16": "prodromal"}
    assert set(zip(left_out["participant_id"], left_out["code"])) == {
        ("sub-1004", "E-AGE"), ("sub-1005", "E-NOSCAN"),
    }  # fmt: skip
    entry = json.loads((out / "participants.json").read_text())["stage"]
    assert (
        entry["SourceColumns"] == ["consensus", "consensus_dx"]
        and entry["SourceCodes"]["3"] == "n/a"
    )


@pytest.mark.parametrize("source", MAKE)
def test_no_name_survives_and_the_input_is_untouched(source, tmp_path, monkeypatch):
    """P01: whoever gets the output learns no patient's name, from no header, stream or table."""
    folder = MAKE[source](tmp_path / "in")
    before = digests(folder)
    bids.import_cohort(source, folder, tmp_path / "out")
    assert digests(folder) == before
    assert any(SECRET.encode() in content for content in before.values())
    for name, content in digests(tmp_path / "out").items():
        assert SECRET not in name and SECRET.encode() not in content
        if name.endswith(".gz"):
            assert content[3] == 0 and content[4:8] == bytes(4), "a name or time in the gzip header"
            assert SECRET.encode() not in gzip.decompress(content)
            assert nib.Nifti1Header(gzip.decompress(content)[:348])["sform_code"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_values_and_place_survive(tmp_path):
    """A new header must not move or scale a brain."""
    _, _, out = taken("ixi", tmp_path)
    image = nib.load(out / "sub-IXI012/anat/sub-IXI012_T1w.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), scan(12)) and np.allclose(image.affine, RAS_MM)
    assert image.get_data_dtype() == np.int16


def test_the_study_reads_what_was_imported(tmp_path):
    """The claim that import is the first step of the walk would fall."""
    _, _, out = taken("abcds", tmp_path)
    folder = cohort.read_folder(out)
    table = folder.people.set_index("participant_id")
    assert table.index.tolist() == ["sub-1001", "sub-1001sesm16", "sub-1002", "sub-1003"]
    assert table["t1w"].iloc[0] == "sub-1001/ses-bl/anat/sub-1001_ses-bl_T1w.nii.gz"
    later = table.loc["sub-1001sesm16"]
    assert (later["kind"], later["age"], later["stage"]) == ("repeat", "46.9", "prodromal")
    assert folder.excluded.empty and folder.problems == []


@pytest.mark.parametrize(
    "label", ["../../x", "/etc/x", "..", "a\0b", "$(touch CANARY)", "1 <b>", ""]
)
def test_unsafe_ids_are_refused_and_shown(label, tmp_path):
    """P05: an id that walks out of the folder would write over somebody's files."""
    folder = make_abcds(tmp_path / "in")
    with (folder / "GENETICS.csv").open("a") as file:
        file.write(f'"{label}",1\n')
    before = digests(tmp_path)
    with pytest.raises(BadInput, match="E-ID") as caught:
        bids.import_cohort("abcds", folder, tmp_path / "out")
    assert repr(label or "n/a") in str(caught.value)
    assert digests(tmp_path) == before and not (tmp_path / "out").exists()


def test_unsafe_families_sessions_and_shared_labels_are_refused(tmp_path):
    """Labels that become one would give two people one brain."""
    folder = make_abcds(tmp_path / "in")
    (folder / "MORE.csv").write_text(
        "subject_label,event_code,family_id\n10-01,bl,\n1003,../bl,\n1003,bl,../x\n"
    )
    with pytest.raises(BadInput) as caught:
        bids.import_cohort("abcds", folder, tmp_path / "out")
    said = str(caught.value)
    assert all(part in said for part in ("['10-01', '1001']", "'../bl'", "'../x'"))


def test_nonsense_in_a_table_is_refused_with_its_person(tmp_path):
    """A code that nobody explained is not guessed at."""
    folder = make_abcds(tmp_path / "in")
    text = (folder / "DEMOGRAPH.csv").read_text()
    text = text.replace("bl,DS,52,2", "bl,T21?,4500,7").replace("Control", "Sibling")
    (folder / "DEMOGRAPH.csv").write_text(text)
    with pytest.raises(BadInput) as caught:
        bids.import_cohort("abcds", folder, tmp_path / "out")
    said = {problem.code: str(problem) for problem in caught.value.problems}
    assert set(said) == {"E-AGE", "E-SEX", "E-GROUP"}, said
    assert "sub-1003: 4500" in said["E-AGE"] and "sub-1002: Sibling" in said["E-GROUP"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing, code", [("*.csv", "E-NOTABLE"), ("*T1.nii.gz", "E-NOT1W")])
def test_a_folder_without_tables_or_scans_is_refused(missing, code, tmp_path):
    folder = make_ixi(tmp_path / "in")
    for path in folder.glob(missing):
        path.unlink()
    with pytest.raises(BadInput, match=code):
        bids.import_cohort("ixi", folder, tmp_path / "out")


def test_nobody_left_is_refused_with_the_counts(tmp_path):
    """An empty cohort is no result; nothing may stay behind."""
    folder = make_ixi(tmp_path / "in")
    for path in folder.glob("*T1.nii.gz"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BadInput, match=r"E-NOBODY.*'E-TRUNC': 3"):
        bids.import_cohort("ixi", folder, tmp_path / "out")
    (folder / "IXI.csv").write_text("IXI_ID,AGE\n2,35\n")
    with pytest.raises(BadInput, match=r"E-NOBODY.*'E-SEX': 1"):
        bids.import_cohort("ixi", folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_outputs_that_are_not_ours_are_refused(tmp_path):
    """Nothing is written over, nor into the input."""
    folder = make_ixi(tmp_path / "in")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("x")
    for out in (tmp_path / "full", folder, folder / "bids", folder / "IXI.csv"):
        with pytest.raises(BadInput, match="E-FOREIGN"):
            bids.import_cohort("ixi", folder, out)
    with pytest.raises(BadInput, match="E-PATH"):
        bids.import_cohort("ixi", tmp_path / "gone", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    bids.import_cohort("ixi", folder, tmp_path / "empty")
    assert (tmp_path / "empty" / "participants.tsv").is_file()


def test_a_killed_import_leaves_no_output_and_the_next_is_whole(tmp_path):
    """Half a cohort must not look like one, nor two be mixed under one name."""
    folder, out = make_ixi(tmp_path / "in"), tmp_path / "out"
    bids.import_cohort("ixi", folder, tmp_path / "straight")
    # The second scan dies while its bytes are written.
    code = """if True:
        import os, sys
        from pathlib import Path
        from dsnb.bids import importers
        save, written = importers.save_volume, []
        def die(path, *rest, **more):
            if written:
                path.parent.mkdir(parents=True)
                path.with_name(f".{path.name}.1").write_bytes(b"half")
                os._exit(9)
            written.append(path)
            save(path, *rest, **more)
        importers.save_volume = die
        importers.import_cohort("ixi", *map(Path, sys.argv[1:]))
    """
    words = [sys.executable, "-c", code, str(folder), str(out)]
    assert subprocess.run(words, cwd=ROOT).returncode == 9
    staging = tmp_path / ".out.importing"
    assert not out.exists() and list(staging.rglob(".*T1w*"))
    (staging / "sub-X").mkdir()
    bids.import_cohort("ixi", folder, out)
    assert digests(out) == digests(tmp_path / "straight") and not staging.exists()


# Column maps


def test_every_map_is_read_and_shipped():
    """The claim that pip brings the maps, and that each names our columns, would fall."""
    files = sorted((ROOT / "dsnb/columns").iterdir())
    assert [path.stem for path in files] == ["abcds", "ixi", "oasis1", "openneuro"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["dsnb"]
    assert set(files) <= {path for of in patterns for path in (ROOT / "dsnb").glob(of)}
    for path in files:
        found = bids.shipped(path.stem)
        assert {"participant_id", "age", "sex", "group"} <= set(found.columns)
        assert set(found.columns["sex"].codes.values()) <= {"M", "F", "n/a"}
        assert set(found.columns["group"].codes.values()) <= {"DS", "euploid"}
    assert bids.shipped("oasis1").orientation == "ASL"


def test_a_map_of_ones_own_replaces_ours(tmp_path):
    """Another release has other names; nobody should have to change code."""
    folder = make_abcds(tmp_path / "in")
    for table in folder.glob("*.csv"):
        table.write_text(table.read_text().replace("ds_vs_control_flag", "arm"))
    text = (ROOT / "dsnb/columns/abcds.yml").read_text().replace("[ds_vs_control_flag]", "[Arm]")
    (folder / "columns.yml").write_text(text)
    bids.import_cohort("abcds", folder, tmp_path / "out")
    people = bids.read_participants(tmp_path / "out")[0].drop_duplicates("participant_id")
    assert people["group"].tolist() == ["DS", "euploid", "DS"]


def test_words_of_a_map_stay_words(tmp_path):
    """YAML reads `no` as false and 0 as a number; a code that is lost would refuse everybody."""
    group = "group: {from: [ds], codes: {yes: DS, NO: euploid}}"
    text = f"columns: {{participant_id: {{from: [id]}}, {group}}}"
    (tmp_path / "map.yml").write_text(text)
    table = pd.DataFrame({"ID": ["1", "2"], "DS": ["yes", "no"]})
    found = columns.translate(table, columns.read_map(tmp_path / "map.yml"))
    assert found["group"].tolist() == ["DS", "euploid"]


BOMB = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi")]
    + ["missing: [*i]", "columns: {participant_id: {from: [ixi_id]}}"]
)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch CANARY']",
        "columns: !!python/object:dsnb.checks.BadInput {}",
        BOMB,
        "x: 1\n" * 2000,
        "[" * 8000,
        "columns: [1, 2]",
        "missing: &x [ixi_id]\ncolumns: {participant_id: {from: *x}}",
        "columns: {participant_id: {from: [ixi_id], codes: {x: [y]}}}",
        "columns: {age: {from: age}}",
        "columns: {age: {from: [age]}}",
        "columns: {participant_id: {from: [id]}, name: {from: [name]}}",
        "columns: {participant_id: {from: [id]}}\norientation: RLA",
        "columns: {participant_id: {from: [id]}, age: {from: [a], codes: {!!int x: 1}}}",
        "\x00",
        "",
    ],
)
def test_hostile_and_formless_yaml_is_refused_in_a_second(text, tmp_path, monkeypatch):
    """P08: a column map from a mail must not run code, nor eat the memory."""
    monkeypatch.chdir(tmp_path)
    folder = make_ixi(tmp_path / "in")
    (folder / "columns.yml").write_text(text)
    start = time.process_time()
    with pytest.raises(BadInput, match="E-YAML"):
        bids.import_cohort("ixi", folder, tmp_path / "out")
    assert time.process_time() - start < 1
    assert not (tmp_path / "CANARY").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ['a,b\n1,"2\n', "a,b\n1\n", ",,a\n1,2,3\n", "a,A\n1,2\n"])
def test_broken_csv_is_refused(text, tmp_path):
    """A cell that slides into the next column gives somebody another's age."""
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(BadInput, match="E-TABLE"):
        columns.translate(bids.read_table(tmp_path / "t.csv"), bids.shipped("ixi"))

"""Who takes part is checked in one report, and nobody's family stands on two sides of a split."""

import json
import os

import numpy as np
import pandas as pd
import pytest

from dsnb import bids, checks, cohort, config, dataset, record
from dsnb.checks import BadInput
from dsnb.space import DS_SPLITS, EUPLOID_SPLITS

STUDY = config.load_study("smoke")
SIDES = {"generator-fit": "fit"}


def write_scan(raw, name: str, seed: int, shape=(6, 6, 6)) -> None:
    volume = np.random.default_rng(seed).random(shape).astype(np.float32)
    bids.save_volume(raw / name / "anat" / f"{name}_T1w.nii.gz", volume, np.eye(4))


def make_raw(raw, people: int = 12, group: str = "control") -> pd.DataFrame:
    """Write a small sound BIDS folder; return its table."""
    names = [f"sub-{k:03d}" for k in range(1, people + 1)]
    for seed, name in enumerate(names):
        write_scan(raw, name, seed)
    table = pd.DataFrame({"participant_id": names, "age": 30.0, "sex": "F", "group": group})
    bids.write_table(raw / "participants.tsv", table)
    return table


def test_folder_without_ds_gets_planted_and_sham(tmp_path):
    """Each planted scan and sham keeps its original's scan, family and side of the split."""
    make_raw(tmp_path / "raw")
    cohort.gather(tmp_path, STUDY, tmp_path / "raw")
    table = cohort.load(tmp_path)
    assert (table["participant_id"].str.len() >= 7).all() and table["age"].dtype == float
    people = table[table["kind"] == "recorded"].set_index("participant_id")
    drawn = table[table["kind"] != "recorded"]
    original = people.loc[drawn["origin"]].reset_index()
    assert drawn["family"].tolist() == original["family"].tolist()
    assert drawn["sha"].tolist() == original["sha"].tolist()
    planted = drawn[drawn["kind"] == "planted"]
    sides = planted["split"].replace(SIDES).tolist()
    assert sides == people.loc[planted["origin"], "split"].tolist()
    assert len(planted) == people["split"].isin(["fit", "validation", "test"]).sum()
    assert set(planted["group"]) == {"DS"} and set(planted["stage"]) == {"n/a"}
    shams = drawn[drawn["kind"] == "sham"]
    assert set(shams["origin"]) == set(people.index[people["split"] == "test"])
    assert set(shams["split"]) == {"sham"} and set(shams["group"]) == {"euploid"}
    split = json.loads((tmp_path / "cohort" / "split.json").read_text())
    pairs = sorted(zip(table["participant_id"], table["split"]))
    assert split["digest"] == record.digest([list(pair) for pair in pairs])


def test_folder_with_ds_plants_nothing(tmp_path):
    """Where DS was recorded, recorded people are the patients."""
    table = make_raw(tmp_path / "raw")
    table.loc[:5, "group"] = "DS"
    bids.write_table(tmp_path / "raw" / "participants.tsv", table)
    cohort.gather(tmp_path, STUDY, tmp_path / "raw")
    written = cohort.load(tmp_path)
    assert set(written["kind"]) == {"recorded"}
    assert set(written.loc[written["group"] == "DS", "split"]) == set(DS_SPLITS)


def test_people_without_scan_are_listed(tmp_path, capsys):
    """Whoever is left out stands in exclusions.tsv with a reason, and the user is told."""
    raw, table = tmp_path / "raw", make_raw(tmp_path / "raw")
    lost = table.iloc[[0]].assign(participant_id="sub-lost")
    bids.write_table(raw / "participants.tsv", pd.concat([table, lost]))
    cohort.gather(tmp_path, STUDY, raw)
    out = bids.read_table(tmp_path / "cohort" / "exclusions.tsv")
    assert out[["participant_id", "code"]].to_numpy().tolist() == [["sub-lost", "E-NOSCAN"]]
    assert "sub-lost" not in cohort.load(tmp_path)["participant_id"].tolist()
    said = capsys.readouterr().err
    assert "E-NOSCAN" in said and "sub-lost" in said


def add_sessions(raw, name: str, *sessions: str) -> None:
    """Replace a person's scan by one of each session."""
    (raw / name / "anat" / f"{name}_T1w.nii.gz").unlink()
    for seed, session in enumerate(sessions):
        volume = np.random.default_rng(100 + seed).random((6, 6, 6)).astype(np.float32)
        path = raw / name / f"ses-{session}" / "anat" / f"{name}_ses-{session}_T1w.nii.gz"
        bids.save_volume(path, volume, np.eye(4))


def test_later_sessions_become_repeats(tmp_path):
    """The earliest session is the person; later ones stand beside, in family, out of splits."""
    raw, _ = tmp_path / "raw", make_raw(tmp_path / "raw")
    add_sessions(raw, "sub-004", "10", "2")
    cohort.gather(tmp_path, STUDY, raw)
    table = cohort.load(tmp_path).set_index("participant_id")
    first, later = table.loc["sub-004"], table.loc["sub-004ses10"]
    assert (first["session"], first["kind"], later["session"], later["kind"]) == (
        "2", "recorded", "10", "repeat",
    )  # fmt: skip
    assert later["origin"] == "sub-004" and later["family"] == first["family"]
    assert later["split"] == "repeat" and first["split"] in EUPLOID_SPLITS
    assert not [name for name in table.index if name.startswith("sub-004ses10") and "p" in name]
    assert len(dataset.select(table.reset_index(), "euploid", "repeat", kind="repeat")) == 1
    assert cohort.summarise(tmp_path)["headline"]["subjects"] == 12


def test_rows_of_sessions_bring_their_own_age(tmp_path):
    """Sessions are ordered by age where the table has a row for each; one without is left out."""
    raw, table = tmp_path / "raw", make_raw(tmp_path / "raw").assign(session="n/a")
    add_sessions(raw, "sub-004", "post", "pre", "third")
    rows = pd.concat([table.iloc[[3]].assign(session=f"ses-{s}", age=a)
                      for s, a in (("post", 35.5), ("pre", 33.0))])  # fmt: skip
    bids.write_table(raw / "participants.tsv", pd.concat([table.drop(index=3), rows]))
    folder = cohort.read_folder(raw)
    people = folder.people.set_index("participant_id")
    assert folder.problems == [] and people.loc["sub-004", "session"] == "pre"
    assert people.loc["sub-004sespost", "age"] == "35.5"
    assert folder.excluded[["participant_id", "code"]].to_numpy().tolist() == [
        ["sub-004", "E-SESSION"],
    ]  # fmt: skip
    bids.write_table(raw / "participants.tsv", pd.concat([table.drop(index=3), rows]).assign(
        sex=["F"] * 12 + ["M"]))  # fmt: skip
    assert [problem.code for problem in cohort.read_folder(raw).problems] == ["E-PERSON"]


@pytest.mark.parametrize("scans, told", [("n/a", "1"), ("01", "1"), ("1", "ses-001")])
def test_a_session_meets_its_row_however_it_is_written(scans, told, tmp_path):
    """Falls: that a person is not lost for a label that lacks a zero, or a folder."""
    raw, table = tmp_path / "raw", make_raw(tmp_path / "raw").assign(session="n/a")
    if scans != "n/a":
        add_sessions(raw, "sub-004", scans)
    table.loc[3, "session"] = told
    bids.write_table(raw / "participants.tsv", table)
    folder = cohort.read_folder(raw)
    assert folder.problems == [] and len(folder.people) == 12 and folder.excluded.empty


def test_no_session_that_meets_its_row_is_refused(tmp_path):
    """Falls: that a folder of which no scan has its row is told so, in one sentence."""
    raw, table = tmp_path / "raw", make_raw(tmp_path / "raw", people=1)
    add_sessions(raw, "sub-001", "a", "b")
    bids.write_table(raw / "participants.tsv", table.assign(session="c"))
    assert [problem.code for problem in cohort.read_folder(raw).problems] == ["E-NOBODY"]


def test_names_that_we_give_are_nobodys(tmp_path):
    """A repeat, planted or sham row never takes the name of another person."""
    raw, table = tmp_path / "raw", make_raw(tmp_path / "raw")
    write_scan(raw, "sub-004planted", 99)
    more = table.iloc[[0]].assign(participant_id="sub-004planted")
    bids.write_table(raw / "participants.tsv", pd.concat([table, more]))
    with pytest.raises(BadInput, match="E-ID.*sub-004planted"):
        cohort.gather(tmp_path, STUDY, raw)


def test_unchanged_scans_are_not_read_again(tmp_path, monkeypatch):
    """A second check looks at size, time and inode; whatever differs is read, `full` reads all."""
    raw, _ = tmp_path / "raw", make_raw(tmp_path / "raw")
    read, whole = [], checks.examine

    def counted(path, inside):
        read.append(path.name)
        return whole(path, inside)

    def reads(**asked) -> int:
        read.clear()
        assert cohort.check(raw, root=tmp_path, **asked) == first
        return len(read)

    first = cohort.check(raw)
    monkeypatch.setattr(checks, "examine", counted)
    assert (reads(), reads(), reads(full=True), reads()) == (12, 0, 12, 0)
    path = raw / "sub-002" / "anat" / "sub-002_T1w.nii.gz"
    stamp = path.stat()
    path.with_name("aside").write_bytes(path.read_bytes())
    path.with_name("aside").replace(path)  # the same bytes and time in another inode
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (reads(), read) == (1, [path.name])
    path.write_bytes(path.read_bytes()[:-8])
    assert [entry["code"] for entry in cohort.check(raw, root=tmp_path)["problems"]] == ["E-TRUNC"]


def test_raw_data_changed_since_the_import_is_refused(tmp_path):
    """Training and preparing refuse a scan or table that is no longer the one imported."""
    raw, table = tmp_path / "raw", make_raw(tmp_path / "raw")
    root, path = tmp_path / "root", raw / "sub-002" / "anat" / "sub-002_T1w.nii.gz"
    cohort.gather(root, STUDY, raw)
    before, people = path.read_bytes(), (raw / "participants.tsv").read_bytes()
    manifest = bids.read_table(root / "cohort" / "manifest.tsv")
    assert manifest["sha"].tolist() == [record.digest(raw / name) for name in manifest["path"]]
    path.touch()
    assert len(dataset.load_table(root, "cohort")) == len(cohort.load(root))
    write_scan(raw, "sub-002", 77)
    for load in (lambda: cohort.load(root), lambda: dataset.load_table(root, "cohort")):
        with pytest.raises(BadInput, match="E-CHANGED sub-002/anat/sub-002_T1w.nii.gz"):
            load()
    path.write_bytes(before)
    cohort.load(root)
    bids.write_table(raw / "participants.tsv", table.assign(age=31.0))
    with pytest.raises(BadInput, match="E-CHANGED participants.tsv"):
        cohort.load(root)
    (raw / "participants.tsv").write_bytes(people)
    raw.rename(tmp_path / "elsewhere")
    assert len(cohort.load(root))


def spoil_everything(raw) -> None:
    """Give one folder five different faults."""
    table = make_raw(raw)
    table.loc[0, "age"] = np.nan
    table = pd.concat([table.drop(index=5), table.iloc[[1]].assign(participant_id="sub-lost")])
    bids.write_table(raw / "participants.tsv", table)
    write_scan(raw, "sub-002", 0, (6, 6, 6, 3))
    scan = raw / "sub-003" / "anat" / "sub-003_T1w.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-8])
    source = raw / "sub-004" / "anat" / "sub-004_T1w.nii.gz"
    (raw / "sub-005" / "anat" / "sub-005_T1w.nii.gz").write_bytes(source.read_bytes())


def test_all_problems_come_in_one_report_and_nothing_is_touched(tmp_path):
    """A hospital repairs its folder once; the cohort made before stays as it was."""
    make_raw(tmp_path / "good")
    cohort.gather(tmp_path, STUDY, tmp_path / "good")
    before = {path: path.read_bytes() for path in (tmp_path / "cohort").iterdir()}
    spoil_everything(tmp_path / "raw")
    with pytest.raises(BadInput) as caught:
        cohort.gather(tmp_path, STUDY, tmp_path / "raw")
    said = str(caught.value)
    codes = [problem.code for problem in caught.value.problems]
    assert sorted(codes) == ["E-AGE", "E-DIM", "E-DUP", "E-NOROW", "E-NOSCAN", "E-TRUNC"]
    report = cohort.check(tmp_path / "raw")
    assert [entry["message"] for entry in report["problems"]] == said.split("\n")[1:-1]
    for word in ("line 2: n/a", "sub-002_T1w", "sub-003_T1w", "sub-004", "sub-006", "sub-lost"):
        assert word in said
    assert str(tmp_path) not in said
    assert {path: path.read_bytes() for path in (tmp_path / "cohort").iterdir()} == before


@pytest.mark.parametrize(
    "table, scans, code",
    [
        (None, True, "E-NOTABLE"),
        ("participant_id\tage\tsex\nsub-9\t30\tF\n", False, "E-NOT1W"),
        ("participant_id\tage\tsex\n", True, "E-NOBODY"),
    ],
)
def test_empty_folders_are_refused(table, scans, code, tmp_path):
    """No table, no scans, nobody: one sentence each, and no product begun."""
    raw = tmp_path / "raw"
    raw.mkdir()
    if scans:
        write_scan(raw, "sub-1", 0)
    if table:
        (raw / "participants.tsv").write_text(table)
    with pytest.raises(BadInput) as caught:
        cohort.gather(tmp_path, STUDY, raw)
    assert caught.value.code == code
    assert not (tmp_path / "cohort").exists()
    with pytest.raises(BadInput, match="E-PATH"):
        cohort.gather(tmp_path, STUDY, tmp_path / "absent")


def test_the_cohort_follows_its_folder(tmp_path, capsys):
    """Nothing changed, nothing done; a scan replaced or a row edited makes the cohort again."""
    table = make_raw(tmp_path / "raw")
    cohort.gather(tmp_path, STUDY, tmp_path / "raw")
    keys = [record.require(tmp_path, "cohort")]
    cohort.gather(tmp_path, STUDY, tmp_path / "raw")
    assert "nothing changed" in capsys.readouterr().err
    write_scan(tmp_path / "raw", "sub-002", 99)
    cohort.gather(tmp_path, STUDY, tmp_path / "raw")
    keys.append(record.require(tmp_path, "cohort"))
    bids.write_table(tmp_path / "raw" / "participants.tsv", table.assign(age=31.0))
    cohort.gather(tmp_path, STUDY, tmp_path / "raw")
    keys.append(record.require(tmp_path, "cohort"))
    assert len(set(keys)) == 3


@pytest.mark.real
def test_real_folder_is_taken_in(real_scans, tmp_path):
    """46 open scans pass every check, and everybody has a place in the study."""
    cohort.gather(tmp_path, STUDY, real_scans)
    table = cohort.load(tmp_path)
    people = table[table["kind"] == "recorded"]
    assert len(people) == 46 and set(people["split"]) == set(EUPLOID_SPLITS)
    assert set(people["group_recorded"]) == {"control", "depr"}
    assert set(people["sex"]) == {"F", "M"} and people["age"].between(19, 55).all()

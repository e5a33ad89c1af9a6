"""Every row of the fault table has its verdict, in one report, in sentences that help."""

import json
import re
from pathlib import Path

import malformed
import nibabel as nib
import numpy as np
import pytest
from malformed import CORPUS, make, make_folder, scan_path, values, write_scan

from dsnb import cohort, config, record
from dsnb.checks import BadInput

ROOT = Path(__file__).resolve().parent.parent
STUDY = config.load_study("smoke")
GUIDE = ROOT / "book" / "guides" / "faults.md"
PARTS = ("code", "file", "field", "seen", "expected", "fix")
SENTENCE = re.compile(r"[EW]-[A-Z0-9]+ [^:]+: .+ is .+, expected .+; .+\.")
ROWS = {f"D{row:02d}" for row in range(1, 21)}


def spoilt(fault: str, folder: Path) -> dict:
    """Return the report of a folder that was spoilt in one way."""
    raw = make_folder(folder / "raw")
    CORPUS[fault].spoil(raw)
    return cohort.check(raw)


@pytest.mark.parametrize("fault", CORPUS)
def test_fault(fault, tmp_path):
    """Falls: this row's verdict; that its message has six parts; that it shows no machine path."""
    report = spoilt(fault, tmp_path)
    assert {entry["code"] for entry in report["problems"]} == set(CORPUS[fault].codes)
    assert report["verdict"] == "refused"
    for entry in report["problems"] + report["warnings"]:
        assert SENTENCE.fullmatch(entry["message"]), entry["message"]
        assert all(entry[part] for part in PARTS) and entry["message"].isprintable()
        assert str(tmp_path) not in json.dumps(entry)


def test_every_row_is_in_the_corpus():
    """Falls: that the corpus holds every row D01 to D20."""
    assert {name[:3] for name in CORPUS} >= ROWS


def test_a_sound_folder_is_accepted_without_a_word(tmp_path):
    """Falls: that a problem of a report means something."""
    report = cohort.check(make_folder(tmp_path / "raw"))
    assert report["verdict"] == "accepted" and not report["problems"] + report["warnings"]
    assert report["counts"] == {"people": 6, "sessions": 6, "sound scans": 6, "left out": 0}
    assert cohort.as_text(report).startswith("accepted: 0 problems, 0 warnings")


def test_d15_three_lists_come_at_once(tmp_path):
    """Falls: that a hospital learns of all three kinds of mismatch in one report."""
    report = spoilt("D15 three lists", tmp_path)
    said = {entry["code"]: entry["seen"] for entry in report["problems"] + report["warnings"]}
    assert "sub-02" in said["E-NOROW"] and "sub-77" in said["E-NOSCAN"]
    assert "line 3: sub-03" in said["E-DUPLICATE"] and "line 5: sub-03" in said["E-DUPLICATE"]


def test_d04_single_volume_is_noted(tmp_path):
    """Falls: that a 4D file of one volume is accepted and counted, not repaired in silence."""
    raw = make_folder(tmp_path / "raw")
    write_scan(scan_path(raw, "sub-01"), make(values(shape=(16, 18, 20, 1)), malformed.native(0)))
    report = cohort.check(raw)
    assert report["verdict"] == "accepted" and report["counts"]["squeezed to 3D"] == 1


def test_odd_but_sound_scans_are_accepted(tmp_path):
    """Falls: that LAS axes, big-endian bytes and a name that is not ASCII are no faults."""
    raw = make_folder(tmp_path / "raw")
    las = malformed.FLIPPED_AXIS @ malformed.native(0)
    header = nib.Nifti1Header(endianness=">")
    header.set_xyzt_units("mm")
    image = nib.Nifti1Image(values(), las, header)
    scan_path(raw, "sub-01").unlink()
    write_scan(raw / "sub-01/anat/sub-01_acq-größe_T1w.nii.gz", image.to_bytes())
    report = cohort.check(raw)
    assert report["verdict"] == "accepted" and report["warnings"] == []


def test_d14_native_cohorts_may_differ(tmp_path):
    """Falls: that a change of protocol, or another site, is no mix-up."""
    raw = make_folder(tmp_path / "raw")
    for seed in (1, 2, 3):
        content = make(values(seed, (16, 18, 22)), malformed.native(seed))
        write_scan(scan_path(raw, f"sub-{seed:02d}"), content)
    report = cohort.check(raw)
    assert [entry["code"] for entry in report["warnings"]] == ["W-MIXED"]
    assert report["verdict"] == "accepted"
    coarse = make(values(), np.diag([2.0, 2.0, 2.0, 1.0]))
    write_scan(scan_path(raw, "sub-01"), coarse)
    assert [entry["code"] for entry in cohort.check(raw)["problems"]] == ["E-MIXED"]
    malformed.add_column("site", "b a a a a a")(raw)
    assert cohort.check(raw)["verdict"] == "accepted"


def test_d16_and_d17_harmless_spellings_are_taken(tmp_path):
    """Falls: that a BOM, lower case and zeros in an id refuse nobody."""
    raw = make_folder(tmp_path / "raw")
    (raw / "sub-01").rename(raw / "sub-001")
    (raw / "sub-001/anat/sub-01_T1w.nii.gz").rename(raw / "sub-001/anat/sub-001_T1w.nii.gz")
    text = (
        (raw / "participants.tsv")
        .read_text()
        .replace("sub-01\t30\tF\tcontrol", "sub-001\t30\tm\tds")
    )
    (raw / "participants.tsv").write_bytes(text.encode("utf-8-sig"))
    folder = cohort.read_folder(raw)
    assert folder.problems == []
    first = folder.people.iloc[0]
    assert (first["participant_id"], first["sex"], first["group"]) == ("sub-001", "M", "DS")


def test_d18_and_d19_refuse_the_split(tmp_path):
    """Falls: that no split is made of a folder with copies or a leak."""
    for fault in ("D18 saved again otherwise", "D19 a family on two sides"):
        raw = make_folder(tmp_path / fault)
        CORPUS[fault].spoil(raw)
        with pytest.raises(BadInput, match=CORPUS[fault].codes[0]):
            cohort.gather(tmp_path / "root", STUDY, raw)
    assert not (tmp_path / "root" / "cohort").exists()


def test_d20_the_choice_is_stated_in_the_table(tmp_path):
    """Falls: that one of several runs is used only where the table says which."""
    raw, chosen = make_folder(tmp_path / "raw"), "sub-01/anat/sub-01_run-2_T1w.nii.gz"
    CORPUS["D20 two runs"].spoil(raw)
    malformed.add_column("t1w", chosen + " n/a" * 5)(raw)
    folder = cohort.read_folder(raw)
    assert folder.problems == [] and folder.people["t1w"][0] == chosen
    malformed.edit_table("run-2", "run-3")(raw)
    said = [problem.code for problem in cohort.read_folder(raw).problems]
    assert said == ["E-PATH", "E-RUNS"], "a choice that is not there is no choice"


def test_p05_nothing_is_written_outside(tmp_path):
    """Falls: that an id cannot leave the data root or reach a shell."""
    attacks = ["../../x", "/etc/x", "..", "sub-1/../x", "sub-1; touch X", "-rf"]
    raw = make_folder(tmp_path / "in" / "raw")
    lines = (raw / "participants.tsv").read_text()
    hostile = "".join(f"{attack}\t30\tF\tcontrol\n" for attack in attacks)
    (raw / "participants.tsv").write_text(lines + hostile + "sub-1\0\t30\tF\tcontrol\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match="E-ID") as caught:
        cohort.gather(tmp_path / "in" / "root", STUDY, raw)
    assert all(attack in str(caught.value) for attack in [*attacks, "sub-1\\x00"])
    made = set(tmp_path.rglob("*")) - set(before)
    assert all(path.is_relative_to(tmp_path / "in" / "root") for path in made)


def test_all_faults_at_once(tmp_path):
    """Falls: that one report holds the problems of a whole folder, scans and table."""
    raw = make_folder(tmp_path / "raw", people=40)
    for number, (_, content) in enumerate(malformed.CONTENTS.values(), start=1):
        name = f"sub-{number:02d}"
        scan_path(raw, name).unlink()
        suffix = ".nii.gz" if content[:2] == b"\x1f\x8b" else ".nii"
        scan_path(raw, name, suffix).write_bytes(content)
    malformed.edit_table("\t69\tF", "\t45,5\t2")(raw)
    report = cohort.check(raw)
    blamed = {entry["file"].split("/")[0]: entry["code"] for entry in report["problems"]}
    for number, (code, _) in enumerate(malformed.CONTENTS.values(), start=1):
        assert blamed[f"sub-{number:02d}"] == code
    codes = [entry["code"] for entry in report["problems"]]
    assert codes.count("E-AGE") == codes.count("E-SEX") == 1
    assert len(codes) == len(malformed.CONTENTS) + 2
    record.write_json(tmp_path / "check.json", report)
    assert json.loads((tmp_path / "check.json").read_text()) == report
    assert cohort.as_text(report).count("\n") == len(codes) + 1


def test_a_broken_table_hides_no_broken_scan(tmp_path):
    """Falls: that one report is enough where the table cannot be read, or lacks a person."""
    raw = make_folder(tmp_path / "raw")
    CORPUS["D03 last 8 bytes missing"].spoil(raw)
    malformed.edit_table("sub-01\t30\tF\tcontrol\n", "")(raw)
    assert {entry["code"] for entry in cohort.check(raw)["problems"]} == {"E-NOROW", "E-TRUNC"}
    (raw / "participants.tsv").unlink()
    assert {entry["code"] for entry in cohort.check(raw)["problems"]} == {"E-NOTABLE", "E-TRUNC"}


def test_the_guide_knows_every_row_and_code():
    """Falls: that a user finds every refusal of the folder's checks in the book."""
    text = GUIDE.read_text() + (GUIDE.parent / "own_cohort.md").read_text()
    sources = [ROOT / "dsnb" / name for name in ("checks", "cohort", "bids", "volumes")]
    code = "".join(path.read_text() for folder in sources for path in folder.rglob("*.py"))
    raised = set(re.findall(r'"([EW]-[A-Z0-9]+)"', code)) | {"E-STAGE", "E-DISABILITY"}
    assert not {name for name in raised | ROWS if not re.search(rf"\b{name}\b", text)}


def test_the_guides_messages_are_real(tmp_path):
    """Falls: that the book's examples are what the program says."""
    text = GUIDE.read_text().split("## Faults of a training")[0]
    said = set(re.findall(r"`([EW]-[A-Z0-9]+ [^`]+)`", text))
    real = set()
    for number, fault in enumerate(CORPUS):
        report = spoilt(fault, tmp_path / str(number))
        real |= {entry["message"] for entry in report["problems"] + report["warnings"]}
    assert len(said) >= len(ROWS) and said <= real, said - real

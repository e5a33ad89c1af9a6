"""The gate: what passes leaves whole, under new headers; everything else stays, with a reason."""

import gzip
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from safetensors.torch import load_file

from dsnb import __main__ as command_line
from dsnb import bids, checkpoints, privacy, record
from dsnb.checks import BadInput
from dsnb.privacy import gate
from dsnb.space import REGIONS

PEOPLE = 6
HEADLINE = {"release": True, "copies_recalled": 1.0, "false_alarms": 0.0, "near_copies": 0.01,
            "attack_auc_upper": 0.55, "overfit_attack_auc": 0.99,
            "release_weights": False}  # fmt: skip
ATTACKS = [{"attack": "mean", "on": "VAE", "members": 200, "others": 300, "auc": 0.7, "se": 0.02,
            "upper": 0.75, "found_at_1_pct": 0.1}]  # fmt: skip


def make_root(folder, flagged=(), verdict=True, data="phantom"):
    """Write what an audited synthetic cohort leaves behind."""
    rng = np.random.default_rng(0)
    root = tiny.make_root(folder)
    record.write_json(root / "study.json", {"preset": "smoke", "data": data,
                                            "people_may_be_shown": True})  # fmt: skip
    table = pd.DataFrame({
        "participant_id": [f"sub-syn{i + 1:04d}" for i in range(PEOPLE)],
        "group": ["euploid", "DS"] * 3, "stage": ["n/a", "dementia"] * 3,
        "age": np.linspace(30, 50, PEOPLE), "sex": ["F", "M"] * 3,
    })  # fmt: skip
    product = record.begin(root, "synthetic", "sample", {}, (), ("space",))
    np.save(product.folder / "volumes.npy", rng.random((PEOPLE, *tiny.SHAPE)).astype(np.float16))
    bids.write_table(product.folder / "participants.tsv", table)
    product.finish()
    for name, ids in (("deformation/volumes", [f"sub-{i}" for i in range(40)]),
                      ("morphology/synthetic", table["participant_id"])):  # fmt: skip
        volumes = pd.DataFrame(np.exp(rng.normal(3, 0.1, (len(ids), len(REGIONS)))),
                               columns=list(REGIONS))  # fmt: skip
        volumes.insert(0, "participant_id", list(ids))
        folder, file = name.split("/")
        product = record.begin(root, folder, "measure", {}, (), ("space",))
        bids.write_table(product.folder / f"{file}.tsv", volumes.iloc[::-1])
        product.finish()
    tables = {
        "audit_failed": [] if verdict is True else ["members can be told"],
        "audit_flagged": [{"participant_id": name, "score": -4.0} for name in flagged],
        "audit_verdict": privacy.PASSED, "effects": [], "audit_attacks": ATTACKS,
        "audit_training_people_near": 0.01,
    }  # fmt: skip
    record.write_json(root / "results" / "08_fidelity.json", {
        "data": data, "headline": HEADLINE | {"release": verdict}, "tables": tables,
        "provenance": {"parents": {"synthetic": record.require(root, "synthetic")}},
    })  # fmt: skip
    return root


def test_a_passed_cohort_is_a_whole_bids_dataset(tmp_path):
    """Falls: that a release holds all that is promised, and no sample that was flagged (G26)."""
    root, out = make_root(tmp_path / "root", flagged=["sub-syn0002"]), tmp_path / "out"
    assert gate.release(root, tiny.STUDY, out) == []
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["BIDSVersion"] and description["DatasetType"] == "derivative"
    assert description["License"] == gate.PHANTOM_TERMS and description["GeneratedBy"]
    table = bids.read_table(out / "participants.tsv")
    assert "sub-syn0002" not in set(table["participant_id"]) and len(table) == PEOPLE - 1
    assert {*json.loads((out / "participants.json").read_text())} == {*table}
    scans = sorted(out.glob("sub-*/anat/*_T1w.nii.gz"))
    assert [scan.parts[-3] for scan in scans] == sorted(table["participant_id"])
    volumes = np.load(root / "synthetic/volumes.npy")
    image = nib.load(scans[0])
    np.testing.assert_allclose(image.get_fdata(), volumes[0], atol=1e-3)
    np.testing.assert_allclose(image.affine, tiny.STUDY.grid.affine)
    texts = [bytes(image.header[k]).strip(b"\0") for k in ("descrip", "aux_file", "db_name")]
    assert texts == [b"", b"", b""]
    card = (out / "README.md").read_text()
    assert "1 near a training person" in card and "no proof of privacy" in card
    assert "learnt on a digital phantom" in card
    audit = json.loads((out / "audit.json").read_text())
    assert audit["audit_left_out"] == {"near a training person": 1, "implausible": 0}
    assert "effects" not in audit and (out / "LICENSE").is_file() and (out / "CHANGES").is_file()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(BadInput, match="E-EXISTS"):
        gate.release(root, tiny.STUDY, out)


@pytest.mark.parametrize("verdict", [False, "not enough people"])
def test_a_failed_audit_writes_nothing_and_exits_with_3(verdict, tmp_path, capsys):
    """Falls: the gate (P11, P12): samples leave although members can be told."""
    root, out = make_root(tmp_path / "root", verdict=verdict), tmp_path / "out"
    words = ["release", str(out), "--preset", "smoke", "--data-root", str(root)]
    assert command_line.run(command_line.parse(words)) == 3
    assert "members can be told" in capsys.readouterr().out and not out.exists()


def test_an_audit_of_other_samples_counts_for_nothing(tmp_path):
    """Falls: that samples which were drawn again could leave under an old audit."""
    root, out = make_root(tmp_path / "root"), tmp_path / "out"
    product = record.begin(root, "synthetic", "sample", {"seed": 2}, (), ("space",))
    np.save(product.folder / "volumes.npy", np.ones((PEOPLE, *tiny.SHAPE), np.float16))
    bids.write_table(product.folder / "participants.tsv", pd.DataFrame({"participant_id": ["a"]}))
    product.finish()
    (reason,) = gate.release(root, tiny.STUDY, out)
    assert "drawn again after the audit" in reason and not out.exists()


def test_a_release_of_nothing_is_none(tmp_path):
    """Falls: that an empty dataset is written where every sample was flagged."""
    names = [f"sub-syn{i + 1:04d}" for i in range(PEOPLE)]
    root, out = make_root(tmp_path / "root", flagged=names), tmp_path / "out"
    (reason,) = gate.release(root, tiny.STUDY, out)
    assert f"none of {PEOPLE} samples" in reason and not out.exists()


def test_impossible_samples_stay(tmp_path):
    """Falls: that a region no person has, a voxel that is no number or an empty scan leaves."""
    rng = np.random.default_rng(0)
    real, made = (
        pd.DataFrame(np.exp(rng.normal(3, 0.1, (count, len(REGIONS)))), columns=list(REGIONS))
        for count in (200, 5)
    )
    volumes = np.ones((5, 4, 4, 4), np.float32)
    made.loc[1, "hippocampus"] *= 3
    made.loc[2, "ventricles"] = np.nan
    volumes[3, 0, 0, 0], volumes[4] = np.nan, 0
    assert gate.implausible(volumes, made, real).tolist() == [False, True, True, True, True]


def test_a_broken_release_leaves_nothing(tmp_path, monkeypatch):
    """Falls: that a folder which is there is whole."""
    root, out, done = make_root(tmp_path / "root"), tmp_path / "out", []

    def save(path, *rest, **how):
        done.append(path)
        if len(done) == 3:
            raise OSError("no space left on device")

    monkeypatch.setattr(gate.bids, "save_volume", save)
    with pytest.raises(OSError, match="no space"):
        gate.release(root, tiny.STUDY, out)
    assert [p.name for p in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("licence", ["CC0", None])
def test_samples_of_real_people_go_under_the_terms_of_their_sources(licence, tmp_path):
    """Falls: that a cohort's samples leave without its terms."""
    root, raw = make_root(tmp_path / "root", data="cohort"), tmp_path / "raw"
    raw.mkdir()
    record.write_json(raw / "dataset_description.json", {"Name": "x"} | (
        {"License": licence} if licence else {}))  # fmt: skip
    out = tmp_path / "out"
    if licence is None:
        with pytest.raises(BadInput, match="E-LICENCE"):
            gate.release(root, tiny.STUDY, out, raw)
        assert not out.exists()
        return
    assert gate.release(root, tiny.STUDY, out, raw) == []
    assert (out / "LICENSE").read_text() == "CC0\n"
    assert "digital phantom" not in (out / "README.md").read_text()


@pytest.mark.parametrize("allowed", [True, False])
def test_weights_go_only_where_no_attack_tells_members(allowed, tmp_path, monkeypatch):
    """G25. Falls: that a VAE which remembers its people leaves with the samples."""
    root, out = make_root(tmp_path / "root"), tmp_path / "out"
    path = root / "results" / "08_fidelity.json"
    results = json.loads(path.read_text())
    results["headline"]["release_weights"] = allowed
    record.write_json(path, results)
    payload = {"ema": {"layer.weight": torch.arange(6.0).reshape(2, 3)},
               "identity": {"settings": {"width": 8}}}  # fmt: skip
    monkeypatch.setattr(gate.checkpoints, "require", lambda run: payload)
    assert gate.release(root, tiny.STUDY, out) == []
    card = (out / "MODEL.md").read_text()
    assert "| mean | VAE | 200 | 300 | 0.70 | 0.75 | 0.10 |" in card
    assert (out / "weights").is_dir() == allowed and ("not here" in card) != allowed
    if allowed:
        weights = load_file(out / "weights" / "vae.safetensors")
        assert torch.equal(weights["layer.weight"], payload["ema"]["layer.weight"])
        assert json.loads((out / "weights/vae.json").read_text()) == {"width": 8}


def test_a_release_is_valid_bids(tmp_path):
    """Falls: that others can read the cohort: the BIDS validator finds an error in it."""
    validator = shutil.which("bids-validator-deno", path=Path(sys.executable).parent)
    if not validator:
        pytest.skip("bids-validator-deno is not installed: pip install -e '.[dev]'")
    root, out = make_root(tmp_path / "root"), tmp_path / "out"
    assert gate.release(root, tiny.STUDY, out) == []
    words = [validator, str(out), "--format", "json"]
    answer = subprocess.run(words, capture_output=True, text=True, timeout=120)
    issues = json.loads(answer.stdout)["issues"]["issues"]
    errors = [(issue["code"], issue["location"]) for issue in issues
              if issue["severity"] == "error"]  # fmt: skip
    assert errors == []


def test_a_header_of_a_release_tells_nothing(tmp_path):
    """P01. Falls: new headers; a name in one would leave with every brain, inside gzip."""
    root, out = make_root(tmp_path / "root"), tmp_path / "out"
    assert gate.release(root, tiny.STUDY, out) == []
    for path in (p for p in out.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix == ".gz":
            assert content[3] == 0 and content[4:8] == bytes(4)  # neither file name nor time
            content = gzip.decompress(content)
        assert str(root).encode() not in content and b"sub-0" not in content


@pytest.mark.parametrize("member", ["../out.txt", "link"])
def test_an_archive_is_no_cohort_and_no_model(member, tmp_path):
    """P10. Falls: that nothing is unpacked: an archive as data or as a model writes nothing."""
    bundle = tmp_path / "bundle.zip"
    with zipfile.ZipFile(bundle, "w") as archive:
        archive.writestr(member, "x" * 10)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match=r"E-PATH bundle\.zip"):
        command_line.run(command_line.parse(["import", "--raw", str(bundle), "--preset", "smoke",
                                             "--data-root", str(tmp_path / "root")]))  # fmt: skip
    shutil.copy(bundle, tmp_path / "seen-000000008-0123456789abcdef.pt")
    with pytest.raises(ValueError, match="digest"):
        checkpoints.load(tmp_path / "seen-000000008-0123456789abcdef.pt")
    (tmp_path / "seen-000000008-0123456789abcdef.pt").unlink()
    assert sorted(tmp_path.rglob("*")) == before

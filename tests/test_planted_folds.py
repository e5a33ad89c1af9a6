"""Five folds of planted real scans: who is tested, and what their lifts add up to."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dsnb import bids, cohort, config, record, scaling
from dsnb.anomaly.people import PRIMARY
from dsnb.checks import BadInput
from dsnb.record import ledger
from dsnb.search import planted

NAMES = [f"sub-{number:02d}" for number in range(46)]
PEOPLE = pd.DataFrame({"participant_id": NAMES, "family": NAMES})


def test_everybody_is_tested_once_and_by_strangers():
    """Falls: that no norm has seen whom it judges; the folds' test people are a partition."""
    folds = [planted.split(PEOPLE, fold) for fold in range(planted.FOLDS)]
    tested = [name for fold in folds for name, part in fold.items() if part == "test"]
    assert sorted(tested) == NAMES
    kin = PEOPLE.assign(family=np.arange(46) // 2)
    for fold in range(planted.FOLDS):
        side = pd.Series(planted.split(kin, fold))
        assert (side[::2].to_numpy() == side[1::2].to_numpy()).all()  # families whole
    for fold in folds:
        sizes = pd.Series(fold).value_counts()
        assert sorted(fold) == NAMES and sizes["test"] in (9, 10)
        assert sizes["fit"] >= 20 and sizes["validation"] == 2
        assert sizes["scale"] >= 7 and sizes["calibration"] >= 7


def test_a_fold_is_a_copy_with_stated_splits(tmp_path):
    """Falls: that the received folder stays as it is, and that a fold leaves nobody undealt."""
    raw = tmp_path / "raw"
    for name in NAMES[:20]:
        scan = raw / name / "anat" / f"{name}_T1w.nii.gz"
        scan.parent.mkdir(parents=True)
        scan.write_bytes(b"")
    table = pd.DataFrame({"participant_id": NAMES[:22], "age": "30", "sex": "F"})
    bids.write_table(raw / "participants.tsv", table)
    before = (raw / "participants.tsv").read_bytes()
    for fold in (0, 1):  # a second run replaces the copy
        planted.make_raw(raw, tmp_path / "copy", PEOPLE[:20], fold)
    assert (raw / "participants.tsv").read_bytes() == before
    stated = bids.read_table(tmp_path / "copy" / "participants.tsv")
    assert dict(zip(stated["participant_id"], stated["split"])) == planted.split(PEOPLE[:20], 1)
    assert (tmp_path / "copy" / NAMES[3] / "anat").is_dir()


def test_ratios_of_all_folds_are_paired_by_person(tmp_path, monkeypatch):
    """Falls: the ratios to the plain rivals, and that of the phantom's network to the own."""
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path)
    rng, folds = np.random.default_rng(0), []
    for fold in range(3):
        size = rng.uniform(0.1, 0.4, 10)
        lifts = {PRIMARY: 3 * size, "tbm": 2 * size, "pca": size, planted.ELSEWHERE: 2.7 * size}
        each = {name: {"lift": values.tolist(), "gain": (values / 2).tolist()}
                for name, values in lifts.items()}  # fmt: skip
        if fold == 2:  # added without the phantom's network
            del each[planted.ELSEWHERE]
        else:
            del each[planted.ELSEWHERE]["gain"]
        folds.append({"preset": "small", "data": "real", "fold": fold, "seed": 1,
                      "code": record.code_digest(*planted.CODE), "each": each})  # fmt: skip
    (tmp_path / f"{planted.LEDGER}.jsonl").write_text("".join(json.dumps(f) + "\n" for f in folds))
    table, pairs, about = scaling.read_planted(config.SMOKE.maps)
    pairs = {row["rival"]: row for row in pairs}
    assert sorted(pairs) == ["pca", "tbm"] and pairs["pca"]["gain_ratio"] == pytest.approx(3)
    assert pairs["tbm"]["lift_interval"] == pytest.approx([1.5, 1.5])
    assert about == {"data": "real", "rows": 3, "stale": 0}
    rows = {row["norm"]: row for row in table}
    assert rows[planted.ELSEWHERE]["ratio"] == pytest.approx(0.9)
    assert rows[planted.ELSEWHERE]["interval"] == pytest.approx([0.9, 0.9])
    assert rows[planted.ELSEWHERE]["people"] == 20
    assert rows["tbm"]["people"] == 30 and rows["tbm"]["gain"] == pytest.approx(
        rows["tbm"]["lift"] / 2
    )
    assert "gain" not in rows[planted.ELSEWHERE] and "ratio" not in rows[PRIMARY]


def test_what_cannot_be_folded_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    """Falls: that a long run ends with a sentence at its start, not at its end."""
    record.write_json(tmp_path / "study.json", {"data": "real", "people_may_be_shown": True})
    with pytest.raises(BadInput, match="E-RAW.*--raw"):
        planted.map_folds(tmp_path, config.SMOKE, None, "")
    with pytest.raises(BadInput, match="runs/undo"):
        planted.map_folds(tmp_path, config.SMOKE, tmp_path, str(tmp_path))
    folder = SimpleNamespace(people=PEOPLE.assign(group="DS", kind="recorded"))
    monkeypatch.setattr(cohort, "read_folder", lambda raw: folder)
    with pytest.raises(BadInput, match="E-GROUP.*46"):
        planted.map_folds(tmp_path, config.SMOKE, tmp_path, "")
    assert not (tmp_path / "runs").exists()

"""The command line passes on what it was told, refuses the rest, and exits as promised."""

import json

import numpy as np
import pytest

from dsnb import __main__ as command_line
from dsnb import bids, record
from dsnb.checks import BadInput


def run(*words: str) -> int:
    """Run one command line in this process."""
    return command_line.run(command_line.parse(list(words)))


def make_bids(folder, people: int = 2, age: str = "30"):
    """Write a small BIDS folder of whole scans."""
    names = [f"sub-{number:02d}" for number in range(people)]
    for seed, name in enumerate(names):
        volume = np.random.default_rng(seed).random((6, 6, 6)).astype(np.float32)
        bids.save_volume(folder / name / "anat" / f"{name}_T1w.nii.gz", volume, np.eye(4))
    rows = "".join(f"{name}\t{age}\tF\tcontrol\n" for name in names)
    (folder / "participants.tsv").write_text("participant_id\tage\tsex\tgroup\n" + rows)
    return folder


@pytest.mark.parametrize("age, code", [("30", 0), ("-3", 2)])
def test_check_prints_and_keeps_one_report(age, code, tmp_path, capsys):
    """Falls: that `prepare --check` exits with 2 on problems, and keeps them as JSON."""
    raw, root = make_bids(tmp_path / "raw", age=age), tmp_path / "root"
    words = ["--preset", "smoke", "--raw", str(raw), "--data-root", str(root)]
    assert run("prepare", "--check", *words) == code
    report = json.loads((root / "check.json").read_text())
    assert report["verdict"] == ("refused" if code else "accepted")
    assert ("E-AGE" in capsys.readouterr().out) is bool(code)
    assert not (root / "cohort").exists() and not (root / "study.json").exists()


@pytest.mark.parametrize(
    "words, code",
    [
        (["prepare", "--check"], "E-RAW"),
        (["import", "--from", "ixi", "IN"], "E-WORDS"),
        (["train"], "E-WORDS"),
        (["train", "gan"], "E-MODEL"),
        (["encode", "everything"], "E-WORDS"),
        (["map", "--own-space"], "E-WORDS"),
        (["map", "sub-01"], "E-MISSING"),
        (["bench", "everything"], "E-WORDS"),
        (["search", "speed"], "E-WORDS"),
    ],
)
def test_wrong_words_are_refused(words, code, tmp_path):
    """Falls: that a command never guesses what was meant."""
    with pytest.raises(BadInput) as caught:
        run(*words, "--preset", "smoke", "--data-root", str(tmp_path))
    assert caught.value.code == code


def test_import_from_a_layout_writes_bids_and_opens_no_study(tmp_path, monkeypatch):
    """Falls: that `import --from` hands both folders on, and leaves no data root behind."""
    seen = []
    monkeypatch.setattr(bids, "import_cohort", lambda *given: seen.append(given))
    monkeypatch.chdir(tmp_path)
    assert run("import", "--from", "oasis1", "IN", "OUT") == 0
    assert [str(part) for part in seen[0]] == ["oasis1", "IN", "OUT"]
    assert not list(tmp_path.iterdir())


def test_import_without_a_layout_takes_the_folder_in(tmp_path):
    """Falls: that `import --raw` makes the cohort that `prepare` asks for."""
    raw, root = make_bids(tmp_path / "raw", people=6), tmp_path / "root"
    words = ["--preset", "smoke", "--raw", str(raw), "--data-root", str(root)]
    assert run("import", *words) == 0
    assert record.require(root, "cohort")
    with pytest.raises(BadInput, match="E-WORDS"):
        run("prepare", "everything", *words)


FILLS = {
    ("bench", "speed"): "bench_speed", ("bench", "cost"): "bench_cost",
    ("search", "ablations"): "ablate", ("search", "grids"): "fill",
    ("search", "trials"): "fill_trials",
}  # fmt: skip


@pytest.mark.parametrize("words", FILLS)
def test_a_word_fills_the_ledger_and_none_runs_the_stage(words, tmp_path, monkeypatch):
    """Falls: that `make ablations` fills the ledger, and `bench` and `search` stay as they were."""
    called, stages = [], {"bench": "bench", "search": "take_part"}
    for verb, name in [*((words[0], name) for words, name in FILLS.items()), *stages.items()]:
        ours = getattr(command_line, {"bench": "scaling"}.get(verb, verb))
        monkeypatch.setattr(ours, name, lambda *_, name=name: called.append(name))
    where = ["--preset", "smoke", "--data-root", str(tmp_path)]
    assert run(*words, *where) == run(words[0], *where) == 0
    assert called == [FILLS[words], stages[words[0]]]

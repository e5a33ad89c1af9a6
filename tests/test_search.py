"""The search: defaults first, shared by tasks, killed and resumed to the same trials."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
import tiny
import torch

from dsnb import dataset, record, search, vae
from dsnb.checks import BadInput
from dsnb.config import Search, replace
from dsnb.distributed import STOPPED, Noise
from dsnb.record import ledger
from dsnb.search import grids, trials

TASK = """
import sys, tiny
from pathlib import Path
from dsnb import search
from dsnb.config import Search, replace
search.take_part(Path(sys.argv[1]), replace(tiny.STUDY, search=Search(*map(int, sys.argv[2:]))))
"""
TIMED = ("seconds", "cpu_seconds")


def start(root, *settings):
    """Start a task of a search on its own; `settings` are trials and volumes."""
    words = [sys.executable, "-c", TASK, str(root), *map(str, settings)]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(words, env=os.environ | {"PYTHONPATH": paths}, text=True,
                            stderr=subprocess.PIPE)  # fmt: skip


def untimed(rows):
    """Return a search's rows without what a clock says."""
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def test_a_killed_search_goes_on_to_the_same_trials(tmp_path, monkeypatch):
    """Claim: the trials depend on the seed alone, not on where a kill fell; each is run once."""
    whole, cut = (tiny.make_root(tmp_path / name) for name in ("whole", "cut"))
    found = search.search(whole, tiny.STUDY)["tables"]["trials"]
    real, calls = trials.try_out, []

    def dying(root, folder, study, trial):
        calls.append(folder.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(root, folder, study, trial)

    monkeypatch.setattr(trials, "try_out", dying)
    with pytest.raises(KeyboardInterrupt):
        search.search(cut, tiny.STUDY)
    with pytest.raises(BadInput, match="E-MISSING"):
        record.require(cut, trials.RUN)
    resumed = search.search(cut, tiny.STUDY)
    assert calls == ["trial-0", "trial-1", "trial-1", "trial-2"]
    assert untimed(found) == untimed(resumed["tables"]["trials"])
    assert search.search(cut, tiny.STUDY) == resumed and len(calls) == 4
    assert [row["trial"] for row in found] == [0, 1, 2] and len({row["lr"] for row in found}) == 3
    assert [row["default"] for row in found] == [True, False, False]
    assert found[0]["width"] == tiny.STUDY.vae.width and found[0]["volumes"] == 16
    best = resumed["tables"]["best"]
    assert best["psnr_db"] == max(row["psnr_db"] for row in found)
    for row in found:  # the score is that of the best mark, a mean over validation people
        assert row["psnr_db"] == max(db for _, db in row["curve"])
        assert np.mean(row["each_db"]) == pytest.approx(row["psnr_db"], abs=1e-4)
    assert not list((whole / "runs/search").rglob("*.pt"))


def test_a_trial_keeps_everything_else_of_the_study():
    """Claim: a trial changes what is searched and its budget, nothing more."""
    values = {"lr": 0.001, "width": 16, "channels": 4, "kl": 1e-7}
    settings = search.shortened(tiny.STUDY, values)
    plan = settings.training
    assert (plan.lr, plan.volumes, plan.validate_every) == (0.001, 16, 4)
    back = replace(tiny.STUDY.vae, width=16, channels=4, kl=1e-7, training=plan)
    assert settings == back and search.defaults(settings) == values
    space = search.space(tiny.STUDY.vae)
    assert set(space) == set(values)
    assert all(space[name]._contains(space[name].to_internal_repr(value))
               for name, value in search.defaults(tiny.STUDY.vae).items())  # fmt: skip


def test_two_processes_share_a_search(tmp_path):
    """Claim: two tasks train each trial once, the defaults once, and none too many."""
    root = tiny.make_root(tmp_path)
    tasks = [start(root, 5, 32) for _ in range(2)]
    said = [task.communicate(timeout=300)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    folder = root / trials.RUN
    record.require(root, trials.RUN)
    table = trials.rows(optuna.load_study(study_name="vae", storage=trials._storage(folder)))
    assert [row["trial"] for row in table] == list(range(6))
    assert {row["state"] for row in table} <= {"complete", "pruned"}
    assert [row["lr"] == tiny.STUDY.vae.training.lr for row in table] == [True] + 5 * [False]
    assert all("goes on" not in text.replace("an unfinished runs/search goes on", "")
               for text in said), said  # fmt: skip


def test_a_killed_trial_is_adopted_and_a_living_one_is_not(tmp_path, capsys):
    """Claim: after SIGKILL another task goes on from the checkpoint, with the same values.

    While the task lives, even if it sleeps, no other takes its trial.
    """
    root, short = tiny.make_root(tmp_path), (0, 1600)
    study, task = replace(tiny.STUDY, search=Search(*short)), start(root, *short)
    run, until = root / trials.RUN / "trial-0/run", time.monotonic() + 120
    while not list(run.glob("seen-*.pt")) and time.monotonic() < until:
        time.sleep(0.05)
    task.send_signal(signal.SIGSTOP)
    before = search.open_journal(root / trials.RUN, study).trials
    search.take_part(root, study)
    assert "other tasks still train 1 of 1 trials" in capsys.readouterr().err
    task.kill()
    task.communicate()
    table = search.search(root, study)["tables"]["trials"]
    said = capsys.readouterr().err
    assert "run: goes on after" in said and "after 0 of" not in said
    assert [row["state"] for row in table] == ["complete"] and before[0].params.items() <= {
        name: table[0][name] for name in search.defaults(study.vae)
    }.items()
    assert [seen for seen, _ in table[0]["curve"]] == [400, 800, 1200, 1600]


def test_a_stop_signal_leaves_the_trial_resumable_with_code_75(tmp_path):
    """Claim: TERM ends `dsnb search` with 75; its trial is saved and still counts as running."""
    root = tiny.make_root(tmp_path)
    words = ["search", "--preset", "smoke", "--data-root", str(root), "--search.volumes",
             "40000", "--search.trials", "1"]  # fmt: skip
    task = subprocess.Popen([sys.executable, "-m", "dsnb", *words], stderr=subprocess.PIPE,
                            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    run, until = root / trials.RUN / "trial-0/run", time.monotonic() + 120
    while not (run / "stats.jsonl").is_file() and task.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    task.terminate()
    said = task.communicate(timeout=60)[1]
    assert task.returncode == STOPPED, said
    journal = optuna.load_study(study_name="vae", storage=trials._storage(run.parents[1]))
    assert [trial.state.name for trial in journal.trials] == ["RUNNING"]
    assert list(run.glob("seen-*.pt")) and not (run.parent / ".lock").is_file()


def planted_score(monkeypatch):
    """Make the validation PSNR of a trial 30 - 1000 times its learning rate, whatever it learnt."""

    def assess(self, model, rows):
        found = np.full(len(rows), 30 - 1000 * self.settings.training.lr)
        return {"score": found, "kl_nats": found, "logvar_low": found, "logvar_high": found,
                "units": np.zeros((len(rows), 2))}  # fmt: skip

    monkeypatch.setattr(vae.VaeTask, "assess", assess)


def test_a_hopeless_trial_is_pruned_half_way(tmp_path, monkeypatch):
    """Claim: once enough trials are whole, one below their median ends at half of its volumes."""
    planted_score(monkeypatch)
    monkeypatch.setattr(trials, "STARTUP", 2)
    study = replace(tiny.STUDY, search=Search(trials=7, volumes=16))
    table = search.search(tiny.make_root(tmp_path), study)["tables"]["trials"]
    whole, pruned = [], []
    for row in table:
        score = 30 - 1000 * row["lr"]
        hopeless = len(whole) >= 2 and score < np.median(whole)
        assert row["state"] == ("pruned" if hopeless else "complete")
        assert row["volumes"] == (8 if hopeless else 16)
        assert row["psnr_db"] == pytest.approx(score, abs=1e-3)
        (pruned if hopeless else whole).append(score)
    assert pruned and table[0]["state"] == "complete"


@pytest.mark.parametrize(("number", "ended"), [(0, False), (3, True)])
def test_the_defaults_are_never_pruned(tmp_path, number, ended):
    """Claim: whatever the pruner says, the defaults train to their end; any other trial ends."""

    class Trial:
        should_prune = report = set_user_attr = lambda self, *words: True
        study = optuna.create_study()

    Trial.number = number
    for _ in range(4):
        Trial.study.ask()
    task = trials.TriedTask(tiny.make_root(tmp_path), tiny.STUDY.vae, Trial())
    found = task.assess(task.model, np.arange(task.held))
    rows = np.arange(4)
    task.loss(task.model, task.load(rows), Noise(1, rows, 6, torch.device("cpu")))
    assert task.seen == 7 * tiny.STUDY.vae.training.batch
    if ended:
        with pytest.raises(optuna.TrialPruned):
            task.conclude(found)
    else:
        assert task.conclude(found)["score"] == found["score"].mean()


def test_a_trial_that_diverges_counts_and_the_search_goes_on(tmp_path, monkeypatch):
    """Claim: a diverged trial is a failed row, is not run again, and ends no search."""
    real = trials.training.train

    def diverging(run, task, settings, identity):
        if run.parent.name == "trial-1":
            raise BadInput("E-DIVERGED", run.name, "the gradient", "nan", "finite", "lower lr")
        return real(run, task, settings, identity)

    monkeypatch.setattr(trials.training, "train", diverging)
    table = search.search(tiny.make_root(tmp_path), tiny.STUDY)["tables"]["trials"]
    assert [row["state"] for row in table] == ["complete", "fail", "complete"]
    assert table[1]["psnr_db"] is None and table[1]["lr"]


def test_a_search_is_not_cleared_while_a_task_trains(tmp_path):
    """Claim: other settings never remove a folder in which a trial runs; they wait or refuse."""
    root = tiny.make_root(tmp_path)
    study = replace(tiny.STUDY, search=Search(trials=0, volumes=16))
    product = record.begin(root, trials.RUN, "search", {}, ("prepared",), trials.CODE)
    (product.folder / "trial-0").mkdir()
    with record.locked(product.folder / "trial-0"), pytest.raises(BadInput, match="E-LOCKED"):
        search.take_part(root, study)
    assert (product.folder / "trial-0").is_dir()
    search.take_part(root, study)
    record.require(root, trials.RUN)


def test_the_ledger_has_a_row_a_trial_and_the_grids_find_the_best(tmp_path, monkeypatch):
    """Claim: every ended trial has one row; the grid `search` retrains the best whole one."""
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path / "ledger")
    monkeypatch.setattr(trials, "LONG", Search(trials=3, volumes=16))
    root = tiny.make_root(tmp_path)
    for _ in range(2):
        search.fill_trials(root, tiny.STUDY)
    rows = record.ledger_rows(trials.LEDGER)
    assert [row["trial"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["values"] == search.defaults(tiny.STUDY.vae)
    best = max(rows[1:], key=lambda row: row["psnr_db"])

    class Trial:
        cohort = dataset.identify(root)

    assert grids.known_grids(Trial)["search"] == {"found": best["values"]}

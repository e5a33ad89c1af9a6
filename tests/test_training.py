"""The training loop: exact resume, checkpoints that vouch for themselves, guards, averaging."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from toy import SETTINGS, Line, log, trained

from dsnb import checkpoints, record, training
from dsnb.checks import BadInput
from dsnb.config import Training, replace


@pytest.mark.parametrize("stop_at", [0, 1, 3, 4, 5])
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(tmp_path, stop_at):
    """Claim: resume changes neither weights, EMA, optimizer nor the log, wherever the stop was."""
    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", Line(stop_at=stop_at))
    resumed = trained(tmp_path / "cut")
    assert checkpoints.identical(whole, resumed) and not checkpoints.identical(
        whole["ema"], whole["model"]
    )
    assert log(tmp_path / "whole").equals(log(tmp_path / "cut"))
    assert checkpoints.identical(
        checkpoints.require(tmp_path / "whole"), checkpoints.require(tmp_path / "cut")
    )


def test_accumulation_equals_one_large_batch(tmp_path):
    """Claim: micro-batches summed before a step give the same training as the whole batch."""
    whole = trained(tmp_path / "whole")
    parts = trained(tmp_path / "parts", settings=replace(SETTINGS, accumulate=2))
    for name, weight in whole["model"].items():
        torch.testing.assert_close(weight, parts["model"][name], rtol=1e-5, atol=1e-6)
    one, other = log(tmp_path / "whole"), log(tmp_path / "parts")  # AdamW forgives a wrong scale
    for name in ("loss", "grad_norm"):
        assert other[name].to_numpy() == pytest.approx(one[name].to_numpy(), rel=1e-4)


def test_the_loop_learns_and_the_average_follows(tmp_path):
    """Claim: the loop minimises its loss and the EMA is near the weights at the end."""
    rare = replace(SETTINGS, checkpoint_every=900, validate_every=300)
    saved = trained(tmp_path / "run", settings=replace(rare, volumes=900, lr=0.2))
    weight = saved["ema"]["weight"]  # 0 to 5 but for what noise on ten inputs shrinks
    assert torch.allclose(weight, torch.arange(6.0)[None], atol=0.8)
    stats = log(tmp_path / "run")
    assert stats["loss"].iloc[-1] < 0.05 * stats["loss"].iloc[0]
    assert (stats["loss"] - stats["fit"] - stats["size"]).abs().max() < 1e-4


@pytest.mark.parametrize("fault", ["cut", "empty", "zeros", "bit"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, monkeypatch, fault):
    """Claim: no damage loads in silence; training goes on from the one before, to the same end."""
    whole = trained(tmp_path / "run")
    newest, *older = checkpoints.listed(tmp_path / "run")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"cut": content[:999], "empty": b"", "zeros": bytes(len(content)), "bit": content}
    newest.write_bytes(damaged[fault])
    said = []
    monkeypatch.setattr(record, "say", said.append)
    assert checkpoints.newest(tmp_path / "run")["seen"] == 16
    assert newest.name in said[0] and "digest" in said[0]
    assert checkpoints.identical(whole, trained(tmp_path / "run"))
    for path in checkpoints.listed(tmp_path / "run"):
        path.write_bytes(b"x")
    with pytest.raises(BadInput, match=older[0].name):
        trained(tmp_path / "run")


def test_pickled_code_never_runs(tmp_path, capfd):
    """Claim: a checkpoint is plain tensors; one that carries code is refused, its name in order."""
    source = "import sys; print('ran', file=sys.stderr)"
    path = tmp_path / "aside"
    torch.save({"seen": 1, "model": _Payload(source)}, path)
    path.rename(tmp_path / f"seen-000000001-{record.digest(path)}.pt")
    with pytest.raises(BadInput, match="E-CHECKPOINT.*plain tensors"):
        checkpoints.newest(tmp_path)
    assert "ran" not in capfd.readouterr().err


class _Payload:
    def __init__(self, source):
        self.source = source

    def __reduce__(self):
        return exec, (self.source,)


def test_only_the_last_three_and_the_best_stay(tmp_path):
    """Claim: a run folder does not grow, and the best is the one with the highest score."""
    trained(tmp_path / "run", settings=replace(SETTINGS, volumes=64))
    assert [int(p.name[5:14]) for p in checkpoints.listed(tmp_path / "run")] == [64, 56, 48]
    assert len(checkpoints.listed(tmp_path / "run", "best")) == 1
    best, stats = checkpoints.require(tmp_path / "run"), log(tmp_path / "run")
    assert best["best"] == pytest.approx(stats["score"].max(), rel=1e-5)
    assert best["seen"] == stats["seen"][stats["score"].idxmax()]
    assert checkpoints.identical(training.load_weights(tmp_path / "run"), best["ema"])


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    """Claim: NaN never reaches weights; the rows are logged; five in a row stop the training."""
    saved = trained(tmp_path / "run", Line(bad=[7]))
    stats = log(tmp_path / "run")
    skipped = stats["skipped_rows"].dropna()
    assert saved["skipped"] == len(skipped) > 0 and all(7 in rows for rows in skipped)
    assert saved["updates"] == len(stats) - len(skipped)
    assert all(torch.isfinite(weight).all() for weight in saved["ema"].values())
    assert "NaN" not in (tmp_path / "run/stats.jsonl").read_text()
    with pytest.raises(BadInput, match="E-DIVERGED.*5 times"):
        trained(tmp_path / "stop", Line(bad=range(10)), replace(SETTINGS, volumes=400))


def test_another_identity_is_refused_by_its_keys(tmp_path):
    """Claim: settings that differ are named; nobody resumes another model."""
    trained(tmp_path / "run")
    other = {"settings": {"width": 8}, "parents": {"prepared": "abc"}}
    with pytest.raises(BadInput, match=r"settings is \['settings.width'\]"):
        training.train(tmp_path / "run", Line(), SETTINGS, other)


def test_a_second_job_on_the_folder_is_refused(tmp_path, capsys):
    """Claim: two jobs never write one run; a dead one's lock does not block, and is explained."""
    (tmp_path / ".lock").write_text("host gone, process 1")
    hold = (
        "import sys, pathlib; from dsnb import record\n"
        "with record.locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(words, stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match=f"E-LOCKED.*process {holder.pid}"):
            trained(tmp_path)
        holder.kill()
    capsys.readouterr()
    assert trained(tmp_path)["seen"] == 24 and not (tmp_path / ".lock").exists()
    said = capsys.readouterr().err
    assert "left by a job that is gone" in said and f"process {holder.pid}" in said


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    """Claim: too little space is refused with both numbers before a step is taken (G10)."""
    trained(tmp_path / "run")
    before = checkpoints.listed(tmp_path / "run")
    usage = checkpoints.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage)
    task = Line()
    with pytest.raises(BadInput, match="E-DISK.*is 10, expected at least"):
        trained(tmp_path / "run", task, replace(SETTINGS, volumes=40))
    assert checkpoints.listed(tmp_path / "run") == before and not task.loaded


def test_the_rate_warms_up_and_falls_to_zero():
    """Claim: the rate is a function of volumes seen, whatever the batch was split into."""
    settings = Training(volumes=1000, batch=10, lr=1.0, warmup=0.1)
    rates = [training.learning_rate(settings, seen) for seen in range(0, 1000, 10)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(0.98, abs=0.01)
    assert rates.index(max(rates)) == 9 and rates[-1] < 1e-3


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    """Claim: unequal shares, which would bias every mean, cannot start."""
    with pytest.raises(BadInput, match="E-BATCH.*multiple of 1 processes x 3"):
        trained(tmp_path / "run", settings=replace(SETTINGS, accumulate=3))


@pytest.mark.parametrize("stopped", [False, True])
def test_the_log_adds_up_to_the_wall_time(tmp_path, monkeypatch, stopped):
    """Claim: steps, validations and every save (best, periodic, last, on a signal) are the time."""
    save, saved = checkpoints.save, []

    def slowly(run, kind, payload):
        time.sleep(0.2)
        saved.append((kind, payload["seen"]))
        return save(run, kind, payload)

    class Slow(Line):
        def load(self, rows):
            time.sleep(0.05)
            if stopped and len(self.loaded) == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
            return super().load(rows)

        def conclude(self, found):
            time.sleep(0.1)
            return super().conclude(found)

    monkeypatch.setattr(checkpoints, "save", slowly)
    began = time.perf_counter()
    with pytest.raises(training.Stopped) if stopped else nullcontext():
        trained(tmp_path / "run", Slow())
    wall = time.perf_counter() - began
    stats = training.read_stats(tmp_path / "run")
    assert saved[-1] == ("seen", 12 if stopped else 24) and ("best", 8) in saved
    assert stats["save_s"].sum() > 0.2 * len(saved)
    told = stats[["seconds", "validate_s", "save_s"]].sum().sum()
    assert told < wall and told == pytest.approx(wall, abs=0.25)


@pytest.mark.parametrize("name", ["rows", "held"])
def test_a_split_without_people_is_refused(tmp_path, name):
    """Claim: nobody to train on, or to validate on, is a sentence before the first step."""
    task, said = Line(), {"rows": "training samples", "held": "validation samples"}[name]
    setattr(task, name, 0)
    with pytest.raises(BadInput, match=f"E-SPLIT the split: {said} is 0.*column split"):
        trained(tmp_path / "run", task)
    assert not (tmp_path / "run/stats.jsonl").exists()


def test_the_log_is_json_lines_with_terms_apart(tmp_path):
    """Claim: each line carries step, volumes, rate, gradient norm, seconds and each term."""
    trained(tmp_path / "run")
    lines = (tmp_path / "run/stats.jsonl").read_text().splitlines()
    wanted = {"step", "seen", "lr", "loss", "fit", "size", "grad_norm", "seconds"}
    assert len(lines) == 6 and all(wanted <= json.loads(line).keys() for line in lines)

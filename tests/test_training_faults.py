"""Every row T01 to T20 of the fault table: what a training does when the world breaks under it."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from ranks import ELASTIC, EVENT, LONG, PATIENCE_S, Elastic
from toy import IDENTITY, SETTINGS, Line, log, trained

from dsnb import __main__ as command_line
from dsnb import checkpoints, dataset, distributed, launcher, record, training
from dsnb.checks import BadInput
from dsnb.config import replace
from dsnb.training.watch import Watch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CODE = ("training/state",)


def environment() -> dict:
    search = os.pathsep.join([str(ROOT), str(HERE), str(HERE / "guard")])
    return os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": search}


def start(folder: Path, processes: int, *scenarios: str) -> subprocess.Popen:
    """Start scenarios of ranks.py by our launcher, or as one plain process (0)."""
    words = [sys.executable]
    words += ["-m", "dsnb.launcher", f"--nproc-per-node={processes}"] if processes else []
    words += [str(HERE / "ranks.py"), str(folder), *scenarios]
    return subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> dict:
    """Wait for an end; return exit code, moment and what was said."""
    said = process.communicate(timeout=300)[1]
    lines = said.strip().splitlines()
    return {"code": process.returncode, "said": said,
            "last": lines[-1] if lines else "", "ended": time.time()}  # fmt: skip


def waited(job: dict, run: Path) -> float:
    """Return the seconds from the last logged step to the end of every process."""
    return job["ended"] - (run / "stats.jsonl").stat().st_mtime


def launched(folder: Path, processes: int, *scenarios: str) -> dict:
    return finish(start(folder, processes, *scenarios))


def shell(folder: Path) -> dict:
    """Run the jobs' wall-time function around a launcher; warn the shell once it trains."""
    run = folder / "endless"
    stub = folder / "bin"
    stub.mkdir()
    (stub / "scontrol").write_text('#!/bin/bash\necho "$@" >> "$DSNB_DATA/requeued"\n')
    (stub / "scontrol").chmod(0o755)
    script = f'source {ROOT}/hpc_jobs/walltime.sh; until_walltime "$@"'
    words = ["bash", "-c", script, "job", str(run), sys.executable, "-m", "dsnb.launcher",
             "--nproc-per-node=1", str(HERE / "ranks.py"), str(folder), "endless"]  # fmt: skip
    own = {"DSNB_DATA": str(folder), "SLURM_JOB_ID": "7"}
    own["PATH"] = f"{stub}:{os.environ['PATH']}"
    process = subprocess.Popen(words, env=environment() | own, stderr=subprocess.PIPE, text=True)
    wait_for(run / "stats.jsonl")
    warned = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    return finish(process) | {"after": time.monotonic() - warned}


def cut(folder: Path) -> dict:
    """Let a training save slowly on a signal, and kill it as it saves."""
    process = start(folder, 0, "slow_save")
    for line in process.stderr:
        if "saving after" in line:
            break
    process.kill()
    process.wait()
    return {"said": line, "code": process.returncode}


def wait_for(path: Path, seconds: float = 60) -> None:
    """Wait until a file has lines."""
    ends = time.monotonic() + seconds
    while not (path.is_file() and path.read_text().count("\n") > 2):
        assert time.monotonic() < ends, f"{path.name} did not come"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> dict:
    """Run every job that needs processes once, some beside others; what each of them said."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "elastic").mkdir()
    (folder / "one").mkdir()
    with pytest.raises(training.Stopped):
        training.train(
            folder / "elastic", Elastic(folder / "elastic", 10, os.getpid()), ELASTIC, IDENTITY
        )
    trained(folder / "one", settings=LONG)
    trained(folder / "straight", settings=ELASTIC)
    marker = json.loads((folder / "elastic" / checkpoints.MARKER).read_text())
    with ThreadPoolExecutor(3) as pool:
        work = {
            "two": pool.submit(launched, folder, 2, "unequal", "parity", "not_finite", "elastic"),
            "fails": pool.submit(launched, folder, 3, "fails"),
            "killed": pool.submit(launched, folder, 2, "killed"),
            "hangs": pool.submit(launched, folder, 2, "hangs"),
            "shell": pool.submit(shell, folder),
            "cut": pool.submit(cut, folder),
        }
        work["two"].result()
        work["four"] = pool.submit(launched, folder, 4, "parity", "elastic")
        found = {name: job.result() for name, job in work.items()}
    training.train(folder / "elastic", Elastic(folder / "elastic", 99, 0), ELASTIC, IDENTITY)
    return found | {"folder": folder, "marker": marker}


def in_a_child(work) -> int:
    """Run `work` in a forked process; return its process id at once."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    finally:
        os._exit(9)


def payload(seen: int = 8, size: int = 500_000) -> dict:
    """Return a checkpoint's payload, large enough that a kill can hit its writing."""
    weights = {"w": torch.full((size,), float(seen))}
    return {"seen": seen, "model": weights, "ema": weights, "identity": {}}


@pytest.mark.parametrize("kills", [50, pytest.param(200, marks=pytest.mark.fault)])
def test_t01_kills_during_saves_lose_one_interval_at_most(tmp_path, kills):
    """Claim: SIGKILL at random moments of saving leaves a whole newest checkpoint (G1)."""
    rng, seen, cut, begun = np.random.default_rng(0), 0, 0, tmp_path / "begun"
    begun.write_text("0")
    for _ in range(kills):

        def save_on(first=seen):
            os.fsync = lambda number: None  # a kill spares the page cache; the rest shall be fast
            for step in range(first + 1, first + 10_000):
                begun.write_text(f"{step:09d}")
                checkpoints.save(tmp_path, "seen", payload(step))

        child = in_a_child(save_on)
        while int(begun.read_text() or 0) < seen + 2:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        cut += (tmp_path / ".seen.aside").exists()
        for path in checkpoints.listed(tmp_path):
            checkpoints.load(path)  # each of them is whole
        saved = checkpoints.newest(tmp_path)
        assert saved["seen"] >= max(seen + 1, int(begun.read_text() or 0) - 1)
        seen = saved["seen"]
    assert seen >= kills and cut > 0
    (tmp_path / ".seen.aside").write_bytes(b"cut")
    checkpoints.save(tmp_path, "seen", payload(seen + 1))
    assert not list(tmp_path.glob(".*")) and len(checkpoints.listed(tmp_path)) == 3


def test_t01_a_start_removes_what_a_kill_left(tmp_path):
    """Claim: leftovers of killed saves and logs are ignored and removed, whatever their kind."""
    trained(tmp_path / "run")
    for name in (".best.aside", ".seen.aside", ".stats.jsonl.123", ".config.json.7"):
        (tmp_path / "run" / name).write_bytes(b"cut")
    trained(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*"))


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "one bit":
        content[len(content) * 2 // 3] ^= 4
    cuts = {"30 %": content[: len(content) * 3 // 10], "empty": b"", "zeros": bytes(len(content)),
            "longer": content + b"x", "text": b"not a checkpoint"}  # fmt: skip
    path.write_bytes(cuts.get(how, content))


WAYS = ["30 %", "empty", "zeros", "longer", "text"]


@pytest.mark.parametrize("how", WAYS)
def test_t02_a_damaged_newest_checkpoint_is_named_and_passed_over(tmp_path, monkeypatch, how):
    """Claim: training goes on from the one before, with one warning, to the same end (G2)."""
    falls_back(tmp_path, monkeypatch, how)


def test_t03_a_flipped_bit_is_damage(tmp_path, monkeypatch):
    """Claim: torch would load it in silence; the digest in the name does not (G2)."""
    falls_back(tmp_path, monkeypatch, "one bit")


def falls_back(folder, monkeypatch, how):
    whole, said = trained(folder / "run"), []
    newest = checkpoints.listed(folder / "run")[0]
    damage(newest, how)
    monkeypatch.setattr(record, "say", said.append)
    assert checkpoints.identical(whole, trained(folder / "run"))
    told = [line for line in said if "damaged" in line]
    assert len(told) == 1 and newest.name in told[0] and "digest" in told[0]


def product(
    root: Path, start: str = "resume", width: int = 4, task=None, code=CODE, parents=(), **plan
) -> None:
    """Train the toy as a product."""
    plan = replace(SETTINGS, **plan)
    training.train_product(
        root, "runs/line", "train line", {"width": width, "training": asdict(plan)}, parents,
        code, lambda device: (task or Line(), plan), start,
    )  # fmt: skip


def parent(root: Path, seed: int) -> None:
    """Make, or make again, the product that the toy's training starts from."""
    made = record.begin(root, "prepared", "prepare", {"seed": seed}, (), ("space",))
    if not made.done:
        made.finish()


def test_t04_all_damaged_is_refused_and_scratch_keeps_them_aside(tmp_path):
    """Claim: it never starts from zero in silence; every file is listed with its reason (G2)."""
    with pytest.raises(KeyboardInterrupt):
        product(tmp_path, task=Line(stop_at=5))
    damaged = checkpoints.listed(tmp_path / "runs/line")
    for path in damaged:
        damage(path, "30 %")
    with pytest.raises(BadInput, match="E-CHECKPOINT.*--start scratch") as caught:
        product(tmp_path)
    assert damaged and all(path.name in str(caught.value) for path in damaged)
    product(tmp_path, "scratch")
    kept = checkpoints.listed(tmp_path / "runs/line-aside-1")
    assert [path.name for path in kept] == [path.name for path in damaged]
    assert checkpoints.newest(tmp_path / "runs/line")["seen"] == 24


def test_t05_a_signal_saves_and_every_process_ends_with_75(jobs):
    """Claim: USR1 to shell, launcher or rank saves within 60 s and leaves a marker (G8)."""
    for name in ("two", "four"):
        assert jobs[name]["code"] == distributed.STOPPED, jobs[name]["said"]
        assert "stopped and saved after" in jobs[name]["last"]
    assert jobs["marker"] == {"step": 10, "seen": 40} | {"save_s": jobs["marker"]["save_s"]}
    assert jobs["shell"]["code"] == 0 and jobs["shell"]["after"] < 60, jobs["shell"]["said"]
    assert (jobs["folder"] / "requeued").read_text() == "requeue 7\n"
    marker = json.loads((jobs["folder"] / "endless" / checkpoints.MARKER).read_text())
    assert checkpoints.newest(jobs["folder"] / "endless")["seen"] == marker["seen"]
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(jobs["folder"]) not in listed, "a process was left behind"


@pytest.mark.parametrize("case, wanted", {
    "features stopped": (0, True), "features stopped, an outdated run": (0, True),
    "an old marker": (1, False), "no checkpoint": (1, False), "an error": (3, False),
    "done": (0, False),
}.items())  # fmt: skip
def test_t05_the_job_finds_whichever_run_stopped(tmp_path, case, wanted):
    """Claim: a job is requeued for a marker of this start in any run with a checkpoint."""
    runs, (code, requeued) = tmp_path / "runs", wanted
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text('#!/bin/bash\necho "$@" > "$DSNB_DATA/requeued"\n')
    (tmp_path / "bin/scontrol").chmod(0o755)
    for name in ("features", "vae"):
        (runs / name).mkdir(parents=True)
    (runs / "features/seen-8.pt").touch()
    if case == "no checkpoint":
        (runs / "features/seen-8.pt").unlink()
    if "outdated" in case:
        (runs / "vae/product.json").touch()
        os.utime(runs / "vae/product.json", (1, 1))
    if "old" in case:
        (runs / "features/requeue").touch()
        os.utime(runs / "features/requeue", (1, 1))
    stops, ends = f"touch {runs}/features/requeue; exit 75", f"touch {runs}/vae/product.json"
    does = {"an old marker": "exit 75", "an error": "exit 3", "done": ends}.get(case, stops)
    script = f'set -euo pipefail; source {ROOT}/hpc_jobs/walltime.sh; until_walltime "$@"'
    words = ["bash", "-c", script, "job", str(runs / "vae"), "bash", "-c", does]
    own = {"DSNB_DATA": str(tmp_path), "SLURM_JOB_ID": "7"}
    own["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    ended = subprocess.run(words, env=environment() | own, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    assert (tmp_path / "requeued").is_file() == requeued


def test_t05_a_signal_before_the_first_step_is_heard(tmp_path, monkeypatch):
    """Claim: USR1 while a job still builds its task saves after one step, and kills nobody."""
    before, task = signal.getsignal(signal.SIGUSR1), Line()
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    def build(device):
        assert signal.getsignal(signal.SIGUSR1) != before  # it would end this process
        os.kill(os.getpid(), signal.SIGUSR1)
        return task, SETTINGS

    with pytest.raises(training.Stopped):
        training.train_product(tmp_path, "runs/line", "train line", {}, (), CODE, build)
    assert len(task.loaded) == 1 and checkpoints.newest(tmp_path / "runs/line")["seen"] == 4
    assert signal.getsignal(signal.SIGUSR1) == before and not distributed.early


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_t05_one_process_stops_saves_and_goes_on_bit_for_bit(tmp_path, monkeypatch, number):
    """Claim: a stop changes no number; handlers are given back; the marker goes at the resume."""
    before, whole = signal.getsignal(number), trained(tmp_path / "whole")
    task = ranks.Eventful(lambda: os.kill(os.getpid(), number), rank=0, at=3)
    with pytest.raises(training.Stopped):
        trained(tmp_path / "run", task, replace(SETTINGS, checkpoint_every=100))
    assert signal.getsignal(number) == before and (tmp_path / "run/requeue").is_file()
    settings = replace(SETTINGS, checkpoint_every=100)
    assert checkpoints.identical(whole["ema"], trained(tmp_path / "run", settings=settings)["ema"])
    assert not (tmp_path / "run/requeue").exists()

    def stop(command):
        raise training.Stopped("saved")

    monkeypatch.setattr(command_line, "run", stop)
    monkeypatch.setattr(sys, "argv", ["dsnb", "train", "vae"])
    assert command_line.main() == 75


def test_t06_a_cut_save_leaves_the_periodic_one_and_said_what_is_lost(jobs):
    """Claim: TERM with a grace shorter than the save loses what was said, and no more."""
    assert jobs["cut"]["code"] == -signal.SIGKILL
    assert "SIGTERM: saving after step 6; 8 volumes would be lost" in jobs["cut"]["said"]
    run = jobs["folder"] / "slow_save"
    assert checkpoints.newest(run)["seen"] == 16 and not (run / checkpoints.MARKER).exists()


def test_t06_a_resume_says_what_was_lost(tmp_path, monkeypatch):
    """Claim: volumes of the log behind the checkpoint are counted and trained again."""
    said = []
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", Line(stop_at=3))
    monkeypatch.setattr(record, "say", said.append)
    trained(tmp_path / "run")
    assert "goes on after 8 of 24 volumes; 4 later ones are trained again" in " ".join(said)


def test_t06_a_checkpoint_is_due_by_the_clock_too(tmp_path):
    """Claim: a cluster that never warns loses minutes, not `checkpoint_every` volumes."""
    settings = replace(SETTINGS, checkpoint_every=1000, checkpoint_minutes=0.0)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", Line(stop_at=5), settings)
    assert checkpoints.newest(tmp_path / "run")["seen"] == 20
    assert training.read_stats(tmp_path / "run")["save_s"].dropna().gt(0).all()


def test_t07_the_cause_is_the_last_line(jobs):
    """Claim: rank, host, step, subjects and exception stand last; all end in time (G6)."""
    job = jobs["fails"]
    assert job["code"] == 1 and waited(job, jobs["folder"] / "fails") < 30, job["said"]
    host = re.escape(socket.gethostname())
    wanted = rf"dsnb: rank 1 of 3 on {host}: step 6, loading \[sub-\d+, sub-\d+\]: "
    assert re.fullmatch(wanted + "RuntimeError: scan 17 is broken", job["last"]), job["last"]
    assert len(log(jobs["folder"] / "fails")) == EVENT - 1


def test_t08_a_killed_rank_is_told_from_a_failed_one(jobs):
    """Claim: signal 9 is named as memory, with host and peak; what was saved stays (G1, G6)."""
    job = jobs["killed"]
    assert job["code"] == 1 and waited(job, jobs["folder"] / "killed") < 30, job["said"]
    assert "rank 1 was killed by signal 9, probably out of memory" in job["last"]
    found = re.search(
        rf"host {re.escape(socket.gethostname())}, .*peak memory (\d+) MiB", job["last"]
    )
    assert found and 50 < int(found[1]) < 5000
    assert checkpoints.newest(jobs["folder"] / "killed")["seen"] == 16


def test_t09_who_did_not_arrive_is_named(jobs):
    """Claim: a sleeping rank ends the job within patience + 30 s, by name and subjects (G6)."""
    job = jobs["hangs"]
    assert job["code"] == 1 and waited(job, jobs["folder"] / "hangs") < PATIENCE_S + 30, job["said"]
    host = re.escape(socket.gethostname())
    wanted = rf"did not arrive: rank 1 \(host {host}, step 6, loading \[sub-\d+, sub-\d+\]\)$"
    assert re.search(wanted, job["last"]), job["last"]


@pytest.mark.fault
def test_t09_a_frozen_process_is_named_too(tmp_path):
    """Claim: a rank that cannot even run a thread (SIGSTOP) is missed by the others (G6)."""
    job = launched(tmp_path, 2, "freezes")
    # torchrun gives a process that does not answer 30 s, then kills it.
    assert job["code"] == 1 and waited(job, tmp_path / "freezes") < PATIENCE_S + 45, job["said"]
    assert "did not arrive: rank 1" in job["last"] and "no sign of life" in job["last"]


@pytest.mark.parametrize("silent, wanted", [
    ([], "did not arrive: rank 2 (host a, step 4, loading)"),
    ([0], "rank 0 (host a, step 5, backward, no sign of life)"),
])  # fmt: skip
def test_t09_the_verdict_from_notes(silent, wanted):
    """Claim: behind all others, or without a sign of life, is who did not arrive; no one else."""
    watch = Watch(ranks=distributed.Ranks(1, 3, 1, torch.device("cpu"), False), patience_s=8)
    steps = {0: (5, 3, "backward"), 1: (5, 3, "backward"), 2: (4, 2, "loading")}
    if silent:
        steps[2] = steps[1]
    notes = {
        rank: {"step": step, "turn": turn, "doing": doing, "host": "a", "subjects": []}
        for rank, (step, turn, doing) in steps.items()
    }
    now = time.monotonic()
    watch._asked = now
    watch._heard = {rank: (now - 9 * (rank in silent), notes[rank]) for rank in (0, 2)}
    places = {rank: (note["step"], note["turn"]) for rank, note in notes.items()}
    said = watch._verdict(notes, places, 9.0)
    assert wanted in said and said.count("rank") == 1


def test_t10_unequal_ranks_are_refused_before_the_first_step(jobs):
    """Claim: counts that differ are told by rank; nothing was trained."""
    for rank in (0, 1):
        said = (jobs["folder"] / "unequal" / f"rank-{rank}").read_text()
        assert said.startswith("2 E-UNEQUAL ranks: validation samples is {'rank 0': 10, 'rank 1':")
    assert not (jobs["folder"] / "unequal/stats.jsonl").exists()


def test_t11_not_finite_on_one_rank_is_skipped_by_all(jobs):
    """Claim: two ranks skip what one process would, count it and name the subjects (G7)."""
    one = trained(jobs["folder"] / "not_finite_one", Line(bad=[7]))
    two = checkpoints.newest(jobs["folder"] / "not_finite")
    assert one["skipped"] == two["skipped"] > 0
    stats = [log(jobs["folder"] / name) for name in ("not_finite_one", "not_finite")]
    assert stats[0]["skipped_rows"].equals(stats[1]["skipped_rows"])
    assert all("sub-007" in names for names in stats[1]["skipped_names"].dropna())


def test_t12_five_in_a_row_stop_and_name_the_last_finite_checkpoint(tmp_path):
    """Claim: the refusal names subjects and file; that file is finite (G7)."""
    settings = replace(SETTINGS, volumes=400)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", Line(stop_at=4), settings)
    with pytest.raises(BadInput, match="E-DIVERGED.*sub-0") as caught:
        trained(tmp_path / "run", Line(bad=range(10)), settings)
    newest = checkpoints.listed(tmp_path / "run")[0]
    assert newest.name in str(caught.value)
    assert all(torch.isfinite(w).all() for w in checkpoints.load(newest)["model"].values())


def test_t12_weights_that_are_not_finite_are_never_written(tmp_path):
    """Claim: whatever slips through the guard does not replace a finite checkpoint (G7)."""
    checkpoints.save(tmp_path, "seen", payload(8))
    bad = payload(16)
    bad["ema"] = {"w": torch.tensor([1.0, float("inf")])}
    with pytest.raises(BadInput, match="E-NONFINITE.*ema.w"):
        checkpoints.save(tmp_path, "seen", bad)
    assert [path.name[:14] for path in tmp_path.iterdir()] == ["seen-000000008"]


def test_t13_a_disk_that_fills_leaves_the_old_checkpoint(tmp_path):
    """Claim: a write cut by the system says path, needed and free bytes; no leftovers (G10)."""
    checkpoints.save(tmp_path, "seen", payload(8))
    before = sorted(tmp_path.iterdir())

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoints.save(tmp_path, "seen", payload(16))
        except BadInput as refusal:
            (tmp_path / "said").write_text(str(refusal))

    os.waitpid(in_a_child(fill), 0)
    said = (tmp_path / "said").read_text()
    assert re.match(rf"E-DISK {tmp_path.name}: free bytes is \d+, expected at least \d+", said)
    assert "intact" in said
    (tmp_path / "said").unlink()
    assert sorted(tmp_path.iterdir()) == before and checkpoints.newest(tmp_path)["seen"] == 8


def test_t14_ranks_may_change_at_every_start(jobs):
    """Claim: 1, 2, 4 and 1 ranks see the same samples a step; loss within 1e-5 over 50 (G4)."""
    folder = jobs["folder"]
    straight, elastic = (log(folder / name) for name in ("straight", "elastic"))
    assert len(straight) == len(elastic) == 50
    assert ((straight["loss"] - elastic["loss"]).abs() / straight["loss"]).max() < 1e-5
    scores = (straight["score"] - elastic["score"]).dropna() / straight["score"].dropna()
    assert len(scores) == 5 and scores.abs().max() < 1e-5
    worlds = set()
    steps: dict[int, list] = {}
    for path in sorted(folder.glob("ids-*")):
        worlds.add(path.name.split("-")[1])
        for line in path.read_text().splitlines():
            step, *rows = map(int, line.split())
            steps.setdefault(step, []).extend(rows)
    for step, rows in steps.items():
        wanted = distributed.ordered_rows(10, ELASTIC.seed, 4 * step, 4)
        assert rows == wanted.tolist()
    assert worlds == {"1", "2", "4"} and len(steps) == 50
    assert "global batch 4 = 4 ranks x 1 micro-batches x 1" in jobs["four"]["said"]


@pytest.mark.parametrize("name", ["2", "4"])
def test_t14_many_ranks_train_as_one_and_leave_the_same_files(jobs, name):
    """Claim: 40 steps within 1e-6 of one process (G5), and rank 0 alone writes (G9)."""
    one, many = jobs["folder"] / "one", jobs["folder"] / "parity" / name
    losses = log(one)["loss"], log(many)["loss"]
    assert len(losses[0]) == 40 and ((losses[0] - losses[1]).abs() / losses[0]).max() < 1e-6
    kinds = [sorted(path.name[:14] for path in run.iterdir()) for run in (one, many)]
    assert kinds[0] == kinds[1]


def test_t15_other_settings_are_refused_by_their_keys(tmp_path):
    """Claim: a changed width names the key, shows no tensors, and the old run stays."""
    with pytest.raises(KeyboardInterrupt):
        product(tmp_path, task=Line(stop_at=5))
    with pytest.raises(BadInput, match=r"E-RESUME line: settings is \['settings.width'\]"):
        product(tmp_path, width=8)
    assert checkpoints.newest(tmp_path / "runs/line")["seen"] == 16
    product(tmp_path, "weights", width=8)
    weights = [checkpoints.newest(tmp_path / f"runs/line{end}") for end in ("-aside-1", "")]
    assert [w["seen"] for w in weights] == [16, 24] and weights[1]["step"] == 6


CHANGES = {
    "code": ({"code": ("space",)}, 1, r"E-RESUME line: code is \['code'\].*--start weights"),
    "parents": ({}, 2, r"E-RESUME line: parents is \['parents.prepared'\].*--start scratch"),
    "settings": ({"width": 8}, 1, r"E-RESUME line: settings is \['settings.width'\]"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_t15_an_unfinished_run_outlives_any_change(tmp_path, what):
    """Claim: changed code, parents or settings are named, and no checkpoint of a run is removed."""
    given, seed, wanted = CHANGES[what]
    parent(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        product(tmp_path, task=Line(stop_at=5), parents=("prepared",))
    before = sorted((tmp_path / "runs/line").iterdir())
    parent(tmp_path, seed)
    with pytest.raises(BadInput, match=wanted):
        product(tmp_path, parents=("prepared",), **given)
    assert sorted((tmp_path / "runs/line").iterdir()) == before
    product(tmp_path, "scratch", parents=("prepared",), **given)
    assert checkpoints.newest(tmp_path / "runs/line-aside-1")["seen"] == 16
    assert checkpoints.newest(tmp_path / "runs/line")["seen"] == 24


@pytest.mark.parametrize("what", CHANGES)
def test_t15_a_finished_run_is_kept_when_outdated(tmp_path, capsys, what):
    """Claim: the study goes on by itself, the newest outdated run stays, those asked for, too."""
    given, seed, _ = CHANGES[what]
    parent(tmp_path, 1)
    product(tmp_path, parents=("prepared",))
    product(tmp_path, "scratch", parents=("prepared",), seed=4)
    first = checkpoints.newest(tmp_path / "runs/line")
    parent(tmp_path, seed)
    product(tmp_path, parents=("prepared",), seed=4, **given)
    assert checkpoints.identical(first, checkpoints.newest(tmp_path / "runs/line-outdated"))
    assert "line: the outdated run is kept, in place of any earlier one, in line-outdated" in (
        capsys.readouterr().err
    )
    product(tmp_path, parents=("prepared",), seed=5, **given)
    product(tmp_path, parents=("prepared",), seed=6, **given)
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["line", "line-aside-1", "line-outdated"]
    kept = [checkpoints.newest(tmp_path / "runs" / name)["identity"] for name in names]
    assert [note["settings"]["training"]["seed"] for note in kept] == [6, 3, 5]


def test_t15_a_finished_run_with_a_damaged_file_keeps_its_checkpoints(tmp_path):
    """Claim: a stray edit of a finished run makes it again, and removes nothing."""
    product(tmp_path)
    (tmp_path / "runs/line/stats.jsonl").write_text("edited\n")
    product(tmp_path)
    assert checkpoints.newest(tmp_path / "runs/line-outdated")["seen"] == 24


def test_t15_a_run_is_set_aside_under_the_first_free_name(tmp_path):
    """Claim: a deleted `-aside-1` beside an `-aside-2` neither fails nor overwrites."""
    (tmp_path / "line-aside-2").mkdir()
    for number in (1, 3):
        (tmp_path / "line").mkdir()
        assert checkpoints.set_aside(tmp_path / "line").name == f"line-aside-{number}"


def test_t15_a_requeued_job_never_starts_over(tmp_path, monkeypatch):
    """Claim: `--start scratch` in a job file does not throw away what the job did before."""
    with pytest.raises(KeyboardInterrupt):
        product(tmp_path, "scratch", task=Line(stop_at=5))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    task = Line()
    product(tmp_path, "scratch", task=task)
    assert len(task.loaded) == 2


@pytest.mark.parametrize("start", ["scratch", "weights"])
def test_t15_a_start_that_a_signal_stopped_goes_on_when_given_again(tmp_path, capsys, start):
    """Claim: the same command after exit 75 resumes and says so, until its marker is removed."""
    product(tmp_path)
    stop = ranks.Eventful(lambda: os.kill(os.getpid(), signal.SIGUSR1), rank=0, at=2)
    with pytest.raises(training.Stopped):
        product(tmp_path, start, task=stop)
    task = Line()
    product(tmp_path, start, task=task)
    assert len(task.loaded) == 4 and len(list((tmp_path / "runs").iterdir())) == 2
    assert f"goes on in spite of --start {start}; remove requeue" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["another run", "no marker"])
def test_t15_a_marker_never_bars_the_way_out(tmp_path, way):
    """Claim: a stop of other code, or one whose marker was removed, does not undo --start."""
    stop = ranks.Eventful(lambda: os.kill(os.getpid(), signal.SIGUSR1), rank=0, at=2)
    with pytest.raises(training.Stopped):
        product(tmp_path, task=stop)
    if way == "no marker":
        (tmp_path / "runs/line" / checkpoints.MARKER).unlink()
    task = Line()
    product(tmp_path, "scratch", task=task, code=("space",) if way == "another run" else CODE)
    assert len(task.loaded) == 6 and (tmp_path / "runs/line-aside-1").is_dir()


def test_t15_settings_that_change_no_number_may_change(tmp_path):
    """Claim: a resume takes what guides tell to change; a finished run is not made again."""
    product(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        product(tmp_path, task=Line(stop_at=5))
    task, others = Line(), {"checkpoint_every": 4, "accumulate": 2, "patience_s": 99.0}
    product(tmp_path, task=task, checkpoint_minutes=1.0, **others)
    assert len(task.loaded) == 4  # two steps of two micro-batches
    losses = [log(root / "runs/line")["loss"] for root in (tmp_path, tmp_path / "whole")]
    assert losses[0].to_numpy() == pytest.approx(losses[1].to_numpy(), rel=1e-5)
    product(tmp_path, task=task)
    assert len(task.loaded) == 4


def test_t16_the_same_job_twice_is_refused_by_name(tmp_path, monkeypatch):
    """Claim: the lock tells job, host, process and since when; `begin` clears nothing (G9)."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    run = tmp_path / "runs/line"
    product(tmp_path)
    wanted = (
        rf"host {re.escape(socket.gethostname())}, process {os.getpid()}, Slurm job 4711, since 2"
    )
    with record.locked(run):
        with pytest.raises(BadInput, match="E-LOCKED.*" + wanted):
            trained(run)
        with pytest.raises(BadInput, match="E-LOCKED.*" + wanted):
            product(tmp_path, width=8)
    assert (run / "product.json").is_file()


def test_t16_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    """Claim: no locks means a sentence with the cure, for run folder and product alike."""

    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(record.files.fcntl, "flock", refuse)
    with pytest.raises(BadInput, match="E-LOCK .*Lustre"):
        trained(tmp_path)
    with pytest.raises(BadInput, match="E-LOCK .*Lustre"):
        product(tmp_path)


@pytest.mark.parametrize("part", ["ema", "optimizer", "step", "seen", "best", "model", "identity"])
def test_t17_a_missing_part_is_named(tmp_path, part):
    """Claim: no resume from half a checkpoint; the way to take its weights is told."""
    whole = trained(tmp_path / "run")
    state = training.State(Line(), SETTINGS, IDENTITY, one := distributed.start())
    distributed.stop(one)
    half = {name: value for name, value in whole.items() if name != part}
    with pytest.raises(BadInput, match=rf"E-CHECKPOINT.*without \['{part}'\].*--start weights"):
        state.restore(tmp_path / "run", half)


@pytest.mark.parametrize("part", ["ema", "model", "optimizer", "identity"])
def test_t17_the_weights_that_are_left_are_a_start(tmp_path, capsys, part):
    """Claim: the way out that the refusal tells works, from whatever weights are there."""
    run = tmp_path / "runs/line"
    with pytest.raises(KeyboardInterrupt):
        product(tmp_path, task=Line(stop_at=5))
    whole = checkpoints.newest(run)
    half = {name: value for name, value in whole.items() if name != part}
    for path in checkpoints.listed(run):
        path.unlink()
    torch.save(half, run / "aside.pt")
    (run / "aside.pt").rename(run / f"seen-000000016-{record.digest(run / 'aside.pt')}.pt")
    with pytest.raises(BadInput, match="E-CHECKPOINT.*--start weights"):
        product(tmp_path)
    task = Line()
    with pytest.raises(KeyboardInterrupt):
        task.stop_at = 0
        product(tmp_path, "weights", task=task)
    start = whole["ema" if part == "model" else "model"]["weight"]
    assert torch.equal(task.model.weight, start)
    assert ("the other ones are taken" in capsys.readouterr().err) == (part in ("ema", "model"))


def test_t17_weights_of_other_people_are_no_start(tmp_path):
    """Claim: weights may not carry people into a split that holds them out."""
    parent(tmp_path, 1)
    product(tmp_path, parents=("prepared",))
    parent(tmp_path, 2)
    with pytest.raises(BadInput, match="E-RESUME.*parents") as caught:
        product(tmp_path, "weights", parents=("prepared",))
    assert "--start weights" not in str(caught.value)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["line"]


@pytest.mark.parametrize("requeued", [False, True])
def test_t17_a_start_from_weights_outlives_a_kill(tmp_path, monkeypatch, requeued):
    """Claim: a kill before the first checkpoint does not turn it into a start from zero."""
    product(tmp_path)
    kept = checkpoints.newest(tmp_path / "runs/line")["model"]
    with pytest.raises(KeyboardInterrupt):
        product(tmp_path, "weights", task=Line(stop_at=0), volumes=40)
    if requeued:
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    task = Line(stop_at=0)
    with pytest.raises(KeyboardInterrupt):
        product(tmp_path, "weights" if requeued else "resume", task=task, volumes=40)
    assert torch.equal(task.model.weight, kept["weight"])


@pytest.mark.parametrize("kind", ["another shape", "none"])
def test_t17_weights_are_checked_before_the_run_is_moved(tmp_path, kind):
    """Claim: weights that cannot be taken are refused with the old run still in its place."""
    run = tmp_path / "runs/line"
    with pytest.raises(KeyboardInterrupt):
        product(tmp_path, task=Line(stop_at=5 if kind == "another shape" else 0))
    task = Line()
    task.model = torch.nn.Linear(7, 1)
    with pytest.raises(BadInput, match="E-WEIGHTS.*1 of 2" if kind != "none" else "E-MISSING"):
        product(tmp_path, "weights", task=task)
    assert [path.name for path in run.parent.iterdir()] == ["line"] and list(run.iterdir())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_t18_prefixes_are_taken_off_and_strangers_refused(tmp_path, prefix):
    """Claim: weights of DDP and torch.compile fit; none that fit, or another shape, is an error."""
    task, whole = Line(), trained(tmp_path / "run")
    state = training.State(task, SETTINGS, IDENTITY, one := distributed.start())
    distributed.stop(one)
    for part in ("model", "ema"):
        whole[part] = {prefix + name: weight for name, weight in whole[part].items()}
    state.restore(tmp_path / "run", whole)
    assert torch.equal(task.model.weight, whole["model"][prefix + "weight"])
    for strange in ({"other": torch.ones(1)}, {"weight": torch.ones(1, 7), "bias": torch.ones(1)}):
        with pytest.raises(BadInput, match="E-WEIGHTS.*[01] of 2 fit"):
            state.take_weights(tmp_path, {"model": strange, "ema": strange})


T19 = {
    "E-MASTER": (["--nnodes=2", "train", "vae"], {}),
    "E-PORT": (["--nnodes=2", "--master-addr=localhost", "--master-port=PORT", "train", "vae"], {}),
    "E-DEVICE": (["train", "vae"], {"DSNB_DEVICE": "cuda"}),
    "E-RANKS": (["--nproc-per-node=3", "train", "vae"], {"gpus": 2}),
}


@pytest.mark.parametrize("code", T19)
def test_t19_what_cannot_start_is_one_line_before_anything_is_read(monkeypatch, capsys, code):
    """Claim: no host, a busy port, no GPU, too few GPUs: each is refused with 2 before torchrun."""
    words, given = T19[code]
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: given.get("gpus", 0))
    monkeypatch.setattr(launcher.torchrun, "run", lambda arguments: pytest.fail("it was started"))
    if "DSNB_DEVICE" in given:
        monkeypatch.setenv("DSNB_DEVICE", "cuda")
    with socket.socket() as busy:
        busy.bind(("", 0))
        busy.listen()
        words = [word.replace("PORT", str(busy.getsockname()[1])) for word in words]
        assert launcher.main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith(f"dsnb: {code} launch: ")


def test_t19_a_rank_without_a_host_is_refused(monkeypatch, tmp_path):
    """Claim: a rank that nobody told where the others are says what is missing."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(BadInput, match="E-MASTER launch: MASTER_ADDR is 'absent'"):
        trained(tmp_path)


def test_t19_srun_without_a_launcher_is_refused(monkeypatch, tmp_path):
    """Claim: four tasks of srun do not train four times alone."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(BadInput, match="E-RANKS.*tasks of srun.*is 4.*dsnb.launcher"):
        trained(tmp_path)


def test_t20_a_run_folder_that_vanishes_is_said(tmp_path):
    """Claim: a file system that goes in mid-run ends the training in seconds, in a sentence."""

    class Vanishing(Line):
        def load(self, rows):
            if len(self.loaded) == 2:
                shutil.rmtree(tmp_path / "run")
            return super().load(rows)

    began = time.monotonic()
    with pytest.raises(BadInput, match="E-FOLDER run: this folder is 'gone'"):
        trained(tmp_path / "run", Vanishing())
    assert time.monotonic() - began < 10 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("folder", ["/proc", "/sys"])
def test_t20_a_file_system_that_takes_no_files_is_said(folder):
    """Claim: a data root or run folder that cannot be written is refused in a sentence."""
    for attempt in (lambda: trained(Path(folder)), lambda: product(Path(folder))):
        with pytest.raises(BadInput, match=f"E-FOLDER {folder[1:]}: .*writ"):
            attempt()


@pytest.mark.parametrize("stop_at", [0, 1, 5, 7])
def test_g3_resume_is_exact_in_the_middle_of_accumulation(tmp_path, stop_at):
    """Claim: with two micro-batches a step, a kill between them changes no bit, EMA included."""
    settings = replace(SETTINGS, accumulate=2)
    whole = trained(tmp_path / "whole", settings=settings)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", Line(stop_at=stop_at), settings)
    assert checkpoints.identical(whole, trained(tmp_path / "cut", settings=settings))
    assert log(tmp_path / "whole").equals(log(tmp_path / "cut"))


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_p04_pickles_never_run(tmp_path, monkeypatch):
    """Claim: a payload as checkpoint, array or cache is refused, and its canary is not created."""
    canary = tmp_path / "canary"
    checkpoint = tmp_path / "aside"
    torch.save({"seen": 1, "model": Canary(canary)}, checkpoint)
    checkpoint.rename(tmp_path / f"seen-000000001-{record.digest(checkpoint)}.pt")
    with pytest.raises(BadInput, match="E-CHECKPOINT.*plain tensors"):
        checkpoints.newest(tmp_path)
    monkeypatch.setattr(record, "require", lambda root, product: "key")
    (tmp_path / "prepared").mkdir()
    np.save(tmp_path / "prepared/volumes.npy", np.array([Canary(canary)], dtype=object))
    with pytest.raises(ValueError, match="Python objects"):
        dataset.load_volumes(tmp_path)
    source = "".join(path.read_text() for path in (ROOT / "dsnb").rglob("*.py"))
    assert not re.search(r"allow_pickle=True|weights_only=False|pickle\.load|joblib\.load", source)
    assert not canary.exists()


def test_the_cache_is_one_read_only_map_of_float16(tmp_path, monkeypatch):
    """Claim: ranks of a node share the page cache: nobody copies, nobody can write."""
    monkeypatch.setattr(record, "require", lambda root, product: "key")
    (tmp_path / "prepared").mkdir()
    np.save(tmp_path / "prepared/volumes.npy", np.zeros((2, 3, 3, 3), np.float16))
    volumes = dataset.load_volumes(tmp_path)
    assert isinstance(volumes, np.memmap) and volumes.mode == "r"
    with pytest.raises(ValueError, match="read-only"):
        volumes[0] = 1


def test_the_guide_knows_every_row_and_code_and_quotes_real_words():
    """Claim: a user finds each refusal of a training in the book, in the program's own words."""
    text = (ROOT / "book/guides/faults.md").read_text()
    section = text.split("## Faults of a training")[1]
    names = ("training", "distributed", "checkpoints", "launcher", "record")
    paths = [path for name in names for path in (ROOT / "dsnb").glob(f"{name}*")]
    paths = [file for path in paths for file in ([path] if path.is_file() else path.glob("*.py"))]
    source = "".join(path.read_text() for path in paths)
    raised = set(re.findall(r'"(E-[A-Z]+)"', source))
    raised -= {"E-MISSING", "E-DAMAGED", "E-STALE", "E-FOREIGN", "E-ROOT"}  # of products
    rows = {f"T{row:02d}" for row in range(1, 21)} | {"P04"}
    assert not {name for name in raised | rows if not re.search(rf"\b{name}\b", section)}
    tests = Path(__file__).read_text()
    assert not {row for row in rows if f"def test_{row.lower()}_" not in tests}
    table = section[section.index("| T01") :]
    quoted = [words for words in re.findall(r"`([^`]+)`", table) if "…" in words]
    pieces = [piece.strip() for words in quoted for piece in words.split("…") if piece.strip()]
    unreal = [piece for piece in pieces if piece not in source]
    assert len(pieces) > 10 and not unreal, unreal


def test_t07_the_first_cause_wins_over_what_it_caused():
    """Claim: a hang's verdict or an exception explains a killed rank, which explains lost touch."""

    def told(code, lost=False, moment=1.0):
        extra = {"lost": lost, "moment": moment, "timestamp": "1"}
        return launcher._told({"extraInfo": extra, "errorCode": code, "message": f"{code} {lost}"})

    def died(code):
        failure = launcher.ProcessFailure(0, 1, code, "absent")
        return launcher._story("absent", 0, failure)

    killed, ended, lost = died(-9), died(-15), told(1, lost=True)
    assert launcher._last([lost, killed, ended, told(1)]) == (1, "1 False")
    assert "killed by signal 9" in launcher._last([lost, killed, ended])[1]
    assert launcher._last([killed, told(75), ended, lost])[0] == 75
    assert launcher._last([told(75), told(2, moment=2.0)])[0] == 2
    assert launcher._last([died(2)])[0] == 2 and launcher._last([died(1)])[0] == 1

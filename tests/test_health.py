"""`dsnb health` names what is wrong with runs that were really made to fail, and nothing else."""

import json
import os
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import test_diffusion
import tiny
import torch

from dsnb import __main__ as command_line
from dsnb import checkpoints, health, training, vae
from dsnb.checks import BadInput
from dsnb.config import Training, replace

GUIDE = Path(__file__).resolve().parent.parent / "book" / "guides" / "health.md"
CPU = torch.device("cpu")
LOUD = 10  # another unit; the first L1 alone would not tell it
STEPS = 40  # in which the tiny VAE learns most of what it can


class Waits(vae.VaeTask):
    """A task whose disk is slow."""

    def load(self, rows):
        time.sleep(0.05)
        return super().load(rows)


class Stops(vae.VaeTask):
    """A task that is killed after its first `STEPS` steps."""

    def load(self, rows):
        self.loaded = getattr(self, "loaded", 0) + 1
        if self.loaded > STEPS:
            raise KeyboardInterrupt
        return super().load(rows)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Train one sound VAE and several that fail, each in its own way; return the run folders."""
    folder, sound = tmp_path_factory.mktemp("health"), tiny.volumes
    root = tiny.make_root(folder / "root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tiny, "volumes", lambda people: (sound(people).astype("f4") * LOUD).astype(np.float16)
        )
        loud = tiny.make_root(folder / "loud_root")

    def train(name: str, where=root, task=vae.VaeTask, vae_fields=None, **fields) -> Path:
        defaults = {"volumes": STEPS * 4, "validate_every": STEPS, "checkpoint_every": 2 * STEPS}
        plan = replace(tiny.STUDY.vae.training, **defaults | fields)
        settings = replace(tiny.STUDY.vae, training=plan, **vae_fields or {})
        run = folder / name
        run.mkdir()
        try:
            training.train(run, task(where, settings, CPU), plan, {"settings": asdict(settings)})
        except KeyboardInterrupt:
            assert task is Stops
        return run

    return {
        "sound": train("sound"),
        "collapsed": train("collapsed", vae_fields={"kl": 1e3, "quiet_start": False}),
        "wrong scale": train("wrong scale", loud),
        "KL diverged": train("KL diverged", vae_fields={"kl": -1e-3, "quiet_start": False}),
        "starved": train("starved", task=Waits, volumes=120),
        "diverged": train("diverged", task=Stops, volumes=40 * STEPS, lr=100.0, warmup=0.0),
    }


def found(run: Path, *levels: str) -> set[str]:
    """Return the findings of these levels."""
    return {row["finding"] for row in health.diagnose(run) if row["level"] in levels}


def write_log(run: Path, count=100, goal=None, age_s=0.0, marker=False, **columns) -> Path:
    """Write a run's log by hand, for what cannot be trained in a second; return the folder."""
    run.mkdir(exist_ok=True)
    plan = asdict(Training(volumes=goal or 2 * count, batch=2, patience_s=600))
    (run / "config.json").write_text(
        json.dumps({"training": plan, "settings": {"residual_scale": 0.15}})
    )
    rows = [{"step": i + 1, "seen": 2 * i + 2, "loss": 1.0, "grad_norm": 0.1, "seconds": 1.0}
            for i in range(count)]  # fmt: skip
    for name, values in columns.items():
        for row, value in zip(rows, values):
            row |= {} if value is None else {name: value}
    (run / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(run / "stats.jsonl", (time.time() - age_s,) * 2)
    if marker:
        (run / checkpoints.MARKER).write_text("{}")
    return run


def memory_mib() -> float:
    """Return the memory of the GPU, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 2**20
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20


def quarters(*scores: float) -> list[float | None]:
    """Return a column with a validation after each quarter of a hundred steps."""
    return [scores[i // 25] if i % 25 == 24 else None for i in range(100)]


BAD = [["sub-007", "sub-001"] if i in (4, 40, 60) else None for i in range(400)]
FALLING = {"loss": np.linspace(1, 0.5, 100)}
LOGS = {  # what is written, and which finding it must give
    "stalled": {"goal": 1000, "age_s": 3600},
    "stopped": {"goal": 1000, "age_s": 3600, "marker": True},
    "not finite": {"count": 200, "skipped_names": BAD},
    "rarely not finite": {"count": 400, "skipped_names": BAD},
    "jumped": {"loss": [1.0] * 40 + [9.0] * 20 + [0.9] * 40},
    "mostly idle": {
        "score": quarters(20, 20, 20, 20), "active_share": quarters(0, 0, 0, 0.05),
        "kl_nats": quarters(1, 1, 1, 1),
    },
    "slow saves": {"save_s": [20.0] + [None] * 99},
    "memory nearly full": {"peak_mib": [0.95 * memory_mib()] * 100},
    "always clipped": {"grad_norm": [1.5] * 100},
    "growing gradient": {"grad_norm": np.geomspace(0.01, 0.9, 100)},
    "still learning": {"score": quarters(10, 20, 25, 30)},
    "over-fitted": {"score": quarters(10, 30, 28, 25), **FALLING},
}  # fmt: skip
SOUND = {
    "finished long ago": {"age_s": 1e6},
    "under way": {"goal": 1000, "age_s": 60},
    "flat": {"score": quarters(10, 20, 29.9, 30)},
    "falls with the training": {"score": quarters(10, 30, 28, 25), "loss": [1.0] * 100},
    "KL rises with its weight": {"l1": [0.1] * 100, "loss": np.linspace(1, 9, 100)},
    "some saves": {"save_s": [5.0] + [None] * 99},
    "units wake up": {"active_share": quarters(0, 0.5, 0.5, 0.5), "score": quarters(9, 9, 9, 9)},
    "too early": {
        "active_share": quarters(0, 0, 0, 0),
        "score": quarters(9, 9, 9, 9),
        "goal": 9999,
    },
    "no score is finite": {"score": [None] * 100, "grad_norm": [0.1] * 100},
}
FAILED = ["collapsed", "wrong scale", "KL diverged", "starved"]


@pytest.mark.parametrize("name", FAILED)
def test_a_run_made_to_fail_is_named_and_only_that(runs, name):
    """Claim: each failure is `wrong` by its own finding, and no other one sends users astray."""
    assert found(runs[name], "wrong") == {name}
    lights = {row["check"]: row["level"] for row in health.diagnose(runs[name])}
    assert lights["rate"] == lights["length"] == "none", "they would only follow from it"


def test_a_diverging_run_is_named(runs):
    """Claim: a rate ten thousand times too high is `wrong`; collapse and scale are not blamed."""
    names = found(runs["diverged"], "wrong")
    assert "diverged" in names and names <= {"diverged", "KL diverged"}


def test_a_sound_run_has_nothing_wrong(runs):
    """Claim: no alarm without a cause."""
    rows = health.diagnose(runs["sound"])
    assert not found(runs["sound"], "wrong", "none")
    assert [row["check"] for row in rows] == [*health.CAUSES, *health.EFFECTS]


def test_a_damaged_best_hides_no_whole_checkpoint(runs, tmp_path):
    """Claim: what a run left is read from its newest whole checkpoint, whatever became of best."""
    run = tmp_path / "run"
    shutil.copytree(runs["sound"], run)
    checkpoints.listed(run, "best")[0].write_bytes(b"gone")
    assert health.diagnose(run)[1:] == health.diagnose(runs["sound"])[1:]  # but for its age


def test_what_is_seen_are_the_runs_own_numbers(runs):
    """Claim: the report's numbers are those of the log and the checkpoint, in their units."""
    rows = {row["check"]: row["seen"] for row in health.diagnose(runs["starved"])}
    stats = training.read_stats(runs["starved"])[3:]
    share = stats["load_s"].sum() / stats["seconds"].sum()
    assert f"{share:.0%} of a step" in rows["loader"]
    assert f"{1 / (1 - share):.1f} times" in rows["loader"]
    last = training.read_stats(runs["sound"]).iloc[-1]
    rows = {row["check"]: row["seen"] for row in health.diagnose(runs["sound"])}
    assert f"KL {last['kl_nats'] / 128:.2g} nats a latent element" in rows["posterior"]  # 2 x 4^3
    assert f"{last['active_share']:.1%}" in rows["latent"]


def test_components_of_another_scale_are_named(tmp_path):
    """Claim: a flow whose components have SD 5 is told from one whose have 1, and how far off."""
    for factor, names in ((1, set()), (5, {"wrong scale"})):
        task, run = test_diffusion.make_task(), tmp_path / str(factor)
        run.mkdir()
        task.data = (task.data[0] * factor, task.data[1])
        plan = replace(test_diffusion.SETTINGS.training, volumes=64 * 30, lr=1e-4)
        training.train(run, task, plan, {"settings": asdict(test_diffusion.SETTINGS)})
        assert found(run, "wrong") == names
        said = next(row["seen"] for row in health.diagnose(run) if row["check"] == "scale")
        sd = float(re.search(r"SD is ([\d.]+)", said)[1])
        assert sd == pytest.approx(factor, rel=0.15)


def test_the_scale_shows_before_the_first_checkpoint(tmp_path):
    """Claim: the first L1, in the unit of the network, tells scans that are too loud or too low."""
    for level, names in ((0.1, set()), (10.0, {"wrong scale"}), (0.001, {"wrong scale"})):
        assert found(write_log(tmp_path / "run", l1=[level] * 100), "wrong", "look") == names


@pytest.mark.parametrize("name", LOGS)
def test_a_log_is_named_for_what_it_shows(tmp_path, name):
    """Claim: each finding comes from its own figures, alone, at the level the table gives it."""
    run = write_log(tmp_path / "run", **LOGS[name])
    assert found(run, "wrong", "look") == {name}
    assert found(run, health.ADVICE[name][0]) == {name}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_no_fault_is_not_named(tmp_path, name):
    """Claim: long done, or under way, or a loss that rises on purpose is no fault."""
    columns = {"kl_nats": quarters(1, 1, 1, 1)} if "active_share" in SOUND[name] else {}
    assert not found(write_log(tmp_path / "run", **SOUND[name], **columns), "wrong", "look")


def test_steps_that_are_not_finite_are_counted_with_their_people(tmp_path):
    """Claim: the count, the share and the people are the log's; a run that ended so is wrong."""
    row = health.diagnose(write_log(tmp_path / "few", **LOGS["rarely not finite"]))[1]
    assert row["seen"].startswith("3 of 400 steps (0.8%)") and "sub-007 (3 times)" in row["seen"]
    last = [None] * 399 + [["sub-007"]]
    assert found(write_log(tmp_path / "end", 400, skipped_names=last), "wrong") == {"not finite"}


@pytest.mark.parametrize("name, code, told", [("sound", 0, "0 wrong"), ("collapsed", 2, "1 wrong")])
def test_the_verb_prints_the_report_and_its_exit_code_counts(runs, capsys, name, code, told):
    """Claim: a script stops at 2, and a run is found by path, or by name under the data root."""
    words = command_line.parse(["health", name, "--data-root", str(runs[name].parent)])
    assert command_line.run(words) == code
    said = capsys.readouterr().out
    assert told in said and ("Lower kl a hundredfold" in said) is bool(code)
    assert str(runs[name]) not in said
    assert command_line.run(command_line.parse(["health", str(runs[name])])) == code


@pytest.mark.parametrize(
    "spoil, code",
    [("absent", "E-RUN"), ("", "E-LOG"), ('{"step": 1, "se', "E-LOG")],
)
def test_a_folder_without_a_whole_log_is_refused(tmp_path, spoil, code):
    """Claim: no report is made of nothing."""
    run = write_log(tmp_path / "run")
    if spoil != "absent":
        (run / "stats.jsonl").write_text(spoil)
    name = spoil if spoil == "absent" else "run"
    with pytest.raises(BadInput, match=code):
        health.diagnose(health.find(name, tmp_path))


def without_numbers(text: str) -> str:
    return re.sub(r"[-+]?\d[\d.]*(e[-+]\d+)?", "#", text)


def test_the_guides_messages_are_real(runs, tmp_path):
    """Claim: the book knows every finding, and says of it what the program says."""
    rows = re.findall(r"^\| ([^|]+) \| `([^`]+)` \| ([^|]+) \|$", GUIDE.read_text(), re.M)
    told = {said.split(":")[0]: (said, fix) for _, said, fix in rows}
    assert set(told) == set(health.ADVICE) and len(rows) == len(told)
    for name, (_, _, fix) in health.ADVICE.items():
        assert told[name][1] == fix, name
    known = {name: runs[name] for name in (*FAILED, "diverged")}
    known |= {name: write_log(tmp_path / name, **columns) for name, columns in LOGS.items()}
    assert set(known) == set(told)
    for name, run in known.items():
        row = next(row for row in health.diagnose(run) if row["finding"] == name)
        assert without_numbers(told[name][0]) == without_numbers(f"{name}: {row['seen']}")

"""The whole walk at `smoke`: ten stages to a book, again in seconds, and on real scans."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dsnb import record

DSNB = [sys.executable, "-m", "dsnb"]


def dsnb(*words: str, timeout: float = 900) -> subprocess.CompletedProcess:
    """Run one command line."""
    return subprocess.run([*DSNB, *words], capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Path:
    """Run the smoke study on the phantom once; return its data root."""
    root = tmp_path_factory.mktemp("walk")
    answer = dsnb("study", "--preset", "smoke", "--data-root", str(root))
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    return root


def test_ten_stages_write_their_numbers_and_the_book(walked):
    """No stage is missing, every null has its reason, and the book stands."""
    for stage in record.STAGES:
        results = record.read_results(walked, stage)
        assert set(record.HEADLINE[stage].split()) <= set(results["headline"])
        assert (results["preset"], results["data"]) == ("smoke", "phantom")
        for key, value in results["headline"].items():
            assert value is not None or results["tables"]["reasons"][key]
        assert (walked / "book/_build/html/executed" / f"{stage}.html").is_file()


def test_the_digest_chain_is_whole(walked):
    """S07: every product was made from the parents that lie beside it."""
    models = ("runs/vae", "runs/diffusion", "runs/search", "runs/scaling")
    for name in ("cohort", "prepared", "latents", "deformation", "maps", "synthetic", *models):
        assert record.require(walked, name)


def test_a_second_study_takes_seconds_and_says_what_it_skipped(walked):
    """Nothing changed, nothing is done again."""
    started = time.monotonic()
    answer = dsnb("study", "--preset", "smoke", "--data-root", str(walked))
    assert answer.returncode == 0 and time.monotonic() - started < 60
    for stage in (*record.STAGES, "book"):
        assert f"{stage}: nothing changed, skipped" in answer.stdout


def test_no_page_names_this_machine(walked):
    """P03: neither an executed page nor the built book holds a path of the data root."""
    places = [*(walked / "pages").glob("*.ipynb"), *(walked / "book/_build/html").rglob("*.html")]
    assert len(places) > 20
    assert not [path.name for path in places if str(walked) in path.read_text()]


def test_a_notebook_alone_names_the_stage_that_makes_its_input(tmp_path):
    """A missing input is answered with the stage to run first."""
    command = ["papermill", "notebooks/05_anomaly.ipynb", str(tmp_path / "out.ipynb")]
    words = ["-p", "preset", "smoke", "-p", "data_root", str(tmp_path / "root")]
    place = Path(__file__).resolve().parents[1]
    answer = subprocess.run(
        [sys.executable, "-m", *command, *words], capture_output=True, text=True, cwd=place
    )
    assert answer.returncode != 0
    assert "E-MISSING" in answer.stderr and "run stage" in answer.stderr


def test_a_killed_cohort_goes_on(tmp_path):
    """SIGKILL half-way: what was written stays, the same command finishes the rest.

    A visit's recorded scan comes last and its sidecar after it: what has none is not written yet.
    """
    words = ["phantom", "--preset", "smoke", "--data-root", str(tmp_path)]
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen([*DSNB, *words], stderr=log, start_new_session=True)
    scans = tmp_path / "raw"
    deadline = time.monotonic() + 120
    while len(list(scans.glob("sub-*/**/*_T1w.json"))) < 6:
        assert child.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    written = [path.with_suffix(".nii.gz") for path in scans.glob("sub-*/**/*_T1w.json")]
    kept = {path: path.stat().st_mtime_ns for path in written}
    assert not (scans / "product.json").exists()
    answer = dsnb(*words)
    assert answer.returncode == 0 and "unfinished raw goes on" in answer.stderr
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert record.require(tmp_path, "raw")


def write_bids(folder: Path, people: int = 2, table: bool = True, scans: bool = True, dims=3):
    """Write a small BIDS folder, faulty on request."""
    folder.mkdir(parents=True)
    ids = [f"sub-{number:02d}" for number in range(people)]
    if table:
        rows = "".join(f"{name}\t30\tF\teuploid\n" for name in ids)
        (folder / "participants.tsv").write_text("participant_id\tage\tsex\tgroup\n" + rows)
    shape = (20, 24, 20, 3)[:dims]
    for name in ids if scans else []:
        (folder / name / "anat").mkdir(parents=True)
        image = nib.Nifti1Image(np.ones(shape, np.float32), np.diag([8.0, 8, 8, 1]))
        nib.save(image, folder / name / "anat" / f"{name}_T1w.nii.gz")
    return folder


@pytest.mark.parametrize(
    "fault, code",
    [
        ({"table": False}, "E-NOTABLE"),
        ({"scans": False}, "E-NOT1W"),
        ({"dims": 4}, "E-DIM"),
    ],
)
def test_bad_input_is_one_sentence_exit_2_and_nothing_touched(tmp_path, fault, code):
    """A faulty cohort is refused before anything that stands is touched."""
    raw = write_bids(tmp_path / "raw", **fault)
    root = tmp_path / "root"
    before = {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    answer = dsnb("study", "--preset", "smoke", "--raw", str(raw), "--data-root", str(root))
    assert answer.returncode == 2, answer.stderr[-2000:]
    ours = answer.stderr[answer.stderr.index("dsnb: ") :]  # a kernel that ends may print before it
    assert code in ours and "Traceback" not in ours
    assert before == {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    assert not (root / "cohort/participants.tsv").exists()


def test_an_unknown_folder_preset_or_flag_exits_with_2(tmp_path):
    """The command line never falls back to a default in silence."""
    for words in (
        ["study", "--preset", "tiny"],
        ["study", "--preset", "smoke", "--raw", str(tmp_path / "absent")],
        ["train", "vae", "--vae.widht", "3"],
    ):
        answer = dsnb(*words, "--data-root", str(tmp_path / "root"))
        assert answer.returncode == 2 and "Traceback" not in answer.stderr
    assert not (tmp_path / "root").exists()


@pytest.mark.real
def test_real_scans_walk_the_same_way(real_scans, tmp_path):
    """46 registered adults, planted twins for DS: every stage ends with a number or a reason."""
    words = ["--raw", str(real_scans), "--data-root", str(tmp_path)]
    answer = dsnb("study", "--preset", "smoke", *words)
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    cohort = record.read_results(tmp_path, "01_cohort")["headline"]
    assert cohort["euploid"] == 46 and cohort["ds"] > 0
    for stage in record.STAGES:
        results = record.read_results(tmp_path, stage)
        assert results["data"] == "ds002748-2mm"
        nulls = [key for key, value in results["headline"].items() if value is None]
        assert json.dumps(results) and all(results["tables"]["reasons"][key] for key in nulls)

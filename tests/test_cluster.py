"""The jobs under a real Slurm of several nodes on this machine: they train, stop, go on, refuse."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ranks
import slurm
import tiny
from test_injection import KIT
from toy import log, trained

ROOT = Path(__file__).resolve().parent.parent
JOBS = ROOT / "hpc_jobs"
NAMES = ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "DSNB_QOS_GPU", "DSNB_QOS_CPU", "DSNB_NAME",
         "DSNB_PRESET", "DSNB_DATA", "DSNB_RAW")  # fmt: skip


def refuse_or_skip(reason: str) -> None:
    """Skip a test that cannot run here, or fail where DSNB_REQUIRE asks for it."""
    if "cluster" in os.environ.get("DSNB_REQUIRE", ""):
        pytest.fail(reason)
    pytest.skip(reason)


def site(folder: Path, **given: str) -> dict:
    """Return an environment that makes the example site a small one, by exports alone."""
    own = {"DSNB_SITE": str(JOBS / "site.example.sh"), "DSNB_CLUSTER": "plain", "DSNB_CORES": "1",
           "DSNB_PRESET": "smoke", "DSNB_DATA": str(folder), "DSNB_BIN": str(folder)}  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SBATCH_", "SLURM_", "DSNB_"))}
    return kept | own | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | given


class Cluster:
    """A folder of data roots and logs, and what one does with it on a real Slurm."""

    def __init__(self, folder: Path):
        self.folder, self.bin = folder, slurm.make_python(folder / "bin", ROOT)
        (folder / "logs").mkdir()

    def site(self, root: Path | str, **given: str) -> dict:
        """Return the environment of a job on a data root."""
        root = self.folder / root
        return site(root, DSNB_BIN=str(self.bin)) | {"TEST_STUDY": "tiny"} | given

    def submit(self, job: Path | str, root: Path | str, *options: str, **given: str) -> str:
        """Submit a shipped job (by name), or a file, without GPUs; return its number."""
        file = job if isinstance(job, Path) else JOBS / f"{job}.sbatch"
        words = ["sbatch", "--parsable", f"--output={self.folder}/logs/%A_%a.log", "--gres=none"]
        words += ["--cpus-per-task=1", *options, str(file)]
        asked = subprocess.run(words, cwd=ROOT, env=self.site(root, **given), text=True,
                               capture_output=True)  # fmt: skip
        assert asked.returncode == 0, asked.stderr
        return asked.stdout.strip()

    def log(self, job: str) -> str:
        """Return what a job, or every task of an array, has written so far."""
        paths = sorted((self.folder / "logs").glob(f"{job}_*.log"))
        return "".join(path.read_text() for path in paths)

    def ended(self, job: str, wanted: str = "COMPLETED", seconds: float = 400) -> str:
        """Wait for a job's end in a state; return its log."""
        state = slurm.wait(job, seconds)
        assert state == wanted, f"{state}: {self.log(job)[-3000:]}"
        return self.log(job)

    def root(self, name: str) -> Path:
        """Make a data root of tiny brains."""
        (self.folder / name).mkdir()
        return tiny.make_root(self.folder / name)

    def python(self, root: Path, *words: str, **given: str) -> subprocess.CompletedProcess:
        """Run a verb here, as one process without Slurm."""
        words = [self.bin / "python", "-m", "dsnb", *words, "--preset", "smoke"]
        words += ["--data-root", root]
        return subprocess.run(words, cwd=ROOT, env=self.site(root, **given), check=True,
                              capture_output=True, text=True)  # fmt: skip


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if reason := slurm.lacks():
        refuse_or_skip(reason)
    with slurm.running():
        yield Cluster(tmp_path_factory.mktemp("cluster"))


def stepped(root: Path, steps: int = 3, seconds: float = 200) -> None:
    """Wait until the VAE's training of a root has made some steps."""
    path, ends = root / "runs/vae/stats.jsonl", time.monotonic() + seconds
    while not (path.is_file() and path.read_text().count("\n") >= steps):
        assert time.monotonic() < ends, "no training began"
        time.sleep(0.5)


def written(folder: Path, text: str, name: str) -> Path:
    """Write a batch file that begins as ours do."""
    path = folder / f"{name}.sbatch"
    path.write_text("#!/bin/bash\nset -euo pipefail\nsource hpc_jobs/job.sh\n"
                    f"source hpc_jobs/walltime.sh\n{text}\n")  # fmt: skip
    return path


# Trainings: every job that waits is submitted first, so that waits overlap


@pytest.fixture(scope="module")
def trainings(cluster) -> SimpleNamespace:
    """Submit trainings that end, stop, go on, hang and are refused; most take one node."""
    for name in ("two", "limit", "held"):
        cluster.root(name)
    shutil.copytree(cluster.folder / "two", cluster.folder / "one")
    slow, endless = {"TEST_STEP_S": "1", "TEST_VOLUMES": "480"}, {"TEST_VOLUMES": "9600"}
    warned = ("--nodes=2", "--time=20", "--signal=B:USR1@90")
    found = SimpleNamespace(
        limit=cluster.submit("03_train_vae", "limit", *warned, **slow),
        held=cluster.submit("03_train_vae", "held", "--nodes=1", DSNB_MAX_REQUEUE="0",
                            **slow | endless),
        two=cluster.submit("03_train_vae", "two", "--nodes=2"),
    )  # fmt: skip
    stepped(cluster.folder / "limit")
    # Only now, or a slow start would be cut: the end is near, and Slurm warns of it.
    minutes = slurm.seconds(found.limit) // 60 + 2
    slurm.say("scontrol", "update", f"JobId={found.limit}", f"TimeLimit={minutes}")
    stepped(cluster.folder / "held")
    found.twin = cluster.submit("03_train_vae", "held", "--nodes=1", **slow | endless)
    return found


@pytest.mark.cluster
def test_two_nodes_train_as_one_process(cluster, trainings):
    """The claim that a training on two nodes is the training of one process would fall (G5)."""
    cluster.python(cluster.folder / "one", "train", "vae")
    said = cluster.ended(trainings.two)
    assert "global batch 4 = 2 ranks x 1 micro-batches x 2" in said
    one, two = (log(cluster.folder / name / "runs/vae")["loss"] for name in ("one", "two"))
    assert len(one) == len(two) == 12
    assert ((one - two).abs() / one.abs()).max() <= 1e-6


@pytest.mark.cluster
def test_t16_the_same_job_twice_is_refused_by_name(cluster, trainings):
    """The claim that a second job cannot write into the first one's folder would fall."""
    said = cluster.ended(trainings.twin, "FAILED")
    assert "E-LOCKED" in said
    wanted = (
        rf"host {socket.gethostname()}, process \d+, Slurm job {trainings.held}, since \d{{4}}-"
    )
    assert re.search(wanted, said), said


@pytest.mark.cluster
def test_t05_requeues_are_bounded(cluster, trainings):
    """The claim that a job does not requeue itself for ever would fall; nor may it hide why."""
    slurm.wait(trainings.twin)
    slurm.say("scancel", "--batch", "--signal=USR1", trainings.held)
    said = cluster.ended(trainings.held, "FAILED")
    assert "stopped and saved after" in said and "requeued 0 times already" in said
    assert (cluster.folder / "held/runs/vae/requeue").is_file()


@pytest.mark.cluster
def test_t05_without_progress_a_job_stops_and_says_so(cluster):
    """The claim that a job which saves nothing is not requeued would fall (walltime)."""
    (cluster.folder / "idle/runs/vae").mkdir(parents=True)
    text = 'until_walltime "$DSNB_DATA/runs/vae" srun bash -c "touch $DSNB_DATA/on; sleep 300"'
    job = cluster.submit(written(cluster.folder, text, "idle"), "idle")
    while not (cluster.folder / "idle/on").exists():
        assert slurm.states(job)[0] in ("PENDING", "RUNNING", "CONFIGURING"), cluster.log(job)
        time.sleep(0.2)
    slurm.say("scancel", "--batch", "--signal=USR1", job)
    said = cluster.ended(job, "FAILED", 60)
    assert "no new checkpoint since the last start" in said


@pytest.mark.cluster
def test_t05_a_job_goes_on_after_its_wall_time(cluster, trainings):
    """The claim that Slurm's warning saves, requeues and ends as if never cut would fall."""
    ends = time.monotonic() + 200
    while slurm.show(trainings.limit)["Restarts"] == "0":
        assert slurm.states(trainings.limit)[0] != "FAILED", cluster.log(trainings.limit)
        assert time.monotonic() < ends, "the warning did not come"
        time.sleep(0.5)
    slurm.say("scontrol", "update", f"JobId={trainings.limit}", "TimeLimit=20")
    said = cluster.ended(trainings.limit)
    run = cluster.folder / "limit/runs/vae"
    assert "Terminated" not in said and len(re.findall("with exit code 75", said)) >= 2
    assert "stopped and saved after" in said and "goes on after" in said
    assert log(run)["seen"].tolist() == list(range(4, 481, 4))
    assert (run / "product.json").is_file() and not (run / "requeue").exists()
    assert not list((cluster.folder / "limit").glob(".requeue-*"))


# What breaks, and what the job's log says then


HOLD = f"""hold() {{ # the port of the next launch, until `holder` is killed
    {sys.executable} -I -c 'import socket, sys, time
with socket.socket() as busy:
    busy.bind(("", int(sys.argv[1])))
    busy.listen()
    open(sys.argv[2], "w").close()
    time.sleep(600)' $((12000 + (SLURM_JOB_ID + attempt) % 20000)) "$DSNB_DATA/held" &
    holder=$!
    until [ -e "$DSNB_DATA/held" ]; do sleep 0.1; done
}}"""


@pytest.fixture(scope="module")
def faults(cluster) -> dict[str, str]:
    """Break things on two nodes, one launcher each; return what each launch said."""
    names = ("fails", "killed", "hangs")
    folder = cluster.folder / "faults"
    folder.mkdir()
    refused = {
        "master": 'env -u MASTER_ADDR srun --nodes=2 --ntasks=2 python -m dsnb.launcher --nnodes=2 '
                  'train vae',
        "gpu": 'DSNB_DEVICE=cuda launch 1 1 train vae "${study[@]}"',
        "tasks": 'srun --nodes=2 --ntasks=2 python -m dsnb train vae "${study[@]}"',
        "port": 'hold; (launch 1 1 train vae "${study[@]}"); code=$?; kill "$holder"; exit $code',
    }  # fmt: skip
    lines = [HOLD]
    started = {name: f"launch 2 1 {ROOT}/tests/ranks.py {folder} {name}" for name in names}
    started["fails"] = started["fails"].replace(" fails", " unequal fails")
    for attempt, (name, words) in enumerate((started | refused).items()):
        lines.append(f"attempt={attempt}; ({words}) &>{folder}/{name}.log || "
                     f"echo {name} $? >>{folder}/codes")  # fmt: skip
    job = cluster.submit(written(cluster.folder, "\n".join(lines), "faults"), "faults", "--nodes=2")
    cluster.ended(job, seconds=900)
    said = {name: (folder / f"{name}.log").read_text() for name in (*names, *refused)}
    codes = (folder / "codes").read_text().splitlines()
    return said | dict(code.split() for code in codes) | {f"{k} said": v for k, v in said.items()}


@pytest.mark.cluster
@pytest.mark.parametrize("name, wanted", {
    "fails": r"rank 1 of 2 on \S+: step 6, loading \[sub-\d+(, sub-\d+)*\]: RuntimeError: scan 17",
    "killed": r"rank 1 was killed by signal 9, probably out of memory.*peak memory \d+ MiB",
    "hangs": r"did not arrive: rank 1 \(host \S+, step 6, loading",
    "unequal": r"2 E-UNEQUAL ranks: validation samples is \{'rank 0': 10, 'rank 1': 9\}",
}.items())  # fmt: skip
def test_t07_t08_t09_t10_the_cause_is_told_in_the_log(cluster, faults, name, wanted):
    """The claim that a job of several nodes ends by itself and tells the cause would fall (G6)."""
    if name == "unequal":  # the step before `fails`, in one launch: the ranks note what they saw
        said = (cluster.folder / "faults/unequal/rank-1").read_text()
    else:
        said = faults[f"{name} said"]
        assert faults[name] == "1" and "Terminated" not in said, said
        said = "".join(line for line in said.splitlines() if line.startswith("dsnb: "))
    assert re.search(wanted, said), said


@pytest.mark.cluster
@pytest.mark.parametrize("name, code", {
    "master": "E-MASTER", "gpu": "E-DEVICE", "tasks": "E-RANKS", "port": "E-PORT",
}.items())  # fmt: skip
def test_t19_what_cannot_start_is_one_line(faults, name, code):
    """The claim that a job which cannot start says why in a line, before it reads, would fall."""
    said = faults[f"{name} said"]
    lines = [line for line in said.splitlines() if line.startswith("dsnb:")]
    assert faults[name] == "2" and lines and all(f"dsnb: {code} launch: " in x for x in lines), said
    assert "Traceback" not in said


# The whole study


@pytest.fixture(scope="module")
def study(cluster) -> SimpleNamespace:
    """Submit a small study by `submit_study.sh` with two shares; then what fails, beside it."""
    (cluster.folder / "study").mkdir()
    given = cluster.site("study", TEST_STUDY="walk", DSNB_NODES="2")
    chain = [JOBS / "submit_study.sh", "--shards", "2"]
    made = subprocess.run(chain, env=given, capture_output=True, text=True, check=True)
    others = shutil.ignore_patterns("prepared", "runs")
    shutil.copytree(cluster.folder / "study", cluster.folder / "whole", ignore=others)
    shutil.copytree(cluster.folder / "whole", cluster.folder / "third")
    failing = subprocess.run(chain[:1], env=given | {"TEST_FAIL": "prepare"}, capture_output=True,
                             text=True, check=True)  # fmt: skip
    jobs = [made.stdout.splitlines()[-1].split()[1:], failing.stdout.splitlines()[-1].split()[1:]]
    return SimpleNamespace(jobs=jobs[0], failing=jobs[1], said=made.stdout)


@pytest.mark.cluster
def test_an_array_makes_the_files_of_one_run(cluster, study):
    """The claim that shares together are one run, and a task alone does its share, would fall."""
    lone = cluster.submit("02_prepare", "third", "--array=2", TEST_STUDY="walk", DSNB_SHARDS="2")
    bare = cluster.submit("02_prepare", "third", "--array=2", TEST_STUDY="walk")
    one = cluster.submit("02_prepare", "whole", TEST_STUDY="walk")
    assert "DSNB_SHARDS is absent" in cluster.ended(bare, "FAILED")
    cluster.ended(lone)
    cluster.ended(one)
    cluster.ended(study.jobs[1])  # the collecting one
    kept = {}
    for name in ("study", "whole", "third"):
        paths = (cluster.folder / name / "prepared").rglob("*_T1w.nii.gz")
        kept[name] = {path.name: path.read_bytes() for path in paths}
    assert len(kept["whole"]) > 20 and kept["study"] == kept["whole"]
    tables = [(cluster.folder / name / "prepared/volumes.npy").read_bytes()
              for name in ("study", "whole")]  # fmt: skip
    assert tables[0] == tables[1]
    share = len(kept["third"]) / len(kept["whole"])
    assert 0.4 < share < 0.6 and kept["third"].items() <= kept["whole"].items()


@pytest.mark.cluster
def test_a_failing_job_cancels_what_depends_on_it(cluster, study):
    """The claim that a chain stops where it breaks, and nothing waits for ever, would fall."""
    assert len(study.failing) == 6
    states = [slurm.wait(job) for job in study.failing]
    assert states == ["FAILED"] + 5 * ["CANCELLED"]


@pytest.mark.cluster
def test_the_chain_makes_a_study(cluster, study):
    """The claim that one command submits everything from raw scans to samples would fall."""
    assert len(study.jobs) == 7
    for job in study.jobs:
        cluster.ended(job, seconds=900)
    root = cluster.folder / "study"
    products = ("prepared", "runs/vae", "latents", "maps", "runs/diffusion", "synthetic")
    assert not [name for name in products if not (root / name / "product.json").is_file()]
    lines = [line for line in study.said.splitlines() if line.startswith("sbatch ")]
    assert len(lines) == 7 and sum("--dependency=afterok:" in line for line in lines) == 6


@pytest.mark.cluster
def test_jobs_beside_the_chain_start_their_verbs(cluster, study):
    """The claim that search, scaling and further samples run from their jobs would fall."""
    cluster.ended(study.jobs[-1], seconds=900)
    more = cluster.folder / "more"
    given = {"TEST_STUDY": "walk", "DSNB_MORE": str(more), "DSNB_COUNT": "2"}
    sample = cluster.submit("07_sample", "study", "--array=1-2", **given)
    search = cluster.submit("09_search", "study", "--array=1-2", TEST_STUDY="walk")
    scaling = cluster.submit("10_scaling", "study", "--nodes=2", TEST_STUDY="walk")
    cluster.ended(sample)
    assert len(list(more.rglob("*_T1w.nii.gz"))) == 4  # two of each group, two shares
    cluster.ended(search)
    assert (cluster.folder / "study/runs/search/product.json").is_file()
    cluster.ended(scaling)
    rows = (cluster.folder / "study/10_cluster.jsonl").read_text().splitlines()
    assert [(row["world"], row["nodes"]) for row in map(json.loads, rows)] == [(1, 1), (2, 2)]
    asked = [line for line in (cluster.bin / "asked").read_text().splitlines()
             if line.startswith(f"{scaling} ") and "dsnb.launcher" in line]  # fmt: skip
    shapes = [re.search(r"nnodes=(\d) --nproc-per-node=(\d) ", line).groups() for line in asked]
    assert shapes == [("1", "1"), ("2", "1"), ("2", "1")]
    assert all("bench cluster --preset smoke --data-root" in line for line in asked)


@pytest.mark.cluster
@pytest.mark.parametrize("path", sorted(JOBS.glob("*.sbatch")), ids=lambda path: path.stem)
def test_slurm_takes_the_shape_of_every_job(cluster, path):
    """The claim that nodes of four GPUs and 80 cores take the jobs as they are would fall."""
    nodes = ["--nodes=4"] if path.stem == "10_scaling" else []  # eight are asked, four are here
    words = ["sbatch", "--test-only", *nodes, path]
    asked = subprocess.run(
        words, cwd=ROOT, env=cluster.site("none"), capture_output=True, text=True
    )
    assert asked.returncode == 0 and "to start at" in asked.stderr, asked.stderr


@pytest.mark.cluster
def test_a_step_has_the_cores_of_its_job(cluster):
    """The claim that srun does not leave all but one core idle would fall (Slurm 22.05)."""
    text = "srun bash -c 'scontrol show step \"$SLURM_JOB_ID.$SLURM_STEP_ID\"'"
    job = cluster.submit(written(cluster.folder, text, "step"), "none", "--cpus-per-task=7")
    assert "CPUs=7 " in cluster.ended(job)


# Without Slurm


def share(**slurm_says: str) -> subprocess.CompletedProcess:
    """Return what `set_share` makes of an array's variables."""
    script = 'set -euo pipefail; source hpc_jobs/job.sh; set_share; echo "${share[@]}"'
    given = {f"SLURM_ARRAY_TASK_{k}" if k != "DSNB_SHARDS" else k: v for k, v in slurm_says.items()}
    return subprocess.run(["bash", "-c", script], cwd=ROOT, env=site(ROOT, **given),
                          capture_output=True, text=True)  # fmt: skip


def test_a_task_knows_its_share():
    """The claim that a task which is submitted again does its share, not everything, would fall."""
    assert share().stdout == "\n"
    whole = {"MIN": "1", "MAX": "8", "COUNT": "8"}
    assert share(ID="3", **whole).stdout == "--shard 3/8\n"
    lone = {"ID": "3", "MIN": "3", "MAX": "3", "COUNT": "1"}
    assert share(DSNB_SHARDS="8", **lone).stdout == "--shard 3/8\n"
    gaps = [lone, lone | {"ID": "1", "MIN": "1", "MAX": "1"}, {"ID": "1", **whole, "COUNT": "2"},
            {"ID": "0", "MIN": "0", "MAX": "7", "COUNT": "8"}]  # fmt: skip
    for given in gaps:
        ended = share(**given)
        assert ended.returncode == 2 and not ended.stdout, given
        assert ended.stderr.count("\n") == 1 and "DSNB_SHARDS" in ended.stderr


@pytest.fixture
def stubs(tmp_path) -> dict:
    """Return an environment whose sbatch, scancel and python write down what they were given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "scancel", "python"):
        text = (
            f'#!/bin/bash\nprintf "%s|" {name} "$@" >> {tmp_path}/asked\necho >> {tmp_path}/asked\n'
        )
        (folder / name).write_text(text + "echo 7\n")
        (folder / name).chmod(0o755)
    (tmp_path / "data").mkdir()
    given = site(tmp_path / "data", DSNB_BIN=str(folder))
    return given | {"PATH": f"{folder}:{os.environ['PATH']}"}


def chained(given: dict, *words: str) -> subprocess.CompletedProcess:
    """Run `submit_study.sh`."""
    return subprocess.run([JOBS / "submit_study.sh", *words], env=given, capture_output=True,
                          text=True)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_p06_attacks_are_refused_and_run_nowhere(tmp_path, stubs, name):
    """The claim that no value of a site file is ever run, or submitted unseen, would fall (G29)."""
    before = {path for folder in (ROOT, tmp_path) for path in folder.rglob("*")}
    for attack in KIT:
        ended = chained(stubs | {name: attack})
        said = ended.stderr.splitlines()
        assert ended.returncode == 2 and len(said) == 1, (attack, ended.stderr)
        shown = subprocess.run(["bash", "-c", 'printf %q "$1"', "x", attack], capture_output=True)
        assert said[0].startswith(f"dsnb: {name} is {shown.stdout.decode()}, expected "), said
    assert not (tmp_path / "asked").exists()
    assert not list(Path("/").glob("CANARY"))
    after = {path for folder in (ROOT, tmp_path) for path in folder.rglob("*CANARY*")}
    assert after <= before


def test_a_dry_run_prints_what_would_be_submitted(tmp_path, stubs):
    """The claim that one can look before one submits would fall."""
    given = stubs | {"DSNB_NAME": "mine", "DSNB_QOS_CPU": "slow", "DSNB_GRES": "gpu:h100"}
    dry = chained(given, "--dry-run")
    assert dry.returncode == 0 and not (tmp_path / "asked").exists()
    real = chained(given)
    submitted = [line.split("|")[:-1] for line in (tmp_path / "asked").read_text().splitlines()]
    printed = [re.sub(r"JOB_\w+", "7", line).split() for line in dry.stdout.splitlines()]
    assert submitted == printed[:-1] and len(submitted) == 8, real.stderr
    assert printed[2][1:4] == ["--parsable", "--job-name=mine-02_prepare", "--cpus-per-task=1"]
    assert "--qos=slow" in printed[2] and "--gres=gpu:h100:1" in printed[3]


def test_a_refused_line_leaves_no_half_chain(tmp_path, stubs):
    """The claim that jobs of a broken chain do not stay in the queue would fall."""
    stub = tmp_path / "bin/sbatch"
    stub.write_text('#!/bin/bash\n[[ "$*" != *04_encode* ]] && echo "1$RANDOM" || exit 1\n')
    ended = chained(stubs)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert ended.returncode == 1 and "sbatch refused" in ended.stderr
    assert asked[-1].startswith("scancel|1") and asked[-1].count("|") == 3


def test_the_shell_is_clean():
    """The claim that shellcheck finds nothing in the jobs would fall."""
    if not shutil.which("shellcheck"):
        refuse_or_skip("shellcheck is absent")
    paths = sorted(path for path in JOBS.glob("*.s*") if path.name != "site.sh")
    ended = subprocess.run(["shellcheck", "-x", *paths], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and len(paths) > 10, ended.stdout


# Another kind of two hosts


@pytest.fixture
def hosts():
    """Hold two network namespaces that see each other through a pair of virtual cables."""
    if not shutil.which("ip", path=slurm.search()) or os.geteuid():
        refuse_or_skip("network namespaces need root and iproute2")
    names = [f"dsnb{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
            if made.returncode:
                refuse_or_skip(f"no network namespaces here: {made.stderr}")
        slurm.say("ip", "link", "add", "dsnb0", "netns", names[0], "type", "veth", "peer", "name",
                  "dsnb0", "netns", names[1])  # fmt: skip
        for number, name in enumerate(names, start=1):
            slurm.say("ip", "-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "dsnb0")
            slurm.say("ip", "-n", name, "link", "set", "dsnb0", "up")
            slurm.say("ip", "-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            slurm.say("ip", "netns", "del", name, check=False)


@pytest.mark.cluster
def test_two_hosts_on_a_cable_train_as_one_process(tmp_path, hosts):
    """The claim that ranks meet over a network that is not the loopback would fall."""
    search = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": search, "GLOO_SOCKET_IFNAME": "dsnb0"}
    words = ["-m", "dsnb.launcher", "--nnodes=2", "--master-addr=10.77.0.1", "--master-port=23456"]
    running = []
    for rank, name in enumerate(hosts):
        given = [sys.executable, *words, f"--node-rank={rank}", ROOT / "tests/ranks.py", tmp_path,
                 "parity"]  # fmt: skip
        running.append(subprocess.Popen(["ip", "netns", "exec", name, *given], env=own,
                                        stderr=subprocess.PIPE, text=True))  # fmt: skip
    said = [process.communicate(timeout=200)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    trained(tmp_path / "one", settings=ranks.LONG)
    one, two = (log(tmp_path / name)["loss"] for name in ("one", "parity/2"))
    assert len(one) == len(two) == 40 and ((one - two).abs() / one.abs()).max() <= 1e-6

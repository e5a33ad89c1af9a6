"""A real Slurm on this machine for tests: nodes in the shape of MareNostrum 5, without its GPUs.

All nodes are this host; their names, addresses and ports differ. Needs root and Debian's packages
slurm-wlm and munge; the files have to lie in the default place, or `srun` inside jobs fails.
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ETC = Path("/etc/slurm")
OURS = "# made by the tests of dsnb"
NODES = {f"node{number}": number for number in range(1, 7)}
NODE = "NodeName={0} NodeHostname={2} NodeAddr=127.0.0.1{1} Port=1700{1} CPUs=80 Gres=gpu:4\n"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
CONFIGURATION = """{ours}
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
KillWait=5
MinJobAge=1800
PlugStackConfig=/dev/null
PartitionName=cpu Nodes={nodes} Default=YES MaxTime=4320 OverSubscribe=NO State=UP
"""
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
PYTHON = """#!/bin/bash
echo "$SLURM_JOB_ID $*" >> {log}
if [ "${{TEST_FAIL-}}" = "$3" ]; then exit 1; fi
export PYTHONPATH={root}:{root}/tests:{root}/tests/small
exec {python} "$@"
"""


def lacks() -> str:
    """Return why no Slurm can be started here; empty where one can."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=search())]
    if absent:
        return f"{', '.join(absent)} absent: install slurm-wlm and munge"
    if os.geteuid():
        return "only root can start a Slurm"
    file = ETC / "slurm.conf"
    if file.is_file() and OURS not in file.read_text():
        return "this machine belongs to a Slurm already"
    return ""


def search() -> str:
    """Return a PATH that has the daemons, too."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def say(*words: object, check: bool = True) -> str:
    """Run a command to its end; return what it said."""
    words = [str(word) for word in words]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert not check or ended.returncode == 0, f"{words}: {ended.stdout}{ended.stderr}"
    return ended.stdout


@contextmanager
def running() -> Iterator[Path]:
    """Hold a Slurm with idle nodes; stop it, with all its jobs, at the end."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munge refuses a socket behind a closed door
    ETC.mkdir(exist_ok=True)
    with (ETC / ".tests.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another checkout may test at the same time
        try:
            _start(folder)
            yield folder
        finally:
            _stop(folder)


def _start(folder: Path) -> None:
    host, nodes = socket.gethostname().split(".")[0], ",".join(NODES)
    text = CONFIGURATION.format(ours=OURS, host=host, folder=folder, nodes=nodes)
    listed = "".join(NODE.format(name, number, host) for name, number in NODES.items())
    partition = text.index("PartitionName")
    (ETC / "slurm.conf").write_text(text[:partition] + listed + text[partition:])
    gpus = [f"Name=gpu File=/dev/{name}" for name in ("null", "zero", "full", "random")]
    (ETC / "gres.conf").write_text("\n".join([OURS, "AutoDetect=off", *gpus, ""]))
    for name in ("state", *NODES):
        (folder / name).mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    environment = os.environ | {"PATH": search()}
    names = {"key-file": "key", "socket": "munge.socket", "pid-file": "munged.pid",
             "log-file": "munged.log", "seed-file": "munge.seed"}  # fmt: skip
    words = [f"--{option}={folder / name}" for option, name in names.items()]
    commands = [["munged", "--force", *words], ["slurmctld", "-c"]]
    commands += [["slurmd", "-N", name] for name in NODES]
    for command in commands:  # each leaves a daemon; none may hold a pipe of ours
        subprocess.run(command, env=environment, check=True, timeout=60,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
    ends = time.monotonic() + 60
    while say("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).strip() != str(len(NODES)):
        assert time.monotonic() < ends, (folder / "slurmctld.log").read_text()[-2000:]
        time.sleep(0.2)


def _stop(folder: Path) -> None:
    with suppress(subprocess.TimeoutExpired, OSError):
        say("scancel", "--user=root", check=False)
        say("scancel", "--user=root", "--signal=KILL", check=False)
        ends = time.monotonic() + 30
        while say("squeue", "-h", check=False).strip() and time.monotonic() < ends:
            time.sleep(0.2)
    for name in (*(f"slurmd.{name}.pid" for name in NODES), "slurmctld.pid", "munged.pid"):
        with suppress(OSError, ValueError):
            process = int((folder / name).read_text())
            os.kill(process, signal.SIGTERM)
            _wait_for_end(process)
    for name in ("slurm.conf", "gres.conf"):
        (ETC / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for_end(process: int) -> None:
    ends = time.monotonic() + 20
    with suppress(OSError):  # it is gone, or only its entry is left
        while " Z " not in Path(f"/proc/{process}/stat").read_text():
            if time.monotonic() > ends:
                os.kill(process, signal.SIGKILL)
            time.sleep(0.1)


def show(job: str) -> dict[str, str]:
    """Return all that Slurm knows of a job that is no array."""
    words = say("scontrol", "show", "job", "-o", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def seconds(job: str) -> int:
    """Return how long a job has been running."""
    hours, minutes, rest = (int(part) for part in show(job)["RunTime"].split(":"))
    return 3600 * hours + 60 * minutes + rest


def states(job: str) -> list[str]:
    """Return the state of a job, or of every task of an array."""
    return say("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").split()


def wait(job: str, patience_s: float = 300) -> str:
    """Wait until a job, or every task of an array, is over; return the states, each once.

    Slurm holds a requeued job back for two minutes: it is let go at once.
    """
    ends = time.monotonic() + patience_s
    while not OVER.issuperset(now := states(job)):
        if now == ["PENDING"] and show(job).get("Reason") == "BeginTime":
            say("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
        assert time.monotonic() < ends, f"job {job} is {now}: {show(job)}"
        time.sleep(0.5)
    return " ".join(sorted(set(now)))


def make_python(folder: Path, root: Path) -> Path:
    """Write a `bin` whose `python` is this one with our checkout; it notes what it was asked."""
    folder.mkdir()
    path = folder / "python"
    path.write_text(PYTHON.format(root=root, python=sys.executable, log=folder / "asked"))
    path.chmod(0o755)
    return folder

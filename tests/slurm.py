"""A real Slurm on this machine for tests: two nodes of the shape of MareNostrum 5, here without GPUs.

Both nodes are this host; their names, addresses and ports differ. Needs root and Debian's packages
slurm-wlm and munge; the files have to lie in the default place, or `srun` inside jobs fails.
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ETC = Path("/etc/slurm")
OURS = "# made by the tests of dsnb"
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
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.11 Port=17001 CPUs=80 Gres=gpu:4
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.12 Port=17002 CPUs=80 Gres=gpu:4
PartitionName=cpu Nodes=node[1-2] Default=YES MaxTime=4320 OverSubscribe=NO State=UP
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
    """Hold a Slurm with two idle nodes; stop it, with all its jobs, at the end."""
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
    text = CONFIGURATION.format(ours=OURS, host=socket.gethostname().split(".")[0], folder=folder)
    (ETC / "slurm.conf").write_text(text)
    gpus = [f"Name=gpu File=/dev/{name}" for name in ("null", "zero", "full", "random")]
    (ETC / "gres.conf").write_text("\n".join([OURS, "AutoDetect=off", *gpus, ""]))
    for name in ("state", "node1", "node2"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    environment = os.environ | {"PATH": search()}
    names = {"key-file": "key", "socket": "munge.socket", "pid-file": "munged.pid",
             "log-file": "munged.log", "seed-file": "munge.seed"}  # fmt: skip
    words = [f"--{option}={folder / name}" for option, name in names.items()]
    commands = [["munged", "--force", *words], ["slurmctld", "-c"]]
    commands += [["slurmd", "-N", name] for name in ("node1", "node2")]
    for command in commands:  # each leaves a daemon; none may hold a pipe of ours
        subprocess.run(command, env=environment, check=True, timeout=60,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
    ends = time.monotonic() + 60
    while say("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).strip() != "2":
        assert time.monotonic() < ends, (folder / "slurmctld.log").read_text()[-2000:]
        time.sleep(0.2)


def _stop(folder: Path) -> None:
    with suppress(subprocess.TimeoutExpired, OSError):
        say("scancel", "--user=root", check=False)
        say("scancel", "--user=root", "--signal=KILL", check=False)
        ends = time.monotonic() + 30
        while say("squeue", "-h", check=False).strip() and time.monotonic() < ends:
            time.sleep(0.2)
    for name in ("slurmd.node1.pid", "slurmd.node2.pid", "slurmctld.pid", "munged.pid"):
        with suppress(OSError, ValueError):
            process = int((folder / name).read_text())
            os.kill(process, signal.SIGTERM)
            _wait_for_end(process)
    for name in ("slurm.conf", "gres.conf"):
        (ETC / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for_end(process: int) -> None:
    ends = time.monotonic() + 20
    while Path(f"/proc/{process}").exists() and time.monotonic() < ends:
        time.sleep(0.1)
    with suppress(OSError):
        os.kill(process, signal.SIGKILL)


def show(job: str) -> dict[str, str]:
    """Return all that Slurm knows of a job (of an array: of its last listed task)."""
    text = say("scontrol", "show", "job", "-o", job).strip().splitlines()[-1]
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def wait(job: str, seconds: float, *states: str) -> str:
    """Wait until a job is in one of the states (default: over); return which."""
    states = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    ends = time.monotonic() + seconds
    while (state := show(job)["JobState"]) not in states:
        assert time.monotonic() < ends, f"job {job} is {state} ({show(job).get('Reason')})"
        time.sleep(0.3)
    return state

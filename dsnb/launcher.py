"""Start the ranks of a training: torchrun with our checks before, and one last line after.

`python -m dsnb.launcher [torchrun options] train vae [dsnb flags]`; plain torchrun works, too, but
ends with 1 whatever happened. Here the exit code is 2 for refused input, 75 where the ranks
stopped on a signal and saved (run it again), and 1 otherwise.
"""

import json
import os
import signal
import socket
import sys
import tempfile
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

from torch import distributed as dist
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from dsnb import distributed
from dsnb.checks import BadInput

DEFAULTS = ("--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "--shutdown-timeout=180")


def parse(words: list[str]) -> Namespace:
    """Read torchrun's options; what follows is a verb of dsnb, a script, or `-m` and a module."""
    arguments = torchrun.parse_args([*DEFAULTS, *words])
    if not (arguments.module or arguments.no_python or arguments.training_script.endswith(".py")):
        verb = [arguments.training_script, *arguments.training_script_args]
        arguments.module, arguments.training_script = True, "dsnb"
        arguments.training_script_args = verb
    return arguments


def check(arguments: Namespace) -> None:
    """Refuse what cannot start: no host to meet, a busy port, an absent GPU, too few of them."""
    many = torchrun.parse_min_max_nnodes(arguments.nnodes)[1] > 1
    fixed = arguments.rdzv_backend == "static" and not arguments.rdzv_endpoint
    if fixed and many and arguments.master_addr == "127.0.0.1":
        arguments.master_addr = os.environ.get("MASTER_ADDR")
        if not arguments.master_addr:
            fix = "give --master-addr or export MASTER_ADDR"
            raise BadInput("E-MASTER", "launch", "MASTER_ADDR", "absent", "node 0's host", fix)
    if arguments.master_port is None and "MASTER_PORT" in os.environ and many:
        arguments.master_port = int(os.environ["MASTER_PORT"])
    if fixed and arguments.master_port and arguments.node_rank == 0:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("", arguments.master_port))
            except OSError:
                raise distributed.busy_port(arguments.master_port) from None
    distributed.check_devices(torchrun.determine_local_world_size(arguments.nproc_per_node))


def launch(arguments: Namespace) -> tuple[int, str]:
    """Run the ranks to their end; return the exit code and the last line, empty if all is well."""
    os.environ["DSNB_SHUTDOWN_S"] = str(arguments.shutdown_timeout)
    # A store whose host is gone fills pages with C++ frames, and the cause drowns in them.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory(prefix="dsnb-") as folder:
        arguments.log_dir = arguments.log_dir or folder
        try:
            torchrun.run(arguments)
        except ChildFailedError as error:
            stories = [_story(arguments.log_dir, *entry) for entry in error.failures.items()]
            words = _written(arguments.log_dir, "*", "error.json")  # of those that ended later, too
            return _last(stories + [_told(word["message"]) for word in words])
        except SignalException as error:
            name = signal.Signals(error.sigval).name
            words = _written(arguments.log_dir, "*", "error.json")
            if not words:
                return 1, f"{name}: the ranks ended before they had saved anything new"
            code, text = _last([_told(word["message"]) for word in words])
            return code, f"{name}: {text}"
        except dist.DistNetworkError as error:
            raise distributed.busy_port(arguments.master_port) from error
    return 0, ""


def _written(folder: str, local_rank: object, name: str) -> list[dict]:
    """Read what ranks left beside torchrun's logs: last words or signs of life."""
    found = []
    for path in Path(folder).glob(f"*/attempt_*/{local_rank}/{name}"):
        with suppress(OSError, json.JSONDecodeError):  # a kill may have cut it short
            found.append(json.loads(path.read_text()))
    return found


def _told(message: dict) -> tuple:
    """Rank a rank's own last words: a cause, a stop, or a mere loss of touch with the cause."""
    extra, code = message["extraInfo"], message.get("errorCode", 1)
    place = 3 if extra.get("lost") else 1 if code == distributed.STOPPED else 0
    return place, extra.get("moment", float(extra["timestamp"])), code, message["message"]


def _story(folder: str, rank: int, failure: ProcessFailure) -> tuple:
    """Return one failed rank's place among the causes, its moment, exit code and story."""
    words = _written(folder, failure.local_rank, "error.json")
    if words and isinstance(words[-1]["message"], dict):
        return _told(words[-1]["message"])
    lives = _written(folder, failure.local_rank, "heartbeat.json")
    last = f"host {socket.gethostname()}"
    if lives:
        doing = " ".join([lives[-1]["doing"], *lives[-1]["subjects"]])
        last = (
            f"host {lives[-1]['host']}, at the last sign of life step {lives[-1]['step']}, {doing}"
            f", peak memory {lives[-1]['peak_mib']} MiB"
        )
    text = f"rank {rank} ended with exit code {failure.exitcode} (see its message above)"
    if failure.exitcode < 0:
        text = f"rank {rank} was killed by signal {-failure.exitcode}"
        text += ", probably out of memory" if failure.exitcode == -signal.SIGKILL else ""
    code = failure.exitcode if failure.exitcode in (2, distributed.STOPPED) else 1
    # A killed rank explains those that lost touch with it; torchrun, too, kills who will not end.
    place = 4 if failure.exitcode == -signal.SIGTERM else 2 if failure.exitcode < 0 else 0
    return place, float(failure.timestamp), code, f"{text}; {last}"


def _last(stories: list[tuple]) -> tuple[int, str]:
    """Return the exit code and the words of the first cause."""
    _, _, code, text = min(stories)
    return code, text


def main(words: list[str] | None = None) -> int:
    """Launch; a refusal is one sentence before anything is read."""
    try:
        arguments = parse(sys.argv[1:] if words is None else words)
        check(arguments)
        code, text = launch(arguments)
    except BadInput as refusal:
        code, text = 2, str(refusal)
    if text:
        print(f"dsnb: {text}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())

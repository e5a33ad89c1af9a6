"""Hosts that are none: network namespaces of this machine, each behind a link of a chosen rate.

Every host has one veth pair to a bridge, and a token bucket on what it sends: a ring sends from
each host to one other, so this limits both directions. Needs root and iproute2.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dsnb.checks import BadInput

DEVICE = "link0"  # the name of a host's only link, inside of its namespace
BURST_BYTES = 32 * 1024  # at least; what the bucket lets pass at once is traffic for nothing
BURST_S = 0.5e-3  # of the rate, where that is more: a timer fires late


def _ip(*words: object) -> str:
    """Run `ip`; return what it prints, and raise what it complains of."""
    answer = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True)
    if answer.returncode:
        raise OSError(f"ip {' '.join(map(str, words))}: {answer.stderr.strip()}")
    return answer.stdout


def _sweep() -> None:
    """Remove the hosts of processes that were killed."""
    for name, owner in re.findall(r"^(dsnb-(\d+)-\w+)", _ip("netns"), re.M):
        if not Path(f"/proc/{owner}").exists():
            _ip("netns", "del", name)


def address(host: int) -> str:
    """Return a host's address."""
    return f"10.77.0.{host + 1}"


class Hosts:
    """Namespaces that exist; see `hosts`."""

    def __init__(self, names: list[str]):
        self.names = names

    def limit(self, gigabits: float) -> None:
        """Let every host send at most so many Gb/s from now on."""
        burst = max(BURST_BYTES, int(gigabits * 1e9 / 8 * BURST_S))
        words = ["tc", "qdisc", "replace", "dev", DEVICE, "root", "tbf", "rate"]
        words += [f"{gigabits * 1000:g}mbit", "burst", str(burst), "limit", str(64 * 2**20)]
        for name in self.names:
            answer = subprocess.run(self.inside(name, words), capture_output=True, text=True)
            if answer.returncode:
                raise OSError(f"tc: {answer.stderr.strip()}")

    def inside(self, name: str, words: list[str]) -> list[str]:
        """Return the command that runs `words` in a host."""
        return ["ip", "netns", "exec", name, *words]


@contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """Hold `count` hosts for a block; they are gone after it, also after TERM; after a
    kill, whoever comes next removes them.

    Refuses (E-ROOTLESS) where namespaces cannot be made.
    """
    if os.geteuid() or not all(map(shutil.which, ("ip", "tc"))):
        seen, fix = "not allowed or not installed", "run as root with iproute2, or read the ledger"
        raise BadInput("E-ROOTLESS", "bench links", "namespaces", seen, "root, ip and tc", fix)
    hub, names = f"dsnb-{os.getpid()}-hub", [f"dsnb-{os.getpid()}-{n}" for n in range(count)]

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        _sweep()
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        for number, name in enumerate(names):
            _ip("netns", "add", name)
            port, own = f"port{number}", ("-n", name)
            _ip(*own, "link", "add", DEVICE, "type", "veth", "peer", "name", port, "netns", hub)
            _ip("-n", hub, "link", "set", port, "master", "bridge", "up")
            _ip(*own, "addr", "add", f"{address(number)}/24", "dev", DEVICE)
            _ip(*own, "link", "set", DEVICE, "gso_max_size", BURST_BYTES // 2, "up")
            _ip(*own, "link", "set", "lo", "up")
        yield Hosts(names)
    except OSError as error:
        seen, fix = str(error), "run where namespaces and tbf are allowed, or read the ledger"
        raise BadInput("E-ROOTLESS", "bench links", "namespaces", seen, "links", fix) from error
    finally:
        for name in (*names, hub):  # their links go with them
            with suppress(OSError):
                _ip("netns", "del", name)
        signal.signal(signal.SIGTERM, before)

"""Where a step's seconds and memory go, without making a GPU wait for the answer."""

import re
import resource
import time
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def host_peak_mib() -> float:
    """Return the largest memory (MiB) this program ever held on the host.

    Linux keeps it as VmHWM; `ru_maxrss`, the way elsewhere, starts at the size of the parent.
    """
    if STATUS.is_file():
        return int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def peak_mib(device: torch.device) -> float:
    """Return the largest memory (MiB) of this process, on its GPU where it has one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return host_peak_mib()


class Clock:
    """Laps of one step by name: `load`, `forward`, `backward`, `update`; seconds add up.

    On a GPU the laps are CUDA events, which wait for nothing; they are read after the guard has
    read the loss terms, where every step waits for the GPU anyway. `update` lies behind that
    point, so on a GPU it is the host's time alone.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._found: dict[str, float] = {}
        self._marks = [("", self._now())]

    def _now(self) -> object:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, name: str) -> None:
        """End a part of the step."""
        self._marks.append((name, self._now()))

    def read(self) -> None:
        """Read the laps so far, which are over, and go on in host time."""
        for (_, start), (name, end) in zip(self._marks, self._marks[1:]):
            seconds = start.elapsed_time(end) / 1000 if self._cuda else end - start
            self._found[name] = self._found.get(name, 0.0) + seconds
        self._cuda = False
        self._marks = [("", self._now())]

    def seconds(self) -> dict[str, float]:
        """Return `load_s`, `forward_s`, `backward_s` (with the gradients' sum), `update_s`."""
        self.read()
        return {f"{name}_s": value for name, value in self._found.items()}

"""What a training costs before it runs: parameters, GFLOP and memory of every preset and network.

One step of the real loss runs on tensors that have a shape but no data, so the full grid needs no
memory; torch counts the FLOP and follows every tensor from its making to its end. Beside it stands
what a fresh process measured, where this machine can.
"""

import json
import os
import subprocess
import sys
import warnings
import weakref
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dsnb import distributed, record, training, vae
from dsnb.config import PRESETS, Study, Vae, load_study, replace
from dsnb.search.ablations import VARIANTS
from dsnb.training.clock import host_peak_mib

LEDGER = "03_cost"
CODE = (
    "vae/networks", "vae/losses", "vae/features", "vae/task", "training/state", "scaling/cost",
)  # fmt: skip
MIB = 2**20
TUTORIAL = {"architecture": "monai", "channels": 3, "widths": (32, 64, 64), "departure": False}
NAMES = ("lean", "eighth", "pooled", "flat", "morph", "sharp")
NETWORKS = {name: VARIANTS[name] for name in NAMES} | {
    "monai": {"architecture": "monai"},
    "monai_stock": TUTORIAL,
}
MEASURED = {"smoke": 32, "small": 2}  # preset: volumes a step, enough to stand out of the rest
WARM_UP = (16, 16, 16)  # voxels of two steps of a thin network, which load the libraries
THIN = {"width": 8, "widths": (8, 8, 8), "channels": 4}


def settings_of(study: Study, network: str, recompute: bool = False) -> Vae:
    """Return a preset's VAE settings with another network; `recompute` spares activations."""
    return replace(study.vae, **NETWORKS[network], recompute=recompute)


class _Task(SimpleNamespace):
    """The VAE's own loss on volumes of ones, without a data root."""

    loss, rows, held = vae.VaeTask.loss, 10**6, 0

    def load(self, rows: np.ndarray) -> torch.Tensor:
        """Return volumes (B, 1, X, Y, Z)."""
        return torch.ones((len(rows), *self.model.mean_volume.shape[1:]))

    def names(self, rows: np.ndarray) -> list[str]:
        """Return no names."""
        return []


def _make_task(shape: tuple[int, int, int], settings: Vae) -> _Task:
    """Return the task with an untrained network, whose mean volume is a block."""
    mean = np.zeros(shape, np.float32)
    mean[tuple(slice(side // 8, -side // 8) for side in shape)] = 0.5
    net = vae.FeatureNet().requires_grad_(False) if settings.perceptual else None
    with warnings.catch_warnings():  # MONAI names the grid_sample it takes
        warnings.simplefilter("ignore", UserWarning)
        model = vae.build(settings, mean, mean)
    return _Task(settings=settings, feature_net=net, model=model)


class _Alive(TorchDispatchMode):
    """Follows the storage of every tensor from its making to its end; bytes now and at most."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self._known = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run one operation and take its new storages into account."""
        answer = function(*args, **(kwargs or {}))
        for value in tree_leaves(answer):
            if isinstance(value, torch.Tensor):
                self._meet(value.untyped_storage())
        return answer

    def _meet(self, storage: torch.UntypedStorage) -> None:
        place, size = id(storage), storage.nbytes()
        if place in self._known:
            return

        def leave(_: object) -> None:
            self.now -= size
            del self._known[place]

        self._known[place] = weakref.ref(storage, leave)
        self.now += size
        self.most = max(self.most, self.now)


def _without_data(module: nn.Module) -> nn.Module:
    """Return the module with tensors of shape only, inside of a `FakeTensorMode`."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return module.to_empty(device="cpu")
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def _as_on_gpus(model: nn.Module) -> None:
    """Let norms work in fp32, as CUDA's autocast does and the CPU's does not."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.InstanceNorm3d):
            module.register_forward_pre_hook(lambda _, given: (given[0].float(),))


def calculate(study: Study, network: str, recompute=False, bf16=False, volumes: int = 1) -> dict:
    """Return parameters, GFLOP a volume and memory (MiB) of a training step of `volumes` volumes.

    `activations_mib` are those kept for the backward pass; `peak_mib` is the largest sum of all
    tensors alive in a second step, the average and the gradient buckets of DDP included.
    """
    task = _make_task(study.grid.shape, settings_of(study, network, recompute))
    with FakeTensorMode(allow_non_fake_inputs=True):
        _without_data(task.model)
        if task.feature_net:
            _without_data(task.feature_net)
        if bf16:
            _as_on_gpus(task.model)
        optimizer = _second_step(task.model)
        with _Alive() as alive, FlopCounterMode(display=False) as counter:
            kept = _step(task, volumes, optimizer, alive, bf16)
    weights = list(task.model.parameters())
    size = sum(weight.numel() * weight.itemsize for weight in weights)
    buffers = sum(value.numel() * value.itemsize for value in task.model.buffers())
    sizes = {
        "weights": size + buffers, "gradients": 2 * size, "optimizer": 2 * size,
        "average": size + buffers, "activations": kept,
        "peak": 5 * size + 2 * buffers + alive.most, "rise": 2 * size + alive.most,
    }  # fmt: skip
    return {
        "parameters": sum(weight.numel() for weight in weights),
        "gigaflop": counter.get_total_flops() / 1e9 / volumes,
        **{f"{name}_mib": value / MIB for name, value in sizes.items()},
    }


def _second_step(model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer that has its moments already, as in every step but the first."""
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _step(
    task: _Task, volumes: int, optimizer: torch.optim.Optimizer, alive: _Alive, bf16: bool
) -> int:
    """Take one step; return the bytes of what the forward pass kept for the backward one."""
    rows = np.arange(volumes)
    noise = distributed.Noise(0, rows, 0, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        terms = task.loss(task.model, task.load(rows), noise)
    kept = alive.now
    sum(terms.values()).backward()
    optimizer.step()
    return kept


def measure(study: Study, network: str, recompute: bool, volumes: int) -> dict:
    """Return the rise of a fresh process's peak memory (MiB) over two real steps, one thread."""
    words = [sys.executable, "-m", "dsnb.scaling.cost", study.name, network, str(int(recompute))]
    # What is freed goes back to the system at once, so that the peak is what was in use.
    returning = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    answer = subprocess.run(
        [*words, str(volumes)], capture_output=True, text=True, cwd=record.HOME.parent,
        env=os.environ | returning | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if answer.returncode:
        raise RuntimeError(f"{network} could not be measured: {answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def _measure_here(study: Study, network: str, recompute: bool, volumes: int) -> None:
    """Take two steps in this process and print by how much its peak memory rose."""
    torch.set_num_threads(1)
    settings = settings_of(study, network, recompute)
    plan = replace(settings.training, batch=volumes, accumulate=1)
    with distributed.joined() as ranks:
        for shape, some in ((WARM_UP, THIN), (study.grid.shape, {})):
            task = _make_task(shape, replace(settings, training=plan, **some))
            state = training.State(task, plan, {}, ranks)
            before = host_peak_mib()
            for first in range(2):
                training.step(state, task, np.arange(volumes) + first, ranks)
        sys.stdout.write(json.dumps({"measured_mib": host_peak_mib() - before}))


def bench_cost() -> None:
    """Fill the ledger with every preset, network and precision; measure where there is memory."""
    for study in PRESETS.values():
        for network in NETWORKS:
            for recompute in (False, True):
                row = {"preset": study.name, "network": network, "recompute": recompute}
                for precision in ("fp32", "bf16"):
                    _add(row | {"precision": precision}, study, precision == "bf16", 1)
                if study.name in MEASURED:
                    _add(row | {"precision": "fp32"}, study, False, MEASURED[study.name], True)


def _add(row: dict, study: Study, bf16: bool, volumes: int, measured: bool = False) -> None:
    """Add one row, unless the ledger has it."""
    part, about = "measured" if measured else "calculated", (row["network"], row["recompute"])
    settings = asdict(settings_of(study, *about))
    settings.pop("training")  # its length and rate cost nothing here
    row |= {"part": part, "volumes": volumes, "shape": study.grid.shape, "settings": settings}
    key = record.row_key(row, CODE)
    if record.find_row(LEDGER, key) is None:
        found = calculate(study, *about, bf16, volumes)
        if measured:
            found |= measure(study, *about, volumes)
        record.add_row(LEDGER, key, found)
        record.say(f"{study.name} {row['network']} {part}: {found['peak_mib']:.0f} MiB")


if __name__ == "__main__":
    _measure_here(load_study(sys.argv[1]), sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]))

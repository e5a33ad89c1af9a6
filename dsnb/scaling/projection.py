"""What 1 to 8 nodes of 4 GPUs would do: the model of a step, with assumptions drawn at random.

Nothing here is a measurement, and no table of measurements takes it in. The network's GFLOP are
calculated, loading is as fast as it was here times a factor, the error of the model is that of its
held-out configurations, and all else are our own assumptions, as wide as we are unsure.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from dsnb.config import PRESETS, Study
from dsnb.scaling import model
from dsnb.scaling.tables import cost_table

LABEL = "projected, not yet run"
GPUS = (1, 2, 4, 8, 16, 32)
GPUS_A_NODE = 4
PROJECTED = ("medium", "full")
DRAWS = 1000
BAND = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Assumption:
    """A quantity between two values, uniform in its logarithm."""

    low: float
    high: float
    unit: str
    why: str


ASSUMPTIONS = {
    "gpu": Assumption(10, 100, "TFLOP/s a GPU, sustained", "thin 3D convolutions in bf16; own"),
    "inside": Assumption(80, 350, "GB/s of a ring within a node", "own"),
    "between": Assumption(20, 90, "GB/s of a ring between nodes", "four adapters a node; own"),
    "latency": Assumption(3, 30, "us a step of a ring", "own"),
    "overhead": Assumption(1, 15, "ms a step, whatever the batch", "launches, optimizer; own"),
    "jitter": Assumption(0.5, 5, "% SD of a rank's compute", "all wait for the slowest; own"),
    "loader": Assumption(0.3, 3, "times the bytes/s loaded here by one process", "own"),
}  # fmt: skip


def draw_assumptions(seed: int, draws: int = DRAWS) -> dict[str, np.ndarray]:
    """Return values of each assumption (draws,)."""
    rng = np.random.default_rng(seed)
    return {
        name: np.exp(rng.uniform(*np.log((one.low, one.high)), draws))
        for name, one in ASSUMPTIONS.items()
    }


def _cost(study: Study) -> tuple[float, float]:
    """Return GFLOP a volume and bytes of fp32 gradients of a preset's lean VAE on a GPU."""
    table = cost_table().query("network == 'lean' and precision == 'bf16' and not recompute")
    row = table[table["preset"] == study.name].iloc[-1]
    return row["gigaflop"], 4 * row["parameters"]


def step_seconds(
    study: Study, gpus: int, share: int, drawn: dict[str, np.ndarray], errors: np.ndarray,
    load_bytes_s: float,
) -> np.ndarray:  # fmt: skip
    """Return the seconds of a step (draws,) at `share` volumes a GPU; `errors` scale the sums."""
    gigaflop, gradient = _cost(study)
    compute = share * gigaflop * 1e9 / (drawn["gpu"] * 1e12)
    slowest = stats.norm.ppf((gpus - 0.375) / (gpus + 0.25))  # SDs of the largest of so many
    compute = compute * (1 + drawn["jitter"] / 100 * slowest)
    volume_bytes = 2 * np.prod(study.grid.shape)  # float16
    load = share * volume_bytes / (load_bytes_s * drawn["loader"])
    bandwidth = 1e9 * drawn["inside" if gpus <= GPUS_A_NODE else "between"]
    limit = model.BUCKETS[1]
    buckets = [limit] * int(gradient // limit) + [gradient % limit]
    sums = [
        errors * model.sum_s(gpus, size, 1e-6 * drawn["latency"], bandwidth) for size in buckets
    ]
    return 1e-3 * drawn["overhead"] + np.array([
        model.step_s(load[i], compute[i], buckets, [one[i] for one in sums])
        for i in range(len(compute))
    ])  # fmt: skip


def project(errors: np.ndarray, load_bytes_s: float, seed: int = 1) -> pd.DataFrame:
    """Return volumes/s and efficiency by preset, strong or weak, and GPUs: median and 90 % band.

    `errors` (N,): measured over predicted seconds of held-out sums. Strong: a global batch of
    `scaling.cluster_batch`; weak: `scaling.cluster_share` volumes a GPU.
    """
    drawn, rng, rows = draw_assumptions(seed), np.random.default_rng(seed + 1), []
    for study in (PRESETS[name] for name in PROJECTED):
        for kind in ("strong", "weak"):
            alone = None
            for gpus in GPUS:
                share = study.scaling.cluster_share
                if kind == "strong":
                    share = study.scaling.cluster_batch // gpus
                some = rng.choice(errors, DRAWS)
                seconds = step_seconds(study, gpus, share, drawn, some, load_bytes_s)
                speed = gpus * share / seconds
                alone = speed if alone is None else alone
                row = {"status": LABEL, "preset": study.name, "kind": kind, "gpus": gpus,
                       "nodes": max(1, gpus // GPUS_A_NODE), "batch": gpus * share}  # fmt: skip
                for name, values in (
                    ("volumes_per_second", speed), ("efficiency", speed / alone / gpus),
                    ("gpu_hours", study.vae.training.volumes / speed * gpus / 3600),
                ):  # fmt: skip
                    low, middle, high = np.quantile(values, BAND)
                    row |= {f"{name}_low": low, name: middle, f"{name}_high": high}
                rows.append(row)
    return pd.DataFrame(rows)


def assumption_table() -> pd.DataFrame:
    """Return the assumptions, each with its range."""
    return pd.DataFrame([{"assumption": name, **vars(one)} for name, one in ASSUMPTIONS.items()])

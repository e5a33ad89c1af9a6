"""The time of a training step as an equation, fitted on links of known rate and tried on others.

Step = loading + compute + what of the gradients' sum the backward pass does not hide. A ring of P
ranks sums a bucket of B bytes in 2 (P - 1) latencies and 2 (P - 1) / P of B over a bandwidth; DDP
sums its buckets one after another, each once its gradients are there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import pandas as pd
from scipy import optimize

from dsnb import record
from dsnb.scaling import links, rank

LAYOUT = ("world", "hosts", "cores")
BUCKETS = (2**20, 25 * 2**20)  # bytes from which DDP closes the first bucket, and each other one


@dataclass(frozen=True)
class Links:
    """What was fitted: latency of a ring's step, share of the link's rate, bytes/s of a core."""

    latency_s: float
    share: float
    core_bytes: float
    near: float  # what bytes to a rank of the same host cost, beside those over a link
    crowding: float  # power of the crowd by which latency grows and a core's bytes/s shrink

    def crowd(self, world: int, hosts: int, cores: int) -> float:
        """Return by how much ranks that share cores are slower; 1 where each has its own."""
        return max(1.0, (hosts + self.near * (world - hosts)) / cores) ** self.crowding

    def bandwidth(self, gigabits: float, crowd: float) -> float:
        """Return the bytes/s of a rank: the link's, or what its share of a core can move."""
        return min(self.share * gigabits * 1e9 / 8, self.core_bytes / crowd)


def fill_buckets(sizes: Sequence[int]) -> list[int]:
    """Return the bytes of DDP's buckets for fp32 gradients of these sizes, the last layer first."""
    buckets, filled = [], 0
    for size in reversed(sizes):
        filled += 4 * size
        if filled >= BUCKETS[bool(buckets)]:
            buckets.append(filled)
            filled = 0
    return buckets + [filled] * (filled > 0)


def sum_s(world: int, gradient_bytes: float, latency_s: float, bandwidth: float) -> float:
    """Return the seconds in which a ring of ranks sums one bucket; none for one rank."""
    return 2 * (world - 1) * latency_s + links.wire_bytes(world, gradient_bytes) / bandwidth


def step_s(load_s: float, compute_s: float, buckets: Sequence[int], sums: Sequence[float]) -> float:
    """Return the seconds of a step whose `buckets` (bytes) take `sums` (s) one after another."""
    ready, end = rank.FORWARD * compute_s, 0.0
    for size, seconds in zip(buckets, sums):
        ready += (1 - rank.FORWARD) * compute_s * size / sum(buckets)
        end = max(end, ready) + seconds
    return load_s + max(end, compute_s)


def predict(row: dict, fitted: Links, compute_s: float) -> float:
    """Return the seconds of an emulated step, its own work on the gradients not included."""
    buckets, crowd = fill_buckets(row["sizes"]), fitted.crowd(*(row[name] for name in LAYOUT))
    bandwidth = fitted.bandwidth(row["gigabits"], crowd)
    sums = [sum_s(row["world"], size, crowd * fitted.latency_s, bandwidth) for size in buckets]
    return step_s(0.0, compute_s, buckets, sums)


def read_links() -> list[dict]:
    """Return one row a measured configuration: medians of its steps, and whether it is stale."""
    known = {(row["world"], row["hosts"]): row for row in record.ledger_rows(links.LEDGER)}
    rows = []
    for row in known.values():
        about = {name: row[name] for name in LAYOUT}
        about["stale"] = record.is_stale(row, links.CODE)
        for one in row["found"]:
            times = {f"{kind}_s": median(seconds) for kind, seconds in one["seconds"].items()}
            some = {name: one[name] for name in ("times", "gigabits", "sizes")}
            rows.append(about | some | times)
    return rows


def is_fitted(row: dict) -> bool:
    """Return whether a configuration is one of those that the model may see."""
    seen = links.FITTED
    layout = (row["world"], row["hosts"])
    return layout in seen["layout"] and all(row[n] in seen[n] for n in ("times", "gigabits"))


def fit(rows: list[dict]) -> Links:
    """Fit all of `Links` to the bare sums of `rows`, by relative error."""
    wanted = np.array([row["bare_s"] - row["local_s"] for row in rows])

    def read(values: np.ndarray) -> Links:
        return Links(*np.exp(values[:4]).tolist(), float(values[4]))

    def miss(values: np.ndarray) -> np.ndarray:
        predicted = np.array([predict(row, read(values), 0.0) for row in rows])
        return np.log(predicted / wanted)

    tries = [
        optimize.least_squares(
            miss, (latency, 0.0, core, -1.0, 1.0), x_scale=(1, 0.1, 1, 1, 0.3), diff_step=1e-4,
            bounds=([-14, -1, 14, -4, 0], [0, 0.1, 24, 0.7, 2]),
        )
        for latency in (-9, -7, -5) for core in (18, 19, 20, 21)
    ]  # fmt: skip
    return read(min(tries, key=lambda one: one.cost).x)


def compare(rows: list[dict]) -> tuple[pd.DataFrame, Links | None]:
    """Return measured beside predicted seconds of every configuration, held out or not; the fit.

    `sum_pct` is the error of the gradients' sum alone, `step_pct` that of whole steps.
    """
    seen = [row for row in rows if is_fitted(row)]
    wanted = np.prod([len(values) for values in links.FITTED.values()])
    if len(seen) < wanted:
        return pd.DataFrame(), None
    fitted = fit(seen)
    table = pd.DataFrame(rows).drop(columns="sizes")
    table["gradient_mib"] = [4 * sum(row["sizes"]) / 2**20 for row in rows]
    table["held_out"] = [not is_fitted(row) for row in rows]
    table["sum_s"] = table["bare_s"] - table["local_s"]
    table["sum_predicted_s"] = [predict(row, fitted, 0.0) for row in rows]
    table["step_s"] = table["whole_s"]
    table["step_predicted_s"] = [
        row["local_s"] + predict(row, fitted, links.COMPUTE_S) for row in rows
    ]
    for name in ("sum", "step"):
        table[f"{name}_pct"] = 100 * (table[f"{name}_predicted_s"] / table[f"{name}_s"] - 1)
    return table, fitted


def held_out_error(table: pd.DataFrame, name: str = "sum") -> float:
    """Return the median absolute error (%) over held-out configurations."""
    return float(table.loc[table["held_out"], f"{name}_pct"].abs().median())

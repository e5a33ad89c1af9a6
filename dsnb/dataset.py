"""Prepared volumes -> typed tables, memory maps, and rows by group and split."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dsnb import bids, cohort, record
from dsnb.checks import BadInput
from dsnb.space import DS_SPLITS, EUPLOID_SPLITS, GROUPS

OWN_PEOPLE = ("recorded", "planted")
SPLITS = frozenset((*EUPLOID_SPLITS, *DS_SPLITS, *cohort.BESIDE.values()))


def load_table(root: Path, product: str = "prepared") -> pd.DataFrame:
    """Return a finished product's participants.tsv, typed; row i belongs to volume i.

    Refuses (E-CHANGED) raw scans or tables that differ from what was imported.
    """
    record.require(root, product)
    cohort.verify(root)
    return bids.typed(bids.read_table(root / product / "participants.tsv"))


def load_volumes(root: Path, product: str = "prepared") -> np.memmap:
    """Map a finished product's volumes.npy read-only: (N, X, Y, Z) float16, intensity 0 to 1.5."""
    record.require(root, product)
    return np.load(root / product / "volumes.npy", mmap_mode="r", allow_pickle=False)


def identify(root: Path) -> dict[str, str]:
    """Return preset, data and the digest of the prepared volumes, which names a ledger's cohort."""
    mark, digest = record.read_mark(root), record.file_digest(root, "prepared", "volumes.npy")
    return {"preset": mark["preset"], "data": mark["data"], "cohort": digest}


def mean_volume(volumes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the mean (X, Y, Z) of some volumes, float32, one in memory at a time."""
    total = np.zeros(volumes.shape[1:])
    for row in rows:
        total += volumes[row]
    return (total / len(rows)).astype(np.float32)


def as_batch(volumes: np.ndarray, rows: np.ndarray | slice, device: torch.device) -> torch.Tensor:
    """Read rows of volumes (N, X, Y, Z) as a batch (B, 1, X, Y, Z), float32, on a device."""
    batch = torch.from_numpy(np.asarray(volumes[rows], np.float32))
    return batch[:, None].to(device, non_blocking=True)


def load_truth(root: Path) -> tuple[pd.DataFrame, np.memmap]:
    """Return the truth table (M rows, region volumes in ml) and log-Jacobians (M, X, Y, Z).

    Row i of both is one person: positive = locally larger than without the condition.
    """
    record.require(root, "prepared")
    table = bids.typed(bids.read_table(root / "prepared" / "truth.tsv"))
    maps = np.load(root / "prepared" / "truth.npy", mmap_mode="r", allow_pickle=False)
    return table, maps


def select(
    table: pd.DataFrame, group: str, *splits: str, kind: str | tuple[str, ...] = OWN_PEOPLE
) -> np.ndarray:
    """Return the row numbers of a group in some splits (all where none is named).

    Only recorded and planted people, unless `kind` asks for others. An unknown group or
    split is refused, since it would otherwise select nobody in silence.
    """
    unknown = {*splits} - SPLITS | {group} - {*GROUPS}
    if unknown:
        known = ", ".join((*GROUPS, *sorted(SPLITS)))
        raise BadInput("E-SPLIT", "select", "asked", sorted(unknown), known, "correct the name")
    kinds = (kind,) if isinstance(kind, str) else kind
    chosen = (table["group"] == group) & table["kind"].isin(kinds)
    if splits:
        chosen &= table["split"].isin(splits)
    return np.flatnonzero(chosen.to_numpy(bool))

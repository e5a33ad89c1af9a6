"""How fast prepared volumes reach a rank: the memory map against NIfTI unpacked every epoch.

The same volumes in the same random order, as float32 batches, by both ways in turns; one process,
and two at once. A grid beyond the study's own is drawn as smooth noise of brain-like intensity.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import zoom

from dsnb import dataset, record
from dsnb.config import PRESETS
from dsnb.space import Grid

LEDGER = "10_loader"
CODE = ("scaling/loader", "dataset")
GRIDS = ("small", "medium", "full")
VOLUMES = {"small": 64, "medium": 32, "full": 8}  # that an epoch reads
NOISE = 0.02  # SD, that of the phantom: flat volumes would unpack faster than scans do
BATCH = 4
ROUNDS = 9  # alternating, after one that warms up
PROCESSES = (1, 2)
CPU = torch.device("cpu")


def _draw(folder: Path, grid: Grid, count: int) -> None:
    """Write `count` volumes as the memory map (float16) and as NIfTI (int16, thousandths)."""
    draw = np.random.default_rng(0)
    kept = np.lib.format.open_memmap(
        folder / "volumes.npy", "w+", np.float16, (count, *grid.shape)
    )  # fmt: skip
    coarse = [max(2, side // 4) for side in grid.shape]
    for number in range(count):
        smooth = zoom(draw.random(coarse, np.float32), np.divide(grid.shape, coarse), order=1)
        noisy = smooth + NOISE * draw.standard_normal(grid.shape, np.float32)
        kept[number] = np.where(smooth > 0.5, noisy, 0)  # background is zero, as around a brain
        image = nib.Nifti1Image(np.rint(1000 * kept[number]).astype(np.int16), grid.affine)
        image.header.set_slope_inter(0.001, 0)
        nib.save(image, folder / f"{number:03}.nii.gz")
    kept.flush()


def _read_map(folder: Path, rows: np.ndarray) -> torch.Tensor:
    volumes = np.load(folder / "volumes.npy", mmap_mode="r", allow_pickle=False)
    return dataset.as_batch(volumes, rows, CPU)


def _read_nifti(folder: Path, rows: np.ndarray) -> torch.Tensor:
    volumes = [nib.load(folder / f"{row:03}.nii.gz").get_fdata(dtype=np.float32) for row in rows]
    return dataset.as_batch(np.stack(volumes), slice(None), CPU)


WAYS: dict[str, Callable] = {"memory_map": _read_map, "nifti": _read_nifti}


def _epoch(way: str, folder: Path, count: int, seed: int) -> None:
    """Read every volume once, in random order."""
    torch.set_num_threads(1)
    order = np.random.default_rng(seed).permutation(count)
    for start in range(0, count, BATCH):
        WAYS[way](folder, order[start : start + BATCH])


def _rates(folder: Path, count: int, processes: int) -> dict[str, list[float]]:
    """Return volumes a second of both ways in alternating rounds, all processes together."""
    rates = {way: [] for way in WAYS}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for number in range(ROUNDS + 1):
            for way in list(WAYS)[:: 1 if number % 2 else -1]:
                began = time.perf_counter()
                words = [(way, folder, count, 10 * number + one) for one in range(processes)]
                list(pool.map(_epoch, *zip(*words)))
                rates[way].append(processes * count / (time.perf_counter() - began))
    return {way: found[1:] for way, found in rates.items()}


def bench_loader() -> None:
    """Fill the ledger with a row a grid and number of reading processes; what is there stays."""
    for preset in GRIDS:
        for processes in PROCESSES:
            task = {"preset": preset, "processes": processes, "volumes": VOLUMES[preset]}
            key = record.row_key(task, CODE)
            if record.find_row(LEDGER, key) is not None:
                continue
            with tempfile.TemporaryDirectory() as name:
                grid = PRESETS[preset].grid
                _draw(Path(name), grid, VOLUMES[preset])
                rates = _rates(Path(name), VOLUMES[preset], processes)
            found = {f"{way}_per_s": median(seen) for way, seen in rates.items()}
            ratios = np.divide(rates["memory_map"], rates["nifti"])
            found |= {"ratio": median(ratios), "low": min(ratios), "high": max(ratios)}
            found["mb_per_s"] = found["memory_map_per_s"] * 2 * np.prod(grid.shape) / 1e6
            record.add_row(LEDGER, key, found | {"rounds": ROUNDS})
            record.say(f"{preset} x {processes}: {found['ratio']:.1f} times NIfTI")


def read_loader() -> tuple[pd.DataFrame, dict]:
    """Return a row a grid and number of processes: volumes a second both ways; about the rows."""
    rows = pd.DataFrame(record.ledger_rows(LEDGER))
    if not len(rows):
        return rows, {"rows": 0, "stale": 0}
    rows = rows.drop_duplicates(["preset", "processes"], keep="last")
    stale = sum(record.is_stale(row, CODE) for row in rows.to_dict("records"))
    shown = ["preset", "processes", "memory_map_per_s", "nifti_per_s", "ratio", "low", "high",
             "mb_per_s"]  # fmt: skip
    return rows[shown].reset_index(drop=True), {"rows": len(rows), "stale": stale}

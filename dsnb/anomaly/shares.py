"""Shares of the registration: several jobs register some of the rows each, a last one collects.

A row's log-Jacobian, (X, Y, Z) float16, is a file of its own: no two nodes write to one memory map.
The files lie in the unfinished product under its key: none of other settings or parents is found.
"""

import os
import shutil
from pathlib import Path

import numpy as np

from dsnb import dataset, record, rivals
from dsnb.config import Study, parse_shard


def register(root: Path, study: Study, shard: str = "1/1") -> bool:
    """Make `deformation`, or only its share k/n for a run of 1/1 to collect; tell if it is whole.

    A killed share goes on. Refuses E-SHARD.
    """
    part, parts = parse_shard(shard, "map")
    if parts > 1:
        _register_share(root, study, part, parts)
        record.say(f"map: share {shard} is registered; once all are, run it without a shard")
        return False
    if any((root / "deformation").glob("shares-*")):
        _collect(root, study)
    rivals.register(root, study)
    return True


def _begin(root: Path, study: Study) -> tuple[record.Product, Path]:
    """Begin `deformation` as `rivals.register` does; return it and the folder of its shares."""
    with record.writing(root):
        file = (root / ".template").open("w")
    with file:
        record.lock(file, root.name)  # the first shard makes the template, the others wait for it
        rivals.make_template(root, study)
    settings = {"demons_iterations": study.maps.demons_iterations}
    parents = "prepared", "template"
    product = record.begin(root, "deformation", "register", settings, parents, rivals.CODE)
    return product, product.folder / f"shares-{product.key}"


def _register_share(root: Path, study: Study, part: int, parts: int) -> None:
    """Register every n-th row but the twins', unless a share or a run without one has done so."""
    product, folder = _begin(root, study)
    if product.done:
        return
    folder.mkdir(exist_ok=True)
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    template, known = rivals.load_template(root), product.folder / "registered.npy"
    done = np.load(known) if known.is_file() else np.zeros(len(table), bool)
    rows = np.flatnonzero(table["kind"] != "twin")[part - 1 :: parts]
    left = [row for row in rows if not (done[row] or (folder / f"{row}.npy").is_file())]
    for start in range(0, len(left), rivals.BLOCK):
        block = left[start : start + rivals.BLOCK]
        found = rivals.register_volumes(volumes[block], template, study).astype(np.float16)
        with record.writing(folder, found.nbytes):
            for row, log_jacobian in zip(block, found):
                aside = folder / f".{row}.{os.getpid()}.npy"
                np.save(aside, log_jacobian)
                aside.replace(folder / f"{row}.npy")
        record.progress("share", start + len(block), len(left))


def _collect(root: Path, study: Study) -> None:
    """Put the shares' rows where `rivals.register` goes on from, and remove their files."""
    product, folder = _begin(root, study)
    if product.done:
        return
    begun, shape = (product.folder / "registered.npy").is_file(), dataset.load_volumes(root).shape
    maps, done = (
        np.lib.format.open_memmap(product.folder / f"{name}.npy", "r+" if begun else "w+", kind, of)
        for name, kind, of in (("log_jacobian", np.float16, shape), ("registered", bool, shape[:1]))
    )
    rows = [int(path.stem) for path in folder.glob("[0-9]*.npy")]
    for row in rows:
        maps[row] = np.load(folder / f"{row}.npy")
    maps.flush()
    done[rows] = True
    done.flush()
    for left in product.folder.glob("shares-*"):  # another key's, too: by a share that ran on
        shutil.rmtree(left)

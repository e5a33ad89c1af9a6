"""Products: folders that one verb makes, with a key of settings, code and parents.

`product.json` holds the key and every file's digest, so a verb knows what is current, changed or
damaged.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from dsnb.checks import BadInput
from dsnb.record.files import (
    code_digest,
    digest,
    lock,
    locked,
    plain,
    provenance,
    say,
    write_json,
    write_text,
    writing,
)

# Which stage (and verb) makes a product: what a missing one is answered with.
MADE_BY = {
    "raw": "01_cohort (dsnb phantom)",
    "cohort": "01_cohort (dsnb import)",
    "prepared": "02_volumes (dsnb prepare)",
    "template": "03_vae",
    "runs/features": "03_vae (dsnb train vae)",
    "runs/vae": "03_vae (dsnb train vae)",
    "latents": "04_latents (dsnb encode)",
    "deformation": "05_anomaly (dsnb map)",
    "planted": "05_anomaly (dsnb train undo)",
    "runs/undo": "05_anomaly (dsnb train undo)",
    "maps": "05_anomaly (dsnb map)",
    "further/latents": "07_diffusion (dsnb train diffusion)",
    "components": "07_diffusion (dsnb train diffusion)",
    "runs/diffusion": "07_diffusion (dsnb train diffusion)",
    "synthetic": "07_diffusion (dsnb sample)",
    "morphology": "08_fidelity",
    "runs/search": "09_search (dsnb search)",
    "runs/scaling": "10_scaling (dsnb bench)",
}


class Product:
    """A folder that one verb makes; see `begin`."""

    def __init__(self, root: Path, name: str, note: dict):
        self.folder = root / name
        self.name = name
        self.note = note
        self.key = digest(note)
        self.done = False

    def finish(self) -> None:
        """Write the manifest that says the product is whole."""
        files = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.name not in ("product.json", ".begun"):
                files[str(path.relative_to(self.folder))] = {**_stamp(path), "sha": digest(path)}
        manifest = {"key": self.key, "note": self.note, "files": files}
        manifest["provenance"] = provenance(
            self.note["verb"], self.note["settings"], self.note["parents"]
        )
        write_json(self.folder / "product.json", manifest)
        (self.folder / ".begun").unlink(missing_ok=True)
        self.done = True


def _stamp(path: Path) -> dict:
    status = path.stat()
    return {"size": status.st_size, "mtime": status.st_mtime_ns}


def _damaged(folder: Path, manifest: dict) -> str | None:
    """Name the first file that is gone or altered; digests are read only where stamps differ."""
    for name, known in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        stamp = _stamp(path)
        same = stamp == {"size": known["size"], "mtime": known["mtime"]}
        if not same and (stamp["size"] != known["size"] or digest(path) != known["sha"]):
            return f"{name} was altered"
    return None


def _manifest(root: Path, name: str) -> dict | None:
    path = root / name / "product.json"
    return json.loads(path.read_text()) if path.is_file() else None


def require(root: Path, name: str) -> str:
    """Return a product's key; refuse when it is missing, damaged or made from other parents."""
    manifest = _manifest(root, name)
    fix = f"run stage {MADE_BY.get(name, name)} first, or name the data root that has it"
    if manifest is None:
        raise BadInput("E-MISSING", name, "this product", "absent", "a finished stage", fix)
    fault = _damaged(root / name, manifest)
    if fault:
        raise BadInput("E-DAMAGED", name, "a file", fault, "the file as it was written", fix)
    for parent, key in manifest["note"]["parents"].items():
        current = _manifest(root, parent)
        if current is None or current["key"] != key:
            seen = current["key"] if current else "absent"
            raise BadInput("E-STALE", name, f"its parent {parent}", seen, f"key {key}", fix)
    return manifest["key"]


def chain(root: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the keys of products and of all that they were made from; E-STALE where they part."""
    keys, waiting = {}, [(name, require(root, name)) for name in names]
    while waiting:
        name, key = waiting.pop()
        manifest = _manifest(root, name)  # absent where only later products were brought here
        seen = [keys.get(name, key), manifest["key"] if manifest else key]
        if seen != [key, key]:
            fix = f"run stage {MADE_BY.get(name, name)} and all after it"
            raise BadInput("E-STALE", name, "its key", f"{seen[0]} and {seen[1]}", key, fix)
        if name not in keys and manifest:
            waiting += manifest["note"]["parents"].items()
        keys[name] = key
    return dict(sorted(keys.items()))


def data_digest(root: Path) -> str | None:
    """Return the digest of all files that the study began with: the phantom's, or the cohort's."""
    manifest = _manifest(root, "raw") or _manifest(root, "cohort")
    return digest({n: file["sha"] for n, file in manifest["files"].items()}) if manifest else None


def file_digest(root: Path, name: str, file: str) -> str:
    """Return the digest of a file of a finished product, from its manifest."""
    require(root, name)
    return _manifest(root, name)["files"][file]["sha"]


def planned(root: Path, verb: str, settings: object, parents: tuple[str, ...], code: tuple) -> dict:
    """Return the note of a product to be made now; its digest is the product's key."""
    keys = {parent: require(root, parent) for parent in parents}
    return {"verb": verb, "settings": plain(settings), "parents": keys, "code": code_digest(*code)}


def begin(
    root: Path, name: str, verb: str, settings: object, parents: tuple[str, ...], code: tuple,
    keep: Callable[[Path, dict], None] | None = None,
) -> Product:  # fmt: skip
    """Open a product folder: `done` if it is current, otherwise ready to write or to go on.

    Files of an unfinished product with the same key are kept, so a killed verb resumes; files
    of an outdated one are removed, unless `keep` (folder, new note) moves them away or refuses.
    A folder that is not ours is refused.
    """
    note = planned(root, verb, settings, parents, code)
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        file = (root / ".begin").open("w")
    with file, writing(root):  # shards begin one product at the same moment
        lock(file, root.name)
        return _open(Product(root, name, note), root, keep)


def _open(product: Product, root: Path, keep: Callable[[Path, dict], None] | None) -> Product:
    """Find a product current, unfinished, outdated, foreign or absent; clear what is outdated."""
    folder, name, note = product.folder, product.name, product.note
    begun, verb, why = folder / ".begun", note["verb"], ""
    manifest = _manifest(root, name)
    if manifest and manifest["key"] == product.key:
        fault = _damaged(folder, manifest)
        if fault is None:
            product.done = True
            say(f"{verb}: nothing changed, {len(manifest['files'])} files kept")
            return product
        why = f"{name}/{fault}; making it again"
    elif manifest:
        changed = [part for part in note if manifest["note"].get(part) != note[part]]
        why = f"{' and '.join(changed)} changed; making {name} again"
    elif begun.is_file() and begun.read_text() == product.key:
        say(f"{verb}: an unfinished {name} goes on")
        return product
    elif begun.is_file():
        why = f"the unfinished {name} has other settings, parents or code; making it again"
    elif folder.is_dir() and any(folder.iterdir()):
        raise BadInput(
            "E-FOREIGN", name, "this folder", "files that dsnb did not write", "an empty folder",
            "move them away or give another data root",
        )  # fmt: skip
    if (folder / ".lock").is_file():
        with locked(folder):  # not while a training holds it
            pass
    if keep:
        keep(folder, note)
    if why:
        say(f"{verb}: {why}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_text(begun, product.key)
    return product

"""What was run, from what: products with digests, provenance, results files, progress lines.

A product is a folder that one verb makes. Its `product.json` holds a key (settings, code and
parents' keys) and every file's digest, so a verb knows what is current, changed or damaged.
"""

import ast
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np

from dsnb.checks import BadInput

HOME = Path(__file__).resolve().parent
PACKAGES = ("torch", "monai", "nibabel", "nilearn", "numpy", "scipy", "scikit-learn", "SimpleITK")
# The headline keys that each results file must carry (null needs a reason in `tables`).
HEADLINE = {
    "01_cohort": "subjects euploid ds folded_voxels target_error_points phantom_version",
    "02_volumes": "prepared excluded seconds_per_volume mask_dice_min native_error",
    "03_vae": "psnr_db psnr_db_floor ssim psnr_db_pca psnr_db_mean region_error_pct "
    "gain_db_over_monai gain_db_over_monai_shrunk time_ratio_to_20db active_channels",
    "04_latents": "latent_size pca_variance_2 ds_shift_sd leak_floor_auc",
    "05_anomaly": "lift lift_best_rival best_rival lift_ratio_ci auprc auprc_best_rival "
    "auprc_null prevalence effect_rank_correlation euploids_flagged sham_flagged fdp_at_q05 "
    "power_at_q05 coverage_error_points",
    "06_strata": "bacc_ds_with_size auc_ds auc_ds_volumes auc_ds_confounds auc_ds_oracle "
    "bacc_ds_hard bacc_ds_hard_volumes stage_gain stage_gain_ci permutation_p "
    "strata_false_discovery",
    "07_diffusion": "sampler_steps guidance spectrum_error_db",
    "08_fidelity": "effect_correlation effect_slope regions_equivalent reconstruction_slope kid "
    "kid_floor tstr_bacc trtr_bacc copies_recalled false_alarms overfit_attack_auc attack_auc "
    "attack_auc_upper release",
    "09_search": "trials best_psnr_db default_psnr_db ablations",
    "10_scaling": "ddp_efficiency parity_error resume_identical model_error_pct",
}
STAGES = tuple(HEADLINE)
# Which stage (and verb) makes a product: what a missing one is answered with.
MADE_BY = {
    "raw": "01_cohort (dsnb phantom)",
    "cohort": "01_cohort (dsnb import)",
    "prepared": "02_volumes (dsnb prepare)",
    "runs/vae": "03_vae (dsnb train vae)",
    "latents": "04_latents (dsnb encode)",
    "deformation": "05_anomaly (dsnb register)",
    "maps": "05_anomaly (dsnb map)",
    "runs/diffusion": "07_diffusion (dsnb train diffusion)",
    "synthetic": "07_diffusion (dsnb sample)",
}


def digest(value: object) -> str:
    """Return a 16-digit SHA-256 of a file, an array or any JSON value."""
    if isinstance(value, Path):
        with value.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if isinstance(value, np.ndarray):
        head = f"{value.dtype}{value.shape}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def code_digest(*modules: str) -> str:
    """Digest the named dsnb modules without comments and docstrings, which change no result."""
    trees = []
    files = [sorted(HOME.glob(f"{name}/*.py")) or [HOME / f"{name}.py"] for name in sorted(modules)]
    for path in sum(files, []):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if isinstance(node, documented) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        trees.append(ast.dump(tree))
    return digest(trees)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: aside, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=1) + "\n")


def plain(value: object) -> object:
    """Turn numpy scalars and tuples into JSON types; NaN and infinity are refused."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a result is not finite: write null and the reason instead")
        return float(f"{value:.6g}")
    return value


def emit(entry: dict) -> None:
    """Send one progress entry to the study runner's file, or print it where there is none."""
    runner = os.environ.get("DSNB_PROGRESS")
    if runner:
        with open(runner, "a") as file:
            file.write(json.dumps(entry) + "\n")
    elif "say" in entry:
        print(entry["say"], file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        end = "\n" if entry["done"] >= entry["total"] else ""
        print(f"\r{entry['label']} {entry['done']}/{entry['total']}", end=end, file=sys.stderr)


def say(text: str) -> None:
    """Tell the user one line of what is happening."""
    emit({"say": text})


_last_progress = [0.0]


def progress(label: str, done: int, total: int) -> None:
    """Move the bar of a long step, at most twice a second."""
    if time.monotonic() - _last_progress[0] > 0.5 or done >= total:
        _last_progress[0] = time.monotonic()
        emit({"label": label, "done": int(done), "total": int(total)})


@functools.cache
def commit() -> dict:
    """Return the commit and whether tracked code differs from it."""

    def git(*words: str) -> str:
        answer = subprocess.run(["git", *words], cwd=HOME, capture_output=True, text=True)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "dsnb", "../notebooks")
    return {"commit": head or "no git", "dirty": bool(changed) if head else None}


def provenance(verb: str, settings: object, parents: dict[str, str]) -> dict:
    """Describe a run: verb, settings and digest, parents' keys, commit, versions, threads."""
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    torch = sys.modules.get("torch")
    return {
        "verb": verb,
        "settings": plain(settings),
        "settings_digest": digest(plain(settings)),
        "parents": parents,
        **commit(),
        "python": platform.python_version(),
        "packages": versions,
        "threads": torch.get_num_threads() if torch else os.cpu_count(),
        "device": "cuda" if torch and torch.cuda.is_available() else "cpu",
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
    fix = f"run stage {MADE_BY.get(name, name)} first"
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


def begin(
    root: Path, name: str, verb: str, settings: object, parents: tuple[str, ...], code: tuple
) -> Product:
    """Open a product folder: `done` if it is current, otherwise ready to write or to go on.

    Files of an unfinished product with the same key are kept, so a killed verb resumes; files
    of an outdated one are removed. A folder that is not ours is refused.
    """
    keys = {parent: require(root, parent) for parent in parents}
    note = {
        "verb": verb,
        "settings": plain(settings),
        "parents": keys,
        "code": code_digest(*code),
    }
    product = Product(root, name, note)
    folder, begun = product.folder, product.folder / ".begun"
    manifest = _manifest(root, name)
    if manifest and manifest["key"] == product.key:
        fault = _damaged(folder, manifest)
        if fault is None:
            product.done = True
            say(f"{verb}: nothing changed, {len(manifest['files'])} files kept")
            return product
        say(f"{verb}: {name}/{fault}; making it again")
    elif manifest:
        changed = [part for part in note if manifest["note"].get(part) != note[part]]
        say(f"{verb}: {' and '.join(changed)} changed; making {name} again")
    elif begun.is_file() and begun.read_text() == product.key:
        say(f"{verb}: an unfinished {name} goes on")
        return product
    elif folder.is_dir() and not begun.is_file() and any(folder.iterdir()):
        raise BadInput(
            "E-FOREIGN", name, "this folder", "files that dsnb did not write", "an empty folder",
            "move them away or give another data root",
        )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_text(begun, product.key)
    return product


def open_root(data_root: str, preset: str, data: str | None, people_may_be_shown: bool) -> Path:
    """Return the data root, marked with its preset and data; another study's root is refused.

    `data` is None where a stage takes what earlier stages left.
    """
    root = Path(data_root or os.environ.get("DSNB_DATA") or HOME.parent / "data").expanduser()
    mark = root / "study.json"
    fix = "give another data root (data_root, or DSNB_DATA)"
    if mark.is_file():
        seen = json.loads(mark.read_text())
        if seen["preset"] != preset or data not in (None, seen["data"]):
            wanted = f"preset {preset}, data {data or seen['data']}"
            raise BadInput("E-ROOT", root.name, "its study", seen, wanted, fix)
    else:
        shown = data is None or people_may_be_shown
        entry = {"preset": preset, "data": data or "phantom", "people_may_be_shown": shown}
        write_json(mark, entry)
    return root


def read_mark(root: Path) -> dict:
    """Return which study a data root holds: preset, data, people_may_be_shown."""
    return json.loads((root / "study.json").read_text())


def write_results(
    root: Path, stage: str, headline: dict, tables: dict, timing: dict, parents: tuple[str, ...]
) -> dict:
    """Write `results/NN_noun.json` under the root; every null needs a reason in its tables.

    Keys follow the results contract (`HEADLINE`); more may be added, none may be missing.
    """
    missing = set(HEADLINE[stage].split()) - set(headline)
    silent = [k for k, v in headline.items() if v is None and k not in tables.get("reasons", {})]
    if missing or silent:
        raise ValueError(f"{stage}: headline lacks {sorted(missing)}, no reason for {silent}")
    mark = read_mark(root)
    keys = {parent: require(root, parent) for parent in parents}
    results = plain(
        {
            "stage": stage,
            "preset": mark["preset"],
            "data": mark["data"],
            "headline": headline,
            "tables": tables,
            "timing": timing,
            "provenance": provenance(stage, mark, keys),
        }
    )
    write_json(root / "results" / f"{stage}.json", results)
    return results


def read_results(root: Path, stage: str) -> dict:
    """Read a stage's results; refuse with the stage to run when they are absent."""
    path = root / "results" / f"{stage}.json"
    if not path.is_file():
        fix = f"run notebooks/{stage}.ipynb first"
        raise BadInput("E-MISSING", path.name, "this results file", "absent", "a file", fix)
    return json.loads(path.read_text())

"""What was seen of every scan: digests of file and voxels, by which copies and changes show."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes

from dsnb import bids, checks, record
from dsnb.checks import BadInput

# Beside the products of a data root: what is known of the scans, and where they lie.
KNOWN, SOURCE = "scans.json", "source.json"
COLUMNS = {
    "path": "path of the scan in the raw folder",
    "sha": "digest of the file",
    "voxels": "digest of the canonical voxels: RAS order, float32; equal however saved again",
    "grid": "digest of shape and affine (0.01 mm)",
    "shape": "voxels along right, anterior, superior",
    "voxel_mm": "voxel sizes",
    "notes": "what was accepted but changed",
}
FEW = 5  # scans of a site from which on an odd one stands out
# Few scans unlike all others of a site are a mix-up, more of them a change of protocol.
ODD_SHARE, ODD_SIZE = 0.1, 1.2  # at most this share; voxels larger or smaller by this factor


def survey(
    raw: Path, paths: list[str], root: Path | None = None, full: bool = False
) -> tuple[pd.DataFrame, list[BadInput], list[BadInput]]:
    """Read every scan to its end, or know it again; return manifest, problems and warnings.

    The manifest (`COLUMNS`) has a row a sound scan. With a data root, what was seen is kept there,
    and a scan of the same size, mtime and inode is not read again, unless `full`.
    """
    code, known = record.code_digest("checks", "bids", "cohort"), {}
    if root and not full and (root / KNOWN).is_file():
        known = json.loads((root / KNOWN).read_text())
    kept = known["scans"] if known.get("code") == code else {}
    stamps = {path: _stamp(raw / path) for path in paths}
    seen = {
        path: kept[path] for path in paths if kept.get(path, {}).items() >= stamps[path].items()
    }
    new, problems = [path for path in paths if path not in seen], []
    answers = bids.attempt(lambda path: _examine(raw, path), new, "checking scans")
    for answer, path in zip(answers, new):
        if isinstance(answer, BadInput):
            problems.append(answer)
        else:
            seen[path] = answer | stamps[path]
    if root and new:
        record.write_json(root / KNOWN, {"code": code, "scans": kept | seen})
    rows = [seen[path] for path in paths if path in seen]
    warnings = [BadInput(*said) for row in rows for said in row["warnings"]]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object), problems, warnings


def _stamp(path: Path) -> dict[str, int]:
    """Return what changes with a file, read without opening it; nothing where it is gone."""
    try:
        status = path.stat()
    except OSError:
        return {"size": -1}
    return {"size": status.st_size, "mtime": status.st_mtime_ns, "inode": status.st_ino}


def _examine(raw: Path, path: str) -> dict:
    """Read one scan to its end and return its row of the manifest and its warnings."""
    volume, affine, notes, warnings = checks.examine(raw / path, raw)
    volume, affine = bids.as_ras(volume, affine)
    return {
        "path": path,
        "sha": record.digest(raw / path),
        "voxels": record.digest(volume),
        "grid": record.digest([volume.shape, (affine.round(2) + 0.0).tolist()]),
        "shape": "x".join(map(str, volume.shape)),
        "voxel_mm": "x".join(f"{size:.3g}" for size in voxel_sizes(affine)),
        "notes": "; ".join(notes),
        "warnings": [list(warning.said) for warning in warnings],
    }


def find_copies(manifest: pd.DataFrame) -> list[BadInput]:
    """Return E-DUP for scans under two names, however saved again; rescaled ones are not seen."""
    problems = []
    for _, same in manifest[manifest.duplicated("voxels", keep=False)].groupby("voxels"):
        first, *others = same["path"]
        expected, fix = "one scan a person and session", "find out whose scan it is"
        problems.append(BadInput("E-DUP", first, "equal voxels", others, expected, fix))
    return problems


def find_mixture(manifest: pd.DataFrame, sites: pd.Series) -> tuple[list, list]:
    """Return E-MIXED for scans unlike all others of their site, W-MIXED where a site has kinds.

    Odd are few (a tenth, or one in five and more) whose voxels are a fifth larger or smaller than
    the site's median, or which alone lie off a grid that the others share. A site whose scans
    differ otherwise, as native ones do, gets a warning. `sites` is indexed as the manifest.
    """
    problems, warnings = [], []
    for site, scans in manifest.groupby(sites):
        kinds = (scans["voxel_mm"] + " mm, " + scans["shape"]).value_counts()
        sizes = np.array([list(map(float, text.split("x"))) for text in scans["voxel_mm"]])
        coarse = (np.abs(np.log(sizes / np.median(sizes, 0))) > np.log(ODD_SIZE)).any(1)
        off = (scans["grid"] != scans["grid"].mode()[0]).to_numpy()
        most = max(1, int(ODD_SHARE * len(scans)))
        odd = next((mask for mask in (coarse, off) if 0 < mask.sum() <= most), None)
        where, seen = f"site {site}", kinds.to_dict()
        if odd is not None and len(scans) >= FEW:
            said = ("one of the grids", seen, "that of the site")
            fix = "replace them, or add a column site that tells sites apart"
            problems.append(BadInput("E-MIXED", ", ".join(scans["path"][odd]), *said, fix))
        elif len(kinds) > 1:
            fix = "nothing, if its protocol changed"
            warnings.append(BadInput("W-MIXED", where, "its grids", seen, "one", fix))
    return problems, warnings


def verify(root: Path) -> None:
    """Refuse (E-CHANGED) a data root whose raw scans or table changed since their import.

    Costs a look at every file's size and times. Where the raw folder is not at hand, as on a
    cluster, the products stand by their own digests. Nothing is to be seen for a phantom.
    """
    if not (root / SOURCE).is_file():
        return
    raw = root / json.loads((root / SOURCE).read_text())["raw"]
    if not raw.is_dir():
        return
    scans = bids.read_table(root / "cohort" / "manifest.tsv").set_index("path")["sha"]
    seen = survey(raw, list(scans.index), root)[0].set_index("path")["sha"].to_dict()
    split = json.loads((root / "cohort" / "split.json").read_text())
    people = raw / "participants.tsv"
    seen[people.name] = record.digest(people) if people.is_file() else "absent"
    known, fix = scans.to_dict() | {people.name: split["participants"]}, "run the import again"
    problems = [
        BadInput("E-CHANGED", path, "its digest", seen.get(path, "not readable"), sha, fix)
        for path, sha in known.items()
        if seen.get(path) != sha
    ]
    if problems:
        raise checks.Report(problems)

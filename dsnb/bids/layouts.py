"""Layouts that people receive: which files are T1w scans, which rows are whose, Analyze pairs."""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from dsnb import checks, record
from dsnb.bids.columns import MISSING, OF_PERSON, OF_VISIT, ColumnMap, translate
from dsnb.bids.tables import read_table
from dsnb.checks import BadInput

VISIT = ["participant_id", "session"]


@dataclass(frozen=True)
class Layout:
    """How one source names its scans and people."""

    scan: str  # a scan's file name, as a pattern with id and perhaps session, run, site
    key: str  # the cell of a table that names a person, likewise
    label: str  # how an id becomes a participant
    shown: str  # how `scan` reads in a sentence
    one_row: bool  # whether a visit should have one row in each table


LAYOUTS = {
    # Our reading of public analysis code, not of a release: names as in the tables, and the T1w
    # alone or with T1, MPRAGE or SPGR in what follows.
    "abcds": Layout(
        r"(?P<id>[A-Za-z0-9-]+)_(?P<session>[A-Za-z0-9-]+?)([_.-].*(?i:t1|mprage|spgr).*)?"
        r"\.nii(\.gz)?",
        r"(?P<id>.*)", "{}", "<subject_label>_<event_code>[_...T1...].nii.gz", False,
    ),
    "oasis1": Layout(
        r"(?P<id>OAS1_\d{4})_(?P<session>MR\d)_mpr-(?P<run>\d)_anon\.hdr",
        r"(?P<id>OAS1_\d{4})_(?P<session>MR\d)", "{}", "OAS1_0001_MR1_mpr-1_anon.hdr", True,
    ),
    "ixi": Layout(
        r"IXI0*(?P<id>\d+)-(?P<site>[A-Za-z]+)-\d+-T1\.nii(\.gz)?",
        r"(IXI)?0*(?P<id>\d+)", "IXI{:0>3}", "IXI002-Guys-0828-T1.nii.gz", True,
    ),
}  # fmt: skip


def read_layout(
    folder: Path, layout: Layout, column_map: ColumnMap
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the T1w scans (participant_id, session, path, site, runs) and all rows in our columns.

    Refuses in one report: E-NOTABLE, E-NOT1W, E-ID and what `read_table` refuses.
    """
    sources = column_map.columns["participant_id"].sources
    columns = dict.fromkeys([*column_map.columns, "group_recorded"])
    columns |= dict.fromkeys(rule["column"] for rule in column_map.exclude)
    rows, problems = pd.DataFrame(), []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (".csv", ".tsv"):
            continue
        try:
            table = translate(read_table(path), column_map)
        except BadInput as problem:
            problems.append(problem)
            continue
        if set(sources) & set(table):
            table = table.reindex(columns=list(columns), fill_value=MISSING)
            rows = pd.concat([rows, table.assign(table=path.name)], ignore_index=True)
    if rows.empty and not problems:
        expected, fix = f"rows with {' or '.join(sources)}", "put the CSV or TSV beside the scans"
        problems.append(BadInput("E-NOTABLE", folder.name, "its tables", "no rows", expected, fix))
    elif len(rows):
        missing = [name for name in (*OF_PERSON, *OF_VISIT) if name not in rows]
        rows = rows.assign(**dict.fromkeys(missing, MISSING))
        problems += _name_people(rows, layout)
    scans = _find_scans(folder, layout)
    if scans.empty:
        fix = "give the folder that holds the scans"
        problems.append(BadInput("E-NOT1W", folder.name, "its T1w scans", 0, layout.shown, fix))
    if problems:
        raise checks.Report(problems)
    return scans, rows


def _find_scans(folder: Path, layout: Layout) -> pd.DataFrame:
    """Return the T1w scans, the first run of each session on top, with the number of runs."""
    images = [path for path in folder.rglob("*") if path.name.endswith((".nii", ".nii.gz", ".hdr"))]
    found = []
    for path in images:
        if match := re.fullmatch(layout.scan, path.name, re.ASCII):
            parts = {"site": MISSING, "run": "", "session": ""} | match.groupdict()
            session = _safe(parts["session"]).removeprefix("sub-") or MISSING
            person = _safe(parts["id"], layout.label)
            found.append((person, session, parts["run"], path, parts["site"]))
    if others := len(images) - len(found):
        record.say(f"{others} other images were not read: their names are not {layout.shown}")
    columns = [*VISIT, "run", "path", "site"]
    scans = pd.DataFrame(sorted(found), columns=columns, dtype=object)
    return scans.assign(runs=scans.groupby(VISIT)["path"].transform("size"))


def _safe(text: str, label: str = "{}") -> str:
    """Return sub- and an id's letters and digits; if it holds more than - _ and blanks, itself."""
    plain = "sub-" + label.format(re.sub(r"[-_ ]", "", text))
    return plain if checks.is_safe_id(plain) else text


def _name_people(rows: pd.DataFrame, layout: Layout) -> list[BadInput]:
    """Turn the ids, sessions and families of the tables into ours; return what is unsafe."""
    raw, flags = rows["participant_id"], re.ASCII | re.DOTALL
    found = [re.fullmatch(layout.key, cell, flags) for cell in raw]
    ids = pd.Series([match["id"] if match else cell for match, cell in zip(found, raw)])
    inner = [match.groupdict().get("session") if match else None for match in found]
    sessions = pd.Series([one or other for one, other in zip(inner, rows["session"])])
    families = rows["family"]
    safe = {
        "participant_id": (raw, ids.map(lambda one: _safe(one, layout.label))),
        "session": (sessions, sessions.map(_safe)),
        "family": (families, families.map(lambda one: _safe(one, layout.label))),
    }
    fix, expected = "give these people other labels", "letters, digits, - and _, each label once"
    problems = []
    for column, (given, ours) in safe.items():
        wrong = ~ours.map(checks.is_safe_id) & (given != MISSING)
        if column == "participant_id":
            wrong |= (given == MISSING) | (ids.groupby(ours).transform("nunique") > 1)
        if wrong.any():
            seen = sorted(set(given[wrong]))[:20]
            problems.append(BadInput("E-ID", "tables", column, seen, expected, fix))
        rows[column] = ours
    rows["session"] = rows["session"].str.removeprefix("sub-")
    return problems


def read_analyze(
    path: Path, folder: Path, orientation: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read a checked Analyze pair: volume (X, Y, Z), affine in mm around its middle, and notes.

    The format holds no orientation: `orientation` says where the voxel axes run, like ASL;
    without it the scan is refused (E-NOAFFINE).
    """
    data = path.with_suffix(".img")
    for part in (path, data):
        checks.check_path(part, folder)
    if not orientation:
        fix = "declare `orientation` in a columns.yml, once you know it"
        raise BadInput("E-NOAFFINE", path.name, "orientation", "none", "three letters", fix)
    block = path.read_bytes()
    if len(block) != nib.AnalyzeHeader.sizeof_hdr or block[344:347] == b"ni1":
        said = ("another", "an Analyze header of 348 bytes", "fetch the file again")
        raise BadInput("E-FORMAT", path.name, "its content", *said)
    old = nib.AnalyzeHeader(block, check=False)
    new = nib.Nifti1Header(endianness=old.endianness)
    for name in ("dim", "datatype", "bitpix", "pixdim"):
        new[name] = old[name]
    new["magic"], new["vox_offset"] = b"n+1", 352
    affine = np.diag([0.0, 0, 0, 1])
    turn = nib.orientations.axcodes2ornt(orientation)
    for voxel, (world, sign) in enumerate(turn.astype(int)):
        size, length = float(new["pixdim"][voxel + 1]), float(new["dim"][voxel + 1])
        affine[world, [voxel, 3]] = sign * size, -sign * size * (length - 1) / 2
    new.set_sform(affine, 1)
    # As NIfTI it passes through the one reader that judges scans.
    whole = new.binaryblock + b"\0" * 4 + data.read_bytes()
    return checks.judge(io.BytesIO(whole), len(whole), data.name)[:3]

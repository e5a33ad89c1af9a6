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
    # alone or with T1, MPRAGE or SPGR in what follows, unless that names another image.
    "abcds": Layout(
        r"(?P<id>[A-Za-z0-9-]+)_(?![A-Za-z0-9]+[_.-].*"
        r"(?i:pet|pib|av\d|fdg|suvr|flair|(?<![a-z])t2|mask|seg|dwi|bold))"
        r"(?P<session>[A-Za-z0-9-]+?)([_.-].*(?i:t1|mprage|spgr).*)?\.nii(\.gz)?",
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
    endings = (".nii", ".nii.gz", ".hdr")
    paths = sorted(path for path in folder.rglob("*") if path.name.endswith(endings))
    found = _parts([path.name for path in paths], layout.scan).assign(path=paths)
    if others := int((found["id"] == "").sum()):
        record.say(f"{others} other images were not read: their names are not {layout.shown}")
    found = found[found["id"] != ""]
    found["participant_id"] = found["id"].map(lambda one: _safe(one, layout.label))
    found["session"] = found["session"].map(_safe).str.removeprefix("sub-")
    scans = found.replace({"session": "", "site": ""}, MISSING)
    scans = scans.sort_values([*VISIT, "run", "path"], ignore_index=True)
    return scans.assign(runs=scans.groupby(VISIT)["path"].transform("size"))


def _parts(names: list[str], pattern: str) -> pd.DataFrame:
    """Return id, session, run and site of names that match whole; "" for what is not there."""
    whole = pd.Series(names, dtype=object).str.extract(rf"\A(?:{pattern})\Z", re.ASCII | re.DOTALL)
    return whole.reindex(columns=["id", "session", "run", "site"]).astype(object).fillna("")


def _safe(text: str, label: str = "{}") -> str:
    """Return sub- and an id's letters and digits; if it holds more than - _ and blanks, itself."""
    plain = "sub-" + label.format(re.sub(r"[-_ ]", "", text))
    return plain if checks.is_safe_id(plain) else text


def _name_people(rows: pd.DataFrame, layout: Layout) -> list[BadInput]:
    """Turn the ids, sessions and families of the tables into ours; return what is unsafe."""
    given, found = rows[[*VISIT, "family"]], _parts(rows["participant_id"], layout.key)
    ids = found["id"].where(found["id"] != "", given["participant_id"])
    own = found["session"].where(found["session"] != "", given["session"])
    given = given.assign(session=own)
    rows["participant_id"] = ids.map(lambda one: _safe(one, layout.label))
    rows["session"] = given["session"].map(_safe)
    rows["family"] = given["family"].map(lambda one: _safe(one, layout.label))
    unsafe = ~rows[given.columns].map(checks.is_safe_id) & (given != MISSING)
    shared = ids.groupby(rows["participant_id"]).transform("nunique") > 1
    unsafe["participant_id"] |= (given["participant_id"] == MISSING) | shared
    rows["session"] = rows["session"].str.removeprefix("sub-")
    fix, expected = "give these people other labels", "letters, digits, - and _, each label once"
    seen = {column: sorted(set(given[column][unsafe[column]]))[:20] for column in given}
    return [
        BadInput("E-ID", "tables", column, labels, expected, fix)
        for column, labels in seen.items()
        if labels
    ]


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

"""Importers: the layouts that people receive (ABC-DS, OASIS-1, IXI) -> a BIDS folder.

The input is never written to. Everything is built in a hidden folder beside the output, which
takes its name in the end: a killed import leaves no output, and the next one begins anew.
"""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import checks, record
from dsnb.bids.columns import MISSING, OF_PERSON, OF_VISIT, ColumnMap, describe_columns, shipped
from dsnb.bids.layouts import LAYOUTS, VISIT, Layout, read_analyze, read_layout
from dsnb.bids.scans import attempt, describe, save_volume
from dsnb.bids.tables import NUMBERS, write_table, wrong_cells
from dsnb.checks import BadInput

CAPPED_AGE = 89  # the limit of HIPAA, which the BIDS validator names, too
ONLY_DS = ["karyotype", "stage", "disability"]


def import_cohort(source: str, folder: Path, out: Path) -> pd.DataFrame:
    """Write the cohort in `folder` as BIDS into `out`; return who and what was left out, and why.

    `source` is abcds, oasis1 or ixi. Tables (CSV or TSV) lie at the top of `folder`, scans
    anywhere in it; a `columns.yml` there replaces the column map that comes with dsnb. The
    answer, also in `out`/exclusions.tsv, has participant_id, session, code and reason: one row
    for each scan, person or row that is not used. Refuses with one report: E-PATH, E-FOREIGN,
    E-YAML, E-NOTABLE, E-NOT1W, E-NOBODY, E-ID and wrong cells of the tables.
    """
    out = out.absolute()
    _check_folders(folder, out)
    column_map = shipped(source, folder)
    layout = LAYOUTS[source]
    visits, excluded = _match(*read_layout(folder, layout, column_map), layout)
    visits = _judge(visits, column_map, excluded)
    _require_people(visits, excluded)
    staging = out.with_name(f".{out.name}.importing")
    shutil.rmtree(staging, ignore_errors=True)  # what a killed import left
    visits = _write_scans(staging, folder, visits, column_map.orientation, excluded)
    if visits.empty:
        shutil.rmtree(staging)
    _require_people(visits, excluded)
    left_out = _write_tables(staging, source, visits, column_map, excluded)
    staging.replace(out)
    for code, several in left_out.groupby("code"):
        record.say(f"{len(several)} left out, {code}: {several['reason'].iloc[0]}")
    return left_out


def _check_folders(folder: Path, out: Path) -> None:
    """Refuse an input that is no folder, and an output that holds or touches anything else's."""
    if not folder.is_dir():
        fix = "give the folder as you received it"
        raise BadInput("E-PATH", folder.name, "the input", "no folder", "a folder", fix)
    inside = out.resolve().is_relative_to(folder.resolve())
    if inside or out.is_symlink() or (out.exists() and not out.is_dir()) or any(out.glob("*")):
        seen = "inside the input" if inside else "something that is already there"
        expected, fix = "an empty or new folder", "give another output"
        raise BadInput("E-FOREIGN", out.name, "the output", seen, expected, fix)


def _match(
    scans: pd.DataFrame, rows: pd.DataFrame, layout: Layout
) -> tuple[pd.DataFrame, list[tuple]]:
    """Give each visit with a scan what the tables agree on; return visits and what stays out."""
    excluded: list[tuple] = []
    reason = "a later T1w of its session: the first is used"
    visits = _leave_out(scans, scans.duplicated(VISIT), "E-RUNS", reason, excluded)
    again = rows.duplicated(["table", *VISIT]) & layout.one_row
    reason = "one more row for a visit: used as one where they agree"
    _leave_out(rows, again, "E-REPEAT", reason, excluded)
    absent = set(rows["participant_id"]) - set(scans["participant_id"])
    excluded += [(person, MISSING, "E-NOSCAN", "no T1w scan") for person in absent]
    own = [*OF_PERSON, "group_recorded"]
    of_person = [name for name in own if name not in VISIT]
    of_visit = [name for name in rows if name not in (*own, *VISIT, "table")]
    people = _agree(rows, ["participant_id"], of_person)
    known = visits["participant_id"].isin(people["participant_id"])
    visits = _leave_out(visits, ~known, "E-NOROW", "no row in any table", excluded)
    visits = visits.rename(columns={"site": "named_site"})
    visits = visits.merge(_agree(rows, VISIT, of_visit), "left", VISIT)
    visits = visits.merge(people, "left", "participant_id").fillna(MISSING)
    visits["site"] = visits["site"].where(visits["site"] != MISSING, visits.pop("named_site"))
    return visits, excluded


def _agree(rows: pd.DataFrame, keys: list[str], columns: list[str]) -> pd.DataFrame:
    """Return one row a key with the one value that its rows know, and `torn`: where they differ."""
    known = rows[columns].where(rows[columns] != MISSING)
    groups = known.groupby([rows[key] for key in keys])
    differ = groups[[name for name in columns if name != "group_recorded"]].nunique() > 1
    torn = [", ".join(differ.columns[row]) for row in differ.to_numpy()]
    return groups.first().fillna(MISSING).assign(**{f"torn_{len(keys)}": torn}).reset_index()


def _leave_out(
    table: pd.DataFrame, wrong: pd.Series, code: str, reason: str, excluded: list[tuple]
) -> pd.DataFrame:
    """List the wrong rows as left out; return the others."""
    for person, session in table.loc[wrong, VISIT].itertuples(index=False):
        excluded.append((person, session, code, reason))
    return table[~wrong]


def _judge(visits: pd.DataFrame, column_map: ColumnMap, excluded: list[tuple]) -> pd.DataFrame:
    """Leave out visits that lack what the study needs or that the map excludes; refuse nonsense."""
    for level in ("torn_1", "torn_2"):
        for columns in sorted(set(visits[level]) - {"", MISSING}):
            reason = f"its rows differ in {columns}"
            visits = _leave_out(visits, visits[level] == columns, "E-CONFLICT", reason, excluded)
    for name in ("age", "sex", "group"):
        wrong = visits[name] == MISSING
        visits = _leave_out(visits, wrong, f"E-{name.upper()}", f"no {name} known", excluded)
    problems = []
    whole = visits.reindex(columns=visits.columns.union(NUMBERS), fill_value=MISSING)
    for code, column, wrong, expected in wrong_cells(whole):
        seen = [f"{row.participant_id}: {row[column]}" for _, row in visits[wrong].iterrows()]
        fix = "correct the table, or name the code in a columns.yml"
        problems.append(BadInput(code, "tables", column, seen[:20], expected, fix))
    if problems:
        raise checks.Report(problems)
    for rule in column_map.exclude:
        wrong = ~visits[rule["column"]].isin(rule["keep"])
        wrong &= visits["age"].astype(float) >= rule["from_age"]
        visits = _leave_out(visits, wrong, rule["code"], rule["reason"], excluded)
    visits.loc[visits["group"] != "DS", ONLY_DS] = MISSING
    own = visits["family"] == MISSING
    return visits.assign(family=visits["family"].where(~own, visits["participant_id"]))


def _require_people(visits: pd.DataFrame, excluded: list[tuple]) -> None:
    """Refuse (E-NOBODY) an import that nobody is left of, with the count of each reason."""
    if visits.empty:
        seen = pd.Series([one[2] for one in excluded], dtype=object).value_counts().to_dict()
        fix = "look these codes up in the guide"
        raise BadInput("E-NOBODY", "import", "left out", seen, "somebody left", fix)


def _write_scans(
    staging: Path, folder: Path, visits: pd.DataFrame, orientation: str, excluded: list[tuple]
) -> pd.DataFrame:
    """Write every scan that is sound; return the visits that have one."""
    staging.mkdir(parents=True)
    write = partial(_write_scan, staging, folder, orientation)
    answers = attempt(write, list(visits.itertuples()), "importing scans")
    codes = pd.Series([problem.code if problem else "" for problem in answers], visits.index)
    reason = "its scan cannot be used (see the code)"
    for code in sorted(set(codes) - {""}):
        _leave_out(visits, codes == code, code, reason, excluded)
    return visits[codes == ""]


def _write_scan(staging: Path, folder: Path, orientation: str, visit: object) -> None:
    """Write one scan with a new header, its values as they are."""
    parts = [visit.participant_id] + [f"ses-{visit.session}"] * (visit.session != MISSING)
    target = staging.joinpath(*parts, "anat", "_".join(parts) + "_T1w.nii.gz")
    path, how = visit.path, "as recorded"
    if path.suffix == ".hdr":
        volume, affine, notes = read_analyze(path, folder, orientation)
        path, how = path.with_suffix(".img"), f"declared: {orientation}"
    else:
        volume, affine, notes = checks.read_nifti(path, folder)
    if np.abs(volume).max() <= np.iinfo(np.int16).max and (volume == np.rint(volume)).all():
        volume = volume.astype(np.int16)
    sidecar = {"Modality": "MR", "SourceDigest": record.digest(path), "Orientation": how}
    sidecar |= {"Runs": f"the first of {visit.runs}", "Notes": notes}
    save_volume(target, volume, affine, sidecar, space=1)


def _write_tables(
    staging: Path, source: str, visits: pd.DataFrame, column_map: ColumnMap, excluded: list[tuple]
) -> pd.DataFrame:
    """Write description, participants with dictionary, sessions and exclusions; return these."""
    visits = visits.assign(years=visits["age"].astype(float))
    visits = visits.sort_values(["participant_id", "years", "session"])
    visits["age"] = visits["age"].where(visits["years"] < CAPPED_AGE, f"{CAPPED_AGE}+")
    known = [name for name in OF_PERSON | OF_VISIT if (visits[name] != MISSING).any()]
    people = visits.drop_duplicates("participant_id")[known]
    write_table(staging / "participants.tsv", people)
    record.write_json(staging / "participants.json", describe_columns(people, column_map))
    sessions = visits.loc[visits["session"] != MISSING, [one for one in OF_VISIT if one in known]]
    for person, several in sessions.groupby(visits["participant_id"]):
        table = several.rename(columns={"session": "session_id"})
        table["session_id"] = "ses-" + table["session_id"]
        write_table(staging / person / f"{person}_sessions.tsv", table)
    if len(sessions):
        told = describe_columns(sessions, column_map)
        record.write_json(staging / "sessions.json", {"session_id": told.pop("session"), **told})
    left_out = pd.DataFrame(sorted(excluded), columns=[*VISIT, "code", "reason"], dtype=object)
    write_table(staging / "exclusions.tsv", left_out)
    record.write_text(staging / ".bidsignore", "exclusions.tsv\n")
    text = f"Imported by dsnb from {column_map.about}. The terms of the source hold for it.\n"
    record.write_text(staging / "README", text)
    describe(staging, f"{source}, imported by dsnb")
    return left_out

"""BIDS tables: TSV as text, and participants under our names and codes."""

import csv
import re
from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import checks, record
from dsnb.bids.columns import MISSING, OF_VISIT, ColumnMap, shipped, translate
from dsnb.checks import BadInput
from dsnb.space import GROUPS, STAGES

# Columns that stay text, whatever they look like: a site called 1 is no number.
TEXT = frozenset(
    ("participant_id", "family", "group", "group_recorded", "kind", "origin", "sex", "cohort",
     "site", "session", "stage", "disability", "karyotype", "split", "t1w", "sha", "flag", "code",
     "reason", "notes")
)  # fmt: skip
OPTIONAL = (
    "group", "family", "cohort", "site", "session", "karyotype", "stage", "disability", "cognition",
    "motion", "tiv_ml", "origin",
)  # fmt: skip
SEXES = ("F", "M")
NUMBERS = ("cognition", "motion", "tiv_ml")
REPAIR = "correct these lines, or remove them"
DISABILITIES = ("mild", "moderate", "severe")
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE]-?\d+)?", re.ASCII)
# What smells of Down syndrome: it is refused under a name we do not know, never a control.
SMELL = r"(?<![a-z])ds|ds(?![a-z])|down|t[-_ ]?21|trisom|mosaic"
ALIKE = {"diagnosis", "dx", "condition"}  # what may hold the group under another name
# Free labels begin with a letter or digit and hold nothing that a shell, page or sheet acts on.
LABEL = re.compile(r"[^\W_][\w .,?+()\[\]/&'-]{0,99}")
LABELS = ("group_recorded", "family", "cohort", "site", "session", "karyotype")
AGE = re.compile(r"\d{1,3}(\.\d+)?", re.ASCII)


def read_table(path: Path) -> pd.DataFrame:
    """Read a TSV, or a CSV by its ending, as text: ids keep their zeros, NA stays, a BOM goes.

    A CSV may be quoted, separated by comma or semicolon, and have empty rows and one nameless
    column, as spreadsheets and R write them. Refuses E-PATH, E-ENCODING (with the
    line) and E-TABLE (empty, ragged, a column twice).
    """
    checks.check_path(path)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        seen = "line " + str(content.count(b"\n", 0, error.start) + 1)
        fix = "save the table as UTF-8"
        raise BadInput("E-ENCODING", path.name, "text", seen, "UTF-8", fix) from None
    rows, nameless = [line.split("\t") for line in text.rstrip("\n").split("\n")], 0
    if path.suffix.lower() == ".csv":
        rows, nameless = _split_csv(text, path.name), 1
    header, fix = rows[0], "repair the table"
    if len(set(header)) < len(header) or header.count("") > nameless:
        raise BadInput("E-TABLE", path.name, "header", header, "one name a column", fix)
    ragged = [line for line, row in enumerate(rows, start=1) if len(row) != len(header)]
    if ragged:
        expected = f"{len(header)} cells, as in the header"
        raise BadInput("E-TABLE", path.name, "cells of lines", ragged[:20], expected, fix)
    return pd.DataFrame(rows[1:], columns=header, dtype=object)


def _split_csv(text: str, where: str) -> list[list[str]]:
    """Return the cells of a CSV; its header tells which separator it has."""
    separator = max(",;", key=text.partition("\n")[0].count)
    try:
        rows = list(csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True))
    except csv.Error as error:
        seen, fix = str(error), "export the table again"
        raise BadInput("E-TABLE", where, "its quotes", seen, "a CSV", fix) from None
    return [row for row in rows if any(row)] or [[""]]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a TSV whole or not at all: missing as n/a, six digits, true and false."""
    rows = [table.columns, *table.itertuples(index=False, name=None)]
    lines = ["\t".join(_cell(value, path.name) for value in row) for row in rows]
    record.write_text(path, "\n".join(lines) + "\n")


def write_dictionary(path: Path, columns: dict[str, str]) -> None:
    """Write the JSON beside a table: what each column holds."""
    record.write_json(path, {name: {"Description": text} for name, text in columns.items()})


def _cell(value: object, where: str) -> str:
    if value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return MISSING
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    text = f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)
    if re.search(r"[\t\r\n]", text):
        fix = "remove it from the value"
        raise BadInput("E-TABLE", where, "a cell", text[:40], "no tab or line break", fix)
    return text or MISSING


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with numbers as float (n/a as NaN), true/false as bool, `TEXT` as text."""
    table = table.copy()
    for column in table.columns.difference(list(TEXT)):
        values = table[column]
        if values.isin(["true", "false"]).all():
            table[column] = (values == "true").to_numpy(bool)
        elif all(value == MISSING or NUMBER.fullmatch(value) for value in values):
            table[column] = values.replace(MISSING, "nan").to_numpy(float)
    return table


def _lines(table: pd.DataFrame, wrong: pd.Series, column: str) -> list[str]:
    """Name the lines of a TSV (the header is line 1) whose value is wrong."""
    return [f"line {row + 2}: {cell}" for row, cell in table.loc[wrong, column].items()]


def _add_sessions(raw: Path, table: pd.DataFrame, names: ColumnMap) -> pd.DataFrame:
    """Give whoever has a sub-*_sessions.tsv a row each session; rows keep their line as index."""
    for path in sorted(raw.glob("sub-*/sub-*_sessions.tsv")):
        visits = translate(read_table(path), names)
        visits = visits.rename(columns={"session_id": "session"}).reindex(columns=[*OF_VISIT])
        told = visits.dropna(axis=1).to_dict("records")
        row = table[table["participant_id"] == path.parent.name]
        if len(row) == 1:
            table = pd.concat([table.drop(row.index), *(row.assign(**visit) for visit in told)])
    return table.sort_index(kind="stable")


def read_participants(raw: Path) -> tuple[pd.DataFrame, list[BadInput]]:
    """Read participants.tsv into our columns and codes; return it with every problem found.

    Names and codes go by `raw`/columns.yml or the map `openneuro` (`gender` counts as `sex`, an age
    of 89+ as 89); absent optional columns become n/a; `group_recorded` keeps what the table said.
    Where no group is Down syndrome, everyone counts as euploid, and we say so.
    """
    path = raw / "participants.tsv"
    if not path.exists():
        fix = "add a table with participant_id, age, sex and group"
        return pd.DataFrame(), [BadInput("E-NOTABLE", path.name, "it", "absent", "a table", fix)]
    wanted = ("participant_id", "age", "sex")
    try:
        recorded = read_table(path)
        names = shipped("openneuro", raw)
        table = translate(recorded, names)
        if missing := [name for name in wanted if name not in table]:
            said = (missing, str(wanted), "add or rename the columns")
            raise BadInput("E-COLUMN", path.name, "columns missing", *said)
        if "group" not in table and (named := sorted(ALIKE & set(table))):
            said = ("group", "rename it, or name it in a columns.yml beside the table")
            raise BadInput("E-GROUP", path.name, "a column that may be the group", named, *said)
        table = _add_sessions(raw, _complete(table), names)
    except BadInput as problem:
        return pd.DataFrame(), [problem]
    table["session"] = table["session"].str.removeprefix("ses-")
    if capped := int((recorded == "89+").sum().sum()):
        record.say(f"participants.tsv: {capped} ages of 89+ count as 89")
    problems = [
        BadInput(code, path.name, column, _lines(table, wrong, column), expected, REPAIR)
        for code, column, wrong, expected in wrong_cells(table)
    ]
    table["sex"] = table["sex"].where(table["sex"].isin(SEXES), MISSING)
    return table.reset_index(drop=True), problems


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that are absent, and code the groups."""
    absent = dict.fromkeys(OPTIONAL, MISSING) | {"kind": "recorded"}
    table = table.assign(**{name: one for name, one in absent.items() if name not in table})
    alone, recorded = table["family"] == MISSING, table["group_recorded"]
    table["family"] = table["family"].where(~alone, table["participant_id"])
    unclear = ~table["group"].isin(GROUPS)
    if not (table["group"] == "DS").any():
        told = (table[["karyotype", "stage"]] != MISSING).any(axis=1)
        unclear &= recorded.str.lower().str.contains(SMELL) | told
        if not unclear.any() and set(recorded.str.lower()) != {"euploid"}:
            names = ", ".join(sorted(set(recorded)))
            record.say(f"participants.tsv: no group is DS; everyone counts as euploid ({names})")
    group = table["group"].where(table["group"] == "DS", "euploid")
    unclear |= (group != "DS") & table["karyotype"].str.lower().str.contains(SMELL)
    return table.assign(group=group.where(~unclear, MISSING))


def wrong_cells(table: pd.DataFrame) -> list[tuple[str, str, pd.Series, str]]:
    """Return code, column, which rows are wrong and what is expected, of columns with faults."""
    one_of = "one of {}, or n/a".format
    unsafe = ~table["participant_id"].map(checks.is_safe_id)
    twice = table.duplicated(["participant_id", "session"], keep=False)
    ages = table["age"].map(lambda age: bool(AGE.fullmatch(age)) and float(age) <= 120)
    rules = [
        ("E-ID", "participant_id", unsafe, "sub- and letters or digits"),
        ("E-DUPLICATE", "participant_id", twice, "one row a person and session"),
        ("E-AGE", "age", ~ages, "years from 0 to 120, like 45.5"),
        ("E-SEX", "sex", ~table["sex"].isin(SEXES), "F or M"),
        ("E-GROUP", "group_recorded", ~table["group"].isin(GROUPS), "euploid, or DS if trisomic"),
    ]
    for column, allowed in (("stage", STAGES), ("disability", DISABILITIES)):
        wrong = ~table[column].isin([*allowed, MISSING])
        rules.append((f"E-{column.upper()}", column, wrong, one_of(", ".join(allowed))))
    for column in filter(table.columns.__contains__, LABELS):
        wrong = ~table[column].map(lambda cell: bool(LABEL.fullmatch(cell)))
        wrong &= table[column] != table["participant_id"]  # a family of one has its own rule
        rules.append(("E-LABEL", column, wrong, "a plain label: letters, digits, spaces, .,+()/-"))
    for column in NUMBERS:
        wrong = ~table[column].map(lambda cell: cell == MISSING or bool(NUMBER.fullmatch(cell)))
        rules.append(("E-NUMBER", column, wrong, "a number, or n/a"))
    return [rule for rule in rules if rule[2].any()]

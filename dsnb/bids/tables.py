"""BIDS tables: TSV as text, and participants under our names and codes."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import checks, record
from dsnb.checks import BadInput
from dsnb.space import STAGES

MISSING = "n/a"
# Columns that stay text, whatever they look like: a site called 1 is no number.
TEXT = frozenset(
    ("participant_id", "family", "group", "group_recorded", "kind", "origin", "sex", "site",
     "session", "stage", "disability", "split", "t1w", "sha", "flag", "code", "reason", "notes")
)  # fmt: skip
OPTIONAL = ("site", "session", "stage", "disability", "cognition", "motion", "tiv_ml", "origin")
SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
DS_NAMES = frozenset(("ds", "down", "down syndrome", "t21", "trisomy 21"))
EUPLOID_NAMES = frozenset(("euploid", "control", "controls", "hc", "cn", "healthy", "non-ds"))
DISABILITIES = ("mild", "moderate", "severe")
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE]-?\d+)?", re.ASCII)
AGE = re.compile(r"\d{1,3}(\.\d+)?", re.ASCII)


def read_table(path: Path) -> pd.DataFrame:
    """Read a TSV as text: ids keep their zeros, a group called NA stays, a BOM is dropped.

    Refuses E-PATH, E-ENCODING (with the line) and E-TABLE (empty, ragged, a column twice).
    """
    checks.check_path(path)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        seen = "line " + str(content.count(b"\n", 0, error.start) + 1)
        fix = "save the table as UTF-8"
        raise BadInput("E-ENCODING", path.name, "text", seen, "UTF-8", fix) from None
    rows = [line.split("\t") for line in text.rstrip("\n").split("\n")]
    header, fix = rows[0], "repair the table"
    if len(set(header)) < len(header) or not all(header):
        raise BadInput("E-TABLE", path.name, "header", header, "one name a column", fix)
    ragged = [line for line, row in enumerate(rows, start=1) if len(row) != len(header)]
    if ragged:
        expected = f"{len(header)} cells, as in the header"
        raise BadInput("E-TABLE", path.name, "cells of lines", ragged[:20], expected, fix)
    return pd.DataFrame(rows[1:], columns=header, dtype=object)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a TSV whole or not at all: missing as n/a, six digits, true and false."""
    rows = [table.columns, *table.itertuples(index=False, name=None)]
    lines = ["\t".join(_cell(value, path.name) for value in row) for row in rows]
    record.write_text(path, "\n".join(lines) + "\n")


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
    return [f"line {row + 2}: {table[column].iloc[row]}" for row in np.flatnonzero(wrong)]


def read_participants(raw: Path) -> tuple[pd.DataFrame, list[BadInput]]:
    """Read participants.tsv into our columns and codes; return it with every problem found.

    `gender` counts as `sex`; absent optional columns become n/a; `group_recorded` keeps what
    the table said. Where no group is Down syndrome, everyone counts as euploid, and we say so.
    """
    path = raw / "participants.tsv"
    if not path.exists():
        fix = "add a table with participant_id, age, sex and group"
        return pd.DataFrame(), [BadInput("E-NOTABLE", path.name, "it", "absent", "a table", fix)]
    try:
        table = read_table(path)
    except BadInput as problem:
        return pd.DataFrame(), [problem]
    table.columns = [name.strip().lower() for name in table.columns]
    if "sex" not in table:
        table = table.rename(columns={"gender": "sex"})
    wanted = ("participant_id", "age", "sex")
    if missing := [name for name in wanted if name not in table]:
        fix = "add or rename the columns"
        problem = BadInput("E-COLUMN", path.name, "columns missing", missing, str(wanted), fix)
        return pd.DataFrame(), [problem]
    table = table.map(str.strip).replace("", MISSING)
    table = _complete(table)
    problems = _check_people(table)
    table["sex"] = table["sex"].str.lower().map(SEXES).fillna(MISSING)
    return table, problems


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that are absent, and code the groups."""
    table = table.assign(**{name: MISSING for name in OPTIONAL if name not in table})
    if "kind" not in table:
        table["kind"] = "recorded"
    if "family" not in table:
        table["family"] = MISSING
    alone = table["family"] == MISSING
    table["family"] = table["family"].where(~alone, table["participant_id"])
    recorded = table["group"] if "group" in table else pd.Series(MISSING, table.index)
    lower = recorded.str.lower()
    table["group_recorded"] = recorded
    table["group"] = np.where(lower.isin(DS_NAMES), "DS", "euploid")
    # A name that smells of Down syndrome must never pass as euploid: it stays to be refused.
    unclear = ~lower.isin(DS_NAMES | EUPLOID_NAMES)
    if not lower.isin(DS_NAMES).any():
        unclear &= lower.str.contains(r"down|t21|trisom|^ds|-ds$")
        if not unclear.any() and set(lower) != {"euploid"}:
            names = ", ".join(sorted(set(recorded)))
            record.say(f"participants.tsv: no group is DS; everyone counts as euploid ({names})")
    return table.assign(group=table["group"].where(~unclear, MISSING))


def _check_people(table: pd.DataFrame) -> list[BadInput]:
    """Return one problem a column, each naming all its lines."""
    one_of = "one of {}, or n/a".format
    unsafe = ~table["participant_id"].map(checks.is_safe_id)
    twice = table.duplicated(["participant_id", "session"], keep=False)
    ages = table["age"].map(lambda age: bool(AGE.fullmatch(age)) and float(age) <= 120)
    rules = [
        ("E-ID", "participant_id", unsafe, "sub- and letters or digits"),
        ("E-DUPLICATE", "participant_id", twice, "one row a person and session"),
        ("E-AGE", "age", ~ages, "years from 0 to 120, like 45.5"),
        ("E-SEX", "sex", ~table["sex"].str.lower().isin(SEXES), "F or M"),
        ("E-GROUP", "group_recorded", table["group"] == MISSING, "euploid or DS"),
    ]
    for column, allowed in (("stage", STAGES), ("disability", DISABILITIES)):
        wrong = ~table[column].isin([*allowed, MISSING])
        rules.append((f"E-{column.upper()}", column, wrong, one_of(", ".join(allowed))))
    for column in ("cognition", "motion", "tiv_ml"):
        wrong = ~table[column].map(lambda cell: cell == MISSING or bool(NUMBER.fullmatch(cell)))
        rules.append(("E-NUMBER", column, wrong, "a number, or n/a"))
    fix = "correct these lines, or remove them"
    return [
        BadInput(code, "participants.tsv", column, _lines(table, wrong, column), expected, fix)
        for code, column, wrong, expected in rules
        if wrong.any()
    ]

"""Column maps: which columns of a source become ours and how their codes map, as data files."""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from dsnb import checks, record
from dsnb.checks import BadInput

MISSING = "n/a"
# Our columns: a person has one of the first kind, each visit has its own of the second.
OF_PERSON = {
    "participant_id": "sub- and letters or digits",
    "sex": "F or M",
    "group": "euploid or DS",
    "family": "key of the split: siblings share it with the person with DS; else one's own id",
    "karyotype": "of people with DS",
    "disability": "intellectual disability: mild, moderate or severe",
}
OF_VISIT = {
    "session": "the session that this row describes",
    "age": "years; 89 and more as 89+",
    "site": "scanner or centre",
    "stage": "Alzheimer's disease in people with DS: asymptomatic, prodromal or dementia",
    "cognition": "score, 0 to 100",
}
# What the study adds to the row of a visit.
OF_SCAN = {
    "kind": "recorded, twin (without the condition), planted (with it), sham (a field of equal "
    "size), repeat (a later session) or native (before registration)",
    "origin": "participant_id of the original",
    "cohort": "a part of the study with sites of its own: PUBLIC, CLINIC, EXTERNAL",
    "motion": "motion score, mm; the phantom's is the SD of its blur",
    "tiv_ml": "native head size, ml",
    "t1w": "path of the scan in the raw folder",
    "sha": "digest of the scan",
}
AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
MAX_BYTES, MAX_DEPTH = 2**13, 8  # of a column map
FIX = "copy a map of dsnb/columns and change its names"


@dataclass(frozen=True)
class Rule:
    """Where one of our columns comes from: the first source that is there, or a constant."""

    sources: tuple[str, ...]
    codes: dict[str, str]
    constant: str = ""


@dataclass(frozen=True)
class ColumnMap:
    """One source: rules by our column, what counts as missing, who is left out, orientation."""

    about: str
    columns: dict[str, Rule]
    missing: list[str]
    exclude: tuple[dict, ...]
    orientation: str


class PlainText(yaml.BaseLoader):
    """YAML of text, lists and mappings: no tag is obeyed, no alias followed, `no` is a word.

    A few lines of aliases can stand for billions of entries.
    """

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        """Refuse (YAMLError) what is more than text, and compose the rest."""
        event = self.peek_event()
        odd = isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None)
        if odd or self.flow_level > MAX_DEPTH:
            raise yaml.YAMLError("an alias, a tag, or too deep")
        return super().compose_node(parent, index)


def read_map(path: Path) -> ColumnMap:
    """Read a column map (a file like those in `dsnb/columns`); refuse E-YAML another form."""
    checks.check_path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        found = PlainText(path.read_bytes()).get_single_data()
        columns = {name: _rule(rule) for name, rule in found["columns"].items()}
        if unknown := sorted(set(columns) - {*OF_PERSON, *OF_VISIT}):
            raise ValueError(f"with unknown columns {unknown}")
        columns["participant_id"]  # noqa: B018 - without it nobody has a name
        orientation = found.get("orientation", "")
        if orientation and sorted(AXES.get(letter, -1) for letter in orientation) != [0, 1, 2]:
            raise ValueError(f"orientation {orientation}, not three letters like RAS")
        missing = _texts(found.get("missing", []))
        exclude = tuple(_exclusion(rule) for rule in found.get("exclude", []))
    except (
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
        yaml.YAMLError,
    ) as no:
        expected = "our columns, each with `from` (a list), `codes` or `constant`, in plain text"
        seen = f"{type(no).__name__}: {no}".splitlines()[0]
        raise BadInput("E-YAML", path.name, "its content", seen, expected, FIX) from None
    return ColumnMap(found.get("about", path.stem), columns, missing, exclude, orientation)


def shipped(source: str, folder: Path | None = None) -> ColumnMap:
    """Return the column map that comes with the package, or the columns.yml of `folder`."""
    own = folder and folder / "columns.yml"
    return read_map(own if own and own.exists() else record.HOME / "columns" / f"{source}.yml")


def _texts(values: list[str]) -> list[str]:
    if not isinstance(values, list):
        raise TypeError("not a list")
    return [value.lower() for value in values]


def _rule(rule: dict) -> Rule:
    codes, constant = rule.get("codes", {}), rule.get("constant", "")
    if not all(isinstance(ours, str) for ours in (constant, *codes.values())):
        raise TypeError("a list where a text belongs")
    codes = {code.lower(): ours for code, ours in codes.items()}
    return Rule(tuple(_texts(rule.get("from", []))), codes, constant)


def _exclusion(rule: dict) -> dict:
    named = {"column": rule["column"].lower(), "code": rule["code"], "reason": rule["reason"]}
    return named | {"keep": _texts(rule["keep"]), "from_age": float(rule.get("from_age", 0))}


def translate(table: pd.DataFrame, column_map: ColumnMap) -> pd.DataFrame:
    """Add our columns in our codes, and `group_recorded`, to a table of text; headers lower-case.

    A code that the map does not know stays as it is, to be refused by who reads the column.
    Refuses E-TABLE where two headers differ in case alone.
    """
    table = table.rename(columns=lambda name: name.strip().lower())
    if not table.columns.is_unique:
        expected, fix = "names that differ by more than case", "rename one of them"
        raise BadInput("E-TABLE", "table", "header", list(table), expected, fix)
    # A spreadsheet with gaps writes the code 1 as 1.0.
    plain = table.map(lambda cell: re.sub(r"^(-?\d+)\.0+$", r"\1", cell.strip(), flags=re.ASCII))
    plain = plain.mask(plain.map(str.lower).isin(column_map.missing), MISSING)
    ours = {"group_recorded": MISSING}
    for name, rule in column_map.columns.items():
        source = next((source for source in rule.sources if source in plain), None)
        if source:
            known = plain[source].str.lower().map(rule.codes)
            ours[name] = known.where(known.notna(), plain[source])
            ours["group_recorded"] = plain[source] if name == "group" else ours["group_recorded"]
        elif rule.constant:
            ours[name] = rule.constant
    return plain.assign(**ours)


def describe_columns(table: pd.DataFrame, column_map: ColumnMap) -> dict:
    """Return participants.json: for each column what it is and what the map made of it."""
    entries = {}
    for name in table:
        rule = column_map.columns.get(name, Rule((), {}))
        told = {"Description": (OF_PERSON | OF_VISIT)[name], "SourceColumns": list(rule.sources),
                "SourceCodes": rule.codes, "Constant": rule.constant}  # fmt: skip
        entries[name] = {key: value for key, value in told.items() if value}
    return entries

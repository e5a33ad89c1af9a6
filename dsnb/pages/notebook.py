"""What a notebook needs of us: checked parameters, the study's folders, printed numbers."""

import json
import re
from pathlib import Path

import pandas as pd
from myst_nb import glue

from dsnb import record
from dsnb.checks import BadInput
from dsnb.config import Study, load_study
from dsnb.pages.shown import show_captions

PARAMETERS = {"preset": str, "data_root": str, "raw": str}
OPEN_LICENCES = ("CC0", "PDDL")  # only these people's slices may stand on a page


def open_notebook(names: dict) -> tuple[Study, Path, Path | None]:
    """Check a notebook's parameters by name and type; return study, data root and raw folder.

    `names` is the notebook's `globals()`; a name that is no parameter is refused, since
    papermill only warns of a misspelt one.
    """
    ours = {"In", "Out", "exit", "quit", "get_ipython", "open", "pages"}
    public = {name for name in names if not name.startswith("_")} - ours
    for name in sorted(public - set(PARAMETERS)):
        known = "one of " + ", ".join(PARAMETERS)
        raise BadInput("E-PARAM", "notebook", "a parameter", name, known, "correct its name")
    for name, kind in PARAMETERS.items():
        if not isinstance(names.get(name), kind):
            fix = f"pass text, for example -r {name} TEXT"
            raise BadInput("E-PARAM", "notebook", name, names.get(name), "text", fix)
    show_captions()
    return open_study(names["preset"], names["data_root"], names["raw"])


def open_study(preset: str, data_root: str, raw: str) -> tuple[Study, Path, Path | None]:
    """Return the preset's settings, its data root, and the raw folder where one is given."""
    study = load_study(preset)
    folder = Path(raw).expanduser() if raw else None
    data, shown = None, True
    if folder is not None:
        if not folder.is_dir():
            fix = "give the folder that holds participants.tsv"
            raise BadInput("E-PATH", folder.name, "raw", "no such folder", "a BIDS folder", fix)
        data = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name)
        description = folder / "dataset_description.json"
        try:
            fields = json.loads(description.read_bytes()) if description.is_file() else {}
            shown = str(fields.get("License", "")).upper().startswith(OPEN_LICENCES)
        except (ValueError, AttributeError):
            said = ("no JSON object", 'an object like {"Name": "x", "License": "CC0"}', "repair it")
            raise BadInput("E-JSON", description.name, "its content", *said) from None
    return study, record.open_root(data_root, preset, data, shown), folder


def may_show_people(root: Path) -> bool:
    """Tell whether single people's slices may be drawn: the phantom and open data only."""
    return record.read_mark(root)["people_may_be_shown"]


def spell(value: object) -> str:
    """Spell a headline value for print: three digits, intervals in brackets, null as n/a."""
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "[" + ", ".join(spell(entry) for entry in value) + "]"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def show(results: dict) -> pd.DataFrame:
    """Return the headline as a table and glue every value under its key for other pages."""
    reasons = results["tables"].get("reasons", {})
    rows = []
    shown = {**results["headline"], **results["timing"]}
    for key, value in shown.items():
        if isinstance(value, dict) or (isinstance(value, list) and len(value) != 2):
            continue  # a table of its own, drawn elsewhere on the page
        glue(key, spell(value), display=False)
        rows.append({"key": key, "value": spell(value), "why not": reasons.get(key, "")})
    return pd.DataFrame(rows).set_index("key")

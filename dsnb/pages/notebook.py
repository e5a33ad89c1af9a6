"""What a notebook needs of us: checked parameters, the study's folders, printed numbers."""

import json
import re
from pathlib import Path

import pandas as pd
import papermill
from IPython.display import Markdown, display
from myst_nb import glue

from dsnb import record
from dsnb.checks import BadInput
from dsnb.config import Study, load_study
from dsnb.pages.findings import glued, tell
from dsnb.pages.shown import show_captions
from dsnb.pages.wording import spell
from dsnb.record.classes import FEWEST

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
    found = open_study(names["preset"], names["data_root"], names["raw"])
    if "get_ipython" in names:
        _hide_few(found[1], names["get_ipython"]().display_formatter.formatters)
    return found


def _hide_few(root: Path, formatters: dict) -> None:
    """Let every table that a page shows pass through `hide`: the one door, for all cells."""
    formatters["text/html"].for_type(pd.DataFrame, lambda table: hide(root, table)._repr_html_())
    for kind in (pd.DataFrame, pd.Series):
        formatters["text/plain"].for_type(
            kind, lambda table, p, cycle: p.text(repr(hide(root, table)))
        )


def hide(root: Path, table: pd.DataFrame | pd.Series) -> pd.DataFrame | pd.Series:
    """Return a table with what tells of few people hidden, by its columns' and rows' names.

    As it is where the class of the study's data lets it be shown.
    """
    if record.may_show(record.read_mark(root), "few"):
        return table

    def by_columns(frame: pd.DataFrame) -> pd.DataFrame:
        names = [str(c[-1] if isinstance(c, tuple) else c) for c in frame.columns]
        rows = [record.hide_row(list(zip(names, row))) for row in frame.astype(object).to_numpy()]
        return pd.DataFrame(rows, frame.index, frame.columns, dtype=object)

    return by_columns(by_columns(pd.DataFrame(table).T).T)


def open_study(preset: str, data_root: str, raw: str) -> tuple[Study, Path, Path | None]:
    """Return the preset's settings, its data root, and the raw folder where one is given."""
    study = load_study(preset)
    folder = Path(raw).expanduser() if raw else None
    data, shown, kind = None, True, ""
    if folder is not None:
        if not folder.is_dir():
            fix = "give the folder that holds participants.tsv"
            raise BadInput("E-PATH", folder.name, "raw", "no such folder", "a BIDS folder", fix)
        data = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name)
        if data == "phantom":
            fix = "give the folder another name"
            raise BadInput("E-PATH", folder.name, "raw", data, "no name of our own data", fix)
        description = folder / "dataset_description.json"
        try:
            fields = json.loads(description.read_bytes()) if description.is_file() else {}
            shown = str(fields.get("License", "")).upper().startswith(OPEN_LICENCES)
            released = "GeneratedBy" in fields and (folder / "audit.json").is_file()
            kind = "synthetic" if released else ""
        except (ValueError, AttributeError):
            said = ("no JSON object", 'an object like {"Name": "x", "License": "CC0"}', "repair it")
            raise BadInput("E-JSON", description.name, "its content", *said) from None
    return study, record.open_root(data_root, preset, data, shown, kind), folder


def parameter_table(notebooks: Path) -> str:
    """Return a Markdown table of what papermill finds in the parameters cells of all stages."""
    stages = {}
    for notebook in sorted(notebooks.glob("[0-9][0-9]_*.ipynb")):
        for found in papermill.inspect_notebook(notebook).values():
            value = type(json.loads(found["default"])).__name__
            row = f"| `{found['name']}` | {value} | `{found['default']}` | {found['help']} |"
            stages.setdefault(row, []).append(notebook.stem[:2])
    head = ["| parameter | type | default | meaning | stages |", "| --- " * 5 + "|"]
    return "\n".join(head + [f"{row} {' '.join(numbers)} |" for row, numbers in stages.items()])


def may_show_people(root: Path, mean_of: int = 1) -> bool:
    """Tell whether pictures of single people, or of the mean of so many, may be drawn."""
    return mean_of >= FEWEST or record.may_show(record.read_mark(root), "pictures")


def show(results: dict) -> pd.DataFrame:
    """Show the findings in words, glue them and every headline value, return the headline's table.

    Keys are the headline's own, `finding_1`, `finding_1_text`, and so on.
    """
    told = "\n\n".join(f"**{found['title']}.** {found['text']}" for found in tell(results))
    display(Markdown(told))
    for key, text in glued(results).items():
        glue(key, text, display=False)
    reasons = results["tables"].get("reasons", {})
    rows = []
    shown = {**results["headline"], **results["timing"]}
    for key, value in shown.items():
        if isinstance(value, dict) or (isinstance(value, list) and len(value) != 2):
            continue  # a table of its own, drawn elsewhere on the page
        glue(key, spell(value), display=False)
        rows.append({"key": key, "value": spell(value), "why not": reasons.get(key, "")})
    return pd.DataFrame(rows).set_index("key")

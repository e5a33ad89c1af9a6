"""The study runner and the book: run notebooks, publish their pages and numbers, verify them."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import psutil
from myst_nb import glue
from papermill.exceptions import PapermillExecutionError

from dsnb import record
from dsnb.checks import BadInput
from dsnb.config import Study, load_study

REPOSITORY = record.HOME.parent
NOTEBOOKS = REPOSITORY / "notebooks"
PARAMETERS = {"preset": str, "data_root": str, "raw": str}
OPEN_LICENCES = ("CC0", "PDDL")  # only these people's slices may stand on a page
PAGE_BYTES = 1_500_000


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
        fields = json.loads(description.read_text()) if description.is_file() else {}
        shown = str(fields.get("License", "")).upper().startswith(OPEN_LICENCES)
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
    for key, value in {**results["headline"], **results["timing"]}.items():
        glue(key, spell(value), display=False)
        rows.append({"key": key, "value": spell(value), "why not": reasons.get(key, "")})
    return pd.DataFrame(rows).set_index("key")


def _page_key(notebook: Path, parameters: dict, before: str) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    modules = {path.relative_to(record.HOME).parts[0] for path in record.HOME.rglob("*.py")}
    code = record.code_digest(*(name.removesuffix(".py") for name in modules))
    return record.digest([[cell.source for cell in cells], code, parameters, before])


class Meter(threading.Thread):
    """Follow a running stage: draw its progress and sample the memory of all its processes."""

    def __init__(self, stage: str, lines: Path):
        super().__init__(daemon=True)
        self.stage, self.lines, self.started = stage, lines, time.monotonic()
        self.peak_gb, self.over, self.read, self.shown = 0.0, threading.Event(), 0, 0.0

    def run(self) -> None:
        """Poll twice a second until the stage is over."""
        while not self.over.wait(0.5):
            self._draw()
            self._weigh()
        self._draw()

    def _draw(self) -> None:
        text = self.lines.read_text() if self.lines.is_file() else ""
        entries = text[self.read :].split("\n")
        self.read = len(text) - len(entries.pop())
        for entry in map(json.loads, entries):
            if "say" in entry:
                print(f"  {self.stage}  {entry['say']}", flush=True)
            else:
                self._bar(entry)

    def _bar(self, entry: dict) -> None:
        live = sys.stdout.isatty()
        whole = entry["done"] >= entry["total"]
        if not live and not whole and time.monotonic() - self.shown < 20:
            return
        self.shown = time.monotonic()
        filled = "#" * int(20 * entry["done"] / max(entry["total"], 1))
        count = f"{entry['done']}/{entry['total']}  {self.shown - self.started:.0f} s"
        line = f"  {self.stage}  {entry['label']} [{filled:<20}] {count}"
        end = "\n" if whole or not live else ""
        print(f"\r{line}\033[K" if live else line, end=end, flush=True)

    def _weigh(self) -> None:
        total = 0
        try:
            family = psutil.Process().children(recursive=True)
            total = sum(child.memory_full_info().pss for child in family)
        except psutil.Error:
            return  # a process ended while it was being weighed: the next sample will do
        self.peak_gb = max(self.peak_gb, total / 1e9)


def run_stage(notebook: Path, page: Path, parameters: dict, root: Path) -> Meter:
    """Execute one notebook by papermill, aside first; a refusal inside is passed on as such."""
    page.parent.mkdir(parents=True, exist_ok=True)
    lines = root / f".progress-{notebook.stem}"
    lines.unlink(missing_ok=True)
    aside = page.with_name(f".{page.name}")
    os.environ["DSNB_PROGRESS"] = str(lines.resolve())
    meter = Meter(notebook.stem, lines)
    meter.start()
    try:
        papermill.execute_notebook(
            notebook, aside, parameters, progress_bar=False, cwd=REPOSITORY, kernel_name="python3"
        )
    except PapermillExecutionError as error:
        if error.ename == "BadInput":
            refusal = BadInput.__new__(BadInput)
            Exception.__init__(refusal, error.evalue)
            raise refusal from None
        raise
    finally:
        del os.environ["DSNB_PROGRESS"]
        meter.over.set()
        meter.join()
        lines.unlink(missing_ok=True)
    strip_paths(aside)
    aside.replace(page)
    return meter


def strip_paths(page: Path) -> None:
    """Remove what papermill notes of this machine: paths and times."""
    notebook = nbformat.read(page, as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub(r'= "/.*"', '= "..."', cell.source)
            cell.metadata["tags"] = ["injected-parameters", "remove-cell"]
    nbformat.write(notebook, page)


def run_study(preset: str = "small", raw: str = "", data_root: str = "") -> Path:
    """Run the stages that are not current, publish and build the book; return its index page."""
    study, root, _ = open_study(preset, data_root, raw)
    parameters = {
        "preset": preset,
        "data_root": str(root.resolve()),
        "raw": str(Path(raw).expanduser().resolve()) if raw else "",
    }
    print(f"dsnb study: preset {preset} ({study.hardware}, about {study.wall_time})", flush=True)
    rows, before = [], ""
    for notebook in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        before = _page_key(notebook, parameters, before)
        rows.append(_run_if_changed(notebook, parameters, before, root))
    started = time.monotonic()
    book = publish(root)
    key, mark = _book_key(book), root / "pages" / "book.key"
    index = book / "_build" / "html" / "index.html"
    skipped = index.is_file() and mark.is_file() and mark.read_text() == key
    if not skipped:
        build_book(book)
        record.write_text(mark, key)
    rows.append(_row("book", started, 0.0, skipped))
    print(pd.DataFrame(rows).round(1).to_string(index=False))
    print(f"total {sum(row['seconds'] for row in rows) / 60:.1f} min; the book lies at {index}")
    return index


def _row(stage: str, started: float, peak_gb: float, skipped: bool) -> dict:
    seconds = time.monotonic() - started
    done = "skipped" if skipped else f"done in {seconds:.0f} s, peak memory {peak_gb:.1f} GB"
    print(f"{stage}: {'nothing changed, ' if skipped else ''}{done}", flush=True)
    return {"stage": stage, "seconds": seconds, "peak_gb": peak_gb, "skipped": skipped}


def _run_if_changed(notebook: Path, parameters: dict, key: str, root: Path) -> dict:
    started, stage = time.monotonic(), notebook.stem
    page, mark = root / "pages" / notebook.name, root / "pages" / f"{stage}.key"
    whole = page.is_file() and (root / "results" / f"{stage}.json").is_file()
    if whole and mark.is_file() and mark.read_text() == key:
        return _row(stage, started, 0.0, True)
    print(f"{stage}: running", flush=True)
    meter = run_stage(notebook, page, parameters, root)
    record.write_text(mark, key)
    return _row(stage, started, meter.peak_gb, False)


def _book_key(book: Path) -> str:
    files = [path for path in sorted(book.rglob("*")) if path.is_file()]
    sources = [path for path in files if "_build" not in path.parts]
    return record.digest([[str(path.relative_to(book)), record.digest(path)] for path in sources])


def publish(root: Path) -> Path:
    """Copy executed pages, results and figures into the book; return the book's folder.

    The small phantom study is the one that the repository tracks; any other gets a book of
    its own under its data root, so that its numbers never reach the tracked pages.
    """
    mark = record.read_mark(root)
    book = REPOSITORY / "book"
    tracked = mark["preset"] == "small" and mark["data"] == "phantom"
    if not tracked:
        own = root / "book"
        skip = shutil.ignore_patterns("_build", "executed", "results", "figures")
        shutil.copytree(book, own, dirs_exist_ok=True, ignore=skip)
        book = own
    for kind, pattern in (("pages", "*.ipynb"), ("results", "*.json"), ("figures", "*.png")):
        target = book / ("executed" if kind == "pages" else kind)
        target.mkdir(exist_ok=True)
        for path in sorted((root / kind).glob(pattern)):
            if not path.name.startswith("."):
                shutil.copy2(path, target / path.name)
    if tracked:
        readme = REPOSITORY / "README.md"
        record.write_text(readme, with_results(readme.read_text(), book / "results"))
    return book


def with_results(text: str, results: Path) -> str:
    """Return the README with its table of results redrawn from the results files."""
    lines = ["| stage | result | value |", "| --- | --- | --- |"]
    for stage in record.STAGES:
        headline = json.loads((results / f"{stage}.json").read_text())["headline"]
        for key in record.HEADLINE[stage].split():
            if headline[key] is not None:
                lines.append(f"| {stage} | `{key}` | {spell(headline[key])} |")
    table = "\n".join(lines)
    return re.sub(
        r"(<!-- results -->\n).*?(<!-- /results -->)", rf"\g<1>{table}\n\g<2>", text, flags=re.S
    )


def build_book(book: Path) -> None:
    """Verify the pages, then build the book with warnings as errors."""
    verify(book)
    command = [sys.executable, "-m", "jupyter_book", "build", "-W", "-n", "--keep-going", str(book)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        said = answer.stdout[-3000:] + answer.stderr[-3000:]
        raise RuntimeError(f"the book did not build:\n{said}")


def verify(book: Path) -> None:
    """Refuse a book with a missing, failed, empty, oversized or leaking page."""
    faults = []
    for stage in record.STAGES:
        page, results = book / "executed" / f"{stage}.ipynb", book / "results" / f"{stage}.json"
        if not page.is_file() or not results.is_file():
            faults.append(f"{stage}: page or results file is missing")
            continue
        text = page.read_text()
        if page.stat().st_size > PAGE_BYTES:
            faults.append(f"{stage}: larger than {PAGE_BYTES} bytes")
        if re.search(r"(?<![\w.:/])/(home|root|tmp|work|Users|mnt|scratch|gpfs)/", text):
            faults.append(f"{stage}: an absolute path")
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        if any(o["output_type"] == "error" for c in cells for o in c["outputs"]):
            faults.append(f"{stage}: a cell ended with an error")
        if not any(c["outputs"] for c in cells):
            faults.append(f"{stage}: no cell has an output")
    if faults:
        fix = "run make study"
        raise BadInput("E-BOOK", book.name, "its pages", "; ".join(faults), "whole pages", fix)

"""The study runner: notebooks by papermill, what is current skipped, progress and memory shown."""

import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import psutil
from papermill.exceptions import PapermillExecutionError

from dsnb import record
from dsnb.checks import BadInput
from dsnb.pages.book import REPOSITORY, build_book, publish
from dsnb.pages.notebook import open_study

NOTEBOOKS = REPOSITORY / "notebooks"


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
        refusals = {kind.__name__ for kind in (BadInput, *BadInput.__subclasses__())}
        if error.ename in refusals:
            refusal = BadInput.__new__(BadInput)
            Exception.__init__(refusal, error.evalue)
            raise refusal from None
        raise
    finally:
        del os.environ["DSNB_PROGRESS"]
        meter.over.set()
        meter.join()
        lines.unlink(missing_ok=True)
    tidy(aside, page.with_suffix(".log"))
    aside.replace(page)
    return meter


def tidy(page: Path, log: Path) -> None:
    """Move warnings to a log, and drop what papermill notes of this machine: paths and times."""
    notebook, said = nbformat.read(page, as_version=4), []
    for part in (notebook, *notebook.cells):
        part.metadata.pop("papermill", None)
        part.metadata.pop("execution", None)
    for cell in notebook.cells:
        warnings = [o for o in cell.get("outputs", []) if o.get("name") == "stderr"]
        said += [output.text for output in warnings]
        if warnings:
            cell.outputs = [output for output in cell.outputs if output not in warnings]
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub(r'= "/.*"', '= "..."', cell.source)
            cell.metadata["tags"] = ["injected-parameters", "remove-cell"]
    nbformat.write(notebook, page)
    record.write_text(log, "".join(said))


def _page_key(notebook: Path, parameters: dict, before: str) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    modules = {path.relative_to(record.HOME).parts[0] for path in record.HOME.rglob("*.py")}
    code = record.code_digest(*(name.removesuffix(".py") for name in modules))
    ledgers = [record.digest(path) for path in sorted(record.LEDGERS.glob(f"{notebook.stem[:2]}*"))]
    return record.digest([[cell.source for cell in cells], code, parameters, before, ledgers])


def _book_key(book: Path) -> str:
    files = [path for path in sorted(book.rglob("*")) if path.is_file()]
    sources = [path for path in files if not {"_build", "__pycache__"} & set(path.parts)]
    return record.digest([[str(path.relative_to(book)), record.digest(path)] for path in sources])


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

"""The book: publish pages and numbers, keep the README true, verify, build."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dsnb import record
from dsnb.checks import BadInput
from dsnb.pages.notebook import spell

REPOSITORY = record.HOME.parent
PAGE_BYTES = 2_000_000


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
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", "-W", "-n", "--keep-going", str(book)]
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

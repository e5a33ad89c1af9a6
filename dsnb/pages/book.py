"""The book: publish pages and numbers, keep the README true, verify, build."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dsnb import record
from dsnb.checks import BadInput, Report
from dsnb.pages import numerals, trace
from dsnb.pages.notebook import spell

REPOSITORY = record.HOME.parent
NOTEBOOKS = REPOSITORY / "notebooks"
PAGE_BYTES = 1_500_000


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
        shutil.copytree(book / "results/real", own / "results/real", dirs_exist_ok=True)
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
    """Verify the pages, build the book with warnings as errors, say if it may not be released."""
    verify(book)
    if faults := trace.unreleasable(book, REPOSITORY / "constraints.txt"):
        record.say(f"not for release, {len(faults)} reasons, the first: {faults[0]}")
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", "-W", "-n", "--keep-going", str(book)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        said = answer.stdout[-3000:] + answer.stderr[-3000:]
        raise RuntimeError(f"the book did not build:\n{said}")


def verify(book: Path, notebooks: Path = NOTEBOOKS, pins: Path | None = None) -> None:
    """Refuse a book with a missing, failed, empty, oversized, leaking or untraceable page.

    With `pins`, constraints.txt, also one whose pages may not be released.
    """
    faults = []
    for folder, numbers in trace.PARTS.items():
        for stage in record.STAGES:
            page, results = book / folder / f"{stage}.ipynb", book / numbers / f"{stage}.json"
            there = [page.is_file(), results.is_file()]
            if all(there):
                faults += _page_faults(f"{folder}/{stage}", page)
            elif any(there) or folder == "executed":
                seen = "page or results file is missing"
                faults.append(trace.fault(f"{folder}/{stage}", "page", seen, "both"))
    faults += trace.find_faults(book, notebooks) + numerals.find_typed(book, notebooks)
    faults += trace.unreleasable(book, pins) if pins else []
    if faults:
        raise Report(faults)


def _page_faults(name: str, page: Path) -> list[BadInput]:
    """Return what makes a page unfit to be shown: its size, its paths, its outputs."""
    text = page.read_text()
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    path = re.search(r"(?<![\w.:/])/(home|root|tmp|work|Users|mnt|scratch|gpfs)/", text)
    failed = any(o["output_type"] == "error" for c in cells for o in c["outputs"])
    wrong = {
        f"larger than {PAGE_BYTES} bytes": page.stat().st_size > PAGE_BYTES,
        "a text with an absolute path": path is not None,
        "cut short: a cell ended with an error": failed,
        "empty: no cell has an output": not any(c["outputs"] for c in cells),
    }
    return [trace.fault(name, "page", seen, "a whole one") for seen in wrong if wrong[seen]]

"""The book: publish pages and numbers, keep the README true, verify, build."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dsnb import record
from dsnb.checks import BadInput, Report
from dsnb.pages import leaks, numerals, trace
from dsnb.pages.notebook import spell

REPOSITORY = record.HOME.parent
NOTEBOOKS = REPOSITORY / "notebooks"
PAGE_BYTES = 2_000_000
# What a study makes, and where the two studies that the book shows have it.
MADE = {"pages": "*.ipynb", "results": "*.json", "figures": "*.png"}
PHANTOM = ("executed", "results", "figures")
MAIN_FIGURE = re.compile(r"```\{figure\} figures/anomaly\.png\n.*?```\n", re.S)
TRACKED = {"phantom": PHANTOM, "ds002748-2mm": ("real", "results/real", "figures/real")}


def publish(root: Path) -> Path:
    """Copy executed pages, results and figures into the book; return the book's folder.

    The repository tracks two studies of preset `small`: the phantom's, and that of the open scans
    of the case study. Any other gets a book of its own under its data root, so that its numbers
    never reach the tracked pages.
    """
    mark = record.read_mark(root)
    book, places = REPOSITORY / "book", TRACKED.get(mark["data"], PHANTOM)
    tracked = mark["preset"] == "small" and mark["data"] in TRACKED
    if not tracked:
        own, places = root / "book", PHANTOM
        shutil.copytree(book, own, dirs_exist_ok=True, ignore=_skip)
        book = own
    for (kind, pattern), place in zip(MADE.items(), places):
        (book / place).mkdir(parents=True, exist_ok=True)
        for path in sorted((root / kind).glob(pattern)):
            if not path.name.startswith("."):
                shutil.copy2(path, book / place / path.name)
    if not (book / "figures/anomaly.png").is_file():  # nobody of restricted data is drawn
        index = book / "index.md"
        record.write_text(index, MAIN_FIGURE.sub("", index.read_text()))
    if tracked and places is PHANTOM:
        readme = REPOSITORY / "README.md"
        record.write_text(readme, with_results(readme.read_text(), book / "results"))
    return book


def _skip(folder: str, names: list[str]) -> list[str]:
    """Return what another study's book does not take over: builds, and the phantom's run."""
    inside = Path(folder).relative_to(REPOSITORY / "book")
    ours = [name for name in names if str(inside) in PHANTOM and (Path(folder) / name).is_file()]
    return ours + [name for name in names if name in ("_build", "ledger")]


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
    """Verify the pages, build the book anew with warnings as errors, verify what was built.

    Says if it may not be released.
    """
    shutil.rmtree(book / "_build", ignore_errors=True)  # an earlier build's pictures would stay
    verify(book)
    if faults := trace.unreleasable(book, REPOSITORY / "constraints.txt"):
        record.say(f"not for release, {len(faults)} reasons, the first: {faults[0]}")
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", "-W", "-n", "--keep-going", str(book)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        said = answer.stdout[-3000:] + answer.stderr[-3000:]
        raise RuntimeError(f"the book did not build:\n{said}")
    _refuse(_leaks(book))  # the build has changed nothing else that `verify` looks at


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
    faults += _leaks(book) + (trace.unreleasable(book, pins) if pins else [])
    _refuse(faults)


def _refuse(faults: list[BadInput]) -> None:
    if faults:
        raise Report(faults)


def _leaks(book: Path) -> list[BadInput]:
    return [trace.fault("book", "a leak", leak, "none", "take it out") for leak in leaks.scan(book)]


def _page_faults(name: str, page: Path) -> list[BadInput]:
    """Return what makes a page unfit to be shown: its size, its outputs."""
    text = page.read_text()
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    failed = any(o["output_type"] == "error" for c in cells for o in c["outputs"])
    wrong = {
        f"larger than {PAGE_BYTES} bytes": page.stat().st_size > PAGE_BYTES,
        "cut short: a cell ended with an error": failed,
        "empty: no cell has an output": not any(c["outputs"] for c in cells),
    }
    return [trace.fault(name, "page", seen, "a whole one") for seen in wrong if wrong[seen]]

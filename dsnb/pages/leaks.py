"""Leaks: what must not stand in a book, found in its sources and in the built pages.

Each fault names file, cell or line, and what to do. What a cell put out is taken for data; guides
are written by hand, and their example ids are ours.
"""

import base64
import getpass
import hashlib
import json
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from dsnb import record
from dsnb.pages.markup import Markup

GROUP = "group-level"  # the tag of cells whose pictures show no single person
PEOPLE = re.compile(r"\b(stack|truth|drawn)\[|load_volume\(|plot_(sheet|embedding|distribution)\(")
FOLDERS = "home|root|tmp|work|Users|mnt|scratch|gpfs|lustre|nfs|media|opt|srv|var|private|projects?"
PATH = re.compile(rf"(?<![\w.:/])/({FOLDERS})/\w|file:///|\b[A-Za-z]:\\+Users\\")
HOST = re.compile(r"\b[\w.-]+@(?!v\d)[\w-]+\b(?!\.\w)|\b[\w-]+\.(local|internal|lan|localdomain)\b")
ANYBODY = {"root", "user", "runner", "docker", "jovyan", "ubuntu", "localhost"}
ID = re.compile(r"\bsub-(?!syn\d)[A-Za-z0-9]+")
SCANS = (".nii", ".nii.gz", ".mgz", ".dcm", ".npy", ".npz", ".safetensors", ".pt", ".pth", ".pkl")
TEXTS = (".ipynb", ".json", ".jsonl", ".md", ".html", ".js", ".txt", ".yml")
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
DRAWN = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg")
KINDS = {
    "text/plain",
    "text/html",
    "text/markdown",
    *PICTURES,
    "application/papermill.record/text/plain",
}
ACTS = re.compile(r"<script|javascript:|\bon(error|load|click|mouse\w+)\s*=|\{eval", re.I)
MARKED = re.compile(r"<[a-z!/]|\]\(|[{`]", re.I)  # our findings are plain sentences
CODE = re.compile(r"^(`{3,}).*?^\1`*$|(`+)[^`].*?\2", re.S | re.M)
TOLD = re.compile(
    rf"\b(n|people|subjects|patients) ?[=:] ?[1-4]\b|\bage[sd]?\b[^\d\n]{{0,12}}(9\d|1[0-3]\d)\b"
    rf"|{record.FEW_WORDS.pattern}", re.I,
)  # fmt: skip


def scan(book: Path) -> list[str]:
    """Return the leaks of a book's sources, and of its built pages where there are some."""
    ids, html, faults = _known_ids(book), book / "_build" / "html", []
    for path in _files(book):
        where = path.relative_to(book)
        faults += [f"{where}{fault}" for fault in _scan_file(path, where, book, ids)]
    known = {_digest(path) for path in _files(book)} | set(_drawn(book))
    for path in _files(html):
        where = path.relative_to(html)
        source = Path(*where.parts[where.parts[0] == "_sources" :])
        faults += [f"_build: {where}{fault}" for fault in _scan_file(path, source, book, ids)]
        drawn = path.suffix in DRAWN and where.parts[0] != "_static"
        if drawn and _digest(path) not in known:
            faults.append(f"_build: {where}: a picture of no page; make clean, then build again")
    return faults


def _scan_file(path: Path, source: Path, book: Path, ids: set[str]) -> list[str]:
    """Return the leaks of one file that was made of `source`, a path inside the book."""
    if path.name.endswith(SCANS):
        return [": a file of voxels or weights; keep it in the data root"]
    if path.suffix not in TEXTS:
        return _picture_file(path, book)
    text, may = path.read_text(errors="replace"), record.SHOWS[class_of(book, source)]
    faults = [": a participant's id; leave it out"] * bool(set(ID.findall(text)) & ids)
    if path.suffix == ".ipynb":
        return faults + _scan_notebook(json.loads(text), may)
    if _machine(text):
        for number, line in enumerate(text.splitlines(), 1):
            faults += [f", line {number}: {fault}" for fault in _machine(line)]
    if path.suffix in (".json", ".jsonl") and source.parts[0] == "results":
        for number, row in enumerate(text.splitlines() if path.suffix == ".jsonl" else [text], 1):
            faults += [f", entry {number}: {fault}" for fault in _scan_numbers(json.loads(row))]
    elif path.suffix == ".md":
        faults += [f": {found[0]} outside code" for found in ACTS.finditer(CODE.sub("", text))]
    elif path.suffix == ".html" and source.parts[0] != "_static":
        html, hand = Markup(text, article=True), (book / source).with_suffix(".md").is_file()
        faults += _scan_html(html, may)
        text = "" if hand else " ".join(ID.findall(text))  # sentences: see the page's source
        faults += [f": {fault}" for fault in _scan_words(text, may, html)]
    return faults


def class_of(book: Path, page: Path) -> str:
    """Return the class of a page's data, as its results file says; else it is restricted."""
    inside = [
        part for part in page.with_suffix(".json").parts if part not in ("executed", "results")
    ]
    path = book.joinpath("results", *inside)
    return _class(json.loads(path.read_text())) if path.is_file() else "restricted"


def _class(results: dict) -> str:
    settings = results.get("provenance", {}).get("settings")
    mark = settings if isinstance(settings, dict) else {}
    return record.data_class(mark | {k: results[k] for k in ("data", "class") if k in results})


def _scan_notebook(notebook: dict, may: set[str]) -> list[str]:
    faults = [f", metadata: {fault}" for fault in _scan_metadata(notebook["metadata"])]
    for number, cell in enumerate(notebook["cells"], 1):
        source = "".join(cell["source"])
        found = _scan_metadata(cell["metadata"]) + _machine(source)
        if cell["cell_type"] == "markdown":
            found += [f"{act[0]} outside code" for act in ACTS.finditer(CODE.sub("", source))]
        for output in cell.get("outputs", []):
            found += _scan_output(output, source, GROUP in cell["metadata"].get("tags", []), may)
        faults += [f", cell {number}: {fault}" for fault in found]
    return faults


def _scan_metadata(metadata: dict) -> list[str]:
    noted = "papermill" in metadata
    return _machine(_words(metadata)) + ["papermill's notes of a machine; take them out"] * noted


def _scan_output(output: dict, source: str, group: bool, may: set[str]) -> list[str]:
    """Return the leaks of one output of the cell `source`; `group` tells of its tag."""
    data = output.get("data", {})
    html = Markup("".join(data.get("text/html", "")))
    faults = [f"drawn as {kind}, which acts; show text" for kind in sorted(set(data) - KINDS)]
    text = _words([v for kind, v in output.items() if kind != "data"])
    text += _words([v for kind, v in data.items() if kind not in PICTURES])
    if "pictures" not in may and (html.pictures or set(data) & set(PICTURES)):
        if not group:
            faults.append(f"a picture of restricted data; tag the cell {GROUP} if it is of a group")
        elif PEOPLE.search(source) and "may_show_people" not in source:
            faults.append("a picture of single people; ask pages.may_show_people first")
    faults += ["Markdown with markup"] * bool(MARKED.search(_words(data.get("text/markdown", ""))))
    faults += ["script in a picture"] * bool(ACTS.search(_words(data.get("image/svg+xml", ""))))
    faults += [f"raw HTML: {word}" for word in html.acting] + _machine(text, named=True)
    return faults + _scan_words(text, may, html)


def _scan_html(html: Markup, may: set[str]) -> list[str]:
    faults = [f": raw HTML: {word}" for word in html.acting]
    if "pictures" not in may and any(link.startswith("data:image") for link in html.pictures):
        faults.append(": a picture inside the page")
    return faults


def _scan_words(text: str, may: set[str], html: Markup) -> list[str]:
    """Return ids, small counts and high ages in what data brought onto a page."""
    found = ["a participant's id; leave it out"] * ("ids" not in may and bool(ID.search(text)))
    if "few" not in may and (html.tell_few() or TOLD.search(text)):
        found.append("fewer than five people, or an age over 89; show it by pages.hide")
    return found


def _scan_numbers(results: dict) -> list[str]:
    may, told = record.SHOWS[_class(results)], {**results, "provenance": None}
    faults = ["a participant's id"] * ("ids" not in may and bool(ID.search(_words(told))))
    if "few" not in may and record.suppress(told) != told:
        faults.append("fewer than five people, or an age over 89; use record.write_results")
    return faults


def _picture_file(path: Path, book: Path) -> list[str]:
    """Return a fault for a picture that a restricted study laid beside its pages."""
    if path.suffix not in DRAWN or "_build" in path.parts:
        return []
    if not (book.parent / "study.json").is_file():
        return []
    ours = record.HOME.parent / "book" / path.relative_to(book)
    shipped = ours.is_file() and _digest(ours) == _digest(path)
    shown = shipped or record.may_show(record.read_mark(book.parent), "pictures")
    return [] if shown else [": a picture of restricted data; keep it in the data root"]


def _machine(text: str, named: bool = False) -> list[str]:
    """Return paths, hosts and accounts; what was put out, `named`, may not hold our own names."""
    faults = [f"an absolute path, {m[0]}...; print the name only" for m in PATH.finditer(text)]
    faults += [f"a machine or an account, {m[0]}" for m in HOST.finditer(text)]
    ours = {getpass.getuser(), platform.node().split(".")[0]} if named else set()
    for name in ours - ANYBODY:
        if len(name) > 3 and re.search(rf"\b{re.escape(name)}\b", text):
            faults.append("a machine or an account, this one's")
    return faults


def _words(value: object) -> str:
    """Return all text in plain data, keys too."""
    if isinstance(value, dict):
        return "\n".join(f"{key}\n{_words(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return "\n".join(map(_words, value))
    return str(value)


def _known_ids(book: Path) -> set[str]:
    """Return the ids of the data root that the book lies in, but for our guides' examples."""
    table = book.parent / "cohort" / "participants.tsv"
    if not table.is_file() or record.may_show(record.read_mark(book.parent), "ids"):
        return set()
    ids = {line.split("\t")[0] for line in table.read_text().splitlines()[1:]}
    guides = (record.HOME.parent / "book").glob("**/*.md")
    return ids - {name for path in guides for name in ID.findall(path.read_text())}


def _files(folder: Path) -> list[Path]:
    """Return a folder's own files, without vendored code and builds."""
    aside = {"_build", "vendor", "mathjax", ".ipynb_checkpoints"}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in files if not aside & set(path.relative_to(folder).parts[:-1])]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _drawn(book: Path) -> Iterator[str]:
    """Yield the digest of every picture that a page's cells put out."""
    for page in (path for path in _files(book) if path.suffix == ".ipynb"):
        for cell in json.loads(page.read_text())["cells"]:
            for output in cell.get("outputs", []):
                for kind in set(output.get("data", {})) & set(PICTURES):
                    text = "".join(output["data"][kind])
                    lines = "\n".join(text.splitlines()).encode()  # as myst-nb writes an SVG
                    drawn = lines if "svg" in kind else base64.b64decode(text)
                    yield hashlib.sha256(drawn).hexdigest()

"""A Sphinx extension: under every page what made its numbers, and figures described in words."""

import json
from collections import defaultdict
from html import escape
from pathlib import Path

from docutils import nodes

from dsnb import record
from dsnb.pages import trace


def setup(app: object) -> dict:
    """Join the build of the book, an application of Sphinx."""
    app.connect("html-page-context", append)
    app.connect("doctree-resolved", caption)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def caption(_app: object, doctree: nodes.document, _name: str) -> None:
    """Give each image that a paragraph `Figure. ...` follows its text, for who hears the page."""
    for image in doctree.findall(nodes.image):
        below = image.next_node(descend=False, siblings=True)
        if isinstance(below, nodes.paragraph) and below.astext().startswith("Figure. "):
            image["alt"] = below.astext().removeprefix("Figure. ")


def append(app: object, name: str, _template: str, context: dict, _tree: object) -> None:
    """Append a page's footer to its body; a page without numbers of ours stays as it is."""
    line = describe(Path(app.srcdir), name)
    if line and "body" in context:
        style = "margin-top: 3rem; font-size: 0.8em; opacity: 0.75;"
        context["body"] += f'<p class="dsnb-origin" style="{style}">{escape(line)}</p>\n'


def describe(book: Path, name: str) -> str:
    """Return one line on a page's origin: its own run, or the runs of the numbers it quotes."""
    if own := _results(book, name):
        return _own(own, record.digest(book / trace.results_of(name)))
    path, runs = book / f"{name}.md", defaultdict(list)
    text = path.read_text() if path.is_file() else ""
    for page in sorted({page for page, _ in trace.quoted(name, text)}):
        if results := _results(book, page):
            runs[_commit(results)].append(page.removeprefix("executed/"))
    told = [f"{', '.join(pages)} (commit {commit})" for commit, pages in runs.items()]
    return f"Numbers on this page come from {'; '.join(told)}." if told else ""


def _results(book: Path, name: str) -> dict | None:
    """Return the results of a stage's page; None for any other page, and where they are absent."""
    folder, _, stage = name.partition("/")
    if folder not in trace.PARTS or stage not in record.STAGES:
        return None
    path = book / trace.results_of(name)
    results = json.loads(path.read_text()) if path.is_file() else {}
    return results if "provenance" in results else None


def _own(results: dict, digest: str) -> str:
    about = results["provenance"]
    machine, threads = about.get("machine"), about.get("threads")
    parts = {
        "data": results["data"],
        "preset": results["preset"],
        "commit": _commit(results),
        "results": digest[:8],
        "time": about.get("time"),
        "machine": machine and "{processor}, {cores} cores, {memory_gb} GB".format(**machine),
        "threads": threads,
    }
    return "Run: " + ", ".join(f"{word} {value}" for word, value in parts.items() if value) + "."


def _commit(results: dict) -> str:
    about = results["provenance"]
    return about["commit"][:7] + (", with changes that no commit holds" if about["dirty"] else "")

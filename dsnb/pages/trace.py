"""Traces: every page, number and image of a book leads back to the run that made it."""

import ast
import json
import re
from collections import defaultdict
from pathlib import Path
from posixpath import dirname, normpath

from dsnb import record
from dsnb.checks import BadInput
from dsnb.pages import findings
from dsnb.pages.wording import spell

PARTS = {"executed": "results", "real": "results/real"}  # folder of pages -> of their numbers
# What each results file must say of its origin; those of AGREED are equal on all pages of a part.
NEEDED = (
    "commit", "dirty", "packages", "lock", "data_manifest", "study", "seeds", "threads", "device",
    "machine", "time", "chain",
)  # fmt: skip
AGREED = {"lock": "constraints.txt", "data_manifest": "data", "study": "settings"}
GLUED = re.compile(r"\{glue:text\}`(?:([^`:]+)::)?([^`:]+)(?::[^`]*)?`")
IMAGE = re.compile(
    r"!\[[^\]]*\]\(([^)\s]+)|\{(?:figure|image)\} *(\S+)|<img[^>]*\bsrc=[\"']([^\"']+)"
)
MAKE = "run make study"
SHOWN = {"display", "print", "round", "show"}  # what a cell ends in leaves an output


def fault(where: str, field: str, seen: object, expected: str, fix: str = MAKE) -> BadInput:
    """Return one fault of a book as a refusal, E-BOOK."""
    return BadInput("E-BOOK", where, field, seen, expected, fix)


def find_faults(book: Path, notebooks: Path) -> list[BadInput]:
    """Return what breaks the trace from a page, number or image of a book to its origin."""
    faults, pages = [], load_pages(book)
    for name, (cells, results) in pages.items():
        faults += stale_cells(name, cells, notebooks / f"{name.split('/')[1]}.ipynb")
        faults += silent_cells(name, cells)
        about = results.get("provenance", {})
        lacks = [word for word in NEEDED if about.get(word) in (None, "", "no git", {}, [])]
        if lacks:
            faults.append(
                fault(name, "provenance of its results", "without " + ", ".join(lacks), "all")
            )
    for part in PARTS:
        own = {n: r.get("provenance", {}) for n, (_, r) in pages.items() if n.startswith(part)}
        faults += broken_chains(own)
    return faults + unglued(book, pages) + unknown_images(book, pages)


def results_of(name: str) -> str:
    """Return where in the book the numbers of a page lie, `executed/03_vae`."""
    folder, stage = name.split("/")
    return f"{PARTS[folder]}/{stage}.json"


def load_pages(book: Path) -> dict[str, tuple[list, dict]]:
    """Return cells and results of every page that has both, by name, as `executed/03_vae`."""
    found = {}
    for folder in PARTS:
        for stage in record.STAGES:
            name = f"{folder}/{stage}"
            page, results = book / f"{name}.ipynb", book / results_of(name)
            if page.is_file() and results.is_file():
                cells = json.loads(page.read_text())["cells"]
                found[name] = cells, json.loads(results.read_text())
    return found


def unreleasable(book: Path, pins: Path) -> list[BadInput]:
    """Return why pages may be read but not released: changed code, packages not the tested set."""
    lines, faults = pins.read_text().splitlines(), []
    tested = dict(line.lower().split("==") for line in lines if "==" in line and line[0] != "#")
    for name, (_, results) in load_pages(book).items():
        about = results.get("provenance", {})
        if about.get("dirty", True):
            fix = f"commit, then {MAKE}"
            faults.append(fault(name, "its code", "changed since its commit", "a commit's", fix))
        for package, version in about.get("packages", {}).items():
            wanted = tested.get(package.lower())
            if version.split("+")[0] != wanted:
                fix = f"install with -c constraints.txt, then {MAKE}"
                faults.append(fault(name, package, version, f"{wanted} of constraints.txt", fix))
    return faults


def stale_cells(name: str, cells: list, notebook: Path) -> list[BadInput]:
    """Return a fault where a page's cells are not those of its notebook."""
    given = [c for c in cells if "injected-parameters" not in c["metadata"].get("tags", [])]
    page, now = (
        [(cell["cell_type"], "".join(cell["source"])) for cell in some]
        for some in (given, json.loads(notebook.read_text())["cells"])
    )
    if page == now:
        return []
    differ = [place for place, (one, other) in enumerate(zip(page, now), 1) if one != other]
    place = differ[0] if differ else min(len(page), len(now)) + 1
    return [fault(name, f"cell {place}", "stale", f"the cell of notebooks/{notebook.name}")]


def silent_cells(name: str, cells: list) -> list[BadInput]:
    """Return a fault for each cell that ends in something shown and shows nothing."""
    faults = []
    for place, cell in enumerate(cells, 1):
        wanted = promised("".join(cell["source"])) if cell["cell_type"] == "code" else ""
        kinds = [kind for output in cell.get("outputs", []) for kind in output.get("data", "t")]
        seen = {"image": any("image/" in kind for kind in kinds), "output": bool(kinds), "": True}
        if not seen[wanted]:
            faults.append(fault(name, f"cell {place}", f"without {wanted}", f"an {wanted}"))
    return faults


def promised(source: str) -> str:
    """Return what a cell certainly shows, whatever its data: an image, an output, or nothing.

    What stands under a condition or in a loop promises nothing: a small cohort may have no rows.
    """
    promises, body = {""}, ast.parse(source).body
    for node in body:
        if not isinstance(node, ast.Expr):
            continue
        call, final = node.value, node is body[-1]
        if not isinstance(call, ast.Call):
            promises |= {"output"} if final else set()
            continue
        inner = call.args[0] if _called(call) == "display" and call.args else call
        if _called(inner).startswith("plot_") and (final or inner is not call):
            promises.add("image")
        elif _called(call) in ("display", "print") or (final and _called(call) in SHOWN):
            promises.add("output")
    return next(kind for kind in ("image", "output", "") if kind in promises)


def _called(node: ast.AST) -> str:
    function = getattr(node, "func", None)
    return getattr(function, "attr", getattr(function, "id", ""))


def broken_chains(origins: dict[str, dict]) -> list[BadInput]:
    """Return a fault where pages rest on different makes of a product, or on other settings."""
    seen = defaultdict(dict)
    for page, about in origins.items():
        for word, what in AGREED.items():
            seen[what].setdefault(about.get(word), []).append(page)
        for product, key in about.get("chain", {}).items():
            seen[product].setdefault(key, []).append(page)
    faults = []
    for what, makes in seen.items():
        makes.pop(None, None)
        if len(makes) > 1:
            told = {" and ".join(pages): key for key, pages in makes.items()}
            stage = record.MADE_BY.get(what, record.STAGES[0]).split()[0]
            fix = f"run make study: it makes {stage} and all after it again"
            faults.append(fault("its pages", f"{what} that they rest on", told, "one make", fix))
    return faults


def glued(cells: list) -> dict[str, str]:
    """Return the values that a page has glued, by key."""
    values = {}
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        if key := output.get("metadata", {}).get("scrapbook", {}).get("name"):
            values[key] = ast.literal_eval("".join(next(iter(output["data"].values()))))
    return values


def texts(book: Path, pages: dict) -> list[tuple[str, str]]:
    """Return (name, markdown) of every page of the book."""
    paths = [path for path in sorted(book.rglob("*.md")) if "_build" not in path.parts]
    found = [(str(path.relative_to(book).with_suffix("")), path.read_text()) for path in paths]
    for name, (cells, _) in pages.items():
        own = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        found.append((name, "\n\n".join(own)))
    return found


def quoted(name: str, text: str) -> list[tuple[str, str]]:
    """Return (page, key) of each glued number that a text quotes, pages by name."""
    found = []
    for target, key in GLUED.findall(text):
        path = normpath(f"{dirname(name)}/{target}").lstrip("/") if target else name
        found.append((path.removesuffix(".ipynb"), key))
    return found


def unglued(book: Path, pages: dict) -> list[BadInput]:
    """Return a fault for each glued number that no results file gives."""
    faults, known = [], {name: glued(cells) for name, (cells, _) in pages.items()}
    for name, (_, results) in pages.items():
        values = results["headline"] | results.get("timing", {})
        spelt = {key: spell(value) for key, value in values.items()}
        if "finding_1" in known[name]:
            spelt |= findings.glued(results)
        for key, text in known[name].items():
            if spelt.get(key) != text:
                wanted = spelt.get(key, "a number")
                faults.append(fault(name, key, text, f"{wanted} of its results file"))
    for name, text in texts(book, pages):
        for page, key in quoted(name, text):
            if key not in known.get(page, ()):
                fix = "correct its name, or " + MAKE
                faults.append(fault(name, f"{key} of {page}", "no glued number", "one", fix))
    return faults


def unknown_images(book: Path, pages: dict) -> list[BadInput]:
    """Return a fault for each image that is absent, or that no results file knows by its digest."""
    known, shown = set(), {}
    for path in (book / "results").rglob("*.json"):
        known |= set(json.loads(path.read_text()).get("provenance", {}).get("figures", {}).values())
    for name, text in texts(book, pages):
        for found in ("".join(match) for match in IMAGE.findall(text)):
            if ":" not in found:
                shown[normpath(book / dirname(name) / found)] = name
    for path in (book / "figures").rglob("*.*"):
        shown.setdefault(str(path), f"figures/{path.name}")
    faults = []
    for path, name in shown.items():
        if not Path(path).is_file():
            faults.append(fault(name, f"image {Path(path).name}", "absent", "a file"))
        elif record.digest(Path(path)) not in known:
            words = "unknown", "one whose digest a results file has", "draw it by its page or tool"
            faults.append(fault(name, f"image {Path(path).name}", *words))
    return faults

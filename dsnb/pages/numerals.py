"""Typed numbers: a decimal or a percentage in narrative text must be glued, cited or excused."""

import json
import re
from pathlib import Path

import yaml

from dsnb.checks import BadInput

ALLOWED = "typed_numbers.yml"  # under the book: file, or "*" -> list of {text, reason}
SKIPPED = {"_build", "vendor", "results"}
FENCE = re.compile(r"^( *)(`{3,}|~{3,}|:{3,})(.*?)\n(.*?)^\1\2 *$", re.S | re.M)
DIRECTIVE = re.compile(r"\s*\{(?!code|math|bibliography)")  # its content is text of the page
# What is no narrative: comments, maths, sentences with a citation, code, links, names of versions.
OUTSIDE = (
    r"<!--.*?-->",
    r"\$\$.*?\$\$",
    r"(?<!\\)\$[^$]+?\$",
    r"[^.!?|\n](?:(?!\n\s*\n|[.!?;:|](?=\s)).)*\{cite\}`[^`]*`(?:(?!\n\s*\n|[.!?;:|](?=\s)).)*",
    r"(`+).+?\1",
    r"\]\([^)]*\)|<[^<>\s][^<>]*>|https?://\S+|\b10\.\d{4,}/\S+",
    r"(?i)\b(version|python|phantom|arxiv|slurm|cc[ -]by(-sa)?) v?\d[\d.]*\d",
    r"\d+(\.\d+){2,}",
)  # fmt: skip
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+|\s*(?:\\?%|per ?cent\b))")


def find_typed(book: Path, notebooks: Path) -> list[BadInput]:
    """Return a fault for each typed number of the text, and for each entry that allows none."""
    path, faults, needed = book / ALLOWED, [], set()
    allowed = yaml.safe_load(path.read_text()) if path.is_file() else {}
    reasons = {(n, entry["text"]): entry.get("reason") for n in allowed for entry in allowed[n]}
    for name, cell, text in _texts(book, notebooks):
        excuses = [entry for entry in reasons if entry[0] in (name, "*")]
        for match in NUMBER.finditer(narrative(text)):
            excused = {entry for entry in excuses if _covers(entry[1], text, match.start())}
            needed |= excused
            if not excused:
                line = text.count("\n", 0, match.start()) + 1
                fix = f"glue it from a results file, cite it, or give its reason in {ALLOWED}"
                seen = "a typed number", match[0], "none", fix
                faults.append(BadInput("E-TYPED", f"{name}, {cell}line {line}", *seen))
    for entry, reason in reasons.items():
        seen = "of no use" if entry not in needed else "without a reason" if not reason else ""
        if seen:
            said = seen, "a typed number's text, and why it may stand", "remove or complete it"
            faults.append(BadInput("E-TYPED", ALLOWED, ": ".join(entry), *said))
    return faults


def narrative(text: str) -> str:
    """Blank all that is no narrative text; places and line breaks stay where they are."""
    text = FENCE.sub(_open_fence, text)
    for pattern in OUTSIDE:
        text = re.sub(pattern, lambda match: _blank(match[0]), text, flags=re.S | re.M)
    return text


def _open_fence(match: re.Match) -> str:
    """Blank a block of code; of a directive only its first line, options and last line."""
    if not DIRECTIVE.match(match[3]):
        return _blank(match[0])
    start, end = match.start(4) - match.start(), match.end(4) - match.start()
    options = re.sub(r"^ *:[\w-]+:.*$", lambda line: _blank(line[0]), match[4], flags=re.M)
    return _blank(match[0][:start]) + FENCE.sub(_open_fence, options) + _blank(match[0][end:])


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def _texts(book: Path, notebooks: Path) -> list[tuple[str, str, str]]:
    """Return (file, cell, text) of pages of text and of the notebooks' markdown cells."""
    found = []
    for path in sorted(book.rglob("*.md")):
        name = path.relative_to(book)
        if not SKIPPED & set(name.parts):
            found.append((str(name), "", path.read_text()))
    for path in sorted(notebooks.glob("*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text())["cells"], 1):
            if cell["cell_type"] == "markdown":
                found.append((path.name, f"cell {number} ", "".join(cell["source"])))
    return found


def _covers(excuse: str, text: str, place: int) -> bool:
    pattern = r"\s+".join(map(re.escape, excuse.split()))
    return any(match.start() <= place < match.end() for match in re.finditer(pattern, text))

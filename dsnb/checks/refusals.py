"""One way to refuse: a sentence with code, file, field, what was seen, expected, and the fix."""

import errno
import re
from pathlib import Path


class BadInput(Exception):
    """Input that we refuse; the command line prints it as one sentence and exits with 2.

    A code E-* refuses; the same sentence with a code W-* is a warning.
    """

    def __init__(self, code: str, where: object, field: str, seen: object, expected: str, fix: str):
        # A name may hold control characters; `seen` is shown by its repr.
        where, expected = (
            text if text.isprintable() else ascii(text) for text in (str(where), expected)
        )
        self.code = code
        self.said = (code, where, field, seen, expected, fix)
        super().__init__(f"{code} {where}: {field} is {seen!r}, expected {expected}; {fix}.")

    def entry(self) -> dict[str, str]:
        """Return the six parts and the message as text, for a JSON report."""
        parts = ("code", "file", "field", "seen", "expected", "fix", "message")
        said = [part if isinstance(part, str) else repr(part) for part in self.said]
        return dict(zip(parts, [*said, str(self)]))

    def __reduce__(self) -> tuple:
        """Let a refusal travel between processes: rebuild it from what was said."""
        return type(self), self.said


class Report(BadInput):
    """Every problem of one data set at once; its code is that of the first."""

    def __init__(self, problems: list[BadInput]):
        self.code, self.problems, self.said = problems[0].code, problems, (problems,)
        lines = [f"{len(problems)} problems, nothing was written:"] if len(problems) > 1 else []
        Exception.__init__(self, "\n".join(lines + [str(problem) for problem in problems]))


def is_safe_id(value: str) -> bool:
    """Tell whether an id is plain ASCII `sub-<letters and digits>`, safe in a path."""
    return re.fullmatch(r"sub-[A-Za-z0-9]+", value, re.ASCII) is not None


def shown(path: Path, inside: Path | None) -> str:
    """Return a file's name as a message may show it: relative to the data folder, or its last."""
    relative = inside is not None and path.is_relative_to(inside)
    return str(path.relative_to(inside)) if relative else path.name


def check_path(path: Path, inside: Path | None = None) -> None:
    """Refuse (E-PATH) what is no readable file, saying which of six things it is."""
    where = shown(path, inside)
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a loop raises RuntimeError in Python 3.11
        loop = isinstance(error, RuntimeError) or error.errno == errno.ELOOP
        broken = "a broken link" if path.is_symlink() else "absent"
        seen, fix = "a link loop" if loop else broken, "restore the file, or fetch what it links to"
        raise BadInput("E-PATH", where, "this path", seen, "a file", fix) from None
    if not target.is_file():
        seen = "a folder" if target.is_dir() else "no plain file"
        raise BadInput("E-PATH", where, "this path", seen, "a file", "give the scan itself")
    if inside is not None and not target.is_relative_to(inside.resolve()):
        fix = "copy the file into the data folder"
        raise BadInput("E-PATH", where, "its link", "out of the data folder", "inside it", fix)

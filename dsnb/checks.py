"""One way to refuse: a sentence that names code, file, field, what was seen, expected, and the fix."""


class BadInput(Exception):
    """Input that we refuse; the command line prints it as one sentence and exits with 2."""

    def __init__(self, code: str, where: object, field: str, seen: object, expected: str, fix: str):
        self.code = code
        super().__init__(f"{code} {where}: {field} is {seen!r}, expected {expected}; {fix}.")

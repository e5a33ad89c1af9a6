"""The ledger: one row a run of what no study repeats (sweeps, seeds, ablations, benchmarks)."""

import json
from contextlib import suppress

from dsnb.record.files import HOME, code_digest, digest, lock, plain, provenance

LEDGERS = HOME.parent / "book/results/ledger"


def ledger_rows(name: str, **wanted: object) -> list[dict]:
    """Return the rows of `NN_noun.jsonl` in which all of `wanted` hold; none where it is absent."""
    path = LEDGERS / f"{name}.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # a row that a kill cut short
            rows.append(json.loads(line))
    return [row for row in rows if all(row.get(k) == plain(v) for k, v in wanted.items())]


def row_key(task: dict, code: tuple[str, ...]) -> dict:
    """Return what makes a run the same run: its task, the task's digest and that of its code."""
    return {**plain(task), "digest": digest(plain(task)), "code": code_digest(*code)}


def is_stale(row: dict, code: tuple[str, ...]) -> bool:
    """Return whether a row was made by other code than the present."""
    return row["code"] != code_digest(*code)


def add_row(name: str, key: dict, found: dict) -> None:
    """Add a run's row, with its seed, digests, CPU-seconds and the versions it ran on."""
    about = provenance(name, {}, {})
    kept = {word: about[word] for word in ("commit", "dirty", "python", "packages", "threads")}
    path = LEDGERS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        lock(file, path.name)  # several runs may add rows side by side
        file.write(json.dumps(plain({**key, **found, **kept})) + "\n")


def find_row(name: str, key: dict) -> dict | None:
    """Return the finished row of a run, or None: what is in the ledger is not run again."""
    found = ledger_rows(name, digest=key["digest"], code=key["code"])
    return found[-1] if found else None

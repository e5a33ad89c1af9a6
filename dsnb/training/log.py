"""The log of a run, `stats.jsonl`: one row a step, read and thinned, cut back at a resume."""

import json
import math
from contextlib import suppress
from pathlib import Path

import pandas as pd

from dsnb import record

# Where time and memory went: they differ from run to run, so no results table holds them.
COSTS = (
    "seconds", "load_s", "forward_s", "backward_s", "update_s", "validate_s", "save_s", "peak_mib",
)  # fmt: skip
WORDS = ("step", "skipped_rows", "skipped_names")


def read_stats(run: Path) -> pd.DataFrame:
    """Read the log of a run, one row a step; validation columns are empty between validations."""
    lines = (run / "stats.jsonl").read_text().splitlines()
    return pd.DataFrame([json.loads(line) for line in lines])


def wall_seconds(stats: pd.DataFrame) -> float:
    """Return the seconds of a training: its steps, validations and saves."""
    return stats.reindex(columns=["seconds", "validate_s", "save_s"]).sum().sum()


def curve(stats: pd.DataFrame, points: int = 60) -> list[dict]:
    """Thin a training log to at most `points` rows: volumes seen, means of loss terms and score."""
    parts = pd.cut(stats["seen"], min(points, len(stats)), labels=False)
    known = [name for name in stats if name not in (*COSTS, *WORDS)]
    means = stats[known].groupby(parts).mean()
    rows = means.to_dict("records")
    return [{k: v for k, v in row.items() if math.isfinite(v)} for row in rows]


def append(run: Path, entry: dict) -> None:
    """Add one step's row, to the last bit; a number that is not finite becomes null."""
    entry = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }
    with record.writing(run), (run / "stats.jsonl").open("a") as log:
        log.write(json.dumps(entry) + "\n")


def amend(run: Path, more: dict) -> None:
    """Add to the last row what came after it: the last saves."""
    lines = (run / "stats.jsonl").read_text().splitlines() if more else []
    if lines:
        last = json.loads(lines[-1])
        for name, value in more.items():
            last[name] = last.get(name, 0) + value
        record.write_text(run / "stats.jsonl", "\n".join([*lines[:-1], json.dumps(last)]) + "\n")


def rewind(run: Path, seen: int) -> int:
    """Drop rows later than the checkpoint, and one that a kill cut short; return volumes lost."""
    path, kept, last = run / "stats.jsonl", [], seen
    if path.is_file():
        for line in path.read_text().splitlines():
            with suppress(json.JSONDecodeError):
                last = json.loads(line)["seen"]
                if last <= seen:
                    kept.append(line + "\n")
    record.write_text(path, "".join(kept))
    return max(0, last - seen)

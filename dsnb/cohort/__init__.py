"""Participants -> checked table: who takes part, split by family once, read by all."""

from dsnb.cohort.folder import as_text, check, read_folder
from dsnb.cohort.manifest import verify
from dsnb.cohort.product import COLUMNS, gather, load, summarise
from dsnb.cohort.split import BESIDE, assign_splits, check_stated, find_leaks, plant, quota

__all__ = [
    "BESIDE", "COLUMNS", "as_text", "assign_splits", "check", "check_stated", "find_leaks",
    "gather", "load", "plant", "quota", "read_folder", "summarise", "verify",
]  # fmt: skip

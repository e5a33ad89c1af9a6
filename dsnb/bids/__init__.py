"""BIDS in and out: importers and column maps, tables as text, scans with sidecars."""

from dsnb.bids.columns import OF_PERSON, OF_VISIT, shipped
from dsnb.bids.importers import import_cohort
from dsnb.bids.layouts import LAYOUTS
from dsnb.bids.scans import (
    as_ras,
    attempt,
    describe,
    find_t1w,
    load_volume,
    quantise,
    save_volume,
    sidecar_of,
)  # fmt: skip
from dsnb.bids.tables import MISSING, TEXT, read_participants, read_table, typed, write_table

__all__ = [
    "LAYOUTS", "MISSING", "OF_PERSON", "OF_VISIT", "TEXT", "as_ras", "attempt", "describe",
    "find_t1w", "import_cohort", "load_volume", "quantise", "read_participants", "read_table",
    "save_volume", "shipped", "sidecar_of", "typed", "write_table",
]  # fmt: skip

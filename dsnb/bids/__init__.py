"""BIDS in and out: importers and column maps, tables as text, scans with sidecars."""

from dsnb.bids.columns import MISSING, OF_PERSON, OF_SCAN, OF_VISIT, shipped
from dsnb.bids.importers import import_cohort
from dsnb.bids.layouts import LAYOUTS
from dsnb.bids.scans import (
    as_ras,
    attempt,
    describe,
    find_t1w,
    load_volume,
    save_volume,
    sidecar_of,
)
from dsnb.bids.tables import read_participants, read_table, typed, write_dictionary, write_table

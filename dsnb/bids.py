"""BIDS in and out: tables as text, participants as we name them, scans with sidecars."""

import csv
import gzip
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from dsnb import checks, record
from dsnb.checks import BadInput
from dsnb.space import SPACE, Grid

MISSING = "n/a"
# Columns that stay text, whatever they look like: a site called 1 is no number.
TEXT = frozenset(
    "participant_id family group group_recorded kind origin sex site session stage disability "
    "split t1w sha flag code reason notes seen_by source".split()
)
SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
GROUPS = {"ds": "DS", "down syndrome": "DS", "down": "DS", "t21": "DS", "trisomy 21": "DS"} | {
    name: "euploid" for name in ("euploid", "control", "controls", "hc", "cn", "healthy", "non-ds")
}
STEP = 1 / 20000  # of intensities stored as int16: below 1 % of the noise, range +-1.6


def read_table(path: Path) -> pd.DataFrame:
    """Read a TSV as text: ids keep their zeros, a group called NA stays; a BOM is dropped.

    Refuses E-PATH, E-ENCODING (with the line) and E-TABLE (columns twice, ragged rows).
    """
    checks.check_path(path)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = f"line {content[: error.start].count(b'\n') + 1} is not UTF-8" if False else None
        raise BadInput("E-ENCODING", path.name, "x", line, "UTF-8", "save it") from None
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    return pd.DataFrame(rows)

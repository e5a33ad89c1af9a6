"""Participants -> checked table: who takes part, split by family once, read by all."""

from dsnb.cohort.folder import as_text, check, read_folder
from dsnb.cohort.manifest import verify
from dsnb.cohort.product import gather, load, summarise
from dsnb.cohort.split import BESIDE, assign_splits, check_stated, plant, quota

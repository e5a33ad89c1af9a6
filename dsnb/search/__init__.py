"""Short trials of the VAE's settings by Optuna; ablations and severities into the ledger."""

from dsnb.search.ablations import ablate
from dsnb.search.coverage import draw_cohorts
from dsnb.search.deep_norms import compare
from dsnb.search.folds import count_cost
from dsnb.search.grids import fill
from dsnb.search.hard import grow_faint
from dsnb.search.latent_kinds import compare_latents
from dsnb.search.planted import map_folds
from dsnb.search.power import draw_studies
from dsnb.search.severity import trace
from dsnb.search.sharpness import compare_sharpness
from dsnb.search.shift import scan_sites
from dsnb.search.stages import stage_more
from dsnb.search.subtypes import draw_subtypes
from dsnb.search.synthesis import compare_generators
from dsnb.search.trials import (
    defaults,
    fill_trials,
    open_journal,
    search,
    shortened,
    space,
    take_part,
    try_out,
)  # fmt: skip

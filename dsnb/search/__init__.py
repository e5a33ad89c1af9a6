"""Searches over the VAE's settings: short trials by Optuna, and ablations into the ledger."""

from dsnb.search.ablations import ablate
from dsnb.search.folds import count_cost
from dsnb.search.trials import defaults, finished, open_journal, search, shortened, space, try_out

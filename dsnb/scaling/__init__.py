"""Benchmarks: networks against CPU time, calculated costs, and data-parallel training."""

from dsnb.scaling.cost import bench_cost, calculate, measure
from dsnb.scaling.ledgers import (
    read_generators,
    read_hard,
    read_latents,
    read_norms,
    read_planted,
    read_power,
    read_severity,
    read_sharpness,
    read_shift,
    read_stages,
    read_subtypes,
    severity_curves,
)
from dsnb.scaling.parallel import CODE, bench, race, resumes_identically
from dsnb.scaling.searches import (
    COMPARED,
    importances,
    read_grids,
    read_trials,
    tell_beside,
    tell_grids,
    tell_search,
)
from dsnb.scaling.speed import bench_speed
from dsnb.scaling.tables import (
    MEASURES,
    ablation_table,
    cost_check,
    cost_table,
    read_speed,
    tell_ablations,
)

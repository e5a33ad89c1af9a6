"""Benchmarks: networks against CPU time, calculated costs, and data-parallel training."""

from dsnb.scaling.batches import bench_batch, read_batches
from dsnb.scaling.cluster import bench_cluster, read_cluster
from dsnb.scaling.cost import bench_cost, calculate, measure
from dsnb.scaling.findings import (
    errors_by_ranks,
    tell_batches,
    tell_expenses,
    tell_larger,
    tell_model,
    tell_projection,
    tell_steps,
)
from dsnb.scaling.ledgers import (
    read_coverage,
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
from dsnb.scaling.links import bench_links
from dsnb.scaling.loader import bench_loader, read_loader
from dsnb.scaling.model import compare, held_out_error, read_links
from dsnb.scaling.parallel import CODE, bench, race, resumes_identically
from dsnb.scaling.projection import assumption_table, project
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
from dsnb.scaling.steps import bench_steps, read_steps
from dsnb.scaling.tables import (
    MEASURES,
    WATTS_A_CORE,
    ablation_table,
    cost_check,
    cost_table,
    expense_table,
    read_speed,
    tell_ablations,
)

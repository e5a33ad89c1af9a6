"""Tables and maps to figures; models are unknown here."""

from dsnb.figures.captions import caption
from dsnb.figures.charts import (
    plot_bars,
    plot_curves,
    plot_distribution,
    plot_embedding,
    plot_grid,
    plot_scatter,
    plot_series,
    plot_spectrum,
    plot_training,
)  # fmt: skip
from dsnb.figures.person import plot_report
from dsnb.figures.quality import plot_sheet, save_checks
from dsnb.figures.scaling import (
    plot_model,
    plot_parity,
    plot_projection,
    plot_ranks,
    plot_steps,
    plot_targets,
)
from dsnb.figures.slices import plot_cases, plot_overlay, plot_slices, save_figure, view_map
from dsnb.figures.speed import plot_dots, plot_speed
from dsnb.figures.trials import plot_forest, plot_trials

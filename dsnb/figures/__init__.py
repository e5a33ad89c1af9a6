"""Tables and maps to figures; models are unknown here."""

from dsnb.figures.charts import (
    plot_bars,
    plot_curves,
    plot_distribution,
    plot_embedding,
    plot_scatter,
    plot_spectrum,
    plot_training,
)  # fmt: skip
from dsnb.figures.quality import plot_check, plot_sheet, save_checks
from dsnb.figures.slices import ENDS, cut_volume, plot_cases, plot_overlay, plot_slices
from dsnb.figures.speed import plot_dots, plot_speed

__all__ = [
    "ENDS", "cut_volume", "plot_bars", "plot_cases", "plot_check", "plot_curves",
    "plot_distribution", "plot_dots", "plot_embedding", "plot_overlay", "plot_scatter",
    "plot_sheet", "plot_slices", "plot_spectrum", "plot_speed", "plot_training", "save_checks",
]  # fmt: skip

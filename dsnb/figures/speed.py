"""Quality against CPU time, and what each part of a model is worth."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from dsnb.figures.captions import caption, tell_curves, tell_extremes
from dsnb.figures.charts import COLOURS, OTHERS, _open_chart, _plain_axes, _spread

# One colour and mark an entrant, so that none is told by its colour alone.
STYLES = tuple(zip((COLOURS["euploid"], COLOURS["DS"], *OTHERS[:4]), "os^Dv<"))


def plot_speed(curves: pd.DataFrame, lines: dict[str, float], names: dict[str, str]) -> Figure:
    """Show PSNR (dB) against CPU-seconds: mean and range over seeds, named at the curve's end.

    `curves` has entrant, cpu_s, mean, low, high; `lines` are levels that take no training, such
    as the noise floor; `names` spells entrants and lines.
    """
    axes = (figure := _open_chart(4.2)).subplots()
    ends = []  # (CPU-seconds or none, dB, name, colour) of the labels
    for (name, table), (colour, mark) in zip(curves.groupby("entrant", sort=False), STYLES):
        axes.fill_between(table["cpu_s"], table["low"], table["high"], color=colour, alpha=0.2)
        axes.plot(table["cpu_s"], table["mean"], color=colour, marker=mark, ms=4, lw=1.6)
        ends.append((table["mean"].iloc[-1], names.get(name, name), colour))
    for name, level in lines.items():
        axes.axhline(level, color="dimgrey", ls="--", lw=1)
        ends.append((level, names.get(name, name), "dimgrey"))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    _plain_axes(axes, "CPU-seconds of training, one thread", "PSNR on unseen people (dB)")
    low, high = axes.get_ylim()
    style = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
    for (level, name, colour), place in zip(ends, _spread([e[0] for e in ends], (high - low) / 22)):
        text = f"{name} ({level:.1f})"
        axes.text(1.02, place, text, color=colour, **style)
    named = {names.get(name, name): part for name, part in curves.groupby("entrant", sort=False)}
    words = tell_curves(named, "cpu_s", "mean", ("CPU-seconds", "PSNR on unseen people (dB)"))
    return caption(figure, words)


def plot_dots(
    table: pd.DataFrame, measures: dict[str, str], wanted: dict[str, float] | None = None
) -> Figure:
    """Show one row of dots a measure {column: label with unit}: mean and SD of each variant.

    `table` has variants as its index and, for each measure, a column and its `_sd`; `wanted`
    marks the value that would be perfect.
    """
    figure = _open_chart(1.0 + 0.28 * len(table))
    row = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    places = np.arange(len(table))
    for axes, (name, label) in zip(row, measures.items()):
        spread = table[f"{name}_sd"].fillna(0)
        axes.errorbar(table[name], places, xerr=spread, fmt="o", color=COLOURS["euploid"], ms=5)
        if name in (wanted or {}):
            axes.axvline(wanted[name], color=COLOURS["DS"], ls="--", lw=1)
            style = {"fontsize": 8, "color": COLOURS["DS"], "loc": "right"}
            axes.set_title(f"dashed: {wanted[name]:g}", **style)
        axes.grid(axis="x", alpha=0.3)
        _plain_axes(axes, label, "")
    row[0].set_yticks(places, [str(name) for name in table.index], fontsize=8)
    row[0].set_ylim(len(table) - 0.5, -0.5)
    return caption(figure, tell_extremes(table, measures))

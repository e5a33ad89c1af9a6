"""A search's trials, and grids of variants, as charts."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dsnb.figures.captions import caption
from dsnb.figures.charts import COLOURS, _open_chart, _plain_axes

GREY = "#7A7A7A"
STATES = {"complete": ("o", COLOURS["euploid"]), "pruned": ("x", GREY)}  # mark and colour


def plot_trials(
    table: pd.DataFrame, value: str, unit: str, settings: dict[str, str], title: str,
    log: Sequence[str] = (),
) -> Figure:  # fmt: skip
    """Show `value` of every trial against each of `settings` {column: label}, one panel each.

    The trials that a pruner ended and the defaults (trial 0) have marks of their own.
    """
    figure = _open_chart(3.2)
    row = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for axes, (name, label) in zip(row, settings.items()):
        for state, (mark, colour) in STATES.items():
            some = table[(table["state"] == state) & (table["trial"] > 0)]
            axes.plot(some[name], some[value], mark, color=colour, ms=5, alpha=0.8, label=state)
        own = table[table["trial"] == 0]
        axes.plot(own[name], own[value], "D", color=COLOURS["DS"], ms=7, label="defaults")
        axes.axhline(own[value].max(), color=COLOURS["DS"], lw=0.8, ls="--")
        if name in log:
            axes.set_xscale("log")
            few = table[name].max() < 30 * table[name].min()
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if few else (1,)))
            axes.xaxis.set_major_formatter("{x:.0e}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.tick_params("x", labelsize=8)
        elif name != "trial":
            axes.set_xticks(sorted(table[name].unique()))
            axes.margins(x=0.2)
        axes.grid(alpha=0.3)
        _plain_axes(axes, label, "")
    row[0].set_ylabel(unit)
    row[-1].legend(frameon=False, fontsize=8)
    return caption(figure, title)


def plot_forest(table: pd.DataFrame, measures: dict[str, str], title: str) -> Figure:
    """Show the difference to `lean` of every variant, grid by grid, a panel a measure.

    Thick: 95 % interval; thin: corrected for all comparisons; filled where that leaves out 0. An
    interval that leaves the panel is cut by its edge.
    """
    names = table[["grid", "variant"]].drop_duplicates()
    places, labels, heads, place = {}, [], [], 0.0
    for grid, part in names.groupby("grid", sort=False):
        heads.append((place, grid))
        for variant in part["variant"]:
            place += 1
            places[grid, variant] = place
            labels.append(variant.replace("_", " "))
        place += 1.4
    figure = _open_chart(1.2 + 0.19 * place)
    row = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, (name, label) in zip(row, measures.items()):
        for one in table[table["measure"] == name].to_dict("records"):
            at, shown = places[one["grid"], one["variant"]], one["holm_low"] * one["holm_high"] > 0
            colour = COLOURS["euploid"] if shown else GREY
            axes.plot([one["holm_low"], one["holm_high"]], [at, at], color=colour, lw=0.8)
            axes.plot([one["low"], one["high"]], [at, at], color=colour, lw=2.2)
            axes.plot(one["difference"], at, "o", color=colour, ms=5, mfc=colour if shown else "w")
        some = table.loc[table["measure"] == name, ["difference", "low", "high"]]
        reach = 1.15 * np.abs(some["difference"]).max()
        axes.set_xlim(-reach, reach)
        axes.axvline(0, color="black", lw=0.8)
        axes.grid(axis="x", alpha=0.3)
        _plain_axes(axes, label, "")
    row[0].set_yticks(list(places.values()), labels, fontsize=8)
    row[0].set_ylim(place - 0.7, -0.8)
    for at, grid in heads:
        row[0].text(0.02, at, grid, transform=row[0].get_yaxis_transform(), fontsize=8,
                    fontweight="bold", va="center")  # fmt: skip
    return caption(figure, title)

"""Speed of many processes: measured, modelled, and, drawn apart, projected."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from dsnb.figures.captions import caption
from dsnb.figures.charts import COLOURS, MARKS, OTHERS, _open_chart, _plain_axes

PARTS = {
    "load_ms": "load", "forward_ms": "forward", "backward_ms": "backward",
    "sum_ms": "sum of gradients", "rest_ms": "clip and agree", "update_ms": "update",
}  # fmt: skip
SERIES = (COLOURS["euploid"], COLOURS["DS"], *OTHERS)


def _plain_powers(axes: Axes, places: np.ndarray) -> None:
    """Write numbers of processes or batches on a logarithmic axis as they are."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_minor_formatter(NullFormatter())


def plot_steps(efficiency: pd.DataFrame, split: pd.DataFrame, titles: tuple[str, str]) -> Figure:
    """Show efficiency (kind, efficiency, low, high), and milliseconds of a step by part."""
    figure = _open_chart(2.8)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    for place, row in enumerate(efficiency.to_dict("records")):
        left.plot([row["low"], row["high"]], [place, place], color=COLOURS["euploid"], lw=2)
        left.plot(row["efficiency"], place, "o", color=COLOURS["euploid"], ms=6)
    left.axvline(1, color="grey", ls="--", lw=1)
    left.set_yticks(range(len(efficiency)), efficiency.get("kind", []))
    left.set_ylim(len(efficiency) - 0.5, -0.5)
    left.grid(axis="x", alpha=0.3)
    _plain_axes(left, "efficiency (median, quartiles of rounds)", "")
    before = np.zeros(len(split))
    for (name, label), colour in zip(PARTS.items(), SERIES):
        width = split[name].clip(lower=0)  # noise may make the dearest part a little less than 0
        right.barh(range(len(split)), width, left=before, color=colour, label=label, height=0.6)
        before += width
    right.set_yticks(range(len(split)), split["arrangement"])
    right.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    _plain_axes(right, "milliseconds of a step, same global batch", "")
    return caption(figure, "; ".join(titles))


def plot_parity(gaps: pd.DataFrame, bar: float, title: str) -> Figure:
    """Show relative differences of the loss {columns} by step (index), below a bar; log axis.

    Losses that are equal to the bit are drawn at the lower edge.
    """
    axes = (figure := _open_chart(3.0)).subplots()
    floor = gaps[gaps > 0].min().min() / 3 if (gaps > 0).any().any() else bar / 1e4
    for (name, values), colour, mark in zip(gaps.items(), SERIES, MARKS):
        axes.plot(gaps.index, values.clip(lower=floor), mark, color=colour, ms=4, label=name)
    axes.axhline(bar, color="grey", ls="--", lw=1)
    axes.axhline(floor, color="grey", lw=0.5)
    style = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
    for level, text in ((bar, f"bar {bar:g}"), (floor, "equal to the bit")):
        axes.text(1.01, level, text, color="dimgrey", **style)
    axes.set_yscale("log")
    axes.set_ylim(floor / 2, bar * 4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _plain_axes(axes, "step", "relative difference of the loss")
    return caption(figure, title)


def plot_targets(table: pd.DataFrame, measures: dict[str, str], title: str) -> Figure:
    """Show a panel a measure {column: label with unit} by global batch: seeds, and their mean."""
    figure = _open_chart(2.9)
    for axes, (name, label) in zip(figure.subplots(1, len(measures), squeeze=False)[0],
                                   measures.items()):  # fmt: skip
        axes.plot(table["batch"], table[name], "o", color=COLOURS["euploid"], ms=4, alpha=0.6)
        mean = table.groupby("batch")[name].mean()
        axes.plot(mean.index, mean, color=COLOURS["euploid"], lw=1.5)
        _plain_powers(axes, mean.index)
        axes.set_ylim(0)
        axes.grid(alpha=0.3)
        _plain_axes(axes, "global batch (volumes)", label)
    return caption(figure, title)


def plot_model(table: pd.DataFrame, measures: dict[str, str], band: float, title: str) -> Figure:
    """Show predicted against measured seconds a measure {prefix: label}: open marks were fitted.

    `table` has `PREFIX_s` and `PREFIX_predicted_s`, ranks (`world`), and whether `held_out`.
    """
    figure = _open_chart(3.9)
    for axes, (name, label) in zip(figure.subplots(1, len(measures), squeeze=False)[0],
                                   measures.items()):  # fmt: skip
        values = table[[f"{name}_s", f"{name}_predicted_s"]].to_numpy()
        ends = np.array([values.min() / 1.3, values.max() * 1.3])
        axes.fill_between(ends, ends * (1 - band), ends * (1 + band), color="grey", alpha=0.2, lw=0)
        for (world, part), colour, mark in zip(table.groupby("world"), SERIES, MARKS):
            for held, some in part.groupby("held_out"):
                pair = some[f"{name}_s"], some[f"{name}_predicted_s"]
                text = f"{world} ranks" + ("" if held else ", fitted")
                axes.plot(*pair, mark, color=colour, mfc=colour if held else "none", ms=5,
                          label=text)  # fmt: skip
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ends[1] < 50 * ends[0] else (1,)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        _plain_axes(axes, f"{label}, measured (s)", "predicted (s)")
    axes.legend(frameon=False, fontsize=7, loc="lower right")
    return caption(figure, title)


def plot_ranks(table: pd.DataFrame, title: str) -> Figure:
    """Show seconds to sum gradients by ranks: measured marks, the model's dashed lines."""
    axes = (figure := _open_chart(3.4)).subplots()
    series = table.groupby(["gradient_mib", "gigabits"])
    for ((size, rate), part), colour, mark in zip(series, SERIES, MARKS):
        part, label = part.sort_values("world"), f"{size:.1f} MiB, {rate:g} Gb/s"
        axes.plot(part["world"], part["sum_predicted_s"], ls="--", color=colour, lw=1)
        axes.plot(part["world"], part["sum_s"], mark, color=colour, ms=5, label=label)
    axes.plot([], [], ls="--", color="grey", lw=1, label="predicted, of its colour")
    _plain_powers(axes, np.unique(table["world"]))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    _plain_axes(axes, "emulated ranks", "seconds to sum the gradients")
    return caption(figure, title)


def plot_projection(
    projected: pd.DataFrame, measured: pd.DataFrame, value: str, unit: str, title: str
) -> Figure:
    """Show a projected value by GPUs, dashed with its band, a panel a preset; measured as marks.

    Both have preset, kind and `value`; `projected` has gpus and status, `measured` world.
    """
    presets = list(projected["preset"].unique())
    figure = _open_chart(3.4)
    row = figure.subplots(1, len(presets), squeeze=False, sharey=value == "efficiency")[0]
    for axes, preset in zip(row, presets):
        some = projected[projected["preset"] == preset]
        for (kind, part), colour, mark in zip(some.groupby("kind"), SERIES, MARKS):
            low, high = part[f"{value}_low"], part[f"{value}_high"]
            axes.fill_between(part["gpus"], low, high, color=colour, alpha=0.15, lw=0)
            label = f"{kind}: {part['status'].iloc[0]}"
            axes.plot(part["gpus"], part[value], ls="--", color=colour, lw=1.2, label=label)
            if len(measured):
                own = measured[(measured["preset"] == preset) & (measured["kind"] == kind)]
                axes.plot(own["world"], own[value], mark, color=colour, ms=6,
                          label=f"{kind}: measured")  # fmt: skip
        _plain_powers(axes, np.unique(some["gpus"]))
        if value == "efficiency":
            axes.set_ylim(0, 1.05)
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=7)
        _plain_axes(axes, "GPUs, 4 a node", unit)
        axes.set_title(preset, fontsize=9, loc="left")
    return caption(figure, title)

"""Tables as charts; colours are told apart by the colour-blind."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsnb.figures import captions
from dsnb.figures.captions import caption
from dsnb.figures.slices import WIDTH, open_figure

# Okabe and Ito's palette; the two groups keep their colours on every page.
COLOURS = {"euploid": "#0072B2", "DS": "#D55E00"}
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A", "#000000")
MARKS = "os^Dv<>P"  # a series is told by its mark, too
LINES = ("-", "--", "-.", ":")


def _colours(names: Sequence[str]) -> dict[str, str]:
    others = iter(OTHERS * (1 + len(names) // len(OTHERS)))
    return {name: COLOURS.get(name) or next(others) for name in names}


def _open_chart(height: float) -> Figure:
    """Open a figure (inches) of the one width that makes room for the labels of its axes."""
    figure = open_figure(WIDTH, height)
    figure.set_layout_engine("constrained", w_pad=0.08)
    return figure


def _plain_axes(axes: Axes, x_label: str, y_label: str):
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _spread(places: Sequence[float], gap: float) -> np.ndarray:
    """Return places of labels, in the same order, at least `gap` apart and near their own."""
    order, moved = np.argsort(places), np.array(places, float)
    for lower, upper in zip(order, order[1:]):
        moved[upper] = max(moved[upper], moved[lower] + gap)
    return moved - np.sum(moved - np.asarray(places)) / max(len(moved), 1)


def plot_bars(
    table: pd.DataFrame | list[dict],
    value: str,
    low: str,
    high: str,
    label: str,
    unit: str,
    reference: tuple[str, float] | None = None,
) -> Figure:
    """Show one value a row with its interval, in table order; `reference` is (name, value).

    A missing value is written as "not computed"; a missing interval is left out.
    """
    table = pd.DataFrame(table).reset_index(drop=True)
    axes = (figure := _open_chart(0.9 + 0.32 * len(table))).subplots()
    for place, row in table.iterrows():
        if pd.isna(row[value]):
            style = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 7}
            axes.text(0.02, place, "not computed", color="dimgrey", **style)
            continue
        if not (pd.isna(row[low]) or pd.isna(row[high])):
            axes.plot([row[low], row[high]], [place, place], color=COLOURS["euploid"], lw=2)
        axes.plot(row[value], place, "o", color=COLOURS["euploid"], ms=5)
    if reference:
        axes.axvline(reference[1], color=COLOURS["DS"], ls="--", lw=1)
        axes.set_title(f"dashed: {reference[0]}", fontsize=8, color=COLOURS["DS"], loc="right")
    axes.set_yticks(range(len(table)), [str(name) for name in table[label]], fontsize=8)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    _plain_axes(axes, unit, "")
    return caption(figure, captions.tell_bars(table, value, low, high, label, unit, reference))


def _name_points(
    axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], edges: np.ndarray
) -> None:
    """Write names in a column at either edge (left and right x), a thin line to each point."""
    gap, beside = np.ptp(edges) / 24, x[:, None] - x  # above 0: the other lies to the left
    # The side on which fewer others are in the line's way; the nearer one, if that is alike.
    ways = (np.sign(beside) * (np.abs(y[:, None] - y) < gap)).sum(1)
    left = ways + 0.5 * np.sign(x - edges.mean()) < 0
    line = {"arrowstyle": "-", "lw": 0.5, "color": "grey", "shrinkA": 1, "shrinkB": 3}
    for edge, side, end, chosen in zip(edges, ("right", "left"), (1, 0), (left, ~left)):
        style = {"ha": side, "va": "center", "fontsize": 7}
        style["arrowprops"] = line | {"relpos": (end, 0.5)}
        for row, place in zip(np.flatnonzero(chosen), _spread(y[chosen], gap)):
            axes.annotate(names[row], (x[row], y[row]), (edge, place), **style)


def plot_scatter(
    x: Sequence[float], y: Sequence[float], labels: Sequence[str], x_label: str, y_label: str
) -> Figure:
    """Show points beside the identity line, their names in a column at either side."""
    axes = (figure := _open_chart(4.6)).subplots()
    x, y = (np.asarray(values, float) for values in (x, y))
    ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
    ends += np.array([-0.1, 0.1]) * np.ptp(ends)
    axes.plot(ends, ends, color="grey", ls="--", lw=1)
    axes.plot(x, y, "o", color=COLOURS["euploid"], ms=6, mec="white", zorder=4)
    if any(labels):
        axes.set_xlim(ends + np.array([-0.3, 0.3]) * np.ptp(ends))
        _name_points(axes, x, y, [str(name).replace("_", " ") for name in labels], ends)
    axes.set_title("dashed: identity", fontsize=8, color="grey", loc="right")
    axes.grid(alpha=0.3)
    _plain_axes(axes, x_label, y_label)
    return caption(figure, captions.tell_scatter(x, y, x_label, y_label))


def plot_training(
    stats: pd.DataFrame, terms: Sequence[str], validation: str, unit: str, seen: str = "seen"
) -> Figure:
    """Show the weighted loss terms and the validation score against volumes seen.

    Steps without a value are left out.
    """
    figure = _open_chart(3.0)
    losses, scores = figure.subplots(1, 2)
    for (name, colour), line in zip(_colours(list(terms)).items(), LINES * 4):
        known = stats[[seen, name]].dropna().to_numpy().T
        losses.plot(*known, line, color=colour, lw=1.2, label=name)
    losses.set_yscale("log")
    losses.legend(frameon=False, fontsize=8)
    known = stats[[seen, validation]].dropna()
    scores.plot(*known.to_numpy().T, "o-", color=COLOURS["euploid"], ms=3, lw=1.2)
    _plain_axes(losses, "volumes seen", "loss term, weighted")
    _plain_axes(scores, "volumes seen", unit)
    known = {"validation": known.assign(low=np.nan, high=np.nan)}
    words = captions.tell_curves(known, seen, validation, ("volumes seen", unit))
    return caption(figure, words)


def plot_spectrum(per_mm: np.ndarray, power: dict[str, np.ndarray]) -> Figure:
    """Show radial power spectra {name: (F,)} over spatial frequency (cycles per mm)."""
    axes = (figure := _open_chart(3.4)).subplots()
    for (name, colour), line in zip(_colours(list(power)).items(), LINES * 4):
        axes.loglog(per_mm, power[name], line, color=colour, lw=1.5, label=name)
    axes.legend(frameon=False, fontsize=8)
    _plain_axes(axes, "spatial frequency (cycles per mm)", "mean power")
    return caption(figure, captions.tell_ends(power, per_mm))


def plot_curves(
    curves: dict[str, pd.DataFrame], x: str, y: str, x_label: str, y_label: str
) -> Figure:
    """Show one curve a table {name: columns x, y, low, high}, with its interval as a band."""
    axes = (figure := _open_chart(3.4)).subplots()
    named = zip(_colours(list(curves)).items(), curves.values(), MARKS * 4)
    for (name, colour), table, mark in named:
        axes.fill_between(table[x], table["low"], table["high"], color=colour, alpha=0.2, lw=0)
        axes.plot(table[x], table[y], f"{mark}-", color=colour, ms=4, lw=1.5, label=name)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    _plain_axes(axes, x_label, y_label)
    return caption(figure, captions.tell_curves(curves, x, y, (x_label, y_label)))


def plot_distribution(groups: dict[str, np.ndarray], unit: str) -> Figure:
    """Show every value of each group {name: (N,)}, its median and quartiles."""
    axes = (figure := _open_chart(3.2)).subplots()
    jitter = np.random.default_rng(0)
    for place, (name, colour) in enumerate(_colours(list(groups)).items()):
        values = np.asarray(groups[name], float)
        x = place + jitter.uniform(-0.18, 0.18, len(values))
        axes.plot(x, values, ".", color=colour, alpha=0.5, ms=4)
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        axes.plot([place - 0.3, place + 0.3], [middle, middle], color="black", lw=1.5)
        axes.plot([place, place], [low, high], color="black", lw=3, alpha=0.5)
    names = [f"{name}\nn = {len(values)}" for name, values in groups.items()]
    axes.set_xticks(range(len(groups)), names, fontsize=8)
    _plain_axes(axes, "", unit)
    return caption(figure, captions.tell_groups(groups, unit))


def plot_embedding(scores: np.ndarray, groups: Sequence[str], variance: Sequence[float]) -> Figure:
    """Show the first two of `scores` (N, K) by group; `variance` holds explained shares (0..1)."""
    axes = (figure := _open_chart(4.0)).subplots()
    groups = np.asarray(groups, str)
    for (name, colour), mark in zip(_colours(list(dict.fromkeys(groups))).items(), MARKS * 4):
        rows = groups == name
        axes.plot(*scores[rows, :2].T, mark, color=colour, ms=4, alpha=0.6, mew=0,
                  label=f"{name} (n = {rows.sum()})")  # fmt: skip
    axes.legend(frameon=False, fontsize=8)
    names = (f"component {k} ({100 * share:.0f} %)" for k, share in enumerate(variance, start=1))
    _plain_axes(axes, *names)
    told = captions.tell_groups({n: scores[groups == n, 0] for n in dict.fromkeys(groups)}, "first")
    share = f"Two components hold {100 * sum(variance[:2]):.0f} % of the variance; {told}"
    return caption(figure, share)


def plot_grid(table: pd.DataFrame, x: str, y: str, value: str, marked: str, unit: str) -> Figure:
    """Show -1..1 of every pair of `x` and `y` as a coloured square; a dot where `marked` holds."""
    values = table.pivot(index=y, columns=x, values=value)
    values = values.loc[table[y].unique(), table[x].unique()]
    figure = _open_chart(1.2 + 0.22 * values.shape[0])
    axes = figure.subplots()
    shown = axes.pcolormesh(values, cmap="RdBu_r", vmin=-1, vmax=1)  # vectors, unlike an image
    axes.invert_yaxis()
    found = table[table[marked]]
    places = values.columns.get_indexer(found[x]), values.index.get_indexer(found[y])
    axes.plot(*np.add(places, 0.5), "k.", ms=4)
    axes.set_xticks(np.arange(values.shape[1]) + 0.5, values.columns, fontsize=8)
    rows = [str(name).replace("_", " ") for name in values.index]
    axes.set_yticks(np.arange(values.shape[0]) + 0.5, rows, fontsize=8)
    axes.set_xlabel(x)
    figure.colorbar(shown, label=unit)
    top = table.iloc[table[value].abs().argmax()]  # an index may repeat
    strongest = f"{str(top[y]).replace('_', ' ')} with {x} {top[x]} ({top[value]:.2f})"
    return caption(figure, f"{len(found)} of {len(table)} marked; strongest {strongest}.")


def plot_series(table: pd.DataFrame, value: str, row: str, series: str, unit: str) -> Figure:
    """Show one value a `row` and `series`, with `value`_low and _high, side by side in a row."""
    rows, names = table[row].unique(), table[series].unique()
    axes = (figure := _open_chart(1.2 + 0.3 * len(rows))).subplots()
    shifts = np.linspace(-0.25, 0.25, len(names)) if len(names) > 1 else [0]
    for (name, colour), shift, mark in zip(_colours(list(names)).items(), shifts, MARKS * 4):
        part = table[table[series] == name].set_index(row).loc[rows]
        places = np.arange(len(rows)) + shift
        axes.hlines(places, part[f"{value}_low"], part[f"{value}_high"], color=colour, lw=1.5)
        axes.plot(part[value], places, mark, color=colour, ms=4, label=name)
    axes.axvline(0, color="grey", lw=0.8)
    axes.set_yticks(range(len(rows)), [str(name).replace("_", " ") for name in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    _plain_axes(axes, unit, "")
    every = table.assign(at=table[row].astype(str).str.replace("_", " ") + ", " + table[series])
    how = f"{value}_low", f"{value}_high", "at", unit, ("zero", 0.0)
    return caption(figure, captions.tell_bars(every, value, *how))

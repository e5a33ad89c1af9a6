"""Tables and maps to figures; models are unknown here.

Slices follow the neurological convention: left of the picture is left of the person, and every
picture says so. Diverging maps are centred on zero; colours are told apart by the colour-blind.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from dsnb.checks import BadInput

DPI = 110
# Okabe and Ito's palette; the two groups keep their colours on every page.
COLOURS = {"euploid": "#0072B2", "DS": "#D55E00"}
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A", "#000000")
DIVERGING, GREY = "RdBu_r", "gray"
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # plane -> the axis that it cuts
ENDS = {"sagittal": ("P", "A"), "coronal": ("L", "R"), "axial": ("L", "R")}
CUTS = (("axial", 6.0), ("coronal", -20.0), ("sagittal", 4.0))
Cut = tuple[str, float]  # plane and its MNI millimetre


def _figure(width: float, height: float) -> Figure:
    """Open a figure (inches) that pyplot forgets, so that a notebook shows it once."""
    figure = plt.figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08)
    plt.close(figure)
    return figure


def _colours(names: Sequence[str]) -> dict[str, str]:
    others = iter(OTHERS * (1 + len(names) // len(OTHERS)))
    return {name: COLOURS.get(name) or next(others) for name in names}


def _plain_axes(axes: Axes, x_label: str, y_label: str):
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)


def cut_volume(volume: np.ndarray, affine: np.ndarray, cut: Cut) -> tuple[np.ndarray, list]:
    """Return a slice (rows, columns) of a RAS volume, and its (left, right, bottom, top) in mm.

    For `imshow(origin="lower")`; a cut outside of the volume is refused.
    """
    plane, mm = cut
    axis = PLANES[plane]
    steps_mm, start_mm = np.diag(affine)[:3], affine[:3, 3]
    index = int(np.rint((mm - start_mm[axis]) / steps_mm[axis]))
    if not 0 <= index < volume.shape[axis]:
        last = start_mm[axis] + steps_mm[axis] * (volume.shape[axis] - 1)
        expected = f"{start_mm[axis]:g} to {last:g} mm"
        raise BadInput("E-CUT", "figure", f"the {plane} cut", mm, expected, "move the cut")
    across, up = (other for other in range(3) if other != axis)
    ends = ((side, stop) for side in (across, up) for stop in (0, volume.shape[side]))
    edges = [start_mm[side] + steps_mm[side] * (stop - 0.5) for side, stop in ends]
    return np.take(volume, index, axis=axis).T, edges


def _show(axes: Axes, volume: np.ndarray, affine: np.ndarray, cut: Cut, **style) -> None:
    """Draw one slice; `style` goes to imshow."""
    picture, extent = cut_volume(np.asarray(volume, np.float32), affine, cut)
    axes.imshow(picture, origin="lower", extent=extent, interpolation="nearest", **style)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _mark(axes: Axes, cut: Cut, colour: str = "white") -> None:
    """Write the two ends of the horizontal axis, the coordinate, and a 50 mm bar into a slice."""
    plane, mm = cut
    small = {"color": colour, "fontsize": 7, "transform": axes.transAxes}
    axes.text(0.02, 0.5, ENDS[plane][0], va="center", **small)
    axes.text(0.98, 0.5, ENDS[plane][1], va="center", ha="right", **small)
    axes.text(0.02, 0.02, f"{'xyz'[PLANES[plane]]} = {mm:g} mm", **small)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = right - 0.04 * (right - left), bottom + 0.05 * (top - bottom)
    axes.plot([x - 50, x], [y, y], color=colour, linewidth=1.5)
    axes.text(x - 25, y + 2, "50 mm", color=colour, fontsize=5, ha="center")


def _limit(values: Sequence[np.ndarray]) -> float:
    """Return a symmetric colour limit: the 99.5th percentile of the non-zero magnitudes."""
    sizes = np.abs(np.concatenate([np.asarray(v, np.float32).ravel() for v in values]))
    return float(np.quantile(sizes[sizes > 0], 0.995)) if sizes.any() else 1.0


def _colour_bar(figure: Figure, axes, low: float, high: float, colours: str, unit: str, **style):
    figure.colorbar(ScalarMappable(Normalize(low, high), colours), ax=axes, label=unit, **style)


def plot_slices(
    volumes: dict[str, np.ndarray],
    affine: np.ndarray,
    cuts: Sequence[Cut] = CUTS,
    limits: tuple[float, float] = (0.0, 1.0),
    unit: str = "intensity (white matter near 0.85)",
) -> Figure:
    """Show volumes {title: (X, Y, Z)} as rows of slices under one grey scale."""
    figure = _figure(2.0 * len(cuts) + 0.9, 2.1 * len(volumes))
    grid = figure.subplots(len(volumes), len(cuts), squeeze=False)
    for row, (title, volume) in zip(grid, volumes.items()):
        for axes, cut in zip(row, cuts):
            _show(axes, volume, affine, cut, cmap=GREY, vmin=limits[0], vmax=limits[1])
            _mark(axes, cut)
        row[0].set_ylabel(title, fontsize=9)
    _colour_bar(figure, grid, *limits, GREY, unit, shrink=min(1, 1.4 / len(volumes)))
    return figure


def _overlay(axes: Axes, background, values, affine, cut: Cut, threshold: float, limit: float):
    """Draw a diverging map over a grey slice; what stays below the threshold is transparent."""
    if background is not None:
        top = max(float(np.max(background)), 1e-6)
        _show(axes, background, affine, cut, cmap=GREY, vmin=0, vmax=top)
    values = np.asarray(values, np.float32)
    shown = np.where(np.abs(values) > threshold, values, np.nan)
    _show(axes, shown, affine, cut, cmap=DIVERGING, vmin=-limit, vmax=limit)


def plot_overlay(
    background: np.ndarray,
    values: np.ndarray,
    affine: np.ndarray,
    unit: str = "z",
    threshold: float = 0.0,
    limit: float | None = None,
    cuts: Sequence[Cut] = CUTS,
) -> Figure:
    """Show a map (X, Y, Z) centred on zero over a grey volume; hide what is within +-threshold."""
    limit = limit or _limit([values])
    figure = _figure(2.2 * len(cuts) + 0.9, 2.4)
    row = figure.subplots(1, len(cuts), squeeze=False)[0]
    for axes, cut in zip(row, cuts):
        _overlay(axes, background, values, affine, cut, threshold, limit)
        _mark(axes, cut)
    shown = f", shown beyond {threshold:g}" if threshold else ""
    _colour_bar(figure, row, -limit, limit, DIVERGING, unit + shown, shrink=0.8)
    return figure


def plot_cases(
    columns: dict[str, Sequence[np.ndarray]],
    units: dict[str, str],
    affine: np.ndarray,
    labels: Sequence[str],
    cut: Cut = CUTS[0],
    background: str | None = None,
) -> Figure:
    """Show one row a person: patient, expected, z map, truth.

    `columns` is {title: volumes in the order of `labels`}. A column named in `units` is a map:
    diverging, one limit a column, drawn over the column `background`; the others are grey.
    """
    figure = _figure(1.9 * len(columns), 2.0 * len(labels) + 0.8)
    grid = figure.subplots(len(labels), len(columns), squeeze=False)
    for (title, volumes), stack in zip(columns.items(), grid.T):
        limit = _limit(volumes) if title in units else 1.0
        for number, (axes, volume) in enumerate(zip(stack, volumes)):
            if title in units:
                under = columns[background][number] if background else None
                _overlay(axes, under, volume, affine, cut, 0.05 * limit, limit)
            else:
                _show(axes, volume, affine, cut, cmap=GREY, vmin=0, vmax=1)
            _mark(axes, cut, "white" if background or title not in units else "black")
        stack[0].set_title(title, fontsize=9)
        bar = (-limit, limit, DIVERGING, units[title]) if title in units else (0, 1, GREY, "")
        _colour_bar(figure, list(stack), *bar, orientation="horizontal", shrink=0.8, pad=0.02)
    for axes, label in zip(grid[:, 0], labels):
        axes.set_ylabel(label, fontsize=8)
    return figure


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
    axes = (figure := _figure(6.2, 0.9 + 0.32 * len(table))).subplots()
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
    return figure


def plot_scatter(
    x: Sequence[float],
    y: Sequence[float],
    labels: Sequence[str],
    x_label: str,
    y_label: str,
    ranges: tuple[np.ndarray, np.ndarray] | None = None,
) -> Figure:
    """Show named points beside the identity line; `ranges` of x and y are (N, 2): low, high."""
    axes = (figure := _figure(5.2, 4.6)).subplots()
    x, y = (np.asarray(values, float) for values in (x, y))
    ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
    ends += np.array([-0.1, 0.1]) * np.ptp(ends)
    axes.plot(ends, ends, color="grey", ls="--", lw=1, label="identity")
    named = zip(("xerr", "yerr"), ranges or (), (x, y))
    bars = {name: np.abs(limits.T - values) for name, limits, values in named}
    axes.errorbar(x, y, fmt="o", color=COLOURS["euploid"], ms=5, lw=1, alpha=0.8, **bars)
    for place, name in zip(zip(x, y), labels):
        style = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7}
        axes.annotate(str(name).replace("_", " "), place, **style)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    _plain_axes(axes, x_label, y_label)
    return figure


def plot_training(
    stats: pd.DataFrame, terms: Sequence[str], validation: str, unit: str, seen: str = "seen"
) -> Figure:
    """Show the weighted loss terms and the validation score against volumes seen.

    Steps without a value are left out.
    """
    figure = _figure(8.0, 3.0)
    losses, scores = figure.subplots(1, 2)
    for name, colour in _colours(list(terms)).items():
        losses.plot(*stats[[seen, name]].dropna().to_numpy().T, color=colour, lw=1.2, label=name)
    losses.set_yscale("log")
    losses.legend(frameon=False, fontsize=8)
    known = stats[[seen, validation]].dropna()
    scores.plot(*known.to_numpy().T, "o-", color=COLOURS["euploid"], ms=3, lw=1.2)
    _plain_axes(losses, "volumes seen", "loss term, weighted")
    _plain_axes(scores, "volumes seen", unit)
    return figure


def plot_spectrum(per_mm: np.ndarray, power: dict[str, np.ndarray]) -> Figure:
    """Show radial power spectra {name: (F,)} over spatial frequency (cycles per mm)."""
    axes = (figure := _figure(5.2, 3.4)).subplots()
    for name, colour in _colours(list(power)).items():
        axes.loglog(per_mm, power[name], color=colour, lw=1.5, label=name)
    axes.legend(frameon=False, fontsize=8)
    _plain_axes(axes, "spatial frequency (cycles per mm)", "mean power")
    return figure


def plot_distribution(groups: dict[str, np.ndarray], unit: str) -> Figure:
    """Show every value of each group {name: (N,)}, its median and quartiles."""
    axes = (figure := _figure(1.2 + 1.1 * len(groups), 3.2)).subplots()
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
    return figure


def plot_embedding(
    scores: np.ndarray, groups: Sequence[str], variance: Sequence[float] | None = None
) -> Figure:
    """Show the first two of `scores` (N, K) by group; `variance` holds explained shares (0..1)."""
    axes = (figure := _figure(4.8, 4.0)).subplots()
    groups = np.asarray(groups, str)
    for (name, colour), mark in zip(_colours(list(dict.fromkeys(groups))).items(), "os^Dv<>P" * 4):
        rows = groups == name
        axes.plot(*scores[rows, :2].T, mark, color=colour, ms=4, alpha=0.6, mew=0,
                  label=f"{name} (n = {rows.sum()})")  # fmt: skip
    shares = ["", ""] if variance is None else [f" ({100 * share:.0f} %)" for share in variance]
    axes.legend(frameon=False, fontsize=8)
    _plain_axes(axes, f"component 1{shares[0]}", f"component 2{shares[1]}")
    return figure

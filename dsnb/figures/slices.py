"""Volumes and maps as slices.

Slices follow the neurological convention: left of the picture is left of the person, and every
picture says so. Diverging maps are centred on zero; colours are told apart by the colour-blind.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from dsnb.checks import BadInput

DPI = 110
DIVERGING, GREY = "RdBu_r", "gray"
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # plane -> the axis that it cuts
ENDS = {"sagittal": ("P", "A"), "coronal": ("L", "R"), "axial": ("L", "R")}
CUTS = (("axial", 6.0), ("coronal", -20.0), ("sagittal", 4.0))
Cut = tuple[str, float]  # plane and its MNI millimetre


def open_figure(width: float, height: float) -> Figure:
    """Open a figure (inches) that pyplot forgets, so that a notebook shows it once."""
    figure = plt.figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08)
    plt.close(figure)
    return figure


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


def show_slice(axes: Axes, volume: np.ndarray, affine: np.ndarray, cut: Cut, **style) -> None:
    """Draw one slice; `style` goes to imshow."""
    picture, extent = cut_volume(np.asarray(volume, np.float32), affine, cut)
    axes.imshow(picture, origin="lower", extent=extent, interpolation="nearest", **style)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def mark_slice(axes: Axes, cut: Cut) -> None:
    """Write the two ends of the horizontal axis, the coordinate, and a 50 mm bar into a slice."""
    plane, mm = cut
    small = {"color": "white", "fontsize": 7, "transform": axes.transAxes}
    axes.text(0.02, 0.5, ENDS[plane][0], va="center", **small)
    axes.text(0.98, 0.5, ENDS[plane][1], va="center", ha="right", **small)
    axes.text(0.02, 0.02, f"{'xyz'[PLANES[plane]]} = {mm:g} mm", **small)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = right - 0.04 * (right - left), bottom + 0.05 * (top - bottom)
    axes.plot([x - 50, x], [y, y], color="white", linewidth=1.5)
    axes.text(x - 25, y + 2, "50 mm", color="white", fontsize=5, ha="center")


def _limit(values: Sequence[np.ndarray]) -> float:
    """Return a symmetric colour limit: the 99.5th percentile of the non-zero magnitudes."""
    sizes = np.abs(np.concatenate([np.asarray(v, np.float32).ravel() for v in values]))
    return float(np.quantile(sizes[sizes > 0], 0.995)) if sizes.any() else 1.0


def _colour_bar(figure: Figure, axes, low: float, high: float, colours: str, unit: str, **style):
    figure.colorbar(ScalarMappable(Normalize(low, high), colours), ax=axes, label=unit, **style)


def plot_slices(
    volumes: dict[str, np.ndarray],
    affine: np.ndarray,
    unit: str = "intensity (white matter near 0.85)",
) -> Figure:
    """Show volumes {title: (X, Y, Z)} as rows of slices under one grey scale from 0 to 1."""
    figure = open_figure(2.0 * len(CUTS) + 0.9, 2.1 * len(volumes))
    grid = figure.subplots(len(volumes), len(CUTS), squeeze=False)
    for row, (title, volume) in zip(grid, volumes.items()):
        for axes, cut in zip(row, CUTS):
            show_slice(axes, volume, affine, cut, cmap=GREY, vmin=0, vmax=1)
            mark_slice(axes, cut)
        row[0].set_ylabel(title, fontsize=9)
    _colour_bar(figure, grid, 0, 1, GREY, unit, shrink=min(1, 1.4 / len(volumes)))
    return figure


def _overlay(axes: Axes, background, values, affine, cut: Cut, threshold: float, limit: float):
    """Draw a diverging map over a grey slice; what stays below the threshold is transparent."""
    top = max(float(np.max(background)), 1e-6)
    show_slice(axes, background, affine, cut, cmap=GREY, vmin=0, vmax=top)
    values = np.asarray(values, np.float32)
    shown = np.where(np.abs(values) > threshold, values, np.nan)
    show_slice(axes, shown, affine, cut, cmap=DIVERGING, vmin=-limit, vmax=limit)


def plot_overlay(
    background: np.ndarray,
    values: np.ndarray,
    affine: np.ndarray,
    unit: str = "z",
    threshold: float = 0.0,
) -> Figure:
    """Show a map (X, Y, Z) centred on zero over a grey volume; hide what is within +-threshold."""
    limit, figure = _limit([values]), open_figure(2.2 * len(CUTS) + 0.9, 2.4)
    row = figure.subplots(1, len(CUTS))
    for axes, cut in zip(row, CUTS):
        _overlay(axes, background, values, affine, cut, threshold, limit)
        mark_slice(axes, cut)
    shown = f", shown beyond {threshold:g}" if threshold else ""
    _colour_bar(figure, row, -limit, limit, DIVERGING, unit + shown, shrink=0.8)
    return figure


def plot_cases(
    columns: dict[str, Sequence[np.ndarray]],
    units: dict[str, str],
    affine: np.ndarray,
    labels: Sequence[str],
    background: str,
) -> Figure:
    """Show one row a person: patient, expected, z map, truth.

    `columns` is {title: volumes in the order of `labels`}. A column named in `units` is a map:
    diverging, one limit a column, drawn over the column `background`; the others are grey.
    """
    cut, figure = CUTS[0], open_figure(1.9 * len(columns), 2.0 * len(labels) + 0.8)
    grid = figure.subplots(len(labels), len(columns), squeeze=False)
    for (title, volumes), stack in zip(columns.items(), grid.T):
        limit = _limit(volumes) if title in units else 1.0
        for number, (axes, volume) in enumerate(zip(stack, volumes)):
            if title in units:
                under = columns[background][number]
                _overlay(axes, under, volume, affine, cut, 0.05 * limit, limit)
            else:
                show_slice(axes, volume, affine, cut, cmap=GREY, vmin=0, vmax=1)
            mark_slice(axes, cut)
        stack[0].set_title(title, fontsize=9)
        bar = (-limit, limit, DIVERGING, units[title]) if title in units else (0, 1, GREY, "")
        _colour_bar(figure, list(stack), *bar, orientation="horizontal", shrink=0.8, pad=0.02)
    for axes, label in zip(grid[:, 0], labels):
        axes.set_ylabel(label, fontsize=8)
    return figure

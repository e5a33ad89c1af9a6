"""Volumes and maps as slices, drawn by nilearn.

Slices follow the neurological convention: left of the picture is left of the person, and every
picture says so. Diverging maps are centred on zero; colours are told apart by the colour-blind.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from nilearn import plotting
from nilearn.plotting.displays import BaseSlicer
from nilearn.plotting.html_stat_map import StatMapView

from dsnb.figures.captions import caption, tell_cases, tell_map

DPI = 110
WIDTH = 7.2  # inches: that of every figure of the book, so that its letters are of one size
CUTS = "Left of the picture is left of the person; cuts in MNI mm."
POINT = (4.0, -20.0, 6.0)  # MNI mm at which pictures are cut: sagittal, coronal, axial
DIVERGING = "RdBu_r"  # centred on zero, and told apart by the colour-blind
STYLE = {"annotate": False, "draw_cross": False, "black_bg": True, "dim": 0}
ICON = re.compile(r'<link[^>]*rel="[^"]*icon"[^>]*>')
EMPTY = 1e-6  # what lies closer to 0 is no tissue, or no departure


def open_figure(width: float, height: float) -> Figure:
    """Open a figure (inches) that pyplot forgets, so that a notebook shows it once."""
    figure = plt.figure(figsize=(width, height), dpi=DPI)
    plt.close(figure)
    return figure


def open_dark(height: float) -> Figure:
    """Open a black figure (inches) of the one width, for slices."""
    figure = open_figure(WIDTH, height)
    figure.set_facecolor("black")
    return figure


def as_image(volume: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """Return a volume (X, Y, Z) as nilearn wants it."""
    return nib.Nifti1Image(np.asarray(volume, np.float32), affine)


def draw(volume: np.ndarray, affine: np.ndarray, top: float = 1.0, **how) -> BaseSlicer:
    """Draw a grey volume (X, Y, Z) from 0 to `top`; `how` goes to nilearn.

    The whole grid is shown: a threshold would crop each volume to its own content.
    """
    return plotting.plot_anat(as_image(volume, affine), vmin=0, vmax=top, **how, **STYLE)


def place(row: int, rows: int, column: int = 0, columns: int = 1) -> tuple[float, ...]:
    """Return left, bottom, width and height of one cell of a figure, row 0 on top."""
    return column / columns, 1 - (row + 1) / rows, 0.99 / columns, 0.99 / rows


def mark(display: BaseSlicer, title: str) -> None:
    """Write title, sides, coordinates and a 50 mm bar into a picture."""
    if title:
        display.title(title, size=7, color="white", bgcolor="black")
    display.annotate(size=8, scalebar=True, scale_size=50, scale_units="mm")


def save_figure(figure: Figure, path: Path, **how) -> None:
    """Write a picture whole or not at all; equal figures are equal bytes."""
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, format="png", metadata={"Software": None}, **how)
    aside.replace(path)


def _limit(values: Sequence[np.ndarray]) -> float:
    """Return a symmetric colour limit: the 99.5th percentile of the non-zero magnitudes."""
    sizes = np.abs(np.concatenate([np.asarray(v, np.float32).ravel() for v in values]))
    return float(np.quantile(sizes[sizes > 0], 0.995)) if sizes.any() else 1.0


def plot_slices(
    volumes: dict[str, np.ndarray],
    affine: np.ndarray,
    unit: str = "intensity (white matter near 0.85)",
) -> Figure:
    """Show volumes {title: (X, Y, Z)} as rows of slices under one grey scale from 0 to 1."""
    figure = open_dark(2.4 * len(volumes))
    for row, (title, volume) in enumerate(volumes.items()):
        how = {"cut_coords": POINT, "figure": figure, "axes": place(row, len(volumes))}
        mark(draw(volume, affine, **how), f"{title}, {unit}")
    return caption(figure, f"From top to bottom: {'; '.join(volumes)}. {CUTS}")


def plot_overlay(
    background: np.ndarray, values: np.ndarray, affine: np.ndarray, unit: str = "z",
    threshold: float = 0.0, limit: float | None = None, signed: bool = True,
) -> Figure:  # fmt: skip
    """Show a map (X, Y, Z) over a grey volume; hide what is within +-threshold.

    Colours are centred on zero or, where not `signed`, start there; they end at `limit`, by default
    the 99.5th percentile of the magnitudes. `unit` may follow a title and a colon.
    """
    images, limit = (as_image(v, affine) for v in (values, background)), limit or _limit([values])
    # Asked for, not guessed: an effect that passes only where it is positive keeps its sign,
    # and nilearn would cut the bar of a map that is nowhere negative.
    how = {"vmax": limit} if signed else {"vmin": 0, "vmax": limit, "cmap": "viridis"}
    how |= {"symmetric_cbar": signed, "threshold": threshold or EMPTY}
    how |= {"cut_coords": POINT, "figure": (figure := open_dark(2.4))}
    display = plotting.plot_stat_map(*images, axes=(0, 0, 0.97, 1), **how, **STYLE)
    mark(display, unit + (f", shown beyond {threshold:g}" if threshold else ""))
    bar = figure.axes[-1]
    bar.yaxis.set_label_position("right")  # its ticks are left
    bar.set_ylabel(unit.split(": ")[-1], color="white", fontsize=7)
    told = tell_map(np.asarray(values, float), affine, background, threshold or EMPTY)
    return caption(figure, f"{unit}. {told}")


def view_map(
    background: np.ndarray, values: np.ndarray, affine: np.ndarray, title: str
) -> StatMapView:
    """Return a viewer to click through a map (X, Y, Z) over a grey volume; 0 is not drawn.

    All it needs lies in the page; nilearn's icon, which would be fetched, is taken out.
    """
    images = as_image(values, affine), as_image(background, affine)
    view = plotting.view_img(
        *images, cut_coords=POINT, threshold=EMPTY, title=title, cmap=DIVERGING, black_bg=True,
        dim=0, resampling_interpolation="nearest", width_view=680,
    )  # fmt: skip
    view.html = ICON.sub("", view.html)
    return view


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
    cell, head = min(WIDTH / len(columns), 2.4), 0.2  # inches; a cell's title stands above it
    foot = 0.6 * bool(units)  # inches below the rows, for one bar a map
    figure = open_dark(foot + (1.1 * cell + head) * len(labels))
    wide, high = cell / WIDTH, (1.1 * cell + head) / figure.get_figheight()
    head /= figure.get_figheight()
    for column, (title, volumes) in enumerate(columns.items()):
        left, limit = 0.5 + (column - len(columns) / 2) * wide, _limit(volumes)
        for row, (label, volume) in enumerate(zip(labels, volumes)):
            how = {"display_mode": "z", "cut_coords": POINT[2:], "figure": figure}
            how |= {"axes": (left, 1 - (row + 1) * high, 0.98 * wide, high - head)}
            how |= {"colorbar": False}
            if title in units:
                under = columns[background][row]
                pair = np.where(under > 0, volume, 0), under  # outside of the brain: nothing
                how |= {"threshold": 0.05 * limit, "vmax": limit, "symmetric_cbar": True}
                images = (as_image(one, affine) for one in pair)
                display = plotting.plot_stat_map(*images, cmap=DIVERGING, **how, **STYLE)
            else:
                display = draw(volume, affine, **how)
            mark(display, "")
            words, top = f"{label}: {units.get(title, title)}", 1 - row * high - 0.8 * head
            figure.text(left + 0.02 * wide, top, words, color="white", fontsize=7)
        if title in units:
            place = (left + 0.1 * wide, 0.45 / figure.get_figheight(), 0.8 * wide, 0.015)
            _draw_bar(figure, place, limit, units[title])
    maps = {units[title]: columns[title] for title in columns if title in units}
    return caption(figure, f"{tell_cases(maps, labels)} {CUTS}".strip())


def _draw_bar(figure: Figure, place: tuple[float, ...], limit: float, unit: str) -> None:
    """Draw the colours of a map from -limit to limit in a place (of a black figure)."""
    scale = ScalarMappable(Normalize(-limit, limit), DIVERGING)
    bar = figure.colorbar(scale, cax=figure.add_axes(place), orientation="horizontal")
    bar.set_ticks([-limit, 0, limit], labels=[f"{end:.2g}" for end in (-limit, 0, limit)])
    bar.ax.tick_params(colors="white", labelsize=7, pad=1)
    bar.ax.set_xlabel(unit, color="white", fontsize=7, labelpad=1)

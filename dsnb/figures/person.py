"""One person's page: the scan, where it departs from the norm, and its regions beside euploids."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsnb.figures.charts import COLOURS
from dsnb.figures.slices import POINT, as_image, draw, mark, open_figure

A4 = 8.27, 11.69  # inches
SHOWN, LIMIT = 2.0, 6.0  # |z| below which nothing is drawn, and where colours end: alike for all
BRIGHTEST = 1.1  # of the grey scale
WIDTH = 114, 142  # letters a line, of what was found and of the notes
PLACES = {"departure": 1.17, "z": 1.27, "centile": 1.42}  # right ends of the text, in axes' widths


def plot_report(
    title: list[str], said: list[str], notes: list[str], volumes: dict[str, np.ndarray],
    affine: np.ndarray, regions: pd.DataFrame, unit: str, rate: float,
) -> Figure:  # fmt: skip
    """Show one person on an A4 page: `volumes` are T1w, z and q (X, Y, Z) in one grid.

    `regions` has a row a region: region, departure (in `unit`), z, centile, bound, outside, low
    and high. Where a voxel passes q < `rate`, the cuts go through the strongest that does.
    """
    figure, passed = open_figure(*A4), volumes["q"] < rate
    strongest = np.argmax(np.where(passed, np.abs(volumes["z"]), 0))
    cuts = affine[:3, :3] @ np.unravel_index(strongest, passed.shape) + affine[:3, 3]
    how = {"cut_coords": tuple(cuts) if passed.any() else POINT, "figure": figure}
    scan, beside = (
        draw(volumes["T1w"], affine, BRIGHTEST, axes=(0.04, low, 0.92, 0.185), colorbar=bar, **how)
        for low, bar in ((0.69, True), (0.495, False))
    )
    mark(scan, "T1w, intensity (white matter near 0.85)")
    colours = {"vmin": -LIMIT, "vmax": LIMIT, "cmap": "RdBu_r", "threshold": SHOWN}
    told = f"z, nowhere beyond {SHOWN:g}"
    if (np.abs(volumes["z"]) > SHOWN).any():
        beside.add_overlay(as_image(volumes["z"], affine), colorbar=True, **colours)
        told = f"z, shown beyond {SHOWN:g}"
    if passed.any():
        outline = {"levels": [0.5], "colors": "#F0E442", "linewidths": 0.9}
        beside.add_contours(as_image(passed, affine), **outline)
        told += f"; outlined: q < {rate:g}"
    mark(beside, told)
    _plot_regions(figure.add_axes((0.19, 0.14, 0.5, 0.32)), regions, unit)
    texts = {
        0.975: (15, "black", title[:1]), 0.948: (8, "dimgrey", title[1:]),
        0.928: (9.5, "black", _wrap(said, WIDTH[0])), 0.088: (7.5, "black", _wrap(notes, WIDTH[1])),
    }  # fmt: skip
    for top, (size, colour, lines) in texts.items():
        style = {"fontsize": size, "color": colour, "va": "top", "linespacing": 1.35}
        figure.text(0.04, top, "\n".join(lines), **style)
    return figure


def _wrap(texts: list[str], width: int) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(text, width)]


def _plot_regions(axes: Axes, table: pd.DataFrame, unit: str) -> None:
    """Show each region's z beside the 5th to 95th centile of euploids and its bound."""
    reach = 1.1 * max(np.nanmax(table[["z", "bound", "low", "high"]].abs().to_numpy(float)), 3)
    words = {"transform": axes.get_yaxis_transform(), "fontsize": 8, "ha": "right", "va": "center"}
    for place, row in enumerate(table.to_dict("records")):
        colour, weight = (COLOURS["DS"], "bold") if row["outside"] else ("black", "normal")
        axes.barh(place, row["high"] - row["low"], 0.6, row["low"], color="#D0D0D0")
        axes.plot([-row["bound"], row["bound"]], [place] * 2, "|", color="dimgrey", ms=9)
        axes.plot(row["z"], place, "o", color=colour, ms=5)
        departure = f"{row['departure']:+.{1 if unit else 3}f} {unit}"
        spelt = departure, f"{row['z']:+.1f}", f"{row['centile']:.0f}"
        for x, text in zip(PLACES.values(), spelt):
            axes.text(x, place, text, color=colour, weight=weight, **words)
    for column, x in PLACES.items():
        axes.text(x, -1.1, column, color="dimgrey", **words)
    axes.axvline(0, color="grey", lw=0.8)
    axes.set_yticks(range(len(table)), table["region"].str.replace("_", " "), fontsize=8.5)
    axes.set(xlim=(-reach, reach), ylim=(len(table) - 0.4, -0.6))
    legend = "grey: 5th to 95th centile of euploids;  |: bound;  dot: this person"
    axes.set_xlabel(f"z of the region's mean departure   ({legend})", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)

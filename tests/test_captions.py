"""Captions say what the figure's own numbers say; a notebook shows vectors, pixels and captions."""

import numpy as np
import pandas as pd
from docutils import nodes
from docutils.utils import new_document
from IPython.core.interactiveshell import InteractiveShell

from dsnb import figures, pages
from dsnb.figures import captions
from dsnb.pages import extension, shown
from dsnb.space import GRIDS

GRID = GRIDS["smoke"]
ROWS = pd.DataFrame(
    [("a", 0.9, 0.8, 1.0), ("b", 0.2, 0.1, 0.3), ("c", 0.5, 0.4, 0.6), ("d", None, None, None)],
    columns=["name", "v", "low", "high"],
)


def test_bars_name_their_ends_and_count_the_intervals_beside_the_line():
    """Falls: that a caption's highest, lowest and counts are those of the figure's table."""
    figure = figures.plot_bars(ROWS, "v", "low", "high", "name", "AUROC", ("chance", 0.5))
    told = figure.get_label()
    assert "highest in a, 0.9 (0.8 to 1); lowest in b, 0.2 (0.1 to 0.3)" in told
    assert "Of 3 intervals, 1 lie above the line (chance), 1 below" in told
    empty = figures.plot_bars(ROWS[3:], "v", "low", "high", "name", "AUROC")
    assert empty.get_label() == "AUROC: nothing was computed."


def test_a_map_tells_its_peak_in_millimetres_and_its_share_of_the_brain():
    """Falls: that the place and the shares written below a map are those of the map."""
    values, brain = np.zeros(GRID.shape, np.float32), np.zeros(GRID.shape, np.float32)
    brain[:10, :10, :10] = 1
    values[:5, :10, :10], values[5, :2, :10] = -1.0, 1.0
    values[3, 4, 5] = -3.0
    x, y, z = (axis[3, 4, 5] for axis in np.broadcast_arrays(*GRID.coordinates_mm()))
    told = figures.plot_overlay(brain, values, GRID.affine, "z", 0.5).get_label()
    assert f"Strongest -3, at ({x:.0f}, {y:.0f}, {z:.0f}) mm" in told
    assert "above zero in 2 % of the brain, below in 50 %" in told
    assert captions.tell_map(values, GRID.affine, brain, 5.0) == "Nothing passes."


def test_cases_tell_how_a_map_and_its_truth_correlate():
    """Falls: the agreement that stands below patients' maps."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=GRID.shape)
    columns = {"scan": [np.ones(GRID.shape)] * 2, "z": [z, z], "truth": [2 * z, -z]}
    units = {"z": "z", "truth": "log volume"}
    figure = figures.plot_cases(columns, units, GRID.affine, ["p1", "p2"], "scan")
    assert "correlate by 1.00, -1.00" in figure.get_label()
    assert "p1 2, p2 1" in figure.get_label(), "root mean squares by row"
    bars = [axes for axes in figure.axes if axes.get_xlabel()]
    assert [bar.get_xlabel() for bar in bars] == ["z", "log volume"]
    assert all(np.isclose(sum(bar.get_xlim()), 0) for bar in bars), "centred on zero"


def test_curves_groups_and_points_tell_their_numbers():
    """Falls: that the sentences below curves, groups and scatters are computed, not guessed."""
    table = pd.DataFrame({"k": [5, 0], "v": [0.8, 1.0], "low": [0.7, 0.9], "high": [0.9, 1.1]})
    told = figures.plot_curves({"real": table}, "k", "v", "people", "left").get_label()
    assert told == "left, over people 0 to 5: real from 1 (0.9 to 1.1) to 0.8 (0.7 to 0.9)."
    assert "DS 3 (2 to 4)" in captions.tell_groups({"DS": np.arange(1, 6)}, "years")
    x = np.array([0.0, 1.0, 2.0])
    assert "correlation 1.00 and slope 0.50 over 3 points, 0.5" in captions.tell_scatter(
        x, x / 2, "real", "synthetic"
    )
    power = {"real": np.array([1.0, 4.0]), "drawn": np.array([1.0, 1.0])}
    assert "at 0.1 cycles per mm: drawn 0.25" in captions.tell_ends(power, np.array([0.01, 0.1]))
    part = pd.DataFrame({"psnr": [20.0, 30.0, np.nan]}, index=["flat", "long", "none"])
    assert captions.tell_extremes(part, {"psnr": "PSNR"}) == "PSNR from 20 (flat) to 30 (long)."
    twice = pd.concat([part, part])
    assert captions.tell_extremes(twice, {"psnr": "PSNR"}) == "PSNR from 20 (flat) to 30 (long)."
    series = part.assign(row="a", which=["p", "q", "r"], psnr_low=1.0, psnr_high=2.0)
    series.index = [0, 0, 1]
    assert (
        "highest in a, q, 30"
        in figures.plot_series(series, "psnr", "row", "which", "u").get_label()
    )
    again = pd.DataFrame({"x": list("ab"), "y": ["c", "c"], "v": [0.1, -0.5]}, index=[0, 0])
    assert "-0.5" in figures.plot_grid(again.assign(m=True), "x", "y", "v", "m", "r").get_label()


def test_charts_are_vectors_slices_are_pixels_and_equal_figures_equal_bytes():
    """Falls: that a chart stays sharp at any size, and a page does not change without a cause."""

    def chart():
        return figures.plot_bars(ROWS, "v", "low", "high", "name", "AUROC", ("chance", 0.5))

    one, other = pages.render(chart()), pages.render(chart())
    assert list(one) == ["image/svg+xml"] and one == other
    assert "<dc:date>" not in one["image/svg+xml"] and len(one["image/svg+xml"]) < 100_000
    volume = {"a": np.ones(GRID.shape, np.float32)}
    slices = figures.plot_slices(volume, GRID.affine)
    assert list(pages.render(slices)) == ["image/png"]
    assert slices.get_figwidth() == chart().get_figwidth(), "one width"


def test_a_notebook_shows_a_figure_once_with_its_caption_below(monkeypatch):
    """Falls: that every figure of a page has a caption, whichever way a cell shows it."""
    shell = InteractiveShell()
    monkeypatch.setattr(shown, "get_ipython", lambda: shell)
    shown.show_captions()
    figure = figures.caption(figures.plot_slices({"a": np.ones(GRID.shape)}, GRID.affine), "Found.")
    seen = []
    monkeypatch.setattr(shown, "display", lambda data, raw=False: seen.append(data))
    data, _ = shell.display_formatter.format(figure)
    assert data == {}, "the cell's own value is not shown a second time"
    picture, words = seen
    assert "image/png" in picture and words.data == "*Figure.* Found."


def test_a_caption_is_the_description_of_its_picture():
    """Falls: that a reader who hears a page is told what each of its figures shows."""
    page = new_document("page")
    for start in ("Figure.", "Another."):
        words = nodes.paragraph("", "", nodes.emphasis("", start), nodes.Text(" Found."))
        page += [nodes.image(uri="a.svg"), words]
    extension.caption(None, page, "page")
    assert [image.get("alt") for image in page.findall(nodes.image)] == ["Found.", None]

"""Figures: orientation, units, and what must be seen in them."""

import io
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text

from dsnb import figures
from dsnb.space import GRIDS

GRID = GRIDS["smoke"]


def _cuts(figure: Figure) -> dict:
    """Return the axes of each cut of a picture by the letter of the axis that it cuts."""
    words = [(axes, text.get_text()) for axes in figure.axes for text in axes.texts]
    return {word[0]: axes for axes, word in words if word[1:2] == "="}


def _bright(axes) -> np.ndarray:
    """Return the millimetres (N, 2), right and up in the picture, of what is not empty."""
    picture = np.ma.filled(axes.images[-1].get_array(), np.nan)
    left, right, bottom, top = axes.images[-1].get_extent()
    if axes.images[-1].origin == "upper":
        picture = picture[::-1]
    rows, columns = np.nonzero(np.nan_to_num(picture))
    across = left + (columns + 0.5) * (right - left) / picture.shape[1]
    return np.column_stack([across, bottom + (rows + 0.5) * (top - bottom) / picture.shape[0]])


def test_left_of_the_picture_is_left_of_the_person():
    """Would fall: every map's orientation marks."""
    x, y, z = GRID.coordinates_mm()
    right, front, top = ((values > 20).astype(np.float32) for values in (x, y, z))
    shown = _cuts(figures.plot_slices({"right": right}, GRID.affine))
    for letter in "yz":
        words = {text.get_text(): text.get_position()[0] for text in shown[letter].texts}
        assert words["L"] < words["R"] and (_bright(shown[letter])[:, 0] > 18).all()
    assert (_bright(_cuts(figures.plot_slices({"top": top}, GRID.affine))["y"])[:, 1] > 18).all()
    front = _cuts(figures.plot_slices({"front": front}, GRID.affine))
    assert (_bright(front["x"])[:, 0] > 18).all() and (_bright(front["z"])[:, 1] > 18).all()


def test_a_cut_is_taken_at_its_millimetre():
    """Would fall: the coordinates printed in the slices."""
    for axis, (letter, mm) in enumerate(zip("xyz", (4, -20, 6))):
        ramp = np.broadcast_to(GRID.coordinates_mm()[axis] + 200, GRID.shape)
        axes = _cuts(figures.plot_slices({"ramp": ramp}, GRID.affine))[letter]
        assert f"{letter}={mm}" in {text.get_text() for text in axes.texts}
        assert np.abs(axes.images[-1].get_array() - 200 - mm).max() <= GRID.voxel_mm / 2


def test_volumes_of_one_figure_share_their_view():
    """Would fall: that a scan and its reconstruction, with a faint rim around it, are compared."""
    brain = np.zeros(GRID.shape, np.float32)
    brain[10:-10, 10:-10, 10:-10] = 0.8
    figure = figures.plot_slices({"scan": brain, "drawn": brain + 0.01}, GRID.affine)
    views = [a.get_xlim() + a.get_ylim() for a in figure.axes if a.images and a.texts]
    assert len(views) == 6 and views[:3] == views[3:]


def test_maps_are_centred_on_zero_and_thresholded():
    """Would fall: that white is no departure, and what is hidden is within the threshold."""
    values = np.broadcast_to(np.linspace(-1, 3, GRID.shape[1])[:, None], GRID.shape)
    grey = np.ones(GRID.shape, np.float32)
    figure = figures.plot_overlay(grey, values, GRID.affine, "z", threshold=2.0)
    axes = _cuts(figure)["z"]
    picture = axes.images[-1]
    assert picture.norm.vmin == -picture.norm.vmax
    shown = np.ma.masked_invalid(picture.get_array())
    assert (np.abs(shown.compressed()) > 2).all() and 0 < shown.count() < shown.size
    words = {text.get_text() for other in figure.axes for text in other.texts}
    assert {"L", "R", "z=6", "z, shown beyond 2"} <= words
    bars = [child for child in axes.get_children() if hasattr(child, "txt_label")]
    assert [bar.txt_label.get_text() for bar in bars] == ["50mm"]


def test_an_unsigned_map_starts_at_zero_and_its_bar_names_the_unit():
    """Falls: that an SD is drawn without a sign, an effect with one, and a limit is kept."""
    values = np.linspace(0, 3, np.prod(GRID.shape)).reshape(GRID.shape)
    grey, brightness = np.ones(GRID.shape, np.float32), [0.3, 0.6, 0.1]
    for how, limits, even in (({"signed": False}, (0, 3), True), ({}, (-3, 3), False),
                              ({"limit": 6.0}, (-6, 6), False)):  # fmt: skip
        figure = figures.plot_overlay(grey, values, GRID.affine, "uncertainty: SD, ml", **how)
        picture, bar = _cuts(figure)["z"].images[-1], figure.axes[-1]
        for seen in ((picture.norm.vmin, picture.norm.vmax), bar.get_ylim()):
            np.testing.assert_allclose(seen, limits, atol=0.02)
        colours = picture.cmap(np.linspace(0.01, 0.99, 9))[:, :3] @ brightness
        assert (np.diff(colours) > 0).all() == even, "sequential: ever brighter"
        assert bar.get_ylabel() == "SD, ml"
    cases = figures.plot_cases(
        {"scan": [grey], "z": [values]}, {"z": "z"}, GRID.affine, ["x"], "scan"
    )
    np.testing.assert_allclose(cases.axes[-1].get_xlim(), (-3, 3), atol=0.02)


def test_names_of_a_scatter_are_apart_and_lead_to_their_points():
    """Falls: that each region's name can be read and belongs to its own point."""
    rng = np.random.default_rng(1)
    x, y = np.append(rng.normal(0, 0.03, (2, 15)), [[0.4], [0.2]], 1)  # crowded, and one far away
    names = [f"superior_region_{number}" for number in range(16)]
    figure = figures.plot_scatter(x, y, names, "truth", "departure")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    found = {note.get_text().replace(" ", "_"): note for note in axes.texts}
    assert {name: note.xy for name, note in found.items()} == dict(zip(names, zip(x, y)))
    boxes = [Text.get_window_extent(note) for note in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    for side in ("left", "right"):
        column = [note for note in axes.texts if note.get_ha() == side]
        heights = [note.xyann[1] for note in sorted(column, key=lambda note: note.xy[1])]
        assert len(column) > 1 and heights == sorted(heights), "in the order of their points"
    spots, field = axes.transData.transform(np.column_stack([x, y])), axes.get_window_extent()
    assert not any(box.count_contains(spots) for box in boxes), "no name over a point"
    assert all(field.count_contains(box.get_points()) == 2 for box in boxes), "inside the axes"
    bare = figures.plot_scatter(x, y, [""] * 16, "truth", "departure").axes[0]
    assert not bare.texts and np.ptp(bare.get_xlim()) < np.ptp(axes.get_xlim())


def test_bars_say_what_was_not_computed():
    """Would fall: that a missing number is neither drawn at zero nor dropped."""
    rows = [{"n": "a", "v": 1.0, "l": 0.5, "h": 2.0}, {"n": "b", "v": None, "l": None, "h": None}]
    figure = figures.plot_bars(rows, "v", "l", "h", "n", "lift", reference=("no gain", 1.0))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["not computed"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    drawn = [line.get_xdata() for line in axes.lines]
    assert any(list(x) == [0.5, 2.0] for x in drawn), "the interval of a is drawn"


def test_training_skips_steps_without_validation():
    """Would fall: the validation curve."""
    stats = pd.DataFrame({"seen": [4, 8, 12], "l1": [3.0, 2.0, 1.0], "score": [np.nan, 9.0, 10.0]})
    figure = figures.plot_training(stats, ["l1"], "score", "PSNR (dB)")
    assert list(figure.axes[1].lines[0].get_xdata()) == [8, 12]


def test_all_figures_render_small():
    """Would fall: the page size, and that each figure can be drawn without a display."""
    rng = np.random.default_rng(0)
    volume = np.ones(GRID.shape, np.float32)
    groups = {"euploid": rng.normal(size=20), "DS": rng.normal(size=9)}
    made = [
        figures.plot_slices({"a": volume, "b": volume}, GRID.affine),
        figures.plot_cases(
            {"scan": [volume], "z": [volume]}, {"z": "z"}, GRID.affine, ["x"], background="scan"
        ),
        figures.plot_scatter([1, 2], [1.5, 3], ["a", "b"], "real", "synthetic"),
        figures.plot_spectrum(np.array([0.01, 0.1]), {"real": np.array([1.0, 0.1])}),
        figures.plot_distribution(groups, "ml"),
        figures.plot_embedding(rng.normal(size=(29, 2)), ["euploid"] * 20 + ["DS"] * 9, [0.2, 0.1]),
    ]
    for figure in made:
        assert isinstance(figure, Figure)
        page = io.BytesIO()
        figure.savefig(page)
        assert page.tell() < 150_000


def test_curves_keep_their_values_and_intervals():
    """Would fall: that a curve shows its table's values, and its band their interval."""
    table = pd.DataFrame({"k": [0, 5], "left": [1.0, 0.8], "low": [0.9, 0.7], "high": [1.1, 0.9]})
    figure = figures.plot_curves({"real": table, "phantom": table / 2}, "k", "left", "k", "left")
    axes = figure.axes[0]
    assert [line.get_label() for line in axes.lines] == ["real", "phantom"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), table["left"])
    edges = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert edges.min() == 0.7 and edges.max() == 1.1


def test_speed_labels_are_apart_and_every_curve_is_named_at_its_end():
    """Would fall: that curves and levels that end close together can be told apart by name."""
    rows = [(name, s, db, db - 0.1, db + 0.2) for name, db in (("a", 20.0), ("b", 20.01))
            for s in (1, 10)]  # fmt: skip
    curves = pd.DataFrame(rows, columns=["entrant", "cpu_s", "mean", "low", "high"])
    axes = figures.plot_speed(curves, {"pca": 20.02, "floor": 30.0}, {"a": "first"}).axes[0]
    words = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert set(words) == {"first (20.0)", "b (20.0)", "pca (20.0)", "floor (30.0)"}
    places = sorted(words.values())
    assert min(np.diff(places)) >= 10 / 22 and axes.get_xscale() == "log"
    assert list(words) == sorted(words, key=words.get), "labels keep the order of their curves"
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (19.9, 20.2)


def test_dots_show_mean_and_sd_and_what_would_be_perfect():
    """Would fall: that an ablation's dot is its mean, its bar the SD, and one seed has no bar."""
    table = pd.DataFrame({"kept": [0.5, 0.9], "kept_sd": [0.1, np.nan]}, index=["lean", "flat"])
    axes = figures.plot_dots(table, {"kept": "effect kept"}, {"kept": 1.0}).axes[0]
    assert list(axes.lines[0].get_xdata()) == [0.5, 0.9] and list(axes.lines[-1].get_xdata()) == [
        1,
        1,
    ]
    bars = np.array(axes.collections[0].get_segments())[:, :, 0]
    np.testing.assert_allclose(bars, [[0.4, 0.6], [0.9, 0.9]])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["lean", "flat"]


def test_a_viewer_loads_nothing_from_outside_and_holds_its_map():
    """Falls: that a page with a viewer makes no request; and that what is 0 is not drawn."""
    grey = np.ones(GRID.shape, np.float32)
    values = np.zeros(GRID.shape, np.float32)
    shown = []
    for size in (1.0, 2.0):
        values[10:20, 10:20, 10:20] = size
        shown.append(figures.view_map(grey, values, GRID.affine, "Hedges' g").get_iframe())
    assert all("http" not in text and "<iframe" in text for text in shown)
    assert shown[0] != shown[1] and "Hedges" in shown[1]


def test_a_grid_marks_what_was_found():
    """Falls: page 04's grid: a square's colour and dot are those of its component and covariate."""
    table = pd.DataFrame([
        {"component": k, "covariate": name, "r": r, "found": r > 0.5}
        for k, name, r in ((1, "age", 0.1), (2, "age", 0.9), (1, "white_matter", -0.4),
                           (2, "white_matter", 0.2))
    ])  # fmt: skip
    axes = figures.plot_grid(table, "component", "covariate", "r", "found", "r").axes[0]
    squares = axes.collections[0]
    np.testing.assert_allclose(squares.get_array(), [[0.1, 0.9], [-0.4, 0.2]])
    assert squares.get_clim() == (-1, 1) and axes.yaxis_inverted()
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1.5, 0.5]])
    assert [t.get_text() for t in axes.get_yticklabels()] == ["age", "white matter"]


def test_series_stand_side_by_side_in_their_row():
    """Falls: page 04's regions: each value and interval lies in the row of its region."""
    table = pd.DataFrame([
        {"region": region, "direction": name, "change": x, "change_low": x - 1,
         "change_high": x + 1}
        for name, values in (("observed", (1, 2)), ("moved", (3, 4)))
        for region, x in zip(("frontal", "temporal"), values)
    ])  # fmt: skip
    axes = figures.plot_series(table, "change", "region", "direction", "change").axes[0]
    shown = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_allclose(shown["moved"][:, 0], [3, 4])
    np.testing.assert_allclose(np.round(shown["moved"][:, 1]), [0, 1])
    assert (shown["observed"][:, 1] != shown["moved"][:, 1]).all()
    ends = np.concatenate([bar.get_segments() for bar in axes.collections])
    assert ends[..., 0].min() == 0 and ends[..., 0].max() == 5

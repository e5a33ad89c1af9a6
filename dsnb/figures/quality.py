"""Pictures to judge prepared scans by: one a scan, and a sheet of a cohort, the worst first.

They show single people and lie beside the prepared volumes; only those of open data go on a page.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dsnb import bids, dataset, record, space
from dsnb.figures.slices import CUTS, GREY, cut_volume, mark_slice, open_figure, show_slice
from dsnb.space import Grid
from dsnb.volumes import prepared_path

SHEET = 24  # people on the sheet of a cohort
DRAWN = ("planted", "sham", "twin")  # kinds that no scanner made
BRIGHTEST = 1.1


def _draw_scan(row, volume: np.ndarray, grid: Grid, cuts) -> None:
    """Draw a prepared scan's cuts into axes, with the outline of the template's brain."""
    brain = space.load_template(grid).brain.astype(np.float32)
    for axes, cut in zip(row, cuts):
        show_slice(axes, volume, grid.affine, cut, cmap=GREY, vmin=0, vmax=BRIGHTEST)
        picture, extent = cut_volume(brain, grid.affine, cut)
        axes.contour(picture, [0.5], extent=extent, colors="#E69F00", linewidths=0.7)
        mark_slice(axes, cut)


def plot_check(volume: np.ndarray, grid: Grid, title: str) -> Figure:
    """Show three cuts of one prepared scan (X, Y, Z) with the template brain's outline."""
    figure = open_figure(7.2, 2.9)
    _draw_scan(figure.subplots(1, len(CUTS)), volume, grid, CUTS)
    figure.suptitle(title, fontsize=8)
    return figure


def plot_sheet(volumes: np.ndarray, table: pd.DataFrame, grid: Grid, named: bool = False) -> Figure:
    """Show a cut of every scan by `doubt`, the worst first, with its `flag`; the first `SHEET`.

    Row i of `table` belongs to volume i of `volumes` (N, X, Y, Z); what is drawn from a scan is
    left out. People are `named` in the data root only, never on a page.
    """
    worst = table[~table["kind"].isin(DRAWN)].sort_values("doubt", ascending=False, kind="stable")
    columns = min(6, len(worst))
    lines = -(-min(SHEET, len(worst)) // columns)
    figure = open_figure(1.6 * columns, 2.1 * lines)
    grid_of = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid_of:
        axes.axis("off")
    for axes, (row, entry) in zip(grid_of, worst.iterrows()):
        _draw_scan([axes], np.asarray(volumes[row], np.float32), grid, CUTS[1:2])
        axes.set_title(named * f"{entry['participant_id']}: " + entry["flag"], fontsize=6)
    return figure


def save_checks(root: Path, grid: Grid) -> None:
    """Write `quality.png` of the product `prepared`, and one picture for each real scan.

    Pictures lie beside the volumes and are no part of the product: one that is there stays, and
    one that is gone is drawn again.
    """
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    if record.read_mark(root)["data"] != "phantom":
        for row, entry in table[~table["kind"].isin(DRAWN)].iterrows():
            path = prepared_path(root / "prepared", entry["participant_id"], grid)
            path = bids.sidecar_of(path).with_suffix(".png")
            if not path.is_file():
                title = f"{entry['participant_id']}: {entry['flag']} (doubt {entry['doubt']:.1f})"
                _save(plot_check(np.asarray(volumes[row], np.float32), grid, title), path)
            record.progress("pictures", row + 1, len(table))
    _save(plot_sheet(volumes, table, grid, named=True), root / "prepared" / "quality.png")


def _save(figure: Figure, path: Path) -> None:
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, format="png", metadata={"Software": None})
    aside.replace(path)

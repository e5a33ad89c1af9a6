"""Pictures to judge prepared scans by: one a scan, and a sheet of a cohort, the worst first.

They show single people and lie beside the prepared volumes; only those of open data go on a page.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dsnb import bids, dataset, record, space
from dsnb.figures.captions import caption
from dsnb.figures.slices import POINT, WIDTH, as_image, draw, mark, open_figure, place, save_figure
from dsnb.space import Grid
from dsnb.volumes import prepared_path

SHEET = 24  # people on the sheet of a cohort
DRAWN = ("planted", "sham", "twin")  # kinds that no scanner made
BRIGHTEST = 1.1


def _draw_scan(volume: np.ndarray, grid: Grid, title: str, **how) -> None:
    """Draw a prepared scan (X, Y, Z) with the outline of the template's brain."""
    display = draw(volume, grid.affine, BRIGHTEST, colorbar=False, **how)
    brain = as_image(space.load_template(grid).brain, grid.affine)
    display.add_contours(brain, levels=[0.5], colors="#E69F00", linewidths=0.7)
    mark(display, title)


def plot_check(volume: np.ndarray, grid: Grid, title: str) -> Figure:
    """Show three cuts of one prepared scan (X, Y, Z) with the template brain's outline."""
    figure = open_figure(WIDTH, 2.6)
    _draw_scan(volume, grid, title, cut_coords=POINT, figure=figure)
    return figure


def plot_sheet(volumes: np.ndarray, table: pd.DataFrame, grid: Grid, named: bool = False) -> Figure:
    """Show a cut of every scan by `doubt`, the worst first, with its `flag`; the first `SHEET`.

    Row i of `table` belongs to volume i of `volumes` (N, X, Y, Z); what is drawn from a scan is
    left out. People are `named` in the data root only, never on a page.
    """
    worst = table[~table["kind"].isin(DRAWN)].sort_values("doubt", ascending=False, kind="stable")
    worst, columns = worst.head(SHEET), min(6, len(worst))
    lines = -(-len(worst) // columns)
    figure = open_figure(1.6 * columns, 2.0 * lines)
    for number, (row, entry) in enumerate(worst.iterrows()):
        axes = place(number // columns, lines, number % columns, columns)
        title = named * f"{entry['participant_id']}: " + entry["flag"]
        how = {"display_mode": "y", "cut_coords": POINT[1:2], "figure": figure, "axes": axes}
        _draw_scan(volumes[row], grid, title, **how)
    flags = worst["flag"].value_counts()
    told = "; ".join(f"{flag}: {count}" for flag, count in flags.items())
    return caption(figure, f"The {len(worst)} most doubtful scans by what was flagged: {told}.")


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
                save_figure(plot_check(np.asarray(volumes[row], np.float32), grid, title), path)
            record.progress("pictures", row + 1, len(table))
    save_figure(plot_sheet(volumes, table, grid, named=True), root / "prepared" / "quality.png")

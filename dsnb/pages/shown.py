"""How a notebook shows a figure: vectors or pixels, and its caption below."""

import matplotlib as mpl
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from IPython.display import Markdown, display
from matplotlib.figure import Figure

# Equal figures are equal bytes: ids of an SVG come from its content, and no date is written.
SAME = {"svg.hashsalt": "dsnb"}


def render(figure: Figure) -> dict[str, str]:
    """Return {MIME type: data}: vectors of a chart; pixels, base64, where voxels are shown."""
    if any(axes.images for axes in figure.axes):
        return {"image/png": print_figure(figure, "png", bbox_inches=None, base64=True)}
    with mpl.rc_context(SAME):
        how = {"bbox_inches": None, "metadata": {"Date": None, "Creator": None}}
        return {"image/svg+xml": print_figure(figure, "svg", **how)}


def show_figure(figure: Figure) -> None:
    """Show a figure, and below it its caption, in a notebook."""
    text = figure.get_label()
    display(render(figure) | {"text/plain": text or "figure"}, raw=True)
    if text:
        display(Markdown(f"*Figure.* {text}"))


def show_captions() -> None:
    """Have this notebook show every figure by `show_figure`; outside of a notebook do nothing."""
    if shell := get_ipython():
        shell.display_formatter.ipython_display_formatter.for_type(Figure, show_figure)

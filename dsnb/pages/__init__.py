"""Pages: what notebooks ask of us, the study runner, and the book."""

from dsnb.pages.book import REPOSITORY, build_book, publish, verify, with_results
from dsnb.pages.findings import glued, tell
from dsnb.pages.notebook import (
    hide,
    may_show_people,
    open_notebook,
    open_study,
    parameter_table,
    show,
    spell,
)
from dsnb.pages.runner import run_study
from dsnb.pages.shown import render, show_figure
from dsnb.pages.tolerances import moved, tell_moved

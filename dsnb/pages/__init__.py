"""Pages: what notebooks ask of us, the study runner, and the book."""

from dsnb.pages.book import REPOSITORY, build_book, publish, verify, with_results
from dsnb.pages.notebook import may_show_people, open_notebook, open_study, show, spell
from dsnb.pages.runner import run_study
from dsnb.pages.shown import render, show_figure

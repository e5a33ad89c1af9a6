"""Guides and cards: what they tell a reader to type exists, and what they list is complete."""

import re
import shlex
import subprocess
from pathlib import Path

import papermill
import pytest
import yaml

import dsnb
from dsnb import __main__ as command_line
from dsnb import pages

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
TEXTS = [*sorted((BOOK / "guides").glob("*.md")), *sorted((BOOK / "cards").glob("*.md"))]
TEXTS += [ROOT / "README.md", ROOT / "hpc_jobs" / "README.md"]
MAKEFILE = (ROOT / "Makefile").read_text()
# Stands for whatever a reader puts there; the preset has to be a real one.
VALUES = {"$DSNB_PRESET": "full", "$DSNB_DATA": "data", "$DSNB_RAW": "raw", "$stage": "01_cohort"}


def blocks(path, kind="bash"):
    """Return the fenced blocks of a text, by their language."""
    return re.findall(rf"^```{kind}\n(.*?)^```", path.read_text(), re.M | re.S)


def commands(path):
    """Return the commands of a text as lists of words, sites' variables filled in."""
    lines = "\n".join(blocks(path)).replace("\\\n", " ").splitlines()
    for line in lines:
        for name, value in VALUES.items():
            line = line.replace(name, value)
        words = shlex.split(line, comments=True)
        if words[:1] == ["sbatch"] and "--wrap" in words:
            words = shlex.split(words[words.index("--wrap") + 1])
        yield words[: words.index("||")] if "||" in words else words


def called(program):
    """Return (text, words after the program) of all guides' commands of it."""
    found = []
    for path in TEXTS:
        for words in commands(path):
            at = [n for n, word in enumerate(words) if Path(word).name == program]
            at = [n for n in at if n == 0 or words[n - 1] == "-m"]
            found += [(path.name, words[at[0] + 1 :])] if at else []
    return found


def test_papermill_recipes_name_notebooks_and_parameters_that_exist():
    """Falls: that a recipe of the guides runs; papermill itself only warns of a wrong name."""
    recipes = called("papermill")
    assert len(recipes) >= 4
    for name, words in recipes:
        known = papermill.inspect_notebook(ROOT / words[0])
        given = [words[n + 1] for n, word in enumerate(words) if word in ("-r", "-p")]
        assert given and set(given) <= set(known), (name, words)


def test_commands_of_the_guides_are_parsed():
    """Falls: that a verb, word or flag of a guide is one of ours."""
    asked = called("dsnb")
    assert len(asked) > 10
    for name, words in asked:
        assert command_line.parse(words).verb == words[0], (name, words)


def test_make_commands_of_the_guides_exist():
    """Falls: that a target or variable of a guide is one of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M)) | {".venv/.installed"}
    names = set(re.findall(r"^([A-Z_]+) [?:]?=", MAKEFILE, re.M))
    asked = called("make")
    for name, words in asked:
        given = {word.split("=")[0] for word in words if "=" in word}
        assert {word for word in words if "=" not in word} <= targets, (name, words)
        assert given <= names, (name, words)
    assert len(asked) > 8


def test_the_parameter_table_is_what_the_notebooks_say():
    """Falls: that the guide's table is made from the notebooks.

    To make it again: print(pages.parameter_table(Path("notebooks"))).
    """
    text = (BOOK / "guides" / "reexecute.md").read_text()
    table = text.split("<!-- parameters -->\n")[1].split("\n<!-- /parameters -->")[0]
    assert table == pages.parameter_table(ROOT / "notebooks")
    assert "| `preset` | str |" in table


def test_notebooks_that_differ_get_rows_of_their_own(tmp_path):
    """Falls: that the table tells which stage takes what."""
    text = (ROOT / "notebooks" / "01_cohort.ipynb").read_text()
    (tmp_path / "01_a.ipynb").write_text(text)
    (tmp_path / "02_b.ipynb").write_text(
        text.replace('preset = \\"small\\"', 'preset = \\"full\\"')
    )
    rows = pages.parameter_table(tmp_path).splitlines()
    assert [row for row in rows if '`"small"`' in row][0].endswith("| 01 |")
    assert [row for row in rows if '`"full"`' in row][0].endswith("| 02 |")
    assert [row for row in rows if "`raw`" in row][0].endswith("| 01 02 |")


@pytest.mark.parametrize("number, needs", [(0, "upload-pages-artifact"), (1, "public")])
def test_recipes_of_publishing_are_yaml_that_builds_the_committed_book(number, needs):
    """Falls: that a workflow is valid, builds by `make book` and hands out what that makes."""
    recipe = blocks(BOOK / "guides" / "publish.md", "yaml")[number]
    assert isinstance(yaml.safe_load(recipe), dict) and needs in recipe
    assert "make book " in recipe and "book/_build/html" in recipe and "make study" not in recipe
    assert re.search(r"^book:.*\n(\t.*\n)*?\t@\$\(RUN\) dsnb verify", MAKEFILE, re.M)


def test_every_row_of_the_fault_table_says_how_it_was_tested():
    """Falls: that the guide's results are those of tests that exist, and leave no row out."""
    section = (BOOK / "guides" / "faults.md").read_text().split("## What was tested")[1]
    told = {}
    for rows, *_, test in re.findall(
        r"^\| ([A-Z]\d\d[^|]*) \|(.*)\|(.*)\| ([^|]+) \|$", section, re.M
    ):
        ends = re.fullmatch(r"([A-Z])(\d\d) to [A-Z](\d\d)", rows)
        every = range(int(ends[2]), int(ends[3]) + 1) if ends else ()
        names = [f"{ends[1]}{n:02d}" for n in every] if ends else rows.split(", ")
        for name in names:
            told.setdefault(name, []).append(test.strip("`"))
    counts = {"T": 20, "D": 20, "S": 7, "P": 13, "L": 3}
    wanted = {f"{kind}{n:02d}" for kind, count in counts.items() for n in range(1, count + 1)}
    assert wanted <= set(told), sorted(wanted - set(told))
    corpus = (ROOT / "tests" / "malformed.py").read_text()
    for row, tests in told.items():
        for test in tests:
            text = (ROOT / "tests" / test).read_text() if test != "none" else row
            text += corpus if test == "test_faults.py" else ""
            assert re.search(rf"(?i)(?<![a-z0-9]){row}(?![0-9])", text), (row, test)


def test_the_checklist_has_every_item_and_counts_its_states():
    """Falls: that the checklist is whole, and its sentence of counts is that of its table."""
    text = (BOOK / "cards" / "claim.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", text, re.M)
    assert [int(number) for number, _, _ in rows] == list(range(1, 45))
    states = [state for _, state, _ in rows]
    counts = [states.count(state) for state in ("met", "partly", "not met", "not applicable")]
    assert sum(counts) == 44
    sentence = "44 items {} are met, {} partly, {} are not met, and {} do not apply".format(*counts)
    assert sentence in text
    assert all("](" in where for _, state, where in rows if state == "met")


def test_the_first_screens_name_every_verb_target_and_variable(monkeypatch, capsys):
    """Falls: that `dsnb` or `make` alone shows a newcomer what there is, and runs nothing."""
    monkeypatch.setattr("sys.argv", ["dsnb"])
    assert command_line.main() == 0
    shown = capsys.readouterr().out
    assert shown.strip() == dsnb.__doc__.strip()
    assert not [
        verb for verb in command_line.VERBS if not re.search(rf"^  .*\b{verb}\b", shown, re.M)
    ]
    screen = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^\.PHONY: (.*)", MAKEFILE, re.M)[0].split()
    assert not [name for name in (*targets, "PRESET", "RAW", "DATA") if name not in screen]


def test_an_interrupted_command_says_that_it_goes_on(monkeypatch, capsys):
    """Falls: that Ctrl-C ends in a sentence, not in a traceback."""

    def interrupt(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["dsnb", "study"])
    monkeypatch.setattr(command_line, "parse", interrupt)
    assert command_line.main() == command_line.INTERRUPTED == 130
    assert "the same command goes on" in capsys.readouterr().err

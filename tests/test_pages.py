"""The runner and the book: parameters are checked, leaks are found, numbers are never typed."""

import json
import shutil
from types import SimpleNamespace

import nbformat
import pytest
from test_trace import whole_book

from dsnb import __main__ as main
from dsnb import pages, record
from dsnb.checks import BadInput
from dsnb.pages import runner


def test_a_misspelt_or_wrong_typed_parameter_is_refused(tmp_path):
    """P09: papermill only warns of an unknown name; a run with defaults would pass unseen."""
    good = {"preset": "smoke", "data_root": str(tmp_path), "raw": "", "pages": pages}
    study, root, raw = pages.open_notebook(good)
    assert (study.name, root, raw) == ("smoke", tmp_path, None)
    with pytest.raises(BadInput, match="'presett'.*preset, data_root, raw"):
        pages.open_notebook({**good, "presett": "small"})
    with pytest.raises(BadInput, match="data_root is 1"):
        pages.open_notebook({**good, "data_root": 1})


def test_a_missing_raw_folder_is_refused_and_nothing_is_made(tmp_path):
    """No such folder: a sentence, and the data root stays as it was."""
    with pytest.raises(BadInput, match="E-PATH.*no such folder"):
        pages.open_study("smoke", str(tmp_path / "root"), str(tmp_path / "absent"))
    assert not (tmp_path / "root").exists()


def test_people_of_a_restricted_cohort_are_never_drawn(tmp_path):
    """Only CC0 and PDDL data may show a person's slices; no licence means no."""
    for licence, shown in (("CC0", True), ("DUA", False), (None, False)):
        raw = tmp_path / f"cohort-{licence}"
        raw.mkdir()
        fields = {"Name": "x"} | ({"License": licence} if licence else {})
        (raw / "dataset_description.json").write_text(json.dumps(fields))
        root = tmp_path / f"root-{licence}"
        pages.open_study("smoke", str(root), str(raw))
        assert pages.may_show_people(root) is shown
        pages.open_study("smoke", str(root), "")  # a later stage, by itself
        assert pages.may_show_people(root) is shown


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_broken_description_is_refused(text, tmp_path):
    """Falls: that a licence nobody can read ends in a sentence, before anything is made."""
    (tmp_path / "dataset_description.json").write_text(text, "latin-1")
    with pytest.raises(BadInput, match="E-JSON"):
        pages.open_study("smoke", str(tmp_path / "root"), str(tmp_path))
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "output, fault",
    [
        (nbformat.v4.new_output("stream", text="saved to /home/someone/x.nii"), "absolute path"),
        (nbformat.v4.new_output("error", ename="E", evalue="", traceback=[]), "ended with"),
        (None, "no cell has an output"),
    ],
)
def test_a_leaking_failed_or_empty_page_is_refused(tmp_path, output, fault):
    """P03 and silent failures: the book is not built from such a page."""
    book, notebooks, _ = whole_book(tmp_path)
    pages.verify(book, notebooks)
    cell = nbformat.v4.new_code_cell("1", outputs=[output] if output else [])
    page = book / "executed/05_anomaly.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), page)
    with pytest.raises(BadInput, match=f"05_anomaly.*{fault}"):
        pages.verify(book, notebooks)
    page.unlink()
    with pytest.raises(BadInput, match="05_anomaly.*page or results file is missing"):
        pages.verify(book, notebooks)


@pytest.mark.parametrize("preset, data, place", [
    ("small", "phantom", "book/executed"), ("small", "ds002748-2mm", "book/real"),
    ("smoke", "ds002748-2mm", "root/book/executed"), ("small", "theirs", "root/book/executed"),
])  # fmt: skip
def test_a_study_is_published_where_it_belongs(preset, data, place, tmp_path, monkeypatch):
    """Falls: that only the phantom's and the open scans' small studies reach the tracked book."""
    monkeypatch.setattr(pages.book, "REPOSITORY", tmp_path)
    monkeypatch.setattr(pages.book, "with_results", lambda text, results: text + str(results))
    for name in ("executed", "real", "results/real"):
        (tmp_path / "book" / name).mkdir(parents=True)
    (tmp_path / "README.md").write_text("")
    figure = "```{figure} figures/anomaly.png\n:width: 100%\n```\n"
    (tmp_path / "book/index.md").write_text(f"# Title\n{figure}Text.\n")
    root = tmp_path / "root"
    record.open_root(str(root), preset, data, True)
    for kind, name in (("pages", "01_cohort.ipynb"), ("results", "01_cohort.json")):
        (root / kind).mkdir()
        (root / kind / name).write_text("ours")
    pages.publish(root)
    found = {path.parent for path in tmp_path.rglob("01_cohort.ipynb")} - {root / "pages"}
    assert found == {tmp_path / place}
    index = tmp_path / place.split("/executed")[0].split("/real")[0] / "index.md"
    assert index.read_text() == "# Title\nText.\n"  # no figure was drawn
    assert bool((tmp_path / "README.md").read_text()) is (place == "book/executed")


def test_the_readme_table_is_what_the_results_say():
    """Nobody types a number: the committed README equals what the results files give."""
    readme = (pages.REPOSITORY / "README.md").read_text()
    assert pages.with_results(readme, pages.REPOSITORY / "book/results") == readme
    assert "| 05_anomaly | `lift` |" in readme


def test_values_are_spelt_for_print():
    """Nulls and intervals read as such on a page."""
    assert pages.spell(None) == "n/a" and pages.spell(True) == "yes"
    assert pages.spell([0.12345, 2]) == "[0.123, 2]"


def test_a_study_may_leave_the_book_alone(tmp_path, monkeypatch):
    """Falls: that `make verify` never writes over the committed pages."""
    published = []
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(runner, "_publish", lambda root: published.append(root) or {"seconds": 0})
    for publishing in (False, True):
        pages.run_study("smoke", "", str(tmp_path / "root"), publishing)
    assert published == [tmp_path / "root"]


def test_a_page_of_uncommitted_code_is_run_again_once_it_is_committed(tmp_path, monkeypatch):
    """S06: falls: that a commit and `make study` clear a page's stamp; what is current is kept."""
    clean, runs = {"dirty": True}, []

    def execute(notebook, page, parameters, root):
        runs.append(notebook.stem)
        record.write_text(page, "{}")
        record.write_json(root / "results/01_cohort.json", {"provenance": dict(clean)})
        return SimpleNamespace(peak_gb=0.0)

    monkeypatch.setattr(runner, "run_stage", execute)
    monkeypatch.setattr(record, "commit", lambda: clean)
    for _ in range(2):
        runner._run_if_changed(tmp_path / "01_cohort.ipynb", {}, "key", tmp_path)
    assert len(runs) == 1
    clean["dirty"] = False
    for _ in range(2):
        runner._run_if_changed(tmp_path / "01_cohort.ipynb", {}, "key", tmp_path)
    assert len(runs) == 2


def test_verify_of_another_run_ends_with_1_where_a_number_moved_too_far(tmp_path, capsys):
    """Falls: that `make verify` passes on what is equal, and names what is not."""
    shutil.copytree(pages.REPOSITORY / "book/results", tmp_path / "results")
    command = main.parse(["verify", str(tmp_path)])
    assert main.run(command) == 0 and " 0 moved, 0 beyond" in capsys.readouterr().out
    path = tmp_path / "results/06_strata.json"
    results = json.loads(path.read_text())
    results["headline"]["auc_ds"] -= 0.1
    path.write_text(json.dumps(results))
    assert main.run(command) == 1
    assert "auc_ds" in (said := capsys.readouterr().out) and "1 moved, 1 beyond" in said

"""The book's door: planted leaks are found, the committed book has none, hostile cells are text."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from dsnb import pages, record
from dsnb.checks import BadInput
from dsnb.pages import leaks

V4 = nbformat.v4
PIXEL = base64.b64encode(b"\x89PNG picture of somebody").decode()
HOSTILE = (
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "[x](javascript:alert(1))",
    "```{eval}\n1\n```", "{eval}`1`", "```{include} /x\n```",
)  # fmt: skip


def drawn(html=None, png=None, **data):
    """Return a display output."""
    data = data | ({"text/html": html} if html else {}) | ({"image/png": png} if png else {})
    return V4.new_output("display_data", data={"text/plain": "it"} | data)


def write_page(book, output=None, source="1", tags=(), kind="restricted", name="real/03_page"):
    """Write one page with one output, and its results file of a class of data."""
    cell = V4.new_code_cell(source, outputs=[output] if output else [], metadata={"tags": [*tags]})
    page, results = book / f"executed/{name}.ipynb", book / f"results/{name}.json"
    for path in (page, results):
        path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(V4.new_notebook(cells=[V4.new_markdown_cell("# A page"), cell]), page)
    results.write_text(json.dumps({"class": kind, "headline": {}}))
    return page


def told(text):
    return V4.new_output("stream", text=text)


def table(**columns):
    return pd.DataFrame(columns)._repr_html_()


LEAKS = {
    "P02, a slice": (drawn(png=PIXEL), "cell 2: a picture of restricted data"),
    "P02, a viewer": (drawn("<iframe srcdoc='brainsprite'></iframe>"), "cell 2: a picture of"),
    "P03, a path": (told("saved:\n/home/someone/x"), "cell 2: an absolute path"),
    "P03, an account": (told("someone@login1"), "cell 2: a machine or an account"),
    "P07, a picture that acts": (drawn(f"<p>{HOSTILE[0]}</p>"), "cell 2: raw HTML: img onerror"),
    "P07, a script": (drawn(HOSTILE[1]), "cell 2: raw HTML: script"),
    "P07, a link": (drawn("<p title='javascript:x'>x</p>"), "cell 2: raw HTML: p javascript:x"),
    "P07, MyST": (drawn(**{"text/markdown": HOSTILE[3]}), "cell 2: Markdown with markup"),
    "P13, a count": (drawn(table(site=["A"], people=[2])), "cell 2: fewer than five people"),
    "P13, an age": (drawn(table(site=["A"], age=[91.0])), "cell 2: .* an age over 89"),
    "P13, words": (told("only 3 people with DS"), "cell 2: fewer than five people"),
    "an id": (drawn(table(participant_id=["sub-0007"])), "cell 2: a participant's id"),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_in_an_output_is_found_once_in_the_source_and_once_as_built(name, tmp_path):
    """P02, P03, P07, P13, G27. Falls: that a page of a restricted cohort holds nobody."""
    output, said = LEAKS[name]
    kind = "phantom" if "P07" in name else "restricted"
    page = write_page(tmp_path, output, kind=kind)
    (fault,) = leaks.scan(tmp_path)
    assert re.search(f"executed/real/03_page.ipynb, {said}", fault)
    sources = tmp_path / "_build/html/_sources/executed/real"
    sources.mkdir(parents=True)
    shutil.copy(page, sources)
    write_page(tmp_path, told("fine"), kind=kind)
    (fault,) = leaks.scan(tmp_path)
    assert re.search(f"_build: _sources/executed/real/03_page.ipynb, {said}", fault)


def plant(book):
    """Plant twelve leaks in twelve places of a book; return file -> what is said."""
    write_page(book, drawn(png=PIXEL))
    noted = write_page(book, told("fine"), name="01_cohort")
    notebook = json.loads(noted.read_text())
    notebook["metadata"]["papermill"] = {"input_path": "x.ipynb"}
    noted.write_text(json.dumps(notebook))
    write_page(book, told("a\n/scratch/someone"), name="02_volumes")
    write_page(book, drawn(HOSTILE[0]), name="04_latents", kind="phantom")
    html = '<article class="bd-article">{}</article>'
    texts = {
        "results/05_anomaly.json": '{"class": "restricted", "tables": {"a": [{"people": 3}]}}',
        "results/ledger/06_a.jsonl": '{"data": "phantom"}\n{"data": "clinic", "who": "sub-09"}\n',
        "guides/a.md": "`<script>` is code.\n\n<script>alert(1)</script>\n",
        "figures/someone.nii.gz": "voxels",
        "_build/html/executed/real/03_page.html": html.format(table(age=[93])),
        "_build/html/guides/b.html": html.format('<a href="javascript:x">x</a>'),
        "_build/html/_sources/guides/b.md": "see /home/someone/b",
        "_build/html/_images/somebody.png": "a picture of an earlier build",
    }
    for name, text in texts.items():
        (book / name).parent.mkdir(parents=True, exist_ok=True)
        (book / name).write_text(text)
    return dict(zip(
        ("real/03_page.ipynb, cell 2", "01_cohort.ipynb, metadata", "02_volumes.ipynb, cell 2",
         "04_latents.ipynb, cell 2", "05_anomaly.json, entry 1", "06_a.jsonl, entry 2", "a.md",
         "someone.nii.gz", "03_page.html", "guides/b.html", "b.md, line 1", "somebody.png"),
        ("a picture", "papermill", "an absolute path", "raw HTML", "fewer than five", "id",
         "<script outside code", "voxels", "fewer than five", "raw HTML: a javascript:x",
         "an absolute path", "a picture of no page"),
    ))  # fmt: skip


def test_twelve_planted_twelve_found(tmp_path):
    """G27. Falls: that the scan reads notebooks, results, sources, pages and pictures."""
    planted, found = plant(tmp_path), leaks.scan(tmp_path)
    assert len(planted) == len(found) == 12, found
    for where, said in planted.items():
        assert [fault for fault in found if where in fault and said in fault], (where, found)
    with pytest.raises(BadInput, match="03_page.ipynb, cell 2: a picture of restricted data"):
        pages.verify(tmp_path)


def test_the_committed_book_holds_none():
    """G27. Falls: that the scan may run on every build: no false alarm, built pages too."""
    assert leaks.scan(pages.REPOSITORY / "book") == []


@pytest.mark.parametrize("name", [name for name in LEAKS if "P07" not in name])
def test_each_class_shows_what_the_table_says(name, tmp_path):
    """Falls: that phantom pages show all, and pages of open data all but ids. Paths nobody may."""
    for kind in ("phantom", "synthetic", "open"):
        write_page(tmp_path, LEAKS[name][0], kind=kind)
        refused = "P03" in name or ("id" in name and kind == "open")
        assert bool(leaks.scan(tmp_path)) is refused


def test_a_tag_lets_a_group_be_drawn_and_no_person(tmp_path):
    """P02. Falls: that a tag is a promise about the cell, checked where the cell takes a person."""
    for source, faults in (
        ("figures.plot_bars(rows)", 0),
        ("figures.plot_slices({'a': stack[3]})", 1),
        ("if pages.may_show_people(root):\n    figures.plot_slices({'a': stack[3]})", 0),
    ):
        write_page(tmp_path, drawn(png=PIXEL), source, ["group-level"])
        assert len(leaks.scan(tmp_path)) == faults


def test_cells_that_draw_groups_are_tagged_and_ask_before_they_draw_people():
    """P02. Falls: that a restricted cohort's book can be built: group cells carry the tag."""
    for path in sorted((pages.REPOSITORY / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            guarded = (
                "may_show_people" in source or "if is_phantom" in source or "shown else" in source
            )
            tagged = "group-level" in cell["metadata"].get("tags", [])
            if "figures.plot_" in source and cell["cell_type"] == "code":
                assert tagged or guarded or "is_phantom" in source, (path.name, source)
            if tagged and leaks.PEOPLE.search(source):
                assert "may_show_people" in source, (path.name, source)


def test_a_page_without_results_is_restricted(tmp_path):
    """Falls: that whoever forgets to say what the data is shows nobody."""
    page = write_page(tmp_path, drawn(png=PIXEL), kind="phantom")
    assert not leaks.scan(tmp_path)
    (tmp_path / "results/real/03_page.json").unlink()
    assert len(leaks.scan(tmp_path)) == 1 and page.is_file()


@pytest.mark.parametrize(
    "mark, kind",
    [
        ({"preset": "small", "data": "phantom", "people_may_be_shown": True}, "phantom"),
        ({"data": "phantom"}, "phantom"),
        ({"data": "phantom", "people_may_be_shown": False}, "restricted"),
        ({"data": "ixi", "people_may_be_shown": True}, "open"),
        ({"data": "ixi", "people_may_be_shown": False}, "restricted"),
        ({"data": "ixi"}, "restricted"),
        ({}, "restricted"),
        ({"data": "made", "people_may_be_shown": False, "class": "synthetic"}, "synthetic"),
        ({"data": "made", "class": "public"}, "restricted"),
    ],
)
def test_the_class_of_a_root_of_before_and_of_now(mark, kind):
    """Falls: that one place decides, and that what it does not know is restricted."""
    assert record.data_class(mark) == kind


def test_the_class_is_written_into_mark_and_results(tmp_path):
    """Falls: that a released cohort is known as synthetic, and ours by no folder's name."""
    raw = tmp_path / "made"
    raw.mkdir()
    fields = {"License": "DUA", "GeneratedBy": [{"Name": "dsnb"}]}
    (raw / "dataset_description.json").write_text(json.dumps(fields))
    for kind, root in (("restricted", tmp_path / "a"), ("synthetic", tmp_path / "b")):
        pages.open_study("smoke", str(root), str(raw))
        assert record.read_mark(root)["class"] == kind
        assert pages.may_show_people(root) is (kind == "synthetic")
        assert pages.may_show_people(root, mean_of=5)
        (raw / "audit.json").write_text("{}")
    (tmp_path / "phantom").mkdir()
    with pytest.raises(BadInput, match="E-PATH phantom: raw"):
        pages.open_study("smoke", str(tmp_path / "c"), str(tmp_path / "phantom"))


def test_small_groups_and_high_ages_are_hidden_at_the_door(tmp_path):
    """P13. Falls: that a page of restricted data tells of five people or more."""
    rows = pd.DataFrame({"site": ["A", "B", "C"], "people": [2, 40, 0], "age": [30.5, 91.0, 50.0]})
    splits = pd.crosstab(pd.Series(["DS", "DS", "x"], name="g"), pd.Series(["fit", "test", "test"]))
    for kind in ("phantom", "open", "restricted"):
        root = tmp_path / kind
        record.write_json(root / "study.json", {"data": "x", "class": kind})
        shown = pages.hide(root, rows)
        if kind != "restricted":
            assert shown is rows
            continue
        assert shown.to_numpy().tolist() == [["A", "<5", "few"], ["B", 40, "90+"], ["C", 0, 50.0]]
        assert pages.hide(root, rows.T).to_numpy().tolist() == shown.T.to_numpy().tolist()
        assert pages.hide(root, splits).to_numpy().tolist() == [["<5", "<5"], [0, "<5"]]
        write_page(tmp_path, drawn(shown._repr_html_()))
        assert not leaks.scan(tmp_path)
        write_page(tmp_path, drawn(rows.T._repr_html_()))
        assert len(leaks.scan(tmp_path)) == 1


def test_results_of_restricted_data_are_written_coarse(tmp_path):
    """P13. Falls: that the numbers behind a page tell no more than the page."""
    headline = dict.fromkeys(record.HEADLINE["01_cohort"].split(), 60) | {"ds": 3}
    tables = {
        "cohorts": [{"site": "A", "size": 2, "mean": 46.8}, {"site": "B", "size": 9, "mean": 31.0}],
        "stages": {"n/a": 400, "dementia": 1},
        "groups": [{"note": "4 unrelated people in the smallest group, 10 needed", "ok": True}],
    }
    record.write_json(tmp_path / "study.json", {"preset": "smoke", "data": "x", "class": "open"})
    words = ("01_cohort", headline, tables, {}, ())
    assert record.write_results(tmp_path, *words)["tables"] == tables
    record.write_json(tmp_path / "study.json", {"preset": "smoke", "data": "x"})
    found = record.write_results(tmp_path, *words)
    assert (found["class"], found["headline"]["ds"]) == ("restricted", "<5")
    assert found["tables"]["cohorts"] == [{"site": "A", "size": "<5", "mean": "few"},
                                          tables["cohorts"][1]]  # fmt: skip
    assert found["tables"]["stages"] == {"n/a": 400, "dementia": "<5"}
    assert found["tables"]["groups"][0]["note"].startswith("<5 unrelated people")
    assert record.suppress(found["tables"]) == found["tables"]


def test_a_table_in_a_notebook_passes_the_door(tmp_path):
    """P13. Falls: that it is the notebook, not each cell's author, who hides few people."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    raw = tmp_path / "clinic"
    raw.mkdir()
    names = {"preset": "smoke", "data_root": str(tmp_path / "root"), "raw": str(raw)}
    pages.open_notebook(names | {"get_ipython": lambda: shell})
    data, _ = shell.display_formatter.format(pd.DataFrame({"site": ["A"], "people": [2]}))
    assert "&lt;5" in data["text/html"] and "<5" in data["text/plain"]
    assert ">2<" not in data["text/html"] and "2" not in data["text/plain"]


def test_ids_of_the_root_are_known_in_hand_written_pages(tmp_path):
    """Falls: that an id of the cohort is found wherever it stands, our guides' examples aside."""
    book = tmp_path / "book"
    (tmp_path / "cohort").mkdir()
    book.mkdir()
    record.write_json(tmp_path / "study.json", {"preset": "smoke", "data": "clinic"})
    (tmp_path / "cohort/participants.tsv").write_text("participant_id\tage\nsub-01\t3\nsub-K9\t4\n")
    (book / "a.md").write_text("For example `sub-01`.")
    assert not leaks.scan(book)
    (book / "a.md").write_text("We saw sub-K9.")
    (book / "a.png").write_bytes(b"somebody")
    assert len(leaks.scan(book)) == 2


def test_a_drawing_is_known_as_it_is_built(tmp_path):
    """Falls: that a picture in the built book is one of its pages, vectors included."""
    write_page(tmp_path, drawn(**{"image/svg+xml": "<svg>\n</svg>\n"}), kind="phantom")
    built = tmp_path / "_build/html/_images/a.svg"
    built.parent.mkdir(parents=True)
    built.write_text("<svg>\n</svg>")  # myst-nb joins the lines anew
    assert leaks.scan(tmp_path) == []
    built.write_text("<svg>\n</svg>of another build")
    assert "a picture of no page" in leaks.scan(tmp_path)[0]


def test_this_machines_names_are_no_output(tmp_path, monkeypatch):
    """P03. Falls: that a user's name alone is found where it was printed."""
    monkeypatch.setattr("getpass.getuser", lambda: "jsmith")
    write_page(tmp_path, told("run by jsmith"), kind="phantom")
    assert "an account, this one's" in leaks.scan(tmp_path)[0]


def test_hostile_cells_are_text_in_the_built_book(tmp_path):
    """P07. Falls: that a cell of a participants table is shown, never acted on."""
    cells = pd.DataFrame({"site": HOSTILE, "people": 9})
    write_page(tmp_path, drawn(cells._repr_html_()), name="01_cohort", kind="phantom")
    page = json.loads((tmp_path / "executed/01_cohort.ipynb").read_text())
    page["cells"][1]["outputs"].append({"output_type": "stream", "name": "stdout",
                                        "text": "\n".join(HOSTILE)})  # fmt: skip
    (tmp_path / "executed/01_cohort.ipynb").write_text(json.dumps(page))
    config = (pages.REPOSITORY / "book/_config.yml").read_text()
    config = config.replace("html_extra_path: [vendor]", "html_extra_path: []")
    (tmp_path / "_config.yml").write_text(config)
    (tmp_path / "references.bib").touch()
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nchapters: [{file: executed/01_cohort}]\n"
    )
    (tmp_path / "index.md").write_text("# A book\n\nOf one page.\n")
    program = Path(sys.executable).with_name("jupyter-book")
    answer = subprocess.run([program, "build", "-n", tmp_path], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    built = (tmp_path / "_build/html/executed/01_cohort.html").read_text()
    assert leaks.scan(tmp_path) == []
    for text in HOSTILE[:2]:
        escaped = text.replace("<", "&lt;").replace(">", "&gt;")
        assert built.count(escaped) >= 2 and text not in built
    assert "[x](javascript:alert(1))" in built and "{eval}`1`" in built

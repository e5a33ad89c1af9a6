"""The trace from page to run: what is stale, mixed, typed, silent or unknown keeps a book shut."""

import json
from types import SimpleNamespace

import nbformat
import pytest
import tiny
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dsnb import pages, record, training, vae
from dsnb.checks import BadInput
from dsnb.config import replace
from dsnb.pages import extension, numerals, tolerances, trace

ORIGIN = {
    "commit": "0123456789", "dirty": False, "packages": {"torch": "2.13.0+cpu"}, "lock": "l",
    "data_manifest": "m", "study": "s", "seeds": {"seed": 1}, "threads": 2, "device": "cpu",
    "machine": {"processor": "toy", "cores": 2, "memory_gb": 8}, "time": "2026-01-01T00:00Z",
    "chain": {"raw": "r", "prepared": "p"},
}  # fmt: skip
PICTURE = {"image/png": "aaaa"}


def glue(key, text):
    """Return the output that glues a value, as myst-nb writes it."""
    data = {"application/papermill.record/text/plain": repr(text)}
    return new_output("display_data", data, metadata={"scrapbook": {"name": key}})


def whole_book(folder):
    """Write a tiny book that passes, its notebooks and its constraints; return all three."""
    book, notebooks, pins = folder / "book", folder / "notebooks", folder / "constraints.txt"
    for path in (book / "executed", book / "results", book / "figures", notebooks):
        path.mkdir(parents=True)
    pins.write_text("# tested\ntorch==2.13.0\n")
    drawn = book / "figures/anomaly.png"
    drawn.write_bytes(b"picture")
    for stage in record.STAGES:
        headline = dict.fromkeys(record.HEADLINE[stage].split(), 0.5)
        text, code = new_markdown_cell(f"# {stage}", id="a"), new_code_cell("show(1)", id="b")
        nbformat.write(new_notebook(cells=[text, code]), notebooks / f"{stage}.ipynb")
        code["outputs"] = [glue(key, "0.5") for key in headline]
        nbformat.write(new_notebook(cells=[text, code]), book / f"executed/{stage}.ipynb")
        about = ORIGIN | {"figures": {drawn.name: record.digest(drawn)}}
        numbers = {"data": "toy", "preset": "small", "headline": headline, "provenance": about}
        (book / f"results/{stage}.json").write_text(json.dumps(numbers | {"timing": {}}))
    (book / "index.md").write_text("One {glue:text}`executed/03_vae.ipynb::psnr_db:s` dB.\n")
    return book, notebooks, pins


def refusal(book, notebooks, pins=None):
    """Return what verify says of a book, nothing where it passes."""
    try:
        pages.verify(book, notebooks, pins)
    except BadInput as refused:
        return str(refused)
    return ""


def alter(path, change):
    """Change the JSON of a file in place."""
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))


def test_a_whole_book_passes_and_a_changed_notebook_makes_its_page_stale(tmp_path):
    """Falls: that a page shows what its notebook does now."""
    book, notebooks, pins = whole_book(tmp_path)
    assert refusal(book, notebooks, pins) == ""
    alter(notebooks / "04_latents.ipynb", lambda n: n["cells"][1].update(source=["show(2)"]))
    assert "executed/04_latents: cell 2 is 'stale'" in refusal(book, notebooks)
    injected = new_code_cell("preset = 1", metadata={"tags": ["injected-parameters"]}, id="c")
    alter(notebooks / "04_latents.ipynb", lambda n: n["cells"][1].update(source=["show(1)"]))
    alter(book / "executed/04_latents.ipynb", lambda n: n["cells"].insert(1, injected))
    assert refusal(book, notebooks) == ""
    alter(notebooks / "04_latents.ipynb", lambda n: n["cells"].append(n["cells"][0]))
    assert "cell 3 is 'stale'" in refusal(book, notebooks)


@pytest.mark.parametrize("word", trace.NEEDED)
def test_a_page_without_a_part_of_its_origin_is_refused(tmp_path, word):
    """G22: falls: that every page says all of what made it."""
    book, notebooks, _ = whole_book(tmp_path)
    alter(book / "results/02_volumes.json", lambda r: r["provenance"].pop(word))
    assert f"02_volumes: provenance of its results is 'without {word}" in refusal(book, notebooks)


def test_a_dirty_tree_and_other_packages_are_read_but_not_released(tmp_path):
    """S06: falls: that what is released was made by a commit and by the tested packages."""
    book, notebooks, pins = whole_book(tmp_path)
    alter(book / "results/01_cohort.json", lambda r: r["provenance"].update(dirty=True))
    packages = {"torch": "2.12.0"}
    alter(book / "results/02_volumes.json", lambda r: r["provenance"].update(packages=packages))
    alter(book / "results/03_vae.json", lambda r: r["provenance"].update(commit="no git"))
    said = refusal(book, notebooks, pins)
    assert "01_cohort: its code is 'changed since its commit'" in said
    assert "02_volumes: torch is '2.12.0', expected 2.13.0" in said
    assert "03_vae: provenance of its results is 'without commit'" in said
    assert "torch" not in refusal(book, notebooks)


def test_pages_of_two_makes_of_a_product_are_named_with_the_cure(tmp_path):
    """S07, G22: falls: that all pages rest on one make of each product, one data, one settings."""
    book, notebooks, _ = whole_book(tmp_path)
    other = {"chain": {"raw": "r", "prepared": "q"}, "data_manifest": "n"}
    alter(book / "results/08_fidelity.json", lambda r: r["provenance"].update(other))
    said = refusal(book, notebooks)
    assert "prepared that they rest on" in said and "'executed/08_fidelity': 'q'" in said
    assert "02_volumes and all after it" in said and "raw that" not in said
    assert "data that they rest on" in said


def test_every_glued_number_is_that_of_a_results_file(tmp_path):
    """Falls: that a number quoted anywhere resolves to a results file."""
    book, notebooks, _ = whole_book(tmp_path)
    alter(book / "results/03_vae.json", lambda r: r["headline"].update(psnr_db=0.7))
    assert "03_vae: psnr_db is '0.5', expected 0.7 of its results" in refusal(book, notebooks)
    (book / "guides").mkdir()
    text = (
        "{glue:text}`../executed/03_vae.ipynb::ssim:s` {glue:text}`../executed/03_vae.ipynb::x:s`"
    )
    (book / "guides/a.md").write_text(text)
    said = refusal(book, notebooks)
    assert "guides/a: x of executed/03_vae is 'no glued number'" in said and "ssim of" not in said


def test_two_typed_numbers_are_caught_and_excuses_have_to_be_needed(tmp_path):
    """Falls: that nobody types a number into the text, in a page of text or in a notebook."""
    book, notebooks, _ = whole_book(tmp_path)
    (book / "limits.md").write_text("Fine.\n\nIt reached 0.91 in all.\n")
    cell = new_markdown_cell("One.\nAnd 12 % of them.", id="d")
    for path in (notebooks / "05_anomaly.ipynb", book / "executed/05_anomaly.ipynb"):
        alter(path, lambda n: n["cells"].append(cell))
    said = refusal(book, notebooks)
    assert "limits.md, line 3: a typed number is '0.91'" in said
    assert "05_anomaly.ipynb, cell 3 line 2: a typed number is '12 %'" in said
    assert said.count("E-TYPED") == 2
    excuses = 'limits.md: [{text: "reached 0.91", reason: "a bar"}]\n"*": [{text: "12 % of"}]\n'
    (book / numerals.ALLOWED).write_text(excuses)
    assert "*: 12 % of is 'without a reason'" in refusal(book, notebooks)
    (book / numerals.ALLOWED).write_text(excuses.replace("12 % of", "13 % of"))
    assert "*: 13 % of is 'of no use'" in refusal(book, notebooks)


def test_code_maths_links_versions_and_citations_are_no_typed_numbers():
    """Falls: that the check leaves alone what is no claim of ours, and sees what stands beside."""
    kept = (
        "```bash\nrun 0.1\n```\n", "`lr 0.1`", "$p < 0.05$", "[x](https://a.org/1.5)",
        "Python 3.11", "release 1.0.4", "10.1000/a.v1.5", "It was 53.8 years in one {cite}`a2020`.",
        "| 0.5 {cite}`a` |", ":::{figure} a.png\n:width: 50%\n:::", "{term}`0.5 x`", "2 brains",
    )  # fmt: skip
    for text in kept:
        assert not numerals.NUMBER.search(numerals.narrative(text)), text
    seen = (
        "It was 0.5. Others {cite}`a`.", "| 0.5 | {cite}`a` |", "::::{note}\nIn 5 % of all.\n::::",
        "five: 5 per cent", "`a` 0.5 `b`", "```{figure} a.png\nOf 1.5 T\n```\n\n```\n2.5\n```",
        "64.5%",
    )  # fmt: skip
    for text in seen:
        assert len(numerals.NUMBER.findall(numerals.narrative(text))) == 1, text


@pytest.mark.parametrize(
    "source, outputs, fault",
    [
        ("figures.plot_bars(x)", [new_output("stream", text="x")], "without image"),
        ("display(figures.plot_bars(x))\nprint(1)", [], "without image"),
        ("figures.plot_bars(x)", [new_output("display_data", PICTURE)], ""),
        ("x = 1\nx.round(2)", [], "without output"),
        ("table", [], "without output"),
        ("if len(x):\n    display(figures.plot_bars(x))", [], ""),
        ("vae.train(root)", [], ""),
    ],
)
def test_a_cell_that_promises_a_picture_or_table_has_it(source, outputs, fault):
    """Falls: that no picture or table of a page was lost; what is optional may be absent."""
    found = trace.silent_cells("p", [new_code_cell(source, outputs=outputs)])
    assert [fault in str(refused) for refused in found] == ([True] if fault else [])


def test_absent_and_unknown_images_are_refused(tmp_path):
    """Falls: that every picture of the book was drawn by a page or tool that recorded it."""
    book, notebooks, _ = whole_book(tmp_path)
    (book / "figures/mine.png").write_bytes(b"drawn by hand")
    (book / "index.md").write_text("```{figure} figures/gone.png\n```\n![](figures/anomaly.png)\n")
    said = refusal(book, notebooks)
    assert "image mine.png is 'unknown'" in said and "index: image gone.png is 'absent'" in said
    assert "anomaly" not in said
    (book / "figures/anomaly.png").write_bytes(b"another picture")
    assert "image anomaly.png is 'unknown'" in refusal(book, notebooks)


def test_a_second_part_has_its_own_numbers(tmp_path):
    """Falls: that pages on real scans are traced to their own results, beside the phantom's."""
    book, notebooks, _ = whole_book(tmp_path)
    (book / "real").mkdir()
    (book / "results/real").mkdir()
    page = book / "executed/03_vae.ipynb"
    (book / "real/03_vae.ipynb").write_text(page.read_text())
    assert "real/03_vae: page is 'page or results file is missing'" in refusal(book, notebooks)
    numbers = json.loads((book / "results/03_vae.json").read_text())
    numbers["provenance"] |= {"chain": {"raw": "other"}, "commit": "fedcba9876"}
    (book / "results/real/03_vae.json").write_text(json.dumps(numbers))
    assert refusal(book, notebooks) == ""
    assert "commit fedcba9" in extension.describe(book, "real/03_vae")


def test_footers_say_what_made_a_page_and_nothing_where_nothing_did(tmp_path):
    """Falls: that every page says data, preset, commit, digest, time and machine class."""
    book, _, _ = whole_book(tmp_path)
    line = extension.describe(book, "executed/03_vae")
    digest = record.digest(book / "results/03_vae.json")[:8]
    wanted = ("data toy", "preset small", "commit 0123456", f"results {digest}", "threads 2",
              "2026-01-01T00:00Z", "machine toy, 2 cores, 8 GB")  # fmt: skip
    assert all(word in line for word in wanted)
    assert extension.describe(book, "index") == (
        "Numbers on this page come from 03_vae (commit 0123456)."
    )
    (book / "glossary.md").write_text("No number.\n")
    assert extension.describe(book, "glossary") == ""
    context = {"body": "<p>x</p>"}
    extension.append(SimpleNamespace(srcdir=str(book)), "executed/03_vae", "", context, None)
    assert context["body"].startswith("<p>x</p><p class") and "preset small" in context["body"]
    alter(book / "results/03_vae.json", lambda r: r["provenance"].update(dirty=True))
    assert "no commit holds" in extension.describe(book, "executed/03_vae")


def make(root, name, parents=(), settings=None):
    """Make a product of one file."""
    product = record.begin(root, name, "verb", settings or {}, parents, ("space",))
    if not product.done:
        (product.folder / "table.tsv").write_text("a\n")
        product.finish()


def write(root):
    """Write the results of a stage from three products, as a notebook would."""
    record.open_root(str(root), "smoke", "phantom", True)
    for name, parents in (("raw", ()), ("cohort", ("raw",)), ("prepared", ("cohort", "raw"))):
        make(root, name, parents)
    (root / "figures").mkdir(exist_ok=True)
    (root / "figures/a.png").write_bytes(b"picture")
    headline = dict.fromkeys(record.HEADLINE["02_volumes"].split(), 1 / 3)
    return record.write_results(root, "02_volumes", headline, {}, {"seconds": 1.0}, ("prepared",))


def test_results_know_their_whole_chain_settings_data_and_figures(tmp_path):
    """G22: falls: that a results file names all it was made from, and no host."""
    about = write(tmp_path)["provenance"]
    wanted = {name: record.require(tmp_path, name) for name in ("cohort", "prepared", "raw")}
    picture = record.digest(tmp_path / "figures/a.png")
    assert about["chain"] == wanted and about["figures"] == {"a.png": picture}
    assert about["seeds"]["vae.training.seed"] == 1 and about["study"] and about["lock"]
    assert set(about["machine"]) == {"processor", "cores", "memory_gb"}
    before = about["data_manifest"]
    make(tmp_path, "raw", settings={"seed": 2})
    with pytest.raises(BadInput, match="E-STALE"):
        record.chain(tmp_path, ("prepared",))
    make(tmp_path, "cohort", ("raw",))
    with pytest.raises(BadInput, match="E-STALE prepared: its parent cohort"):
        record.chain(tmp_path, ("prepared",))
    assert before == record.products.data_digest(tmp_path)  # the same files by other settings


def test_two_runs_give_the_same_file_but_for_time(tmp_path):
    """G21: falls: that a study run twice with equal threads writes equal bytes, time apart."""
    texts = []
    for name in ("one", "two"):
        results = write(tmp_path / name)
        results["timing"], results["provenance"]["time"] = {}, ""
        texts.append(json.dumps(results, indent=1))
    assert texts[0] == texts[1]


def trained_text(root, threads):
    """Return the results file of a tiny VAE trained with that many threads, times taken out."""
    torch.set_num_threads(threads)
    plan = replace(tiny.STUDY.vae.training, volumes=48, checkpoint_every=48, validate_every=24)
    tiny.make_root(root)
    vae.train(root, replace(tiny.STUDY, vae=replace(tiny.STUDY.vae, training=plan)))
    headline = dict.fromkeys(record.HEADLINE["09_search"].split(), 0)
    headline["best_psnr_db"] = training.read_stats(root / "runs/vae")["score"].max()
    results = record.write_results(root, "09_search", headline, {}, {}, ("runs/vae",))
    results["provenance"]["time"] = ""
    return json.dumps(results), pages.spell(results["headline"]["best_psnr_db"])


def test_a_training_repeats_to_the_byte_and_other_threads_print_equal_digits(tmp_path):
    """G21, S05: falls: that equal threads give equal bytes, and other ones equal printed digits."""
    before = torch.get_num_threads()
    try:
        (one, first), (two, _), (other, second) = (
            trained_text(tmp_path / name, threads)
            for name, threads in (("a", 1), ("b", 1), ("c", 2))
        )
    finally:
        torch.set_num_threads(before)
    assert one == two and first == second
    assert '"threads": 1' in one and '"threads": 2' in other


def test_moved_numbers_are_named_and_tolerances_hold_by_class(tmp_path):
    """Falls: that `make verify` says which number of the book moved, and by how much it may."""
    book, _, _ = whole_book(tmp_path / "a")
    run, _, _ = whole_book(tmp_path / "b")
    assert pages.tell_moved(run, book) == 0
    alter(run / "results/03_vae.json", lambda r: r["headline"].update(psnr_db=0.6))
    alter(run / "results/02_volumes.json", lambda r: r["headline"].update(seconds_per_volume=4.0))
    table = pages.moved(run, book).set_index("key")
    assert table.loc["psnr_db", "now"] == 0.6 and not table["beyond"].any()
    alter(run / "results/02_volumes.json", lambda r: r["headline"].update(native_error=0.502))
    alter(run / "results/08_fidelity.json", lambda r: r["headline"].update(release=True))
    alter(run / "results/06_strata.json", lambda r: r["headline"].update(stage_gain_ci=[0.5, 0.6]))
    table = pages.moved(run, book)
    beyond = set(table.loc[table["beyond"], "key"])
    assert beyond == {
        "native_error",
        "release",
        "stage_gain_ci",
        "stage_gain_ci[0]",
        "stage_gain_ci[1]",
    }
    assert pages.tell_moved(run, book) == 1
    alter(run / "results/01_cohort.json", lambda r: r.update(preset="smoke"))
    with pytest.raises(BadInput, match="E-ROOT"):
        pages.moved(run, book)


def test_every_tolerance_is_met_by_a_number_of_the_book():
    """Falls: that the table of tolerances has no dead line, and a ledger's number may not move."""
    used = set()
    for path in sorted((pages.REPOSITORY / "book/results").glob("[01]*.json")):
        results = json.loads(path.read_text())
        for key, value in tolerances.flat(results["headline"]):
            if isinstance(value, float):
                row = tolerances.judge(path.stem, key, value, value * 1.0001 + 1e-9)
                used.add((row["allowed"], row["why"]))
                assert row["beyond"] == (row["why"] == "read from the ledger"), key
    assert used == {(f"{kind} {amount:g}", why) for _, kind, amount, why in tolerances.TOLERANCES}

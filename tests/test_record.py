"""Products, digests and results: what is current, what changed, what is damaged."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from dsnb import record
from dsnb.checks import BadInput


def make(root, name="cohort", settings=None, parents=()):
    """Make a product of one file the way that every verb does."""
    product = record.begin(root, name, "verb", settings or {}, parents, ("space",))
    if not product.done:
        (product.folder / "table.tsv").write_text("a\n1\n")
        product.finish()
    return product


def test_a_current_product_is_kept(tmp_path, capsys):
    """Running a verb again with nothing changed does nothing and says so."""
    make(tmp_path)
    before = (tmp_path / "cohort/table.tsv").stat().st_mtime_ns
    assert record.begin(tmp_path, "cohort", "verb", {}, (), ("space",)).done
    assert (tmp_path / "cohort/table.tsv").stat().st_mtime_ns == before
    assert "nothing changed" in capsys.readouterr().err


def test_changed_settings_are_named_and_make_it_again(tmp_path, capsys):
    """A product of other settings is never taken for the present one."""
    make(tmp_path)
    product = record.begin(tmp_path, "cohort", "verb", {"seed": 2}, (), ("space",))
    assert not product.done and not (tmp_path / "cohort/table.tsv").exists()
    assert "settings changed" in capsys.readouterr().err


def test_a_killed_verb_goes_on(tmp_path):
    """Files of an unfinished product with the same key survive."""
    record.begin(tmp_path, "cohort", "verb", {}, (), ("space",))
    (tmp_path / "cohort/half.tsv").write_text("kept")
    assert not record.begin(tmp_path, "cohort", "verb", {}, (), ("space",)).done
    assert (tmp_path / "cohort/half.tsv").read_text() == "kept"


def test_missing_damaged_and_stale_parents_are_named(tmp_path):
    """S07: a stage never runs on an absent, altered or foreign input."""
    with pytest.raises(BadInput, match="E-MISSING cohort.*stage 01_cohort"):
        record.require(tmp_path, "cohort")
    make(tmp_path)
    make(tmp_path, "prepared", parents=("cohort",))
    (tmp_path / "prepared/table.tsv").write_text("a\n2\n")
    with pytest.raises(BadInput, match="E-DAMAGED.*table.tsv was altered"):
        record.require(tmp_path, "prepared")
    (tmp_path / "prepared/table.tsv").write_text("a\n1\n")
    assert record.require(tmp_path, "prepared")
    make(tmp_path, settings={"seed": 2})
    with pytest.raises(BadInput, match="E-STALE.*parent cohort"):
        record.require(tmp_path, "prepared")


def test_a_foreign_folder_is_left_alone(tmp_path):
    """A user's own folder named like a product is refused, not emptied."""
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps/mine.txt").write_text("precious")
    with pytest.raises(BadInput, match="E-FOREIGN"):
        record.begin(tmp_path, "maps", "map", {}, (), ("space",))
    assert (tmp_path / "maps/mine.txt").read_text() == "precious"


def test_a_root_holds_one_study(tmp_path):
    """Products of two presets never mix in one folder."""
    record.open_root(str(tmp_path), "smoke", "phantom", True)
    assert record.open_root(str(tmp_path), "smoke", None, True) == tmp_path
    with pytest.raises(BadInput, match="E-ROOT"):
        record.open_root(str(tmp_path), "small", None, True)


def test_results_need_every_key_and_a_reason_for_null(tmp_path):
    """A headline key cannot go missing and a null cannot go unexplained."""
    record.open_root(str(tmp_path), "smoke", "phantom", True)
    make(tmp_path, "runs/search")
    headline = {"trials": 2, "best_psnr_db": 20.12345678, "default_psnr_db": None, "ablations": 0}
    reasons = {"reasons": {"default_psnr_db": "not measured"}}
    parents = ("runs/search",)
    with pytest.raises(ValueError, match="no reason for"):
        record.write_results(tmp_path, "09_search", headline, {}, {}, parents)
    with pytest.raises(ValueError, match="lacks"):
        record.write_results(tmp_path, "09_search", {"trials": 2}, {}, {}, parents)
    with pytest.raises(ValueError, match="not finite"):
        bad = {**headline, "best_psnr_db": float("nan")}
        record.write_results(tmp_path, "09_search", bad, reasons, {}, parents)
    record.write_results(tmp_path, "09_search", headline, reasons, {}, parents)
    written = json.loads((tmp_path / "results/09_search.json").read_text())
    assert written["headline"]["best_psnr_db"] == 20.1235
    assert written["provenance"]["parents"] == {parents[0]: record.require(tmp_path, parents[0])}


def test_comments_do_not_change_the_code_digest(tmp_path, monkeypatch):
    """Only code that can change a result makes a product outdated."""
    monkeypatch.setattr(record.files, "HOME", tmp_path)
    digests = []
    for name, text in (("a", '"""Doc."""\nx = 1\n'), ("b", "x = 1  # why\n"), ("c", "x = 2\n")):
        (tmp_path / f"{name}.py").write_text(text)
        digests.append(record.code_digest(name))
    assert digests[0] == digests[1] != digests[2]


def test_verbs_that_begin_at_once_keep_each_others_files(tmp_path):
    """Shards of one job open an outdated product together: nobody clears what another wrote."""
    for trial in range(5):
        make(tmp_path, settings={"trial": trial})
        changed, together = {"trial": trial + 1}, Barrier(6)

        def begin(shard, changed=changed, together=together):
            together.wait()
            product = record.begin(tmp_path, "cohort", "verb", changed, (), ("space",))
            (product.folder / f"{shard}.tsv").write_text("a\n")

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(begin, range(6)))
        assert len(list((tmp_path / "cohort").glob("?.tsv"))) == 6


def test_any_change_of_package_or_notebooks_is_dirty(tmp_path, monkeypatch):
    """S06: falls: that a run of changed or new code is stamped as such, and no other is."""
    home, git = tmp_path / "dsnb", ["git", "-C", str(tmp_path), "-c", "user.name=a"]
    for name in ("dsnb/a.py", "notebooks/01.ipynb", "README.md"):
        record.write_text(tmp_path / name, "x = 1\n")
    words = ("init", "-q"), ("add", "."), ("-c", "user.email=a@b.c", "commit", "-qm", "first")
    for word in words:
        subprocess.run([*git, *word], check=True)
    monkeypatch.setattr(record.files, "HOME", home)
    look = record.commit.__wrapped__
    assert look()["dirty"] is False
    record.write_text(tmp_path / "README.md", "other")
    assert look()["dirty"] is False
    for name in ("dsnb/a.py", "dsnb/new.py", "notebooks/01.ipynb"):
        record.write_text(tmp_path / name, "x = 2\n")
        assert look()["dirty"] is True
        subprocess.run([*git, "checkout", "-q", "."], check=True)
        (home / "new.py").unlink(missing_ok=True)

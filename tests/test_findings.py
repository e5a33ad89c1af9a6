"""Findings: the claim follows the numbers, whichever way they fall, and a null gives its reason."""

import copy
import json
import re

import pytest

from dsnb import pages, record
from dsnb.pages import wording

COMMITTED = pages.REPOSITORY / "book" / "results"
NOTEBOOKS = pages.REPOSITORY / "notebooks"


def committed(stage):
    return json.loads((COMMITTED / f"{stage}.json").read_text())


def planted(stage, number, headline=(), **rows):
    """Return the finding of committed results after some of their values were changed."""
    results = copy.deepcopy(committed(stage))
    results["headline"] |= dict(headline)
    for name, (where, values) in rows.items():
        for row in results["tables"][name]:
            if where.items() <= row.items():
                row |= values
    return pages.tell(results)[number - 1]


@pytest.mark.parametrize("stage", record.STAGES)
def test_every_stage_has_one_to_four_findings_with_numbers(stage):
    """Falls: that the index can glue findings of any stage, and that they are sentences."""
    found = pages.tell(committed(stage))
    assert 1 <= len(found) <= 4
    for one in found:
        assert one["title"] and not one["title"].endswith(".") and one["text"].endswith(".")
        assert "not computed" in one["title"] or re.search(r"\d", one["text"])
        assert not re.search(r"sub-|[`*_]{2}|\bnan\b|None", one["title"] + one["text"])
    assert len(pages.glued(committed(stage))) == 2 * len(found)


@pytest.mark.parametrize("stage", record.STAGES)
def test_a_stage_without_numbers_says_so_as_often(stage):
    """Falls: that a cohort too small for everything still builds a book, with reasons."""
    empty = {"stage": stage, "headline": dict.fromkeys(committed(stage)["headline"])}
    empty["tables"] = {"reasons": dict.fromkeys(empty["headline"], "too few people")}
    found = pages.tell(empty)
    assert len(found) == len(pages.tell(committed(stage)))
    assert all("not computed" in one["title"] and "The reason is" in one["text"] for one in found)


@pytest.mark.parametrize(
    "stage, number, key, claims",
    [
        (
            "05_anomaly",
            1,
            "lift_ratio_ci",
            ("Plain statistics find", "not shown", "The deep norm f"),
        ),
        ("06_strata", 1, "auc_ds_gain_ci", ("volumes tell", "not shown", "Latents tell")),
        ("06_strata", 2, "hard_gain_ci", ("volumes beat", "not shown", "latents beat")),
        ("06_strata", 3, "stage_gain_ci", ("worse", "not shown", "Latents add")),
        ("08_fidelity", 1, "effect_correlation_ci", ("against", "not shown", "right pattern")),
        ("04_latents", 2, "ds_like_slope_ci", ("too little", "as much", "too much")),
    ],
)
def test_the_sign_of_an_interval_chooses_the_claim(stage, number, key, claims):
    """Falls: that no page states a result which its own numbers do not bear."""
    at = 1 if "ratio" in key or "slope" in key else 0
    for (low, high), claim in zip(((-0.9, -0.1), (-0.1, 0.1), (0.1, 0.9)), claims):
        found = planted(stage, number, {key: [at + low, at + high]})
        assert claim in found["title"], found["title"]


def test_claims_against_us_come_and_go_with_the_table():
    """Falls: that a map without a subject, a copy, a silent map or a blunt door is told as such."""
    beaten = {"lift_low": 0.3, "lift_high": 0.4, "lift": 0.35}
    found = planted("05_anomaly", 2, norms=({"norm": "undo"}, beaten))
    assert found["title"].startswith("The best norm") and "0.35 (0.3 to 0.4)" in found["text"]
    flagged = {"flagged": 12, "share": 0.2, "low": 0.1, "high": 0.3}
    found = planted("05_anomaly", 3, flagged=({"people_of": "euploid test"}, flagged))
    assert found["title"].startswith("12 of 60 healthy people are flagged, too many")
    assert "20 % (95 % interval 10 to 30)" in found["text"]
    assert "changed voxels are found" in planted("05_anomaly", 3, {"power_at_q05": 0.5})["title"]
    for release, said in ((True, "may leave"), (False, "may not"), ("not valid", "not valid")):
        assert planted("08_fidelity", 4, {"release": release})["title"].startswith(
            f"Samples: {said}"
        )
    assert "change the answer" in planted("10_scaling", 1, {"parity_error": 1e-3})["title"]


def test_planted_scans_are_not_told_as_people_with_ds():
    """Falls: that a cohort in which nobody has DS is not said to hold people with DS."""
    found = planted("01_cohort", 1, {"subjects": 46, "euploid": 46, "ds": 32})
    assert found["title"].startswith("Nobody in this cohort has Down syndrome")


def test_a_null_gives_the_reason_of_the_results():
    """Falls: that "not computed" is told with the reason which the stage wrote."""
    results = committed("03_vae")
    results["headline"]["psnr_db_floor"] = None
    results["tables"]["reasons"]["psnr_db_floor"] = "real scans have no noise-free self"
    found = pages.tell(results)[1]
    assert found["title"] == "Reconstruction beside the noise: not computed"
    assert "psnr_db_floor: real scans have no noise-free self" in found["text"]


@pytest.mark.parametrize("stage", record.STAGES)
def test_any_value_or_table_may_be_absent(stage):
    """Falls: that a cohort which lacks one number or table still gets its page."""
    results = committed(stage)
    count = len(pages.tell(results))
    for part, keys in (("headline", results["headline"]), ("tables", results["tables"])):
        for key in keys:
            for gone in (None, []) if part == "tables" else (None,):
                assert len(pages.tell(results | {part: keys | {key: gone}})) == count, key


def test_a_row_is_picked_and_a_missing_one_is_named():
    """Known answers of the three small tools behind every claim."""
    tables = {"t": [{"a": 1, "b": None}, {"a": 2, "b": 3}], "d": {"b": 4}}
    assert wording.pick(tables, "t", "b a", a=2) == [3, 2]
    assert wording.pick(tables, "d", "b") == [4]
    for where in ({"a": 1}, {"a": 9}):
        with pytest.raises(LookupError, match="table t has no b"):
            wording.pick(tables, "t", "b", **where)
    sides = [wording.choose(pair, 0, "<", "=", ">") for pair in ([-2, -1], [-1, 0], [0, 1], [1, 2])]
    assert sides == ["<", "=", "=", ">"]
    assert wording.within(0.1, 0.01, 0.25) == "0.1 (95 % interval 0.01 to 0.25)"


def test_show_prints_findings_and_glues_them(monkeypatch):
    """Falls: that the index and a page's top can show what the page found."""
    shown, names = [], {}
    monkeypatch.setattr("dsnb.pages.notebook.display", shown.append)
    monkeypatch.setattr(
        "dsnb.pages.notebook.glue", lambda key, value, display: names.update({key: value})
    )
    table = pages.show(committed("06_strata"))
    assert {"finding_1", "finding_4_text", "auc_ds"} <= set(names)
    assert "finding_1" not in table.index
    assert f"**{names['finding_1']}.** {names['finding_1_text']}" in shown[0].data


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_page_opens_with_its_findings_and_ends_with_their_limits(path):
    """Falls: that a page says what was found and done, how far to trust it, and how to rerun it."""
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    count = len(pages.tell(committed(path.stem)))
    glues = re.findall(r"`finding_(\d)(?:_text)?:s`", cells[0])
    assert glues == [str(n) for n in range(1, count + 1) for _ in "ab"]
    text = "\n".join(cells)
    for heading in (
        "What we found",
        "What we did",
        "How far to trust it",
        "Run it on your own data",
    ):
        assert text.count(f"\n## {heading}\n") + text.startswith(f"## {heading}\n") == 1, heading
    assert "**What would change our mind:**" in text and "$$" in cells[0]
    assert f"papermill notebooks/{path.name} " in text


def test_the_book_glues_findings_that_exist():
    """Falls: that no page of the book waits for a finding which its stage does not have."""
    seen = 0
    for page in sorted((pages.REPOSITORY / "book").glob("*.md")):
        for stage, key in re.findall(r"(\d\d_\w+)\.ipynb::(finding_\w+):s", page.read_text()):
            assert key in pages.glued(committed(stage)), f"{page.name}: {stage} {key}"
            seen += 1
    assert seen >= 20

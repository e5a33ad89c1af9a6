"""The attack kit: text that some shell, path, page or spreadsheet would act on, at every door.

The fifth door, the job scripts, stands in test_cluster.py.
"""

import pytest

from dsnb import __main__ as command_line
from dsnb import bids, pages
from dsnb.checks import BadInput

KIT = (
    "$(touch CANARY)", "`touch CANARY`", "; touch CANARY", "| tee CANARY", "> CANARY",
    "../../CANARY", "/CANARY", "..", "--help", "-rf", "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))", "{{7*7}}", "```{include} /etc/passwd", "=cmd|' /C calc'!A0",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_canary(tmp_path, monkeypatch):
    """Whatever a test hands over is written to disk nowhere, neither here nor above."""
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    yield
    assert not list(tmp_path.rglob("*CANARY*"))


HEADER = "participant_id\tage\tsex\tgroup\tsite\n"


@pytest.mark.parametrize("column", ["participant_id", "group", "site"])
@pytest.mark.parametrize("text", KIT)
def test_a_table_refuses_it(text, column, tmp_path):
    """G29, doors 1 and 2. Falls: that an id and a cell are known words, or plain labels."""
    sound = dict(zip(HEADER.split(), ("sub-02", "31", "F", "DS", "Zürich-1")))
    for name, row in (("sound", sound), ("spoilt", sound | {column: text})):
        table = HEADER + "sub-01\t30\tF\tcontrol\tA\n" + "\t".join(row.values()) + "\n"
        (tmp_path / "participants.tsv").write_text(table)
        problems = bids.read_participants(tmp_path)[1]
        assert len(problems) == (name == "spoilt")
    assert repr([f"line 3: {text}"]) in str(problems[0])


@pytest.mark.parametrize("text", [text for text in KIT if set(text) & set("$`;|><{=:")])
def test_a_label_refuses_it_behind_a_good_start(text, tmp_path):
    """G29. Falls: that a label is plain to its end."""
    row = "\t".join(("sub-02", "31", "F", "DS", f"A{text}"))
    (tmp_path / "participants.tsv").write_text(f"{HEADER}sub-01\t30\tF\tcontrol\tA\n{row}\n")
    (problem,) = bids.read_participants(tmp_path)[1]
    assert problem.code == "E-LABEL" and repr([f"line 3: A{text}"]) in str(problem)


@pytest.mark.parametrize("text", KIT)
def test_a_notebook_refuses_it(text, tmp_path):
    """G29, door 3. Falls: that papermill's parameters are a known preset and an existing folder."""
    names = {"preset": "smoke", "data_root": str(tmp_path / "root"), "raw": ""}
    with pytest.raises(BadInput, match="E-PRESET") as refused:
        pages.open_notebook(names | {"preset": text})
    assert repr(text) in str(refused.value)
    with pytest.raises(BadInput, match="E-PARAM"):
        pages.open_notebook(names | {text: "x"})
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("text", KIT)
def test_the_settings_refuse_it(text, capsys):
    """G29, door 4. Falls: that settings are typed, known words."""
    with pytest.raises(BadInput, match="E-PRESET") as refused:
        command_line.parse(["study", "--preset", text])
    assert repr(text) in str(refused.value)
    for flag in ("--vae.architecture", "--vae.width", "--start"):
        with pytest.raises(SystemExit) as ended:
            command_line.parse(["study", f"{flag}={text}"])
        assert ended.value.code == 2

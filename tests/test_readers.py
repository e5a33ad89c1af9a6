"""The blinded reader pack: nobody is named, the key fits, agreement has known answers."""

import numpy as np
import pandas as pd
import pytest

from dsnb import bids, dataset, figures, readers, record
from dsnb.anomaly.maps import map_path
from dsnb.checks import BadInput
from dsnb.config import SMOKE

GRID = SMOKE.grid


@pytest.fixture
def drawn(monkeypatch):
    """Return the list of figures that are saved from now on."""
    made, save = [], figures.save_figure
    monkeypatch.setattr(figures, "save_figure", lambda *how: (made.append(how[0]), save(*how)))
    return made


@pytest.fixture
def pack(tmp_path, monkeypatch, drawn):
    """Return the folder of a pack of six people a group."""
    table = pd.DataFrame({"participant_id": [f"sub-{row}" for row in range(14)],
                          "group": ["euploid"] * 8 + ["DS"] * 6, "kind": "recorded",
                          "split": ["fit"] * 2 + ["test"] * 12})  # fmt: skip
    volumes = np.ones((14, *GRID.shape), np.float32)
    monkeypatch.setattr(record, "require", lambda root, name: "key")
    monkeypatch.setattr(dataset, "load_table", lambda root: table)
    monkeypatch.setattr(dataset, "load_volumes", lambda root: volumes)
    for row, name in enumerate(table["participant_id"]):
        path = map_path(tmp_path / "maps", name, "z", GRID)
        bids.save_volume(path, np.full(GRID.shape, row / 2, np.float32), GRID)
    monkeypatch.setattr(readers, "CASES", 5)
    return readers.make_pack(tmp_path, SMOKE)


def test_a_pack_is_blind_and_its_key_fits(pack):
    """Falls: that a reader cannot know who is who, and that the key can be matched later."""
    files = sorted(path.name for path in pack.iterdir())
    assert files == ["README.md", *(f"case-{n:02d}.png" for n in range(1, 11)), "key",
                     "rating_sheet.tsv"]  # fmt: skip
    told = (pack / "README.md").read_text() + (pack / readers.SHEET).read_text()
    assert "sub-" not in told and "DS" not in told and "No reader has used it yet" in told
    key = bids.read_table(pack / "key" / readers.KEY)
    assert key["group"].value_counts().to_dict() == {"euploid": 5, "DS": 5}
    turns = (key["group"] != key["group"].shift()).sum()
    assert turns > 2 and list(key) == ["case", "group"]  # one group does not follow the other


def test_all_cases_share_one_stated_scale(pack, drawn):
    """Falls: that cases compare, and no bar tells a group; the maps' largest z is 1 to 6.5."""
    assert len(drawn) == 10 and {figure.axes[-1].get_ylim() for figure in drawn} == {(-6, 6)}
    told = " ".join((pack / "README.md").read_text().split())
    assert "from -6 (blue, smaller or darker) to 6 (red)" in told and "none within +-2" in told


def test_agreement_is_that_of_the_planted_ratings(pack):
    """Falls: sensitivity, specificity and kappa; by hand: 4/5, 5/5, and kappa of one slip 0.8."""
    key = bids.read_table(pack / "key" / readers.KEY)
    truth = (key["group"] == "DS").astype(int)
    slip = truth.copy()
    slip[truth.idxmax()] = 0
    for name, rated in (("a.tsv", truth), ("b.tsv", slip)):
        sheet = pd.DataFrame({"case": key["case"], "abnormal": rated})
        bids.write_table(pack / name, sheet.iloc[:: 1 if name == "a.tsv" else -1])  # any order
    sheets = [pack / "a.tsv", pack / "b.tsv"]
    said = readers.agree(sheets, pack / "key" / readers.KEY)
    assert said[0].startswith("a.tsv: sensitivity 5/5") and "specificity 5/5" in said[0]
    assert "b.tsv: sensitivity 4/5 (0.28 to 0.99), specificity 5/5" in said[1]
    assert said[2] == "a.tsv and b.tsv: kappa 0.80"
    bids.write_table(pack / "short.tsv", sheet.iloc[1:])
    with pytest.raises(BadInput, match="E-SHEET short.tsv: abnormal of case-01 is 'nan'"):
        readers.agree([pack / "short.tsv"], pack / "key" / readers.KEY)
    with pytest.raises(BadInput, match="E-SHEET rating_sheet.tsv: abnormal of case-01"):
        readers.agree([pack / readers.SHEET], pack / "key" / readers.KEY)

"""Staging with further people: what adds is told from what does not, and real people stay real."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dsnb.checks import BadInput
from dsnb.config import Strata, load_study
from dsnb.search import latent_kinds, stages
from dsnb.space import STAGES
from dsnb.strata import crossval

SETTINGS = Strata(outer_folds=3, inner_folds=2, penalties=(0.1, 1.0), bootstraps=100)
COUNT = 150


def make() -> tuple[pd.DataFrame, np.ndarray, tuple, np.ndarray]:
    """Return a table, its stages as numbers, columns that know a little, and what is left."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, COUNT)
    table = pd.DataFrame({"family": [f"f{i:03d}" for i in range(COUNT)], "seen_by": "n/a",
                          "stage": np.array(list(STAGES))[target]})  # fmt: skip
    known = (target + rng.normal(0, 1.5, COUNT))[:, None]
    return table, target, (known,), rng.standard_normal((COUNT, 20))


def test_what_adds_to_known_columns_is_told_from_what_does_not():
    """Falls: the answer of page 06 to "do latents pay with more people": gain, paired by person."""
    table, target, known, noise = make()
    knows = noise.copy()
    knows[:, 0] += 3 * target
    rows = stages.ask(table, known, {"knows": knows, "noise": noise}, SETTINGS)
    found = {row["features"]: row for row in rows}
    assert [*found] == [stages.KNOWN, f"{stages.KNOWN}, knows", f"{stages.KNOWN}, noise"]
    assert found[f"{stages.KNOWN}, knows"]["gain_low"] > 0.1
    assert -0.1 < found[f"{stages.KNOWN}, noise"]["gain"] < 0.03  # beside what is known
    assert found[stages.KNOWN]["people"] == COUNT and "gain" not in found[stages.KNOWN]


def test_people_of_a_real_study_cannot_be_drawn(tmp_path, monkeypatch):
    """Falls: that phantom people are never laid beside networks of real scans."""
    real = {"preset": "small", "data": "ds000", "cohort": "0"}
    monkeypatch.setattr(stages.dataset, "identify", lambda root: real)
    with pytest.raises(BadInput, match="E-ROOT"):
        stages.stage_more(tmp_path, load_study("small"))


def test_further_people_are_others_of_all_stages(tmp_path, monkeypatch):
    """Falls: that no network saw them: they lie in a root of their own, of another seed."""
    seen, study = [], load_study("small")
    monkeypatch.setattr(stages.phantom, "make_cohort", lambda root, drawn: seen.append(drawn))
    monkeypatch.setattr(stages.cohort, "gather", lambda root, drawn: None)
    monkeypatch.setattr(stages.volumes, "prepare", lambda root, drawn: None)
    more = stages.draw_people(tmp_path / "data", study)
    assert more == tmp_path / "data-more" and (more / "study.json").is_file()
    drawn = seen[0].cohort
    assert drawn.seed != study.cohort.seed and drawn.ds >= max(stages.COUNTS)
    assert seen[0].grid == study.grid


def test_a_latent_is_compared_with_what_was_known_before():
    """Falls: the gain in the ledger of latents: over the same people's answer from volumes."""
    table, target, known, noise = make()
    questions = object.__new__(latent_kinds.Questions)
    asked = SimpleNamespace(table=table, target=target)
    base = crossval.predict(table, target, SETTINGS, crossval.Features(columns=known))
    questions.settings, questions.asked, questions.known = SETTINGS, {"stage": asked}, {
        "stage": base}  # fmt: skip
    same = questions.score("stage", "volumes again", base)
    assert same["gain"] == same["gain_low"] == same["gain_high"] == 0
    perfect = np.eye(3)[target]
    better = questions.score("stage", "truth", perfect)
    assert better["gain"] == pytest.approx(1 - same["auc"]) and better["gain_low"] > 0

"""Coverage of intervals: a right one is judged right, a narrow one is called, truths are truths."""

import json

import numpy as np
import pytest
from scipy import stats

from dsnb import record, scaling
from dsnb.anomaly import metrics
from dsnb.anomaly.people import CANDIDATES, PRIMARY
from dsnb.checks import BadInput
from dsnb.config import SMALL, Cohort, Maps, Strata, replace
from dsnb.phantom import people
from dsnb.record import ledger
from dsnb.scaling.ledgers import judge_coverage
from dsnb.search import claims, coverage, unrendered
from dsnb.strata import crossval
from dsnb.strata.crossval import Features

SETTINGS = Strata(outer_folds=3, inner_folds=2, penalties=(0.1, 1.0), bootstraps=50)
SOME = Cohort(euploid=40, ds=30, seed=5)


@pytest.fixture
def ledgers(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path / "ledger")
    return tmp_path / "ledger"


def fill(ledgers, width: float, cohorts: int = 100):
    """Write rows of a mean's interval, `width` times as wide as 95 % need, around a truth of 3."""
    rng, rows = np.random.default_rng(1), []
    for seed in range(cohorts):
        values = 3 + rng.standard_normal(50)
        half = width * stats.t.ppf(0.975, 49) * stats.sem(values)
        mean = float(values.mean())
        limits = [mean - half, mean, mean + half]
        found = {"06 own": [*limits, 3.0], "08 unbiased": [*limits, None]}
        row = {"preset": "small", "data": "phantom", "part": "toy", "seed": seed,
               "code": record.code_digest(*coverage.CODE), "intervals": found}  # fmt: skip
        rows.append(json.dumps(row) + "\n")
    ledgers.mkdir(exist_ok=True)
    (ledgers / f"{coverage.LEDGER}.jsonl").write_text("".join(rows))


def test_a_right_interval_is_judged_right_and_a_narrow_one_is_called(ledgers):
    """Falls: the verdicts of the table. Exact t intervals, then the same at half their width."""
    fill(ledgers, 1.0)
    table, about = scaling.read_coverage("phantom")
    assert about["rows"] == 100 and about["stale"] == 0
    assert table["page"].tolist() == ["06", "08"] and table["cohorts"].eq(100).all()
    assert table["covered"].between(93, 97).all() and table["verdict"].str.startswith("as").all()
    assert (table["truth"] - 3).abs().max() < 0.05  # without a truth, the mean of the values
    fill(ledgers, 0.5)
    table = scaling.read_coverage("phantom")[0]
    assert table["covered"].between(55, 80).all() and (table["verdict"] == "too rarely").all()
    fill(ledgers, 2.0)
    assert (scaling.read_coverage("phantom")[0]["verdict"] == "too often").all()


def test_the_verdict_knows_chance():
    """Falls: that 91 of 100 is told from 80 of 100: the first is within chance of 95 %."""
    assert judge_coverage(91, 100)["verdict"] == "too rarely, within chance"
    assert judge_coverage(80, 100)["verdict"] == "too rarely"
    assert judge_coverage(93, 100)["verdict"] == judge_coverage(97, 100)["verdict"]
    assert judge_coverage(91, 100)["low"] < 0.95 < judge_coverage(91, 100)["high"]


def test_people_are_those_the_phantom_would_render():
    """Falls: that cohorts are the phantom's: regions by its own stream, disease by its targets."""
    some = unrendered.draw(SOME, SMALL.grid)
    assert some.ds.sum() == 30 and some.logs.shape == (70, 16)
    again = unrendered.draw(SOME, SMALL.grid)
    other = unrendered.draw(replace(SOME, seed=6), SMALL.grid)
    assert np.array_equal(some.logs, again.logs) and not np.allclose(some.logs, other.logs)
    row = some.table.iloc[0].to_dict()
    rng = people.stream(SOME.seed, row, "regions")
    rng.normal(0, people.AXES_SD, (3, 1, 1, 1))
    spread = unrendered.fields.CONSTANTS
    wanted = spread["spread"] * people.draw_regions(rng)
    wanted += spread["decade"] * (max(row["age"], 30) - 30) / 10
    wanted += spread["male"] * (0.5 if row["sex"] == "M" else -0.5)
    base = unrendered._template_logs(SMALL.grid)
    assert np.allclose(some.true[0] - base, wanted)
    healthy = unrendered.true_logs(some.table.assign(factor=0.0), SOME.seed, SMALL.grid)
    ill = some.table.iloc[-1]
    change = unrendered.fields.targets(ill["progress"], ill["factor"])
    assert np.allclose((some.true - healthy)[-1], change)
    assert np.allclose(some.true[:40], healthy[:40])


def test_the_truth_of_a_classifier_is_that_of_its_folds():
    """Falls: that a cohort's answers are the page's, and its truth that of the same models."""
    rng, target = np.random.default_rng(0), np.arange(4060) % 2
    values = rng.standard_normal((4060, 5)) + target[:, None] * [1, 0, 0, 0, 0]
    some = unrendered.draw(SOME, SMALL.grid).table.iloc[:60]
    table = some.loc[some.index.repeat(68)].iloc[:4060].reset_index(drop=True)
    table["family"] = [f"f{place:04d}" for place in range(4060)]
    answers = claims.answer(table, target, SETTINGS, Features(columns=(values,)), 60, 2)
    own = Features(columns=(values[:60],))
    wanted = crossval.predict(table.iloc[:60], target[:60], SETTINGS, own, repeats=2)
    assert np.allclose(answers[:60], wanted)
    truth = crossval.agreement(target[60:], answers[60:])
    best = stats.norm.cdf(1 / np.sqrt(2))
    assert best - 0.1 < truth < best + 0.02


def test_upper_bounds_and_exact_intervals_hold_by_calculation(monkeypatch):
    """Falls: that an attack's truth is its planted AUC, and that exact intervals never fall short.

    Of counts, by summing over all of them at many true shares; of an attack, over 200 draws.
    """
    for people_count in (30, 45, 60):
        rows = [metrics.flagged(np.arange(people_count)[:, None] >= count, 0.5)
                for count in range(people_count + 1)]  # fmt: skip
        for share in np.linspace(0.01, 0.99, 25):
            held = [row["low"] <= share <= row["high"] for row in rows]
            chance = stats.binom.pmf([row["flagged"] for row in rows], people_count, share)
            assert (chance * held).sum() >= 0.95
    rng, members, others = np.random.default_rng(2), np.arange(290) < 90, np.arange(415) < 105
    found = [claims.ask_attacks(members, others, rng) for _ in range(200)]
    for name, auc in claims.ATTACKS.items():
        low, value, upper, truth = np.array([one[f"08 {name}"] for one in found]).T
        assert (truth == auc).all() and abs(value.mean() - auc) < 0.006
        assert 0.91 < (upper >= truth).mean() < 0.99
        assert 0.75 < (upper - 0.5 * (upper - value) >= truth).mean() < 0.9  # half as wide: called


def test_page_five_is_asked_of_redrawn_people():
    """Falls: that lifts are redrawn from the study's own people, with its choice of a rival."""
    rng, settings = np.random.default_rng(0), Maps(bootstraps=200)
    lifts = rng.normal(0.1, 0.05, (len(CANDIDATES), 45))
    each = {c.name: {"lift": v.tolist(), "gain": (v / 2).tolist()}
            for c, v in zip(CANDIDATES, lifts)}  # fmt: skip
    found = [claims.ask_maps(each, settings, seed) for seed in range(60)]
    truth = np.mean(each[PRIMARY]["lift"])
    values = np.array([one["05 lift"] for one in found])
    assert np.allclose(values[:, 3], truth) and abs(values[:, 1].mean() - truth) < 0.003
    assert ((values[:, 0] <= truth) & (truth <= values[:, 2])).mean() > 0.85
    assert len({*values[:, 1]}) == 60  # no two groups are the same people
    best = max(np.mean(each[c.name]["lift"]) for c in CANDIDATES if not c.deep)
    assert found[0]["05 lift_ratio_ci"][3] == pytest.approx(truth / best)
    assert {"05 gain_ratio_ci", "05 euploids_flagged", "05 fdp_at_q05"} < {*found[0]}


def test_a_cohort_is_drawn_once_and_real_people_have_no_truth(ledgers, tmp_path, monkeypatch):
    """Falls: that the ledger resumes, a row a cohort and part, and is filled by phantoms only."""
    asked = []
    monkeypatch.setattr(coverage, "COHORTS", 2)
    monkeypatch.setattr(coverage.record, "file_digest", lambda *words: "of")
    monkeypatch.setattr(coverage, "_draw", lambda root, study, part, seed: asked.append(
        (part, seed)) or {"06 auc_ds": [0.1, 0.2, 0.3, 0.2]})  # fmt: skip
    root = record.open_root(str(tmp_path / "root"), "small", None, True)
    for _ in range(2):
        coverage.draw_cohorts(root, SMALL)
    assert len(asked) == len({*asked}) == 2 * (1 + len(coverage.PARTS))
    assert scaling.read_coverage("phantom")[0]["covered"].tolist() == [len(asked)]
    monkeypatch.setattr(coverage.record, "read_mark", lambda root: {"data": "ds000"})
    with pytest.raises(BadInput, match="E-ROOT"):
        coverage.draw_cohorts(root, SMALL)

"""The hard arm: who is planted, what tells them apart, and which severity is chosen."""

import dataclasses
import json

import numpy as np
import pytest
from test_anomaly import STUDY, make_source

from dsnb import scaling
from dsnb.config import Strata
from dsnb.record import code_digest, ledger
from dsnb.search import hard

SETTINGS = Strata(outer_folds=3, inner_folds=2, penalties=(0.1, 1.0), bootstraps=50)


def test_only_half_is_planted_and_everybody_is_shifted(monkeypatch):
    """Falls: that nobody is told by resampling; at severity 0 both halves are only shifted."""
    source, seen = make_source(), []
    rows = source.rows("euploid", *hard.SPLITS)[:12]

    def field(grid, severity, seed):
        seen.append((severity, seed))
        return np.zeros((3, *grid.shape), np.float32), None

    monkeypatch.setattr(hard.phantom, "disease_displacement", field)
    monkeypatch.setattr(source, "from_volumes", lambda table, volumes, moved: volumes)
    volumes, target = hard.plant(source, rows, 0.3, 2)
    assert target.sum() == 6 == len(seen) and len({seed for _, seed in seen}) == 6
    own = hard.rivals.without_halo(source.volumes[rows])
    changed = [np.abs(one - other).mean() for one, other in zip(volumes, own)]
    assert min(changed) > 0.005
    assert np.abs(np.mean(np.array(changed)[target == 1]) / np.mean(changed) - 1) < 0.5
    assert hard.plant(source, rows, 0.3, 1)[1].tolist() != target.tolist()


def test_what_tells_them_apart_is_found(monkeypatch):
    """Falls: the table of faint disease: a change of log volume is seen by who reads volumes."""
    source = make_source()
    source.study = dataclasses.replace(STUDY, strata=SETTINGS)
    rows = source.rows("euploid", *hard.SPLITS)
    table = source.table.iloc[rows].assign(seen_by="").reset_index(drop=True)
    target = np.random.default_rng(0).permutation(np.arange(len(rows)) % 2)
    people = source.people(rows)
    place = source.regions[0]
    changed = people.log_jacobian - 0.5 * target[:, None] * place
    people = dataclasses.replace(people, log_jacobian=changed.astype(np.float32))
    statistics = {"mean": np.zeros(1), "std": np.ones(1)}
    found = {r["features"]: r for r in hard.judge(source, table, people, target, statistics)}
    assert found["estimated volumes"]["auc"] > 0.95 and found["deformation"]["auc"] > 0.9
    assert found["undone"]["auc"] == found["deformation"]["auc"]  # of a network that takes all
    assert found["latents"]["auc"] < 0.8 and found["latents"]["gain_high"] < 0.05


@pytest.mark.parametrize("seeds", [("choose",), ("choose", "judge")])
def test_the_severity_is_chosen_by_one_seed_and_judged_by_the_other(seeds, tmp_path, monkeypatch):
    """Falls: that the hard arm's severity was not chosen on the people it is judged by."""
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path)
    bacc = {("choose", 0.3): 0.71, ("choose", 0.6): 0.79, ("choose", 1.0): 0.95,
            ("judge", 0.3): 0.80, ("judge", 0.6): 0.74, ("judge", 1.0): 0.96}  # fmt: skip
    rows = [
        {"preset": "small", "data": "phantom", "part": use, "change": severity,
         "seed": hard.SEEDS[use], "code": code_digest(*hard.CODE),
         "features": [{"features": name, "bacc": value + more, "gain_low": 0.01, "gain_high": 0.1}
                      for name, more in (("estimated volumes", 0), ("latents", 0.04),
                                         ("undone", 0.06))]}
        for (use, severity), value in bacc.items() if use in seeds
    ]  # fmt: skip
    (tmp_path / f"{hard.LEDGER}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = scaling.read_hard("phantom")
    if len(seeds) == 1:
        names = "bacc_ds_hard", "bacc_ds_hard_volumes", "bacc_ds_hard_undone"
        assert found["headline"] == dict.fromkeys(names)
        assert "no faint disease" in found["reasons"]["bacc_ds_hard"]
        return
    headline = found["headline"]
    assert headline["hard_severity"] == 0.6 and headline["bacc_ds_hard_volumes"] == 0.74
    assert headline["bacc_ds_hard"] == pytest.approx(0.78)
    assert headline["bacc_ds_hard_undone"] == pytest.approx(0.80)

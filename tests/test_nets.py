"""Residual networks on latents: a planted pattern is found, chance stays chance, folds are kept."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from dsnb import scaling
from dsnb.checks import BadInput
from dsnb.config import Strata, load_study
from dsnb.record import code_digest, ledger
from dsnb.search import latent_kinds
from dsnb.strata import crossval, nets

SETTINGS = Strata(outer_folds=3, inner_folds=2, penalties=(0.1, 1.0), bootstraps=50)
NET = nets.Net(widths=(8, 8, 8, 8), epochs=4, rates=(1e-3, 1e-2))
COUNT = 60


def make(shift: float) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return a table, classes, and inputs (N, 2, 4, 4, 4) with one shifted corner."""
    rng = np.random.default_rng(0)
    target = np.arange(COUNT) % 2
    inputs = rng.standard_normal((COUNT, 2, 4, 4, 4)).astype(np.float32)
    inputs[:, 1, :2, :2] += (shift * target)[:, None, None, None]
    family = [f"f{i:03d}" for i in range(COUNT)]
    return pd.DataFrame({"family": family, "seen_by": "n/a"}), target, inputs


@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
def test_a_planted_pattern_is_found_and_none_is_chance(loss):
    """Falls: the network's rows: unseen people are told apart by a pattern, and not without one."""
    net = nets.Net(**{**vars(NET), "loss": loss})
    for shift, low, high in ((2.0, 0.9, 1.0), (0.0, 0.25, 0.75)):
        table, target, inputs = make(shift)
        answer = nets.predict(table, target, SETTINGS, inputs, net, 1)
        np.testing.assert_allclose(answer.sum(1), 1, atol=1e-5)
        assert low <= crossval.auroc(target == 1, answer[:, 1]) <= high


def test_nobody_is_judged_by_a_network_that_learnt_on_them(monkeypatch):
    """Falls: nesting: rows that are judged were not learnt on; seen ones are refused."""
    table, target, inputs = make(0.0)
    asked = []

    def train(inputs, target, learn, judged, classes, net, rate, epochs, seed):
        asked.append((len(judged), epochs))
        assert not {*learn} & {*judged}
        told = np.tile(np.linspace(0, 1, len(judged))[:, None], (1, 2))
        return [told] * epochs

    monkeypatch.setattr(nets, "train", train)
    nets.predict(table, target, SETTINGS, inputs, NET, 1)
    folds = crossval.split(target, table["family"].to_numpy(str), 3, SETTINGS.seed)
    assert [size for size, _ in asked[2::3]] == [len(test) for _, test in folds]
    table["seen_by"] = "vae"
    with pytest.raises(BadInput, match="E-SEEN"):
        nets.predict(table, target, SETTINGS, inputs, NET, 1)


def test_a_rare_class_weighs_as_much_as_a_frequent_one():
    """Falls: weighted losses: with few patients a network would call everybody euploid."""
    target = torch.tensor([0] * 9 + [1])
    loss = nets.loss_of("cross-entropy", target, 2)
    assert loss.weight[1] / loss.weight[0] == pytest.approx(9)
    sure, unsure = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    plain, focal = (nets.loss_of(name, target, 2) for name in ("cross-entropy", "focal"))
    truth = torch.tensor([0])
    easy, hard = (focal(x, truth[:, None]) / plain(x, truth) for x in (sure, unsure))
    assert easy < 0.1 * hard  # what is easy counts for little


def test_every_latent_grid_can_be_built_and_seeds_differ():
    """Falls: that the ledger compares three grids, a flat code and morph at one length."""
    study = load_study("small")
    kinds = {name: latent_kinds.variant(study, name, 2) for name in latent_kinds.KINDS}
    assert {one.latent for one in kinds.values()} == {"quarter", "eighth", "pooled", "flat"}
    assert kinds["morph"].architecture == "morph"
    assert {one.training.volumes for one in kinds.values()} == {latent_kinds.VOLUMES}
    assert {one.training.seed for one in kinds.values()} == {2}


def test_rows_of_seeds_become_one_line(tmp_path, monkeypatch):
    """Falls: the table of latents: means over seeds, with the range of their AUROC."""
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path)
    assert not len(scaling.read_latents("phantom")[0])
    rows = [
        {"preset": "small", "data": "phantom", "part": "flat", "seed": seed,
         "code": code_digest(*latent_kinds.CODE),
         "scores": [{"question": "DS against euploid", "features": "flat", "auc": auc, "bacc": 0.8,
                     "gain": auc - 0.9, "gain_low": auc - 1, "gain_high": auc - 0.8}]}
        for seed, auc in ((1, 0.7), (2, 0.9), (3, 0.8))
    ]  # fmt: skip
    path = tmp_path / f"{latent_kinds.LEDGER}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table, about = scaling.read_latents("phantom")
    (row,) = table.to_dict("records")
    assert row["auc"] == pytest.approx(0.8) and (row["least"], row["most"]) == (0.7, 0.9)
    assert row["seeds"] == 3 and row["gain"] == pytest.approx(-0.1) and about["stale"] == 0


def test_the_faintest_severity_is_that_of_volumes_near_the_bar():
    """Falls: that network and ridge regression are asked at the hard arm's own severity."""
    table = pd.DataFrame({
        "features": ["estimated volumes"] * 3 + ["latents"], "severity": [0.3, 0.6, 1.0, 0.45],
        "bacc": [0.71, 0.79, 0.95, 0.80],
    })  # fmt: skip
    assert latent_kinds.faintest(table) == 0.6

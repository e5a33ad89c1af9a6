"""The tables of page 09: planted trials and grids with known answers, missing rows, corrections."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from dsnb import figures, record, scaling
from dsnb.config import SMALL
from dsnb.record import ledger
from dsnb.scaling import searches
from dsnb.search import ablations, grids, trials

VALUES = trials.defaults(SMALL.vae)


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Return a function that adds rows of the phantom to a ledger in a folder of its own."""
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path)

    def add(name, code, rows):
        fixed = {"code": record.code_digest(*code), "preset": "small", "data": "phantom"}
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.writelines(json.dumps(fixed | row) + "\n" for row in rows)

    return add


def trial(number, values, db, state="complete", **other):
    """Return the row of a trial that gained 1 dB in the second half of its volumes."""
    curve = [[300, db - 1]] + ([[600, db]] if state == "complete" else [])
    each = [db + 0.1 * (person + number * (person % 2)) for person in range(4)]
    return {
        "trial": number, "variant": str(number), "seed": 1, "cohort": "a", "state": state,
        "values": VALUES | values, "psnr_db": db, "curve": curve, "each_db": each,
        "cpu_seconds": 60.0, "settings": {"volumes": 600, "vae": asdict(SMALL.vae)}, **other,
    }  # fmt: skip


def plant_search(plant):
    """Plant 24 trials whose score is ruled by the learning rate alone; every fifth is pruned."""
    rng, rows = np.random.default_rng(0), [trial(0, {}, 24.0)]
    for number in range(1, 25):
        values = {name: rng.choice(VALUES[name] * np.array([0.5, 1, 1.5])).item()
                  for name in ("lr", "kl")}  # fmt: skip
        values |= {"width": int(rng.choice([16, 32, 48])), "channels": int(rng.choice([4, 8, 16]))}
        db, state = 20 + 3000 * values["lr"], "complete" if number % 5 else "pruned"
        rows.append(trial(number, values, db, state))
    plant(trials.LEDGER, trials.CODE, rows)
    return rows


def test_the_search_is_told_as_planted(plant, monkeypatch):
    """Claim: counts, best, gain over people and what matters are those of the planted trials."""
    monkeypatch.setattr(searches, "DRAWS", 2)
    rows = plant_search(plant)
    found, table = scaling.read_trials("phantom")
    best = max((row for row in rows[1:] if row["state"] == "complete"), key=lambda r: r["psnr_db"])
    assert found["headline"] == {"trials": 24, "best_psnr_db": best["psnr_db"],
                                 "default_psnr_db": 24.0}  # fmt: skip
    about = found["tables"]["search_ledger"]
    gaps = np.subtract(best["each_db"], rows[0]["each_db"])
    half = 3.182446 * gaps.std(ddof=1) / 2  # Student's t of 3 degrees of freedom
    assert about["gain_db"]["low"] == pytest.approx(gaps.mean() - half, abs=1e-5)
    assert (about["pruned"], about["best"], about["people"]) == (4, best["values"], 4)
    assert table["halfway_db"].tolist() == [row["curve"][0][1] for row in rows]
    shares = scaling.importances(table).set_index(["series", "setting"])["share"]
    assert shares["trials", "lr"] > 0.8 and shares["scores shuffled", "lr"] < 0.6
    said = scaling.tell_search(found, scaling.importances(table))
    assert said[0].startswith("24 trials of 600 volumes beside the defaults, 4 of them pruned, 25")
    assert "above the defaults' 24.00 dB" in said[1] and said[3] == "Beyond chance: lr."
    assert said[2].startswith("Half way, lr has the largest share of what settings explain, 9")


def test_without_a_search_of_the_cohort_the_headline_is_null_with_a_reason(plant):
    """Claim: no ledger, another cohort's search or one without its defaults gives no number."""
    empty, _ = scaling.read_trials("phantom")
    assert set(empty["headline"].values()) == {None} and set(empty["reasons"]) == {
        *empty["headline"]
    }
    rows = plant_search(plant)
    other, _ = scaling.read_trials("ixi")
    assert other["headline"]["trials"] is None and "no search on ixi" in other["reasons"]["trials"]
    late = [row | {"cohort": "b"} for row in rows[1:4]]  # another phantom, its defaults not yet run
    plant(trials.LEDGER, trials.CODE, [row | {"seed": 2} for row in late])
    assert scaling.read_trials("phantom")[0]["headline"]["trials"] is None


def run(variant, seed, psnr, kept, grid=None, cohort="a", fold=0, **other):
    """Return the row of a grid's run; without a grid that of an ablation."""
    own = {"grid": grid, "change": {"kl": 1}} if grid else {}
    return {"variant": variant, "seed": seed, "cohort": cohort, "fold": fold, "psnr_db": psnr,
            "effect_kept": kept, "region_error_pct": 2.0 + 0.01 * seed * (variant != "lean"),
            "cpu_seconds": 100.0, **own, **other}  # fmt: skip


def plant_grids(plant):
    """Plant `sure`, 3 dB better whatever the seed, and `vague`, better on average only."""
    rows = [run("lean", seed, 24 + seed, 0.8, "base") for seed in (1, 2, 3)]
    rows += [run("sure", seed, 27 + seed + 0.001 * seed, 0.8 - 0.1 * seed, "one", cpu_seconds=50.0)
             for seed in (1, 2, 3)]  # fmt: skip
    rows += [
        run("vague", seed, 24 + seed + gap, 0.8, "one") for seed, gap in ((1, 3), (2, 1.5), (3, 2))
    ]
    rows += [run("early", seed, 30, 0.8, "two") for seed in (1, 2)]
    rows += [run("half, lossless", 0, 40, 1, "two")]
    plant(grids.LEDGER, grids.CODE, rows)
    rows = [run("lean", seed, 14 + seed, 0.8, cohort="b") for seed in (1, 2, 3)]
    rows += [run("morph", seed, 13.5 + seed + 0.01 * seed, 0.8, cohort="b") for seed in (1, 2, 3)]
    plant(ablations.LEDGER, ablations.CODE, rows)


def test_grids_are_paired_by_seed_within_their_cohort(plant):
    """Claim: a seed's difference is to its own `lean`; too few seeds say nothing."""
    plant_grids(plant)
    table = pd.DataFrame(scaling.read_grids("phantom")["tables"]["grids"])
    psnr = table[table["measure"] == "psnr_db"].set_index("variant")
    assert psnr.index.tolist() == ["sure", "vague", "morph"], "no base, no two seeds, no seed 0"
    assert psnr["difference"].tolist() == pytest.approx([3.002, 13 / 6, -0.48])
    half = 4.302653 * np.std([3, 1.5, 2], ddof=1) / 3**0.5  # Student's t of 2 degrees of freedom
    assert psnr.loc["vague", "low"] == pytest.approx(13 / 6 - half, abs=1e-5) and half < 13 / 6
    assert psnr["cpu_ratio"].tolist() == [0.5, 1, 1] and set(table["runs"]) == {3}
    base, halved = scaling.tell_beside("phantom")
    assert "is within 10.000 dB of the ablations' of the same seed (3 seeds)" in base
    assert "gives 40.00 dB" in halved and "100 % of the effect are kept" in halved
    assert psnr["grid"].tolist() == ["one", "one", "architecture"]
    assert scaling.read_grids("phantom")["headline"] == {"ablations": 2}
    other = scaling.read_grids("ixi")
    assert (
        other["headline"]["ablations"] is None and "no grid of ixi" in other["reasons"]["ablations"]
    )


def test_what_is_told_survives_the_correction(plant):
    """Claim: a difference is called better or worse only where its corrected interval omits 0."""
    plant_grids(plant)
    table = pd.DataFrame(scaling.read_grids("phantom")["tables"]["grids"])
    said = scaling.tell_grids(table)
    assert said[0].startswith("On phantom, one. `sure`: PSNR (dB) better, +3.00 (+2.9")
    assert "effect kept" not in said[0], "0.1 a seed has a wide interval"
    assert said[0].endswith("not told from `lean`: `vague` (+2.17 dB, +0.27 to +4.06 uncorrected).")
    assert "`morph`: PSNR (dB) worse, -0.48" in said[1]
    apart = table["holm_low"] * table["holm_high"] > 0
    assert (apart == (table["p_holm"] < searches.LEVEL)).all() and apart.sum() == 2


def test_folds_are_the_runs_where_a_cohort_has_them(plant):
    """Claim: with folds, seeds are averaged first: their number does not narrow an interval."""
    rows = [
        run(name, seed, 20 + fold + gap * fold + 0.01 * seed, 0.8, fold=fold)
        for name, gap in (("lean", 0), ("flat", -1))
        for seed in (1, 2)
        for fold in (0, 1, 2)
    ]
    plant(ablations.LEDGER, ablations.CODE, rows)
    row = pd.DataFrame(scaling.read_grids("phantom")["tables"]["grids"]).iloc[0]
    assert (row["per"], row["runs"], row["difference"]) == ("fold", 3, pytest.approx(-1))
    assert row["low"] == pytest.approx(-1 - 4.302653 / 3**0.5, abs=1e-5)


def test_holm_is_that_of_a_worked_example():
    """Claim: p 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02."""
    corrected, levels = searches.holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert levels == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4])
    for seed in range(50):
        p = np.random.default_rng(seed).beta(0.2, 2, 20)
        corrected, levels = searches.holm(p)
        assert ((p < levels) == (corrected < 0.05)).all()


def test_figures_mark_what_is_pruned_and_what_is_shown(plant):
    """Claim: a panel a setting and a measure; filled dots are those that survive the correction."""
    plant_search(plant)
    plant_grids(plant)
    table = scaling.read_trials("phantom")[1]
    names = {"lr": "learning rate", "width": "width (channels)"}
    figure = figures.plot_trials(table, "halfway_db", "PSNR (dB)", names, "one", log=("lr",))
    first, second = figure.axes
    counts = {line.get_label(): len(line.get_xdata()) for line in first.lines[:3]}
    assert counts == {"complete": 20, "pruned": 4, "defaults": 1}
    assert first.get_xscale() == "log" and second.get_xlabel() == "width (channels)"
    forest = pd.DataFrame(scaling.read_grids("phantom")["tables"]["grids"])
    labels = {name: label for name, (label, *_) in scaling.COMPARED.items()}
    figure = figures.plot_forest(forest, labels, "two")
    filled = [
        line for line in figure.axes[0].lines if line.get_marker() == "o" and line.get_mfc() != "w"
    ]
    assert len(filled) == 2 and len(figure.axes) == 3
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [
        "sure",
        "vague",
        "morph",
    ]

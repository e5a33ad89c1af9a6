"""The ledger's readers: planted rows with known answers, missing rows, stale ones."""

import json

import numpy as np
import pytest

from dsnb import record, scaling
from dsnb.record import ledger
from dsnb.scaling import speed, tables
from dsnb.search import ablations, severity, shift


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Return a function that adds rows to a ledger in a folder of its own."""
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path)

    def add(name, code, rows):
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            for row in rows:
                file.write(
                    json.dumps({"code": record.code_digest(*code), "preset": "small"} | row) + "\n"
                )

    return add


def race(entrant, seed, points, **other):
    """Return the row of a race through points (CPU-seconds, dB)."""
    curve = [{"cpu_s": s, "volumes": 2, "test_db": db, "validation_db": db} for s, db in points]
    return {"data": "phantom", "entrant": entrant, "part": "race", "change": {}, "seed": seed,
            "curve": curve, **other}  # fmt: skip


def plant_speed(plant):
    """Plant two seeds of three networks; by hand: 25.5 and 26.5 dB against 10 and 21 at 100 s."""
    rows = [race("lean", seed, [(2, 18), (4, 22), (90, 24.5 + seed), (110, 24.5 + seed)])
            for seed in (1, 2)]  # fmt: skip
    rows += [race("monai_stock", seed, [(50, 8), (150, 12)]) for seed in (1, 2)]
    rows += [race("monai_shrunk", seed, [(20, 18), (60, 20), (140, 22)]) for seed in (1, 2)]
    rows.append({"data": "phantom", "entrant": "pca", "part": "race", "seed": 0,
                 "mean_test_db": 19.0, "pca_test_db": 21.0})  # fmt: skip
    plant(speed.LEDGER, speed.CODE, rows)


def test_gains_are_those_of_the_planted_curves(plant):
    """Claim: gains at 100 CPU-s and the time to 20 dB are interpolated between marks, by seed."""
    plant_speed(plant)
    found = scaling.read_speed("phantom")
    headline = found["headline"]
    assert headline["gain_db_over_monai"] == pytest.approx(26.0 - 10.0)
    assert headline["gain_db_over_monai_shrunk"] == pytest.approx(26.0 - 21.0)
    assert headline["time_ratio_to_20db"] == pytest.approx(60 / 3)
    gain = found["tables"]["speed_gains"][0]
    assert (gain["low"], gain["high"], gain["seeds"]) == (
        pytest.approx(15.5),
        pytest.approx(16.5),
        2,
    )
    assert not found["tables"]["reasons"] and found["tables"]["speed_lines"]["pca"] == 21.0
    curves = {(row["entrant"], row["cpu_s"]): row for row in found["tables"]["speed_curves"]}
    assert curves["lean", 100]["low"] == 25.5 and curves["lean", 100]["high"] == 26.5
    assert ("monai_stock", 40) not in curves, "nothing is drawn before the first mark"


def test_a_network_that_never_arrives_gives_a_lower_bound(plant):
    """Claim: where the rival ends below 20 dB, its whole time counts, and the table says so."""
    plant_speed(plant)
    rows = [race("monai_shrunk", seed, [(20, 10), (140, 19.0)]) for seed in (1, 2)]
    plant(speed.LEDGER, speed.CODE, rows)
    found = scaling.read_speed("phantom")
    ratio = found["tables"]["speed_gains"][2]
    assert found["headline"]["time_ratio_to_20db"] == pytest.approx(140 / 3)
    assert ratio["bound"] == "at least"
    assert found["tables"]["speed_gains"][0]["bound"] == ""


def test_missing_rows_are_null_with_a_reason_and_stale_ones_are_counted(plant):
    """Claim: no ledger, another cohort and older code are never passed over in silence."""
    empty = scaling.read_speed("phantom")
    assert set(empty["headline"].values()) == {None}
    assert set(empty["tables"]["reasons"]) == set(empty["headline"]) == set(tables.GAINS)
    plant_speed(plant)
    plant(speed.LEDGER, speed.CODE, [race("lean", 1, [(2, 18), (4, 22), (110, 30)], code="old")])
    other = scaling.read_speed("ixi")
    assert set(other["headline"].values()) == {None}
    assert "no run of ixi" in other["tables"]["reasons"]["gain_db_over_monai"]
    assert other["tables"]["speed_ledger"] == {"data": "phantom", "rows": 7, "stale": 1}
    assert len(other["tables"]["speed_curves"])


def trial(variant, seed, psnr, kept, data="phantom", fold=0, **other):
    """Return an ablation's row."""
    return {
        "data": data, "variant": variant, "seed": seed, "fold": fold, "psnr_db": psnr,
        "effect_kept": kept, "ssim": 0.9, "region_error_pct": 2.0, "region_bias_pct": 1.0,
        "active_share": 0.5, "parameters": 10, "gigaflop": 6.0, "cpu_seconds": 100.0,
        "peak_mib": 900.0, "kl_nats": [0.1, 0.5], "settings": {"training": {"volumes": 600}},
        "spectrum": [{"from": 0.0, "to": 0.05, "residual_db": -20.0}], **other,
    }  # fmt: skip


def test_ablations_average_folds_before_seeds(plant):
    """Claim: folds are averaged in a seed, the SD is over seeds, cohorts stand side by side.

    A seed that lacks a fold would show the people it has, not what the network can.
    """
    linear = trial("pca", 0, 19.0, 0.5)
    for name in ("kl_nats", "active_share", "parameters", "gigaflop", "settings"):
        del linear[name]
    rows = [linear] + [trial("lean", seed, 24.0 + seed, 0.8) for seed in (1, 2, 3)]
    rows += [trial("long", 1, 26.5, 0.9)]
    rows += [trial("flat", seed, 20.0, 0.95) for seed in (1, 2, 3)]
    rows += [trial("sharp", 1, 25.0, 0.8, cpu_seconds=250.0, region_error_pct=3.0)]
    rows += [trial("lean", seed, 20.0 + 4 * fold + seed, 0.7, "ixi", fold)
             for seed in (1, 2) for fold in (0, 1)]  # fmt: skip
    rows += [trial("lean", 3, 40.0, 0.7, "ixi", fold=1)]  # the easier half alone: not counted
    plant(ablations.LEDGER, ablations.CODE, rows)
    table = scaling.ablation_table()
    lean = table.loc["phantom", "lean"]
    assert (lean["psnr_db"], lean["psnr_db_sd"]) == (26.0, 1.0) and lean["runs"] == 3
    real = table.loc["ixi", "lean"]
    assert real["psnr_db"] == 23.5 and real["psnr_db_sd"] == pytest.approx(0.5**0.5)
    assert (real["runs"], real["seeds"], real["stale"]) == (4, 2, 0)
    assert table.loc["phantom", "pca"]["psnr_db"] == 19 and table.loc["phantom", "pca"]["runs"] == 1
    assert lean["residual_db_to_0.05"] == -20 and lean["kl_nats_mean"] == pytest.approx(0.3)
    assert lean["volumes"] == 600 and np.isnan(table.loc["phantom", "pca"]["volumes"])
    said = scaling.tell_ablations(table)
    assert said[0].startswith("On phantom, `long` against `pca`: 26.5 against 19.0 dB")
    assert "`flat` against `lean`: 20.0 against 26.0 dB" in said[2]
    assert "err by 3.00 against 2.00 %; 80 against 80 %" in said[3] and "2.5 times" in said[3]
    assert table.index.get_level_values("data").unique().tolist() == ["phantom", "ixi"]


def test_costs_are_read_beside_their_check(plant):
    """Claim: the check divides calculated by measured memory; GPU columns say `not yet run`."""
    row = {"preset": "smoke", "network": "lean", "recompute": False, "precision": "fp32",
           "rise_mib": 80.0, "measured_mib": 100.0, "volumes": 32}  # fmt: skip
    parts = [row | {"part": part} for part in ("calculated", "measured")]
    plant("03_cost", scaling.cost.CODE, [*parts, parts[0] | {"code": "old", "network": "flat"}])
    assert scaling.cost_check()["ratio"].tolist() == [0.8]
    costs = scaling.cost_table()
    assert costs["stale"].tolist() == [False, True]
    assert set(costs["gpu_peak_mib"]) == {"not yet run"}


def test_the_first_arrival_counts_though_the_curve_dips_later():
    """Claim: the time to a PSNR is that of its first arrival, or of the whole run without one."""
    run = np.array([10.0, 20, 30, 40, 50]), np.array([18.0, 22, 19, 19.5, 19.8])
    assert tables.seconds_to(run, 20.0) == (15.0, True)
    assert tables.seconds_to(run, 25.0) == (50.0, False)


def test_severity_curves_hold_the_last_run_of_each_point_and_count_old_code(plant):
    """Claim: a curve rises with severity as planted; a repeated point counts once, by its last."""

    def row(change, gain, part="DS"):
        norms = [{"norm": name, "gain": gain * size, "gain_low": 0, "gain_high": 1}
                 for name, size in (("tbm", 1), ("undo", 2))]  # fmt: skip
        return {"data": "phantom", "part": part, "change": change, "seed": 1, "norms": norms}

    plant(severity.LEDGER, ("space",), [row(1.0, 0.9)])
    plant(severity.LEDGER, severity.CODE, [row(2.0, 0.4), row(1.0, 0.2), row(0.5, 0.1, "random")])
    table, about = scaling.read_severity("phantom")
    assert about == {"data": "phantom", "rows": 3, "stale": 0}
    curves = scaling.severity_curves(table, "DS", "gain")
    assert curves["tbm"][["severity", "gain"]].to_numpy().tolist() == [[1.0, 0.2], [2.0, 0.4]]
    assert curves["undo"]["gain"].tolist() == [0.4, 0.8]
    assert curves["undo"]["high"].tolist() == [1, 1]
    assert scaling.severity_curves(scaling.read_severity("ixi")[0].head(0), "DS", "gain") == {}


def test_scanners_are_a_row_a_fault_and_number_of_known_people(plant):
    """Claim: what was flagged stands beside the fault and the number of known euploids."""
    sites = [{"known": 0, "flagged": 9, "share": 0.9}, {"known": 10, "flagged": 1, "share": 0.1}]
    rows = [{"data": "phantom", "part": fault, "seed": 1, "norm": "tbm", "sites": sites[:count]}
            for fault, count in (("noise", 1), ("all", 2))]  # fmt: skip
    plant(shift.LEDGER, shift.CODE, rows)
    table, about = scaling.read_shift("phantom")
    assert about == {"data": "phantom", "rows": 2, "stale": 0}
    assert table[["fault", "known", "flagged"]].to_numpy().tolist() == [
        ["noise", 0, 9], ["all", 0, 9], ["all", 10, 1]
    ]  # fmt: skip

"""Ablations: who trains and who judges, one row a run, and costs that are those of the run."""

import numpy as np
import pandas as pd
import pytest
import tiny

from dsnb import bids, record, rivals, vae
from dsnb.config import replace
from dsnb.record import ledger
from dsnb.search import ablations, folds
from dsnb.space import REGIONS

SHORT = replace(tiny.STUDY.vae.training, volumes=8, batch=2, checkpoint_every=8, validate_every=8)
STUDY = replace(tiny.STUDY, vae=replace(tiny.STUDY.vae, widths=(8, 8, 8), training=SHORT))


def ruler(volumes, template, study) -> np.ndarray:
    """Return mean intensities of slabs as log 'region volumes': registration needs real brains."""
    slabs = np.array_split(np.flatnonzero(tiny.brain()), len(REGIONS))
    flat = np.asarray(volumes, np.float32).reshape(len(volumes), -1)
    return np.log(np.stack([flat[:, slab].mean(1) for slab in slabs], axis=1))


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Give runs eight volumes, a ledger of their own, and a ruler that needs no registration."""
    monkeypatch.setattr(ledger, "LEDGERS", tmp_path / "ledger")
    monkeypatch.setattr(ablations, "VOLUMES", 8)
    monkeypatch.setattr(ablations, "SEEDS", (1, 2))
    monkeypatch.setattr(rivals, "fit_template", lambda volumes, study: volumes.mean(0, np.float32))
    monkeypatch.setattr(vae, "region_logs", ruler)


def make_real(root):
    """Write a root of 'real' people, every other of whom has a planted scan besides."""
    record.write_json(root / "study.json", {"preset": "smoke", "data": "real"})
    table = tiny.people()
    table = table[table["kind"] != "twin"].reset_index(drop=True)
    planted = table[table["group"] == "euploid"].iloc[::2].assign(kind="planted", group="DS")
    planted["origin"] = planted["participant_id"]
    planted["participant_id"] += "p"
    table = pd.concat([table, planted.assign(split="test")], ignore_index=True)
    product = record.begin(root, "prepared", "prepare", {}, (), ("space",))
    np.save(product.folder / "volumes.npy", tiny.volumes(table))
    bids.write_table(product.folder / "participants.tsv", table)
    product.finish()
    return root


def test_every_run_has_one_row_and_is_not_run_again(tmp_path, monkeypatch):
    """Claim: a variant and seed is trained once; a second call finds every row."""
    root, names = tiny.make_root(tmp_path), ("lean", "sharp")
    ablations.ablate(root, STUDY, names)
    linear, rows = (
        [row for row in record.ledger_rows(ablations.LEDGER) if (row["seed"] == 0) == plain]
        for plain in (True, False)
    )
    assert [row["variant"] for row in linear] == ["pca", "mean"]
    assert linear[0]["psnr_db"] > linear[1]["psnr_db"] and linear[1]["effect_kept"] == 0
    assert [(row["variant"], row["seed"]) for row in rows] == [
        (name, seed) for seed in (1, 2) for name in names
    ]
    for row in rows:
        assert row["people"] == 8 and row["pairs"] == 8 and row["skipped"] == 0
        assert 0 < row["psnr_db"] < 60 and row["gigaflop"] > 0 and row["cpu_seconds"] > 0
        assert len(row["kl_nats"]) == 2 and len(row["spectrum"]) == 4
        assert row["digest"] and row["code"] and row["commit"]
    assert rows[0]["psnr_db"] != rows[2]["psnr_db"]  # the seeds differ
    assert rows[0]["settings"]["training"]["volumes"] == 8
    for name in ("train", "measure_linear"):
        monkeypatch.setattr(folds.Trial, name, None)
    ablations.ablate(root, STUDY, names)
    assert record.ledger_rows(ablations.LEDGER) == linear + rows


def test_a_run_is_its_seeds(tmp_path):
    """Claim: measures depend on settings and seed, not on what ran before."""
    trial = folds.Trial(tiny.make_root(tmp_path), STUDY, 0)
    settings = ablations.variant(STUDY, "lean", 1)
    first = trial.train(settings)
    trial.train(ablations.variant(STUDY, "no_departure", 2))
    second = trial.train(settings)
    measured = ("psnr_db", "ssim", "region_error_pct", "effect_kept", "parameters", "gigaflop")
    assert all(first[name] == second[name] for name in measured)


def test_variants_change_one_thing():
    """Claim: a variant differs from `lean` in what it names, and all learn for one budget."""
    base = ablations.variant(STUDY, "lean", 3)
    assert base.training.seed == 3 and base.training.volumes == 8
    for name, change in ablations.VARIANTS.items():
        own = ablations.variant(STUDY, name, 3)
        change = dict(change)
        volumes = change.pop("volumes", round(8 * change.pop("share", 1)))
        back = {field: getattr(base, field) for field in change}
        assert replace(own, **back, training=base.training) == base
        assert {field: getattr(own, field) for field in change} == change
        assert own.training.volumes == volumes
    assert ablations.variant(STUDY, "lean", 3, "ds002748").training.volumes == 4
    assert ablations.variant(STUDY, "long", 3, "ds002748").training.volumes == 2000


def test_phantom_people_are_the_studys_and_pairs_are_unseen(tmp_path):
    """Claim: on the phantom the study's split holds; a pair is a DS test person and the twin."""
    trial = folds.Trial(tiny.make_root(tmp_path), STUDY, 0)
    assert (len(trial.fit), len(trial.validation), len(trial.test)) == (24, 4, 8)
    names = trial.table["participant_id"].to_numpy()
    assert all(names[twin] == names[person] + "t" for person, twin in trial.pairs)
    assert set(trial.table["split"].iloc[trial.pairs[:, 0]]) == {"test"}


def test_real_folds_judge_everybody_once(tmp_path):
    """Claim: over the folds each euploid is unseen once, never fitted on then, nor validated."""
    root, judged = make_real(tmp_path), []
    for fold in range(folds.FOLDS):
        trial = folds.Trial(root, STUDY, fold)
        groups = [set(rows) for rows in (trial.fit, trial.validation, trial.test)]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 52
        judged += list(trial.test)
        names, origins = (trial.table[name].to_numpy() for name in ("participant_id", "origin"))
        for planted, plain in trial.pairs:  # both of a pair are unseen
            assert origins[planted] == names[plain] and plain in groups[2]
    assert sorted(judged) == sorted(np.flatnonzero(trial.table["group"] == "euploid"))


def test_the_effect_that_is_kept_is_read_with_its_sign(tmp_path):
    """Claim: perfect redrawing keeps all of the effect; the mean volume keeps nothing."""
    trial = folds.Trial(tiny.make_root(tmp_path), STUDY, 0)
    model = vae.build(STUDY.vae, trial.volumes[trial.fit].mean(0, np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "reconstruct", lambda model, volumes: volumes * np.float32(0.999))
        kept = trial.measure(model)
        assert kept["effect_kept"] == pytest.approx(1, abs=1e-3)
        assert kept["region_bias_pct"] == pytest.approx(0.1, abs=0.01)
        mean = model.mean_volume[0, 0].numpy()
        patch.setattr(vae, "reconstruct", lambda model, volumes: np.stack([mean] * len(volumes)))
        assert trial.measure(model)["effect_kept"] == pytest.approx(0, abs=1e-6)

"""Shipped norms: whole or refused, the same z as at home, and few euploids counted honestly."""

import dataclasses
import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy import stats
from test_anomaly import BRAIN, GRID, STUDY, make_source

from dsnb import bids, config, record, shipped, vae
from dsnb.anomaly import maps, tuning
from dsnb.checks import BadInput
from dsnb.norms import Calibration, Normative
from dsnb.shipped import norm as files
from dsnb.shipped import people as cohorts
from dsnb.sites import recentre
from dsnb.space import GRIDS, load_template

TBM = config.replace(STUDY, maps=dataclasses.replace(STUDY.maps, norm="tbm"))
CHOICE = {"norm": "tbm", "components": 0, "fwhm_mm": 8.0, "lift": 0.2}
VAE = config.Vae(width=8, blocks=1, channels=2)
ABOUT = {
    "data": "phantom", "source": files.PHANTOM, "terms": "CC0", "euploids": {"fit": 24},
    "settings": "0" * 16,
    "scores": {"healthy_error": {"flagged": 1, "people": 12}, "lift": None},
    "made": {"commit": "no git"},
}  # fmt: skip
GUIDE = Path(__file__).resolve().parent.parent / "book" / "guides" / "trained_model.md"


def brains(count: int, seed: int) -> np.ndarray:
    """Draw (N, X, Y, Z): the template, bent a little by smooth waves, with noise."""
    rng, template = np.random.default_rng(seed), load_template(GRID).t1w
    axes = np.indices(GRID.shape) / 8
    waves = np.stack([np.sin(axes[a] + b) for a in range(3) for b in (0, 1.5)])
    scores = rng.normal(0, 0.03, (count, len(waves)))
    noise = 0.02 * rng.standard_normal((count, *GRID.shape))
    drawn = template * (1 + np.tensordot(scores, waves, 1)) + noise
    return (drawn * BRAIN).astype(np.float32)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> SimpleNamespace:
    """Return a fitted norm, its VAE, and the file written of both."""
    source = make_source()
    source.study = TBM
    norm = tuning.fit_chosen(source, [CHOICE])["tbm"]
    reference, model = maps.calibrate(norm), vae.build(VAE, load_template(GRID).t1w)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.05 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))
    settings = record.plain(dataclasses.asdict(VAE))
    payload = {"ema": model.state_dict(), "identity": {"settings": settings}}
    latent = {"mean": np.zeros(2), "std": np.ones(2)}
    path = tmp_path_factory.mktemp("norms") / "clinic.safetensors"
    files.save_norm(path, reference, payload, latent, ABOUT)
    return SimpleNamespace(source=source, reference=reference, vae=model.eval(), path=path,
                           payload=payload, latent=latent)  # fmt: skip


@pytest.fixture
def root(home, tmp_path):
    """Return a data root of `prepared` people: two scanners' euploids, people with DS, a twin."""
    folder = tmp_path / "root"
    record.write_json(folder / "study.json", {"preset": "smoke", "data": "clinic",
                                              "people_may_be_shown": False})  # fmt: skip
    rows = [("euploid", "recorded")] * 9 + [("DS", "recorded")] * 2 + [("euploid", "twin")]
    table = pd.DataFrame(rows, columns=["group", "kind"])
    table["participant_id"] = [f"sub-{row:02d}" for row in range(len(table))]
    table = table.assign(age=40.0, sex="F", site="one", family=table["participant_id"],
                         split="test", origin="n/a")  # fmt: skip
    table.loc[8, "age"] = 88.0
    product = record.begin(folder, "prepared", "prepare", {}, (), ("space",))
    np.save(product.folder / "volumes.npy", brains(len(table), 5).astype(np.float16))
    bids.write_table(product.folder / "participants.tsv", table)
    product.finish()
    return folder


def names_of(folder, *names: str, column="participant_id"):
    path = folder / "euploids.tsv"
    path.write_text("\n".join([column, *names]) + "\n")
    return path


def test_a_norm_travels_whole(home):
    """Falls: that a file's norm and VAE say what the study's own say."""
    norm, rows = shipped.load(str(home.path)), home.source.rows("euploid", "test")
    known, own = home.reference, norm.reference
    people = home.source.people(rows)
    z = known.norm.z(people)
    np.testing.assert_allclose(own.norm.z(people), z, atol=5e-3)
    table = home.source.table.iloc[rows]
    there, here = (r.ruler.measure(people, table) for r in (known, own))
    columns = ["departure", "z", "centile", "bound"]
    np.testing.assert_allclose(*(t[columns].astype(float) for t in (there, here)), atol=0.05)
    assert (
        own.calibration == Calibration(**record.plain(dataclasses.asdict(known.calibration)))
        and own.people == known.people
    )
    drawn = brains(2, 3)
    found = shipped.score(norm, drawn, table[:2])
    fields = files.rivals.register_volumes(drawn, home.source.template, TBM)
    home.source.log_jacobian[rows[:2]] = fields
    z = known.norm.z(home.source.people(rows[:2]))
    np.testing.assert_allclose(found[0][:, BRAIN], z, atol=5e-3)
    assert (found[1][:, ~BRAIN] == 1).all() and (found[0][:, ~BRAIN] == 0).all()
    np.testing.assert_allclose(found[2][:, BRAIN], known.calibration.q(z), atol=0.02)
    some = home.source.volumes[rows[:2]]
    np.testing.assert_allclose(vae.reconstruct(norm.vae, some), vae.reconstruct(home.vae, some),
                               atol=0.01)  # fmt: skip
    assert norm.latent["std"].tolist() == [1, 1] and norm.name == "clinic"
    card = files.card(home.path, norm.about)
    assert "| terms | CC0 |" in card and "1 of 12 test euploids" in card and "McGill" in card


def rewrite(home, folder, change):
    """Write the norm again after `change` (arrays, about), with a digest that fits."""
    with files.safe_open(home.path, "np") as file:
        about = json.loads(file.metadata()["about"])
    arrays = load_file(home.path)
    change(arrays, about)
    about["digest"] = files._digest(arrays, about)
    save_file(arrays, folder / "other.safetensors", {"about": json.dumps(about)})
    return str(folder / "other.safetensors")


def test_a_spoilt_norm_is_refused(home, tmp_path):
    """Falls: that a norm is as it was written: no bit of array or text, no pickle, no half."""
    content, path = bytearray(home.path.read_bytes()), tmp_path / "bad.safetensors"
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (ran.write_text, ("it ran",))

    half, flipped = content[: len(content) // 2], bytearray(content)
    flipped[-1000] ^= 1
    told = bytes(content).replace(b'\\"terms\\": \\"CC0\\"', b'\\"terms\\": \\"MIT\\"')
    assert told != bytes(content)
    for bad in (half, flipped, told, pickle.dumps(Trap()), b"", b"\0" * 64):
        path.write_bytes(bad)
        with pytest.raises(BadInput, match="E-DAMAGED bad.safetensors: this norm is 'altered"):
            shipped.load(str(path))
    assert not ran.exists()


def test_a_norm_of_another_grid_or_brain_is_refused(home, tmp_path):
    """Falls: that voxel i of a norm and of a person are one place."""
    for key, value in (("voxel_mm", 4.5), ("shape", [40, 48, 48]), ("brain", "0" * 16)):
        path = rewrite(home, tmp_path, lambda _, about, new={key: value}: about.update(new))
        with pytest.raises(BadInput, match="E-GRID"):
            shipped.load(path)
    small = config.load_study("small")
    with pytest.raises(BadInput, match="E-GRID.*--preset smoke"):
        cohorts.apply(tmp_path, small, str(home.path))


def test_an_unknown_norm_is_answered_with_a_near_one(home, monkeypatch):
    """Falls: that a misspelt name is met with the right one."""
    monkeypatch.setattr(files, "FOLDER", home.path.parent)
    assert shipped.known_names() == ["clinic"] and shipped.load("clinic").name == "clinic"
    with pytest.raises(BadInput, match="E-UNKNOWN.*'clinik'.*like clinic"):
        shipped.load("clinik")


def test_code_that_changed_is_said(home, tmp_path, capsys):
    """Falls: that a norm of another version of the registration passes unseen."""
    shipped.load(rewrite(home, tmp_path, lambda arrays, about: about.update(code="0" * 16)))
    assert "another version of dsnb" in capsys.readouterr().err


# Few euploids of a scanner


def a_scanner(known: int, seed: int) -> tuple:
    """Return a norm, and k + 1 euploids of a shifted, noisier scanner with heavy tails."""
    rng, size = np.random.default_rng([known, seed]), 60
    normative = Normative.fit(rng.standard_normal((60, size)), rng.uniform(-2, 2, (60, 2)))
    width = 1.5 * rng.gamma(4, 0.25, (known + 1, 1))
    people = 3 + width * rng.standard_t(4, (known + 1, size))
    return normative, people, rng.uniform(-2, 2, (known + 1, 2))


def is_flagged(normative, people: np.ndarray, about: np.ndarray) -> bool:
    """Say whether the last is flagged by a norm re-centred on the others."""
    known, own = (people[:-1], about[:-1]), (people[-1:], about[-1:])
    moved, z = shipped.recentre_for(normative, *known, *own)
    calibration = Calibration.fit(z, moved.freedom, 0.05)
    assert calibration.guarantee == pytest.approx(1 / len(people))
    return calibration.q(moved.z(*own)).min() < 0.05


@pytest.mark.parametrize("known", [5, 12])
def test_of_k_plus_one_alike_exactly_one_is_flagged(known):
    """Falls: the guarantee 1 / (k + 1) of a re-centred norm: by symmetry, in every draw."""
    for seed in range(6):
        normative, people, about = a_scanner(known, seed)
        turns = (np.roll(np.arange(known + 1), turn) for turn in range(known + 1))
        assert sum(is_flagged(normative, people[order], about[order]) for order in turns) == 1


def test_a_foreign_scanner_is_mended_and_a_lesion_still_seen():
    """Falls: that re-centring is needed on another scanner, and is not bought by silence."""
    lesions, foreign = [], []
    for seed in range(20):
        normative, people, about = a_scanner(12, seed)
        plain = Calibration(1.0, 1.0, 0.05, 57, 0.05)
        foreign.append(plain.q(normative.z(people[-1:], about[-1:])).min() < 0.05)
        people[-1, :5] += 60
        lesions.append(is_flagged(normative, people, about))
    assert np.mean(foreign) > 0.9 and np.mean(lesions) > 0.6


def test_the_person_and_the_known_are_exchangeable():
    """Falls: the promise: whoever of the k + 1 is the person, their sizes are the same."""
    rng = np.random.default_rng(2)
    normative = Normative.fit(rng.standard_normal((40, 30)), rng.standard_normal((40, 2)))
    values, about = 2 + rng.standard_t(4, (8, 30)), rng.standard_normal((8, 2))

    def sizes(order: np.ndarray) -> np.ndarray:
        people, ages = values[order], about[order]
        moved, z = shipped.recentre_for(normative, people[:-1], ages[:-1], people[-1:], ages[-1:])
        found = np.abs(np.vstack([z, moved.z(people[-1:], ages[-1:])])).max(1)[np.argsort(order)]
        return found / found[0]

    for turn in range(1, 8):
        np.testing.assert_allclose(sizes(np.roll(np.arange(8), turn)), sizes(np.arange(8)),
                                   rtol=1e-4)  # fmt: skip


def test_leaving_out_is_what_makes_them_comparable():
    """Falls: that a known euploid is compared with others only, as the person is."""
    rng = np.random.default_rng(0)
    normative = Normative.fit(rng.standard_normal((40, 8)), rng.standard_normal((40, 2)))
    known, about = rng.standard_normal((6, 8)), np.zeros((6, 2))
    far = known.copy()
    far[0] += 1000.0
    z = [shipped.recentre_for(normative, k, about, known[:1], about[:1])[1] for k in (known, far)]
    ratio = np.abs(z[1][0]) / np.abs(z[1][1:]).max(0)
    assert (ratio > 4.9).all()  # its own mean does not hold it
    moved, z = shipped.recentre_for(normative, known, about, known[:1] + 1, about[:1] + 0.3)
    values, ages = np.vstack([known, known[:1] + 1]), np.vstack([about, about[:1] + 0.3])
    plain = [recentre(normative, *(np.delete(part, row, 0) for part in (values, ages)))
             .z(values[[row]], ages[[row]])[0] for row in range(7)]  # fmt: skip
    scale = plain[0] / z[0]
    np.testing.assert_allclose(z * scale, plain[:-1], rtol=1e-4)
    np.testing.assert_allclose(moved.z(values[-1:], ages[-1:])[0] * scale, plain[-1], rtol=1e-4)


def test_lists_of_euploids_are_refused_in_a_sentence(root, home, tmp_path):
    """Falls: that nobody with DS, unknown or drawn re-centres a norm, nor fewer than five."""
    table = bids.typed(bids.read_table(root / "prepared" / "participants.tsv"))
    good = [f"sub-{row:02d}" for row in range(5)]
    cases = {
        "E-COLUMN": names_of(tmp_path, *good, column="id"),
    }
    with pytest.raises(BadInput, match="E-COLUMN euploids.tsv: columns is \\['id'\\]"):
        cohorts.read_known(cases["E-COLUMN"], table)
    for code, ids in {
        "E-UNKNOWN.*sub-99.*the nearest are": [*good, "sub-99"],
        "E-GROUP.*\\['sub-09'\\]": [*good, "sub-09"],
        "E-UNKNOWN.*sub-11": [*good, "sub-11"],  # the twin
        "E-FEW.*is 4, expected 5 or more": [*good[:4], good[0]],
    }.items():
        with pytest.raises(BadInput, match=code):
            cohorts.read_known(names_of(tmp_path, *ids), table)
    assert cohorts.read_known(names_of(tmp_path, *good), table).tolist() == [0, 1, 2, 3, 4]


def test_a_cohort_is_mapped_and_re_centred(root, home, tmp_path, capsys):
    """Falls: that `map --norm` writes every map, region and promise, once."""
    folder = cohorts.apply(root, TBM, str(home.path))
    told = capsys.readouterr().err
    assert "1 of 11 people are outside of the norm's ages" in told
    people = bids.typed(bids.read_table(folder / "people.tsv"))
    assert len(people) == 11 and [*people] == [*cohorts.COLUMNS] and not people["known"].any()
    assert len(bids.read_table(folder / "regions.tsv")) == 11 * 16
    norm = shipped.load(str(home.path))
    volumes = np.load(root / "prepared/volumes.npy")[:1].astype(np.float32)
    table = bids.typed(bids.read_table(root / "prepared/participants.tsv"))
    z = shipped.score(norm, volumes, table[:1])[0][0]
    path = maps.map_path(folder, "sub-00", "z", GRID)
    np.testing.assert_allclose(bids.load_volume(path)[0], maps.limit(z), atol=5e-3)
    again = cohorts.apply(root, TBM, str(home.path))
    assert "nothing changed" in capsys.readouterr().err and again == folder

    known = names_of(tmp_path, *(f"sub-{row:02d}" for row in range(6)))
    cohorts.apply(root, TBM, str(home.path), known)
    people = bids.typed(bids.read_table(folder / "people.tsv")).set_index("participant_id")
    assert people["known"].sum() == 6
    assert people.loc["sub-00", "guarantee"] == pytest.approx(1 / 6, abs=1e-4)
    assert people.loc["sub-10", "guarantee"] == pytest.approx(1 / 7, abs=1e-4)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["known"] == 6 and summary["guarantee"] == pytest.approx(1 / 6, abs=1e-4)
    assert summary["groups"]["DS"]["people"] == 2 and summary["terms"] == "CC0"
    moved = bids.load_volume(path)[0]
    assert np.abs(moved - z)[BRAIN].max() > 0.1
    assert "sub-" not in json.dumps(summary)


def test_a_foreign_scanner_and_an_unknown_site_are_warned_of(home):
    """Falls: that q of a scanner the norm does not know is read as if it held."""
    wide = home.reference.widest
    people = pd.DataFrame({
        "group": ["euploid"] * 10, "age": 40.0, "site": ["one"] * 9 + ["two"], "voxels": 0,
        "known": False, "guarantee": 0.05, "outside_share": [wide + 0.01] * 3 + [0.0] * 7,
    })  # fmt: skip
    (warning,) = cohorts.summarise(people, home.reference, 0)["warnings"]
    assert "3 of 10 euploids" in warning and "--recentre" in warning
    chance = stats.betabinom.sf(2, 10, 1, home.reference.people)
    assert chance < cohorts.STRANGE
    assert cohorts.summarise(people[2:], home.reference, 0)["warnings"] == []  # one in nineteen may
    people["known"] = [True] * 9 + [False]
    (warning,) = cohorts.summarise(people, home.reference, 9)["warnings"]
    assert "no euploid of two is known" in warning


# Export


@pytest.fixture
def finished(home, tmp_path, monkeypatch):
    """Return a root whose maps are finished, as far as `export` looks."""
    root = tmp_path / "study"
    record.write_json(root / "study.json", {"preset": "smoke", "data": "phantom",
                                            "people_may_be_shown": True})  # fmt: skip
    settings = {k: v for k, v in dataclasses.asdict(TBM.maps).items() if k != "processes"}
    product = record.begin(root, "maps", "map", settings, (), ("space",))
    flagged = [{"people_of": "euploid test", "people": 12, "flagged": 2}]
    tables = {"chosen": [CHOICE], "flagged": flagged, "norms": [
        {"norm": "tbm", "lift": 0.2, "lift_low": 0.1, "lift_high": 0.3}]}  # fmt: skip
    record.write_json(product.folder / "metrics.json", {"headline": {}, "tables": tables})
    product.finish()
    monkeypatch.setattr(files, "Source", lambda root, study: home.source)
    monkeypatch.setattr(files, "PARENTS", ("maps",))
    monkeypatch.setattr(files.checkpoints, "require", lambda run: home.payload)
    monkeypatch.setattr(files.latents, "load", lambda root: (None, None, None, home.latent))
    return root


def test_a_finished_study_exports_its_norm_and_card(finished, home):
    """Falls: that a shipped norm names its people, terms, scores and origin."""
    path = shipped.export(finished, TBM, finished / "mine")
    norm, card = shipped.load(str(path)), path.with_suffix(".md").read_text()
    assert norm.about["terms"] == files.gate.PHANTOM_TERMS and norm.about["euploids"]["scale"] == 16
    assert set(norm.about["keys"]) == {"maps"} and norm.about["settings"]
    assert "| healthy error seen | 2 of 12 test euploids |" in card
    assert "0.200 [0.100, 0.300]" in card and norm.about["digest"] in card
    people = home.source.people(home.source.rows("euploid", "test"))
    np.testing.assert_allclose(norm.reference.norm.z(people), home.reference.norm.z(people),
                               atol=5e-3)  # fmt: skip


def test_restricted_people_and_norms_that_do_not_fit_stay(finished):
    """Falls: that nothing learnt from restricted people leaves without the audit."""
    deep = config.replace(TBM, maps=dataclasses.replace(TBM.maps, norm="latent"))
    with pytest.raises(BadInput, match="E-NORM"):
        files.save_norm(finished / "x", maps.Reference(SimpleNamespace(
            candidate=SimpleNamespace(name="latent"), source=SimpleNamespace(study=deep),
            choice=None), *[None] * 5), {}, {}, {})  # fmt: skip
    record.write_json(finished / "study.json", {"preset": "smoke", "data": "clinic",
                                                "people_may_be_shown": False})  # fmt: skip
    with pytest.raises(BadInput, match="E-LICENCE.*restricted \\(clinic\\).*dsnb release"):
        shipped.export(finished, TBM, finished / "mine")
    assert not [*finished.glob("mine*")]


# What is shipped, and its guide


@pytest.mark.parametrize("path", sorted(files.FOLDER.glob("*.safetensors")), ids=lambda p: p.stem)
def test_what_is_shipped_is_small_whole_and_has_its_card(path):
    """Falls: that the files of the package load, and their cards are theirs, terms and all."""
    norm = shipped.load(path.stem)
    assert path.stat().st_size < 4e6
    assert path.with_suffix(".md").read_text() == files.card(path, norm.about)
    assert norm.about["terms"].startswith("CC0") and not norm.about["made"]["dirty"]


def test_the_guides_lines_run(tmp_path, monkeypatch, capsys):
    """Falls: "ten lines": that the guide's code runs as it is printed, on prepared people."""
    code = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.S)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    brain = shipped.load("phantom-small").vae.mean_volume[0, 0].numpy()
    root, table = tmp_path / "RESULTS", pd.DataFrame({"participant_id": ["sub-1", "sub-2"]})
    product = record.begin(root, "prepared", "prepare", {}, (), ("space",))
    swollen = files.rivals.warp(brain, np.stack([0.1 * GRIDS["small"].coordinates_mm()[0]] * 3), 3)
    np.save(product.folder / "volumes.npy", np.stack([brain, swollen]).astype(np.float16))
    bids.write_table(product.folder / "participants.tsv", table.assign(age=40.0, sex=["F", "M"]))
    product.finish()
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    assert found["z"].shape == (2, *brain.shape) and found["redrawn"].shape == found["z"].shape
    assert np.abs(found["z"][1]).max() > np.abs(found["z"][0]).max()
    assert "CC0" in capsys.readouterr().out and found["table"]["flagged"].dtype == bool


def test_the_guide_knows_every_code():
    """Falls: that a user of a trained norm finds every refusal in the book."""
    code = "".join(path.read_text() for path in files.FOLDER.parent.glob("*.py"))
    text = GUIDE.read_text()
    assert not {name for name in re.findall(r'"(E-[A-Z]+)"', code) if f"`{name}`" not in text}
    assert all(f"`{name}`" in text for name in shipped.known_names())

"""Privacy: planted copies are found, unseen people are not, attacks read what is planted."""

import numpy as np
import pytest

pytest.importorskip("torch")
from scipy import ndimage

from dsnb import privacy
from dsnb.fidelity.realism import fit_features
from dsnb.privacy import attacks, copies
from dsnb.space import GRIDS

GRID = GRIDS["smoke"]
CONTROLS = ("copies_recalled", "false_alarms", "overfit_attack_auc")
GOOD = {
    "copies_recalled": 1.0, "false_alarms": 0.0, "overfit_attack_auc": 0.99, "near_copies": 0.0,
    "certain_copies": 0, "attack_auc_upper": 0.55,
}  # fmt: skip
MANY = {"training": 290, "A": 110, "B": 110, "synthetic": 200}


def _people(count: int, seed: int) -> np.ndarray:
    """Draw smooth departures from one head, (N, X, Y, Z): people as unlike as people are."""
    rng = np.random.default_rng(seed)
    head = ndimage.gaussian_filter(np.pad(np.ones((24, 30, 24)), ((8,) * 2, (9,) * 2, (8,) * 2)), 2)
    fields = (ndimage.gaussian_filter(rng.normal(size=GRID.shape), 2.5) for _ in range(count))
    return np.stack([head * (0.6 + 4 * field) for field in fields]).astype(np.float32)


def _encode(volumes: np.ndarray) -> np.ndarray:
    """Stand for the VAE: means over blocks of eight voxels a side."""
    return volumes.reshape(len(volumes), 5, 8, 6, 8, 5, 8).mean((2, 4, 6)).reshape(len(volumes), -1)


@pytest.fixture(scope="module")
def library() -> copies.Library:
    """Return forty training people; the feature space is fitted on others."""
    space = fit_features(_people(20, 1), GRID, 12)
    return copies.Library(_people(40, 0), GRID, space, _encode)


@pytest.fixture(scope="module")
def sides() -> dict[str, np.ndarray]:
    """Return two sets of unseen people and an honest synthetic cohort."""
    return {"A": _people(40, 2), "B": _people(40, 3), "synthetic": _people(30, 4)}


def _smooth(volumes: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(volumes, (0, 0.7, 0.7, 0.7))


def test_planted_copies_are_found_and_unseen_people_are_not(library, sides):
    """G24. Would fall: copies_recalled and false_alarms, for every kind of copy."""
    planted = copies.plant(_people(40, 0)[:8], _people(8, 9), _smooth, 1)
    kinds = {"exact", "noise", "shift", "intensity", "flip", "rescaled", "half", "decoded"}
    assert set(planted) == kinds
    headline, tables = copies.neighbours(library, sides, planted, 0.005)
    assert {row["kind"]: row["recalled"] for row in tables["recall"]} == dict.fromkeys(planted, 1)
    assert headline["copies_recalled"] == 1 and headline["false_alarms"] <= 0.05
    assert headline["near_copies"] <= 0.05 and headline["certain_copies"] == 0


def test_halves_come_from_few_unseen_people_too():
    """Would fall: the audit of a cohort with fewer unseen people than planted copies."""
    people, others = _people(8, 0), _people(3, 9)
    half = copies.plant(people, others, _smooth, 1)["half"]
    cut = people.shape[1] // 2
    np.testing.assert_array_equal(half[:, :cut], people[:, :cut])
    np.testing.assert_array_equal(half[4, cut:], others[1, cut:])


def test_three_copies_among_synthetic_people_block_the_release(library, sides):
    """P11. Would fall: that few copies are enough, and that they are named."""
    stolen = sides["synthetic"].copy()
    stolen[[3, 11, 20]] = _people(40, 0)[[5, 6, 7]] + 0.01
    planted = copies.plant(_people(40, 0)[:8], _people(8, 9), _smooth, 1)
    headline, tables = copies.neighbours(library, sides | {"synthetic": stolen}, planted, 0.005)
    assert {3, 11, 20} <= {entry["row"] for entry in tables["flagged"]}
    assert headline["certain_copies"] == 3
    assert tables["training_people_near"] >= 3 / 40
    released, failed = privacy.judge(GOOD | {"certain_copies": 3}, MANY)
    assert released is False and failed == ["certain copies"]


def test_a_copy_lies_at_no_distance(library):
    """Would fall: the distances themselves; a mirrored and a moved copy are still that person."""
    person = _people(40, 0)[[17]]
    for turned in (person, person[:, ::-1], np.roll(person, -1, axis=3)):
        near, whose = library.nearest(turned)
        assert (whose[:, :3] == 17).all() and near[:, :3].max() < np.log(0.01)
    near, whose = library.nearest(person)
    assert (whose == 17).all() and near.max() < np.log(0.01)


def test_between_two_people_is_at_neither(library):
    """Would fall: the ratio of the nearest to the second; half-way between two is near to both."""
    one, two = _people(40, 0)[[4, 9]]
    between, copy = (library.nearest(v[None])[0][0, 0] for v in ((one + two) / 2, one))
    assert between > -0.5 and copy < -3


def test_a_brain_in_the_middle_is_no_copy(library):
    """Would fall: near_copies; what is near to everybody, as a mean is, would be flagged."""
    middle = _people(40, 0).mean(0, keepdims=True) + 0.3 * (_people(1, 8) - _people(40, 0).mean(0))
    detector = copies.Detector(library.nearest(_people(40, 2))[0], 0.005)
    assert not detector.flags(library.nearest(middle)[0]).any()


def test_the_detector_stays_quiet_on_the_people_it_did_not_see():
    """Would fall: the threshold; one set in the middle of unseen people would flag them."""
    rng = np.random.default_rng(0)
    detector = copies.Detector(-rng.exponential(size=(200, 2)), 0.005)
    others = -rng.exponential(size=(5000, 2))  # as logs of ratios are
    assert 0.001 < detector.flags(others).mean() < 0.02
    assert detector.flags(np.array([[-8.0, 0.0], [0.0, -8.0]])).all()


def test_attack_reads_lower_loss_as_member():
    """Would fall: attack_auc, its direction, and that groups are not mixed."""
    rng = np.random.default_rng(1)
    ds = np.repeat([False, True], [60, 40])
    loss = rng.normal(size=100) + 5 * ds  # DS is harder for everybody: no evidence of anything
    other = rng.normal(size=100) + 5 * ds
    auc, error = attacks.attack_auc(loss, other, ds, ds)
    assert abs(auc - 0.5) < 2.5 * error and 0.02 < error < 0.06
    unbalanced = np.repeat([False, True], [20, 80])
    few = rng.normal(size=100) + 5 * unbalanced
    assert abs(attacks.attack_auc(loss, few, ds, unbalanced)[0] - 0.5) < 0.15
    assert attacks.attack_auc(loss - 4, other, ds, ds)[0] > 0.99
    assert attacks.attack_auc(loss + 4, other, ds, ds)[0] < 0.01


def test_attack_error_is_the_spread_over_cohorts():
    """Would fall: attack_auc_upper, the bound of the release."""
    rng = np.random.default_rng(2)
    ds = np.zeros(50, bool)
    found = [
        attacks.attack_auc(rng.normal(-0.3, 1, 50), rng.normal(size=50), ds, ds) for _ in range(200)
    ]
    values, errors = np.array(found).T
    assert 0.85 < errors.mean() / values.std() < 1.15


@pytest.mark.parametrize(
    ("name", "value"),
    [("copies_recalled", 0.94), ("false_alarms", 0.03), ("overfit_attack_auc", 0.85),
     ("near_copies", 0.03), ("certain_copies", 1), ("attack_auc_upper", 0.61)],
)  # fmt: skip
def test_every_bar_blocks(name: str, value: float):
    """Would fall: the release gate; any one failed test, and any blind control, must block."""
    assert privacy.judge(GOOD, MANY) == (True, [])
    released, failed = privacy.judge(GOOD | {name: value}, MANY)
    assert released == ("not valid" if name in CONTROLS else False) and len(failed) == 1


def test_too_few_people_block():
    """Would fall: that a small audit cannot pass."""
    verdict, failed = privacy.judge(GOOD, MANY | {"B": 60})
    assert verdict == "not enough people" and failed == ["60 people in B, 100 needed"]


def _attacked(shift: float, seed: int, count: int = 150) -> attacks.People:
    """Return people whose features lie `shift` SD towards a pattern, half of them with DS."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 20)) + shift * np.eye(20)[0]
    return attacks.People(features, None, features, np.arange(count) % 2 == 0)


def test_samples_that_lie_on_members_tell_them():
    """G25. Would fall: attack_auc of samples; a cohort of copies is caught, a fresh one not."""
    members, others, known = (_attacked(0, seed) for seed in (1, 2, 3))
    fresh = attacks.on_samples(_attacked(0, 4), known, members, others, 20)
    assert {row["attack"] for row in fresh} == {
        "distance", "distance, DS alone", "mean", "mean, DS alone"
    }  # fmt: skip
    assert all(abs(row["auc"] - 0.5) < 3 * row["se"] for row in fresh)
    stolen = members._replace(features=members.features + 0.1)
    caught = {row["attack"]: row for row in
              attacks.on_samples(stolen, known, members, others, 20)}  # fmt: skip
    assert caught["distance"]["auc"] > 0.95 and caught["mean"]["auc"] > 0.6
    assert caught["distance"]["found_at_1_pct"] > 0.9


def test_a_mean_in_many_directions_tells_members():
    """G25. Would fall: the attack on the samples' mean, which nearest neighbours never see."""
    rng, people = np.random.default_rng(5), []
    for seed in (1, 2, 3):
        features = np.random.default_rng(seed).normal(size=(60, 400))
        people.append(attacks.People(features, None, features, np.zeros(60, bool)))
    members, others, known = people
    drawn = members.features.mean(0) + rng.normal(size=(200, 400))
    synthetic = attacks.People(drawn, None, drawn, np.zeros(200, bool))
    rows = {row["attack"]: row for row in
            attacks.on_samples(synthetic, known, members, others, 20)}  # fmt: skip
    assert rows["mean"]["auc"] > 0.85 and rows["distance"]["auc"] < 0.65


def test_a_model_that_fits_members_worse_tells_them_too():
    """G25. Would fall: an attack in one direction alone would read AUC 0.1 as safe."""
    rng, ds = np.random.default_rng(3), np.zeros(80, bool)
    higher, others = rng.normal(2, 1, 80), rng.normal(size=80)
    row = attacks.attack_row("loss", "model", higher, others, ds, ds, either=True)
    assert row["auc"] > 0.85 and row["found_at_1_pct"] > 0.2
    assert attacks.attack_row("loss", "model", higher, others, ds, ds)["auc"] < 0.15


def test_a_vae_that_remembers_is_caught_by_its_error_and_its_mean():
    """G25. Would fall: weights_attack_auc_upper, which keeps the VAE at home."""
    rng = np.random.default_rng(6)
    members, others, public = (rng.normal(size=(60, 300)) for _ in range(3))
    drawn = members + 0.1 * rng.normal(size=members.shape), 0.6 * others
    known = attacks.on_vae(drawn, members.mean(0), members, others, public)
    aucs = {row["attack"]: row["auc"] for row in known}
    assert aucs["error"] > 0.95 and aucs["error beside components"] > 0.95 and aucs["mean"] > 0.8
    honest = [0.9 * side for side in (members, others)]
    rows = attacks.on_vae(honest, public.mean(0) * 0, members, others, public)
    assert all(abs(row["auc"] - 0.5) < 3.5 * row["se"] for row in rows if row["attack"] != "mean")


def test_a_control_that_fails_makes_the_audit_not_valid():
    """G24, P12. Would fall: that a blind audit could pass, or be called a leak."""
    for name in CONTROLS:
        bad = {"copies_recalled": 0.5, "false_alarms": 0.2, "overfit_attack_auc": 0.5}[name]
        assert privacy.judge(GOOD | {name: bad}, MANY)[0] == privacy.NOT_VALID

"""`map --shard k/n`: shares of the registration, and the run without one that collects them."""

import threading
import time

import numpy as np
import pytest
import tiny

from dsnb import __main__ as command_line
from dsnb import bids, record, rivals
from dsnb.anomaly import shares
from dsnb.checks import BadInput
from dsnb.config import replace


def study_of(**changes):
    few = {"demons_iterations": 3, "template_people": 4, "template_rounds": 1, "processes": 1}
    return replace(tiny.STUDY, maps=replace(tiny.STUDY.maps, **few | changes))


STUDY = study_of()
PEOPLE = np.flatnonzero(tiny.people()["kind"] != "twin")


@pytest.fixture
def root(tmp_path):
    """Return a data root whose template is there."""
    rivals.make_template(tiny.make_root(tmp_path / "root"), STUDY)
    return tmp_path / "root"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Return all bytes that the run without shards makes."""
    folder = tiny.make_root(tmp_path_factory.mktemp("straight"))
    rivals.register(folder, STUDY)
    return contents(folder)


@pytest.fixture
def calls(root, monkeypatch):
    """Return one entry a registered volume; the registration dies where `die_at` of them are."""
    honest = rivals.register_volume

    class Calls(list):
        die_at = None

    calls = Calls()

    def register_volume(*inputs):
        calls.append(1)
        if len(calls) == calls.die_at:
            raise KeyboardInterrupt
        return honest(*inputs)

    monkeypatch.setattr(rivals, "register_volume", register_volume)
    return calls


def contents(root):
    """Return the bytes of template and deformation, for manifests (which hold times) their keys."""
    made = {}
    for name in ("template", "deformation"):
        made[name] = record.require(root, name)
        files = (path for path in (root / name).rglob("*") if path.name != "product.json")
        made |= {path.relative_to(root): path.read_bytes() for path in files if path.is_file()}
    return made


def test_shares_and_straight_run_write_the_same(root, calls, straight):
    """Falls: that several nodes may share the registration without a changed bit."""
    for part in (3, 1, 2):
        assert not shares.register(root, STUDY, f"{part}/3")
    assert len(calls) == len(PEOPLE), "every row but the twins', once"
    assert shares.register(root, STUDY, "1/1")
    assert len(calls) == len(PEOPLE), "what shares made is not registered again"
    assert contents(root) == straight
    assert not shares.register(root, STUDY, "1/3") and contents(root) == straight


def test_what_shares_left_is_registered_by_the_collecting_run(root, calls, straight):
    """Falls: that a share that never ran costs time, not a result."""
    shares.register(root, STUDY, "2/3")
    shares.register(root, STUDY, "1/1")
    assert len(calls) == len(PEOPLE) and contents(root) == straight


@pytest.mark.parametrize("first", ["1/2", "1/1"])
def test_a_killed_run_goes_on_in_shares(first, root, calls, straight, monkeypatch):
    """Falls: that a killed share, or a killed run without one, loses at most a block."""
    monkeypatch.setattr(rivals, "BLOCK", 4)
    calls.die_at = 11  # the third of the third block
    with pytest.raises(KeyboardInterrupt):
        shares.register(root, STUDY, first)
    for shard in ("1/2", "2/2", "1/1"):
        shares.register(root, STUDY, shard)
    assert len(calls) == len(PEOPLE) + 3 and contents(root) == straight


def prepare_again(root):
    """Make `prepared` anew of other volumes."""
    product = record.begin(root, "prepared", "prepare", {"other": 1}, (), ("space",))
    table = tiny.people()
    np.save(product.folder / "volumes.npy", tiny.volumes(table)[::-1])
    bids.write_table(product.folder / "participants.tsv", table)
    product.finish()


@pytest.mark.parametrize("other", ["settings", "template", "volumes"])
def test_a_stale_share_is_not_collected(other, root, calls, straight, tmp_path):
    """Falls: that no map is made of rows of other settings, another template or other volumes."""
    changes = {"settings": {"demons_iterations": 1}, "template": {"template_people": 3}}
    shares.register(root, study_of(**changes.get(other, {})), "1/2")
    if other == "volumes":
        prepare_again(root)
        prepare_again(tiny.make_root(tmp_path / "other"))
        rivals.register(tmp_path / "other", STUDY)
        straight = contents(tmp_path / "other")
    shares.register(root, STUDY, "1/1")
    assert contents(root) == straight


def test_only_the_own_keys_folder_is_collected(root, calls):
    """Falls: that a share of an outdated job that runs on beside the new ones is not believed."""
    shares.register(root, STUDY, "1/2")
    (own,) = (root / "deformation").glob("shares-*")
    foreign = own.with_name("shares-0123456789abcdef")
    foreign.mkdir()
    first, second = PEOPLE[:2]  # of share 1 and of share 2
    np.save(own / f"{first}.npy", np.full(tiny.SHAPE, 0.25, np.float16))
    np.save(foreign / f"{second}.npy", np.full(tiny.SHAPE, 0.75, np.float16))
    (own / f".{second}.99.npy").write_bytes(b"half wri")  # by a killed share
    shares.register(root, STUDY, "1/1")
    found = rivals.load_deformation(root)[1]
    assert (found[first] == 0.25).all() and not (found[second] == 0.75).any()
    assert not list((root / "deformation").rglob("*shares*"))


def test_one_of_several_shards_makes_the_template(tmp_path, straight, monkeypatch):
    """Falls: that shards may start at the same moment, with no template there."""
    root, fits, honest = tiny.make_root(tmp_path), [], rivals.fit_template

    def fit_template(*inputs):
        fits.append(1)
        time.sleep(0.3)  # the others come meanwhile
        return honest(*inputs)

    monkeypatch.setattr(rivals, "fit_template", fit_template)
    shards = [
        threading.Thread(target=shares.register, args=(root, STUDY, f"{part}/3"))
        for part in (1, 2, 3)
    ]
    for shard in shards:
        shard.start()
    for shard in shards:
        shard.join()
    assert len(list(root.glob("deformation/shares-*/*.npy"))) == len(PEOPLE), "a shard failed"
    shares.register(root, STUDY, "1/1")
    assert len(fits) == 1 and contents(root) == straight


@pytest.mark.parametrize("shard", ["0/4", "5/4", "x", "1", "1/0"])
def test_a_bad_shard_is_refused(shard, tmp_path):
    """Falls: that a wrong share is named before anything is registered."""
    words = ["map", "--shard", shard, "--preset", "smoke", "--data-root", str(tmp_path)]
    with pytest.raises(BadInput, match="E-SHARD map: "):
        command_line.run(command_line.parse(words))
    assert not (tmp_path / "template").exists()


def test_a_share_ends_with_the_registration(tmp_path, monkeypatch):
    """Falls: that the shard travels from the flag, and that a share trains and maps nothing."""
    seen = []
    monkeypatch.setattr(shares, "register", lambda root, study, shard: seen.append(shard))
    words = ["map", "--shard", "2/3", "--preset", "smoke", "--data-root", str(tmp_path)]
    assert command_line.run(command_line.parse(words)) == 0
    assert seen == ["2/3"] and [path.name for path in tmp_path.iterdir()] == ["study.json"]

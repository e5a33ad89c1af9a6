"""What the study is built from: a lock with hashes, licences, no network, no code in data."""

import hashlib
import re
import socket
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_layout import ROOT, constraints

# `docutils` is a collection; what is under the GPL in it is an Emacs mode, which nobody imports.
EXCEPTIONS = {"docutils"}
STRONG_COPYLEFT = re.compile(r"\b(A?GPL(v?\d)?|GNU (AFFERO )?GENERAL PUBLIC)", re.I)
WEAK = re.compile(r"LGPL|LESSER GENERAL PUBLIC", re.I)
# What comes from the machine's own origin of torch, without a hash that others would have.
UNHASHED = {"torch"}
UNSAFE = {
    "S301": "import pickle\npickle.loads(b'')\n",
    "S307": "eval(input())\n",
    "S102": "exec(input())\n",
    "S506": "import yaml\nyaml.load('x', yaml.Loader)\n",
    "S602": "import subprocess\nsubprocess.run(input(), shell=True)\n",
    "S202": "import tarfile\ntarfile.open('x').extractall('y')\n",
}
# What ruff has no rule for.
UNSEEN = re.compile(r"(allow_pickle=(?!False)|weights_only=(?!True)|os\.(system|popen)\()")


def licence_of(name: str) -> str:
    """Return what a distribution says of its licence, '' where it says nothing."""
    about = metadata.metadata(name)
    said = [about.get("License-Expression"), (about.get("License") or "").split("\n")[0]]
    kinds = [kind for kind in about.get_all("Classifier") or [] if kind.startswith("License ::")]
    return "; ".join(filter(None, [*said, *(kind.split(" :: ")[-1] for kind in kinds)]))


def objections(closure: dict[str, str], licence=licence_of) -> list[str]:
    """Return a sentence for each package of unknown or strong copyleft licence, with who asks."""
    found = []
    for name, asks in closure.items():
        said = licence(name)
        strong = STRONG_COPYLEFT.search(WEAK.sub("", said)) and name not in EXCEPTIONS
        if strong or not said or said == "UNKNOWN":
            found.append(f"{name}, which {asks} asks for: {said or 'no licence'}")
    return found


def closure(name: str = "dsnb", extras: tuple[str, ...] = ("", "dev")) -> dict[str, str]:
    """Return {package: who asks for it} of everything that is installed for the study."""
    known, todo = {}, [(name, "the study", extras)]
    while todo:
        name, asks, extras = todo.pop()
        name = canonicalize_name(name)
        if name in known:
            continue
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another platform or Python
        known[name] = asks
        for words in map(Requirement, wanted):
            marks = [{"extra": extra} for extra in extras or ("",)]
            if words.marker is None or any(map(words.marker.evaluate, marks)):
                todo.append((words.name, name, ("", *words.extras)))
    return known


def test_every_licence_is_known_and_none_is_strong_copyleft():
    """L02, G33. Falls: that the study may be used and passed on by anybody."""
    found = closure()
    assert len(found) > 100 and {"torch", "monai", "tyro", "jupyter-book"} <= set(found)
    assert objections(found) == []


def test_a_gpl_package_is_named_with_who_asks_for_it():
    """Falls: that the licence test sees what it looks for."""
    said = {"a": "GPL-3.0-or-later", "b": "GNU General Public License v2 (GPLv2)", "c": "",
            "d": "LGPL-3.0", "e": "MIT", "f": "AGPL-3.0-only"}  # fmt: skip
    found = objections(dict.fromkeys(said, "dsnb"), said.get)
    assert [sentence[0] for sentence in found] == ["a", "b", "c", "f"]
    assert found[0] == "a, which dsnb asks for: GPL-3.0-or-later"


def test_the_lock_holds_the_tested_set_with_hashes():
    """L01, G31. Falls: that what is installed from the lock is what was tested."""
    entries = re.split(r"\n(?=\S)", (ROOT / "lock.txt").read_text().strip())
    entries = [entry for entry in entries if not entry.startswith("#")]
    pins = dict(re.match(r"([\w.-]+)==([\w.]+)", entry).groups() for entry in entries)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    pins, tested = {canonicalize_name(k): v for k, v in pins.items()}, constraints()
    assert {k: v for k, v in pins.items() if k in tested} == {
        k: v for k, v in tested.items() if k not in UNHASHED
    }
    assert set(pins) - set(tested) <= {"setuptools", "wheel"}


def _wheel(folder: Path) -> Path:
    """Write a wheel of one module."""
    about = "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n"
    form = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        "tiny_thing.py": "",
        "tiny_thing-1.0.dist-info/METADATA": about,
        "tiny_thing-1.0.dist-info/WHEEL": form,
        "tiny_thing-1.0.dist-info/RECORD": "",
    }  # fmt: skip
    path = folder / "tiny_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_a_wheel_that_differs_from_the_lock_is_refused_with_both_digests(tmp_path):
    """L01, G34. Falls: that the command of the guides checks hashes, offline."""
    wheel = _wheel(tmp_path)
    good = hashlib.sha256(wheel.read_bytes()).hexdigest()
    bad = ("0" if good[0] != "0" else "1") + good[1:]
    words = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(tmp_path)]
    words += ["--no-deps", "--require-hashes", "--target", str(tmp_path / "there"), "-r"]
    for digest, ends in ((good, 0), (bad, 1)):
        lock = tmp_path / "lock.txt"
        lock.write_text(f"tiny-thing==1.0 --hash=sha256:{digest}\n")
        answer = subprocess.run([*words, str(lock)], capture_output=True, text=True)
        assert answer.returncode == ends, answer.stderr
    assert good in answer.stderr and bad in answer.stderr


def _connect(folder: Path) -> subprocess.CompletedProcess:
    code = "import socket\nsocket.create_connection(('203.0.113.7', 80), 0.2)\n"
    (folder / "caller.py").write_text(code)
    words = [sys.executable, str(folder / "caller.py")]
    return subprocess.run(words, capture_output=True, text=True)


def test_a_connection_fails_and_names_the_line(tmp_path):
    """L03, G32. Falls: that tests, and the Pythons that they start, open no connection."""
    with pytest.raises(BaseException, match=r"test_supply\.py:\d+ asks for 203\.0\.113\.7"):
        socket.create_connection(("203.0.113.7", 80), 0.2)
    with pytest.raises(BaseException, match="asks for example.org"):
        socket.getaddrinfo("example.org", 80)
    answer = _connect(tmp_path)
    assert "caller.py:2 asks for 203.0.113.7" in answer.stderr and answer.returncode
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def ruff(*paths: Path, select: str = "S") -> str:
    words = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"]
    words += ["--config", str(ROOT / "pyproject.toml"), "--select", select, *map(str, paths)]
    return subprocess.run(words, capture_output=True, text=True).stdout


def test_no_file_of_ours_runs_what_it_reads():
    """G28. Falls: that data, tables and checkpoints are never code."""
    found = ruff(ROOT / "dsnb", ROOT / "notebooks", select=",".join(UNSAFE))
    assert "All checks passed" in found, found
    hits = [path.name for path in (ROOT / "dsnb").rglob("*.py") if UNSEEN.search(path.read_text())]
    assert hits == []
    unsafe = ("np.load(x, allow_pickle=True)", "torch.load(x, weights_only=False)", "os.system(x)")
    assert all(map(UNSEEN.search, unsafe)) and not UNSEEN.search("np.load(x, allow_pickle=False)")


@pytest.mark.parametrize("rule", UNSAFE)
def test_the_search_for_unsafe_calls_finds_each(rule, tmp_path):
    """Falls: that the search above can fail."""
    (tmp_path / "x.py").write_text(UNSAFE[rule])
    assert rule in ruff(tmp_path / "x.py", select=rule)

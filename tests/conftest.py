"""Fixtures that several tests share."""

import os
import runpy
from pathlib import Path

import pytest

GUARD = str(Path(__file__).resolve().parent / "guard")
# No network, here and in every Python that a test starts.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [GUARD, os.environ.get("PYTHONPATH")]))
runpy.run_path(f"{GUARD}/sitecustomize.py")


@pytest.fixture(scope="session")
def real_scans() -> Path:
    """Return the folder of 46 open T1w scans in MNI space; skip, or fail if asked, where absent.

    Found through `DSNB_REAL`, or in `shared/real` beside the checkout.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "real"
    folder = Path(os.environ.get("DSNB_REAL", beside)) / "ds002748-2mm"
    if not folder.is_dir():
        reason = "the open scans ds002748-2mm are absent (set DSNB_REAL to their folder)"
        if "real" in os.environ.get("DSNB_REQUIRE", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder

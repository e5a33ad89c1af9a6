"""Fixtures that several tests share."""

import os
from pathlib import Path

import pytest


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

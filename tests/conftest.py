"""What the tests of all packages share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


# Models are tiny and test modules run side by side: threads would only wait for each other. Processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips; tests that need it are skipped, with the reason, where it is not there."""
    folder = os.environ.get("MMBALANCE_DATA")
    if not folder:
        pytest.skip("MMBALANCE_DATA is not set: it must name the folder that holds grid_s1, crema_d, ...")
    if not Path(folder).is_dir():
        pytest.skip(f"MMBALANCE_DATA={folder} is not a folder")
    return Path(folder)

"""A clip that tests of rows share."""

from __future__ import annotations

import pytest

from tests.media_factory import write_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_clip(tmp_path_factory.mktemp("media") / "c.mp4", seconds=0.4, size=(24, 32)).read_bytes()

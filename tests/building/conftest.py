"""Media of the toy data set, and the data set built once per file."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_mmbalance.building.engine import build
from hf_mmbalance.building.report import finish
from hf_mmbalance.building.sheet import contact_sheet
from tests.media_factory import write_clip

from .toy import CARD, make_plan


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("media")
    for i in range(24):
        write_clip(root / f"{i:02d}.mp4", seconds=0.4, size=(32, 48), tone=300.0 + 20 * i)
    return root


@pytest.fixture(scope="module")
def built(media, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "toy"
    plan = make_plan(media)
    report = finish(plan, out, build(plan, out), CARD)
    contact_sheet(out, report["shards"], plan.classes, "label")
    return out

"""Commands of the dataset scripts, wherever they are written, have the flags that their scripts need."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from .test_crema_d import load_script


ROOT = Path(__file__).parents[2]
PLACES = ("README.md", "docs/*.md", "model_cards/*.md", "hf_mmbalance/configs/*.yaml", "dataset_scripts/*.py")


def test_every_command_is_understood():
    scripts = {name: load_script(name).parser for name in ("crema_d", "kinetics_sounds", "grid")}
    found = 0
    for path in (path for place in PLACES for path in ROOT.glob(place)):
        text = re.sub(r"\\\n[# ]*", "", path.read_text(encoding="utf-8"))
        for name, command in re.findall(r"^[# ]*python dataset_scripts/(\w+)\.py (.*)$", text, re.M):
            scripts[name].parse_args(shlex.split(command, comments=True))
            found += 1
    assert found >= 14

"""docs/hub.md, data sets and metrics: its blocks are run one after the other as written, with a user's name put in."""

from __future__ import annotations

import json
import re

import pytest

from .built import SCRIPTS


ROOT = SCRIPTS.parent
RUN = """
import json, os, subprocess, sys
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
for kind, text in json.loads(sys.argv[1]):
    print("#", text.splitlines()[0], flush=True)
    command = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [sys.executable, "-c", text]
    subprocess.run(command, check=True)
"""


def blocks(*sections: str) -> list[tuple[str, str]]:
    text = (ROOT / "docs" / "hub.md").read_text()
    parts = {part.split("\n", 1)[0]: part for part in text.split("\n## ")[1:]}
    return [block for section in sections for block in re.findall(r"```(bash|python)\n(.*?)```", parts[section], re.S)]


@pytest.mark.slow
def test_the_blocks_run_as_written(hub, run_client, real_data, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "dataset_scripts").symlink_to(SCRIPTS)
    raw = tmp_path / "raw"
    (raw / "s1").mkdir(parents=True)
    (raw / "align").symlink_to(real_data / "grid_s1" / "align")
    for path in sorted((real_data / "grid_s1" / "s1").iterdir())[::60]:
        (raw / "s1" / path.name).symlink_to(path)
    for name, size in (("grid", "48"), ("grid_lips", "32")):
        flags = ["build", "--source", str(raw), "--out", str(home / "built" / name), "--num-proc", "1"]
        run_client(SCRIPTS / "grid.py", args=[*flags, "--frames", "2", "--frame-size", size], home=home)
    # training has a test of its own (test_grid_round_trip.py)
    wanted = [(kind, text) for kind, text in blocks("Datasets", "Metrics") if "train.py" not in text]
    assert len(wanted) == 6
    told = json.dumps([(kind, text.replace("user/", f"{hub.user}/")) for kind, text in wanted])
    done = run_client(RUN, args=[told], home=home, timeout=300)
    assert "'sentence': '" in done.stdout and re.search(r"^configs +lips, default\ndefault +lips$", done.stdout, re.M)
    assert "1.0 {'modality_0'" in done.stdout and hub.token not in done.stdout + done.stderr

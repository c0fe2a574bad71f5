"""The comparison on GRID, cut down: that it runs, can be resumed, and prints what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "balancing_grid.py"


@pytest.mark.slow
@pytest.mark.skipif("MMBALANCE_DATA" not in os.environ, reason="MMBALANCE_DATA does not name the folder of clips")
def test_the_quick_comparison_runs_and_is_resumed(tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        "--quick",
        "--out",
        str(tmp_path),
        "--jobs",
        "1",
        "--methods",
        "ogm",
        "qmf",
    ]
    said = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(2)]
    assert said[0] == said[1]
    for name in ("joint", "joint_unimodal", "ogm", "qmf"):
        assert f"| `{name}` |" in said[0]
    report = json.loads((tmp_path / "quick" / "report.json").read_text())["digits"]
    assert report["n"] == 80
    for row in report["rows"]:
        for layer in ("own", "sum", "fitted"):
            assert 0 < row[layer]["accuracy"] < 100 and 0 <= row[layer]["balance_index"] <= 1
            assert row[layer]["verdict"] in ("equal", "better", "worse", "open")

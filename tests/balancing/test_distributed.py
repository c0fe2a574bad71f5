"""Splitting a step over processes and accumulated batches changes nothing; every method in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..training.test_distributed import check_same_curve, checkpoints, split_run
from .two_processes import COMPARED


EVERYTHING = f"{Path(__file__).with_name('everything.py')}:Everything"


@pytest.mark.slow
def test_two_processes_and_accumulation_give_the_curve_of_one(tmp_path):
    one_process, folder = tmp_path / "one", tmp_path / "run"
    split_run(one_process, 1, 1, "--balancing", EVERYTHING)
    split_run(folder, 2, 2, "--balancing", EVERYTHING)
    check_same_curve(folder, one_process)
    states, expected_states = (
        torch.load(checkpoints(path)[-1] / "balancing.pt", weights_only=True) for path in (folder, one_process)
    )
    assert expected_states["step"] == 9 and expected_states["history"].all()
    for name, value in expected_states.items():
        torch.testing.assert_close(states[name], value, atol=1e-4, rtol=1e-4, msg=name)
    plain = json.loads((one_process / "results.json").read_text())["arguments"]
    assert plain["balancing"] == EVERYTHING and plain["balancing_options"] is None


@pytest.mark.slow
def test_every_method_gives_in_two_processes_what_it_gives_in_one():
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
         "--rdzv-endpoint", "localhost:0", "-m", "tests.balancing.two_processes"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in COMPARED:
        assert f"{name}: same" in done.stdout and f"{name} (modalities missing): same" in done.stdout

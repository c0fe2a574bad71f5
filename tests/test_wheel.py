"""A built wheel carries everything that a run needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_trains_outside_the_checkout(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, ROOT], check=True, timeout=300)
    (wheel,) = wheels.glob("hf_mmbalance-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, timeout=300)
    package = site / "hf_mmbalance"
    assert (package / "py.typed").is_file()
    for folder in ("configs", "hub/demo", "data/adapters"):
        ours = {path.name for path in (ROOT / "hf_mmbalance" / folder).iterdir() if path.is_file()}
        assert {path.name for path in (package / folder).iterdir() if path.is_file()} == ours, folder
    # The wheel's package comes first on the path: before the editable install of the checkout under test.
    environment = {**os.environ, "PYTHONPATH": str(site)}
    options = ["--config", "synthetic", "--max_steps", "2", "--output_dir", "run"]
    small = ["--train_clips", "64", "--test_clips", "32", "--calibration_clips", "32", "--validation_clips", "32"]
    done = subprocess.run(
        [sys.executable, "-m", "hf_mmbalance.cli", "train", *options, *small],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["n"] == 32
    where = [sys.executable, "-c", "import hf_mmbalance; print(hf_mmbalance.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert str(site) in found.stdout
    card = [sys.executable, "-m", "hf_mmbalance.cli", "card", "run", "--repo_id", "me/made-up"]
    subprocess.run(card, cwd=tmp_path, env=environment, capture_output=True, check=True, timeout=300)
    assert 'model="me/made-up"' in (tmp_path / "run" / "README.md").read_text()


def test_the_workflow_runs_what_ci_runs_on_the_pythons_that_the_package_names() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert jobs["tests"]["strategy"]["matrix"]["python"] == named
    assert any(step.get("run") == ".ci/run" for step in jobs["tests"]["steps"])

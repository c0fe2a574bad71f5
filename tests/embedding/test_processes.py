"""Two processes write the bytes that one writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel

from ..training.tiny_runs import AUDIO, VISION
from .test_embed import files


@pytest.mark.slow
def test_two_processes_killed_and_resumed_write_what_one_writes(tmp_path):
    towers = []
    for name, tower in (("audio", AUDIO), ("vision", VISION)):
        AutoModel.from_config(AutoConfig.for_model(**tower)).save_pretrained(tmp_path / name)
        towers += [f"--{name}_model", str(tmp_path / name)]
    options = ["--classes", "3", "--groups", "6", "--train_clips", "300", "--calibration_clips", "6", "--test_clips",
               "3", "--validation_clips", "3", "--seconds", "0.16", "--frames", "2", "--frame_size", "16"]  # fmt: skip

    def command(out: Path, *launch: str) -> list[str]:
        return [*launch, "embed", "--dataset", "synthetic", *towers, "--out", str(out), "--draws", "2", *options]

    alone = command(tmp_path / "one", sys.executable, "-m", "hf_mmbalance.cli")
    subprocess.run(alone, check=True, capture_output=True, timeout=300)
    config = Path(__file__).parents[2] / "accelerate_configs" / "cpu_2proc.yaml"
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config),
              "--main_process_port", "0", "-m", "hf_mmbalance.cli")  # fmt: skip
    process = subprocess.Popen(command(tmp_path / "two", *launch), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        process.wait(timeout=20)  # killed in the middle on a slow machine, finished on a fast one
    except subprocess.TimeoutExpired:
        process.kill()
        subprocess.run(["pkill", "-9", "-f", str(tmp_path / "two")], check=False)
        process.wait()
    done = subprocess.run(command(tmp_path / "two", *launch), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files(tmp_path / "two") == files(tmp_path / "one")

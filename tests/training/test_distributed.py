"""Two real processes give what one gives, and a run killed at any moment ends like one left alone, bit for bit."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_mmbalance.processes import check_joined, lock_folder, prefer_cpu_where_there_is_no_accelerator
from hf_mmbalance.training import arguments
from hf_mmbalance.training.cli import train
from hf_mmbalance.training.resuming import last_complete_checkpoint
from tests.media_factory import write_clip

from .tiny_runs import AUDIO, TINY, TOWERS, VISION, state_of


logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
GLOBAL_BATCH = 16
SAME = (
    *TINY,
    *("--train_clips", "44", "--validation_clips", "13", "--test_clips", "21", "--num_train_epochs", "3"),
    *("--calibration_clips", "30", "--decision_rung", "temperature"),
    *("--learning_rate", "3e-3", "--logging_steps", "1"),
    *("--frequency_masks", "1", "--time_masks", "1", "--time_mask_width", "4", "--frequency_mask_width", "4"),
    # Some gradients are 0 but for rounding (keys' biases, under a softmax): Adam must not blow them up to a full step.
    *("--adam_epsilon", "1e-6"),
)


def start(folder: Path, processes: int, *options: str, launcher: bool = False) -> subprocess.Popen:
    """`train.py` in processes of its own; later options win. One process has a launcher only where asked for."""
    command = [sys.executable]
    if processes == 2 or launcher:
        config = ROOT / "accelerate_configs" / ("cpu.yaml" if processes == 1 else "cpu_2proc.yaml")
        # Port 0: a free one. The launcher's own default is taken where two launches run at a time.
        command += ["-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file", str(config)]
    return subprocess.Popen(
        [*command, str(ROOT / "train.py"), *options, "--output_dir", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))


def losses(folder: Path) -> np.ndarray:
    history = state_of(checkpoints(folder)[-1])["log_history"]
    return np.array([entry["loss"] for entry in history if "loss" in entry])


def split_run(folder: Path, processes: int, accumulation: int, *options: str) -> str:
    """A run whose steps of `GLOBAL_BATCH` clips are split over processes and accumulated batches."""
    size = GLOBAL_BATCH // processes // accumulation
    sizes = ("--per_device_train_batch_size", str(size), "--gradient_accumulation_steps", str(accumulation))
    return finish(start(folder, processes, *SAME, *options, *sizes))


def check_same_curve(folder: Path, whole: Path) -> dict[str, torch.Tensor]:
    """Losses and weights of a split run are those of the whole one; returns its weights."""
    expected = losses(whole)
    assert len(expected) == 9 and np.abs(np.diff(expected)).max() > 0.01
    np.testing.assert_allclose(losses(folder), expected, atol=1e-4)
    weights, expected_weights = (load_file(path / "model.safetensors") for path in (folder, whole))
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=0, msg=name)
    return weights


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    split_run(folder, 1, 1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "accumulation"), [(2, 2), (1, 2)])
def test_two_processes_and_accumulation_give_the_curve_of_one(one_process, tmp_path, processes, accumulation):
    folder = tmp_path / "run"
    said = split_run(folder, processes, accumulation)
    states = {path.name for path in checkpoints(folder)[-1].glob("rng_state*")}
    assert states == ({"rng_state_0.pth", "rng_state_1.pth"} if processes == 2 else {"rng_state.pth"})
    assert said.count("clips: train 44, calibration 30") == 1  # said once, not by every process
    weights = check_same_curve(folder, one_process)
    assert not weights["fusion.log_temperature"].eq(0).all()  # it was fitted
    results, expected_results = (json.loads((path / "results.json").read_text()) for path in (folder, one_process))
    for row, other in zip(results["rows"], expected_results["rows"], strict=True):
        for name, value in other.items():
            assert row[name] == (value if isinstance(value, str | int) else pytest.approx(value, abs=1e-4)), name
    for modality, row in expected_results["weights"].items():
        assert results["weights"][modality] == pytest.approx(row, abs=1e-4)
    assert results["n_per_split"] == expected_results["n_per_split"]


@pytest.mark.slow
def test_two_processes_of_which_one_may_see_no_sound_at_all(tmp_path):
    for place, name in enumerate(("bark", "bell", "rain")):
        for clip in range(8):
            tone = None if clip % 4 else 400.0 + 300 * place  # one in four has sound
            path = tmp_path / "clips" / name / f"{name}{clip}.mp4"
            write_clip(path, seconds=0.2, size=(32, 32), tone=tone, colour=(80 * place, 100, 20 * clip))
    options = ["--dataset", str(tmp_path / "clips"), *TOWERS, "--frame_size", "16", "16", "--frames", "2"]
    options += ["--per_device_train_batch_size", "2", "--num_train_epochs", "2", "--disable_tqdm", "true"]
    finish(start(tmp_path / "run", 2, *options, "--activation_checkpointing", "true"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = {row["method"]: row["n"] for row in results["rows"] if row["split"] == "test"}
    assert rows["audio"] < rows["vision"] == rows["fused"]


DROPPING = (
    *TINY,
    *("--audio_config", json.dumps({**AUDIO, "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1})),
    *("--vision_config", json.dumps({**VISION, "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1})),
    *("--classifier_dropout", "0.2", "--modality_dropout", "0.3", "0.2"),
    *("--frequency_masks", "1", "--time_masks", "1", "--lr_scheduler_type", "cosine", "--warmup_steps", "0.1"),
    *("--train_clips", "54", "--num_train_epochs", "9", "--per_device_train_batch_size", "8"),
    # Steps 3, 6, 9, ... of epochs of 7: in the middle of epochs, and at the end of every third.
    *("--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "steps", "--eval_steps", "3"),
    *("--save_total_limit", "3"),
)


def wait_for_checkpoint(process: subprocess.Popen, folder: Path, before: int) -> None:
    deadline = time.monotonic() + 200
    while not any((path / "trainer_state.json").exists() and int(path.name[11:]) > before
                  for path in checkpoints(folder)):  # fmt: skip
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_with_children(process: subprocess.Popen) -> None:
    """SIGKILL a launcher and what it launched: its processes have sessions of their own and would train on."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()  # returns when the last of them has closed the pipe


def kill_at_random(folder: Path, processes: int, *options: str) -> None:
    """Start, wait for a new checkpoint, then SIGKILL everything a moment later."""
    before = max([int(path.name[11:]) for path in checkpoints(folder)], default=0)
    process = start(folder, processes, *options)
    moment = random.uniform(0.0, 0.6)
    try:
        wait_for_checkpoint(process, folder, before)
        time.sleep(moment)
        assert process.poll() is None, "the run was over before it could be killed"
    finally:
        kill_with_children(process)
    last = max(int(path.name[11:]) for path in checkpoints(folder))
    logger.warning("killed %.3f s after a checkpoint, last step saved %d", moment, last)  # shown if the test fails


def leave_half_written(folder: Path) -> None:
    """A checkpoint newer than all, cut off while it was written."""
    newest = checkpoints(folder)[-1]
    half = folder / f"checkpoint-{int(newest.name[11:]) + 3}"
    shutil.copytree(newest, half)
    for name in ("trainer_state.json", "model.safetensors"):
        if (half / name).exists():
            os.truncate(half / name, (half / name).stat().st_size // 2)


def assert_same_end(folder: Path, left_alone: Path) -> None:
    assert [path.name for path in checkpoints(folder)] == [path.name for path in checkpoints(left_alone)]
    last = checkpoints(left_alone)[-1].name
    for part in (".", last):
        weights, expected = (load_file(path / part / "model.safetensors") for path in (folder, left_alone))
        assert weights.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    results, expected = (json.loads((path / "results.json").read_text()) for path in (folder, left_alone))
    assert results["rows"] == expected["rows"] and results["weights"] == expected["weights"]
    assert Path(results["best_checkpoint"]).name == Path(expected["best_checkpoint"]).name


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_at_random_moments_ends_like_one_left_alone(tmp_path, processes):
    batch = str(8 // processes)
    options = (*DROPPING, "--per_device_train_batch_size", batch)
    left_alone, killed = tmp_path / "left_alone", tmp_path / "killed"
    finish(start(left_alone, processes, *options))
    resume = ("--resume_from_checkpoint", "true")
    kill_at_random(killed, processes, *options)
    leave_half_written(killed)
    if processes == 1:
        kill_at_random(killed, processes, *options, *resume)
    finish(start(killed, processes, *options, *resume))
    assert_same_end(killed, left_alone)


@pytest.mark.slow
def test_two_processes_gone_on_with_in_the_middle_of_an_epoch_end_with_the_same_weights(tmp_path):
    options = (*DROPPING, "--per_device_train_batch_size", "4", "--num_train_epochs", "3", "--save_total_limit", "9")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    finish(start(whole, 2, *options))
    state = state_of(whole / "checkpoint-9")  # the second step of the second epoch
    for kept in {9, state["best_global_step"]}:
        shutil.copytree(whole / f"checkpoint-{kept}", resumed / f"checkpoint-{kept}")
    finish(start(resumed, 2, *options, "--resume_from_checkpoint", "true"))
    for part in (".", "checkpoint-21"):
        weights, expected = (load_file(path / part / "model.safetensors") for path in (resumed, whole))
        assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []


STOPPED = (
    *DROPPING,
    *("--save_strategy", "epoch", "--eval_strategy", "epoch", "--logging_steps", "1", "--num_train_epochs", "6"),
)


def wait_for(process: subprocess.Popen, words: str) -> str:
    """Read what a run says until it has said `words`."""
    said = ""
    while words not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    return said


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """The folder of a run of so many processes that nobody stops; made once per number."""
    folders: dict[int, Path] = {}

    def run(processes: int, *options: str) -> Path:
        if processes not in folders:
            folders[processes] = tmp_path_factory.mktemp("left_alone") / "run"
            finish(start(folders[processes], processes, *options))
        return folders[processes]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "processes"), [("SIGTERM", 143, 1), ("SIGINT", 130, 1), ("SIGTERM", 1, 2)]
)
def test_a_run_that_is_told_to_stop_saves_a_checkpoint_and_says_how_to_go_on(
    left_alone, tmp_path, number, status, processes
):
    options = (*STOPPED, "--per_device_train_batch_size", str(8 // processes))
    expected, stopped = left_alone(processes, *options), tmp_path / "stopped"
    process = start(stopped, processes, *options)
    said = wait_for(process, "epoch 1.429: train loss")  # the third step of the second epoch
    process.send_signal(getattr(signal, number))
    said += process.communicate(timeout=100)[0]
    assert process.returncode == status or processes == 2, said
    last = checkpoints(stopped)[-1]
    assert f"stopped by {number} after step {last.name[11:]}; resume with" in said
    assert f"--output_dir {stopped} --resume_from_checkpoint true" in said
    assert "Traceback" not in said or processes == 2  # the launcher's own
    assert "eval_nll" not in state_of(last)["log_history"][-1]
    finish(start(stopped, processes, *options, "--resume_from_checkpoint", "true"))
    assert_same_end(stopped, expected)


def test_a_folder_in_which_a_run_is_at_work_is_refused_to_others(tmp_path, capsys):
    folder = tmp_path / "run"
    with lock_folder(folder):
        assert train([*TINY, "--output_dir", str(folder)]) == 2
        assert f"error: another run still writes into {folder}" in capsys.readouterr().err
    assert not folder.exists()
    assert train([*TINY, "--output_dir", str(folder)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_ends_with_the_launcher_of_its_one_process(tmp_path, number):
    """That launcher passes no signal on; the trainer must save and go, not hold the folder."""
    options = (*STOPPED, "--num_train_epochs", "200")
    process = start(tmp_path / "run", 1, *options, launcher=True)
    wait_for(process, "epoch 1.429: train loss")
    os.kill(process.pid, number)
    said = process.communicate(timeout=100)[0]  # returns when the trainer has closed the pipe
    assert "stopped by SIGTERM after step" in said
    with lock_folder(tmp_path / "run"):
        assert last_complete_checkpoint(tmp_path / "run") is not None


def test_processes_that_do_not_join_are_refused(monkeypatch, tmp_path, capsys):
    """Launched as one of two on a CPU without `ACCELERATE_USE_CPU`, accelerate takes a process for the only one."""
    for name in ("ACCELERATE_USE_CPU", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(arguments, "prefer_cpu_where_there_is_no_accelerator", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train(["--output_dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: 2 processes were launched but 1 joined") and "cpu_2proc.yaml" in said
    assert not (tmp_path / "run").exists()
    check_joined(2)


@pytest.mark.parametrize(
    ("world", "accelerator", "expected"), [("2", False, "true"), ("2", True, None), ("1", False, None)]
)
def test_processes_are_joined_on_the_cpu_where_there_is_nothing_else(monkeypatch, world, accelerator, expected):
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    prefer_cpu_where_there_is_no_accelerator()
    assert os.environ.get("ACCELERATE_USE_CPU") == expected

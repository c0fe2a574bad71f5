"""What each `hub_strategy` pushes, that training never waits or dies for it, and what a run says of its origin."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from hf_mmbalance import provenance
from hf_mmbalance.hub import checkpoint_push as pushing
from hf_mmbalance.hub.checkpoint_push import CheckpointPushes
from hf_mmbalance.hub.errors import HubError
from hf_mmbalance.training import run
from hf_mmbalance.training.arguments import parse_arguments

from .tiny_runs import TINY, random_splits


MODEL = {"model.safetensors", "config.json", "processor_config.json", "modeling_mmbalance.py"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    for name in (*MODEL, "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def pushed(monkeypatch) -> list[set[str]]:
    """The files of every push, instead of a push."""
    found: list[set[str]] = []

    def push(folder: Path, repo_id: str, **options) -> None:
        found.append({path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()})

    monkeypatch.setattr(pushing, "push_checkpoint", push)
    return found


def pushes(tmp_path: Path, *options: str) -> CheckpointPushes:
    arguments = parse_arguments([*TINY, "--output_dir", str(tmp_path), *options])
    return CheckpointPushes("me/x", arguments.training)


@pytest.mark.parametrize(
    ("strategy", "subfolder"),
    [("end", None), ("every_save", ""), ("checkpoint", "last-checkpoint"), ("all_checkpoints", "checkpoint-7")],
)
def test_each_strategy_pushes_its_files_and_never_a_pickle(tmp_path, checkpoint, pushed, strategy, subfolder):
    queue = pushes(tmp_path, "--hub_strategy", strategy)
    queue.add(checkpoint, "Step 7")
    queue.finish()
    more = {f"{subfolder}/{name}" for name in (*MODEL, "trainer_state.json")} if subfolder else set()
    assert pushed == ([] if strategy == "end" else [MODEL | more])
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-7"}, "what was staged is not cleared away"


def test_a_checkpoint_may_be_deleted_while_it_is_pushed(tmp_path, checkpoint, monkeypatch):
    gone, contents = threading.Event(), []

    def push(folder: Path, repo_id: str, **options) -> None:
        gone.wait(10)
        contents.append((folder / "model.safetensors").read_text())

    monkeypatch.setattr(pushing, "push_checkpoint", push)
    queue = pushes(tmp_path)
    queue.add(checkpoint, "Step 7")
    for path in checkpoint.iterdir():
        path.unlink()
    gone.set()
    queue.finish()
    assert contents == ["model.safetensors"]


def test_a_push_still_running_is_not_waited_for(tmp_path, checkpoint, monkeypatch):
    release, messages, warnings = threading.Event(), [], []

    def push(folder: Path, repo_id: str, *, message: str, **options) -> None:
        release.wait(10)
        messages.append(message)

    monkeypatch.setattr(pushing, "push_checkpoint", push)
    monkeypatch.setattr(pushing.logger, "warning", lambda text, *values: warnings.append(text % values))
    for options, expected in (((), ["one"]), (("--hub_always_push", "true"), ["one", "two"])):
        release.clear()
        messages.clear()
        queue = pushes(tmp_path, *options)
        queue.add(checkpoint, "one")
        queue.add(checkpoint, "two")
        assert messages == []
        release.set()
        queue.finish()
        assert messages == expected
    assert warnings == ["checkpoint-7 is not pushed: the previous push is still running"]


@pytest.mark.parametrize("kind", [HubError, OSError, RuntimeError, KeyError])
def test_a_push_that_fails_is_warned_of_and_training_goes_on(tmp_path, checkpoint, monkeypatch, kind):
    """Also one that fails as no client should: what `finish` raised would end the run before it is saved."""
    warnings: list[str] = []

    def push(folder: Path, repo_id: str, **options) -> None:
        raise kind("the Hub is down, hf_" + "aB3" * 12)

    monkeypatch.setattr(pushing, "push_checkpoint", push)
    monkeypatch.setattr(pushing.logger, "warning", lambda text, *values: warnings.append(text % values))
    queue = pushes(tmp_path)
    queue.add(checkpoint, "Step 7")
    queue.finish()
    (warning,) = warnings
    assert warning.replace("'", "") == (
        "a checkpoint was not pushed, training continues: the Hub is down, [secret removed]"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-7"}


def test_a_checkpoint_that_cannot_be_staged_does_not_stop_training(tmp_path, checkpoint, pushed, monkeypatch):
    def full(*args) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    warnings: list[str] = []
    monkeypatch.setattr(pushing.logger, "warning", lambda text, *values: warnings.append(text % values))
    monkeypatch.setattr(pushing.os, "link", full)
    monkeypatch.setattr(pushing.shutil, "copy2", full)
    queue = pushes(tmp_path)
    queue.add(checkpoint, "Step 7")
    queue.finish()
    assert "No space left on device" in warnings[0] and pushed == []
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-7"}


def test_the_fingerprint_follows_clips_labels_and_splits():
    clips = random_splits()
    first = provenance.fingerprint(clips)
    assert first == provenance.fingerprint(random_splits()) and len(first) == 16
    clips.splits["test"].labels[0] ^= 1
    assert provenance.fingerprint(clips) != first
    assert provenance.fingerprint(random_splits(train=15)) != first


def test_the_command_can_be_given_again_and_holds_no_token(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py"])
    token = "hf_" + "a1B2" * 9
    said = run.train_command(["--dataset", "my clips/", "--hub_model_id", token])
    assert said == "accelerate launch train.py --dataset 'my clips/' --hub_model_id [secret removed]"
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/mmbalance"])
    assert run.train_command(["--seed", "1"]) == "mmbalance train --seed 1"


def test_origin_of_data_and_towers(tmp_path):
    local = tmp_path / "my_clips.csv"
    local.write_text("path,label\n")
    clips = random_splits()
    clips.name = str(local)
    arguments = parse_arguments([*TINY, "--output_dir", str(tmp_path / "run")])
    assert run.base_models(arguments.model) == []
    found = provenance.data_source(clips, arguments.source)
    assert (found["name"], found["on_hub"], found["revision"]) == ("my_clips.csv", False, None)
    assert found["splits"]["train"] == {"clips": 12, "groups": 12}

    arguments = parse_arguments(["--dataset", "me/clips", "--revision", "v1", "--use_cpu", "true"])
    clips.name, clips.commit = "me/clips", "1" * 40
    found = provenance.data_source(clips, arguments.source)
    assert (found["name"], found["on_hub"], found["revision"]) == ("me/clips", True, "1" * 40)
    names = [base["name"] for base in run.base_models(arguments.model)]
    assert names == ["MIT/ast-finetuned-audioset-10-10-0.4593", "google/vit-base-patch16-224-in21k"]


def test_the_code_is_named_by_version_and_commit():
    import hf_mmbalance

    assert provenance.code_version().startswith(f"hf_mmbalance {hf_mmbalance.__version__}")

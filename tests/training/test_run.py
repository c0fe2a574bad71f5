"""Folders of runs: which are refused, which checkpoint is resumed, and that outputs are whole or not there."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_mmbalance import cli
from hf_mmbalance.decision.results import write_outputs
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.hub.model_card import write_card
from hf_mmbalance.json_files import write_json
from hf_mmbalance.model.reading_mmbalance import ReadingSpec
from hf_mmbalance.training import run as run_module
from hf_mmbalance.training.arguments import ModelArguments, parse_arguments
from hf_mmbalance.training.build import frozen_notes
from hf_mmbalance.training.cli import train
from hf_mmbalance.training.resuming import KeepOrigin, changes_since, last_complete_checkpoint
from hf_mmbalance.training.run import choose_output_dir
from tests.media_factory import write_clip

from .tiny_runs import TINY, TOWERS, random_splits, tiny_run


def settle(*options: str):
    arguments = parse_arguments([*TINY, *options])
    return choose_output_dir(arguments), arguments.training.output_dir


def checkpoint(folder: Path, step: int | str, state: str | None = "{}") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_a_run_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resume, folder = settle("--seed", "4")
    assert resume is None and folder.startswith("outputs/synthetic-2") and folder.endswith("-s4")
    (tmp_path / "my_clips.csv").write_text("path,label\n")
    arguments = parse_arguments(["--dataset", str(tmp_path / "my_clips.csv"), "--use_cpu", "true"])
    choose_output_dir(arguments)
    assert arguments.training.output_dir.startswith("outputs/my_clips-")
    assert not (tmp_path / "outputs").exists()  # nothing is written before there is something to write


def test_a_folder_that_holds_another_run(tmp_path):
    assert settle("--output_dir", str(tmp_path / "new"))[0] is None
    assert settle("--output_dir", str(tmp_path))[0] is None  # there, but empty
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="holds another run: choose a new --output_dir"):
        settle("--output_dir", str(tmp_path))
    with pytest.raises(ValueError, match="results.json is a file"):
        settle("--output_dir", str(tmp_path / "results.json"))


def test_features_of_a_run_that_ended_before_its_first_checkpoint_are_not_another_run(tmp_path):
    (tmp_path / "embeddings").mkdir()
    assert settle("--output_dir", str(tmp_path)) == (None, str(tmp_path))
    with pytest.raises(ValueError, match="no complete checkpoint; remove the option"):
        settle("--output_dir", str(tmp_path), "--resume_from_checkpoint", "true")


def test_what_a_run_leaves_that_ended_before_its_first_whole_checkpoint_is_not_another_run(tmp_path):
    """Or it could neither be started again nor be resumed."""
    (tmp_path / "runs" / "Nov21_host").mkdir(parents=True)  # of TensorBoard
    checkpoint(tmp_path, 3, state=None)
    assert settle("--output_dir", str(tmp_path)) == (None, str(tmp_path))
    checkpoint(tmp_path, 6)
    with pytest.raises(ValueError, match="holds another run"):
        settle("--output_dir", str(tmp_path))


def test_going_on_with_the_last_complete_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="nothing to resume from"):
        settle("--output_dir", str(tmp_path), "--resume_from_checkpoint", "true")
    with pytest.raises(ValueError, match="needs --output_dir"):
        settle("--resume_from_checkpoint", "true")
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    resume, folder = settle("--output_dir", str(tmp_path), "--resume_from_checkpoint", "true")
    assert Path(resume).name == "checkpoint-100" and folder == str(tmp_path)
    with pytest.raises(ValueError, match="holds another run"):
        settle("--output_dir", str(tmp_path), "--resume_from_checkpoint", "false")


def test_going_on_with_a_named_checkpoint(tmp_path):
    here = checkpoint(tmp_path / "a", 5)
    checkpoint(tmp_path / "a", 7)
    assert settle("--output_dir", str(tmp_path / "a"), "--resume_from_checkpoint", str(here))[0] == str(here)
    assert settle("--output_dir", str(tmp_path / "b"), "--resume_from_checkpoint", str(here))[0] == str(here)
    checkpoint(tmp_path / "c", 2)
    with pytest.raises(ValueError, match="c holds another run"):
        settle("--output_dir", str(tmp_path / "c"), "--resume_from_checkpoint", str(here))
    broken = checkpoint(tmp_path / "d", 3, state=None)
    with pytest.raises(ValueError, match="checkpoint-3 is not a complete checkpoint"):
        settle("--output_dir", str(tmp_path / "d"), "--resume_from_checkpoint", str(broken))


def test_half_written_checkpoints_are_passed_over(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    whole = checkpoint(tmp_path, 20)
    checkpoint(tmp_path, 30, state=None)
    checkpoint(tmp_path, 40, state='{"global_step": 4')
    checkpoint(tmp_path, 50, state="")
    (checkpoint(tmp_path, 60) / "trainer_state.json").write_bytes(b"\xff\xfe\x00")
    checkpoint(tmp_path, "best")
    checkpoint(tmp_path, 9)
    assert last_complete_checkpoint(tmp_path) == whole


def small_table() -> DecisionTable:
    import numpy as np

    return DecisionTable(
        ids=["a", "b"],
        groups=["a", "b"],
        splits=["test", "test"],
        labels=np.array([0, 1]),
        logits=np.array([[[1.0, 2.0], [2.0, -1.0]], [[0.5, 2.0], [-2.0, 1.0]]]),
        classes=["no", "yes"],
        modalities=["audio", "vision"],
    )


def test_outputs_are_whole_or_not_there(tmp_path, monkeypatch):
    table = small_table()
    write_outputs(tmp_path, {"n": 2}, table)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"results.json", "decisions.parquet"}
    with pytest.raises(RuntimeError, match="disk"):
        write_outputs(tmp_path, {"n": _Failing()}, table)
    monkeypatch.setattr(DecisionTable, "write", _write_half)
    with pytest.raises(OSError, match="disk full"):
        write_outputs(tmp_path, {"n": 3}, table)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert json.loads(before["results.json"]) == {"n": 2}


class _Failing:
    def __str__(self) -> str:
        raise RuntimeError("disk")


def _write_half(self, path) -> None:
    Path(path).write_bytes(b"PAR1")
    raise OSError("disk full")


@pytest.mark.parametrize(("parameters", "told", "threads"), [(10, None, 1), (10, "2", 2), (5_000_001, None, 2)])
def test_small_towers_run_on_one_thread_unless_told_otherwise(monkeypatch, parameters, told, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", told or "")
    if told is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_module.limit_cpu_threads(torch.nn.Linear(parameters, 1, bias=False, device="meta"))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    tiny_run(folder)
    return folder


@pytest.mark.parametrize("way", ["resume", "continue"])
def test_a_checkpoint_of_other_classes(finished, tmp_path, way):
    if way == "resume":
        shutil.copytree(finished, tmp_path / "run")
        options = ["--resume_from_checkpoint", "true", "--output_dir", str(tmp_path / "run")]
    else:
        options = ["--model_name_or_path", str(finished), "--output_dir", str(tmp_path / "run")]
    before = sorted(os.listdir(tmp_path / "run")) if way == "resume" else None
    towers = [] if way == "continue" else list(TINY)
    with pytest.raises(ValueError, match="different classes .* '\\(none\\)' where the dataset has 'class3'"):
        run_module.main([*towers, *options, "--classes", "4", "--use_cpu", "true"])
    assert (sorted(os.listdir(tmp_path / "run")) if way == "resume" else None) == before
    assert way == "resume" or not (tmp_path / "run").exists()


def test_a_trained_model_takes_no_options_out_of_range(finished, tmp_path):
    with pytest.raises(ValueError, match="label_smoothing=5.0 must lie in"):
        run_module.main(["--model_name_or_path", str(finished), "--output_dir", str(tmp_path / "run"), "--use_cpu",
                         "true", "--classes", "3", "--label_smoothing", "5"])  # fmt: skip


def test_a_finished_run_resumed_gives_the_same_results(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "again")
    os.remove(tmp_path / "again" / "results.json")
    for state in (tmp_path / "again").glob("checkpoint-*/trainer_state.json"):  # the run was moved
        state.write_text(state.read_text().replace(str(finished), str(tmp_path / "gone")))
    again = tiny_run(tmp_path / "again", "--resume_from_checkpoint", "true")
    first = json.loads((finished / "results.json").read_text())
    assert again["rows"] == first["rows"] and again["weights"] == first["weights"]
    assert again["best_checkpoint"] == first["best_checkpoint"].replace(str(finished), str(tmp_path / "again"))


@pytest.mark.parametrize(("workers", "steps"), [("0", (4, 6, 11)), ("2", (6,))])
def test_going_on_with_accumulation_and_dropout_ends_with_the_same_weights(tmp_path, workers, steps):
    """Epochs of 4 steps: resumed at an epoch's end, in the middle of one and in that of the last."""
    options = ["--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "4", "--num_train_epochs", "3",
               "--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", "1", "--eval_steps", "1",
               "--save_total_limit", "20", "--classifier_dropout", "0.4", "--modality_dropout", "0.3", "0.3",
               "--time_masks", "1", "--dataloader_num_workers", workers, "--train_clips", "30"]  # fmt: skip
    whole = tmp_path / "whole"
    tiny_run(whole, *options)
    assert {int(path.name[11:]) for path in whole.glob("checkpoint-*")} == set(range(1, 13))
    for step in steps:
        resumed = tmp_path / f"resumed{step}"
        state = json.loads((whole / f"checkpoint-{step}" / "trainer_state.json").read_text())
        for kept in {step, state["best_global_step"]}:
            shutil.copytree(whole / f"checkpoint-{kept}", resumed / f"checkpoint-{kept}")
        tiny_run(resumed, *options, "--resume_from_checkpoint", "true")
        for part in ("checkpoint-12", "."):
            expected, weights = (load_file(path / part / "model.safetensors") for path in (whole, resumed))
            assert [name for name in expected if not torch.equal(expected[name], weights[name])] == [], step


def test_a_modality_that_no_clip_has(tmp_path, capsys):
    """Training, the card and `decide` work, and say so."""
    for place, name in enumerate(("bark", "bell", "rain")):
        for clip in range(24):
            write_clip(tmp_path / "clips" / name / f"{name}{clip}.mp4", seconds=0.2, size=(32, 32), tone=None,
                       colour=(80 * place, 100, 10 * clip))  # fmt: skip
    folder = tmp_path / "run"
    results = run_module.main(
        ["--dataset", str(tmp_path / "clips"), *TOWERS, "--frame_size", "16", "16", "--frames", "2", "--use_cpu",
         "true", "--num_train_epochs", "1", "--disable_tqdm", "true", "--output_dir", str(folder),
         "--calibration_fraction", "0.5"]
    )  # fmt: skip
    assert re.search(r"^fused +\d", capsys.readouterr().out, re.M)  # the table is the command's output
    rows = {row["method"]: row["n"] for row in results["rows"] if row["split"] == "test"}
    assert rows["audio"] == 0 < rows["vision"] == rows["fused"] == rows["prior_sum"]
    assert json.loads((folder / "config.json").read_text())["untrained_modalities"] == ["audio"]
    write_card(folder, "me/model")
    card = (folder / "README.md").read_text()
    assert "| audio only | - |" in card
    assert cli.main(["decide", str(folder)]) == 0
    assert re.search(r"audio +0 +answers no clip", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fusion", "sun"], "--fusion 'sun' is unknown"),
        (["--fusion", "not_there.py:Head"], "file not_there.py does not exist"),
        (["--frame_pooling", "max"], "--frame_pooling 'max' is unknown"),
        (["--modality_dropout", "1.5", "0"], "modality_dropout"),
        (["--fusion_options", '{"gat": 1}'], "gat"),
        (["--trainable_layers", "9"], "--trainable_layers 9"),
        (["--audio_config", '{"hidden_size": 4}'], "audio_config .* names no model_type"),
        (["--audio_config", '{"model_type": "nonsense"}'], "'nonsense' is not a backbone"),
        (["--audio_config", '{"model_type": "vit"}'], "audio backbone"),
        (["--audio_model", "./not_there"], "model './not_there' cannot be loaded"),
        (["--vision_model", "./not_there"], "backbone './not_there' cannot be loaded"),
        (["--model_name_or_path", "./not_there"], "not_there"),
        (["--metric_for_best_model", "acuracy"], "--metric_for_best_model 'acuracy' is unknown: choose one of nll"),
        (["--train_corruptions", "babbel"], "unknown corruption 'babbel'; did you mean 'babble'"),
        (["--calibration_corruptions", "blurr"], "unknown corruption 'blurr'; did you mean 'blur'"),
        (["--calibration_draws", "0"], "draws must be at least 1"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be at least 1, got 0"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps must be at least 1, got 0"),
        (["--time_masks", "1", "--time_mask_width", "-2"], "--time_mask_width must be at least 0, got -2"),
        (["--initializer_range", "-1"], "--initializer_range must be at least 0, got -1.0"),
        (["--image_std", "1", "0", "1"], r"--image_std \[1.0, 0.0, 1.0\] must be above 0"),
        (["--audio_std", "0"], "--audio_std 0.0 must be above 0"),
        (["--image_mean", "0.5"], r"--image_mean \[0.5\] must be three numbers"),
        (["--decision_balance", "-1"], "--decision_balance must be at least 0, got -1.0"),
        (["--classifier_dropout", "2"], r"^error: --classifier_dropout 2.0 must lie in \[0, 1\)$"),
        (["--fused_loss_weight", "0", "--unimodal_loss_weight", "0"], "the towers have no loss to learn from"),
        (["--max_steps", "0"], "--max_steps 0 must be at least 1; to train nothing, set --num_train_epochs 0"),
        (["--num_train_epochs", "-1"], "--num_train_epochs must be at least 0, got -1.0"),
        (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor replaces .*: use --label_smoothing "),
        (["--bf16_full_eval"], "--bf16_full_eval is not supported"),
        (["--frames", "0"], "frames must be at least 1, got 0"),
        (["--decision_rung", "temprature"], "--decision_rung 'temprature' is unknown: choose auto or one of sum"),
        (["--calibration_clips", "0"], "no clips in split.s. calibration"),
        (["--validation_clips", "0"], "no clips in split.s. validation"),
        (["--resume_from_checkpoint", "./not_there"], "not_there is not a complete checkpoint"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # A tower both named and configured on the command line is another mistake than the one meant here.
    of_towers = {"--audio_model": (0, 1), "--vision_model": (2, 3), "--model_name_or_path": (0, 1, 2, 3)}
    taken = of_towers.get(options[0], ())
    base = [word for place, word in enumerate(TINY) if place not in taken]
    assert train([*base, "--output_dir", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert re.search(words if words.startswith("^") else f"error: .*{words}", error, re.DOTALL | re.MULTILINE), error
    left = list((tmp_path / "run").rglob("*")) if (tmp_path / "run").exists() else []
    assert left == []


def test_frozen_towers_that_learn_nothing_are_noted():
    random = ModelArguments(trainable_layers="0", audio_config={"model_type": "vit"})
    (one,), (two,) = frozen_notes(random, 1e-4), frozen_notes(ModelArguments(trainable_layers="0"), 1e-4)
    assert "random weights are frozen and learn nothing: audio;" in one and "--learning_rate 0.0001 is small" in two
    assert frozen_notes(ModelArguments(trainable_layers="0"), 1e-3) == []
    (note,) = frozen_notes(ModelArguments(trainable_layers="0", balancing="ogm"), 1e-3)
    assert note == "the towers are frozen: --balancing ogm changes only how the heads learn"
    assert frozen_notes(ModelArguments(audio_config={"model_type": "vit"}), 1e-4) == []


def test_a_resumed_run_tells_what_was_changed_and_refuses_what_cannot_be(tmp_path, caplog):
    run, resume = tmp_path / "run", ("--resume_from_checkpoint", "true")
    first = tiny_run(run, "--num_train_epochs", "1")
    assert first["resumed_with"] == []
    for options, words in (
        (("--train_clips", "16"), r"was trained on different clips \(train 24, .*; now train 16, "),
        (("--learning_rate", "5e-3"), "cannot be resumed with learning_rate 0.01 -> 0.005: undo that change, or"),
        (("--frame_pooling", "temporal", "--seed", "1"), "with frame_pooling mean -> temporal: "),
        (("--trainable_layers", "1"), "with trainable_layers all -> 1: "),
        (("--metric_for_best_model", "accuracy"), "metric_for_best_model nll -> accuracy; greater_is_better False ->"),
        (("--per_device_train_batch_size", "4"), "with 8 clips per step, not 4 .* whose product is 8"),
    ):
        with pytest.raises(ValueError, match=rf"checkpoint-3 .*{words}"):
            tiny_run(run, *options, *resume)
    with caplog.at_level("WARNING"):
        longer = tiny_run(run, "--num_train_epochs", "2", "--report_to", "none", *resume)
    assert longer["resumed_with"] == ["num_train_epochs 1.0 -> 2.0"]
    assert "resumed with changed options: num_train_epochs 1.0 -> 2.0" in caplog.text
    halves = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2")
    again = tiny_run(run, "--num_train_epochs", "2", *halves, "--load_best_model_at_end", "false", *resume)
    assert set(again["resumed_with"]) >= {"num_train_epochs 1.0 -> 2.0", "gradient_accumulation_steps 1 -> 2"}
    for origin in run.glob("checkpoint-*/run.json"):
        origin.write_text(origin.read_text().replace('"processes": 1', '"processes": 2'))
    with pytest.raises(ValueError, match="was trained with 16 clips per step, not 8"):
        tiny_run(run, "--num_train_epochs", "2", *resume)


def test_a_data_set_that_was_built_in_another_way_since_is_named(tmp_path):
    arguments = parse_arguments([*TINY])
    clips, origins = random_splits(train=2, calibration=2), []
    for frames in (8, 6):
        clips.reading = ReadingSpec(stored=ReadingSpec(frames=frames))
        origins.append(KeepOrigin(clips, arguments, None).origin)
    write_json(tmp_path / "run.json", {**origins[0], "changes": []})
    assert changes_since(tmp_path, origins[0]) == []
    (change,) = changes_since(tmp_path, origins[1])
    assert change.startswith("stored {") and "'frames': 8" in change.split(" -> ")[0] and "'frames': 6" in change


def test_a_file_of_ones_own_that_changed_is_named(tmp_path):
    file = tmp_path / "my_method.py"
    clips, origins = random_splits(train=2, calibration=2), []
    for text in ("a = 1\n", "a = 2\n"):
        file.write_text(text)
        origins.append(KeepOrigin(clips, parse_arguments([*TINY, "--balancing", f"{file}:Mine"]), None).origin)
    write_json(tmp_path / "run.json", {**origins[0], "changes": []})
    assert changes_since(tmp_path, origins[0]) == []
    (change,) = changes_since(tmp_path, origins[1])
    assert re.fullmatch(r"the file of balancing \w{10} -> \w{10}", change)


def test_errors_in_a_file_of_ones_own_keep_their_traceback(tmp_path):
    file = tmp_path / "my_method.py"
    start = "from hf_mmbalance.balancing import BalancingMethod\nclass Mine(BalancingMethod):\n"
    file.write_text(start + "    def loss(self, batch):\n        a, b = 1, 2, 3\n")
    with pytest.raises(ValueError, match="too many values to unpack"):
        train([*TINY, "--balancing", f"{file}:Mine", "--output_dir", str(tmp_path / "run")])

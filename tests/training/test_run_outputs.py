"""What a run writes: results, tables, the weights that are kept, checkpoints; and what another run takes from them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.data.clips import ClipsOfEpoch
from hf_mmbalance.decision import fit_decision_layer
from hf_mmbalance.decision.fits import fit_prior
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.metrics import measures
from hf_mmbalance.training.decision_layer import DecisionArguments, calibration_draws
from hf_mmbalance.training.run import main
from hf_mmbalance.training.trainer import MMBalanceTrainer

from .tiny_runs import (
    TINY,
    TOWERS,
    state_of,
    tiny_clips,
    tiny_run,
)


METHODS = ("audio", "vision", "sum", "prior_sum", "fused")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose best epoch is not its last: with this rate the towers over-fit 24 clips at once."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    results = tiny_run(folder, "--num_train_epochs", "4", "--learning_rate", "3e-2", "--save_total_limit", "4")
    return folder, results


def test_results_have_the_promised_form(run):
    folder, returned = run
    results = json.loads((folder / "results.json").read_text())
    promised = ["dataset", "n", "classes", "modalities", "bayes_accuracy", "ci_unit", "rows", "weights"]
    assert list(results)[:8] == promised
    assert set(results) - set(promised) == {
        *("n_per_split", "fusion", "decision", "notes", "selected_by", "best_checkpoint", "arguments", "versions"),
        *("provenance", "resumed_with"),
    }
    assert (results["dataset"], results["n"], results["ci_unit"]) == ("synthetic", 15, "group")
    assert results["classes"] == ["class0", "class1", "class2"] and results["modalities"] == ["audio", "vision"]
    assert results["bayes_accuracy"] == pytest.approx(tiny_clips().bayes.accuracy)
    assert results["n_per_split"] == {"train": 24, "calibration": 8, "validation": 12, "test": 15}
    assert [(row["split"], row["method"]) for row in results["rows"]] == [
        (split, method) for split in ("validation", "test") for method in METHODS
    ]
    for row in results["rows"]:
        assert set(row) == {"method", "split", "n", "accuracy", "accuracy_ci", "ci_unit", "macro_f1", "nll", "ece"}
        assert row["n"] == results["n_per_split"][row["split"]]
        low, high = row["accuracy_ci"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
        assert all(isinstance(row[name], float) for name in ("accuracy", "macro_f1", "nll", "ece"))
    assert set(results["weights"]) == {"audio", "vision"}
    assert all(len(row) == 3 and min(row) > 0 for row in results["weights"].values())
    assert json.loads(json.dumps(returned["rows"])) == results["rows"]


def test_a_head_without_weights_and_other_data_leave_those_keys_empty(tmp_path):
    results = tiny_run(tmp_path / "run", "--fusion", "film", "--max_steps", "1", "--save_strategy", "no",
                       "--load_best_model_at_end", "false", "--groups", "3")  # fmt: skip
    assert results["weights"] is None and results["ci_unit"] == "clip" and results["decision"] is None
    assert results["best_checkpoint"] is None and results["selected_by"] is None


def test_the_decision_table_holds_the_models_logits(run):
    folder, results = run
    table = DecisionTable.read(folder / "decisions.parquet")
    assert table.classes == results["classes"] and table.modalities == ["audio", "vision"]
    model = MMBalanceForAudioVisualClassification.from_pretrained(folder).eval()
    processor = MMBalanceProcessor.from_pretrained(folder)
    clips = tiny_clips()
    clips.splits["calibration"] = calibration_draws(clips.splits["calibration"], DecisionArguments(), seed=0)
    assert len(clips.splits["calibration"]) == 3 * 8
    assert table.ids == [name for split in clips.splits.values() for name in split.ids]
    for name, split in clips.splits.items():
        part = table.select(name)
        assert part.labels.tolist() == split.labels and part.groups == split.groups
        shown = ClipsOfEpoch(split, 0) if name == "train" else split  # train rows are as training reads them
        examples = [shown[index] for index in range(len(shown))]
        with torch.no_grad():
            out = model(
                **processor(
                    audio=[example["audio"] for example in examples],
                    frames=[list(example["frames"]) for example in examples],
                    sampling_rate=16_000,
                )
            )
        np.testing.assert_allclose(part.logits, out.modality_logits.numpy(), atol=1e-4)
        np.testing.assert_allclose(part.references["fused"], out.logits.numpy(), atol=1e-4)
        for modality, features in zip(table.modalities, out.modality_tokens, strict=True):
            np.testing.assert_allclose(part.features[modality], features.numpy(), atol=1e-4)
        if name == "test":
            expected = out.modality_weights.mean(0).numpy()
            np.testing.assert_allclose(list(results["weights"].values()), expected, atol=1e-4)


def test_rows_are_those_of_the_table(run):
    folder, results = run
    table = DecisionTable.read(folder / "decisions.parquet").select("test")
    rows = {row["method"]: row for row in results["rows"] if row["split"] == "test"}
    log_probs = measures.log_softmax(table.logits)
    log_prior = np.log(list(results["decision"]["prior"].values()))
    if results["decision"]["rung"] in ("sum", "best_single"):  # in use there is none, and the row has the fit's
        calibration = DecisionTable.read(folder / "decisions.parquet").select("calibration")
        log_prior = fit_prior(calibration.labels, 3, calibration.clip_names)
    for method, logits in (
        ("audio", log_probs[:, 0]),
        ("vision", log_probs[:, 1]),
        ("sum", log_probs.sum(1)),
        ("prior_sum", log_probs.sum(1) - log_prior),
        ("fused", table.references["fused"]),
    ):
        assert rows[method]["accuracy"] == measures.accuracy(logits, table.labels)
        assert rows[method]["nll"] == pytest.approx(measures.nll(logits, table.labels), rel=1e-4)


def test_the_best_weights_on_validation_are_the_ones_that_are_kept(run):
    folder, results = run
    losses = {
        entry["step"]: entry["eval_nll"]
        for entry in state_of(max(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:])))["log_history"]
        if "eval_nll" in entry
    }
    best = min(losses, key=losses.__getitem__)
    assert best != max(losses), "the last epoch is the best one: this run cannot show that the best is taken"
    assert results["best_checkpoint"].endswith(f"checkpoint-{best}")
    assert results["selected_by"] == "validation nll"
    kept, chosen, last = (
        {name: value for name, value in load_file(path / "model.safetensors").items() if "fusion." not in name}
        for path in (folder, folder / f"checkpoint-{best}", folder / f"checkpoint-{max(losses)}")
    )
    assert kept.keys() == chosen.keys()
    assert all(torch.equal(kept[name], chosen[name]) for name in kept)
    changed = {name.split(".")[0] for name in kept if not torch.equal(kept[name], last[name])}
    assert changed == {"audio_model", "vision_model", "unimodal_heads"}


def test_without_selection_the_last_checkpoint_is_the_one_that_is_left(tmp_path):
    folder = tmp_path / "run"
    results = tiny_run(folder, "--num_train_epochs", "4", "--learning_rate", "3e-2", "--save_total_limit", "1",
                       "--load_best_model_at_end", "false")  # fmt: skip
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-12"]
    assert results["selected_by"] is None and results["best_checkpoint"] is None
    kept, last = (load_file(path / "model.safetensors") for path in (folder, folder / "checkpoint-12"))
    assert all(torch.equal(kept[name], last[name]) for name in kept if not name.startswith("fusion."))


def test_every_checkpoint_loads_by_itself(run):
    folder, _ = run
    for path in folder.glob("checkpoint-*"):
        model, report = MMBalanceForAudioVisualClassification.from_pretrained(path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        MMBalanceProcessor.from_pretrained(path)


def state_of_head(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.fusion.state_dict().items()}


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_the_decision_layer_is_the_one_that_decide_fits_on_the_runs_own_table(tmp_path, strategy):
    """Also where the weights that are kept are those of the middle of an epoch."""
    folder = tmp_path / "run"
    tiny_run(
        folder, "--save_strategy", strategy, "--eval_strategy", strategy, "--save_steps", "2", "--eval_steps", "2"
    )
    table = DecisionTable.read(folder / "decisions.parquet")
    again = fit_decision_layer(table)
    model = MMBalanceForAudioVisualClassification.from_pretrained(folder)
    before = state_of_head(model)
    again.write_to(model)
    after = state_of_head(model)
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=1e-4, rtol=1e-3, msg=name)


def test_a_checkpoint_at_the_last_step_of_an_epoch_has_that_epochs_fit(tmp_path):
    """And the fit is that of the calibration clips as they are, by the towers at that step."""
    folder, enough = tmp_path / "run", ("--calibration_clips", "30")
    tiny_run(folder, "--save_strategy", "steps", "--save_steps", "3", "--load_best_model_at_end", "false",
             "--eval_strategy", "no", "--decision_rung", "temperature", *enough)  # fmt: skip
    for step in (3, 6):
        model = MMBalanceForAudioVisualClassification.from_pretrained(folder / f"checkpoint-{step}")
        processor = MMBalanceProcessor.from_pretrained(folder)
        clips = tiny_clips(*enough)
        saved = state_of_head(model)
        trainer = MMBalanceTrainer(
            model, TrainingArguments(str(tmp_path / "x"), use_cpu=True), clips, processor,
            decision=DecisionArguments(decision_rung="temperature"),
        )  # fmt: skip
        trainer.fit_decision_layer()
        assert saved["log_temperature"].abs().max() > 0
        for name, value in state_of_head(model).items():
            torch.testing.assert_close(value, saved[name], atol=1e-4, rtol=1e-3, msg=name)


def test_training_on_from_a_trained_model(run, tmp_path):
    folder, _ = run
    more = [option for option in TINY if option not in TOWERS]
    options = ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "more"), "--learning_rate", "0",
               "--label_smoothing", "0.2", "--class_weighted_loss", "true",
               "--modality_dropout", "0.1", "0.2", "--num_train_epochs", "1"]  # fmt: skip
    results = main([*more, *options])
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "more"))
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("fusion."))
    config = json.loads((tmp_path / "more" / "config.json").read_text())
    assert (config["label_smoothing"], config["modality_dropout"]) == (0.2, [0.1, 0.2])
    assert len(config["class_weights"]) == 3
    first = json.loads((folder / "results.json").read_text())
    for old, new in zip(first["rows"], results["rows"], strict=True):
        assert new["nll"] == pytest.approx(old["nll"], rel=1e-5)  # the head is fitted anew, on the same clips
    for option, words in (
        (["--fusion", "sum"], "--fusion sum: .* was built with 'adaptive'"),
        (["--frame_pooling", "temporal"], "was built with 'mean'"),
        (["--audio_max_length", "32"], "--audio_max_length cannot be combined with --model_name_or_path"),
        (["--audio_revision", "v1"], "--audio_revision cannot be combined with --model_name_or_path"),
    ):
        with pytest.raises(ValueError, match=words):
            main([*more, "--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "no"), *option])
    (tmp_path / "more" / "config.json").write_text(json.dumps({**config, "classifier_dropout": 0.1}))
    with pytest.raises(ValueError, match=r"--classifier_dropout 0.0: .* was built with 0.1; remove"):  # the default
        main([*more, "--model_name_or_path", str(tmp_path / "more"), "--output_dir", str(tmp_path / "no"),
              "--classifier_dropout", "0"])  # fmt: skip


def test_training_that_diverged_says_so(tmp_path):
    with pytest.raises(ValueError, match="training diverged: logits of 8 of 8 calibration clips .* --learning_rate"):
        tiny_run(tmp_path / "run", "--learning_rate", "1e30")
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_checkpoint_that_the_disk_refuses_is_named_and_removed(tmp_path):
    code = (
        "import resource, sys; from hf_mmbalance.training.cli import train; import hf_mmbalance.training.run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.exit(train(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *TINY, "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"error: .*checkpoint-\d+ could not be written \(.+\): free disk space", last)
    assert not list((tmp_path / "run").glob("checkpoint-*"))

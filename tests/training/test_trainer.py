"""The Trainer: what it writes, which weights it keeps, who learns from which clips, clips that lack a modality."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainingArguments

import hf_mmbalance
from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor, cli
from hf_mmbalance.data import load_clips
from hf_mmbalance.data.clips import ClipsOfEpoch
from hf_mmbalance.decision import fit_decision_layer
from hf_mmbalance.decision.fits import fit_prior
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.embedding.build import fitted_frames
from hf_mmbalance.metrics import measures
from hf_mmbalance.model.fusion_mmbalance import FUSION_HEADS
from hf_mmbalance.training.arguments import ModelArguments, parse_arguments
from hf_mmbalance.training.build import build_model_and_processor, spec_augment
from hf_mmbalance.training.decision_layer import DecisionArguments, calibration_draws
from hf_mmbalance.training.run import main
from hf_mmbalance.training.trainer import MMBalanceTrainer, absent_modalities, check_classes

from .tiny_runs import (
    CLASSES,
    TINY,
    TOWERS,
    ListedClips,
    random_clips,
    random_splits,
    state_of,
    tiny_model,
    tiny_processor,
    tiny_run,
    tiny_trainer,
)


METHODS = ("audio", "vision", "sum", "prior_sum", "fused")
HEADS = sorted(name for name, head in FUSION_HEADS.items() if ":" not in name and head.required_balancing is None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose best epoch is not its last: with this rate the towers over-fit 24 clips at once."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    results = tiny_run(folder, "--num_train_epochs", "4", "--learning_rate", "3e-2", "--save_total_limit", "4")
    return folder, results


def clips_of(*options: str):
    arguments = parse_arguments([*TINY, *options])
    return load_clips("synthetic", **dataclasses.asdict(arguments.source))


def test_results_have_the_promised_form(run):
    folder, returned = run
    results = json.loads((folder / "results.json").read_text())
    promised = ["dataset", "n", "classes", "modalities", "bayes_accuracy", "ci_unit", "rows", "weights"]
    assert list(results)[:8] == promised
    assert set(results) - set(promised) == {
        *("n_per_split", "fusion", "decision", "notes", "selected_by", "best_checkpoint", "arguments", "versions"),
        "provenance",
    }
    assert (results["dataset"], results["n"], results["ci_unit"]) == ("synthetic", 15, "group")
    assert results["classes"] == ["class0", "class1", "class2"] and results["modalities"] == ["audio", "vision"]
    assert results["bayes_accuracy"] == pytest.approx(clips_of().bayes.accuracy)
    assert results["n_per_split"] == {"train": 24, "calibration": 8, "validation": 12, "test": 15}
    assert [(row["split"], row["method"]) for row in results["rows"]] == [
        (split, method) for split in ("validation", "test") for method in METHODS
    ]
    for row in results["rows"]:
        assert set(row) == {"method", "split", "n", "accuracy", "accuracy_ci", "macro_f1", "nll", "ece"}
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
    clips = clips_of()
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
        log_prior = fit_prior(DecisionTable.read(folder / "decisions.parquet").select("calibration").labels, 3)
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
        clips = clips_of(*enough)
        saved = state_of_head(model)
        trainer = MMBalanceTrainer(
            model, TrainingArguments(str(tmp_path / "x"), use_cpu=True), clips, processor,
            decision=DecisionArguments(decision_rung="temperature"),
        )  # fmt: skip
        trainer.fit_decision_layer()
        assert saved["log_temperature"].abs().max() > 0
        for name, value in state_of_head(model).items():
            torch.testing.assert_close(value, saved[name], atol=1e-4, rtol=1e-3, msg=name)


def test_a_fitted_head_has_no_parameters_and_towers_learn_against_it(tmp_path):
    """Two runs of one step that differ only in the head's buffers: their towers learn differently."""
    ends = []
    for temperature in (0.0, 1.0):
        model = tiny_model()
        assert not list(model.fusion.parameters())
        model.fusion.log_temperature.fill_(temperature)
        trainer = tiny_trainer(tmp_path, model=model, max_steps=1, decision_rung="sum")
        trainer.train()
        ends.append(trainer.model.audio_model.state_dict())
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


LACKING = {
    "train": {0: "audio", 1: "vision", 2: "audio", 3: "audio"},
    "calibration": {0: "vision"},
    "validation": {1: "audio", 2: "vision"},
    "test": {0: "audio", 5: "vision"},
}


@pytest.mark.parametrize("fusion", HEADS)
def test_every_head_trains_also_on_clips_without_sound_or_frames(tmp_path, fusion):
    clips = random_splits(without=LACKING)
    trainer = tiny_trainer(tmp_path, model=tiny_model(fusion), clips=clips, max_steps=2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.state.global_step == 2
    after = trainer.model.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert {"audio_model", "vision_model"} <= moved
    metrics = trainer.evaluate()
    assert all(np.isfinite(value) for value in metrics.values())
    table = trainer.predict_table(clips.splits["test"], "test")
    assert table.mask.tolist() == [[False, True], *[[True, True]] * 4, [True, False]]
    assert np.isnan(table.logits[0, 0]).all() and np.isnan(table.features["audio"][0]).all()
    assert np.isfinite(table.references["fused"]).all()
    expected = measures.accuracy(table.logits[1:, 0], table.labels[1:])
    audio = trainer.evaluate(clips.splits["test"])["eval_accuracy_audio"]
    assert audio == pytest.approx(expected)


SILENT = {split: dict.fromkeys(range(12), "audio") for split in ("train", "calibration", "validation", "test")}


def test_modalities_that_no_train_clip_has():
    assert absent_modalities(random_splits()) == []
    assert absent_modalities(random_splits(without={"train": {0: "audio", 1: "vision"}})) == []
    assert absent_modalities(random_splits(without=SILENT)) == ["audio"]
    late = random_splits(train=500, without={"train": {i: "audio" for i in range(500) if i != 333}})
    assert absent_modalities(late) == []


@pytest.mark.parametrize("silent", [("train",), tuple(SILENT)])
def test_a_modality_that_no_train_clip_has_is_left_out(tmp_path, caplog, silent):
    """Also where the other splits have it: a tower that learned nothing must not decide."""
    trainer = tiny_trainer(tmp_path, clips=random_splits(without={name: SILENT[name] for name in silent}), max_steps=2)
    assert "no train clip of noise has audio: the model will leave it out" in caplog.text
    trainer.train()
    assert "eval_accuracy_audio" not in trainer.evaluate()
    trainer.save_model(str(tmp_path / "model"))
    model = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path / "model")
    assert model.config.untrained_modalities == ["audio"]
    wave = np.zeros(2560, dtype=np.float32)
    with pytest.raises(ValueError, match="no modality at all.*audio does not count: no clip that this model"):
        model(**trainer.processor(audio=[wave], sampling_rate=16_000))
    # Trained on with clips that have sound, it learns; with clips that have not, it stays as it is.
    tiny_trainer(tmp_path, model=model)
    assert model.config.untrained_modalities == []
    tiny_trainer(tmp_path, model=model, clips=random_splits(without=SILENT))
    assert model.config.untrained_modalities == []


def test_rows_come_in_the_order_of_the_clips_whatever_the_batch(tmp_path):
    clips = random_clips("test", 7)
    tables = [
        tiny_trainer(tmp_path, per_device_eval_batch_size=size).predict_table(clips, "test") for size in (2, 7, 32)
    ]
    for table in tables[1:]:
        assert table.ids == clips.ids and table.labels.tolist() == clips.labels
        np.testing.assert_allclose(table.logits, tables[0].logits, atol=1e-5)


def test_the_towers_learn_nothing_from_calibration_clips(tmp_path):
    def train(**other):
        splits = random_splits()
        for split, seed in other.items():
            splits.splits[split] = random_clips(split, len(splits.splits[split]), seed=seed)
        trainer = tiny_trainer(tmp_path, clips=splits, max_steps=1)
        trainer.train()
        return {name: value for name, value in trainer.model.state_dict().items() if not name.startswith("fusion.")}

    base, other_calibration, other_train = train(), train(calibration=9), train(train=9)
    assert all(torch.equal(base[name], other_calibration[name]) for name in base)
    assert not all(torch.equal(base[name], other_train[name]) for name in base)


def losses_and_weights(folder, batch, accumulation, **options):
    trainer = tiny_trainer(
        folder,
        clips=random_splits(train=20, calibration=8),  # the third step is filled up
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=2,
        learning_rate=1e-3,
        **options,
    )
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return np.array(logged), trainer.model.state_dict()


def test_two_small_batches_are_one_big_one(tmp_path):
    losses, weights = losses_and_weights(tmp_path / "a", batch=8, accumulation=1)
    other_losses, other_weights = losses_and_weights(tmp_path / "b", batch=4, accumulation=2)
    assert len(losses) == 6
    np.testing.assert_allclose(other_losses, losses, atol=1e-5)
    for name in weights:
        torch.testing.assert_close(other_weights[name], weights[name], atol=1e-5, rtol=0, msg=name)


def test_workers_change_nothing(tmp_path):
    losses, weights = losses_and_weights(tmp_path / "a", batch=8, accumulation=1)
    other_losses, other_weights = losses_and_weights(tmp_path / "b", batch=8, accumulation=1, dataloader_num_workers=2)
    np.testing.assert_array_equal(losses, other_losses)
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_reading_the_validation_split_changes_nothing(tmp_path):
    """Dropout draws from the same random state, however often the model is measured in between."""

    def train(**options):
        torch.manual_seed(3)
        model = tiny_model(classifier_dropout=0.5, modality_dropout=[0.3, 0.3])
        trainer = tiny_trainer(tmp_path, model=model, num_train_epochs=2, **options)
        trainer.train()
        return trainer.model.state_dict()

    one, other = train(eval_strategy="no"), train(eval_strategy="steps", eval_steps=1)
    assert all(torch.equal(one[name], other[name]) for name in one)


def plain_trainer(folder, **options):
    arguments = TrainingArguments(str(folder), use_cpu=True, num_train_epochs=2, report_to="none", disable_tqdm=True,
                                  save_strategy="no")  # fmt: skip
    return hf_mmbalance.MMBalanceTrainer(
        args=arguments, clips=random_splits(calibration=15), processor=tiny_processor(), **options
    )


def test_transformers_own_arguments_and_a_model_init(tmp_path):
    """Every call of `train` starts from a new model and ends with a fitted decision layer."""
    trainer = plain_trainer(tmp_path, model_init=lambda: tiny_model())
    ends = []
    for _ in range(2):
        trainer.train()
        assert trainer.allocation.describe()["rung"] and "features" not in trainer.evaluate()
        ends.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    other = plain_trainer(tmp_path, model=tiny_model())
    other.train()
    assert np.isfinite(other.evaluate()["eval_nll"])


def test_hyperparameter_search(tmp_path):
    pytest.importorskip("optuna")
    trainer = plain_trainer(tmp_path, model_init=lambda trial: tiny_model(classifier_dropout=0.1))
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2)},
        compute_objective=lambda metrics: metrics["eval_nll"], n_trials=2, direction="minimize", backend="optuna",
    )  # fmt: skip
    assert np.isfinite(best.objective) and 1e-4 <= best.hyperparameters["learning_rate"] <= 1e-2


def test_what_the_trainer_must_be_given(tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(
        ValueError, match="give clips .what hf_mmbalance.load_clips returns, or a DatasetDict. and the processor"
    ):
        MMBalanceTrainer(tiny_model(), arguments, clips=None, processor=tiny_processor())
    with pytest.raises(ValueError, match="decision_rung='temperature': a 'concat' head is not fitted"):
        tiny_trainer(tmp_path, model=tiny_model("concat"), decision_rung="temperature")


def test_early_stopping(tmp_path):
    """Nothing is learned at a rate of 0: two epochs after the first are no better."""
    folder = tmp_path / "run"
    options = ["--num_train_epochs", "8", "--learning_rate", "0", "--early_stopping_patience", "2"]
    tiny_run(folder, *options)
    states = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    history = [entry["eval_nll"] for entry in state_of(states[-1])["log_history"] if "eval_nll" in entry]
    assert len(history) < 8, "never stopped"
    best = int(np.argmin(history))
    assert len(history) == best + 1 + 2 and min(history[best + 1 :]) >= history[best]


def test_early_stopping_goes_on_counting_after_a_kill(tmp_path):
    """Stopped and resumed after the first evaluation without improvement, it stops where it would have."""
    options = ["--num_train_epochs", "8", "--learning_rate", "0", "--early_stopping_patience", "2",
               "--save_total_limit", "10"]  # fmt: skip
    tiny_run(tmp_path / "whole", *options)
    steps = sorted(int(path.name[11:]) for path in (tmp_path / "whole").glob("checkpoint-*"))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("results.json", f"checkpoint-{steps[-1]}"):
        path = tmp_path / "killed" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    tiny_run(tmp_path / "killed", *options, "--resume_from_checkpoint", "true")
    assert steps == sorted(int(path.name[11:]) for path in (tmp_path / "killed").glob("checkpoint-*"))


def test_class_weights_are_of_inverse_frequency_with_mean_one(tmp_path):
    clips = random_splits()
    clips.splits["train"] = ListedClips("train", [clips["train"].media(0, None)] * 6, [0, 0, 0, 1, 1, 2])
    arguments = ModelArguments(audio_config=TOWERS[1], vision_config=TOWERS[3], class_weighted_loss=True)
    model, _ = build_model_and_processor(arguments, clips, seed=0)
    assert model.config.class_weights == pytest.approx([6 / 9, 1.0, 2.0])
    assert sum(model.config.class_weights[label] for label in [0, 0, 0, 1, 1, 2]) / 6 == pytest.approx(1.0)
    clips.splits["train"].labels = [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="class 'happy' has no train clip"):
        build_model_and_processor(arguments, clips, seed=0)


MY_HEAD = """
from hf_mmbalance.model.fusion_mmbalance import FusionHead, FusionOutput
import torch


class MyHead(FusionHead):
    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, modality_logits, modality_mask, features=None):
        terms = self.scale * modality_logits.log_softmax(-1) * modality_mask.unsqueeze(-1)
        return FusionOutput(logits=terms.sum(1), modality_contributions=terms)
"""


def test_a_head_of_the_users_own(tmp_path, capsys):
    """It learns with the towers."""
    file = tmp_path / "my_head.py"
    file.write_text(MY_HEAD)
    results = tiny_run(tmp_path / "run", "--fusion", f"{file}:MyHead", "--num_train_epochs", "1")
    assert results["fusion"] == "my_head:MyHead" and results["weights"] is None
    assert (tmp_path / "run" / file.name).exists()
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert saved["fusion.scale"] != 1.0
    loaded = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path / "run", trust_remote_code=True)
    assert torch.equal(loaded.fusion.scale, saved["fusion.scale"])
    for words in (["predict", "a.wav", "--model"], ["robustness"], ["train", *TINY[4:], "--model_name_or_path"]):
        assert cli.main([*words, str(tmp_path / "run")]) == 2
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "read its my_head.py, and if you trust it pass --trust_remote_code" in said


def test_frozen_towers_stay_as_they_are(tmp_path):
    folder = tmp_path / "run"
    tiny_run(folder, "--trainable_layers", "0", "--num_train_epochs", "1")
    arguments = parse_arguments([*TINY])
    fresh, _ = build_model_and_processor(arguments.model, clips_of(), seed=0)
    saved, start = load_file(folder / "model.safetensors"), fresh.state_dict()
    moved = {name.split(".")[0] for name in saved if not torch.equal(saved[name], start[name])}
    assert moved - {"fusion"} == {"unimodal_heads"}


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
        (["--audio_max_length", "32"], "--audio_max_length has no place beside --model_name_or_path"),
    ):
        with pytest.raises(ValueError, match=words):
            main([*more, "--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "no"), *option])


def test_training_that_diverged_says_so(tmp_path):
    with pytest.raises(ValueError, match="training diverged: logits of 8 of 8 calibration clips .* --learning_rate"):
        tiny_run(tmp_path / "run", "--learning_rate", "1e30")
    assert not (tmp_path / "run" / "results.json").exists()


def test_classes_must_be_the_models_in_the_same_order():
    config = tiny_model().config
    check_classes(config, CLASSES)
    for classes, words in (
        (["calm", "happy", "angry"], "'angry' where the dataset has 'happy' .3 and 3 classes"),
        (["calm", "angry"], "'happy' where the dataset has '.none.'"),
        ([*CLASSES, "sad"], "'.none.' where the dataset has 'sad' .3 and 4 classes"),
    ):
        with pytest.raises(ValueError, match=words):
            check_classes(config, classes)


def test_splits_that_a_run_cannot_do_without(tmp_path):
    for split in ("train", "validation", "calibration"):
        clips = random_splits()
        del clips.splits[split]
        with pytest.raises(ValueError, match=f"'noise' has no clips in split.s. {split}"):
            tiny_trainer(tmp_path, clips=clips)
    clips = random_splits(calibration=0)
    tiny_trainer(tmp_path, model=tiny_model("sum"), clips=clips, max_steps=1).train()  # this head needs none


def test_the_spectrogram_length_is_fitted_to_the_train_clips():
    clips = random_splits()  # .16 s
    assert fitted_frames(clips) == 16
    clips.splits["train"].kept[5] = (np.zeros(16_000 + 1, dtype=np.float32), None)
    assert fitted_frames(clips) == 112  # 1.00006 s: 101 frames, in steps of 16
    clips.splits["train"].kept = [(None, frames) for _, frames in clips.splits["train"].kept]
    assert fitted_frames(clips) == 16


def test_masks_are_made_only_when_asked_for():
    assert spec_augment(ModelArguments(), seed=3) is None
    augment = spec_augment(ModelArguments(time_masks=2, time_mask_width=5), seed=3)
    assert dataclasses.astuple(augment) == (0, 8, 2, 5, 3)


def test_input_statistics(tmp_path):
    arguments = ModelArguments(
        audio_config=TOWERS[1], vision_config=TOWERS[3], audio_mean=-1.5, audio_std=2.5, image_mean=[0.1, 0.2, 0.3]
    )
    _, processor = build_model_and_processor(arguments, random_splits(), seed=0)
    assert (processor.feature_extractor.mean, processor.feature_extractor.std) == (-1.5, 2.5)
    assert processor.image_processor.image_mean == [0.1, 0.2, 0.3]
    assert processor.image_processor.image_std == (0.5, 0.5, 0.5)
    assert processor.spec.frames == 2


def test_callbacks_of_the_user_are_kept(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.add_callback(EarlyStoppingCallback(1))
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert "FollowEpochs" in names and "EarlyStoppingCallback" in names


def test_a_checkpoint_that_the_disk_refuses_is_named_and_removed(tmp_path):
    code = (
        "import resource, sys; from hf_mmbalance.training.cli import train; import hf_mmbalance.training.run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.exit(train(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *TINY, "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"error: .*checkpoint-\d+ could not be written \(.+\): make room", last)
    assert not list((tmp_path / "run").glob("checkpoint-*"))

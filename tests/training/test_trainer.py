"""The Trainer: who learns from which clips, clips that lack a modality, batches, early stopping."""

from __future__ import annotations

import shutil
import signal

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, TrainingArguments

import hf_mmbalance
from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.metrics import measures
from hf_mmbalance.model.fusion_mmbalance import FUSION_HEADS
from hf_mmbalance.training.interruption import StopOnSignal
from hf_mmbalance.training.resuming import EarlyStopping
from hf_mmbalance.training.trainer import MMBalanceTrainer

from .tiny_runs import (
    random_clips,
    random_splits,
    state_of,
    tiny_model,
    tiny_processor,
    tiny_run,
    tiny_trainer,
)


HEADS = sorted(name for name, head in FUSION_HEADS.items() if ":" not in name and head.required_balancing is None)


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


@pytest.mark.parametrize("silent", [("train",), tuple(SILENT)])
def test_a_modality_that_no_train_clip_has_is_left_out(tmp_path, caplog, silent):
    """Also where the other splits have it: a tower that learned nothing must not decide."""
    trainer = tiny_trainer(tmp_path, clips=random_splits(without={name: SILENT[name] for name in silent}), max_steps=2)
    assert "no train clip of noise has audio: the model will ignore it" in caplog.text
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


def test_a_saved_processor_knows_the_longest_clip_that_was_evaluated(tmp_path):
    """Also that of a checkpoint: longer clips only are served in windows."""
    trainer = tiny_trainer(tmp_path)
    trainer.evaluate()
    trainer.save_model(str(tmp_path / "model"))
    assert MMBalanceProcessor.from_pretrained(tmp_path / "model").spec.longest_seconds == 0.16


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


def test_training_on_is_resumed_with_the_head_that_the_checkpoint_has(tmp_path):
    """The fit after an epoch leaves out the typicality that the trained model came with."""

    def trained_on(**options):
        model = tiny_model(fusion_options={"typicality": [2, 2]})
        for name, value in model.fusion.named_buffers():
            if name.startswith("typicality_basis"):
                value.copy_(torch.eye(*value.shape))
            elif name.startswith(("typicality_precision", "typicality_rest")):
                value.fill_(1.0)
        model.fusion.typicality_slope.fill_(-0.5)
        trainer = tiny_trainer(tmp_path, model, num_train_epochs=2, save_strategy="epoch", decision_rung="temperature")
        trainer.train(**options)
        return trainer.model.state_dict()

    whole = trained_on()
    resumed = trained_on(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert whole.keys() == resumed.keys()
    assert [name for name, value in whole.items() if not torch.equal(value, resumed[name])] == []


def test_an_epoch_that_max_steps_cuts_short_has_a_fit_of_its_own(tmp_path):
    """Or its evaluation would read the decision layer of the epoch before."""
    trainer = tiny_trainer(tmp_path, max_steps=3, decision_rung="temperature")  # epochs of two steps
    trainer.train()
    fits = [entry["step"] for entry in trainer.state.log_history if "calibration_nll" in entry]
    assert fits == [2, 3, 3]  # the last when training has ended, every rung allowed


def test_a_run_that_is_over_is_not_trained_on_when_it_is_resumed(tmp_path):
    """By its steps, which may end within an epoch, or by early stopping; more patience lets it go on."""

    def ended(patience: int, **options):
        trainer = tiny_trainer(tmp_path, num_train_epochs=5, learning_rate=0, eval_strategy="steps", eval_steps=1,
                               save_strategy="steps", save_steps=1, early_stopping_patience=patience,
                               restore_callback_states_from_checkpoint=True)  # fmt: skip
        trainer.add_callback(EarlyStopping(patience))
        trainer.train(**options)
        return trainer.state.global_step

    assert ended(2) == 3
    checkpoint = str(tmp_path / "checkpoint-3")
    assert ended(2, resume_from_checkpoint=checkpoint) == 3
    trainer = tiny_trainer(tmp_path, max_steps=3)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 3
    assert ended(3, resume_from_checkpoint=checkpoint) == 4


def test_after_training_in_half_precision_the_model_is_judged_as_it_is_served(tmp_path):
    clips = random_splits()
    trainer = tiny_trainer(tmp_path, clips=clips, max_steps=1, bf16=True)
    trainer.train()
    found = trainer.predict_table(clips.splits["test"], "test")
    trainer.save_model(str(tmp_path / "model"))
    served = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path / "model")
    assert next(served.parameters()).dtype == torch.float32
    expected = tiny_trainer(tmp_path, model=served, clips=clips).predict_table(clips.splits["test"], "test")
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-6)
    np.testing.assert_allclose(found.references["fused"], expected.references["fused"], atol=1e-6)


def test_the_batch_is_of_the_size_that_fits_into_memory(tmp_path):
    """By `auto_find_batch_size`, which changes what the Trainer uses, not its arguments."""
    trainer = tiny_trainer(tmp_path)
    trainer._train_batch_size = 3
    assert [len(batch["labels"]) for batch in trainer.get_train_dataloader()] == [3] * 4
    assert trainer.steps_per_epoch == 4


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


def test_a_signal_after_training_has_its_usual_effect(tmp_path):
    """During the last fit, say: noted, it would be answered by nobody."""
    before = signal.getsignal(signal.SIGTERM)
    trainer = tiny_trainer(tmp_path, max_steps=1)
    with StopOnSignal(trainer) as stop:
        assert signal.getsignal(signal.SIGTERM) == stop._note
        trainer.train()
        assert signal.getsignal(signal.SIGTERM) == before


def test_callbacks_of_the_user_are_kept(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.add_callback(EarlyStoppingCallback(1))
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert "FollowEpochs" in names and "EarlyStoppingCallback" in names


def test_predict_gives_the_decisions_and_their_measures(tmp_path):
    trainer = tiny_trainer(tmp_path, clips=random_splits(without={"test": {0: "audio"}}))
    test = trainer.clips["test"]
    found = trainer.predict(test)
    assert np.array_equal(found.predictions, trainer.predict_table(test, "test").references["fused"])
    assert found.label_ids.tolist() == test.labels
    assert found.metrics.items() <= trainer.evaluate(test, metric_key_prefix="test").items()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compute_metrics": print}, "compute_metrics would not be called: .* predict_table"),
        ({"balancing": "ogm"}, r"balancing='ogm': give a method, such as build_method\('ogm'\)"),
        ({"clips": "synthetic"}, "give clips .what hf_mmbalance.load_clips returns"),
    ],
)
def test_arguments_that_would_be_ignored_or_fail_later_are_refused(options, words, tmp_path):
    given = {"clips": random_splits(), **options}
    with pytest.raises(ValueError, match=words):
        MMBalanceTrainer(tiny_model(), TrainingArguments(str(tmp_path)), processor=tiny_processor(), **given)

"""What a run says while it trains: to people, to trackers, and as a picture."""

from __future__ import annotations

import pytest
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils import logging

from hf_mmbalance.training.curves import write_curves
from hf_mmbalance.training.run_log import check_trackers, final_values, learning_rates, line_of

from .tiny_runs import tiny_run, tiny_trainer


class Recorder(TrainerCallback):
    """A tracker that keeps what it is given."""

    kept: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.kept.append(dict(logs))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run that reports to it: results, folder, what the tracker was given."""
    Recorder.kept = []
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(INTEGRATION_TO_CALLBACK, "json", Recorder)  # any module that can be imported
        results = tiny_run(folder, "--report_to", "json", "--logging_steps", "1")
    return results, folder, Recorder.kept


def test_a_tracker_is_given_everything(tracked):
    results, _, kept = tracked
    names = {name for logs in kept for name in logs}
    assert {"loss", "fused_loss", "unimodal_loss", "learning_rate", "eval_nll", "eval_accuracy_audio"} <= names
    assert {"calibration_nll", "calibration_accuracy", "temperature_audio", "weight_vision"} <= names
    fits = [logs for logs in kept if "calibration_nll" in logs]
    assert len(fits) == 3  # after each of two epochs, and at the end
    (last,) = [logs for logs in kept if "test_fused_nll" in logs]
    row = next(row for row in results["rows"] if (row["split"], row["method"]) == ("test", "fused"))
    assert last["test_fused_accuracy"] == row["accuracy"] and last["test_fused_nll"] == row["nll"]
    assert results["decision"]["temperature"]["audio"] == pytest.approx(fits[-1]["temperature_audio"])


def test_parts_of_the_loss_make_the_loss(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    config, head = trainer.model.config, trainer.model.fusion
    fused = head.default_fused_loss_weight if config.fused_loss_weight is None else config.fused_loss_weight
    alone = head.default_unimodal_loss_weight if config.unimodal_loss_weight is None else config.unimodal_loss_weight
    assert len(lines) == 2
    for entry in lines:
        parts = fused * entry["fused_loss"] + alone * entry["unimodal_loss"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-4)


def test_curves_are_drawn_into_the_run_folder(tracked, tmp_path):
    _, folder, kept = tracked
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert write_curves([], tmp_path / "c.png") is None and not (tmp_path / "c.png").exists()


def test_a_log_file_has_lines_and_no_bars(tmp_path, capfd):
    tiny_trainer(tmp_path, save_strategy="steps", save_steps=1, disable_tqdm=False).train()
    said = capfd.readouterr()
    assert (tmp_path / "checkpoint-1").is_dir() and "epoch 0.5: train loss" in said.out
    assert "shards" not in said.err and "it/s" not in said.out + said.err
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        (
            {"epoch": 0.4, "loss": 4.719, "fused_loss": 1.2, "unimodal_loss": 3.519, "learning_rate": 0.00285},
            "epoch 0.4: train loss 4.719 (fused 1.2, unimodal 3.519), learning rate 0.00285",
        ),
        ({"epoch": 2.0, "loss": 1.0}, "epoch 2: train loss 1"),
        (
            {"epoch": 1.0, "eval_nll": 1.054, "eval_loss": 1.054, "eval_accuracy": 0.7, "eval_accuracy_sum": 0.68},
            "epoch 1: validation NLL (eval_loss) 1.054, accuracy 70.0 (sum 68.0)",
        ),
        (
            {"epoch": 1.0, "calibration_nll": 1.3, "calibration_accuracy": 0.5, "temperature_a": 2.0, "weight_a": 1.1},
            "epoch 1: decision layer fitted: calibration NLL 1.3, accuracy 50.0; temperature a 2; weight a 1.1",
        ),
        ({"epoch": 4, "train_runtime": 14.67, "train_loss": 3.8}, "epoch 4: trained in 14.7 s, mean train loss 3.8"),
        ({"epoch": 4, "test_fused_nll": 1.0}, None),  # the table says it
        ({"something": 1}, "run: {'something': 1}"),
    ],
)
def test_lines_can_be_read(logs, line):
    assert line_of(logs) == line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tensorbord", "--report_to tensorbord is not a tracker; did you mean 'tensorboard'"),
        ("comet_ml", "--report_to comet_ml: comet_ml is not installed; `pip install comet-ml`"),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_before_anything_is_read(name, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        tiny_run(tmp_path / "run", "--report_to", name)
    assert not (tmp_path / "run").exists()
    check_trackers([])


def test_learning_rates_are_named_where_they_differ():
    class Optimizer:
        param_groups = [{"lr": 0.1}, {"lr": 0.1}]

    assert learning_rates(Optimizer()) == {} == learning_rates(None)
    Optimizer.param_groups[1]["lr"] = 0.2
    assert learning_rates(Optimizer()) == {"learning_rate_0": 0.1, "learning_rate_1": 0.2}


def test_the_final_table_is_of_the_test_split():
    row = {"method": "sum", "split": "test", "n": 3, "accuracy": 1.0, "macro_f1": 0.9, "nll": 0.1, "ece": 0.2}
    found = final_values([row, row | {"split": "validation", "accuracy": 0.0}, row | {"n": 0, "method": "audio"}])
    assert found == {"test_sum_accuracy": 1.0, "test_sum_macro_f1": 0.9, "test_sum_nll": 0.1, "test_sum_ece": 0.2}

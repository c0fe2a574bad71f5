"""Log of a training run: parts of the loss, the decision layer, readable lines, and a check of the trackers."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import ProgressCallback, Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import PrinterCallback

from hf_mmbalance.console import did_you_mean, say
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.metrics import measures


if TYPE_CHECKING:
    from hf_mmbalance.decision import Allocation
    from hf_mmbalance.decision.results import Row

#: Tracker -> module and package, where their names differ from the tracker's.
MODULES = {"azure_ml": "azureml", "flyte": "flytekit"}
PACKAGES = {"azure_ml": "azureml-mlflow", "flyte": "flytekit", "comet_ml": "comet-ml"}


def check_trackers(names: list[str]) -> None:
    """Check, before anything is loaded, that transformers knows every tracker and that it is installed.

    Raises:
        ValueError: if not; the message names the tracker and what to install.
    """
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            hint = did_you_mean(name, INTEGRATION_TO_CALLBACK)
            raise ValueError(f"--report_to {name} is not a tracker{hint} ({', '.join(INTEGRATION_TO_CALLBACK)}, none)")
        modules = ["tensorboard", "tensorboardX"] if name == "tensorboard" else [MODULES.get(name, name)]
        if not any(importlib.util.find_spec(module) for module in modules):
            package = PACKAGES.get(name, name)
            text = f"--report_to {name}: {name} is not installed"
            raise ValueError(f"{text}; `pip install {package}`, or remove the option")


class LossParts:
    """Collects the parts of the loss, before weighting, over the train batches since the last log line."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._batches = 0

    def add(self, outputs: Any) -> None:
        """Add the parts of a train batch, from the outputs of the model."""
        self._batches += 1
        for name in ("fused_loss", "unimodal_loss"):
            if outputs.get(name) is not None:
                self._sums[name] = self._sums.get(name, 0.0) + outputs[name].detach().float()

    def take(self) -> dict[str, float]:
        """Return the means over this process's batches since the last call; empty if the model returns no parts."""
        found = {name: float(total) / self._batches for name, total in self._sums.items()}
        self._sums, self._batches = {}, 0
        return found


def learning_rates(optimizer: Any) -> dict[str, float]:
    """Return the learning rate of every parameter group if they differ, else nothing."""
    groups = [] if optimizer is None else optimizer.param_groups
    rates = [float(group["lr"]) for group in groups]
    return {f"learning_rate_{index}": rate for index, rate in enumerate(rates)} if len(set(rates)) > 1 else {}


def decision_values(allocation: Allocation, table: DecisionTable, fused: np.ndarray) -> dict[str, float]:
    """Return the fit as numbers: accuracy and NLL on the uncorrupted calibration clips, temperatures, weights.

    Args:
        allocation: The fitted decision layer.
        table: Calibration rows; any other rows are ignored.
        fused: `(N, C)` logits of the decision layer for these rows.
    """
    rows = (np.asarray(table.splits) == "calibration") & (table.draw_numbers == 0)
    state = allocation.state_
    found = {
        "calibration_accuracy": measures.accuracy(fused[rows], table.labels[rows]),
        "calibration_nll": measures.nll(fused[rows], table.labels[rows]),
    }
    for m, name in enumerate(table.modalities):
        found[f"temperature_{name}"] = float(np.exp(state["log_temperature"][m]))
        found[f"weight_{name}"] = float(state["weights"][m].mean())
    return found


def final_values(rows: list[Row]) -> dict[str, float]:
    """Return the final table as numbers for trackers: `test_<method>_<measure>`."""
    return {
        f"test_{row['method']}_{measure}": row[measure]
        for row in rows
        if row["split"] == "test" and row["n"]
        for measure in ("accuracy", "macro_f1", "nll", "ece")
    }


def line_of(logs: dict[str, Any]) -> str | None:
    """Return one readable line for an entry of the log; None if it needs no line."""
    where = f"epoch {logs['epoch']:.4g}" if "epoch" in logs else "run"
    if "train_runtime" in logs:
        return f"{where}: trained in {logs['train_runtime']:.1f} s, mean train loss {logs['train_loss']:.4g}"
    if "loss" in logs:
        parts = [f"{part} {logs[f'{part}_loss']:.4g}" for part in ("fused", "unimodal") if f"{part}_loss" in logs]
        text = f"{where}: train loss {logs['loss']:.4g}" + (f" ({', '.join(parts)})" if parts else "")
        return f"{text}, learning rate {logs['learning_rate']:.3g}" if "learning_rate" in logs else text
    if "eval_nll" in logs:
        start = "eval_accuracy_"
        each = [f"{key.removeprefix(start)} {100 * logs[key]:.1f}" for key in logs if key.startswith(start)]
        return (
            f"{where}: validation NLL (eval_loss) {logs['eval_nll']:.4g}, accuracy {100 * logs['eval_accuracy']:.1f}"
            f" ({', '.join(each)})"
        )
    if "calibration_nll" in logs:
        parts = []
        for kind in ("temperature", "weight"):
            named = [f"{key.removeprefix(f'{kind}_')} {logs[key]:.3g}" for key in logs if key.startswith(f"{kind}_")]
            parts.append(f"{kind} {', '.join(named)}")
        return (
            f"{where}: decision layer fitted: calibration NLL {logs['calibration_nll']:.4g}, accuracy"
            f" {100 * logs['calibration_accuracy']:.1f}; {'; '.join(parts)}"
        )
    return None if any(key.startswith("test_") for key in logs) else f"{where}: {logs}"


class LineProgress(ProgressCallback):
    """Trainer's progress bar, with readable lines above it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        line = line_of(logs)
        if not state.is_world_process_zero or line is None:
            return
        if self.training_bar is not None:
            self.training_bar.write(line)
        else:  # the final fit comes after training
            say(line)


class LinePrinter(PrinterCallback):
    """The same readable lines, for runs without a progress bar."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        line = line_of(logs)
        if state.is_local_process_zero and line is not None:
            say(line)


def use_readable_lines(trainer: Trainer) -> None:
    """Log readable lines instead of Trainer's dictionaries, and hide its bar if there is no terminal to show it."""
    for theirs, ours in ((ProgressCallback, LineProgress), (PrinterCallback, LinePrinter)):
        if trainer.pop_callback(theirs) is not None:
            trainer.add_callback(ours if sys.stderr.isatty() else LinePrinter)

"""`curves.png`: a run's losses, accuracies and decision layer over its epochs."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hf_mmbalance.decision import figures


#: Title of a panel -> names in the log and their labels; `*` stands for any modality (or other ending).
LINES = {
    "loss": [("loss", "train loss"), ("fused_loss", "fused part"), ("unimodal_loss", "unimodal part")],
    "NLL": [("eval_nll", "validation"), ("calibration_nll", "calibration (fitted on)")],
    "accuracy, %": [("eval_accuracy", "validation"), ("eval_accuracy_sum", "plain sum"), ("eval_accuracy_*", "*")],
    "decision layer": [("temperature_*", "temperature *"), ("weight_*", "weight *")],
}
STYLES = ("-", "--", ":", "-.")


def write_curves(history: list[dict[str, Any]], path: Path) -> Path | None:
    """Draw the log of a run; return None if it holds no curve (a run of a single step).

    Args:
        history: Trainer's `log_history`.
        path: path of the PNG file.
    """
    curves = {title: found for title, lines in LINES.items() if (found := _curves(history, lines))}
    if not curves:
        return None
    figure = figures.draw(_draw, curves)
    figure.savefig(path, dpi=120, facecolor="white")
    return path


def _curves(history: list[dict[str, Any]], lines: list[tuple[str, str]]) -> dict[str, tuple[list[float], list[float]]]:
    named = {pattern for pattern, _ in lines}
    found: dict[str, tuple[list[float], list[float]]] = {}
    for pattern, label in lines:
        for name in dict.fromkeys(name for entry in history for name in entry):
            if name != pattern and (name in named or not fnmatchcase(name, pattern)):
                continue
            points = [(entry["epoch"], entry[name]) for entry in history if name in entry and "epoch" in entry]
            if points:
                x, y = zip(*points, strict=True)
                found[label.replace("*", name.removeprefix(pattern.removesuffix("*")))] = (list(x), list(y))
    return found


def _draw(shown: dict[str, dict[str, tuple[list[float], list[float]]]]) -> Any:
    figure, axes = figures.panels(1, len(shown), (3.4 * len(shown), 2.8), sharey=False)
    for ax, (title, curves) in zip(axes, shown.items(), strict=True):
        for index, (label, (x, y)) in enumerate(curves.items()):
            factor = 100 if title.endswith("%") else 1
            ax.plot(x, [factor * value for value in y], label=label, marker="o", markersize=2.5, linewidth=1.3,
                    color=figures.COLOURS[index % len(figures.COLOURS)], linestyle=STYLES[index % 4])  # fmt: skip
        ax.set(title=title, xlabel="epoch")
        ax.grid()
        ax.legend(fontsize=7)
    return figure

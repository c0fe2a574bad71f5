"""Numbers of a finished run: a table a person can read, `results.json`, and the logits of every split."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.metrics import measures


Row = dict[str, Any]


def measure(method: str, split: str, logits: np.ndarray, table: DecisionTable, clips: np.ndarray) -> Row:
    """Accuracy with its 95 % interval, macro-F1, NLL and ECE of one method on the clips marked.

    Args:
        method, split: Names for the row.
        logits: `(N, C)`.
        table: Labels and groups of the N clips.
        clips: `(N,)` bool, those that the method can answer.
    """
    labels, logits = table.labels[clips], logits[clips]
    groups = np.asarray(table.groups)[clips]
    if not len(labels):
        empty = dict.fromkeys(("accuracy", "accuracy_ci", "macro_f1", "nll", "ece"))
        return {"method": method, "split": split, "n": 0, **empty}
    return {
        "method": method,
        "split": split,
        "n": len(labels),
        "accuracy": measures.accuracy(logits, labels),
        "accuracy_ci": list(measures.bootstrap_ci(measures.correct(logits, labels), groups)),
        "macro_f1": measures.macro_f1(logits, labels),
        "nll": measures.nll(logits, labels),
        "ece": measures.ece(logits, labels),
    }


def plain_sum(table: DecisionTable, log_prior: np.ndarray | None = None) -> np.ndarray:
    """Sum of log-probabilities over the modalities present `(N, C)`, the prior counted once where one is given.

    sum_m l_m - (|S| - 1) log pi, with S the modalities present: what independent towers that each count the prior pi
    amount to.
    """
    total = np.where(table.mask[..., None], measures.log_softmax(np.nan_to_num(table.logits)), 0.0).sum(1)
    return total if log_prior is None else total - (table.mask.sum(1, keepdims=True) - 1) * log_prior


def log_prior_of(labels: np.ndarray, classes: int) -> np.ndarray:
    """Log of the class frequencies `(C,)` of labels, half a clip added to every class."""
    counts = np.bincount(labels, minlength=classes) + 0.5
    return np.log(counts / counts.sum())


def rows_of(table: DecisionTable, split: str, log_prior: np.ndarray) -> list[Row]:
    """Rows of each modality, the plain sum of the same towers without and with the prior, and the fusion."""
    every = np.ones(len(table.labels), dtype=bool)
    rows = [
        measure(modality, split, np.nan_to_num(table.logits[:, index]), table, table.mask[:, index])
        for index, modality in enumerate(table.modalities)
    ]
    rows.append(measure("sum", split, plain_sum(table), table, every))
    rows.append(measure("prior_sum", split, plain_sum(table, log_prior), table, every))
    rows.append(measure("fused", split, table.references["fused"], table, every))
    return rows


def mean_weights(weights: np.ndarray | None, table: DecisionTable) -> dict[str, list[float]] | None:
    """Mean weight that the decision layer gave each modality for each class, over clips with every modality.

    Args:
        weights: `(N, M, C)`; None for a head without weights.
        table: The N clips.
    """
    complete = table.mask.all(axis=1)
    if weights is None or not complete.any():
        return None
    return dict(zip(table.modalities, weights[complete].mean(axis=0).tolist(), strict=True))


def render_rows(rows: list[Row], ci_unit: str) -> str:
    """The rows as a table; accuracy and its interval in per cent."""
    lines = [f"{'method':<10} {'accuracy':>9} {'95 % CI':>15} {'macro-F1':>9} {'NLL':>7} {'ECE':>6} {'n':>6}"]
    for row in rows:
        if not row["n"]:
            lines.append(f"{row['method']:<10} {'no clip has this modality':>9}")
            continue
        low, high = row["accuracy_ci"]
        lines.append(
            f"{row['method']:<10} {100 * row['accuracy']:>9.1f} {100 * low:>7.1f}-{100 * high:<7.1f}"
            f" {100 * row['macro_f1']:>9.1f} {row['nll']:>7.3f} {row['ece']:>6.3f} {row['n']:>6d}"
        )
    return "\n".join([*lines, f"(intervals: bootstrap over {ci_unit}s)"])


def render_weights(weights: dict[str, list[float]], classes: list[str], optimum: np.ndarray | None = None) -> str:
    """Mean weight of each modality by class and, where known, the optimum's share of the first modality beside it."""
    modalities = list(weights)
    head = f"{'class':<20}" + "".join(f" {modality:>9}" for modality in modalities)
    if optimum is not None:
        head += f"   {modalities[0] + ' share':>12} {'optimal':>8}"
    lines = [head]
    for index, name in enumerate(classes):
        row = [weights[modality][index] for modality in modalities]
        line = f"{name[:20]:<20}" + "".join(f" {value:>9.2f}" for value in row)
        if optimum is not None:
            best = np.maximum(optimum[:, index], 0.0)  # below 0 where a modality errs more often than by chance
            line += f"   {row[0] / max(sum(row), 1e-9):>12.2f} {best[0] / best.sum():>8.2f}"
        lines.append(line)
    return "\n".join(lines)

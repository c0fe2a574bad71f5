"""Results of a finished run: a readable table, `results.json`, and the logits of every split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.decision.table_files import RUN_TABLE
from hf_mmbalance.json_files import write_json
from hf_mmbalance.metrics import measures
from hf_mmbalance.scrubbing import scrub_all


Row = dict[str, Any]
RESULTS = "results.json"
#: Arguments of a run that say where it is written, shown or computed, not what it learns.
PLACES = frozenset(
    "output_dir out json run_name resume_from_checkpoint report_to project disable_tqdm log_level logging_steps"
    " logging_strategy logging_first_step push_to_hub hub_model_id hub_private_repo hub_revision hub_strategy"
    " save_total_limit data_dir dataloader_num_workers per_device_eval_batch_size local_rank use_cpu".split()
)


def measure(method: str, split: str, logits: np.ndarray, table: DecisionTable, clips: np.ndarray) -> Row:
    """Measure one method on some clips: accuracy, its 95 % interval and resampling unit, macro-F1, NLL and ECE.

    Args:
        method, split: Names for the row.
        logits: `(N, C)` logits of the method.
        table: Labels and groups of the N clips.
        clips: `(N,)` bool, True for the clips that the method can answer.
    """
    labels, logits = table.labels[clips], logits[clips]
    groups = np.asarray(table.groups)[clips]
    if not len(labels):
        empty = dict.fromkeys(("accuracy", "accuracy_ci", "ci_unit", "macro_f1", "nll", "ece"))
        return {"method": method, "split": split, "n": 0, **empty}
    return {
        "method": method,
        "split": split,
        "n": len(labels),
        "accuracy": measures.accuracy(logits, labels),
        "accuracy_ci": list(measures.bootstrap_ci(measures.correct(logits, labels), groups)),
        "ci_unit": measures.ci_unit(groups),
        "macro_f1": measures.macro_f1(logits, labels),
        "nll": measures.nll(logits, labels),
        "ece": measures.ece(logits, labels),
    }


def plain_sum(table: DecisionTable, log_prior: np.ndarray | None = None) -> np.ndarray:
    """Return the sum of log-probabilities over modalities present, `(N, C)`; a log prior `(C,)` is counted once."""
    state = table.plain_sum()
    return (state if log_prior is None else state.replace(log_prior=log_prior)).fuse(table.logits).logits


def rows_of(table: DecisionTable, split: str, log_prior: np.ndarray) -> list[Row]:
    """Return rows for each modality, the plain sum of the same towers without and with the prior, and the fusion."""
    every = np.ones(len(table.labels), dtype=bool)
    rows = [
        measure(modality, split, table.log_probs[:, index], table, table.mask[:, index])
        for index, modality in enumerate(table.modalities)
    ]
    rows.append(measure("sum", split, plain_sum(table), table, every))
    rows.append(measure("prior_sum", split, plain_sum(table, log_prior), table, every))
    rows.append(measure("fused", split, table.references["fused"], table, every))
    return rows


def chance_notes(rows: list[Row], table: DecisionTable) -> list[str]:
    """Return a note on methods whose interval reaches down to the accuracy of always naming the largest class."""
    share = float(np.bincount(table.labels).max() / len(table.labels))
    named = [row["method"] for row in rows if row["n"] and row["accuracy_ci"][0] <= share]
    if not named:
        return []
    what = f"naming the largest class every time gives {100 * share:.1f}"
    return [f"at chance on these {len(table.labels)} clips: {', '.join(named)} ({what})"]


def mean_weights(weights: np.ndarray | None, table: DecisionTable) -> dict[str, list[float]] | None:
    """Return the mean weight of each modality for each class in the decision layer, over clips with every modality.

    Args:
        weights: `(N, M, C)`; None for a head without weights.
        table: The N clips.
    """
    complete = table.mask.all(axis=1)
    if weights is None or not complete.any():
        return None
    return dict(zip(table.modalities, weights[complete].mean(axis=0).tolist(), strict=True))


def render_rows(rows: list[Row]) -> str:
    """Return the rows as a table, with accuracy and its interval in percent; the last row covers all clips."""
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
    unit = rows[-1]["ci_unit"]
    others = [row["method"] for row in rows if row["n"] and row["ci_unit"] != unit]
    more = f"; for {', '.join(others)}, with fewer groups, over clips" if others else ""
    return "\n".join([*lines, f"(intervals: bootstrap over {unit}s{more})"])


def write_outputs(folder: Path, results: dict[str, Any], table: DecisionTable | None) -> None:
    """Write `results.json`, without secrets, and the table as `decisions.parquet`; each completely or not at all."""
    if table is not None:
        table.write(folder / "decisions.part.parquet")
        os.replace(folder / "decisions.part.parquet", folder / RUN_TABLE)
    write_json(folder / RESULTS, scrub_all(results))

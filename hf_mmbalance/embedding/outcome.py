"""Results of `mmbalance fuse`: the numbers in `results.json`, the decision table, predictions for unlabelled clips."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.decision.results import Row, mean_weights, render_rows, rows_of
from hf_mmbalance.decision.state import HeadState
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.embedding.advice import learning_curve, point, render_curve, where_to_label
from hf_mmbalance.embedding.fuse import FITTED, TEST, Fit, FuseOptions, Rows, held_out_decisions
from hf_mmbalance.metrics import measures


Results = dict[str, Any]


def judge(rows: Rows, test: Rows | None, fitted: Fit, options: FuseOptions) -> tuple[Results, DecisionTable]:
    """Compute the numbers of a fusion on labelled clips (out of fold) and test clips, and their decision table."""
    decisions = held_out_decisions(rows, fitted, options)
    tables = {FITTED: rows.table(fitted.logits, FITTED, fused=decisions)}
    if test is not None:
        tables[TEST] = test.table(fitted.unimodal(test), TEST, fused=fitted.fused(test))
    clean = np.flatnonzero(rows.draws == 0)
    as_they_are = rows.take(clean)
    log_prior = np.log(fitted.allocation.prior_)
    judged = [
        row
        for split, table in tables.items()
        for row in rows_of(table.take(np.flatnonzero(table.draw_numbers == 0)), split, log_prior)
    ]
    results = {
        "rows": judged,
        "ci_unit": judged[-1]["ci_unit"],
        "curve": [
            *learning_curve(rows, options),
            point(len(np.unique(rows.clips)), as_they_are, fitted.logits[clean], decisions[clean]),
        ],
        "advice": where_to_label(as_they_are, fitted.logits[clean], decisions[clean]),
        "decision": fitted.allocation.describe(),
        "weights": _weights(fitted, test if test is not None else as_they_are),
    }
    return results, DecisionTable.concatenate(list(tables.values()))


def _weights(fitted: Fit, rows: Rows) -> dict[str, list[float]] | None:
    table = rows.table(fitted.unimodal(rows), TEST)
    return mean_weights(fitted.allocation.fuse(table.logits, list(rows.tokens.values())).weights, table)


def plain_results(modalities: list[str], classes: list[str]) -> Results:
    """Return the results of two unchanged classifiers on unlabelled clips, where no accuracy can be computed."""
    state = HeadState.plain_sum(len(modalities), len(classes))
    lines = ["no labels: the two classifiers' log-probabilities are added, the (even) prior counted once"]
    decision = {"rung": "prior_sum", "reason": lines[0], "lines": lines, "notes": []}
    weights = dict(zip(modalities, state["weights"].tolist(), strict=True))
    return {"rows": [], "ci_unit": "clip", "curve": [], "advice": [], "decision": decision, "weights": weights}


def write_answers(
    path: Path, ids: list[str], fused: np.ndarray, unimodal: np.ndarray, classes: list[str], modalities: list[str]
) -> None:
    """Write predictions for unlabelled clips as CSV, the least certain first: labelling these helps most.

    Columns: id, label, probability, and each modality's own prediction.
    """
    probability = np.exp(measures.log_softmax(fused))
    best = measures.predict(fused)
    certain = probability[np.arange(len(best)), best]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "probability", *(f"label_{name}" for name in modalities)])
        for i in np.argsort(certain, kind="stable"):
            own = ["" if np.isnan(row[0]) else classes[int(np.argmax(row))] for row in unimodal[i]]
            writer.writerow([ids[i], classes[int(best[i])], f"{certain[i]:.4f}", *own])


def render(results: Results) -> str:
    """Render the results as text for the terminal."""
    lines: list[str] = []
    rows: list[Row] = results["rows"]
    for split, title in ((FITTED, "labelled clips, each predicted by heads and a layer fitted without its fold"),
                         (TEST, "test split")):  # fmt: skip
        part = [row for row in rows if row["split"] == split]
        if part:
            lines += ["", f"{results['dataset']}, {title}", render_rows(part)]
    if results["curve"]:
        lines += ["", "accuracy by number of labelled clips", *render_curve(results["curve"])]
    lines += ["", *results["decision"]["lines"]]
    lines += [f"note: {note}" for note in [*results["notes"], *results["decision"]["notes"]]]
    if results["advice"]:
        lines += ["", "where more labels would help", *(f"  {text}" for text in results["advice"])]
    return "\n".join(lines).lstrip("\n")

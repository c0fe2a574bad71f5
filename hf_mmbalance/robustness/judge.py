"""Accuracy, NLL and trust of every method in every cell, with intervals, and means over seen and unseen kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_mmbalance.decision.state import HeadState, own_log_probs
from hf_mmbalance.metrics import measures
from hf_mmbalance.robustness.cells import CLEAN, Cell


Scores = dict[str, np.ndarray]  # method -> one value per clip, NaN where the method has no prediction
FUSED = "fused"
FEWER = "~"
NOTHING = {"n": 0, "mean": None, "ci": None}


def method_logits(
    cell: Cell, modalities: Sequence[str], log_prior: np.ndarray, known: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return logits `(N, C)` of each modality, `sum`, `prior_sum` and `fused`; NaN rows where there is no prediction.

    `sum` adds the log-probabilities of the modalities that are present. `prior_sum` does the same, but counts the
    prior only once: sum over m of log p_m - (number of modalities - 1) log prior, which is Bayes' rule for towers that
    are calibrated and independent given the class. As in the model's own head, a modality gives no evidence for
    classes outside `known (M, C)`; None if all modalities know all classes.
    """
    logits = np.where(cell.modality_mask[:, :, None], cell.modality_logits, np.nan)
    state = HeadState.plain_sum(*logits.shape[1:]).with_known(known)
    total, once = (s.fuse(logits).logits for s in (state, state.replace(log_prior=log_prior)))
    own = own_log_probs(logits, state.known)
    single = {name: own[:, m] for m, name in enumerate(modalities)}
    return {**single, "sum": total, "prior_sum": once, FUSED: cell.logits}


def clip_scores(
    cell: Cell, labels: np.ndarray, modalities: Sequence[str], log_prior: np.ndarray, known: np.ndarray | None = None
) -> dict[str, Scores]:
    """Score every clip: `accuracy` (1 if right) and `nll` `(N,)` by method; if available, `trust` by modality."""
    logits = method_logits(cell, modalities, log_prior, known)
    scores: dict[str, Scores] = {"accuracy": {}, "nll": {}}
    for name, values in logits.items():
        there = np.isfinite(values).all(1)
        for measure, function in (("accuracy", measures.correct), ("nll", measures.clip_nll)):
            scores[measure][name] = np.full(len(labels), np.nan)
            if there.any():
                scores[measure][name][there] = function(values[there], labels[there])
    if cell.modality_trust is not None:
        trust = np.where(cell.modality_mask, cell.modality_trust, np.nan)
        scores["trust"] = {name: trust[:, m] for m, name in enumerate(modalities)}
    return scores


def summary(values: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """Return the mean over the clips that have a value, its 95 % interval (bootstrap over groups) and their number."""
    there = np.isfinite(values)
    if not there.any():
        return dict(NOTHING)
    ci = measures.bootstrap_ci(values[there], np.asarray(groups)[there])
    return {"n": int(there.sum()), "mean": float(values[there].mean()), "ci": list(ci)}


def judge(
    cells: Sequence[Cell],
    labels: Sequence[int],
    groups: Sequence[str],
    modalities: Sequence[str],
    log_prior: np.ndarray,
    seen: Sequence[str],
    known: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute the numbers of every cell and of three families: clean, seen kinds and unseen kinds.

    In a family, the value of a clip is its mean over the cells, so that intervals take into account that all cells
    contain the same clips. Conflict and missing modalities belong to no family.

    Args:
        cells: the clean cell and any others.
        labels, groups: label and group of every clip, in order.
        modalities: names, in the model's order.
        log_prior: `(C,)`.
        seen: kinds that occurred in calibration or training.
        known: `(M, C)` bool, the classes that each modality knows; None for all.

    Returns:
        `cells` and `families`: lists of rows with `accuracy` and `nll` by method (see `summary`), `trust` by modality
        and, in `gain`, the accuracy of the fusion minus that of every other method, paired by clip.
    """
    scored = [(cell, clip_scores(cell, np.asarray(labels), modalities, log_prior, known)) for cell in cells]
    rows = [
        {"kind": cell.kind, "severity": cell.severity, "seen": cell.kind in seen, **_row(scores, groups)}
        for cell, scores in scored
    ]
    families = {
        CLEAN: [scores for cell, scores in scored if cell.kind == CLEAN],
        "seen": [scores for cell, scores in scored if cell.kind in seen and _in_family(cell)],
        "unseen": [scores for cell, scores in scored if cell.kind not in seen and _in_family(cell)],
    }
    grouped = [
        {"family": name, "cells": len(part), **_row(_mean(part), groups)} for name, part in families.items() if part
    ]
    return {
        "n": len(labels),
        "modalities": list(modalities),
        "ci_unit": measures.ci_unit(groups),
        "seen": list(seen),
        "families": grouped,
        "cells": rows,
    }


def _in_family(cell: Cell) -> bool:
    return cell.kind not in (CLEAN, "conflict") and not cell.kind.startswith("missing_")


def _mean(parts: Sequence[dict[str, Scores]]) -> dict[str, Scores]:
    return {
        measure: {name: np.mean([part[measure][name] for part in parts], axis=0) for name in methods}
        for measure, methods in parts[0].items()
    }


def _row(scores: dict[str, Scores], groups: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        measure: {name: summary(values, groups) for name, values in methods.items()}
        for measure, methods in scores.items()
    }
    right = scores["accuracy"]
    row["gain"] = {name: summary(right[FUSED] - values, groups) for name, values in right.items() if name != FUSED}
    return row


def render(report: dict[str, Any]) -> str:
    """Render the numbers as a text table: accuracy in percent, NLL of `sum` and `fused`, trust in percent.

    Numbers that rest on fewer clips than the fusion's are marked: some clips lack the modality.
    """
    methods = list(report["cells"][0]["accuracy"])
    lines = [f"{report['n']} test clips; accuracy in percent", _head("corruption", methods, report["modalities"])]
    for row in report["cells"]:
        name = row["kind"] + (f" {row['severity']}" if row["severity"] else "") + (" *" if row["seen"] else "")
        lines.append(_line(name, row, methods, report["modalities"]))
    lines += ["* seen in calibration or training", "", _head("family", methods, report["modalities"])]
    for row in report["families"]:
        lines.append(_line(f"{row['family']} ({row['cells']})", row, methods, report["modalities"]))
    lines += ["", "accuracy of the fusion minus that of"]
    for row in report["families"]:
        for name in methods[:-1]:
            gain = row["gain"][name]
            if gain["n"]:
                low, high = (100 * end for end in gain["ci"])
                fewer = FEWER if gain["n"] < report["n"] else ""
                value = f"{100 * gain['mean']:+6.1f} [{low:+.1f}, {high:+.1f}]{fewer}"
                lines.append(f"  {row['family']:<8} {name:<10} {value}")
    if any(FEWER in line for line in lines):
        lines.append(f"{FEWER} from fewer clips: those that have the modality (their number: n in the JSON)")
    return "\n".join([*lines, f"(intervals: bootstrap over {report['ci_unit']}s)"])


def _head(first: str, methods: Sequence[str], modalities: Sequence[str]) -> str:
    columns = [*methods, "NLL sum", "NLL fused", *(f"trust {name}" for name in modalities)]
    return f"{first:<22}" + "".join(f"{name:>{_width(name)}}" for name in columns)


def _line(name: str, row: dict[str, Any], methods: Sequence[str], modalities: Sequence[str]) -> str:
    trust = row.get("trust", {})
    entries = [(method, row["accuracy"][method], 100.0, 1) for method in methods]
    entries += [(f"NLL {method}", row["nll"][method], 1.0, 3) for method in ("sum", FUSED)]
    entries += [(f"trust {m}", trust.get(m, NOTHING), 100.0, 1) for m in modalities]
    clips = row["accuracy"][FUSED]["n"]
    line = f"{name:<22}"
    for title, found, factor, digits in entries:
        text = f"{factor * found['mean']:.{digits}f}" if found["n"] else "-"
        line += f"{text + FEWER if 0 < found['n'] < clips else text:>{_width(title)}}"
    return line


def _width(name: str) -> int:
    return max(len(name) + 2, 8)

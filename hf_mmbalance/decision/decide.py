"""`decide`: the whole ladder, fallbacks and baselines of a table, judged on clips the fit did not see."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_mmbalance.decision.allocation import Allocation
from hf_mmbalance.decision.families import PARENTS
from hf_mmbalance.decision.folds import group_folds
from hf_mmbalance.decision.head import HeadState
from hf_mmbalance.decision.table import DecisionTable, TableError
from hf_mmbalance.metrics.measures import bootstrap_ci, ci_unit, clip_nll, correct, ece, log_softmax


@dataclass
class Decided:
    """Fusions of a table with what each of them says of clips it was not fitted on.

    Args:
        table: the judged clips.
        fusions: method -> its fused logits `(N, C)`, in the order of the report.
        states: method -> [(rows, state), ...], the fitted head that judged these rows; only for the ladder.
        allocation: fitted on the whole fitting part: what `--save` keeps.
        chosen_by_part: rung chosen for each part of the clips (one, or one a fold).
        fit_clips: number of clips the allocation was fitted on.
        scaled_sum_nll: `(N,)` NLL of the fallback `sum`, the plain sum under one fitted temperature.
        notes: what the reader must know.
    """

    table: DecisionTable
    fusions: dict[str, np.ndarray]
    states: dict[str, list[tuple[np.ndarray, HeadState]]]
    allocation: Allocation
    chosen_by_part: list[str]
    fit_clips: int
    scaled_sum_nll: np.ndarray
    notes: list[str] = field(default_factory=list)

    def add_head(self, name: str, state: HeadState) -> None:
        """Judge one more fusion, such as a trained model's own head, beside the fitted ones.

        Raises:
            TableError: if the head has other modalities or classes than the table.
        """
        if state.alpha.shape != self.table.logits.shape[1:]:
            raise TableError(
                f"the head {name!r} has {state.alpha.shape} modalities and classes, the table"
                f" {self.table.logits.shape[1:]}."
            )
        self.states[name] = [(np.arange(len(self.table)), state)]
        self.fusions[name] = state.fuse(self.table.logits)[0]

    def per_clip(self, method: str) -> tuple[np.ndarray, np.ndarray]:
        """Correctness and NLL of every clip; NaN where the method does not answer (modality or reference missing)."""
        logits = self.fusions[method]
        there = ~np.isnan(logits).any(axis=1)
        hit, loss = np.full(len(logits), np.nan), np.full(len(logits), np.nan)
        if there.any():
            hit[there] = correct(logits[there], self.table.labels[there])
            loss[there] = clip_nll(logits[there], self.table.labels[there])
        return hit, loss

    def row(self, method: str) -> dict[str, Any]:
        """One line of the report."""
        hit, loss = self.per_clip(method)
        there = ~np.isnan(hit)
        if not there.any():
            return {"method": method, "n": 0, "accuracy": None, "accuracy_ci": None, "nll": None, "ece": None}
        groups = np.asarray(self.table.groups)[there]
        more = {"nll_scaled": float(self.scaled_sum_nll.mean())} if method == "sum" else {}
        return {
            "method": method,
            "n": int(there.sum()),
            "accuracy": float(hit[there].mean()),
            "accuracy_ci": list(bootstrap_ci(hit[there], groups)),
            "nll": float(loss[there].mean()),
            "ece": ece(self.fusions[method][there], self.table.labels[there]),
            **more,
        }

    def difference(self, method: str, baseline: str) -> dict[str, Any]:
        """Paired difference of accuracy and NLL with cluster-bootstrap intervals, over clips that both answer."""
        pairs = [a - b for a, b in zip(self.per_clip(method), self.per_clip(baseline), strict=True)]
        there = ~np.isnan(pairs[0])
        groups = np.asarray(self.table.groups)[there]
        result: dict[str, Any] = {"method": method, "baseline": baseline, "n": int(there.sum())}
        for name, values in zip(("accuracy", "nll"), pairs, strict=True):
            result[name] = float(values[there].mean())
            result[f"{name}_ci"] = list(bootstrap_ci(values[there], groups))
        return result

    def as_dict(self) -> dict[str, Any]:
        """The report of `mmbalance decide --json`."""
        table, allocation = self.table, self.allocation
        weights = allocation.state_.class_weights(log_softmax(table.logits))
        rival = [table.modalities[allocation.ladder_.best_single], "sum"]
        return {
            "n": len(table),
            "n_fit": self.fit_clips,
            "groups": len(set(table.groups)),
            "classes": table.classes,
            "modalities": table.modalities,
            "ci_unit": ci_unit(table.groups),
            "rows": [self.row(method) for method in self.fusions],
            "chosen": allocation.chosen_,
            "reason": allocation.reason_,
            "chosen_by_part": self.chosen_by_part,
            "weights": {name: weights[m].tolist() for m, name in enumerate(table.modalities)},
            "bias": allocation.state_.linear_part()[1].tolist(),
            # With too few clips to fit anything there is no best single modality either.
            "differences": [
                self.difference("adaptive", name) for name in (*rival, "best_single") if name in self.fusions
            ],
            "notes": self.notes,
        }


def decide_splits(
    table: DecisionTable, *, fit_split: str = "calibration", eval_split: str = "test", **options: Any
) -> Decided:
    """Fit on one split, judge on another.

    Args:
        table: holds both splits.
        fit_split: clips the towers did not learn from.
        eval_split: clips to judge on.
        **options: of `Allocation`.

    Raises:
        TableError: if a split is empty or both are the same.
    """
    fit, judged = table.select(fit_split), table.select(eval_split)
    if set(fit.ids) & set(judged.ids):
        raise TableError(f"fit split {fit_split!r} and evaluation split {eval_split!r} are the same clips.")
    notes = []
    if fit_split == "train":
        notes.append("fitted on the towers' own training clips: an over-fitted tower is trusted too much")
    both = len(set(fit.groups) & set(judged.groups))
    if both:
        notes.append(f"{both} group(s) are in both {fit_split!r} and {eval_split!r}: the figures may flatter")
    allocation, heard = _fit(fit, options)
    notes += heard + [f"shift: {text}" for text in allocation.check_shift(judged.logits, warn=False)]
    rows = np.arange(len(judged))
    return _assemble(judged, [(rows, allocation)], allocation, len(fit), notes)


def decide_folds(table: DecisionTable, *, folds: int = 5, seed: int = 0, **options: Any) -> Decided:
    """Cross-fit over group folds: every clip is judged by an allocation fitted on the other folds' groups.

    Args:
        table: all its clips take part, whatever their split.
        folds: outer folds; every fit cross-validates inside its own part.
        seed: of the folds.
        **options: of `Allocation`.

    Raises:
        TableError: if there are fewer than two groups.
    """
    if len(set(table.groups)) < 2:
        raise TableError("one group only: group folds need at least two; use --fit-split and --eval-split.")
    fold = group_folds(table.groups, folds, seed)
    parts, notes = [], []
    for k in range(int(fold.max()) + 1):
        allocation, heard = _fit(table.take(fold != k), {"seed": seed} | options)
        parts.append((np.flatnonzero(fold == k), allocation))
        notes += heard
    final, heard = _fit(table, {"seed": seed} | options)
    return _assemble(table, parts, final, len(table), list(dict.fromkeys(notes + heard)))


def _fit(table: DecisionTable, options: dict[str, Any]) -> tuple[Allocation, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        allocation = Allocation(**options).fit_table(table)
    return allocation, [str(entry.message) for entry in caught]


def _assemble(
    table: DecisionTable,
    parts: list[tuple[np.ndarray, Allocation]],
    final: Allocation,
    fit_clips: int,
    notes: Sequence[str],
) -> Decided:
    fusions = baselines(table)
    states: dict[str, list[tuple[np.ndarray, HeadState]]] = {}
    everywhere = [name for name in ("best_single", *PARENTS) if all(name in part.ladder_.states for _, part in parts)]
    for name in everywhere:
        states[name] = [(rows, part.ladder_.states[name]) for rows, part in parts]
    states["adaptive"] = [(rows, part.state_) for rows, part in parts]
    for name, fitted in states.items():
        # The row `sum` is the sum as everyone adds it up; under one fitted temperature it is the fallback.
        fusions["sum_scaled" if name == "sum" else name] = fused_logits(table.logits, fitted)
    scaled = fusions.pop("sum_scaled")
    for name, logits in table.references.items():
        fusions[f"reference.{name}"] = logits
    chosen = [part.chosen_ for _, part in parts]
    return Decided(table, fusions, states, final, chosen, fit_clips, clip_nll(scaled, table.labels), list(notes))


def baselines(table: DecisionTable) -> dict[str, np.ndarray]:
    """Fused logits of what needs no fit: every modality alone, `sum` and `mean_prob` over the modalities present."""
    log_probs = table.log_probs
    found = {name: log_probs[:, m] for m, name in enumerate(table.modalities)}
    found["sum"] = HeadState.plain_sum(*table.logits.shape[1:]).fuse(table.logits)[0]
    with np.errstate(divide="ignore"):
        found["mean_prob"] = np.log(np.nanmean(np.exp(log_probs), axis=1))
    return found


def fused_logits(logits: np.ndarray, fitted: list[tuple[np.ndarray, HeadState]]) -> np.ndarray:
    """Fused logits `(N, C)` where every part of the rows has its own state."""
    fused = np.empty((len(logits), logits.shape[2]))
    for rows, state in fitted:
        fused[rows] = state.fuse(logits[rows])[0]
    return fused

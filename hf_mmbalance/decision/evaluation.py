"""Evaluation of the complete ladder, fallbacks and baselines of a table, on clips that the fit did not use."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_mmbalance.decision.allocation import Allocation
from hf_mmbalance.decision.folds import draw_folds
from hf_mmbalance.decision.ladder import PARENTS
from hf_mmbalance.decision.state import Fused, HeadState
from hf_mmbalance.decision.table import DecisionTable, TableError
from hf_mmbalance.metrics.measures import bootstrap_ci, ci_unit, clip_nll, correct, ece


@dataclass
class FittedPart:
    """A fitted head and the rows of a table that it decides.

    Args:
        rows: `(n,)` indices into the table.
        state: the head.
        typicality: `(n, M)` typicality of these rows under this head, or None.
    """

    rows: np.ndarray
    state: HeadState
    typicality: np.ndarray | None = None

    @classmethod
    def of(cls, rows: np.ndarray, state: HeadState, table: DecisionTable) -> FittedPart:
        """Create a part, with the typicality of its rows if the table has features."""
        features = [table.features[name][rows] if name in table.features else None for name in table.modalities]
        known = any(value is not None for value in features)
        return cls(rows, state, state.typicality(features, table.mask[rows]) if known else None)

    def fuse(self, logits: np.ndarray, keep: np.ndarray | None = None) -> Fused:
        """Decide from logits `(N, M, C)` of the complete table, for all rows of this part or those in `keep (n,)`."""
        rows, typicality = self.rows, self.typicality
        if keep is not None:
            rows, typicality = rows[keep], None if typicality is None else typicality[keep]
        return self.state.fuse(logits[rows], typicality)


@dataclass
class DecisionReport:
    """Fusions of a table, each evaluated on clips that it was not fitted on.

    Args:
        table: the evaluated rows.
        fusions: method -> its fused logits `(N, C)`, in the order of the report.
        states: method -> the fitted heads and the rows they decide; only for the ladder.
        allocation: allocation fitted on all fitting rows, which `--save` keeps.
        parts: pairs of rows and the allocation that decides them.
        fit_clips, fit_rows: number of clips, and of their draws, that the allocation was fitted on.
        scaled_sum_nll: `(N,)` NLL of the fallback `sum`, the plain sum under one fitted temperature.
        notes: sentences that the reader of the report must know.
    """

    table: DecisionTable
    fusions: dict[str, np.ndarray]
    states: dict[str, list[FittedPart]]
    allocation: Allocation
    parts: list[tuple[np.ndarray, Allocation]]
    fit_clips: int
    fit_rows: int
    scaled_sum_nll: np.ndarray
    notes: list[str] = field(default_factory=list)

    def add_head(self, name: str, state: HeadState) -> None:
        """Add one more fusion to evaluate, such as a trained model's own head.

        Raises:
            TableError: if the head's modalities or classes differ in number from the table's.
        """
        if state.shape != self.table.logits.shape[1:]:
            raise TableError(
                f"the head {name!r} has {state.shape} modalities and classes, the table {self.table.logits.shape[1:]}."
            )
        if state.options.get("typicality") and not self.table.features:
            self.notes.append(f"{name!r} uses typicality but the table has no features: every clip counts as typical")
        part = FittedPart.of(np.arange(len(self.table)), state, self.table)
        self.states[name] = [part]
        self.fusions[name] = part.fuse(self.table.logits).logits

    def per_clip(self, method: str) -> tuple[np.ndarray, np.ndarray]:
        """Return correctness and NLL of every row; NaN where the method lacks the modality or reference it needs."""
        logits = self.fusions[method]
        there = ~np.isnan(logits).any(axis=1)
        hit, loss = np.full(len(logits), np.nan), np.full(len(logits), np.nan)
        if there.any():
            hit[there] = correct(logits[there], self.table.labels[there])
            loss[there] = clip_nll(logits[there], self.table.labels[there])
        return hit, loss

    def row(self, method: str) -> dict[str, Any]:
        """Return one line of the report."""
        hit, loss = self.per_clip(method)
        there = ~np.isnan(hit)
        if not there.any():
            return {"method": method, "n": 0, "accuracy": None, "accuracy_ci": None, "nll": None, "ece": None}
        units = np.asarray(self.table.units)[there]
        more = {"nll_scaled": float(self.scaled_sum_nll.mean())} if method == "sum" else {}
        clean = there & (self.table.draw_numbers == 0)
        if self.table.draw_numbers.any() and clean.any():
            more |= {"accuracy_clean": float(hit[clean].mean()), "nll_clean": float(loss[clean].mean())}
        return {
            "method": method,
            "n": int(there.sum()),
            "accuracy": float(hit[there].mean()),
            "accuracy_ci": list(bootstrap_ci(hit[there], units)),
            "nll": float(loss[there].mean()),
            "ece": ece(self.fusions[method][there], self.table.labels[there]),
            **more,
        }

    def difference(self, method: str, baseline: str) -> dict[str, Any]:
        """Return paired differences of accuracy and NLL, with cluster-bootstrap intervals, on rows both answer."""
        pairs = [a - b for a, b in zip(self.per_clip(method), self.per_clip(baseline), strict=True)]
        there = ~np.isnan(pairs[0])
        result: dict[str, Any] = {"method": method, "baseline": baseline, "n": int(there.sum())}
        units = np.asarray(self.table.units)[there]
        for name, values in zip(("accuracy", "nll"), pairs, strict=True):
            result[name] = float(values[there].mean()) if there.any() else None
            result[f"{name}_ci"] = list(bootstrap_ci(values[there], units)) if there.any() else None
        return result

    def as_dict(self) -> dict[str, Any]:
        """Return the report of `mmbalance decide --json`."""
        table, allocation = self.table, self.allocation
        in_use = self.states["model"][0].state if "model" in self.states else allocation.state_
        rivals = [table.modalities[allocation.ladder_.best_single], "sum", "prior_sum", "best_single"]
        by_name = lambda values: {name: values[m].tolist() for m, name in enumerate(table.modalities)}  # noqa: E731
        return {
            "n": len(table),
            "n_clips": table.clip_count,
            "n_fit": self.fit_rows,
            "n_clips_fit": self.fit_clips,
            "groups": len(set(table.groups)),
            "classes": table.classes,
            "modalities": table.modalities,
            "ci_unit": ci_unit(table.groups),
            "rows": [self.row(method) for method in self.fusions],
            "chosen": allocation.chosen_,
            "reason": allocation.reason_,
            "chosen_by_part": [part.chosen_ for _, part in self.parts],
            "weights_of": "model" if "model" in self.states else "refitted",
            "weights": by_name(in_use.class_weights()),
            "weights_refitted": by_name(allocation.state_.class_weights()),
            "bias": in_use["bias"].tolist(),
            "refitted": allocation.describe(),
            # With too few clips to fit anything there is no best single modality either.
            "differences": [self.difference("adaptive", name) for name in rivals if name in self.fusions],
            "notes": self.notes,
        }


def decide_table(
    table: DecisionTable,
    *,
    fit_split: str | None = None,
    eval_split: str | None = None,
    folds: int | None = None,
    seed: int = 0,
    **options: Any,
) -> DecisionReport:
    """Evaluate a table as its splits allow: fit on `calibration` and evaluate on `test`, else out of fold.

    Args:
        table: any decision table.
        fit_split, eval_split: splits to fit and to evaluate on; None for calibration and test.
        folds: number of group folds to cross-fit over instead; 5 if the table lacks a calibration or a test split.
        seed: random seed of the folds.
        **options: arguments of `Allocation`.

    Raises:
        TableError: if folds and splits are both given, there are fewer than two folds, or the table has only the
            towers' training clips.
    """
    if folds is not None and (fit_split or eval_split):
        raise TableError("give either --group_folds, or --fit_split and --eval_split, not both.")
    if folds is not None and folds < 2:
        raise TableError(f"--group_folds {folds}: there must be at least 2 folds.")
    fit, judged = fit_split or "calibration", eval_split or "test"
    absent = [name for name in (fit, judged) if name not in table.splits]
    if folds is None and (fit_split or eval_split or not absent):
        return decide_splits(table, fit_split=fit, eval_split=judged, seed=seed, **options)
    if folds is None and set(table.splits) == {"train"}:
        raise TableError(
            "every row has split 'train': the towers' own training clips say nothing about new ones. Export clips that"
            " the towers were not trained on, or give --group_folds if the logits are out of fold."
        )
    report = decide_folds(table, folds=folds or 5, seed=seed, **options)
    if folds is None:
        report.notes.insert(0, f"no clips of split {' or '.join(absent)}: fitted and evaluated out of fold")
    return report


def decide_splits(
    table: DecisionTable, *, fit_split: str = "calibration", eval_split: str = "test", **options: Any
) -> DecisionReport:
    """Fit on one split and evaluate on a different one.

    Args:
        table: table with both splits; its rows of `train` give the statistics of features for typicality.
        fit_split: split of clips that the towers were not trained on.
        eval_split: split to evaluate on.
        **options: arguments of `Allocation`.

    Raises:
        TableError: if a split is empty or both have the same clips.
    """
    fit, judged = table.select(fit_split), table.select(eval_split)
    if set(fit.ids) & set(judged.ids):
        raise TableError(f"fit split {fit_split!r} and evaluation split {eval_split!r} have the same clips.")
    notes = []
    if "train" in fit.splits:
        notes.append("fitted on the towers' own training clips: an over-fitted tower is trusted too much")
    both = len(set(fit.groups) & set(judged.groups))
    if both:
        notes.append(f"{both} group(s) are in both {fit_split!r} and {eval_split!r}: the results may be optimistic")
    allocation, warned = _fit(fit, _reference(table, fit), options)
    notes += warned + [f"shift: {text}" for text in allocation.check_shift(judged.logits, warn=False)]
    return _assemble(judged, [(np.arange(len(judged)), allocation)], allocation, fit, notes)


def decide_folds(table: DecisionTable, *, folds: int = 5, seed: int = 0, **options: Any) -> DecisionReport:
    """Cross-fit over group folds: an allocation fitted on the groups of the other folds decides every clip.

    With `known_groups` the folds are over clips, as in the fit, because deployment has the same groups.

    Rows of split `train` only give the statistics of features, unless there are no other rows.

    Args:
        table: table whose rows take part whatever their split, except `train`.
        folds: number of outer folds; every fit cross-validates inside its own part.
        seed: random seed of the folds.
        **options: arguments of `Allocation`.

    Raises:
        TableError: if there are fewer than two groups, unless `known_groups` is set.
    """
    notes: list[str] = []
    judged = table
    train = np.array([split == "train" for split in table.splits])
    if train.all():
        notes.append("every row has split 'train': unless these logits are out of fold, the results are optimistic")
    elif train.any():
        judged = table.take(~train)
        notes.append(
            f"{int(train.sum())} rows of split 'train' are not evaluated; the other {len(judged)} are, out of fold"
            f" (splits {', '.join(sorted(set(judged.splits)))})"
        )
    known = bool(options.get("known_groups"))
    if len(set(judged.groups)) < 2 and not known:
        raise TableError(
            "only one group: group folds need at least two; use --fit_split and --eval_split, or --known_groups if"
            " deployment has the same group."
        )
    reference = _reference(table, judged)
    groups = np.zeros(len(judged)) if known else np.asarray(judged.groups)
    fold = draw_folds(judged.labels, groups, np.asarray(judged.clip_names), folds, seed)
    parts = []
    for k in range(int(fold.max()) + 1):
        allocation, warned = _fit(judged.take(fold != k), reference, {"seed": seed} | options)
        parts.append((np.flatnonzero(fold == k), allocation))
        notes += warned
    final, warned = _fit(judged, reference, {"seed": seed} | options)
    return _assemble(judged, parts, final, judged, list(dict.fromkeys(notes + warned)))


def _reference(table: DecisionTable, fit: DecisionTable) -> DecisionTable | None:
    """Return the rows of the towers' training clips, unless the fit is on these rows."""
    return table.select("train") if "train" in table.splits and "train" not in fit.splits else None


def _fit(
    table: DecisionTable, reference: DecisionTable | None, options: dict[str, Any]
) -> tuple[Allocation, list[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        allocation = Allocation(**options).fit_table(table, reference)
    return allocation, list(allocation.notes_)


def _assemble(
    table: DecisionTable,
    parts: list[tuple[np.ndarray, Allocation]],
    final: Allocation,
    fit: DecisionTable,
    notes: Sequence[str],
) -> DecisionReport:
    fusions = baselines(table)
    states: dict[str, list[FittedPart]] = {}
    for name in ("sum", "best_single", *(name for name in PARENTS if name != "sum")):
        if all(name in part.ladder_.states for _, part in parts):
            states[name] = [
                FittedPart.of(rows, part.complete(part.ladder_.states[name]), table) for rows, part in parts
            ]
    # The row `sum` is the plain sum, nothing fitted; the fallback `sum` has one fitted temperature.
    scaled = fused_logits(table.logits, states["sum"])
    states["sum"] = [FittedPart(rows, table.plain_sum()) for rows, _ in parts]
    states["prior_sum"] = [FittedPart(rows, part.complete(prior_sum(part))) for rows, part in parts]
    states["adaptive"] = [FittedPart.of(rows, part.state_, table) for rows, part in parts]
    found = {name: fused_logits(table.logits, fitted) for name, fitted in states.items() if name != "sum"}
    fusions["prior_sum"] = found.pop("prior_sum")
    fusions |= {"mean_prob": fusions.pop("mean_prob")} | found
    for name, logits in table.references.items():
        fusions[f"reference.{name}"] = logits
    notes = [*notes, *_excluded_by_prior(final, table)]
    counts = fit.clip_count, len(fit)
    return DecisionReport(table, fusions, states, final, parts, *counts, clip_nll(scaled, table.labels), notes)


def _excluded_by_prior(allocation: Allocation, table: DecisionTable) -> list[str]:
    """Return a note if the evaluated clips have classes whose prior at deployment is 0."""
    if allocation.prior is None:
        return []
    excluded = [c for c in np.unique(table.labels) if allocation.prior[c] == 0]
    if not excluded:
        return []
    names, clips = ", ".join(table.classes[c] for c in excluded), int(np.isin(table.labels, excluded).sum())
    return [
        f"the prior given for {names} is 0, but {clips} of the evaluated clips have that label:"
        " almost none of them can be decided correctly"
    ]


def prior_sum(allocation: Allocation) -> HeadState:
    """Return the sum with the prior of the fitting clips counted once; it has no parameters."""
    plain = HeadState.plain_sum(*allocation.state_.shape).with_known(allocation.state_.known)
    return plain.replace(log_prior=np.log(allocation.prior_))


def baselines(table: DecisionTable) -> dict[str, np.ndarray]:
    """Return the logits of methods without a fit: each modality, and `sum` and `mean_prob` of those present."""
    log_probs = table.log_probs
    found = {name: log_probs[:, m] for m, name in enumerate(table.modalities)}
    found["sum"] = table.plain_sum().fuse(table.logits).logits
    there = np.where(table.mask[..., None], log_probs, -np.inf)
    found["mean_prob"] = np.logaddexp.reduce(there, axis=1) - np.log(table.mask.sum(axis=1))[:, None]
    return found


def fused_logits(logits: np.ndarray, fitted: list[FittedPart]) -> np.ndarray:
    """Return fused logits `(N, C)`, with the rows of each part decided by its own head."""
    fused = np.empty((len(logits), logits.shape[2]))
    for part in fitted:
        fused[part.rows] = part.fuse(logits).logits
    return fused

"""Capability, contribution (exact Shapley) and participation per class, with intervals that respect groups."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_mmbalance.decision.evaluation import FittedPart
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.metrics.measures import (
    clip_nll,
    correct,
    predict,
    relative_balance_index,
    resampled_counts,
    shapley,
    shares,
)


Fitted = list[FittedPart]
VALUES = ("accuracy", "log_likelihood")


@dataclass
class Balance:
    """Balance of one fusion; every array has its bootstrap draws along the first axis.

    Args:
        capability: `(1 + draws, M, C)`; entry 0 is the estimate, the others are its bootstrap draws.
        contribution: `(1 + draws, M, C)` Shapley values, not clipped at 0.
    """

    capability: np.ndarray
    contribution: np.ndarray

    @property
    def capability_share(self) -> np.ndarray:
        """Capability clipped at 0 and normalised over modalities, `(1 + draws, M, C)`."""
        return shares(self.capability)[0]

    @property
    def participation(self) -> np.ndarray:
        """Contribution clipped at 0 and normalised over modalities, `(1 + draws, M, C)`."""
        return shares(self.contribution)[0]

    @property
    def lean(self) -> np.ndarray:
        """Participation minus capability share, `(1 + draws, M, C)`."""
        return self.participation - self.capability_share

    @property
    def index(self) -> np.ndarray:
        """Relative balance index, `(1 + draws,)`."""
        return np.asarray(relative_balance_index(self.participation, self.capability_share))

    def as_dict(self, table: DecisionTable) -> dict[str, Any]:
        """Return estimates and 95 % intervals by name, for JSON."""
        names = table.modalities
        report: dict[str, Any] = {
            "index": float(self.index[0]),
            "index_ci": interval(self.index[1:]),
            "classes_without_capability": int(shares(self.capability[0])[1].sum()),
            "classes_without_contribution": int(shares(self.contribution[0])[1].sum()),
            "mean_lean": {},
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice")  # a modality that no judged clip has
            overall = np.nanmean(self.lean, axis=2)
        for m, name in enumerate(names):
            report["mean_lean"][name] = {"value": float(overall[0, m]), "ci": interval(overall[1:, m])}
        for key in ("capability", "capability_share", "contribution", "participation", "lean"):
            values = getattr(self, key)
            report[key] = {name: _rounded(values[0, m]) for m, name in enumerate(names)}
            report[f"{key}_ci"] = {
                name: [interval(values[1:, m, c]) for c in range(values.shape[2])] for m, name in enumerate(names)
            }
        return report


def interval(draws: np.ndarray, level: float = 0.95) -> list[float] | None:
    """Return the percentile interval of bootstrap draws; None if all are undefined."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return None
    return [float(q) for q in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])]


def subset_values(
    fitted: Fitted, table: DecisionTable, value: str = "accuracy", prior: np.ndarray | None = None
) -> np.ndarray:
    """Return the value `(2^M, N)` of every subset of modalities on every clip, the others masked, nothing retrained.

    Args:
        fitted: heads of the fusion, with the rows that each of them decides.
        table: clips to evaluate on.
        value: "accuracy" (1/C for the empty subset) or "log_likelihood" (log prior of the label for the empty subset).
        prior: `(C,)` class prior of the fitting split; uniform if None. Only for "log_likelihood".

    Returns:
        Entry `s` is for the subset whose members are the set bits of `s`. A clip that lacks all of them gets the value
        of the empty subset.
    """
    if value not in VALUES:
        raise ValueError(f"value is {value!r}; choose among {', '.join(VALUES)}.")
    modalities, classes = table.logits.shape[1:]
    if value == "accuracy":
        nothing = np.full(len(table), 1 / classes)
    else:
        known = np.full(classes, 1 / classes) if prior is None else prior
        nothing = np.log(known)[table.labels]
    values = np.repeat(nothing[None], 2**modalities, axis=0)
    for subset in range(1, 2**modalities):
        inside = (subset >> np.arange(modalities) & 1).astype(bool)
        there: np.ndarray = np.any(table.mask[:, inside], axis=1)
        masked = np.where(inside[:, None], table.logits, np.nan)
        for part in fitted:
            keep = there[part.rows]
            kept = part.rows[keep]
            if not len(kept):
                continue
            fused = part.fuse(masked, keep).logits
            labels = table.labels[kept]
            values[subset, kept] = correct(fused, labels) if value == "accuracy" else -clip_nll(fused, labels)
    return values


def balance(
    fitted: Fitted,
    table: DecisionTable,
    *,
    value: str = "accuracy",
    prior: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Balance:
    """Compute the balance of a fusion on the clips of a table.

    With the same seed, two fusions of one table are resampled in the same way: differences of their draws are paired.
    """
    phi = shapley(subset_values(fitted, table, value, prior))
    right = (predict(np.where(table.mask[..., None], table.log_probs, 0.0)) == table.labels[:, None]).astype(float)
    by_modality = np.where(table.mask, right, np.nan).T
    classes = len(table.classes)
    capability = class_mean_draws(by_modality, table, draws=draws, seed=seed) - 1 / classes
    return Balance(capability, class_mean_draws(phi, table, draws=draws, seed=seed))


def class_mean_draws(values: np.ndarray, table: DecisionTable, *, draws: int, seed: int) -> np.ndarray:
    """Return class means of per-clip values `(K, N)`, without NaN, and their bootstrap draws, `(1 + draws, K, C)`."""
    classes = len(table.classes)
    unit, counts = resampled_counts(table.units, len(table), draws=draws, seed=seed)
    units = counts.shape[1]
    cell = unit * classes + table.labels
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0)
    size = units * classes
    total = np.stack([np.bincount(cell, row, size).reshape(units, classes) for row in filled], axis=1)
    number = np.stack([np.bincount(cell, row, size).reshape(units, classes) for row in there], axis=1)
    times = np.concatenate([np.ones((1, units)), counts]).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (times @ total.reshape(units, -1)) / (times @ number.reshape(units, -1))
    return means.reshape(draws + 1, len(values), classes)


def _rounded(values: np.ndarray) -> list[float | None]:
    return [round(float(v), 6) if np.isfinite(v) else None for v in values]

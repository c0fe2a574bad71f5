"""Folds that keep a group (actor, speaker, source video) on one side, and standard errors that respect groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def group_folds(groups: Sequence[Any] | np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Fold of every clip, `(N,)`: groups are shuffled, then dealt, the largest first, to the smallest fold.

    Args:
        groups: `(N,)` group of every clip.
        folds: how many; fewer where there are fewer groups.
        seed: of the shuffle.

    Raises:
        ValueError: if there are fewer than two groups or folds.
    """
    names, index, size = np.unique(np.asarray(groups).astype(str), return_inverse=True, return_counts=True)
    folds = min(folds, len(names))
    if folds < 2:
        raise ValueError(f"{len(names)} group(s) and {folds} fold(s): folds need at least two of both.")
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-size[order], kind="stable")]
    filled, fold_of = np.zeros(folds), np.empty(len(names), dtype=np.int64)
    for group in order:
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += size[group]
    return fold_of[index.reshape(-1)]


def clip_folds(labels: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Fold of every clip, `(N,)`, stratified by label, for data of a single group."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    result = np.empty(len(labels), dtype=np.int64)
    result[order] = np.arange(len(labels)) % folds
    return result


def standard_error(values: np.ndarray, groups: Sequence[Any] | np.ndarray) -> float:
    """Standard error of the mean of per-clip values: the larger of the clip's and the group-clustered one.

    The clustered estimate alone is too small when groups are few (its sum of squares has few terms), never when many.
    """
    values = np.asarray(values, dtype=np.float64)
    n, centred = len(values), np.asarray(values) - values.mean()
    if n < 2:
        return float("inf")
    by_clip = values.std(ddof=1) / np.sqrt(n)
    index = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1].reshape(-1)
    number = int(index.max()) + 1
    if number < 2:
        return float(by_clip)
    totals = np.bincount(index, centred)
    return float(max(by_clip, np.sqrt((totals**2).sum() * number / (number - 1)) / n))

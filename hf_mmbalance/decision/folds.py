"""Folds that never split a group (actor, speaker, source video), and standard errors that respect groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def group_folds(groups: Sequence[Any] | np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Return the fold of every clip, `(N,)`: groups are shuffled, then assigned, largest first, to the smallest fold.

    Args:
        groups: `(N,)` group of every clip.
        folds: number of folds; fewer if there are fewer groups.
        seed: random seed of the shuffle.

    Raises:
        ValueError: if there are fewer than two groups or folds.
    """
    names, index, size = np.unique(np.asarray(groups).astype(str), return_inverse=True, return_counts=True)
    folds = min(folds, len(names))
    if folds < 2:
        raise ValueError(f"{len(names)} group(s) and {folds} fold(s): there must be at least two of each.")
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-size[order], kind="stable")]
    filled, fold_of = np.zeros(folds), np.empty(len(names), dtype=np.int64)
    for group in order:
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += size[group]
    return fold_of[index.reshape(-1)]


def clip_folds(labels: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Return the fold of every clip, `(N,)`, stratified by label, for data of a single group."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    result = np.empty(len(labels), dtype=np.int64)
    result[order] = np.arange(len(labels)) % folds
    return result


def draw_folds(labels: np.ndarray, groups: np.ndarray, clips: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Return the fold of every row, `(N,)`, over groups, or over clips if there is one group; draws stay together.

    Args:
        labels: `(N,)` class indices; all draws of a clip have the same label.
        groups: `(N,)` group of every row.
        clips: `(N,)` name of the clip that each row is a draw of.
        folds: largest number of folds.
        seed: random seed of the shuffle.
    """
    if len(np.unique(groups)) > 1:
        return group_folds(groups, folds, seed)
    _, first, index = np.unique(clips, return_index=True, return_inverse=True)
    return clip_folds(labels[first], max(2, min(folds, len(first) // 2)), seed)[index.reshape(-1)]


def standard_error(values: np.ndarray, *units: Sequence[Any] | np.ndarray) -> float:
    """Return the standard error of the mean: the largest of the plain one and those clustered by each of `units`.

    A clustered estimate is too small with few clusters (its sum of squares has few terms), but not with many.

    Args:
        values: `(N,)` values to average.
        *units: `(N,)` names of clusters: groups, or clips where rows are draws of clips.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n < 2:
        return float("inf")
    centred = values - values.mean()
    errors = [float(values.std(ddof=1) / np.sqrt(n))]
    for names in units:
        index = np.unique(np.asarray(names), return_inverse=True)[1].reshape(-1)
        number = int(index.max()) + 1
        if number > 1:
            totals = np.bincount(index, centred)
            errors.append(float(np.sqrt((totals**2).sum() * number / (number - 1)) / n))
    return max(errors)

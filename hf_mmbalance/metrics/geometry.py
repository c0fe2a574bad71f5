"""Geometry of a table's features: norms, rank, class scatter, alignment, uniformity, CKA; numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np


MAX_PAIRS = 200_000


def effective_rank(features: Any) -> float:
    """Return exp(entropy) of the normalised singular values of centred features (Roy & Vetterli 2007); 1 to D."""
    x = np.asarray(features, dtype=np.float64)
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    if values.sum() == 0:
        return 0.0
    p = values[values > 0] / values.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def scatter_ratio(features: Any, labels: Any) -> float:
    """Return between-class over within-class scatter: tr(S_b) / tr(S_w), around means; inf if tr(S_w) is 0."""
    x, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
    _, index, count = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.zeros((len(count), x.shape[1]))
    np.add.at(means, index, x)
    means /= count[:, None]
    between = float((count * ((means - x.mean(axis=0)) ** 2).sum(axis=1)).sum())
    within = float(((x - means[index]) ** 2).sum())
    return between / within if within else float("inf")


def alignment(features: Any, labels: Any) -> float:
    """Return the mean squared distance of pairs of one class on the unit sphere (Wang & Isola 2020, eq. 2).

    Clips of the same class are the positive pairs. NaN if no class has two clips.
    """
    x, labels = _unit(features), np.asarray(labels)
    total, pairs = 0.0, 0
    for name in np.unique(labels):
        rows = x[labels == name]
        n = len(rows)
        # The sum over all pairs has a closed form: n sum |x|^2 - |sum x|^2.
        total += float(n * (rows**2).sum() - (rows.sum(axis=0) ** 2).sum())
        pairs += n * (n - 1) // 2
    return total / pairs if pairs else float("nan")


def uniformity(features: Any, *, seed: int = 0) -> float:
    """Return log mean exp(-2 d^2) over pairs on the unit sphere (Wang & Isola 2020, eq. 3); lower: more spread.

    If there are more than 200,000 pairs, a sample of this size is used.
    """
    x = _unit(features)
    n = len(x)
    if n < 2:
        return float("nan")
    first, second = np.triu_indices(n, 1) if n * (n - 1) // 2 <= MAX_PAIRS else _random_pairs(n, seed)
    distance = ((x[first] - x[second]) ** 2).sum(axis=1)
    return float(np.log(np.exp(-2 * distance).mean()))


def linear_cka(first: Any, second: Any) -> float:
    """Return the linear centred kernel alignment, 0 to 1, of two feature sets of the same clips.

    See Kornblith et al. 2019, eq. 4.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(x) != len(y):
        raise ValueError(f"CKA compares features of the same clips; got {len(x)} and {len(y)} rows.")
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / scale) if scale else float("nan")


def feature_norms(features: Any) -> np.ndarray:
    """Return the Euclidean norm of every row, `(N,)`."""
    return np.linalg.norm(np.asarray(features, dtype=np.float64), axis=1)


def _unit(features: Any) -> np.ndarray:
    x = np.asarray(features, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _random_pairs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, n, MAX_PAIRS)
    return first, (first + rng.integers(1, n, MAX_PAIRS)) % n

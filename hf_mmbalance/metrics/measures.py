"""All measures of this project: accuracy, calibration, intervals, capability, participation, balance.

This file needs only numpy, so that it also works without the package, next to an `evaluate` module. Logits are
`(N, C)` (or `(N, M, C)` where a modality axis is named), labels are `(N,)` integers. Logits need not be normalised:
every measure normalises them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np


TIE_TOLERANCE = 1e-6
MIN_GROUPS_FOR_CLUSTERS = 5


def log_softmax(z: Any, axis: int = -1) -> np.ndarray:
    """Return log-probabilities of logits, in float64; a row that holds NaN stays NaN."""
    z = np.asarray(z, dtype=np.float64)
    z = z - z.max(axis=axis, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=axis, keepdims=True))


def softmax(z: Any, axis: int = -1) -> np.ndarray:
    """Return probabilities of logits, in float64."""
    return np.exp(log_softmax(z, axis))


def predict(logits: Any) -> np.ndarray:
    """Return the predicted class of every row: the largest logit; among classes within 1e-6 of it, the lowest index.

    The tolerance makes the result the same in float32 and float64: votes often tie, and rounding must not decide.

    Args:
        logits: `(..., C)`.

    Returns:
        `(...)` int64.
    """
    logits = np.asarray(logits)
    return (logits >= logits.max(axis=-1, keepdims=True) - TIE_TOLERANCE).argmax(axis=-1)


def correct(logits: Any, labels: Any) -> np.ndarray:
    """Return 1.0 where the predicted class (see `predict`) is the label, else 0.0; `(N,)`."""
    logits, labels = _checked(logits, labels)
    return (predict(logits) == labels).astype(np.float64)


def clip_nll(logits: Any, labels: Any) -> np.ndarray:
    """Return the negative log-likelihood of every clip in nats; `(N,)`."""
    logits, labels = _checked(logits, labels)
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def accuracy(logits: Any, labels: Any) -> float:
    """Return the fraction of clips whose predicted class is the label."""
    return float(correct(logits, labels).mean())


def macro_f1(logits: Any, labels: Any) -> float:
    """Return the mean F1 over the classes that occur among labels or predictions (other classes have no F1)."""
    logits, labels = _checked(logits, labels)
    predicted, classes = predict(logits), logits.shape[1]
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    total = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float((2 * hits[total > 0] / total[total > 0]).mean())


def nll(logits: Any, labels: Any) -> float:
    """Return the mean negative log-likelihood in nats."""
    return float(clip_nll(logits, labels).mean())


def brier(logits: Any, labels: Any) -> float:
    """Return the mean squared distance of probabilities to the one-hot label, summed over classes: 0 best, 2 worst."""
    logits, labels = _checked(logits, labels)
    error = softmax(logits)
    error[np.arange(len(labels)), labels] -= 1
    return float((error**2).sum(axis=1).mean())


def reliability(logits: Any, labels: Any, bins: int = 15, adaptive: bool = False) -> dict[str, np.ndarray]:
    """Return the data of a reliability diagram of the predicted class.

    Args:
        logits: `(N, C)`.
        labels: `(N,)`.
        bins: number of bins.
        adaptive: bins with (almost) the same number of clips instead of equal width; equal confidences share a bin.

    Returns:
        `count`, `confidence` (mean), `accuracy` (mean), each `(bins,)`; the last two are NaN in empty bins.
    """
    logits, labels = _checked(logits, labels)
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1.")
    predicted = predict(logits)
    confidence = softmax(logits)[np.arange(len(labels)), predicted]
    hit = (predicted == labels).astype(np.float64)
    if adaptive:
        edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1]))
    else:
        edges = np.linspace(0, 1, bins + 1)[1:-1]
    where = np.searchsorted(edges, confidence, side="left")  # bin k is (edge k-1, edge k]
    count = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(where, confidence, minlength=bins) / count
        mean_hit = np.bincount(where, hit, minlength=bins) / count
    return {"count": count, "confidence": mean_confidence, "accuracy": mean_hit}


def ece(logits: Any, labels: Any, bins: int = 15, adaptive: bool = False) -> float:
    """Return the expected calibration error: mean |accuracy - confidence| of predictions over bins (Guo 2017, eq. 3).

    Args:
        logits: `(N, C)`.
        labels: `(N,)`.
        bins: number of bins, 15 in the paper.
        adaptive: equal-mass bins (Nixon et al. 2019) instead of equal width.
    """
    data = reliability(logits, labels, bins, adaptive)
    filled = data["count"] > 0
    gap = np.abs(data["accuracy"] - data["confidence"])[filled]
    return float((gap * data["count"][filled]).sum() / data["count"].sum())


# ---- intervals


def ci_unit(groups: Sequence[Any] | np.ndarray | None) -> str:
    """Return what a bootstrap resamples: "group" if there are at least 5 groups, else "clip"."""
    if groups is None or len(set(map(str, groups))) < MIN_GROUPS_FOR_CLUSTERS:
        return "clip"
    return "group"


def resampled_counts(groups: Any, n: int, *, draws: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return bootstrap draws, as the number of times that each unit was drawn.

    Args:
        groups: `(N,)` group of every clip, or None; with fewer than 5 groups, the unit is the clip (`ci_unit`).
        n: number of clips.
        draws: number of bootstrap samples.
        seed: seed of the generator.

    Returns:
        `unit (N,)`, the index of each clip's unit, and `counts (draws, units)`.
    """
    if ci_unit(groups) == "clip":
        unit = np.arange(n)
    else:
        unit = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1].reshape(-1)
    units = int(unit.max()) + 1
    counts = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws)
    return unit, counts


def bootstrap_ci(
    values: Any, groups: Any = None, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean over clips, resampling whole groups if there are at least 5.

    For a paired comparison of two methods, pass the differences of their per-clip values.

    Args:
        values: `(N,)` value of every clip (correctness, NLL, their difference between two methods, ...).
        groups: `(N,)` group of every clip, or None.
        level: coverage.
        draws: number of bootstrap samples.
        seed: seed of the generator.

    Returns:
        Lower and upper end.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError("bootstrap_ci needs a non-empty vector of finite values, one per clip.")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"groups has {len(groups)} entries for {len(values)} values.")
    tail = [(1 - level) / 2, (1 + level) / 2]
    rng = np.random.default_rng(seed)
    if ci_unit(groups) == "clip":
        # Equal values are exchangeable: drawing the count of each distinct value is the same bootstrap, but cheaper.
        distinct, frequency = np.unique(values, return_counts=True)
        n, means = len(values), np.empty(draws)
        step = max(1, 4_000_000 // len(distinct))
        for start in range(0, draws, step):
            drawn = rng.multinomial(n, frequency / n, size=min(step, draws - start))
            means[start : start + step] = drawn @ distinct / n
    else:
        unit = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1].reshape(-1)
        total, size = np.bincount(unit, values), np.bincount(unit)
        drawn = rng.multinomial(len(size), np.full(len(size), 1 / len(size)), size=draws)
        means = (drawn @ total) / (drawn @ size)
    low, high = np.quantile(means, tail)
    return float(low), float(high)


# ---- capability, contribution, balance


def class_means(values: Any, labels: Any, classes: int) -> np.ndarray:
    """Return the mean of per-clip values over the clips of each class, ignoring NaN; a class without values is NaN.

    Args:
        values: `(..., N)` per-clip values.
        labels: `(N,)` class indices.
        classes: number of classes C.

    Returns:
        `(..., C)`.
    """
    values, labels = np.asarray(values, dtype=np.float64), np.asarray(labels)
    one_hot = np.eye(classes)[labels]
    present = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.where(present, values, 0.0) @ one_hot) / (present.astype(np.float64) @ one_hot)


def capability(modality_logits: Any, labels: Any) -> np.ndarray:
    """Return recall above chance (1/C) of each single modality, per class, over clips where it is present; unclipped.

    Args:
        modality_logits: `(N, M, C)`, NaN rows where a modality is missing.
        labels: `(N,)`.

    Returns:
        `(M, C)`, NaN for a class without clips.
    """
    z, labels = np.asarray(modality_logits, dtype=np.float64), np.asarray(labels)
    present: np.ndarray = np.all(np.isfinite(z), axis=2)
    hit: np.ndarray = np.equal(predict(np.where(present[..., None], z, 0.0)), labels[:, None])
    values = np.where(present, hit, np.nan).T
    return class_means(values, labels, z.shape[2]) - 1 / z.shape[2]


def auc(scores: Any, positive: Any) -> float:
    """Return the ROC AUC: the probability that a positive outranks a negative, ties count half; NaN without both."""
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    count, rest = int(positive.sum()), int((~positive).sum())
    if not count or not rest:
        return float("nan")
    _, inverse, size = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(size) - (size - 1) / 2)[inverse.reshape(-1)]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * rest))


def shares(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Clip the values of modalities at 0 and normalise them over modalities; uniform where none is above 0.

    Args:
        values: `(..., M, C)`; NaN (a class without clips) stays NaN.

    Returns:
        Shares `(..., M, C)` and `(..., C)` bool, True where the share is uniform for lack of values above 0.
    """
    values = np.asarray(values, dtype=np.float64)
    clipped = np.maximum(values, 0)
    total = clipped.sum(axis=-2, keepdims=True)
    empty = total == 0
    share = np.where(empty, 1 / values.shape[-2], clipped / np.where(empty, 1, total))
    return share, empty[..., 0, :]


def shapley(values: Any) -> np.ndarray:
    """Compute exact Shapley values over all subsets of modalities (Shapley 1953).

    Args:
        values: `(2^M, ...)`; entry `s` is the value of the subset whose members are the set bits of `s` (bit m =
            modality m), entry 0 the value of the empty subset.

    Returns:
        `(M, ...)`; the sum over modalities is `values[-1] - values[0]`.
    """
    values = np.asarray(values, dtype=np.float64)
    players = int(len(values)).bit_length() - 1
    if players < 1 or len(values) != 2**players:
        raise ValueError(f"shapley needs 2^M values (one per subset); got {len(values)}.")
    result = np.zeros((players, *values.shape[1:]))
    for subset in range(len(values)):
        size = subset.bit_count()
        for m in range(players):
            if not subset >> m & 1:
                weight = 1 / (players * comb(players - 1, size))
                result[m] += weight * (values[subset | 1 << m] - values[subset])
    return result


def additive_subsets(modality_logits: Any, weights: Any = None, bias: Any = None) -> np.ndarray:
    """Return fused logits of every subset of modalities under an additive decision layer, masking the others.

    As in the model's `adaptive` head with a uniform prior, weights act on evidence e = log p + log C. With |S| of M
    modalities present and r = (|S| - 1) / (M - 1), a weight is 1 + r (w - 1) and the bias is r b, so that a single
    modality returns its own probabilities.

    Args:
        modality_logits: `(N, M, C)`, NaN rows where a modality is missing.
        weights: `(M, C)` weights for clips with every modality, or `(N, M, C)` weights used for each clip, such as a
            model's `modality_weights`; None for the plain sum.
        bias: `(C,)`; None for zeros.

    Returns:
        `(2^M, N, C)`; entry `s` is the subset of the set bits of `s`; NaN where a clip has none of its members.
    """
    z = log_softmax(modality_logits)
    n, modalities, classes = z.shape
    present = ~np.isnan(z[:, :, 0])
    evidence = np.where(present[..., None], z + np.log(classes), 0.0)
    beyond = np.zeros((1, modalities, classes)) if weights is None else np.asarray(weights, dtype=np.float64) - 1
    if beyond.ndim == 3 and weights is not None:
        used = (present.sum(axis=1) - 1) / (modalities - 1)  # r of the modalities present, which the weights contain
        beyond = np.where((used > 0)[:, None, None], beyond / np.maximum(used, 1e-12)[:, None, None], 0.0)
    b = np.zeros(classes) if bias is None else np.asarray(bias, dtype=np.float64)
    fused = np.full((2**modalities, n, classes), np.nan)
    for subset in range(1, 2**modalities):
        inside = present & (subset >> np.arange(modalities) & 1).astype(bool)
        count = inside.sum(axis=1)
        kept = evidence * inside[..., None]
        r = ((count - 1) / (modalities - 1))[:, None]
        fused[subset] = kept.sum(axis=1) + r * ((beyond * kept).sum(axis=1) + b) - np.log(classes)
        fused[subset, count == 0] = np.nan
    return fused


def relative_balance_index(participation: Any, capability_share: Any) -> np.ndarray | float:
    """Return 1 - mean over classes of half the L1 distance between participation and capability share; 1 if equal.

    Args:
        participation: `(..., M, C)`.
        capability_share: `(..., M, C)`; classes that are NaN in either are ignored; NaN if none is left.
    """
    distance = 0.5 * np.abs(np.asarray(participation) - np.asarray(capability_share)).sum(axis=-2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        index = 1 - np.nanmean(distance, axis=-1)
    return float(index) if np.ndim(index) == 0 else index


def rescued_and_lost(modality_correct: Any, fused_correct: Any) -> dict[str, Any]:
    """Measure how the fusion decides the clips that exactly one, or at least one, modality gets right.

    Args:
        modality_correct: `(N, M)`; a missing modality counts as wrong.
        fused_correct: `(N,)`.

    Returns:
        `only (M,)`: fraction of clips that only modality m gets right; `rescued (M,)`: of those, the fraction that the
        fusion gets right (NaN if none); `weak`: index of the modality with the lowest accuracy, whose `rescued` is
        the headline number; `any`: fraction that any modality gets right; `lost`: of those, the fraction that the
        fusion gets wrong.
    """
    each, fused = np.asarray(modality_correct, dtype=bool), np.asarray(fused_correct, dtype=bool)
    single = each & (each.sum(axis=1, keepdims=True) == 1)
    count, some = single.sum(axis=0), each.any(axis=1)
    with np.errstate(invalid="ignore"):
        rescued = (single & fused[:, None]).sum(axis=0) / count
    return {
        "only": single.mean(axis=0),
        "rescued": rescued,
        "weak": int(each.mean(axis=0).argmin()),
        "any": float(some.mean()),
        "lost": float((some & ~fused).sum() / some.sum()) if some.any() else float("nan"),
    }


def _checked(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"expected logits (N, C) and labels (N,); got {logits.shape} and {labels.shape}.")
    if not len(labels):
        raise ValueError("no clips: a measure over nothing is undefined.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}; expected integers (class indices).")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels range from {labels.min()} to {labels.max()}; with {logits.shape[1]} classes they must"
            f" lie in 0..{logits.shape[1] - 1}."
        )
    if np.isnan(logits).any():
        raise ValueError("logits contain NaN; remove the clips where the modality is missing.")
    if not np.isfinite(logits.max(axis=1)).all():
        raise ValueError("a row of logits has no finite maximum (a class at inf, or all at -inf).")
    return logits, labels

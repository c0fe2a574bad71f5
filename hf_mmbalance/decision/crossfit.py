"""Cross-fitting: out-of-fold unimodal logits, if there are no spare clips to fit an allocation on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import clone

from hf_mmbalance.decision.folds import group_folds
from hf_mmbalance.decision.inputs import checked_column


def cross_fit_logits(
    estimators: Mapping[str, Any],
    features: Mapping[str, Any],
    labels: Any,
    groups: Any = None,
    *,
    folds: int = 5,
    seed: int = 0,
    floor: float = 1e-6,
) -> np.ndarray:
    """Return log-probabilities of every clip from towers that were not trained on its group.

    Args:
        estimators: modality -> unfitted scikit-learn classifier with `predict_proba`.
        features: modality -> `(N, ...)` array; a clip whose features contain NaN lacks that modality.
        labels: `(N,)` class indices 0..C-1.
        groups: `(N,)` group of every clip; None counts every clip as its own group.
        folds: number of folds.
        seed: random seed of the folds.
        floor: smallest probability, which keeps the log finite; also that of a class unseen in a fold.

    Returns:
        `(N, M, C)` log-probabilities for `Allocation.fit(logits, labels, groups)`, with modalities in the order of
        `estimators` and NaN rows where a modality is missing.

    Raises:
        ValueError: if names or lengths differ, or a modality has too few classes to learn from outside a fold.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0:
        raise ValueError(f"labels have shape {labels.shape} and type {labels.dtype}; expected (N,) class indices.")
    if list(estimators) != [name for name in estimators if name in features] or len(estimators) != len(features):
        raise ValueError(
            f"estimators ({', '.join(estimators)}) and features ({', '.join(features)}) must name the same modalities."
        )
    names = checked_column(groups, "groups", np.arange(len(labels)))
    fold, classes = group_folds(names, folds, seed), int(labels.max()) + 1
    logits = np.full((len(labels), len(estimators), classes), np.nan)
    for m, (name, estimator) in enumerate(estimators.items()):
        x = np.asarray(features[name])
        if len(x) != len(labels):
            raise ValueError(f"features of {name} have {len(x)} rows for {len(labels)} labels.")
        present = ~np.isnan(x.reshape(len(x), -1)).any(axis=1)
        for k in range(int(fold.max()) + 1):
            learn, judge = present & (fold != k), present & (fold == k)
            if not judge.any():
                continue
            if len(np.unique(labels[learn])) < 2:
                raise ValueError(f"{name}: outside fold {k} there are fewer than two classes to learn from.")
            fitted = clone(estimator).fit(x[learn], labels[learn])
            probabilities = np.full((int(judge.sum()), classes), floor)
            probabilities[:, fitted.classes_] = np.maximum(fitted.predict_proba(x[judge]), floor)
            logits[judge, m] = np.log(probabilities / probabilities.sum(axis=1, keepdims=True))
    return logits

"""Checks of the inputs of an allocation: logits, labels, features, names of groups and clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_mmbalance.decision.fits import FitData
from hf_mmbalance.decision.ladder import Clips


def checked_clips(X: Any, y: Any, groups: Any, clips: Any, draws: Any, known: Any) -> Clips:
    """Check these arguments of `Allocation.fit` and return them as the clips of a fit.

    Raises:
        ValueError: if shapes or values are invalid, or draws of a clip differ in group or label.
    """
    logits = checked_logits(X)
    labels = checked_labels(y, logits)
    known = None if known is None else checked_known(known, logits.shape[1:])
    names = checked_column(clips, "clips", np.arange(len(labels))).astype(str)
    group = checked_column(groups, "groups", names).astype(str)
    draw = checked_column(draws, "draws", np.zeros(len(labels), dtype=np.int64))
    if draw.dtype.kind not in "biu" or draw.min() < 0:
        raise ValueError(f"draws are {draw.dtype}; expected integers from 0 (0 = the clean clip).")
    if len(set(zip(names, group, labels.tolist(), strict=True))) > len(set(names)):
        raise ValueError("draws of one clip have different groups or labels.")
    return Clips(FitData(logits, labels, known=known), group, names, draw)


def checked_logits(X: Any) -> np.ndarray:
    """Return `X` as float64 `(N, M, C)`.

    Raises:
        ValueError: if the shape is wrong, a row is partly NaN or infinite, or a clip has no modality.
    """
    logits = np.asarray(X, dtype=np.float64)
    if logits.ndim != 3 or not len(logits) or logits.shape[1] < 2 or logits.shape[2] < 2:
        raise ValueError(f"X has shape {logits.shape}; expected (N, M, C) with N >= 1, M >= 2 and C >= 2.")
    missing: np.ndarray = np.all(np.isnan(logits), axis=2)
    if not np.all(np.all(np.isfinite(logits), axis=2) | missing):
        raise ValueError("X holds NaN or inf within a row; mark a missing modality with an all-NaN row.")
    nothing: np.ndarray = np.all(missing, axis=1)
    if nothing.any():
        raise ValueError(f"{int(nothing.sum())} clip(s) have no modality at all; remove them.")
    return logits


def checked_known(known: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return `known` as bool `(M, C)`.

    Raises:
        ValueError: if the shape is wrong, or a modality knows fewer than two classes.
    """
    found = np.asarray(known, dtype=bool)
    if found.shape != tuple(shape):
        raise ValueError(f"known has shape {found.shape}; expected {tuple(shape)}, one row per modality.")
    if found.sum(axis=1).min() < 2:
        raise ValueError(f"modalities know {found.sum(axis=1).tolist()} classes; each must know at least 2.")
    return found


def checked_labels(y: Any, logits: np.ndarray) -> np.ndarray:
    """Return `y` as int64 `(N,)`, with values among the classes of the logits.

    Raises:
        ValueError: if shape, type or values are wrong.
    """
    labels = np.asarray(y)
    if labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"y has shape {labels.shape} and type {labels.dtype}; expected ({len(logits)},) integers.")
    if labels.min() < 0 or labels.max() >= logits.shape[2]:
        raise ValueError(f"y runs from {labels.min()} to {labels.max()}; classes are 0..{logits.shape[2] - 1}.")
    return labels.astype(np.int64)


def checked_features(features: Any, clips: int, modalities: Sequence[str]) -> list[np.ndarray | None]:
    """Return features as one `(N, D_m)` array or None per modality, in the order of `modalities`.

    Args:
        features: a mapping by name with some or all modalities, or a sequence in their order.
        clips: number of clips N.
        modalities: names of the M modalities.

    Raises:
        ValueError: if names, the number of modalities or the number of rows do not fit, or a row is partly NaN or
            infinite.
    """
    if isinstance(features, Mapping):
        unknown = [str(name) for name in features if name not in modalities]
        if unknown:
            raise ValueError(f"features of {', '.join(unknown)}: the modalities are {', '.join(modalities)}.")
        given = [features.get(name) for name in modalities]
    else:
        given = list(features)
        if len(given) != len(modalities):
            raise ValueError(
                f"features of {len(given)} modalities for {len(modalities)}; give None for those without features."
            )
    found: list[np.ndarray | None] = []
    for name, value in zip(modalities, given, strict=True):
        array = None if value is None else np.asarray(value, dtype=np.float64)
        if array is not None:
            if array.ndim != 2 or len(array) != clips:
                raise ValueError(f"features of {name} have shape {array.shape}; expected ({clips}, D).")
            bad = ~np.isfinite(array).all(axis=1) & ~np.isnan(array).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"features of {name} hold NaN or inf within {int(bad.sum())} row(s); mark unknown"
                    " features with an all-NaN row."
                )
        found.append(array)
    return found


def checked_reference(
    reference: tuple[Any, Any] | None, own: list[np.ndarray | None], modalities: Sequence[str], classes: int
) -> tuple[list[np.ndarray | None], np.ndarray] | None:
    """Return features and labels of the towers' training clips; None if none of them has features.

    Args:
        reference: features and labels as given to `fit`.
        own: checked features of the fitting clips.
        modalities: names of the M modalities.
        classes: number of classes C.

    Raises:
        ValueError: if features have different widths from those of the fitting clips, or labels are invalid.
    """
    if reference is None:
        return None
    labels = np.asarray(reference[1])
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not np.isin(labels, np.arange(classes)).all():
        raise ValueError(f"labels of the reference clips must be integers from 0 to {classes - 1}, one per clip.")
    features = checked_features(reference[0], len(labels), modalities)
    if all(value is None or np.isnan(value).all() for value in features):
        return None
    pairs = [(a, b) for a, b in zip(own, features, strict=True) if a is not None and b is not None]
    if any(a.shape[1] != b.shape[1] for a, b in pairs):
        raise ValueError("features of the reference clips have different widths from those of the fitting clips.")
    return features, labels


def checked_column(values: Any, name: str, default: np.ndarray) -> np.ndarray:
    """Return `values` as an array with one entry per clip; `default` for None.

    Raises:
        ValueError: if the number of entries is wrong, or some are None or NaN.
    """
    found = default if values is None else np.asarray(values)
    if found.shape != default.shape:
        raise ValueError(f"{name} has {len(found) if found.ndim else 1} entries for {len(default)} clips.")
    empty = sum(value is None or value != value for value in found.tolist())  # NaN is not equal to itself
    if empty:
        raise ValueError(f"{name} has {empty} empty entries; fill them in, or they would all count as the same one.")
    return found

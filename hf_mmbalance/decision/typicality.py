"""Typicality: how far a clip is from a tower's training clips, by the tower's features.

Class means and one shared covariance of the training clips' features give the Mahalanobis distance of a clip to the
nearest class mean. The clip's t is how far the log of this distance lies above its mean over the clean clips of the
fit, in their standard deviations (cf. Lee et al., 2018, for the distance, and Yuksekgonul et al., 2023, for
recalibration by atypicality).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hf_mmbalance.decision.folds import draw_folds
from hf_mmbalance.decision.state import SLOPE, HeadState
from hf_mmbalance.model.fusion_adaptive_mmbalance import TYPICALITY_BOUND


#: Added to the diagonal of the covariance, relative to the mean of that diagonal.
SHRINKAGE = 0.1
#: Largest number of values in the statistics of one tower (2 MB as float32).
MAX_NUMBERS = 2**19
MIN_CLIPS = 20
#: One array `(N, D_m)` per modality, None where a modality has no features, NaN rows where they are unknown.
Features = Sequence[np.ndarray | None]
#: Buffers of the head by name.
Arrays = dict[str, np.ndarray]


def tower_statistics(features: np.ndarray, labels: np.ndarray, classes: int) -> Arrays | None:
    """Compute mean, basis, precision, centres and rest of one tower (see [`AdaptiveFusion`]).

    All D directions are kept if that takes at most 2 MB. Otherwise the basis holds the directions in which class means
    differ (at most half of it), then those of the largest covariance. The rest counts as isotropic, with equal class
    means.

    Args:
        features: `(N, D)` features; rows with NaN are ignored.
        labels: `(N,)` class indices.
        classes: number of classes C.

    Returns:
        `mean (D,)`, `basis (r, D)`, `precision (r,)`, `centres (C, r)`, `rest ()`; None if fewer than 20 clips have
        features or no feature varies within a class.
    """
    known = np.isfinite(features).all(axis=1)
    x, y = np.asarray(features[known], dtype=np.float64), labels[known]
    if len(x) < MIN_CLIPS:
        return None
    seen, index = np.unique(y, return_inverse=True)
    mean = x.mean(axis=0)
    x = x - mean
    centres = np.stack([x[index == k].mean(axis=0) for k in range(len(seen))])
    within = x - centres[index]
    width = x.shape[1]
    covariance = within.T @ within / len(x)
    shrunk = SHRINKAGE * np.trace(covariance) / width
    if not shrunk > 1e-12 * max(np.square(mean).mean(), 1e-12):
        return None
    rank = min(width, (MAX_NUMBERS - 2 * width) // (width + classes + 1))
    if rank == width:
        basis, rest = np.eye(width), 0.0
    else:
        between = np.linalg.svd(centres, full_matrices=False)[2][: min(len(seen) - 1, rank // 2)]
        largest = np.linalg.eigh(covariance)[1][:, ::-1].T[:rank]
        # QR keeps the first `rank` independent directions: class means first, then those of largest covariance.
        basis = np.linalg.qr(np.concatenate([between, largest]).T)[0].T[:rank]
        outside = np.trace(covariance) - np.trace(basis @ covariance @ basis.T)
        rest = 1.0 / (outside / (width - rank) + shrunk)
    variance, turn = np.linalg.eigh(basis @ covariance @ basis.T)
    basis = turn.T @ basis
    all_centres = np.repeat(centres[:1] @ basis.T, classes, axis=0)  # a class without clips copies another's
    all_centres[seen] = centres @ basis.T
    precision = 1.0 / (np.maximum(variance, 0.0) + shrunk)
    return {"mean": mean, "basis": basis, "precision": precision, "centres": all_centres, "rest": np.array(rest)}


def statistics(features: Features, labels: np.ndarray, classes: int) -> tuple[Arrays, list[int]]:
    """Return buffers `typicality_*` of all towers, not yet standardised, and the modalities that have none."""
    modalities = len(features)
    arrays: Arrays = {
        "typicality_location": np.zeros(modalities),
        "typicality_scale": np.ones(modalities),
        "typicality_rest": np.zeros(modalities),
    }
    without = []
    for m, value in enumerate(features):
        found = None if value is None else tower_statistics(value, labels, classes)
        if found is None:
            without.append(m)
            continue
        arrays["typicality_rest"][m] = found.pop("rest")
        arrays |= {f"typicality_{name}_{m}": array for name, array in found.items()}
    return arrays, without


def log_distances(arrays: Mapping[str, np.ndarray], shape: tuple[int, int], features: Features) -> np.ndarray:
    """Return log distances `(N, M)` to the nearest class mean, computed by the head; NaN where unknown."""
    state = HeadState.plain_sum(*shape).replace(**arrays, **{SLOPE: np.zeros(shape[0])})
    head = state.head()
    clips = next(len(value) for value in features if value is not None)
    found = np.full((clips, shape[0]), np.nan)
    assert head.ranks is not None
    for m, value in enumerate(features):
        if value is not None and head.ranks[m]:
            found[:, m] = head.log_distance(torch.from_numpy(np.asarray(value, dtype=np.float64)), m).numpy()
    return found


def fit_typicality(
    features: Features,
    labels: np.ndarray,
    mask: np.ndarray,
    classes: int,
    *,
    reference: tuple[Features, np.ndarray] | None,
    groups: np.ndarray,
    clips: np.ndarray,
    draws: np.ndarray,
    folds: int = 5,
    seed: int = 0,
) -> tuple[Arrays, np.ndarray, list[str]]:
    """Compute the statistics of all towers and the typicality of the fitting clips.

    Args:
        features: features of the fitting clips.
        labels: `(N,)` class indices.
        mask: `(N, M)` bool, modalities present.
        classes: number of classes C.
        reference: features and labels of the towers' training clips; None takes means and covariance from the clean
            draws of the fit itself, and every clip's typicality from folds without its group.
        groups: `(N,)` group of every row.
        clips: `(N,)` names of the clips that rows are draws of.
        draws: `(N,)` number of the draw, 0 for the clean clip.
        folds: number of folds of the cross-fit.
        seed: random seed of the folds.

    Returns:
        Buffers `typicality_*` except the slope (empty if no modality has usable features), typicality `(N, M)` with 0
        where it is unknown, and notes.
    """
    notes, clean = [], draws == 0
    learned, learned_labels = (_rows(features, clean), labels[clean]) if reference is None else reference
    arrays, without = statistics(learned, learned_labels, classes)
    if len(without) == len(features) or all(value is None for value in features):
        return {}, np.zeros(mask.shape), ["typicality: no modality has features that vary; it is left out"]
    if reference is None:
        notes.append("typicality: no features of training clips; class means come from the fitting clips, out of fold")
        fold = draw_folds(labels, groups, clips, folds, seed)
        distances = out_of_fold_distances(features, labels, classes, clean, fold)
    else:
        distances = log_distances(arrays, (mask.shape[1], classes), features)
    notes += [
        f"typicality: features of modality {m} are missing, constant or of fewer than {MIN_CLIPS} clips"
        for m in without
    ]
    distances[~mask] = np.nan
    for m in set(range(mask.shape[1])) - set(without):
        known = np.isfinite(distances[:, m])
        unknown = len(np.unique(clips[mask[:, m] & ~known]))
        if unknown:
            notes.append(
                f"typicality: {unknown} clip(s) have modality {m} but not its features; they count as typical"
            )
        typical = known & clean if (known & clean).any() else known
        if typical.any():
            arrays["typicality_location"][m] = distances[typical, m].mean()
            arrays["typicality_scale"][m] = distances[typical, m].std() or 1.0
    standard = (distances - arrays["typicality_location"]) / arrays["typicality_scale"]
    return arrays, np.nan_to_num(np.clip(standard, 0.0, TYPICALITY_BOUND)), notes


def out_of_fold_distances(
    features: Features, labels: np.ndarray, classes: int, clean: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Return log distances `(N, M)` of every clip, from statistics of the `clean (N,)` clips of the other folds."""
    found = np.full((len(labels), len(features)), np.nan)
    for k in range(int(fold.max()) + 1):
        learn, judge = clean & (fold != k), fold == k
        arrays, _ = statistics(_rows(features, learn), labels[learn], classes)
        found[judge] = log_distances(arrays, (len(features), classes), _rows(features, judge))
    return found


def _rows(features: Features, rows: np.ndarray) -> Features:
    return [None if value is None else value[rows] for value in features]

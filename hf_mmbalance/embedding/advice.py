"""How accuracy grows with the number of labels, and where more labels would help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_mmbalance.decision.results import plain_sum
from hf_mmbalance.embedding.fuse import FuseError, FuseOptions, Rows, fit
from hf_mmbalance.metrics import measures


MIN_LABELS = 10  # smallest number of labelled clips in a curve
Point = dict[str, Any]


def learning_curve(rows: Rows, options: FuseOptions) -> list[Point]:
    """Return the accuracy when fitting on a quarter and on half of the labelled clips, evaluated on the others.

    The subsets are nested. They take one clip of each class in turn, so that small subsets cover as many classes as
    possible. The clips of a group stay on one side.

    Returns:
        One entry per subset size: `labels`, `judged_on` (number of clips), and for each method (each modality, `sum`,
        `fused`) the `accuracy`, its 95 % interval `ci` and the `nll`. Sizes below 10 clips are skipped, and so are
        sizes on which nothing can be fitted.
    """
    order = _by_class_in_turn(rows, options.seed)
    points: list[Point] = []
    for share in (4, 2):
        chosen = set(order[: len(order) // share])
        groups = {rows.groups[i] for i in range(len(rows.ids)) if rows.clips[i] in chosen}
        learn = np.array([name in chosen for name in rows.clips])
        judge = np.array([group not in groups for group in rows.groups]) & (rows.draws == 0)
        if len(chosen) < MIN_LABELS or not judge.any():
            continue
        try:
            fitted = fit(rows.take(np.flatnonzero(learn)), options)
        except FuseError:  # e.g. only one class among so few
            continue
        rest = rows.take(np.flatnonzero(judge))
        points.append(point(len(chosen), rest, fitted.unimodal(rest), fitted.fused(rest)))
    return points


def point(labels: int, rows: Rows, unimodal: np.ndarray, fused: np.ndarray) -> Point:
    """Compute one point of a curve from the unimodal logits `(N, M, C)` and fused logits `(N, C)` of judged rows."""
    table = rows.table(unimodal, "test")
    methods = {name: table.log_probs[:, m] for m, name in enumerate(table.modalities)}
    methods |= {"sum": plain_sum(table), "fused": fused}
    found: Point = {"labels": labels, "judged_on": len(rows.ids), "accuracy": {}, "ci": {}, "nll": {}}
    for name, logits in methods.items():
        there = ~np.isnan(logits[:, 0])
        if there.any():
            right = measures.correct(logits[there], rows.labels[there])
            found["accuracy"][name] = float(right.mean())
            found["ci"][name] = list(measures.bootstrap_ci(right, rows.groups[there]))
            found["nll"][name] = measures.nll(logits[there], rows.labels[there])
    return found


def where_to_label(rows: Rows, unimodal: np.ndarray, fused: np.ndarray) -> list[str]:
    """Describe which classes and kinds of clip are wrong most often, one sentence each, most worth labelling first.

    Args:
        rows: labelled clips without corrupted draws.
        unimodal, fused: held-out logits `(N, M, C)` and `(N, C)`.
    """
    wrong = measures.correct(fused, rows.labels) == 0
    found = []
    count = np.bincount(rows.labels, minlength=len(rows.classes))
    missed = np.bincount(rows.labels[wrong], minlength=len(rows.classes))
    for index in np.argsort(-missed, kind="stable")[:3]:
        if missed[index]:
            asked = measures.predict(fused)[wrong & (rows.labels == index)]
            other = rows.classes[int(np.bincount(asked).argmax())]
            found.append(
                f"class {rows.classes[index]!r}: {missed[index]} of its {count[index]} clips are wrong, most often"
                f" predicted as {other!r}"
            )
    unseen = [name for name, number in zip(rows.classes, count, strict=True) if not number]
    if unseen:
        found.insert(0, f"class(es) without any labelled clip: {', '.join(unseen[:5])}")
    answers = np.stack([np.where(np.isnan(z[:, 0]), -1, np.nan_to_num(z).argmax(1)) for z in unimodal.swapaxes(0, 1)])
    complete = (answers >= 0).all(axis=0)
    kinds = {
        "clips whose modalities disagree": complete & (answers != answers[0]).any(axis=0),
        "clips without one of the modalities": ~complete,
    }
    for name, there in kinds.items():
        if there.sum() >= 5 and wrong[there].mean() > 1.5 * wrong.mean():
            found.append(f"{name}: {100 * wrong[there].mean():.0f} % of {there.sum()} are wrong")
    return found


def _by_class_in_turn(rows: Rows, seed: int) -> list[str]:
    """Return the names of the clips in a shuffled order that takes one clip of each class in turn."""
    clips, first = np.unique(rows.clips, return_index=True)
    labels = rows.labels[first]
    shuffled = np.random.default_rng(seed).permutation(len(clips))
    rank = np.empty(len(clips), dtype=np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    return [str(clips[i]) for i in sorted(range(len(clips)), key=lambda i: (rank[i], labels[i]))]


def render_curve(points: Sequence[Point]) -> list[str]:
    """Render the curve as lines of a table."""
    methods = list(points[-1]["accuracy"]) if points else []
    lines = ["labels  evaluated on" + "".join(f"{name:>18}" for name in methods)]
    for entry in points:
        cells = [
            f"{100 * entry['accuracy'][name]:.1f} [{100 * entry['ci'][name][0]:.0f}, {100 * entry['ci'][name][1]:.0f}]"
            if name in entry["accuracy"]
            else "-"
            for name in methods
        ]
        lines.append(f"{entry['labels']:>6}  {entry['judged_on']:>12}" + "".join(f"{cell:>18}" for cell in cells))
    return lines

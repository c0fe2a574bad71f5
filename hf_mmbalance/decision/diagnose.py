"""`diagnose`: where a decision layer leans, why, what it loses, and what each part of the allocation brings."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_mmbalance.decision.balance import Balance, balance, interval
from hf_mmbalance.decision.calibration import IsotonicCalibration
from hf_mmbalance.decision.decide import Decided
from hf_mmbalance.decision.folds import group_folds
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.metrics import geometry
from hf_mmbalance.metrics.measures import (
    auc,
    bootstrap_ci,
    brier,
    correct,
    ece,
    log_softmax,
    nll,
    predict,
    reliability,
    rescued_and_lost,
)


ABLATION = {"global": "global", "+ bias": "global_bias", "class": "class", "both": "class_bias"}
#: Shapley needs 2^M fusions of all clips a method; 12 modalities are 4,096.
MAX_MODALITIES = 12
LISTED_CLIPS = 12


def diagnose(decided: Decided, *, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Everything DESIGN section 5 asks for, as plain values for JSON and the report.

    Args:
        decided: a judged table (`decide_splits` or `decide_folds`).
        draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        ValueError: with more than 12 modalities.
    """
    table = decided.table
    if len(table.modalities) > MAX_MODALITIES:
        raise ValueError(
            f"{len(table.modalities)} modalities: exact Shapley values are computed up to {MAX_MODALITIES}."
        )
    prior = decided.allocation.prior_
    balances = {name: balance(fitted, table, draws=draws, seed=seed) for name, fitted in decided.states.items()}
    likelihood = balance(
        decided.states["adaptive"], table, value="log_likelihood", prior=prior, draws=draws, seed=seed
    )
    return {
        **decided.as_dict(),
        "balance": {name: found.as_dict(table) for name, found in balances.items()},
        "balance_log_likelihood": likelihood.as_dict(table),
        "index_differences": _index_differences(balances),
        "modality_detail": {name: modality_detail(table, m) for m, name in enumerate(table.modalities)},
        "calibration": {name: calibration_detail(decided, name) for name in _judged(decided)},
        "ablation": ablation(decided),
        "rescued": {name: rescued(decided, name) for name in decided.states},
        "lost": lost_clips(decided),
        "clips": [waterfall(decided, row) for row in _telling_clips(decided)],
        "geometry": feature_geometry(table),
    }


def _judged(decided: Decided) -> list[str]:
    return [name for name, logits in decided.fusions.items() if not np.isnan(logits).all()]


def _index_differences(balances: dict[str, Balance]) -> list[dict[str, Any]]:
    """Paired differences of the balance index between `adaptive` and the others."""
    own = balances["adaptive"].index
    found = []
    for name, other in balances.items():
        if name != "adaptive":
            delta = own - other.index
            found.append({"method": "adaptive", "baseline": name, "index": float(delta[0]), "ci": interval(delta[1:])})
    return found


def modality_detail(table: DecisionTable, m: int) -> dict[str, Any]:
    """One modality alone: accuracy, calibration, recall and AUC per class, distributions of its logits."""
    here = table.mask[:, m]
    if not here.any():
        return {"n": 0}
    labels, classes = table.labels[here], len(table.classes)
    groups = np.asarray(table.groups)[here]
    scores = table.logits[here, m]
    log_p = log_softmax(scores)
    hit = correct(scores, labels)
    centred = scores - scores.mean(axis=1, keepdims=True)
    top = np.sort(scores, axis=1)
    margin = top[:, -1] - top[:, -2]
    recall = [float(hit[labels == c].mean()) if (labels == c).any() else None for c in range(classes)]
    area = [auc(log_p[:, c], labels == c) for c in range(classes)]
    return {
        "n": int(here.sum()),
        "accuracy": float(hit.mean()),
        "accuracy_ci": list(bootstrap_ci(hit, groups)),
        "recall": recall,
        "auc": [None if np.isnan(value) else value for value in area],
        "nll": nll(scores, labels),
        "brier": brier(scores, labels),
        "ece": ece(scores, labels),
        "ece_adaptive": ece(scores, labels, adaptive=True),
        "ece_isotonic": _isotonic_ece(scores, labels, groups),
        "logit_norm": _spread(np.linalg.norm(centred, axis=1)),
        "logit_range": _spread(top[:, -1] - top[:, 0]),
        "margin": _spread(margin),
        "margin_histogram": _histogram(margin),
        "confidence_by_class": [
            _spread(np.exp(log_p[labels == c, c])) if (labels == c).any() else None for c in range(classes)
        ],
    }


def _isotonic_ece(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float | None:
    """ECE that a free monotone calibration reaches out of fold: a floor to judge temperatures by."""
    if len(set(groups)) < 2 or len(labels) < 50 or scores.shape[1] > 64:
        return None
    fold, out = group_folds(groups, 5), np.empty_like(scores)
    for k in range(int(fold.max()) + 1):
        out[fold == k] = IsotonicCalibration().fit(scores[fold != k], labels[fold != k]).transform(scores[fold == k])
    return ece(out, labels)


def _spread(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"mean": float(values.mean()), "p10": float(low), "median": float(middle), "p90": float(high)}


def _histogram(values: np.ndarray, bins: int = 30) -> dict[str, list[float]]:
    count, edges = np.histogram(values, bins=bins, range=(0, float(np.quantile(values, 0.99)) or 1.0))
    return {"count": count.tolist(), "edges": edges.tolist()}


def calibration_detail(decided: Decided, method: str) -> dict[str, Any]:
    """ECE (equal width, equal mass), NLL, Brier and reliability data of one method."""
    logits = decided.fusions[method]
    there = ~np.isnan(logits).any(axis=1)
    scores, labels = logits[there], decided.table.labels[there]
    data = reliability(scores, labels)
    filled = data["count"] > 0
    return {
        "n": int(there.sum()),
        "ece": ece(scores, labels),
        "ece_adaptive": ece(scores, labels, adaptive=True),
        "nll": nll(scores, labels),
        "brier": brier(scores, labels),
        "reliability": {key: value[filled].tolist() for key, value in data.items()},
    }


def ablation(decided: Decided) -> list[dict[str, Any]]:
    """Global weights / + bias / class weights / both: accuracy and paired difference to global weights alone."""
    if not all(rung in decided.fusions for rung in ABLATION.values()):
        return []
    return [
        {"label": label, **decided.row(rung), "over_global": decided.difference(rung, "global")}
        | {"over_bias": decided.difference(rung, "global_bias")}
        for label, rung in ABLATION.items()
    ]


def rescued(decided: Decided, method: str) -> dict[str, Any]:
    """Rescued and lost parts of one fusion, by modality name."""
    table = decided.table
    each = _right_alone(table)
    found = rescued_and_lost(each, correct(decided.fusions[method], table.labels))
    names = table.modalities
    rate = [None if np.isnan(value) else float(value) for value in found["rescued"]]
    return {
        "only": dict(zip(names, map(float, found["only"]), strict=True)),
        "rescued": dict(zip(names, rate, strict=True)),
        "weak": names[found["weak"]],
        "any": found["any"],
        "lost": found["lost"],
    }


def _right_alone(table: DecisionTable) -> np.ndarray:
    alone = predict(np.where(table.mask[..., None], table.logits, 0.0))
    return np.asarray((alone == table.labels[:, None]) & table.mask)


def contributions(decided: Decided, method: str = "adaptive") -> np.ndarray:
    """Terms `(N, M, C)` of one fusion; what they leave of the fused logits is the bias."""
    table = decided.table
    terms = np.empty(table.logits.shape)
    for rows, state in decided.states[method]:
        terms[rows] = state.fuse(table.logits[rows])[2]
    return terms


def lost_clips(decided: Decided) -> dict[str, Any]:
    """Clips that some modality gets right and `adaptive` gets wrong, and which modality pulled it off the label.

    The culprit is the modality whose term speaks most for the predicted class against the label.
    """
    table = decided.table
    fused = predict(decided.fusions["adaptive"])
    right = _right_alone(table)
    lost = np.flatnonzero(right.any(axis=1) & (fused != table.labels))
    terms = contributions(decided)[lost]
    rows = np.arange(len(lost))
    pull = terms[rows, :, fused[lost]] - terms[rows, :, table.labels[lost]]
    culprit = pull.argmax(axis=1)
    by_class = np.zeros((len(table.modalities), len(table.classes)), dtype=int)
    np.add.at(by_class, (culprit, table.labels[lost]), 1)
    worst = np.argsort(-pull.max(axis=1, initial=-np.inf))[:LISTED_CLIPS]
    return {
        "n": len(lost),
        "by_class": {name: by_class[m].tolist() for m, name in enumerate(table.modalities)},
        "clips": [
            {
                "id": table.ids[lost[i]],
                "label": table.classes[table.labels[lost[i]]],
                "predicted": table.classes[fused[lost[i]]],
                "right_alone": [name for m, name in enumerate(table.modalities) if right[lost[i], m]],
                "culprit": table.modalities[culprit[i]],
                "pull": float(pull[i, culprit[i]]),
            }
            for i in worst
        ],
    }


def _telling_clips(decided: Decided, number: int = 4) -> list[int]:
    """Clips to show: two that fusion rescues from a wrong modality and two that it loses, the clearest of each."""
    table = decided.table
    right = _right_alone(table)
    log_p = log_softmax(decided.fusions["adaptive"])
    rows = np.arange(len(table))
    others = log_p.copy()
    others[rows, table.labels] = -np.inf
    margin = log_p[rows, table.labels] - others.max(axis=1)
    mixed = right.any(axis=1) & ~right.all(axis=1)
    won = np.flatnonzero(mixed & (margin > 0))
    gone = np.flatnonzero(mixed & (margin <= 0))
    best = won[np.argsort(-margin[won])][: number // 2]
    worst = gone[np.argsort(margin[gone])][: number // 2]
    return [int(row) for row in (*best, *worst)]


def waterfall(decided: Decided, row: int) -> dict[str, Any]:
    """How the margin of the label over its strongest rival comes about in one clip: bias plus each modality's term."""
    table = decided.table
    fused = decided.fusions["adaptive"][row]
    label = int(table.labels[row])
    rival = int(np.where(np.arange(len(fused)) == label, -np.inf, fused).argmax())
    state = next(state for rows, state in decided.states["adaptive"] if row in rows)
    terms = state.fuse(table.logits[row : row + 1])[2][0]
    steps = {name: float(terms[m, label] - terms[m, rival]) for m, name in enumerate(table.modalities)}
    total = float(fused[label] - fused[rival])
    return {
        "id": table.ids[row],
        "label": table.classes[label],
        "rival": table.classes[rival],
        "bias": total - sum(steps.values()),
        "terms": steps,
        "margin": total,
    }


def feature_geometry(table: DecisionTable) -> dict[str, Any]:
    """Geometry of each modality's features and CKA between modalities; empty where the table has no features."""
    report: dict[str, Any] = {"modalities": {}, "cka": []}
    kept: dict[str, np.ndarray] = {}
    for name, features in table.features.items():
        there = np.isfinite(features).all(axis=1)
        if there.sum() < 2:
            continue
        kept[name] = there
        x, labels = features[there], table.labels[there]
        report["modalities"][name] = {
            "n": int(there.sum()),
            "dimension": int(features.shape[1]),
            "norm": _spread(geometry.feature_norms(x)),
            "effective_rank": geometry.effective_rank(x),
            "scatter_ratio": geometry.scatter_ratio(x, labels),
            "alignment": geometry.alignment(x, labels),
            "uniformity": geometry.uniformity(x),
        }
    names = list(kept)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            both = kept[first] & kept[second]
            if both.sum() >= 2:
                value = geometry.linear_cka(table.features[first][both], table.features[second][both])
                report["cka"].append({"modalities": [first, second], "cka": value, "n": int(both.sum())})
    return report

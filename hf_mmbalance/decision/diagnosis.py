"""`diagnose`: where a decision layer leans, why, what it loses, and what each part of the allocation adds."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from hf_mmbalance.decision.contributions import Balance, balance, interval
from hf_mmbalance.decision.evaluation import DecisionReport, FittedPart, fused_logits
from hf_mmbalance.decision.folds import draw_folds
from hf_mmbalance.decision.plain import plain_report
from hf_mmbalance.decision.state import SLOPE
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


ABLATION = {"global": "global", "+ bias": "bias", "+ class weights": "class"}
#: Weights of the balance penalty that the accuracy-balance curve shows.
PENALTIES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
#: Shapley values need 2^M fusions of all clips per method: 4,096 for 12 modalities.
MAX_MODALITIES = 12
LISTED_CLIPS = 12
#: The part of a decision that is not a modality's term: prior and class bias.
BIAS = "bias"


def diagnose(judged: DecisionReport, *, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Compute all measures of an evaluated table, as plain values for JSON and the report.

    Args:
        judged: evaluated table from `decide_splits` or `decide_folds`.
        draws: number of bootstrap draws.
        seed: random seed of the bootstrap.

    Raises:
        ValueError: if there are more than 12 modalities.
    """
    table = judged.table
    if len(table.modalities) > MAX_MODALITIES:
        raise ValueError(
            f"{len(table.modalities)} modalities: exact Shapley values are computed for at most {MAX_MODALITIES}."
        )
    prior, method = judged.allocation.prior_, in_use(judged)
    balances = {name: balance(fitted, table, draws=draws, seed=seed) for name, fitted in judged.states.items()}
    likelihood = balance(judged.states["adaptive"], table, value="log_likelihood", prior=prior, draws=draws, seed=seed)
    return plain_report(
        {
            **judged.as_dict(),
            "balance": {name: found.as_dict(table) for name, found in balances.items()},
            "balance_log_likelihood": likelihood.as_dict(table),
            "index_differences": _index_differences(balances),
            "modality_detail": {name: modality_detail(table, m) for m, name in enumerate(table.modalities)},
            "calibration": {name: calibration_detail(judged, name) for name in _judged(judged)},
            "ablation": ablation(judged),
            "rescued": {name: rescued(judged, name) for name in judged.states},
            "lost": lost_clips(judged, method),
            "clips": [waterfall(judged, row, method) for row in _telling_clips(judged, method)],
            "in_use": layer_in_use(judged, method),
            "geometry": feature_geometry(table),
            "balance_curve": balance_curve(judged, seed=seed),
        }
    )


def in_use(judged: DecisionReport) -> str:
    """Return the fusion to diagnose: a run's own head if its weights are known, else the one fitted here."""
    return "model" if "model" in judged.states else "adaptive"


def layer_in_use(judged: DecisionReport, method: str) -> dict[str, Any]:
    """Describe the decision layer: temperatures, slopes, trust by clip, and its paired difference from the sum."""
    table = judged.table
    state = judged.states["model"][0].state if method == "model" else judged.allocation.state_
    by_name = lambda values: dict(zip(table.modalities, np.asarray(values).tolist(), strict=True))  # noqa: E731
    trust = np.full(table.mask.shape, np.nan)
    for part in judged.states[method]:
        trust[part.rows] = part.fuse(table.logits).trust
    right = _own_right(table)
    return {
        "method": method,
        "temperature": by_name(np.exp(state["log_temperature"])),
        "typicality_slope": by_name(state[SLOPE]) if SLOPE in state.arrays else None,
        "trust": {
            name: {
                "right": _trust_histogram(trust[here & right[:, m], m]),
                "wrong": _trust_histogram(trust[here & ~right[:, m], m]),
            }
            for m, (name, here) in enumerate(zip(table.modalities, table.mask.T, strict=True))
        },
        "over_sum": judged.difference(method, "sum"),
    }


def _trust_histogram(values: np.ndarray) -> dict[str, Any]:
    count, edges = np.histogram(values, bins=20, range=(0, 1))
    return {"n": len(values), "count": count.tolist(), "edges": edges.tolist()}


def _judged(judged: DecisionReport) -> list[str]:
    return [name for name, logits in judged.fusions.items() if not np.isnan(logits).all()]


def balance_curve(judged: DecisionReport, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return accuracy, NLL and balance index of class weights under growing penalties towards capability shares.

    Empty if no weights can be fitted, or if the allocation was loaded and has no clips.
    """
    if not all("class" in part.ladder_.scores for _, part in judged.parts):
        return []
    found = []
    for penalty in PENALTIES:
        fitted = [
            FittedPart.of(rows, part.complete(part.rebalanced(penalty)), judged.table) for rows, part in judged.parts
        ]
        logits = fused_logits(judged.table.logits, fitted)
        hit = correct(logits, judged.table.labels)
        index = balance(fitted, judged.table, draws=200, seed=seed).index
        found.append(
            {
                "penalty": penalty,
                "accuracy": float(hit.mean()),
                "accuracy_ci": list(bootstrap_ci(hit, judged.table.units)),
                "nll": nll(logits, judged.table.labels),
                "index": float(index[0]),
                "index_ci": interval(index[1:]),
            }
        )
    return found


def _index_differences(balances: dict[str, Balance]) -> list[dict[str, Any]]:
    """Return paired differences of the balance index between `adaptive` and the others."""
    own = balances["adaptive"].index
    found = []
    for name, other in balances.items():
        if name != "adaptive":
            delta = own - other.index
            found.append({"method": "adaptive", "baseline": name, "index": float(delta[0]), "ci": interval(delta[1:])})
    return found


def modality_detail(table: DecisionTable, m: int) -> dict[str, Any]:
    """Measure one modality by itself: accuracy, calibration, recall and AUC per class, distributions of its logits."""
    here = table.mask[:, m]
    if not here.any():
        return {"n": 0}
    labels, classes = table.labels[here], len(table.classes)
    units = np.asarray(table.units)[here]
    scores = table.log_probs[here, m]
    hit = correct(scores, labels)
    logits = table.logits[here, m][:, table.known_classes[m]]
    centred = logits - logits.mean(axis=1, keepdims=True)
    top = np.sort(logits, axis=1)
    margin = top[:, -1] - top[:, -2]
    recall = [float(hit[labels == c].mean()) if (labels == c).any() else None for c in range(classes)]
    area = [auc(scores[:, c], labels == c) for c in range(classes)]
    return {
        "n": int(here.sum()),
        "accuracy": float(hit.mean()),
        "accuracy_ci": list(bootstrap_ci(hit, units)),
        "recall": recall,
        "auc": [None if np.isnan(value) else value for value in area],
        "nll": nll(scores, labels),
        "brier": brier(scores, labels),
        "ece": ece(scores, labels),
        "ece_adaptive": ece(scores, labels, adaptive=True),
        "ece_isotonic": _isotonic_ece(
            scores, labels, np.asarray(table.groups)[here], np.asarray(table.clip_names)[here]
        ),
        "logit_norm": _spread(np.linalg.norm(centred, axis=1)),
        "logit_range": _spread(top[:, -1] - top[:, 0]),
        "margin": _spread(margin),
        "margin_histogram": _histogram(margin),
        "confidence_by_class": [
            _spread(np.exp(scores[labels == c, c])) if (labels == c).any() else None for c in range(classes)
        ],
    }


def _isotonic_ece(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, clips: np.ndarray) -> float | None:
    """Return the out-of-fold ECE of one isotonic regression per class against the rest (Zadrozny & Elkan, 2002).

    This is what a free monotone calibration reaches, a floor to compare the temperatures with.
    """
    if len(set(clips)) < 50 or scores.shape[1] > 64:
        return None
    fold, out = draw_folds(labels, groups, clips, 5), np.empty_like(scores)
    probabilities = np.exp(log_softmax(scores))
    for k in range(int(fold.max()) + 1):
        learn, judge = fold != k, fold == k
        for c in range(scores.shape[1]):
            fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
            out[judge, c] = fitted.fit(probabilities[learn, c], labels[learn] == c).predict(probabilities[judge, c])
    return ece(np.log(np.maximum(out, 1e-3)), labels)


def _spread(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"mean": float(values.mean()), "p10": float(low), "median": float(middle), "p90": float(high)}


def _histogram(values: np.ndarray, bins: int = 30) -> dict[str, list[float]]:
    count, edges = np.histogram(values, bins=bins, range=(0, float(np.quantile(values, 0.99)) or 1.0))
    return {"count": count.tolist(), "edges": edges.tolist()}


def calibration_detail(judged: DecisionReport, method: str) -> dict[str, Any]:
    """Return ECE (equal width, equal mass), NLL, Brier score and reliability data of one method."""
    logits = judged.fusions[method]
    there = ~np.isnan(logits).any(axis=1)
    scores, labels = logits[there], judged.table.labels[there]
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


def ablation(judged: DecisionReport) -> list[dict[str, Any]]:
    """Compare global weights, those with a class bias, and class weights: accuracy and paired differences."""
    if not all(rung in judged.fusions for rung in ABLATION.values()):
        return []
    return [
        {"label": label, **judged.row(rung), "over_global": judged.difference(rung, "global")}
        | {"over_bias": judged.difference(rung, "bias")}
        for label, rung in ABLATION.items()
    ]


def rescued(judged: DecisionReport, method: str) -> dict[str, Any]:
    """Return the rescued and lost fractions of one fusion, by modality name."""
    table = judged.table
    each = _own_right(table)
    found = rescued_and_lost(each, correct(judged.fusions[method], table.labels))
    names = table.modalities
    return {
        "only": dict(zip(names, map(float, found["only"]), strict=True)),
        "rescued": dict(zip(names, map(float, found["rescued"]), strict=True)),
        "weak": names[found["weak"]],
        "any": found["any"],
        "lost": found["lost"],
    }


def _own_right(table: DecisionTable) -> np.ndarray:
    own = predict(np.where(table.mask[..., None], table.log_probs, 0.0))
    return np.asarray((own == table.labels[:, None]) & table.mask)


def contributions(judged: DecisionReport, method: str = "adaptive") -> np.ndarray:
    """Return the terms `(N, M, C)` of one fusion; the fused logits minus their sum are the bias."""
    table = judged.table
    terms = np.empty(table.logits.shape)
    for part in judged.states[method]:
        terms[part.rows] = part.fuse(table.logits).contributions
    return terms


def lost_clips(judged: DecisionReport, method: str = "adaptive") -> dict[str, Any]:
    """Return clips that some modality gets right and the fusion gets wrong, and what pulled them off the label.

    The culprit is the modality whose term most favours the predicted class over the label, or the bias (with the
    prior) if that favours it more.
    """
    table = judged.table
    predicted = predict(judged.fusions[method])
    right = _own_right(table)
    lost = np.flatnonzero(right.any(axis=1) & (predicted != table.labels))
    labels, rivals, rows = table.labels[lost], predicted[lost], np.arange(len(lost))
    terms, logits = contributions(judged, method)[lost], judged.fusions[method][lost]
    pull = terms[rows, :, rivals] - terms[rows, :, labels]
    rest = logits[rows, rivals] - logits[rows, labels] - pull.sum(axis=1)
    pull = np.column_stack([np.where(table.mask[lost], pull, -np.inf), rest])
    names, culprit = [*table.modalities, BIAS], pull.argmax(axis=1)
    by_class = np.zeros((len(names), len(table.classes)), dtype=int)
    np.add.at(by_class, (culprit, labels), 1)
    worst = np.argsort(-pull[rows, culprit])[:LISTED_CLIPS]
    return {
        "n": len(lost),
        "by_class": {name: row.tolist() for name, row in zip(names, by_class, strict=True)},
        "clips": [
            {
                "id": table.ids[lost[i]],
                "label": table.classes[labels[i]],
                "predicted": table.classes[rivals[i]],
                "right_modalities": [name for m, name in enumerate(table.modalities) if right[lost[i], m]],
                "culprit": names[culprit[i]],
                "pull": float(pull[i, culprit[i]]),
            }
            for i in worst
        ],
    }


def _telling_clips(judged: DecisionReport, method: str, number: int = 4) -> list[int]:
    """Return the clearest clips to show: two that fusion rescues from a wrong modality and two that it loses."""
    table = judged.table
    right = _own_right(table)
    log_p = log_softmax(judged.fusions[method])
    rows = np.arange(len(table))
    others = log_p.copy()
    others[rows, table.labels] = -np.inf
    margin = log_p[rows, table.labels] - others.max(axis=1)
    mixed = right.any(axis=1) & (table.mask & ~right).any(axis=1)
    won = np.flatnonzero(mixed & (margin > 0))
    gone = np.flatnonzero(mixed & (margin <= 0))
    best = won[np.argsort(-margin[won])][: number // 2]
    worst = gone[np.argsort(margin[gone])][: number // 2]
    return [int(row) for row in (*best, *worst)]


def waterfall(judged: DecisionReport, row: int, method: str = "adaptive") -> dict[str, Any]:
    """Split the margin of a clip's label over its strongest rival into the bias and each modality's term."""
    table = judged.table
    fused = judged.fusions[method][row]
    label = int(table.labels[row])
    rival = int(np.where(np.arange(len(fused)) == label, -np.inf, fused).argmax())
    part = next(part for part in judged.states[method] if row in part.rows)
    terms = part.fuse(table.logits, part.rows == row).contributions[0]
    steps = {name: float(terms[m, label] - terms[m, rival]) for m, name in enumerate(table.modalities)}
    total = float(fused[label] - fused[rival])
    return {
        "id": table.ids[row],
        "label": table.classes[label],
        "rival": table.classes[rival],
        BIAS: total - sum(steps.values()),
        "terms": steps,
        "margin": total,
    }


def feature_geometry(table: DecisionTable) -> dict[str, Any]:
    """Return the geometry of each modality's features and CKA between modalities; empty without features."""
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

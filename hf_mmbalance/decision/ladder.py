"""The ladder: every rung under group cross-validation, the strength of its shrinkage, and the rule of choice."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from hf_mmbalance.decision import families
from hf_mmbalance.decision.families import GATES, MAX_CLASSES, PARENTS, SHOWN, STIFF, WIDE, FitData
from hf_mmbalance.decision.folds import clip_folds, group_folds, standard_error
from hf_mmbalance.decision.head import NEGLIGIBLE, HeadState
from hf_mmbalance.decision.objective import fit_temperature, fit_temperatures
from hf_mmbalance.metrics.measures import clip_nll, correct, log_softmax


STRENGTHS = (300.0, 30.0, 3.0, 0.3)
MIN_CLIPS = 10
MIN_GROUPS = 3
#: Numbers in the logits from which the folds are fitted on threads.
THREADED_SIZE = 1_000_000
T = TypeVar("T")
#: Calibration of one modality: (logits, labels) -> head state with only its calibration set.
Calibrator = Callable[[np.ndarray, np.ndarray], HeadState]


@dataclass
class RungScore:
    """What cross-validation says of one rung.

    Args:
        nll: `(N,)` held-out NLL of every clip.
        hit: `(N,)` held-out correctness.
        strength: chosen precision of the prior around the parent; None where nothing is shrunk.
    """

    nll: np.ndarray
    hit: np.ndarray
    strength: float | None = None


@dataclass
class Ladder:
    """Every rung fitted on all data, its cross-validated scores, and the choice.

    Args:
        states: rung or fallback (`sum`, `best_single`) -> state fitted on all data.
        scores: the same keys -> held-out scores; empty where nothing could be cross-validated.
        chosen: name of the state to use.
        best_single: index of the modality of the fallback `best_single`.
        reason: one sentence that says why.
        notes: what was left out or fell back, as sentences.
    """

    states: dict[str, HeadState]
    scores: dict[str, RungScore]
    chosen: str
    best_single: int
    reason: str
    notes: list[str] = field(default_factory=list)


@dataclass
class _Part:
    """One fitting part (a fold's training side, or all data) with the states fitted on it so far."""

    logits: np.ndarray
    labels: np.ndarray
    base: HeadState
    states: dict[str, HeadState] = field(default_factory=dict)

    def data(self, rung: str) -> FitData:
        plain = rung == "linear"
        return FitData.of(log_softmax(self.logits) if plain else self.base.calibrated(self.logits), self.labels)


def fit_ladder(
    logits: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    *,
    calibrator: Calibrator,
    folds: int = 5,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    rung: str | None = None,
) -> Ladder:
    """Fit every allowed rung and choose one.

    Args:
        logits: `(N, M, C)`, NaN rows where a modality is missing.
        labels: `(N,)`.
        groups: `(N,)`.
        calibrator: calibrates every modality on the fitting part.
        folds: of the group cross-validation.
        strengths: precisions of the prior around the parent, strongest first.
        seed: of the folds.
        rung: fit this rung (and its parents) only and take it; None to choose among all that the data allow.

    Raises:
        ValueError: for a rung that does not exist.
    """
    groups = np.asarray(groups).astype(str)
    allowed, notes = allowed_rungs(logits, labels, groups)
    if rung is not None:
        if rung not in allowed:
            notes.append(f"rung {rung!r} was asked for but these data do not allow it")
        allowed = [name for name in allowed if name in ancestry(rung)]
    whole = _Part(logits, labels, calibrator(logits, labels))
    fold = _folds(labels, groups, folds, seed)
    if fold is None:
        notes.append(f"{len(labels)} clips of {len(np.unique(labels))} class(es) are too few to fit: plain sum")
        plain = HeadState.plain_sum(*logits.shape[1:])
        return Ladder({"sum": plain}, {}, "sum", 0, "too few clips to fit anything", notes)
    parts = [_Part(logits[fold != k], labels[fold != k], HeadState.plain_sum(1, 2)) for k in range(fold.max() + 1)]
    for part in parts:
        part.base = calibrator(part.logits, part.labels)
    held_out = [fold == k for k in range(len(parts))]
    scores: dict[str, RungScore] = {}
    best_single = _fallbacks(whole, parts, held_out, logits, labels, scores)
    # What weights and biases bring is shown also where these data are too few to choose them by.
    beside = [name for name in SHOWN if name not in allowed and rung is None and "global" in allowed]
    for name in [*allowed[1:], *beside]:
        # Where one gate for all classes brings nothing, a gate a class is tried at full shrinkage only: it is costly.
        worth = name != "class_gate" or _gain(scores["class_bias"], scores["gate"], groups) > 0
        scores[name] = _climb(name, whole, parts, held_out, logits, labels, strengths if worth else strengths[:1])
    chosen, reason = (rung, "asked for") if rung in allowed else choose(scores, groups, allowed)
    return Ladder(whole.states, scores, chosen, best_single, reason, notes)


def ancestry(rung: str) -> list[str]:
    """The rung and its parents up to `sum`.

    Raises:
        ValueError: for a name that is no rung.
    """
    if rung not in PARENTS:
        raise ValueError(f"rung {rung!r} is unknown; choose among {', '.join(PARENTS)}.")
    parent = PARENTS[rung]
    return [rung] if parent is None else [rung, *ancestry(parent)]


def allowed_rungs(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[list[str], list[str]]:
    """Rungs that these data can support, stiff to free, and notes on what was left out."""
    allowed, notes = list(PARENTS), []
    number = len(np.unique(groups))
    if number < MIN_GROUPS:
        allowed = [rung for rung in allowed if rung in STIFF]
        notes.append(
            f"{number} group(s): clip folds cannot see a new group, so only {', '.join(STIFF)} and the best single"
            f" modality can be chosen (at least {MIN_GROUPS} groups are needed for more); {', '.join(SHOWN)} are shown"
            " beside them"
        )
    elif logits.shape[2] > MAX_CLASSES:
        allowed = [rung for rung in allowed if rung not in WIDE]
        notes.append(f"{logits.shape[2]} classes: {' and '.join(WIDE)} are left out above {MAX_CLASSES}")
    present = ~np.isnan(logits[:, :, 0])
    if (present.sum(axis=1) > 1).sum() < MIN_CLIPS:
        allowed = ["sum", "temperature"]
        notes.append(f"fewer than {MIN_CLIPS} clips have two modalities: no weights can be fitted")
    absent = np.setdiff1d(np.arange(logits.shape[2]), labels)
    if len(absent):
        notes.append(
            f"{len(absent)} class(es) have no clip to fit on (indices {absent[:10].tolist()}): they keep"
            " the weights of the stiffer rung and no bias"
        )
    for m in np.flatnonzero(~present.any(axis=0)):
        notes.append(f"modality {m} is missing in every clip: it stays uncalibrated, at weight 1")
    return allowed, notes


def _folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray | None:
    if len(labels) < MIN_CLIPS or len(np.unique(labels)) < 2:
        return None
    if len(np.unique(groups)) < 2:
        return clip_folds(labels, min(folds, len(labels) // 2), seed)
    return group_folds(groups, folds, seed)


def _fallbacks(
    whole: _Part,
    parts: list[_Part],
    held_out: list[np.ndarray],
    logits: np.ndarray,
    labels: np.ndarray,
    scores: dict[str, RungScore],
) -> int:
    """Fit and score `sum`, `best_single` and `temperature`; returns the best single modality."""
    modalities = logits.shape[1]
    singles: list[RungScore] = []
    for part in [*parts, whole]:
        own = fit_temperatures(part.logits, part.labels)
        part.states["sum"] = scaled_sum(part.logits, part.labels, own)
        part.states["temperature"] = part.base
        part.states |= {f"single.{m}": single(own, m, logits.shape[2]) for m in range(modalities)}
    for m in range(modalities):
        singles.append(_score([part.states[f"single.{m}"] for part in parts], held_out, logits, labels))
    best = int(np.argmin([score.nll.mean() for score in singles]))
    for part in [*parts, whole]:
        part.states["best_single"] = part.states[f"single.{best}"]
        for m in range(modalities):
            del part.states[f"single.{m}"]
    scores["sum"] = _score([part.states["sum"] for part in parts], held_out, logits, labels)
    scores["best_single"] = singles[best]
    return best


def scaled_sum(logits: np.ndarray, labels: np.ndarray, log_temperature: np.ndarray) -> HeadState:
    """The plain sum under one fitted temperature; a modality alone speaks with its own."""
    plain = HeadState.plain_sum(*logits.shape[1:])
    several = (~np.isnan(logits[:, :, 0])).sum(axis=1) > 1
    common = fit_temperature(plain.fuse(logits[several])[0], labels[several]) if several.any() else 0.0
    weights = np.exp(log_temperature - common)[:, None] + np.zeros(logits.shape[2])
    return plain.replace(log_temperature=log_temperature).with_weights(weights)


def single(log_temperature: np.ndarray, modality: int, classes: int) -> HeadState:
    """One modality under its temperature; where it is missing the others stand in, equally."""
    alpha = np.full((len(log_temperature), classes), NEGLIGIBLE)
    alpha[modality] = 0.0
    state = HeadState.plain_sum(len(log_temperature), classes)
    return state.replace(log_temperature=log_temperature, alpha=alpha, log_kappa=np.zeros(classes))


def _gain(parent: RungScore, child: RungScore, groups: np.ndarray) -> float:
    """By how much a child's held-out NLL is below its parent's, beyond one paired standard error."""
    difference = parent.nll - child.nll
    return float(difference.mean()) - standard_error(difference, groups)


def _score(
    states: list[HeadState],
    held_out: list[np.ndarray],
    logits: np.ndarray,
    labels: np.ndarray,
    strength: float | None = None,
) -> RungScore:
    nll, hit = np.empty(len(labels)), np.empty(len(labels))
    for state, rows in zip(states, held_out, strict=True):
        fused = state.fuse(logits[rows])[0]
        nll[rows], hit[rows] = clip_nll(fused, labels[rows]), correct(fused, labels[rows])
    return RungScore(nll, hit, strength)


def _climb(
    rung: str,
    whole: _Part,
    parts: list[_Part],
    held_out: list[np.ndarray],
    logits: np.ndarray,
    labels: np.ndarray,
    strengths: Sequence[float],
) -> RungScore:
    """Fit one rung on every part along the strengths, choose the strength, keep the states of that strength."""
    if rung == "temperature":
        return _score([part.states[rung] for part in parts], held_out, logits, labels)
    everything = [*parts, whole]
    data = _for_each(lambda k: everything[k].data(rung), len(everything), logits.size)
    score: RungScore | None = None
    before: list[HeadState | None] = [None] * len(parts)
    for strength in strengths:
        tried = _for_each(partial(_fit_kth, rung, parts, data, strength, before), len(parts), logits.size)
        new = _score(tried, held_out, logits, labels, strength)
        # Held-out NLL falls, then rises, as shrinkage weakens: the first rise ends the walk.
        if score is not None and new.nll.mean() >= score.nll.mean():
            break
        score, before = new, list(tried)
    assert score is not None and score.strength is not None
    start: HeadState | None = None
    for strength in strengths[: list(strengths).index(score.strength) + 1]:
        start = fit_rung(rung, whole, data[-1], strength, start)
    for part, state in zip(everything, [*before, start], strict=True):
        assert state is not None
        linear = rung == "linear"
        part.states[rung] = families.alone(state, part.logits, part.labels) if linear else state
    if rung != "linear":
        return score
    return _score([part.states[rung] for part in parts], held_out, logits, labels, score.strength)


def _fit_kth(
    rung: str,
    parts: list[_Part],
    data: list[FitData],
    strength: float,
    before: list[HeadState | None],
    k: int,
) -> HeadState:
    return fit_rung(rung, parts[k], data[k], strength, before[k])


def _for_each(function: Callable[[int], T], number: int, size: int) -> list[T]:
    """`function(0), function(1), ...`; on threads where arrays are so large that numpy works outside the lock."""
    if size < THREADED_SIZE:
        return [function(k) for k in range(number)]
    with ThreadPoolExecutor(min(number, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, range(number)))


def fit_rung(rung: str, part: _Part, data: FitData, strength: float, start: HeadState | None) -> HeadState:
    """One rung at one strength, started from its parent or from the solution at the strength before."""
    parent_name = PARENTS[rung]
    assert parent_name is not None
    parent = part.states[parent_name]
    if rung == "linear":
        return families.fit_linear(data, parent, strength, start)
    start = start or parent
    if rung in GATES:
        return families.fit_gate(data, parent, strength, start, per_class=rung == "class_gate")
    tied, with_bias = rung.startswith("global"), rung.endswith("bias")
    return families.fit_weights(data, parent, strength, start, tied=tied, with_bias=with_bias)


def choose(scores: dict[str, RungScore], groups: np.ndarray, candidates: Sequence[str]) -> tuple[str, str]:
    """The rule of choice (DESIGN section 4): the simplest rung within one paired standard error of the best.

    A gate is taken only if it loses no held-out accuracy against what would be taken without gates; and nothing is
    taken that does not beat both fallbacks in mean held-out NLL.

    Returns:
        Name (a rung or `best_single`) and the reason.
    """
    chosen, reason = _within_one_error(scores, groups, [name for name in candidates if name not in GATES])
    if any(name in GATES for name in candidates):
        gated, gated_reason = _within_one_error(scores, groups, candidates)
        if gated in GATES and scores[gated].hit.mean() >= scores[chosen].hit.mean():
            chosen, reason = gated, gated_reason
    fallback = min(("sum", "best_single"), key=lambda name: scores[name].nll.mean())
    if chosen != fallback and scores[chosen].nll.mean() >= scores[fallback].nll.mean():
        reason = (
            f"{chosen} ({scores[chosen].nll.mean():.4f}) does not beat the fallback {fallback}"
            f" ({scores[fallback].nll.mean():.4f}) in held-out NLL"
        )
        chosen = fallback
    return chosen, reason


def _within_one_error(scores: dict[str, RungScore], groups: np.ndarray, candidates: Sequence[str]) -> tuple[str, str]:
    best = min(candidates, key=lambda name: scores[name].nll.mean())
    for name in candidates:
        difference = scores[name].nll - scores[best].nll
        error = standard_error(difference, groups)
        if name == best:
            return (
                name,
                f"{name} has the lowest held-out NLL ({scores[name].nll.mean():.4f}) and no simpler rung is near",
            )
        if difference.mean() <= error:
            return name, (
                f"{name} is the simplest rung within one paired standard error of the best: {difference.mean():.4f}"
                f" above {best} ({scores[best].nll.mean():.4f}), standard error {error:.4f}"
            )
    raise AssertionError("the best candidate is among the candidates")

"""The ladder's families: what each may vary, what it shrinks to, and its fit with analytic gradients (L-BFGS-B)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_mmbalance.decision.head import HeadState, evidence, patterns
from hf_mmbalance.decision.objective import LOG_TEMPERATURE_BOUND, minimise, softmax_loss
from hf_mmbalance.metrics.measures import log_softmax


#: Rung -> parent, from stiff to free; `sum` is the root.
PARENTS: dict[str, str | None] = {
    "sum": None,
    "temperature": "sum",
    "global": "temperature",
    "global_bias": "global",
    "class": "global",
    "class_bias": "class",
    "linear": "class_bias",
    "gate": "class_bias",
    "class_gate": "gate",
}
STIFF = ("sum", "temperature", "global")
SHOWN = ("global_bias", "class", "class_bias")  # with `global`: what biases, class weights and both bring
GATES = ("gate", "class_gate")
#: Rungs with a parameter for every pair of classes or every class and piece of evidence; left out above MAX_CLASSES.
WIDE = ("linear", "class_gate")
MAX_CLASSES = 64
SMALLEST_WEIGHT = 1e-4
#: Numbers in one array of a gate's block.
BLOCK = 100_000


@dataclass
class FitData:
    """Clips an allocation is fitted on; clips run along the last axis, which is what makes the fits fast.

    Args:
        scores: `(M, C, N)` log-probabilities, 0 where missing (calibrated ones, or plain ones for `linear`).
        present: `(M, N)` bool, at least two True a clip: a clip with one modality tells nothing about allocation.
        labels: `(N,)`.
        seen: class indices that occur among the labels; the others keep the parent's parameters.
    """

    scores: np.ndarray
    present: np.ndarray
    labels: np.ndarray
    seen: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, labels: np.ndarray) -> FitData:
        """Keep the clips of `(N, M, C)` scores (NaN rows where missing) that at least two modalities saw."""
        present = ~np.isnan(scores[:, :, 0])
        several = present.sum(axis=1) > 1
        if not several.all():
            scores, labels, present = scores[several], labels[several], present[several]
        block = np.ascontiguousarray(scores.transpose(1, 2, 0))
        np.nan_to_num(block, copy=False)
        return cls(block, np.ascontiguousarray(present.T), labels, np.unique(labels))

    @property
    def target(self) -> np.ndarray:
        """Labels as positions in `seen`."""
        return np.searchsorted(self.seen, self.labels)

    @property
    def seen_scores(self) -> np.ndarray:
        """`(M, len(seen), N)`."""
        return self.scores if len(self.seen) == self.scores.shape[1] else self.scores[:, self.seen]


def fit_weights(
    data: FitData, parent: HeadState, strength: float, start: HeadState, *, tied: bool, with_bias: bool
) -> HeadState:
    """Rungs `global`, `global_bias` (tied over classes), `class`, `class_bias`: weights and maybe a bias.

    Minimises mean NLL + strength / (2 N) |theta - parent|^2 over positive weights; convex where no clip misses a
    modality. Classes unseen in the data keep the parent's weights and bias, and do not compete in the softmax.
    """
    seen = data.seen
    parent_weights = parent.weights
    modalities, classes = parent_weights.shape
    shape = (modalities, 1 if tied else len(seen))
    reduce = (lambda w: w.mean(axis=1, keepdims=True)) if tied else (lambda w: w[:, seen])
    size = shape[0] * shape[1]
    anchor = np.concatenate([reduce(parent_weights).ravel(), parent.bias[seen] if with_bias else []])
    first = np.concatenate([reduce(start.weights).ravel(), start.bias[seen] if with_bias else []])
    scores, target, subsets = data.seen_scores, data.target, list(patterns(data.present.T))
    rate = strength / len(target)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        weights = np.broadcast_to(theta[:size].reshape(shape), (modalities, len(seen)))
        logits = _weighted(scores, weights, subsets)
        if with_bias:
            logits += theta[size:, None]
        value, residual = softmax_loss(logits, target)
        slope = _weighted_gradient(scores, weights, subsets, residual)
        slope = slope.sum(axis=1) if tied else slope.ravel()
        gradient = np.concatenate([slope, residual.sum(axis=1)]) if with_bias else slope
        delta = theta - anchor
        return value + 0.5 * rate * float(delta @ delta), gradient + rate * delta

    bounds = [(SMALLEST_WEIGHT, None)] * size + [(None, None)] * (len(first) - size)
    theta = minimise(objective, first, bounds)
    weights, bias = parent_weights.copy(), parent.bias.copy()
    if tied:
        weights[:] = theta[:size].reshape(shape)
    else:
        weights[:, seen] = theta[:size].reshape(shape)
    if with_bias:
        bias[seen] = theta[size:]
    return parent.with_weights(weights, bias)


def fit_linear(data: FitData, parent: HeadState, strength: float, start: HeadState | None) -> HeadState:
    """Rung `linear`: a full map of every modality's log-probabilities and a bias (the Dirichlet rung, Kull 2019).

    Fused logits are sum_m (W_m ell_m) + b; W is shrunk to the parent's weights times its calibration (but for the
    parent's row constants). `data.scores` are plain log-probabilities. `alone` settles what a modality alone says.
    """
    modalities, classes, clips = data.scores.shape
    seen, target = data.seen, data.target
    maps, bias = parent.linear_part()
    anchor = np.concatenate([maps[:, seen].ravel(), bias[seen]])
    first = anchor if start is None else _linear_theta(start, seen)
    size = modalities * len(seen) * classes
    flat = data.scores.reshape(modalities * classes, clips)
    rate = strength / clips

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        w = theta[:size].reshape(modalities, len(seen), classes).transpose(1, 0, 2).reshape(len(seen), -1)
        value, residual = softmax_loss(w @ flat + theta[size:, None], target)
        slope = (residual @ flat.T).reshape(len(seen), modalities, classes).transpose(1, 0, 2)
        delta = theta - anchor
        gradient = np.concatenate([slope.ravel(), residual.sum(axis=1)])
        return value + 0.5 * rate * float(delta @ delta), gradient + rate * delta

    theta = minimise(objective, first)
    maps[:, seen] = theta[:size].reshape(modalities, len(seen), classes)
    bias[seen] = theta[size:]
    neutral = HeadState.plain_sum(modalities, classes)
    return neutral.replace(calibration_map=maps, calibration_bias=np.zeros((modalities, classes)), bias=bias)


def _linear_theta(state: HeadState, seen: np.ndarray) -> np.ndarray:
    assert state.calibration_map is not None
    return np.concatenate([state.calibration_map[:, seen].ravel(), state.bias[seen]])


def alone(state: HeadState, logits: np.ndarray, labels: np.ndarray, strength: float = 1.0) -> HeadState:
    """Calibrate what each modality of a `linear` state says by itself, leaving the fusion of all as it is.

    The map's rows are scaled by T_m and shifted by a bias fitted on the modality's own NLL; weights T_m and the head's
    bias undo both where every modality is present (a row constant goes out in the softmax).
    """
    assert state.calibration_map is not None and state.calibration_bias is not None
    log_temperature, shift = np.zeros(len(state.alpha)), np.zeros_like(state.alpha)
    for m in range(len(state.alpha)):
        rows = ~np.isnan(logits[:, m, 0])
        if not rows.any():
            continue
        mapped, own = state.calibration_map[m] @ log_softmax(logits[rows, m]).T, labels[rows]
        seen = np.unique(own)
        target = np.searchsorted(seen, own)

        def objective(
            theta: np.ndarray, mapped: np.ndarray = mapped[seen], target: np.ndarray = target
        ) -> tuple[float, np.ndarray]:
            value, residual = softmax_loss(theta[0] * mapped + theta[1:, None], target)
            delta = theta - np.eye(len(theta))[0]
            slope = np.concatenate([[np.vdot(residual, mapped)], residual.sum(axis=1)])
            rate = strength / len(target)
            return value + 0.5 * rate * float(delta @ delta), slope + rate * delta

        bounds = [(np.exp(-LOG_TEMPERATURE_BOUND), np.exp(LOG_TEMPERATURE_BOUND))] + [(None, None)] * len(seen)
        theta = minimise(objective, np.eye(len(seen) + 1)[0], bounds)
        log_temperature[m] = -np.log(theta[0])
        shift[m, seen] = theta[1:] / theta[0]
    weights = np.repeat(np.exp(log_temperature)[:, None], state.alpha.shape[1], axis=1)
    changed = state.replace(
        log_temperature=log_temperature,
        calibration_bias=state.calibration_bias + shift,
        bias=state.bias - shift.sum(axis=0),
    )
    return changed.with_weights(weights)


def fit_gate(data: FitData, parent: HeadState, strength: float, start: HeadState, *, per_class: bool) -> HeadState:
    """Rungs `gate` and `class_gate`: shares that move with how sure every modality is of the clip.

    Free are alpha, log kappa and the bias (shrunk to the parent's) and the gate (shrunk to the parent's gate, or 0),
    on evidence standardised over the clips; not convex, started from `start`.
    """
    seen, (modalities, _) = data.seen, parent.alpha.shape
    sure = evidence(data.scores.transpose(2, 0, 1), data.present.T)
    centre, spread = sure.mean(axis=0), np.maximum(sure.std(axis=0), 1e-3)
    blocks = _gate_blocks(data, ((sure - centre) / spread).T)
    count, width = len(seen), sure.shape[1]
    gate_shape = (modalities, count, width) if per_class else (modalities, width)
    cuts = np.cumsum([modalities * count, count, count])

    def pack(state: HeadState) -> np.ndarray:
        gate = _gate_of(state, per_class)[:, seen] if per_class else _gate_of(state, per_class)
        alpha = state.alpha[:, seen] + (gate @ centre if per_class else (gate @ centre)[:, None])
        return np.concatenate([alpha.ravel(), state.log_kappa[seen], state.bias[seen], (gate * spread).ravel()])

    anchor, rate = pack(parent), strength / len(data.labels)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        alpha, log_kappa, bias, gate = np.split(theta, cuts)
        delta = theta - anchor
        value, slope = 0.5 * rate * float(delta @ delta), rate * delta
        for block in blocks:
            loss, by_parameter = block.loss(alpha.reshape(modalities, -1), log_kappa, bias, gate.reshape(gate_shape))
            value += loss * len(block.target) / len(data.labels)
            slope += by_parameter * (len(block.target) / len(data.labels))
        return value, slope

    theta = minimise(objective, pack(start))
    alpha, log_kappa, bias, flat_gate = np.split(theta, cuts)
    gate = flat_gate.reshape(gate_shape) / spread
    state = parent.replace(alpha=parent.alpha.copy(), log_kappa=parent.log_kappa.copy(), bias=parent.bias.copy())
    shift = gate @ centre if per_class else (gate @ centre)[:, None]
    state.alpha[:, seen] = alpha.reshape(modalities, count) - shift
    state.log_kappa[seen], state.bias[seen] = log_kappa, bias
    if not per_class:
        return state.replace(gate_weight=gate)
    full = _gate_of(parent, per_class).copy()
    full[:, seen] = gate
    return state.replace(gate_weight=full)


@dataclass
class _GateBlock:
    """Clips of a gate's fit, so few that their arrays stay in the processor's cache.

    Args:
        scores: `(M, C, B)`; sure: `(E, B)` standardised evidence; present: `(M, B)`; target: `(B,)`.
    """

    scores: np.ndarray
    sure: np.ndarray
    present: np.ndarray
    target: np.ndarray

    def loss(
        self, alpha: np.ndarray, log_kappa: np.ndarray, bias: np.ndarray, gate: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Mean NLL and its gradient by alpha, log kappa, bias and gate, one after the other."""
        share = _shares(alpha, gate, self.sure, self.present)
        pooled = np.einsum("mcn,mcn->cn", share, self.scores)
        kappa = self.present.mean(axis=0) * np.exp(log_kappa)[:, None]
        value, residual = softmax_loss(kappa * pooled + bias[:, None], self.target)
        residual_kappa = residual * kappa
        push = self.scores - pooled
        push *= share
        push *= residual_kappa
        by_gate = push @ self.sure.T if gate.ndim == 3 else push.sum(axis=1) @ self.sure.T
        by_kappa = np.einsum("cn,cn->c", residual_kappa, pooled)
        return value, np.concatenate([push.sum(axis=2).ravel(), by_kappa, residual.sum(axis=1), by_gate.ravel()])


def _gate_blocks(data: FitData, sure: np.ndarray) -> list[_GateBlock]:
    scores, target = data.seen_scores, data.target
    size = max(64, BLOCK // (scores.shape[0] * scores.shape[1]))
    parts = [slice(start, start + size) for start in range(0, len(target), size)]
    return [
        _GateBlock(np.ascontiguousarray(scores[..., part]), sure[:, part], data.present[:, part], target[part])
        for part in parts
    ]


def _shares(alpha: np.ndarray, gate: np.ndarray, sure: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Shares `(M, C, N)` of `head.gated_share`, with clips last and evidence `(E, N)`."""
    if gate.ndim == 2:
        push = gate @ sure
        push = np.exp(push - push.max(axis=0)) * present
        share = np.exp(alpha - alpha.max(axis=0))[:, :, None] * push[:, None]
    else:
        share = gate @ sure
        share += alpha[:, :, None]
        share -= share.max(axis=0)
        np.exp(share, out=share)
        share *= present[:, None]
    total = share.sum(axis=0)
    share /= np.maximum(total, np.finfo(np.float64).tiny)
    return share


def _gate_of(state: HeadState, per_class: bool) -> np.ndarray:
    modalities, classes = state.alpha.shape
    gate = np.zeros((modalities, 3 * modalities)) if state.gate_weight is None else state.gate_weight
    return np.repeat(gate[:, None], classes, axis=1) if per_class and gate.ndim == 2 else gate


def _weighted(scores: np.ndarray, weights: np.ndarray, subsets: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Fused logits `(C, N)` where every subset present has its own rescaled weights."""
    if len(subsets) == 1 and len(subsets[0][0]) == len(scores):
        return np.einsum("mcn,mc->cn", scores, weights)
    logits = np.empty(scores.shape[1:])
    for members, clips in subsets:
        scale = weights.sum(axis=0) * len(members) / len(weights) / weights[members].sum(axis=0)
        logits[:, clips] = np.einsum("mcn,mc->cn", scores[members][:, :, clips], weights[members] * scale)
    return logits


def _weighted_gradient(
    scores: np.ndarray, weights: np.ndarray, subsets: list[tuple[np.ndarray, np.ndarray]], residual: np.ndarray
) -> np.ndarray:
    """Gradient `(M, C)` of the loss by the weights of all modalities, given its gradient `(C, N)` by the logits."""
    if len(subsets) == 1 and len(subsets[0][0]) == len(scores):
        return np.einsum("mcn,cn->mc", scores, residual)
    gradient = np.zeros(weights.shape)
    total = weights.sum(axis=0)
    for members, clips in subsets:
        by_effective = np.einsum("mcn,cn->mc", scores[members][:, :, clips], residual[:, clips])
        inside = weights[members].sum(axis=0)
        part = len(members) / len(weights)
        moved = (by_effective * weights[members]).sum(axis=0) * part
        gradient += moved / inside
        gradient[members] += part * total / inside * by_effective - moved * total / inside**2
    return gradient

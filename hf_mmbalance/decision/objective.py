"""The one loss of the decision layer, its minimiser, and the fit of a temperature."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize

from hf_mmbalance.metrics.measures import log_softmax


LOG_TEMPERATURE_BOUND = 4.0
#: Value and gradient at a flat vector.
Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


def softmax_loss(logits: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean NLL of logits `(C, N)` and its gradient by them; works in place on `logits`."""
    clips = np.arange(len(target))
    logits -= logits.max(axis=0)
    hit = logits[target, clips]
    np.exp(logits, out=logits)
    total = logits.sum(axis=0)
    value = float((np.log(total) - hit).mean())
    logits /= total * len(target)
    logits[target, clips] -= 1 / len(target)
    return value, logits


def minimise(
    objective: Objective, start: np.ndarray, bounds: Sequence[tuple[float | None, float | None]] | None = None
) -> np.ndarray:
    """L-BFGS-B from `start`; stops where a step gains less than 3e-8 nats a clip, far below any standard error."""
    options = {"maxiter": 300, "maxcor": 20, "ftol": 3e-8, "gtol": 1e-5}
    return np.asarray(minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x)


def fit_temperatures(logits: np.ndarray, labels: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """log T `(M,)` of every modality from its own NLL (Guo et al. 2017), shrunk to 0 as by a normal prior.

    Args:
        logits: `(N, M, C)`, NaN rows where missing.
        labels: `(N,)`.
        strength: precision of the prior on log T; a modality without clips keeps T = 1.
    """
    result = np.zeros(logits.shape[1])
    for m in range(logits.shape[1]):
        rows = ~np.isnan(logits[:, m, 0])
        if rows.any():
            result[m] = fit_temperature(logits[rows, m], labels[rows], strength)
    return result


def fit_temperature(logits: np.ndarray, labels: np.ndarray, strength: float = 1.0) -> float:
    """log T of one set of logits `(N, C)`; the NLL is convex in 1 / T, so a guarded search is exact."""
    scores = np.ascontiguousarray(log_softmax(logits).T)
    rate = strength / len(labels)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        inverse = np.exp(-theta[0])
        value, residual = softmax_loss(scores * inverse, labels)
        slope = -inverse * np.vdot(residual, scores) + rate * theta[0]
        return value + 0.5 * rate * theta[0] ** 2, np.array([slope])

    return float(minimise(objective, np.zeros(1), [(-LOG_TEMPERATURE_BOUND, LOG_TEMPERATURE_BOUND)])[0])

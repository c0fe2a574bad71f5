"""Linear heads on frozen features: fitted, not stepped, with logits of every clip from heads that never saw it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression

from hf_mmbalance.metrics.measures import log_softmax


#: Weights of the L2 penalty per clip, for features of mean squared norm 1, strongest first.
PENALTIES = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
LOG_TEMPERATURES = (-3.0, 6.0)  # bounds of the search


@dataclass
class LinearHead:
    """Logits = features @ weight.T + bias.

    Attributes:
        weight: `(C, D)`.
        bias: `(C,)`.
        penalty: the weight of the L2 penalty that was chosen.
        temperature: by which the fitted logits were divided; `weight` and `bias` are those after it.
        nll: penalty -> held-out NLL in nats per clip, each at its own temperature.
    """

    weight: np.ndarray
    bias: np.ndarray
    penalty: float
    temperature: float = 1.0
    nll: dict[float, float] = field(default_factory=dict)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Logits `(N, C)` of features `(N, D)`."""
        return features @ self.weight.T + self.bias


def fit_head(
    features: np.ndarray, labels: np.ndarray, classes: int, folds: np.ndarray, weights: np.ndarray | None = None
) -> tuple[LinearHead, np.ndarray]:
    """Multinomial logistic regression whose penalty and temperature are chosen by held-out NLL over folds.

    It minimises sum_i w_i CE_i / sum_i w_i + penalty / 2 |W|^2, the bias left free. Where there are fewer clips than
    dimensions, the same minimum is found in the span of the clips. Each penalty is judged at the temperature that its
    held-out logits need, by which the head is divided: with few clips the penalty of the best decisions gives
    over-confident logits, and a tower that knows nothing about the classes must say so.

    Args:
        features: `(N, D)`.
        labels: `(N,)` in 0..C-1.
        classes: C.
        folds: `(N,)` fold of every row; rows of one clip or group share one.
        weights: `(N,)` of the rows, e.g. 1 / (draws of the clip).

    Returns:
        The head fitted on all rows, and `(N, C)` held-out logits: those of a row come from the rows of other folds.

    Raises:
        ValueError: fewer than two classes, or fewer than two folds, have rows.
    """
    labels, folds = np.asarray(labels), np.asarray(folds)
    if len(np.unique(labels)) < 2 or len(np.unique(folds)) < 2:
        raise ValueError("a head needs clips of at least two classes, in at least two folds")
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    basis = _Basis.of(features)
    points = basis.points(features)
    held_out: dict[float, np.ndarray] = {}
    for penalty in PENALTIES:
        logits = np.empty((len(labels), classes))
        for fold in np.unique(folds):
            learn, judge = folds != fold, folds == fold
            weight, bias = _fit(points[learn], labels[learn], weights[learn], classes, penalty)
            logits[judge] = points[judge] @ weight.T + bias
        held_out[penalty] = logits
    scaled = {penalty: _temperature(logits, labels, weights) for penalty, logits in held_out.items()}
    losses = {penalty: loss for penalty, (_, loss) in scaled.items()}
    best = min(losses, key=lambda penalty: losses[penalty])  # the strongest of equal ones
    temperature = scaled[best][0]
    weight, bias = basis.raw(*_fit(points, labels, weights, classes, best))
    head = LinearHead(weight / temperature, bias / temperature, best, temperature, losses)
    return head, held_out[best] / temperature


@dataclass
class _Basis:
    """Centred features of mean squared norm 1, in coordinates of the clips' span where that has fewer dimensions."""

    mean: np.ndarray
    scale: float
    directions: np.ndarray | None  # (D, R) orthonormal

    @classmethod
    def of(cls, features: np.ndarray) -> _Basis:
        mean = features.mean(0, dtype=np.float64)
        centred = features - mean
        scale = float(np.sqrt((centred**2).sum(1).mean())) or 1.0
        directions = None
        if len(features) < features.shape[1]:
            _, values, right = np.linalg.svd(centred / scale, full_matrices=False)
            directions = right[values > 1e-10 * values[0]].T
        return cls(mean, scale, directions)

    def points(self, features: np.ndarray) -> np.ndarray:
        scaled = (features - self.mean) / self.scale
        return scaled if self.directions is None else scaled @ self.directions

    def raw(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same head on raw features."""
        if self.directions is not None:
            weight = weight @ self.directions.T
        weight = weight / self.scale
        return weight, bias - weight @ self.mean


def _fit(
    points: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: int, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weight `(C, R)` and bias `(C,)`. A class without clips scores as the mean class less log(2 N)."""
    total = weights.sum()
    weight, bias = np.zeros((classes, points.shape[1])), np.full(classes, -np.log(2 * total))
    known = np.unique(labels)
    if len(known) == 1:
        bias[known] = 0.0
        return weight, bias
    model = LogisticRegression(C=1 / (penalty * total), max_iter=1000, tol=1e-5)
    model.fit(points, labels, sample_weight=weights)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(known) == 2:  # scikit-learn keeps one row, the difference of the two
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight[known], bias[known] = coefficients - coefficients.mean(0), intercepts - intercepts.mean()
    return weight, bias


def _temperature(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """The temperature of the lowest NLL (Guo et al., 2017), and that NLL."""
    found = minimize_scalar(
        lambda log_t: _nll(logits * np.exp(-log_t), labels, weights), bounds=LOG_TEMPERATURES, method="bounded"
    )
    return float(np.exp(found.x)), float(found.fun)


def _nll(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    losses = -log_softmax(logits)[np.arange(len(labels)), labels]
    return float((weights * losses).sum() / weights.sum())

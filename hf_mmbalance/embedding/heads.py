"""Linear heads on frozen features, fitted without gradient steps.

The held-out logits of a clip come from heads that never saw it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize_scalar

from hf_mmbalance.metrics.measures import log_softmax


#: Values that can be added to every variance, strongest first: 10 to 1e-5, for features of mean squared norm 1.
SHRINKAGES = tuple((10.0 ** np.arange(1, -5.5, -0.5)).tolist())
LOG_TEMPERATURES = (-12.0, 6.0)  # bounds of the search


@dataclass
class LinearHead:
    """A linear head: logits = features @ weight.T + bias.

    Attributes:
        weight: `(C, D)`.
        bias: `(C,)`.
        shrinkage: the chosen value that was added to the variances.
        temperature: divisor of the fitted logits; `weight` and `bias` are already divided by it.
        nll: shrinkage -> held-out NLL in nats per clip, each at its own temperature.
    """

    weight: np.ndarray
    bias: np.ndarray
    shrinkage: float
    temperature: float = 1.0
    nll: dict[float, float] = field(default_factory=dict)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return logits `(N, C)` of features `(N, D)`."""
        return features @ self.weight.T + self.bias


def fit_head(
    features: np.ndarray, labels: np.ndarray, classes: int, folds: np.ndarray, weights: np.ndarray | None = None
) -> tuple[LinearHead, np.ndarray]:
    """Fit a regularised linear discriminant analysis; held-out NLL over folds selects shrinkage and temperature.

    Classes are normal with one covariance S, and logits are their log posteriors (Friedman, "Regularized Discriminant
    Analysis", 1989, with lambda = 1). With x0 the mean of all clips and m_c the mean of class c minus x0,

        logit_c(x) = m_c' (S + shrinkage I)^-1 (x - x0 - m_c / 2) + log prior_c

    A class can have as few as two clips, so two estimates are shrunk further. Each class mean is computed as if one
    more clip lay at x0 (the posterior mean under a normal prior with covariance S), and each prior as if the class had
    one more clip. Each shrinkage is judged at the temperature that its held-out logits need, and the head is divided
    by it: with few clips, the shrinkage with the best decisions gives over-confident logits, and a tower that knows
    nothing about the classes must not look confident. Logistic regression is clearly worse with few clips
    (docs/results.md).

    Args:
        features: `(N, D)`.
        labels: `(N,)` in 0..C-1.
        classes: C.
        folds: `(N,)` fold of every row; all rows of a clip or group have the same fold.
        weights: `(N,)` weight of every row, e.g. 1 / (draws of the clip).

    Returns:
        The head fitted on all rows, and `(N, C)` held-out logits: a row is predicted by a head fitted on other folds.

    Raises:
        ValueError: fewer than two classes or fewer than two folds have rows.
    """
    labels, folds = np.asarray(labels), np.asarray(folds)
    if len(np.unique(labels)) < 2 or len(np.unique(folds)) < 2:
        raise ValueError("a head needs clips of at least two classes, in at least two folds")
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    basis = _Basis.of(features)
    points = basis.points(features)
    held_out = {shrinkage: np.empty((len(labels), classes)) for shrinkage in SHRINKAGES}
    for fold in np.unique(folds):
        learn, judge = folds != fold, folds == fold
        found = _Discriminant.of(points[learn], labels[learn], weights[learn], classes)
        for shrinkage, logits in held_out.items():
            weight, bias = found.head(shrinkage)
            logits[judge] = points[judge] @ weight.T + bias
    scaled = {shrinkage: smoothed_temperature(logits, labels, weights) for shrinkage, logits in held_out.items()}
    losses = {shrinkage: loss for shrinkage, (_, loss) in scaled.items()}
    best = min(losses, key=lambda shrinkage: losses[shrinkage])  # of equal ones, the strongest
    temperature = scaled[best][0]
    weight, bias = basis.raw(*_Discriminant.of(points, labels, weights, classes).head(best))
    head = LinearHead(weight / temperature, bias / temperature, best, temperature, losses)
    return head, held_out[best] / temperature


@dataclass
class _Basis:
    """Centred features of mean squared norm 1, in coordinates of the clips' span if that has fewer dimensions."""

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
        """Convert a head on these coordinates to the same head on raw features."""
        if self.directions is not None:
            weight = weight @ self.directions.T
        weight = weight / self.scale
        return weight, bias - weight @ self.mean


@dataclass
class _Discriminant:
    """Class means and the eigenvectors of the within-class covariance, so that each shrinkage costs one product."""

    centre: np.ndarray  # (R,) mean of all clips
    means: np.ndarray  # (C, R), shrunk, minus the centre
    turned: np.ndarray  # (C, R) coordinates of the means along the eigenvectors
    variances: np.ndarray  # (R,) eigenvalues
    directions: np.ndarray  # (R, R) eigenvectors
    counts: np.ndarray  # (C,) clips (sums of weights)

    @classmethod
    def of(cls, points: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: int) -> _Discriminant:
        one_hot = np.eye(classes)[labels] * weights[:, None]
        counts, centre = one_hot.sum(0), weights @ points / weights.sum()
        means = one_hot.T @ points / np.maximum(counts, 1e-300)[:, None] - centre
        within = (points - centre - means[labels]) * np.sqrt(weights / weights.sum())[:, None]
        variances, directions = np.linalg.eigh(within.T @ within)
        means *= (counts / (counts + 1))[:, None]
        return cls(centre, means, means @ directions, np.maximum(variances, 0), directions, counts)

    def head(self, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
        """Return weight `(C, R)` and bias `(C,)`; a class without clips scores as the mean class minus log(2 N)."""
        weight = self.turned / (self.variances + shrinkage) @ self.directions.T
        total, known = self.counts.sum(), self.counts > 0
        bias = (
            np.log((self.counts + 1) / (total + len(known))) - weight @ self.centre - (weight * self.means).sum(1) / 2
        )
        weight, bias = weight - weight[known].mean(0), bias - bias[known].mean()
        weight[~known], bias[~known] = 0.0, -np.log(2 * total)
        return weight, bias


def smoothed_temperature(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return the temperature with the lowest NLL of smoothed labels (Guo et al., 2017), and its NLL without smoothing.

    Labels are smoothed by 1 / (N + 1), as if there were one more clip of unknown class (cf. Platt, 1999). Without
    smoothing, if every held-out decision is right, a lower temperature would always be better.

    Args:
        logits: `(N, C)`, held out.
        labels: `(N,)`.
        weights: `(N,)` weight of every row; their sum is N.
    """
    share = 1 / (weights.sum() + 1)

    def smoothed(log_t: float) -> float:
        scaled = log_softmax(logits * np.exp(-log_t))
        losses = -(1 - share) * scaled[np.arange(len(labels)), labels] - share * scaled.mean(1)
        return float((weights * losses).sum() / weights.sum())

    temperature = float(np.exp(minimize_scalar(smoothed, bounds=LOG_TEMPERATURES, method="bounded").x))
    return temperature, _nll(logits / temperature, labels, weights)


def _nll(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    losses = -log_softmax(logits)[np.arange(len(labels)), labels]
    return float((weights * losses).sum() / weights.sum())

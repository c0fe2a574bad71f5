"""Calibration of one modality: temperature, vector scaling, Dirichlet with ODIR, and isotonic as a reference."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.isotonic import IsotonicRegression

from hf_mmbalance.decision.head import HeadState
from hf_mmbalance.decision.objective import fit_temperature, minimise, softmax_loss
from hf_mmbalance.metrics.measures import log_softmax


class Calibration(TransformerMixin, BaseEstimator):
    """Base: `fit(logits (N, C), labels (N,))`, `transform(logits)` -> calibrated log-probabilities `(N, C)`.

    Logits are log-softmaxed on entering. Classes without clips in the fit keep their own neutral parameters and do not
    compete in it.
    """

    log_temperature_: float
    scale_: np.ndarray | None
    map_: np.ndarray | None
    bias_: np.ndarray | None

    def fit(self, logits: Any, labels: Any) -> Self:
        """Fit on held-out clips.

        Raises:
            ValueError: if the shapes do not fit each other, logits are not finite or labels lie outside.
        """
        scores, labels = log_softmax(logits), np.asarray(labels)
        if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
            raise ValueError(f"expected logits (N, C) and labels (N,); got {scores.shape} and {labels.shape}.")
        if not np.isfinite(scores).all():
            raise ValueError("logits hold NaN or inf; leave out the clips where the modality is missing.")
        if labels.min() < 0 or labels.max() >= scores.shape[1]:
            raise ValueError(f"labels must lie in 0..{scores.shape[1] - 1}.")
        self.scale_ = self.map_ = self.bias_ = None
        self.log_temperature_ = fit_temperature(scores, labels)
        self._fit(scores, labels)
        return self

    def _fit(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """What a subclass fits beyond the temperature."""

    def transform(self, logits: Any) -> np.ndarray:
        """Calibrated log-probabilities `(N, C)`."""
        scores = log_softmax(logits)
        if self.map_ is not None:
            scores = scores @ self.map_.T
        if self.scale_ is not None:
            scores = scores * self.scale_
        if self.bias_ is not None:
            scores = scores + self.bias_
        return log_softmax(scores / np.exp(self.log_temperature_))


class TemperatureScaling(Calibration):
    """One temperature (Guo et al. 2017, section 4.2): leaves every decision as it is."""


class VectorScaling(Calibration):
    """A scale and a bias a class (Guo et al. 2017, section 4.2), shrunk to temperature scaling.

    Args:
        strength: precision of the normal prior on scale - 1 and bias.
    """

    def __init__(self, strength: float = 3.0) -> None:
        self.strength = strength

    def _fit(self, scores: np.ndarray, labels: np.ndarray) -> None:
        seen, target = np.unique(labels, return_inverse=True)
        part = np.ascontiguousarray(scores[:, seen].T) / np.exp(self.log_temperature_)
        warm = np.exp(self.log_temperature_)
        anchor = np.concatenate([np.ones(len(seen)), np.zeros(len(seen))])
        rate = self.strength / len(target)

        def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
            scale, bias = np.split(theta, 2)
            value, residual = softmax_loss(scale[:, None] * part + bias[:, None], target)
            delta = theta - anchor
            slope = np.concatenate([np.einsum("cn,cn->c", residual, part), residual.sum(axis=1)])
            return value + 0.5 * rate * float(delta @ delta), slope + rate * delta

        scale, bias = np.split(minimise(objective, anchor), 2)
        self.scale_, self.bias_ = np.ones(scores.shape[1]), np.zeros(scores.shape[1])
        self.scale_[seen], self.bias_[seen] = scale, bias * warm


class DirichletCalibration(Calibration):
    """A full linear map of log-probabilities (Kull et al. 2019), with ODIR regularisation.

    Off-diagonal and intercept regularisation: the off-diagonal and the intercept are shrunk to 0 (Kull et al. 2019,
    section 3.4), the diagonal is free but for a weak pull to temperature scaling.

    Args:
        strength: precision of the normal prior on off-diagonal entries.
        bias_strength: the same for the intercept.
        diagonal_strength: the same for diagonal - 1.
    """

    def __init__(self, strength: float = 10.0, bias_strength: float = 3.0, diagonal_strength: float = 0.3) -> None:
        self.strength = strength
        self.bias_strength = bias_strength
        self.diagonal_strength = diagonal_strength

    def _fit(self, scores: np.ndarray, labels: np.ndarray) -> None:
        seen, target = np.unique(labels, return_inverse=True)
        classes = scores.shape[1]
        warm = np.exp(self.log_temperature_)
        part = np.ascontiguousarray(scores.T) / warm
        eye = np.eye(classes)[seen]
        anchor = np.concatenate([eye.ravel(), np.zeros(len(seen))])
        diagonal = np.where(eye.ravel() > 0, self.diagonal_strength, self.strength)
        rate = np.concatenate([diagonal, np.full(len(seen), self.bias_strength)]) / len(target)

        def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
            w = theta[: eye.size].reshape(eye.shape)
            value, residual = softmax_loss(w @ part + theta[eye.size :, None], target)
            delta = theta - anchor
            slope = np.concatenate([(residual @ part.T).ravel(), residual.sum(axis=1)])
            return value + 0.5 * float(rate @ delta**2), slope + rate * delta

        theta = minimise(objective, anchor)
        self.map_, self.bias_ = np.eye(classes), np.zeros(classes)
        self.map_[seen] = theta[: eye.size].reshape(eye.shape)
        self.bias_[seen] = theta[eye.size :] * warm


class IsotonicCalibration(Calibration):
    """One isotonic regression a class against the rest, normalised (Zadrozny & Elkan 2002); a reference only.

    It has no place in the model's head and, being flat between its steps, makes ties.

    Args:
        floor: smallest probability given to a class.
    """

    def __init__(self, floor: float = 1e-3) -> None:
        self.floor = floor

    def _fit(self, scores: np.ndarray, labels: np.ndarray) -> None:
        probabilities = np.exp(scores)
        self.regressions_ = [
            IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(probabilities[:, c], labels == c)
            for c in range(scores.shape[1])
        ]

    def transform(self, logits: Any) -> np.ndarray:
        """Calibrated log-probabilities `(N, C)`."""
        probabilities = np.exp(log_softmax(logits))
        columns = [regression.predict(probabilities[:, c]) for c, regression in enumerate(self.regressions_)]
        return log_softmax(np.log(np.maximum(np.stack(columns, axis=1), self.floor)))


CALIBRATIONS: dict[str, type[Calibration]] = {
    "temperature": TemperatureScaling,
    "vector": VectorScaling,
    "dirichlet": DirichletCalibration,
    "isotonic": IsotonicCalibration,
}
#: Those the model's adaptive head can hold.
HEAD_CALIBRATIONS = ("temperature", "vector", "dirichlet")


def calibrated_state(kind: str, logits: np.ndarray, labels: np.ndarray) -> HeadState:
    """A plain sum of calibrated modalities, each calibrated on the clips where it is present.

    Args:
        kind: "temperature", "vector" or "dirichlet".
        logits: `(N, M, C)`, NaN rows where missing.
        labels: `(N,)`.

    Raises:
        ValueError: for a kind that the head cannot hold.
    """
    if kind not in HEAD_CALIBRATIONS:
        raise ValueError(f"calibration {kind!r} is unknown; choose among {', '.join(HEAD_CALIBRATIONS)}.")
    modalities, classes = logits.shape[1:]
    state = HeadState.plain_sum(modalities, classes)
    scale, maps = np.ones((modalities, classes)), np.repeat(np.eye(classes)[None], modalities, axis=0)
    bias = np.zeros((modalities, classes))
    for m in range(modalities):
        rows = ~np.isnan(logits[:, m, 0])
        if not rows.any():
            continue
        fitted = CALIBRATIONS[kind]().fit(logits[rows, m], labels[rows])
        state.log_temperature[m] = fitted.log_temperature_
        scale[m] = scale[m] if fitted.scale_ is None else fitted.scale_
        maps[m] = maps[m] if fitted.map_ is None else fitted.map_
        bias[m] = bias[m] if fitted.bias_ is None else fitted.bias_
    if kind == "vector":
        return state.replace(calibration_scale=scale, calibration_bias=bias)
    if kind == "dirichlet":
        return state.replace(calibration_map=maps, calibration_bias=bias)
    return state

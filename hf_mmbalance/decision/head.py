"""The state of an adaptive head as arrays, and the head's own arithmetic in numpy (float64)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.metrics.measures import log_softmax


EVIDENCE_SIZE = 3
NEGLIGIBLE = -30.0


@dataclass
class HeadState:
    """Parameters of `model.fusion` when `fusion="adaptive"`; what every rung and fallback is a value of.

    fused_c = sum_m w_mc zhat_mc + b_c, w_mc = kappa_c |S| / M share_mc, share = softmax over the modalities present of
    (alpha_mc + gate), zhat_m = log_softmax(g_m(log_softmax(z_m)) / T_m). With one modality present kappa = 1, b = 0.

    Args:
        log_temperature: `(M,)`.
        alpha: `(M, C)` class-level allocation.
        log_kappa: `(C,)` log of the summed weights.
        bias: `(C,)`.
        calibration_scale: `(M, C)` (vector scaling) or None.
        calibration_map: `(M, C, C)` (Dirichlet) or None.
        calibration_bias: `(M, C)` (vector scaling, Dirichlet) or None.
        gate_weight: `(M, 3M)`, `(M, C, 3M)` or None.
    """

    log_temperature: np.ndarray
    alpha: np.ndarray
    log_kappa: np.ndarray
    bias: np.ndarray
    calibration_scale: np.ndarray | None = None
    calibration_map: np.ndarray | None = None
    calibration_bias: np.ndarray | None = None
    gate_weight: np.ndarray | None = None

    @classmethod
    def plain_sum(cls, modalities: int, classes: int) -> HeadState:
        """The neutral state: every weight 1, nothing calibrated."""
        return cls(
            log_temperature=np.zeros(modalities),
            alpha=np.zeros((modalities, classes)),
            log_kappa=np.full(classes, np.log(modalities)),
            bias=np.zeros(classes),
        )

    @property
    def calibration(self) -> str:
        """`calibration` option of the head."""
        if self.calibration_map is not None:
            return "dirichlet"
        return "temperature" if self.calibration_scale is None else "vector"

    @property
    def gate(self) -> str:
        """`gate` option of the head."""
        if self.gate_weight is None:
            return "none"
        return "modality" if self.gate_weight.ndim == 2 else "class"

    @property
    def weights(self) -> np.ndarray:
        """`(M, C)` weights with every modality present, before any gate."""
        return np.exp(self.log_kappa) * np.exp(log_softmax(self.alpha, axis=0))

    def class_weights(self, logits: np.ndarray) -> np.ndarray:
        """`(M, C)`: what a modality's evidence for a class counts for that class, for tables and figures.

        The mean weight over the clips that every modality saw; where a full map stands before it (Dirichlet), its
        diagonal less the mean of the rest of the column, over the temperature: what a map that is diagonal would have.
        """
        full = ~np.isnan(logits).any(axis=(1, 2))
        weights = self.fuse(logits[full])[1].mean(axis=0) if self.gate != "none" and full.any() else self.weights
        if self.calibration_map is None:
            return weights
        classes = self.alpha.shape[1]
        diagonal = np.einsum("mcc->mc", self.calibration_map)
        rest = (self.calibration_map.sum(axis=1) - diagonal) / (classes - 1)
        return weights * (diagonal - rest) / np.exp(self.log_temperature)[:, None]

    def with_weights(self, weights: np.ndarray, bias: np.ndarray | None = None) -> HeadState:
        """The same calibration under weights `(M, C)` (positive) and a bias `(C,)`."""
        changes = {"alpha": np.log(weights), "log_kappa": np.log(weights.sum(axis=0))}
        return self.replace(**changes, bias=self.bias if bias is None else bias)

    def replace(self, **changes: np.ndarray | None) -> HeadState:
        """A copy with some parameters changed."""
        return HeadState(**{field.name: getattr(self, field.name) for field in fields(self)} | changes)

    def linear_part(self) -> tuple[np.ndarray, np.ndarray]:
        """Map `(M, C, C)` and bias `(C,)` on log-probabilities that give the fused logits but for row constants."""
        modalities, classes = self.alpha.shape
        maps = np.repeat(np.eye(classes)[None], modalities, axis=0)
        maps = maps if self.calibration_map is None else self.calibration_map.copy()
        if self.calibration_scale is not None:
            maps = self.calibration_scale[:, :, None] * maps
        factor = self.weights / np.exp(self.log_temperature)[:, None]
        shift = 0.0 if self.calibration_bias is None else (factor * self.calibration_bias).sum(axis=0)
        return factor[:, :, None] * maps, self.bias + shift

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters that are set, by the names of the head's parameters."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def calibrated(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated log-probabilities `(N, M, C)` of logits `(N, M, C)`; NaN rows stay NaN."""
        scores = log_softmax(logits)
        if self.calibration_map is not None:
            scores = np.stack([scores[:, m] @ self.calibration_map[m].T for m in range(scores.shape[1])], axis=1)
        if self.calibration_scale is not None:
            scores = self.calibration_scale * scores
        if self.calibration_bias is not None:
            scores = scores + self.calibration_bias
        return log_softmax(scores / np.exp(self.log_temperature)[:, None])

    def fuse(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fused logits `(N, C)`, weights `(N, M, C)` and contributions `(N, M, C)` of logits `(N, M, C)`."""
        return self.fuse_calibrated(self.calibrated(logits))

    def fuse_calibrated(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`fuse` for scores that `calibrated` has returned already."""
        present = ~np.isnan(scores).any(axis=2)
        scores = np.where(present[..., None], scores, 0.0)
        number = present.sum(axis=1)
        if self.gate_weight is None:
            share = np.zeros_like(scores)
            for subset, rows in patterns(present):
                share[np.ix_(rows, subset)] = np.exp(log_softmax(self.alpha[subset], axis=0))
        else:
            share = gated_share(self.alpha, self.gate_weight, evidence(scores, present), present)
        several = (number > 1)[:, None]
        kappa = np.where(several, np.exp(self.log_kappa) * (number / present.shape[1])[:, None], 1.0)
        weights = kappa[:, None, :] * share
        contributions = weights * scores
        return contributions.sum(axis=1) + np.where(several, self.bias, 0.0), weights, contributions


def patterns(present: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Subsets of modalities that occur: (indices of modalities, indices of rows); rows with none are left out."""
    code = present @ (1 << np.arange(present.shape[1]))
    for value in np.unique(code[code > 0]):
        yield np.flatnonzero(value >> np.arange(present.shape[1]) & 1), np.flatnonzero(code == value)


def evidence(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    """How sure each modality is: entropy / log C, margin p1 - p2 and largest probability; `(N, 3M)`, 0 where missing.

    Args:
        scores: `(N, M, C)` calibrated log-probabilities, finite everywhere.
        present: `(N, M)` bool.
    """
    probabilities = np.exp(scores)
    entropy = -(probabilities * scores).sum(axis=2) / np.log(scores.shape[2])
    top = np.partition(probabilities, -2, axis=2)[..., -2:]
    stacked = np.stack([entropy, top[..., 1] - top[..., 0], top[..., 1]], axis=2)
    return np.where(present[..., None], stacked, 0.0).reshape(len(scores), -1)


def gated_share(alpha: np.ndarray, gate: np.ndarray, sure: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Shares `(N, M, C)` over the modalities present, from alpha `(M, C)` and a gate on evidence `(N, 3M)`."""
    modalities, classes = alpha.shape
    push = sure @ gate.reshape(-1, gate.shape[-1]).T
    push = push[:, :, None] if gate.ndim == 2 else push.reshape(-1, modalities, classes)
    share = np.where(present[..., None], alpha + push, -np.inf)
    share -= np.max(np.where(np.isfinite(share), share, NEGLIGIBLE), axis=1, keepdims=True)
    np.exp(share, out=share)
    total = share.sum(axis=1, keepdims=True)
    return share / np.where(total > 0, total, 1.0)


def state_of_run(folder: str | os.PathLike[str]) -> HeadState | None:
    """The trained head of a saved model, read without torch; None where it is not an additive one (`adaptive`, `sum`).

    Args:
        folder: holds `config.json` and `model.safetensors` (or its shards).
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("fusion") == "sum":
        return HeadState.plain_sum(len(config.get("modalities", ["audio", "vision"])), len(config["id2label"]))
    if config.get("fusion") != "adaptive":
        return None
    from safetensors import safe_open

    arrays: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "numpy") as weights:
            names = [name for name in weights.keys() if name.startswith("fusion.")]  # noqa: SIM118
            arrays |= {name.removeprefix("fusion."): weights.get_tensor(name) for name in names}
    return state_from_arrays(arrays) if "alpha" in arrays else None


def state_from_arrays(arrays: dict[str, Any]) -> HeadState:
    """A state from parameters by name, as `HeadState.arrays` gives them."""
    names = {field.name for field in fields(HeadState)}
    return HeadState(**{name: np.asarray(value, dtype=np.float64) for name, value in arrays.items() if name in names})

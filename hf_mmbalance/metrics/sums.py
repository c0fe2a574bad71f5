"""Measures of resampled clips from sums per unit, so that a bootstrap does not process single clips again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_mmbalance.metrics.measures import clip_nll, correct, predict, softmax


MEASURES = ("accuracy", "macro_f1", "nll", "ece")
BINS = 15  # as in `measures.ece`


@dataclass(frozen=True)
class UnitSums:
    """Sums for each of U units (groups or clips) that accuracy, macro-F1, NLL and ECE are computed from.

    Args:
        clips: `(U,)` number of clips.
        hits: `(U,)` number of correct clips.
        loss: `(U,)` sum of the NLL.
        class_hits: `(U, C)` number of correct clips by class.
        class_total: `(U, C)` clips with that label plus clips with that prediction.
        bin_gap: `(U, 15)` hits minus confidence, by bin of confidence.
    """

    clips: np.ndarray
    hits: np.ndarray
    loss: np.ndarray
    class_hits: np.ndarray
    class_total: np.ndarray
    bin_gap: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, unit: np.ndarray, units: int) -> UnitSums:
        """Compute the sums for clips with logits `(N, C)`, labels `(N,)` and unit indices `(N,)` below `units`."""
        classes = logits.shape[1]
        hit, predicted = correct(logits, labels), predict(logits)
        confidence = softmax(logits)[np.arange(len(labels)), predicted]
        bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence, side="left")

        def by(index: np.ndarray, size: int, values: Any = None) -> np.ndarray:
            return np.bincount(unit * size + index, values, minlength=units * size).reshape(units, size)

        return cls(
            clips=np.bincount(unit, minlength=units),
            hits=np.bincount(unit, hit, minlength=units),
            loss=np.bincount(unit, clip_nll(logits, labels), minlength=units),
            class_hits=by(labels, classes, hit),
            class_total=by(labels, classes) + by(predicted, classes),
            bin_gap=by(bins, BINS, hit - confidence),
        )

    def measure(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Return each measure `(draws,)` where unit u was drawn `counts[:, u]` times; NaN for a draw without clips."""
        counts = counts.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            clips = counts @ self.clips
            total = counts @ self.class_total
            f1 = np.where(total > 0, 2 * (counts @ self.class_hits) / total, np.nan)
            return {
                "accuracy": counts @ self.hits / clips,
                "macro_f1": np.nansum(f1, axis=1) / (total > 0).sum(axis=1),
                "nll": counts @ self.loss / clips,
                "ece": np.abs(counts @ self.bin_gap).sum(axis=1) / clips,
            }

"""`evaluate` module: does confidence match accuracy?"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from .measures import brier, ece, nll


_DESCRIPTION = """Calibration of a classifier's predicted probabilities: expected calibration error over equal-width
and over equal-mass bins, negative log-likelihood and Brier score."""

_CITATION = """@inproceedings{guo2017calibration, title={On Calibration of Modern Neural Networks}, author={Guo, Chuan
and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.}, booktitle={ICML}, year={2017}}"""

_INPUTS = """
Args:
    predictions (list of (C,) lists): logits of every clip, or log-probabilities.
    references (list of int): class indices.
    bins (int, optional): number of bins, 15 by default.
    probabilities (bool, optional): True if predictions are probabilities.
Returns:
    ece, adaptive_ece, nll (nats), brier (0 to 2): floats.
Examples:
    >>> metric = evaluate.load("calibration_error")
    >>> metric.compute(predictions=[[2.0, 0.0], [0.0, 1.0]], references=[0, 1])
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class CalibrationError(evaluate.Metric):
    """Expected calibration error and proper scores."""

    def _info(self) -> evaluate.MetricInfo:
        rows = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": rows, "references": datasets.Value("int64")}),
            reference_urls=["https://arxiv.org/abs/1706.04599"],
        )

    def _compute(
        self, predictions: Any, references: Any, bins: int = 15, probabilities: bool = False
    ) -> dict[str, float]:
        logits, labels = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if probabilities:
            if (logits < 0).any() or not np.allclose(logits.sum(axis=1), 1, atol=1e-3):
                raise ValueError("probabilities=True, but rows are not probabilities (>= 0, sum 1).")
            logits = np.log(np.maximum(logits, 1e-12))
        return {
            "ece": ece(logits, labels, bins),
            "adaptive_ece": ece(logits, labels, bins, adaptive=True),
            "nll": nll(logits, labels),
            "brier": brier(logits, labels),
        }

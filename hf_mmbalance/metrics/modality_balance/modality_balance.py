"""`evaluate` module: does each modality count in the decision for what it is worth, class by class?"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from .measures import (
    additive_subsets,
    capability,
    class_means,
    correct,
    predict,
    relative_balance_index,
    rescued_and_lost,
    shapley,
    shares,
)


_DESCRIPTION = """Balance of a decision layer that adds weighted log-probabilities of modalities: capability (recall
above chance of each modality by itself), contribution (exact Shapley value of accuracy), participation (contribution
normalised over modalities), lean (participation minus capability share), the relative balance index, and which clips
the fusion rescues or loses."""

_CITATION = """@article{ma2025revisit, title={Revisit Modality Imbalance at the Decision Layer}, author={Ma and Chen},
journal={arXiv preprint arXiv:2510.14411}, year={2025}}"""

_INPUTS = """
Args:
    predictions (list of (M, C) lists): unimodal logits of every clip; a row of NaN where a modality is missing.
    references (list of int): class indices.
    weights (optional): (M, C), or (N, M, C) such as a model's `modality_weights`; positive. Default: the plain sum.
        Weights do not include temperatures, typicality or a prior. A layer that has them, such as `adaptive`, decides
        differently; use `mmbalance diagnose` for it.
    bias (optional): (C,) class bias of the decision layer. Default: none.
    modalities (optional): M names, for the keys of the result.
Returns:
    accuracy, relative_balance_index, lost (floats); lean, rescued (by modality); weak (name of the modality that is
    right least often); capability, contribution, participation (by modality, one number per class).
Examples:
    >>> metric = evaluate.load("modality_balance")
    >>> metric.compute(predictions=[[[2.0, 0.0], [0.5, 0.0]], [[0.0, 1.0], [0.3, 0.0]]], references=[0, 1])
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ModalityBalance(evaluate.Metric):
    """Relative balance of a decision layer."""

    def _info(self) -> evaluate.MetricInfo:
        rows = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": rows, "references": datasets.Value("int64")}),
            reference_urls=["https://arxiv.org/abs/2510.14411"],
        )

    def _compute(
        self, predictions: Any, references: Any, weights: Any = None, bias: Any = None, modalities: Any = None
    ) -> dict[str, Any]:
        logits, labels = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if logits.ndim != 3 or min(logits.shape[1:]) < 2:
            raise ValueError(
                f"predictions have shape {logits.shape}; expected (N, M, C) unimodal logits with M >= 2 and C >= 2."
            )
        _, number, classes = logits.shape
        names = list(modalities) if modalities is not None else [f"modality_{m}" for m in range(number)]
        if len(names) != number:
            raise ValueError(f"{len(names)} modality names for {number} modalities.")
        if weights is not None and np.shape(weights) not in (logits.shape[1:], logits.shape):
            raise ValueError(f"weights have shape {np.shape(weights)}; expected {logits.shape[1:]} or {logits.shape}.")
        if bias is not None and np.shape(bias) != (classes,):
            raise ValueError(f"bias has shape {np.shape(bias)}; expected {(classes,)}.")
        present = ~np.all(np.isnan(logits), axis=2)
        if not np.all(np.isfinite(logits[present])):
            raise ValueError(
                "a row of logits is partly NaN or infinite; mark a missing modality by a row of NaN, and clip log(0),"
                " e.g. by log(p + 1e-12)."
            )
        if not np.all(np.any(present, axis=1)):
            raise ValueError("a clip has no modality at all; remove it.")
        fused = additive_subsets(logits, weights, bias)
        hit = correct(fused[-1], labels)  # checks the labels too
        there = ~np.isnan(fused[..., 0])
        hits = np.where(there, predict(np.nan_to_num(fused)) == labels, 1 / classes)
        hits[0] = 1 / classes
        contribution = class_means(shapley(hits), labels, classes)
        able = capability(logits, labels)
        participation, worth = shares(contribution)[0], shares(able)[0]
        single = (predict(np.nan_to_num(logits)) == labels[:, None]) & present
        parts = rescued_and_lost(single, hit)
        lean = np.nanmean(participation - worth, axis=1)
        return {
            "accuracy": float(hit.mean()),
            "relative_balance_index": relative_balance_index(participation, worth),
            "lean": dict(zip(names, lean.tolist(), strict=True)),
            "rescued": dict(zip(names, parts["rescued"].tolist(), strict=True)),
            "weak": names[parts["weak"]],
            "lost": parts["lost"],
            "capability": dict(zip(names, able.tolist(), strict=True)),
            "contribution": dict(zip(names, contribution.tolist(), strict=True)),
            "participation": dict(zip(names, participation.tolist(), strict=True)),
        }

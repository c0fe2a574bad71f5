"""MLB: multi-loss balancing (Kontras et al., 2024, arXiv 2405.07930)."""

from __future__ import annotations

import math

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.balancing.scores import collect_scores
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


@register_balancing_method("mlb")
class MLB(BalancingMethod):
    r"""CE(z, y) + sum_m CE(z_m, y); tower m's gradients times k_m = 1 + tanh(alpha (s_m' / s_m - 1)).

    s as in OGM, over clips that have both modalities. The modality that is ahead is slowed, the other accelerated.

    Args:
        alpha: Strength; published: 0.8. 0 is training with the sum of all losses.
    """

    two_modalities = True
    unimodal_loss_weight = 1.0

    def __init__(self, alpha: float = 0.8):
        if alpha < 0:
            raise ValueError(f"mlb: alpha={alpha!r} must not be negative")
        self.alpha = alpha

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        if self.alpha:
            collect_scores(self, batch)
        return batch.loss

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        if self.alpha:
            self.scale_towers(self.coefficients(totals["scores"].tolist()))

    def coefficients(self, scores: list[float]) -> list[float]:
        """Return k_m for the two scores s_m; 1 if no clip has both modalities."""
        if not min(scores) > 0:
            return [1.0, 1.0]
        return [1 + math.tanh(self.alpha * (scores[1 - m] / scores[m] - 1)) for m in range(2)]

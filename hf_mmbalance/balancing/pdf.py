"""PDF: the loss of predicted confidence (Cao et al., ICML 2024, arXiv 2406.04802), for the fusion head `pdf`."""

from __future__ import annotations

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.balancing.scores import true_class_probabilities
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


@register_balancing_method("pdf")
class PDF(BalancingMethod):
    """CE(z, y) + sum_m CE(z_m, y) + sum_m mean_i |t_m - softmax(z_m)[y]|, with a constant target.

    The last term teaches the head's networks, whose output is t_m, to predict the probability of the true class; it
    does not reach the towers. Modalities that a clip lacks add 0.
    """

    fusion = "pdf"
    unimodal_loss_weight = 1.0

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        predicted = self.model.fusion.log_confidence(batch.features).exp()  # type: ignore[operator]
        distance = (predicted - true_class_probabilities(batch)).abs()
        return batch.loss + torch.where(batch.modality_mask, distance, 0.0).sum(1).mean()

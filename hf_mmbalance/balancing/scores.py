"""Scores of how well each modality does on a batch, by which several methods compare modalities."""

from __future__ import annotations

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


def comparable_clips(batch: TrainingBatch) -> torch.Tensor:
    """Return a mask `(B,)` of the clips to compare: they have every modality, and each modality knows their class."""
    return batch.taught_mask.all(1)


def true_class_probabilities(batch: TrainingBatch) -> torch.Tensor:
    """Return softmax(z_m)[y], `(B, M)`."""
    logits = batch.modality_logits.detach()
    index = batch.labels.view(-1, 1, 1).expand(-1, logits.shape[1], 1)
    return logits.softmax(-1).gather(2, index).squeeze(2)


def collect_scores(method: BalancingMethod, batch: TrainingBatch) -> None:
    """Collect `scores` `(M,)`, the sums of softmax(z_m)[y] over comparable clips, and `clips`, the number of these."""
    compared = comparable_clips(batch)
    method.collect(scores=true_class_probabilities(batch)[compared].sum(0), clips=compared.sum())

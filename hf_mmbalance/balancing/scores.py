"""How well each modality does on a batch: what several methods compare modalities by."""

from __future__ import annotations

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


def complete_clips(modality_mask: torch.Tensor) -> torch.Tensor:
    """True for the clips that have every modality, `(B, M)` -> `(B,)`: only these can be compared."""
    return modality_mask.all(1)


def true_class_probabilities(batch: TrainingBatch) -> torch.Tensor:
    """softmax(z_m)[y], `(B, M)`."""
    logits = batch.modality_logits.detach()
    index = batch.labels.view(-1, 1, 1).expand(-1, logits.shape[1], 1)
    return logits.softmax(-1).gather(2, index).squeeze(2)


def collect_scores(method: BalancingMethod, batch: TrainingBatch) -> None:
    """Collect `scores` `(M,)`, the sums of softmax(z_m)[y] over complete clips, and `clips`, how many these are."""
    complete = complete_clips(batch.modality_mask)
    method.collect(scores=true_class_probabilities(batch)[complete].sum(0), clips=complete.sum())

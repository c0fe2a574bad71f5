"""Training losses: towers and allocation learn from different clips of one batch, each loss masked to its own."""

from dataclasses import dataclass

import torch
from torch import nn

from .fusion_base_mmbalance import FusionOutput


@dataclass
class LossParts:
    """Scalars: the total and what it is made of; all None without labels."""

    loss: torch.Tensor | None = None
    fused: torch.Tensor | None = None
    unimodal: torch.Tensor | None = None
    allocation: torch.Tensor | None = None
    balance: torch.Tensor | None = None


def clip_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy of every clip, times the weight of its class: `(..., C)` and `(...)` -> `(...)`."""
    loss = nn.functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view(labels.shape)
    return loss if class_weights is None else loss * class_weights[labels]


def mean_over(values: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
    """Mean of `(B,)` values over the clips marked, 0 without any (and then still part of the graph)."""
    return (values * clips).sum() / clips.sum().clamp(min=1)


def tower_losses(
    fused: FusionOutput,
    modality_logits: torch.Tensor,
    modality_mask: torch.Tensor,
    labels: torch.Tensor,
    clips: torch.Tensor,
    class_weights: torch.Tensor | None,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fused and summed unimodal cross-entropy over the clips that the towers learn from.

    A missing modality adds 0 to its clip's unimodal loss; the sum is divided by the number of clips, not of modalities
    present, so that batches of equal size weigh the same whatever is missing in them.
    """
    every = labels.unsqueeze(1).expand(modality_logits.shape[:2])
    unimodal = clip_cross_entropy(modality_logits, every, class_weights, label_smoothing)
    unimodal = torch.where(modality_mask, unimodal, torch.zeros_like(unimodal)).sum(1)
    fused_loss = clip_cross_entropy(fused.logits, labels, class_weights, label_smoothing)
    return mean_over(fused_loss, clips), mean_over(unimodal, clips)


__all__ = ["LossParts", "clip_cross_entropy", "mean_over", "tower_losses"]

"""Losses that train the towers, per clip and per batch."""

import torch
from torch import nn


def clip_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the cross-entropy of every clip times its class weight: `(..., C)` and `(...)` -> `(...)`."""
    loss = nn.functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view(labels.shape)
    return loss if class_weights is None else loss * class_weights[labels]


def tower_losses(
    fused_logits: torch.Tensor,
    modality_logits: torch.Tensor,
    modality_mask: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor | None,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fused and the summed unimodal cross-entropy, each a mean over the clips.

    A missing modality adds 0 to its clip's unimodal loss. The sum is divided by the number of clips, not by the number
    of modalities present, so that batches of equal size weigh the same whatever is missing in them.
    """
    every = labels.unsqueeze(1).expand(modality_logits.shape[:2])
    unimodal = clip_cross_entropy(modality_logits, every, class_weights, label_smoothing)
    unimodal = torch.where(modality_mask, unimodal, torch.zeros_like(unimodal)).sum(1)
    return clip_cross_entropy(fused_logits, labels, class_weights, label_smoothing).mean(), unimodal.mean()


def check_labels(labels: torch.Tensor, batch: int, classes: int) -> None:
    """Check that a batch has one valid label per clip.

    Raises:
        ValueError: if a shape, type or label is wrong; the message names it.
    """
    if labels.shape != (batch,):
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected {(batch,)}")
    if labels.dtype != torch.long:
        raise ValueError(f"labels has type {labels.dtype}, expected torch.int64")
    # Only on the CPU, where this needs no synchronisation; CUDA kernels check labels themselves.
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise ValueError(
                f"label {int(wrong[0])} is outside the model's {classes} classes (0 to {classes - 1}): check id2label"
            )


__all__ = ["check_labels", "clip_cross_entropy", "tower_losses"]

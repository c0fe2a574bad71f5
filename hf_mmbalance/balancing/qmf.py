"""QMF's ranking loss over each clip's history (Zhang et al., ICML 2023, arXiv 2306.02050), for the head `qmf`."""

from __future__ import annotations

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


def ranking_loss(confidence: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
    """Return max(0, g (c_i - c_j) + |h_i - h_j|), g = sign(h_i - h_j): a clip that was harder must be less confident.

    Args:
        confidence: c of the clips i of a batch, `(B,)`; j is the next clip, and the first follows the last.
        history: h, their accumulated losses on the scale [0, 1], `(B,)`.

    Returns:
        Loss of every pair, `(B,)`. The published code has the opposite sign before |h_i - h_j|, and so allows the
        wrong order up to that difference.
    """
    difference = history - history.roll(-1)
    return (difference.sign() * (confidence - confidence.roll(-1)) + difference.abs()).clamp(min=0)


@register_balancing_method("qmf")
class QMF(BalancingMethod):
    r"""CE(z, y) + sum_m CE(z_m, y) + weight * sum_m mean_i rank_m,i, confidence c_m = logsumexp(z_m) / 10.

    The history of a clip and modality is the sum of its losses over all steps so far, scaled to [0, 1] over the train
    split. It is updated after the step, so that it does not depend on how the step is split. Pairs are neighbours in
    a batch and do depend on the split: two processes form the same pairs as two accumulated batches. Pairs in which
    one clip lacks the modality do not count.

    Args:
        weight: Weight of the ranking losses; 0 is training with the other losses.
    """

    fusion = "qmf"
    unimodal_loss_weight = 1.0
    needs_clip_index = True

    def __init__(self, weight: float = 1.0):
        if weight < 0:
            raise ValueError(f"qmf: weight={weight!r} must not be negative")
        self.weight = weight

    def start(self) -> None:
        assert self.num_clips is not None  # checked
        self.state = {"history": torch.zeros(self.num_clips, len(self.model.config.modalities))}

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        if not self.weight:
            return batch.loss
        index, mask = self.clip_index, batch.modality_mask
        assert index is not None  # checked
        confidence = torch.logsumexp(batch.modality_logits, dim=-1) / 10
        history = self.scaled_history()[index]
        ranks = []
        for m in range(mask.shape[1]):
            pairs = mask[:, m] & mask[:, m].roll(-1)
            losses = ranking_loss(confidence[:, m], history[:, m])
            ranks.append(torch.where(pairs, losses, 0.0).mean())
        every = batch.labels.unsqueeze(1).expand(mask.shape)
        losses = torch.nn.functional.cross_entropy(
            batch.modality_logits.detach().flatten(0, 1), every.flatten(), reduction="none"
        ).view(mask.shape)
        self.collect_rows(index=index, losses=losses.masked_fill(~mask, 0.0))
        return batch.loss + self.weight * torch.stack(ranks).sum()

    def scaled_history(self) -> torch.Tensor:
        """Return the history `(N, M)`, scaled to [0, 1] for each modality."""
        history = self.state["history"]
        low, high = history.amin(0), history.amax(0)
        return (history - low) / (high - low).clamp(min=torch.finfo(history.dtype).tiny)

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        if self.weight:
            self.state["history"] = self.state["history"].index_add(0, totals["index"], totals["losses"])

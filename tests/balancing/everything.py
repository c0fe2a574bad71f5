"""A user's method in a file, which uses every part of the hook; no published one does."""

from __future__ import annotations

import torch

from hf_mmbalance.balancing import BalancingMethod


class Everything(BalancingMethod):
    """Sums, rows, a gradient kept apart, changed gradients, and a history that the loss depends on.

    Args:
        strength: Of the parts that are not the joint loss.
    """

    unimodal_loss_weight = 1.0
    needs_whole_gradients = True
    needs_clip_index = True

    def __init__(self, strength: float = 0.5):
        self.strength = strength

    def start(self) -> None:
        self.state = {"history": torch.zeros(self.num_clips), "factor": torch.ones(2)}

    def loss(self, batch):
        fused = self.fuse(batch, batch.modality_logits, batch.modality_mask)
        losses = self.model.clip_losses(fused, batch.labels)
        self.collect(scores=batch.modality_logits.softmax(-1).amax(-1).sum(0))
        self.collect_rows(index=self.clip_index, losses=losses)
        draw = torch.rand((), generator=self.generator()).item()
        harder = 1 + draw * self.strength * torch.tanh(self.state["history"][self.clip_index])
        loss = batch.loss + (harder * losses).mean() + self.progress * batch.unimodal_loss
        self.separate_gradients(loss, batch.unimodal_loss, [p for tower in self.tower_parameters() for p in tower])
        return loss

    def modulate(self, totals):
        ratio = totals["scores"] / totals["scores"].sum()
        self.state["factor"] = 0.9 * self.state["factor"] + 0.2 * ratio
        for parameters in self.tower_parameters():
            for parameter in parameters:
                unimodal = self.separated(parameter)
                if parameter.grad is not None:
                    parameter.grad.add_(unimodal, alpha=self.strength)
        self.drop_empty_gradients()
        self.scale_towers(self.state["factor"].tolist())
        self.state["history"] = self.state["history"].index_add(0, totals["index"], totals["losses"].float())

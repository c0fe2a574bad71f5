"""Towers trained separately, then frozen while the decision is learned from their features (arXiv 2510.14411)."""

from __future__ import annotations

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


@register_balancing_method("frozen")
class Frozen(BalancingMethod):
    """First sum_m CE(z_m, y) trains the towers and their heads; then CE(z, y) trains only the heads and the fusion.

    For fusion heads with parameters of their own, such as `concat`. A fitted head such as `adaptive` is fitted on
    frozen towers anyway: with it, the method `unimodal` is the same setting.

    Args:
        pretraining: Fraction of the training in which the towers learn.
    """

    unimodal_loss_weight = 1.0
    needs_whole_gradients = True
    needs_pooled_features = True

    def __init__(self, pretraining: float = 0.7):
        if not 0 < pretraining < 1:
            raise ValueError(f"frozen: pretraining={pretraining!r} must lie between 0 and 1")
        self.pretraining = pretraining

    def _check(self, model: MMBalanceForAudioVisualClassification) -> None:
        super()._check(model)
        if not any(True for _ in model.fusion.parameters()):
            raise ValueError(
                f"frozen: the fusion head {model.config.fusion!r} has no parameters to learn: use the"
                " method unimodal with it, or a head such as concat"
            )

    @property
    def pretrained(self) -> bool:
        """True once the towers are frozen."""
        return self.progress >= self.pretraining

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        if not self.pretrained:
            return self.connected(self.unimodal_weight * batch.unimodal_loss, batch)
        features = tuple(feature.detach() for feature in batch.features)
        tokens = None if batch.tokens is None else tuple(token.detach() for token in batch.tokens)
        _, fused = self.model.decide(features, batch.modality_mask, tokens)
        return self.connected(self.fused_weight * self.model.clip_losses(fused.logits, batch.labels).mean(), batch)

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        self.drop_empty_gradients()

"""Disentangled gradient learning, DGL (Wei et al., ICCV 2025)."""

from __future__ import annotations

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


@register_balancing_method("dgl")
class DGL(BalancingMethod):
    r"""The unimodal losses train only the towers, the fused loss only what comes after them.

    With f_m the towers' features: d/df_m := alpha * d(sum_n CE(z_n, y))/df_m, instead of the gradient of CE(z, y),
    which trains the heads and the fusion. As in the published code, unimodal heads whose logits make up the fused
    logits belong to the fusion: they learn from the fused loss.

    Args:
        alpha: Weight of the unimodal losses; published: 4.
        strength: Fraction of the fused gradient that is replaced; 0 is joint training, 1 the full method.
    """

    needs_pooled_features = True

    def __init__(self, alpha: float = 4.0, strength: float = 1.0):
        if not 0 <= strength <= 1:
            raise ValueError(f"dgl: strength={strength!r} must lie in [0, 1]")
        if alpha < 0:
            raise ValueError(f"dgl: alpha={alpha!r} must not be negative")
        self.alpha, self.strength = alpha, strength

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        if self.strength and any(feature.requires_grad for feature in batch.features):  # those of frozen towers do not
            self._replace(batch)
        return batch.loss

    def _replace(self, batch: TrainingBatch) -> None:
        features = [feature for feature in batch.features if feature.requires_grad]
        own: list[torch.Tensor | None] = []

        def unimodal(upstream: torch.Tensor) -> None:
            # Backward through the heads only. `upstream` has the factor of the loss: loss scaling applies to both.
            own.extend(
                torch.autograd.grad(
                    batch.unimodal_loss, features, upstream * self.alpha, retain_graph=True, allow_unused=True
                )
            )

        def replacement(place: int, fused: torch.Tensor) -> torch.Tensor:
            if not own:  # the call comes from the unimodal backward itself
                return fused
            found = own[place]
            mixed = (1 - self.strength) * fused
            return mixed if found is None else mixed + self.strength * found

        self.on_backward(batch.loss, unimodal)
        for place, feature in enumerate(features):
            feature.register_hook(lambda fused, place=place: replacement(place, fused))

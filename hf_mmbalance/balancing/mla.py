"""MLA: multimodal learning with alternating unimodal adaptation (Zhang et al., CVPR 2024, arXiv 2311.10707)."""

from __future__ import annotations

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


@register_balancing_method("mla")
class MLA(BalancingMethod):
    r"""One modality per optimiser step, in turn, through a classifier that all modalities share (fusion head `mla`).

    Step t trains modality m = t mod M with CE(z_m, y). To keep what the other modalities taught the classifier, its
    weight gradient G `(C, D)` is projected, G := G P^T. P starts as the identity. After each modality's step, with r
    the mean of its features, it becomes (recursive least squares)

        k = P r,   P := P - k k^T / (alpha + r^T k),   P := P / |P|_F,   alpha = 0.1^(1 + part of the epoch done)

    P thus covers the modalities of the earlier steps, as in the paper; the published code would use the P of
    the current modality, but never does, since it looks for a parameter name that does not occur. An epoch trains each
    tower on 1 / M of the clips: published settings, which train all towers on every batch, need M times as many
    epochs.

    Args:
        project: Whether to project gradients.
    """

    fusion = "mla"
    fused_loss_weight = 0.0
    unimodal_loss_weight = 1.0
    needs_whole_gradients = True

    def __init__(self, project: bool = True):
        self.project = project

    def start(self) -> None:
        width = self.model.fusion.feature_sizes[0]
        self.state = {"projection": torch.eye(width), "clips_seen": torch.zeros(())}

    def turn(self) -> int:
        """Return the modality of this step."""
        return self.step % len(self.model.config.modalities)

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        m = self.turn()
        present = batch.modality_mask[:, m]
        losses = self.model.clip_losses(batch.modality_logits[:, m], batch.labels)
        feature = torch.where(present.unsqueeze(1), batch.features[m].detach(), 0.0)
        self.collect(features=feature.sum(0), present=present.sum(), clips=torch.ones_like(losses).sum())
        return self.connected(self.unimodal_weight * torch.where(present, losses, 0.0).mean(), batch)

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        self.drop_empty_gradients()
        gradient = self.model.fusion.get_parameter("classifier.weight").grad
        projection = self.state["projection"]
        if self.project and self.step and gradient is not None:
            gradient.copy_(gradient @ projection.to(gradient.dtype).T)
        if totals["present"] > 0:
            self.state["projection"] = extend_projection(
                projection, totals["features"] / totals["present"], self._alpha()
            )
        self.state["clips_seen"] = self.state["clips_seen"] + totals["clips"]

    def _alpha(self) -> float:
        count = self.num_clips
        return 0.1 ** (1 + (float(self.state["clips_seen"]) % count / count if count else 0.0))


def extend_projection(projection: torch.Tensor, feature: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the projection `(D, D)` with the direction of a feature `(D,)` also removed, at Frobenius norm 1."""
    gain = projection @ feature
    projection = projection - torch.outer(gain, gain) / (alpha + feature @ gain)
    return projection / projection.norm()

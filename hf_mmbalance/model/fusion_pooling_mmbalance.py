"""Baseline heads that pool unimodal logits: sum, mean probability, cosine sum and energy weights."""

import torch

from .fusion_base_mmbalance import (
    FusionHead,
    FusionOutput,
    masked_log_softmax,
    mean_log_prob,
    register_fusion_head,
    shapley_contributions,
)


@register_fusion_head("sum")
class SumFusion(FusionHead):
    """Unweighted sum of log-probabilities over the modalities present."""

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        log_probs = masked_log_softmax(modality_logits, modality_mask)
        weights = modality_mask.unsqueeze(-1).to(log_probs.dtype).expand_as(log_probs)
        return FusionOutput(logits=log_probs.sum(1), modality_weights=weights, modality_contributions=log_probs)


@register_fusion_head("mean_prob")
class MeanProbFusion(FusionHead):
    """Linear pool: log of the mean probability over the modalities present.

    The towers learn from their own losses only, so that this is the unimodal ensemble which the literature compares
    with (UME); contributions are Shapley values over masks.
    """

    default_fused_loss_weight = 0.0

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        log_probs = torch.log_softmax(modality_logits, dim=-1)
        contributions = shapley_contributions(
            lambda mask: mean_log_prob(log_probs, mask), modality_mask, self.num_labels
        )
        return FusionOutput(logits=mean_log_prob(log_probs, modality_mask), modality_contributions=contributions)


class _LogitSum(FusionHead):
    """Weighted sum of raw logits, for methods defined on raw logits."""

    def raw_sum(
        self, modality_logits: torch.Tensor, modality_mask: torch.Tensor, weights: torch.Tensor
    ) -> FusionOutput:
        weights = weights * modality_mask.unsqueeze(-1)
        contributions = weights * modality_logits
        return FusionOutput(
            logits=contributions.sum(1), modality_weights=weights, modality_contributions=contributions
        )


@register_fusion_head("mmcosine")
class MMCosineFusion(_LogitSum):
    """Sum of scaled cosine logits, s (cos(W_a, f_a) + cos(W_v, f_v)) (MMCosine, Xu et al., 2023).

    The scale s is `config.cosine_scale`; the loss is that of the fused logits alone, as published.
    """

    required_unimodal_head = "cosine"
    default_unimodal_loss_weight = 0.0

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        return self.raw_sum(modality_logits, modality_mask, torch.ones_like(modality_logits))


@register_fusion_head("qmf")
class QMFFusion(_LogitSum):
    """Energy weights: z = sum_m c_m z_m with c_m = logsumexp(z_m) / 10, detached (QMF, Zhang et al., 2023).

    Raw logits on purpose: energy is lost under log-softmax. The published ranking loss over each clip's loss history
    is not part of the head.
    """

    temperature = 10.0

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        energy = torch.logsumexp(modality_logits.detach(), dim=-1, keepdim=True) / self.temperature
        return self.raw_sum(modality_logits, modality_mask, energy.expand_as(modality_logits))


__all__ = ["MMCosineFusion", "MeanProbFusion", "QMFFusion", "SumFusion"]

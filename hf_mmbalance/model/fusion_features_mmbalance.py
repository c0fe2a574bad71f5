"""Baseline heads that fuse features: concatenation, gating and FiLM."""

import torch
from torch import nn
from transformers import initialization as init

from .fusion_base_mmbalance import (
    FusionHead,
    FusionOutput,
    mean_log_prob,
    register_fusion_head,
    shapley_contributions,
)


@register_fusion_head("concat")
class ConcatFusion(FusionHead):
    """One linear layer on the concatenated features, trained by the fused loss alone.

    Its split halves are the unimodal logits, z_m = W_m f_m + b / M (OGM-GE, Peng et al., 2022), so a missing modality
    simply leaves its half out.
    """

    owns_unimodal_logits = True
    default_unimodal_loss_weight = 0.0

    def __init__(self, num_modalities: int, num_labels: int, feature_sizes: tuple[int, ...] = ()):
        super().__init__(num_modalities, num_labels, feature_sizes)
        self.halves = nn.ModuleList(nn.Linear(size, num_labels, bias=False) for size in feature_sizes)
        self.bias = nn.Parameter(torch.zeros(num_labels))

    def init_weights(self) -> None:
        init.zeros_(self.bias)

    def unimodal_logits(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        halves = [half(feature) for half, feature in zip(self.halves, features, strict=True)]
        return torch.stack(halves, dim=1) + self.bias / self.num_modalities

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        weights = modality_mask.unsqueeze(-1).to(modality_logits.dtype).expand_as(modality_logits)
        contributions = modality_logits * weights
        return FusionOutput(
            logits=contributions.sum(1), modality_weights=weights, modality_contributions=contributions
        )


class _ConditionedFusion(FusionHead):
    """A head in which all modalities but the last condition the last; clips with a part missing fall back.

    The fallback is the linear pool of the unimodal heads, which therefore learn under their own loss, on detached
    features so that they change nothing in the towers.
    """

    unimodal_for_diagnosis = True

    def __init__(
        self, num_modalities: int, num_labels: int, feature_sizes: tuple[int, ...] = (), hidden_size: int = 256
    ):
        super().__init__(num_modalities, num_labels, feature_sizes)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def condition(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Joint features `(B, hidden_size)` of clips with every modality."""
        raise NotImplementedError

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        assert features is not None  # this head is built on them
        joint = torch.log_softmax(self.classifier(self.condition(features)).float(), dim=-1)
        log_probs = torch.log_softmax(modality_logits, dim=-1)

        def fuse(mask: torch.Tensor) -> torch.Tensor:
            return torch.where(mask.all(1, keepdim=True), joint, mean_log_prob(log_probs, mask))

        contributions = shapley_contributions(fuse, modality_mask, self.num_labels)
        return FusionOutput(logits=fuse(modality_mask), modality_contributions=contributions)


@register_fusion_head("gated")
class GatedFusion(_ConditionedFusion):
    """z = W (sigmoid(U_x x) * U_y y) + b, x gating y (OGM-GE code base; Kiela et al., 2018)."""

    def __init__(
        self, num_modalities: int, num_labels: int, feature_sizes: tuple[int, ...] = (), hidden_size: int = 256
    ):
        super().__init__(num_modalities, num_labels, feature_sizes, hidden_size)
        self.projections = nn.ModuleList(nn.Linear(size, hidden_size) for size in feature_sizes)

    def condition(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        *gates, last = (project(feature) for project, feature in zip(self.projections, features, strict=True))
        for gate in gates:
            last = torch.sigmoid(gate) * last
        return last


@register_fusion_head("film")
class FilmFusion(_ConditionedFusion):
    """z = W (gamma * y + beta) + b with gamma, beta linear in x (Perez et al., 2018)."""

    def __init__(
        self, num_modalities: int, num_labels: int, feature_sizes: tuple[int, ...] = (), hidden_size: int = 256
    ):
        super().__init__(num_modalities, num_labels, feature_sizes, hidden_size)
        self.generators = nn.ModuleList(nn.Linear(size, 2 * hidden_size) for size in feature_sizes[:-1])
        self.project = nn.Linear(feature_sizes[-1], hidden_size)

    def condition(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        conditioned = self.project(features[-1])
        for generator, feature in zip(self.generators, features[:-1], strict=True):
            gamma, beta = generator(feature).chunk(2, dim=-1)
            conditioned = gamma * conditioned + beta
        return conditioned


__all__ = ["ConcatFusion", "FilmFusion", "GatedFusion"]

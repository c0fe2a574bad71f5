"""Fusion heads that weigh raw logits by uncertainty: MLA's entropy weights and PDF's predicted confidence."""

import torch
from torch import nn

from .fusion_mmbalance import FusionHead, FusionOutput, register_fusion_head


def weighted_logits(scores: torch.Tensor, modality_logits: torch.Tensor, modality_mask: torch.Tensor) -> FusionOutput:
    """Return raw logits weighted by a softmax of scores `(B, M)` over the modalities present; weights are detached."""
    lowest = torch.finfo(scores.dtype).min
    shares = scores.detach().masked_fill(~modality_mask, lowest).softmax(1) * modality_mask
    weights = shares.unsqueeze(-1).expand_as(modality_logits)
    contributions = weights * modality_logits.masked_fill(~modality_mask.unsqueeze(-1), 0.0)
    return FusionOutput(logits=contributions.sum(1), modality_weights=weights, modality_contributions=contributions)


@register_fusion_head("mla")
class MLAFusion(FusionHead):
    r"""One classifier shared by all modalities, and entropy weights (MLA, Zhang et al., CVPR 2024, arXiv 2311.10707).

    z_m = W f_m + b for every modality; fused: z = sum_m w_m z_m with w_m proportional to exp(max_n H_n - H_m), where
    H_m is the entropy of softmax(z_m) for each clip. It is trained by the balancing method `mla`.

    Raises:
        ValueError: if the towers' features differ in width.
    """

    owns_unimodal_logits = True
    default_fused_loss_weight = 0.0

    def __init__(self, num_modalities: int, num_labels: int, feature_sizes: tuple[int, ...] = ()):
        super().__init__(num_modalities, num_labels, feature_sizes)
        if len(set(feature_sizes)) != 1:
            raise ValueError(
                f"fusion='mla' shares one classifier: the towers' features must have the same width, not"
                f" {list(feature_sizes)}"
            )
        self.classifier = nn.Linear(feature_sizes[0], num_labels)

    def unimodal_logits(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.stack([self.classifier(feature) for feature in features], dim=1)

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        log_probs = torch.log_softmax(modality_logits, dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        # exp(max_n H_n - H_m) / sum = softmax(-H): the maximum cancels.
        return weighted_logits(-entropy, modality_logits, modality_mask)


@register_fusion_head("pdf")
class PDFFusion(FusionHead):
    r"""Weights from predicted confidence (predictive dynamic fusion, Cao et al., ICML 2024, arXiv 2406.04802).

    From the detached feature of modality m, a small network predicts t_m, the probability that m finds the true class.
    For two modalities m and n:

    - belief: b_m = t_m + log t_n / (log t_m + log t_n);
    - relative calibration, in evaluation only: b_m min(1, u_m / u_n), with u_m = mean_c |softmax(z_m)_c - 1/C|;
    - fused: z = sum_m w_m z_m, w = softmax over modalities of b.

    The networks are trained by the balancing method `pdf`. The published ones are three linear layers without
    activations, which amounts to one linear map; these have a ReLU.

    Args:
        num_modalities, num_labels, feature_sizes: See [`FusionHead`].
        hidden_size (`int`, defaults to 128): Width of the networks.

    Raises:
        ValueError: if there are not exactly two modalities.
    """

    required_balancing = "pdf"
    reads_pooled = True

    def __init__(
        self, num_modalities: int, num_labels: int, feature_sizes: tuple[int, ...] = (), hidden_size: int = 128
    ):
        super().__init__(num_modalities, num_labels, feature_sizes)
        if num_modalities != 2:
            raise ValueError(f"fusion='pdf' compares two modalities, not {num_modalities}")
        self.confidence_nets = nn.ModuleList(
            nn.Sequential(nn.Linear(size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1)) for size in feature_sizes
        )

    def log_confidence(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return log t `(B, M)`; the features are detached."""
        nets = zip(self.confidence_nets, features, strict=True)
        return nn.functional.logsigmoid(torch.cat([net(feature.detach()) for net, feature in nets], dim=1).float())

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        assert features is not None  # this head uses them
        log_confidence = self.log_confidence(features)
        total = log_confidence.sum(1, keepdim=True).clamp(max=-torch.finfo(torch.float32).eps)
        beliefs = log_confidence.exp() + log_confidence.flip(1) / total
        if not self.training:
            distance = (modality_logits.softmax(-1) - 1 / self.num_labels).abs().mean(-1)
            beliefs = beliefs * (distance / distance.flip(1).clamp(min=1e-12)).clamp(max=1)
        return weighted_logits(beliefs, modality_logits, modality_mask)


__all__ = ["MLAFusion", "PDFFusion", "weighted_logits"]

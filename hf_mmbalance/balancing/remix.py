"""Data Remixing: a clip trains the modality that is less certain of it (Ma et al., ICML 2025, arXiv 2506.11550)."""

from __future__ import annotations

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


@register_balancing_method("remix")
class Remix(BalancingMethod):
    r"""First CE(z, y) + sum_m CE(z_m, y) / 2; then each clip trains one modality n, with the others missing.

    n = argmin_m KL(p_m || uniform) over the modalities that the clip has and that know its class, p_m = softmax z_m;
    z^(n) are the fused logits of modality n only:

        CE(z^(n), y) + gamma * CE(z_n, y)

    Differences from the published code, since the loader forms the batches:

    - n comes from the training pass; there, from a pass in evaluation mode before each epoch.
    - Clips with different n share a batch; there, each batch has one n, and those for vision precede those for audio.
      Either way, a clip has a gradient only in the tower of n. With plain SGD and to first order, an epoch moves each
      tower as far as there: every step by its share of the clips, instead of that share of the steps. With optimisers
      that normalise a gradient's size, such as Adam, the two differ.

    Args:
        gamma: Weight of CE(z_n, y); published: 1.
        warmup: Fraction of the training in the first phase; published: the first 10 of 60 epochs. 1 is training with
            the sum of all losses.
    """

    unimodal_loss_weight = 0.5

    def __init__(self, gamma: float = 1.0, warmup: float = 1 / 6):
        if gamma < 0:
            raise ValueError(f"remix: gamma={gamma!r} must not be negative")
        if not 0 <= warmup <= 1:
            raise ValueError(f"remix: warmup={warmup!r} must lie in [0, 1]")
        self.gamma, self.warmup = gamma, warmup

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        if self.warmup and self.progress < self.warmup:
            return batch.loss
        taught = batch.taught_mask
        able = torch.where(taught.any(1, keepdim=True), taught, batch.modality_mask)
        chosen = assigned(batch.modality_logits.detach(), able)
        fused = self.model.clip_losses(self.fuse(batch, batch.modality_logits, chosen), batch.labels)
        every = batch.labels.unsqueeze(1).expand(chosen.shape)
        unimodal = self.model.clip_losses(batch.modality_logits, every)
        unimodal = torch.where(chosen & taught, unimodal, torch.zeros_like(unimodal)).sum(1)
        return self.connected((self.fused_weight * fused + self.gamma * unimodal).mean(), batch)


def assigned(modality_logits: torch.Tensor, modality_mask: torch.Tensor) -> torch.Tensor:
    """Return a mask `(B, M)` of the modality closest to uniform among those in the mask: KL(p || u) = log C - H(p)."""
    log_probs = modality_logits.log_softmax(-1)
    negative_entropy = (log_probs.exp() * log_probs).sum(-1).masked_fill(~modality_mask, torch.inf)
    return torch.zeros_like(modality_mask).scatter(1, negative_entropy.argmin(1, keepdim=True), True)

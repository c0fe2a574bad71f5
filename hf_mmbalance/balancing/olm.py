"""OLM: online logit modulation by learned coefficients (Zong et al., IJCAI 2024)."""

from __future__ import annotations

import torch

from hf_mmbalance.balancing.adam import adam_state, adam_step, learned_parameter
from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


@register_balancing_method("olm")
class OLM(BalancingMethod):
    r"""Losses of logits that are multiplied by coefficients w_k, one per modality and one for the fused logits.

    Task loss: sum_k CE(w_k z_k, y). The coefficients have their own Adam and also minimise (as GradNorm, on logits)

        L_w = mean_i sum_k | n_ik - mean_l(n_il) r_k |
        n_ik = w_k |z_ik|,   r_k = (CE_k / CE_k,0) / mean_l(CE_l / CE_l,0)

    with norms, means and r_k constant in the gradient. Both losses reach the coefficients, as in the published code,
    where both are sums over the batch; as means, they keep the same relative weights for any batch size.
    CE_k,0 is the loss of the first step that has modality k (the published code takes it from the last batch of the
    first epoch).
    Evaluation uses z_k unchanged: the coefficients affect only training. A clip without a modality adds no term for
    it, and its mean is over the modalities that it has.

    Args:
        learning_rate: Learning rate of the coefficients' Adam; published: 1e-3. 0 is training with the sum of all
            losses.
    """

    unimodal_loss_weight = 1.0

    def __init__(self, learning_rate: float = 1e-3):
        if learning_rate < 0:
            raise ValueError(f"olm: learning_rate={learning_rate!r} must not be negative")
        self.learning_rate = learning_rate

    def start(self) -> None:
        count = len(self.model.config.modalities) + 1
        self.state = {"first_loss": torch.zeros(count), **adam_state("coefficients", torch.ones(count))}

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        if not self.learning_rate:
            return batch.loss
        losses = self.task_losses(batch, learned_parameter(self, "coefficients"))
        present = torch.cat([batch.taught_mask, torch.ones_like(batch.taught_mask[:, :1])], dim=1)
        logits = torch.cat([batch.modality_logits, batch.fused.logits.unsqueeze(1)], dim=1).detach()
        self.collect_rows(norms=logits.norm(dim=-1).masked_fill(~present, 0.0))
        count = len(batch.labels)
        self.collect(losses=losses * count, clips=torch.full_like(losses, count))
        return losses.sum()

    def task_losses(self, batch: TrainingBatch, weights: torch.Tensor) -> torch.Tensor:
        """Return the losses CE(w_k z_k, y) `(M + 1,)`, means over clips, times the weights of the config."""
        mask = batch.taught_mask
        every = batch.labels.unsqueeze(1).expand(mask.shape)
        unimodal = self.model.clip_losses(weights[:-1].view(1, -1, 1) * batch.modality_logits, every)
        unimodal = torch.where(mask, unimodal, torch.zeros_like(unimodal)).mean(0)
        fused = self.model.clip_losses(weights[-1] * batch.fused.logits, batch.labels).mean()
        return torch.cat([self.unimodal_weight * unimodal, self.fused_weight * fused.view(1)])

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        if not self.learning_rate:
            return
        losses = totals["losses"] / totals["clips"]
        first = self.state["first_loss"]
        first = self.state["first_loss"] = torch.where(first > 0, first, losses)
        ratio = torch.where(first > 0, losses / first, torch.nan)
        ratio = torch.nan_to_num(ratio / ratio.nanmean())  # NaN for a modality that no step has had so far
        norms = norm_gradient(self.state["coefficients"], totals["norms"], ratio)
        adam_step(self, "coefficients", totals, self.learning_rate, more=norms)


def norm_gradient(coefficients: torch.Tensor, norms: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """Return the gradient of L_w: d/dw_k = mean_i sign(n_ik - mean_l(n_il) r_k) |z_ik|.

    Args:
        coefficients: w `(K,)`.
        norms: |z_ik| `(N, K)`, 0 where missing.
        ratio: r `(K,)`.
    """
    scaled = norms * coefficients
    present = norms > 0
    mean = scaled.sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    return (torch.sign(scaled - mean * ratio) * norms).mean(0)

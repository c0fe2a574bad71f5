"""ReconBoost: modalities take turns at what the others get wrong (Hua et al., ICML 2024, arXiv 2405.09321)."""

from __future__ import annotations

import torch
from torch.nn.functional import mse_loss

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.model.fusion_mmbalance import masked_log_softmax
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


@register_balancing_method("reconboost")
class ReconBoost(BalancingMethod):
    r"""Stages of one modality, in turn, each followed by epochs of CE(z, y) for all (the global rectification).

    In a stage of modality m only its tower and head learn, from

        mean_i (weight - reconcile * r_i) CE(z_m,i, y_i) / C + agreement * mean_ic (p_m,ic - p_m',ic)^2

    with r the probability that the sum of the other modalities assigns to the true class, p = softmax z_m, m' the
    modality of the stage before (absent in the first stage), and all values of the others constant. A clip whose class
    the others predict has less weight, as in gradient boosting. The formula is that of the released code.

    That code also detaches p_m in the agreement, which makes it a constant. It shares one classifier between the
    towers (here each has the head that the fusion gives it) and learns a factor of the fused logits, which changes no
    decision. A clip without m, or whose class m does not know, adds 0; r is uniform if the clip has nothing else. The
    training loop sets the epoch (`epoch`).

    Args:
        stage_epochs: Epochs of a modality's stage; published: 4. 0 is joint training.
        joint_epochs: Epochs for all after each stage; published: 4.
        weight: Weight of the loss in the formula; published: 5 (CREMA-D), 4 (AVE).
        reconcile: Strength of the reweighting by r; published: 1.
        agreement: Weight of the agreement term; published: 0.5.
    """

    needs_whole_gradients = True

    def __init__(
        self,
        stage_epochs: int = 1,
        joint_epochs: int = 1,
        weight: float = 5.0,
        reconcile: float = 1.0,
        agreement: float = 0.5,
    ):
        epochs = (stage_epochs, joint_epochs)
        if min(epochs) < 0 or not any(epochs) or any(count != int(count) for count in epochs):
            raise ValueError(
                f"reconboost: stage_epochs={stage_epochs!r} and joint_epochs={joint_epochs!r} must be whole"
                " numbers, not negative, nor both 0"
            )
        if not weight > 0:
            raise ValueError(f"reconboost: weight={weight!r} must be above 0")
        if reconcile < 0 or agreement < 0:
            raise ValueError(f"reconboost: reconcile={reconcile!r} and agreement={agreement!r} must not be negative")
        self.stage_epochs, self.joint_epochs = stage_epochs, joint_epochs
        self.weight, self.reconcile, self.agreement = weight, reconcile, agreement

    def stage(self) -> int | None:
        """Return the number of the stage of this epoch; `None` in the rectification after a stage."""
        number, place = divmod(self.epoch, self.stage_epochs + self.joint_epochs)
        return number if place < self.stage_epochs else None

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        stage = self.stage()
        if stage is None:
            return batch.loss
        count = batch.modality_mask.shape[1]
        m, before = stage % count, (stage - 1) % count
        logits, mask, taught = batch.modality_logits, batch.modality_mask, batch.taught_mask
        others = masked_log_softmax(logits.detach(), mask & (torch.arange(count, device=mask.device) != m)).sum(1)
        others_right = others.softmax(-1).gather(1, batch.labels.unsqueeze(1)).squeeze(1)
        losses = (self.weight - self.reconcile * others_right) * self.model.clip_losses(logits[:, m], batch.labels)
        loss = torch.where(taught[:, m], losses, torch.zeros_like(losses)).mean() / logits.shape[2]
        if self.agreement and stage:
            both = (taught[:, m] & taught[:, before]).view(-1, 1)
            own, other = (logits[:, n].softmax(-1) for n in (m, before))
            loss = loss + self.agreement * mse_loss(
                torch.where(both, own, 0.0), torch.where(both, other.detach(), 0.0)
            )
        return self.connected(loss, batch)

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        if self.stage() is not None:
            self.drop_empty_gradients()

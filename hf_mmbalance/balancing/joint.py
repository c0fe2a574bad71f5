"""Training with weighted losses only: the baselines that every method is compared with."""

from __future__ import annotations

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification


@register_balancing_method("joint")
class Joint(BalancingMethod):
    """Cross-entropy of the fused logits: CE(z, y)."""

    needs_split = False


@register_balancing_method("joint_unimodal")
class JointUnimodal(BalancingMethod):
    """Joint loss plus the sum of the unimodal losses: CE(z, y) + sum_m CE(z_m, y)."""

    unimodal_loss_weight = 1.0


@register_balancing_method("unimodal")
class Unimodal(BalancingMethod):
    """Towers trained separately, each with its own loss: sum_m CE(z_m, y).

    Their ensemble is the fusion head `mean_prob` (UME).

    Raises:
        ValueError: from `attach`, if the fusion head has parameters that only the fused loss would train.
    """

    fused_loss_weight = 0.0
    unimodal_loss_weight = 1.0

    def _check(self, model: MMBalanceForAudioVisualClassification) -> None:
        super()._check(model)
        head = model.fusion
        if any(True for _ in head.parameters()) and not head.owns_unimodal_logits:
            raise ValueError(
                f"unimodal: the fusion head {model.config.fusion!r} learns from the fused loss, which this method does"
                " not have: use mean_prob, sum or adaptive"
            )

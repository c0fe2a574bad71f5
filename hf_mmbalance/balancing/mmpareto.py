"""MMPareto (Wei & Hu, ICML 2024, arXiv 2405.17730): joint and unimodal gradients combined without conflict."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


ROUNDING = 1e-6  # relative rounding error of inner products in float32


def min_norm_weight(joint: torch.Tensor, cross: torch.Tensor, unimodal: torch.Tensor) -> torch.Tensor:
    """Return the weight w of g_j in the shortest vector w g_j + (1 - w) g_u, from <g_j, g_j>, <g_j, g_u>, <g_u, g_u>.

    The derivative of |w g_j + (1 - w) g_u|^2 is 0 at w = <g_u, g_u - g_j> / |g_j - g_u|^2; clipped to [0, 1]
    (Desideri, 2012; two vectors).
    """
    distance = joint - 2 * cross + unimodal
    return ((unimodal - cross) / distance.clamp(min=torch.finfo(distance.dtype).tiny)).clamp(0, 1)


@register_balancing_method("mmpareto")
class MMPareto(BalancingMethod):
    r"""Per tower, once per optimiser step, with g_j the gradient of the fused loss and g_u of the unimodal one:

        <g_j, g_u> > 0:  g = g_j + g_u
        otherwise:       g = 2 (w g_j + (1 - w) g_u), the shortest such vector, lengthened to |g_j + g_u| if shorter

    and g is multiplied by gamma. Heads learn from the sum of both losses. g_u takes an extra backward through the
    towers; g_j is the rest of the gradient. The length is restored per tower, as in the paper (the published code: per
    parameter tensor).

    Args:
        gamma: Factor of the towers' gradients; published: 1.5.
    """

    unimodal_loss_weight = 1.0
    needs_whole_gradients = True

    def __init__(self, gamma: float = 1.5):
        if not gamma > 0:
            raise ValueError(f"mmpareto: gamma={gamma!r} must be above 0")
        self.gamma = gamma

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        part = self.unimodal_weight * batch.unimodal_loss
        self.separate_gradients(batch.loss, part, [p for tower in self.tower_parameters() for p in tower])
        return batch.loss

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        for parameters in self.tower_parameters():
            unimodal = [self.separated(parameter) for parameter in parameters]
            self.combine(parameters, unimodal)

    def combine(self, parameters: Sequence[nn.Parameter], unimodal: Sequence[torch.Tensor]) -> None:
        """Replace the gradients of one tower, so far g_j + g_u, by g.

        If the products are not finite (an overflow in float16, which the scaler sees), nothing is weighted.
        """
        pairs = [(p.grad, g) for p, g in zip(parameters, unimodal, strict=True) if p.grad is not None]
        if not pairs:
            return
        joint, own = [gradient for gradient, _ in pairs], [gradient for _, gradient in pairs]
        torch._foreach_sub_(joint, own)
        joint_joint, cross, own_own = dot(joint, joint), dot(joint, own), dot(own, own)
        finite = torch.isfinite(joint_joint + own_own)
        conflict = (cross <= 0) & finite
        weight = torch.where(conflict, min_norm_weight(joint_joint, cross, own_own), torch.full_like(cross, 0.5))
        squares = weight**2 * joint_joint + (1 - weight) ** 2 * own_own
        length = squares + 2 * weight * (1 - weight) * cross
        full = joint_joint + 2 * cross + own_own
        longer = (full / (4 * length)).sqrt()
        # Opposite gradients cancel: the rounding error that is left of the shortest vector must not be lengthened.
        lengthened = conflict & (length > ROUNDING * squares) & (longer > 1)
        factor = self.gamma * torch.where(lengthened, longer, torch.ones_like(longer))
        torch._foreach_mul_(joint, (2 * weight * factor).to(joint[0].dtype))
        torch._foreach_mul_(own, (2 * (1 - weight) * factor).to(own[0].dtype))
        torch._foreach_add_(joint, own)


def dot(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the inner product of two lists of tensors, each taken as one vector."""
    return torch.stack([torch.linalg.vecdot(a.flatten(), b.flatten()) for a, b in zip(left, right, strict=True)]).sum(
        dtype=torch.float64
    )

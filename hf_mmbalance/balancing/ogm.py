"""On-the-fly gradient modulation, OGM and OGM-GE (Peng et al., CVPR 2022, arXiv 2203.15332)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.balancing.scores import collect_scores
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


@register_balancing_method("ogm")
class OGM(BalancingMethod):
    r"""Slows down the modality that is ahead: its tower's gradients are multiplied by k_m once per optimiser step.

    With s_m the sum over the step's clips of softmax(z_m)[y], and rho_m = s_m / s_m' (eq. 8 and 10 of the paper):

        k_m = 1 - tanh(alpha * rho_m)  if rho_m > 1,  else 1

    The sums are over clips that have both modalities. The gradients of all trained parameters of the tower are scaled:
    the published code's choice, 4-D convolution weights, would leave only the patch embedding of a transformer.

    Args:
        alpha: Strength; 0 is joint training.
        noise: Gaussian noise (the GE part), as a multiple of each gradient tensor's own standard deviation; as in the
            published code, it is added to both towers, even if k = 1. 0 for none.
        end: Fraction of the training after which the method stops acting; published: 0.5 (CREMA-D).
    """

    two_modalities = True

    def __init__(self, alpha: float = 0.8, noise: float = 0.0, end: float = 1.0):
        if alpha < 0 or noise < 0:
            raise ValueError(f"ogm: alpha={alpha!r} and noise={noise!r} must not be negative")
        if not 0 <= end <= 1:
            raise ValueError(f"ogm: end={end!r} must lie in [0, 1]")
        self.alpha, self.noise, self.end = alpha, noise, end
        self.needs_whole_gradients = noise > 0

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        if self.alpha:
            collect_scores(self, batch)
        return batch.loss

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        if self.end < 1 and self.progress >= self.end:
            return
        if self.alpha:
            self.scale_towers(self.coefficients(totals["scores"].tolist()))
        if self.noise:
            self.add_noise()

    def coefficients(self, scores: list[float]) -> list[float]:
        """Return k_m for the two scores s_m; 1 if no clip has both modalities."""
        factors = []
        for own, other in (scores, scores[::-1]):
            ratio = own / other if other else math.inf
            factors.append(1 - math.tanh(self.alpha * ratio) if own > other else 1.0)
        return factors

    def add_noise(self) -> None:
        """Add the noise, keyed by seed and step: it is the same in every process and in a resumed run."""
        both = [parameter.grad for tower in self.tower_parameters() for parameter in tower]
        gradients = [gradient for gradient in both if gradient is not None and gradient.numel() > 1]
        if not gradients:
            return
        device = gradients[0].device
        generator = self.generator(device)
        for group in groups(gradients):
            sizes = [gradient.numel() for gradient in group]
            drawn = torch.randn(sum(sizes), generator=generator, device=device).split(sizes)
            noise = [part.view_as(gradient) for part, gradient in zip(drawn, group, strict=True)]
            torch._foreach_mul_(noise, deviations(group, self.noise))
            torch._foreach_add_(group, noise)


def groups(tensors: list[torch.Tensor], size: int = 2**18) -> Iterator[list[torch.Tensor]]:
    """Yield the tensors in order, in groups of as few tensors as hold `size` numbers.

    Hundreds of small draws cost more than their arithmetic; one large draw does not fit in the processor's cache.
    """
    group: list[torch.Tensor] = []
    for tensor in tensors:
        group.append(tensor)
        if sum(member.numel() for member in group) >= size:
            yield group
            group = []
    if group:
        yield group


def deviations(tensors: list[torch.Tensor], factor: float = 1.0) -> list[torch.Tensor]:
    """Return the standard deviation of every tensor times a factor: sqrt((|g|^2 - (sum g)^2 / n) / (n - 1))."""
    squares = torch.stack(torch._foreach_norm(tensors)).double().square()
    sums = torch.stack([tensor.sum() for tensor in tensors]).double()
    count = torch.tensor([tensor.numel() for tensor in tensors], device=sums.device)
    found = ((squares - sums.square() / count) / (count - 1)).clamp(min=0).sqrt()
    return list((factor * found).to(tensors[0].dtype).unbind())


@register_balancing_method("ogm_ge")
class OGMGE(OGM):
    """OGM with its generalisation enhancement: noise with the gradients' own standard deviation."""

    def __init__(self, alpha: float = 0.8, noise: float = 1.0, end: float = 1.0):
        super().__init__(alpha, noise, end)

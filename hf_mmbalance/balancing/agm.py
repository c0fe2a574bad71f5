"""AGM: adaptive gradient modulation by mono-modal responses (Li et al., ICCV 2023, arXiv 2308.07686)."""

from __future__ import annotations

import math

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.balancing.scores import comparable_clips
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


LARGEST = 700.0  # exponent whose exp() is still a finite number


@register_balancing_method("agm")
class AGM(BalancingMethod):
    r"""Tower m's gradients are multiplied by exp(alpha * min(tau_m - r_m, 10)), once per optimiser step.

    The response of a modality is its Shapley value for the fused logits, phi_a = [f(a, v) - f(0, v) + f(a, 0)] / 2,
    which the fusion head returns as contribution (0 is a missing modality, not an input of zeros: no extra forward).
    With s_m the mean over the step's clips of CE(phi_m, y), and S_m the mean of s_m over all earlier steps:

        r_m = exp(s_m' - s_m),   tau_m = exp(S_m' - S_m)

    A modality that is further ahead than it has been so far learns more slowly. Means are over clips that have both
    modalities.

    Args:
        alpha: Strength; published: 1.5. 0 is joint training.
    """

    two_modalities = True

    def __init__(self, alpha: float = 1.5):
        if alpha < 0:
            raise ValueError(f"agm: alpha={alpha!r} must not be negative")
        self.alpha = alpha

    def start(self) -> None:
        self.state = {"mean_scores": torch.zeros(2), "steps_counted": torch.zeros(())}

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        if self.alpha:
            compared = comparable_clips(batch)
            responses = batch.fused.modality_contributions.detach()[compared]  # type: ignore[union-attr]
            every = batch.labels[compared].unsqueeze(1).expand(responses.shape[:2])
            losses = torch.nn.functional.cross_entropy(responses.flatten(0, 1), every.flatten(), reduction="none")
            self.collect(scores=losses.view(every.shape).sum(0), clips=compared.sum())
        return batch.loss

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        if not self.alpha or totals["clips"] == 0:
            return
        scores = totals["scores"] / totals["clips"]
        mean, count = self.state["mean_scores"], self.state["steps_counted"]
        self.scale_towers(self.coefficients(scores.tolist(), mean.tolist()))
        self.state["mean_scores"] = (mean * count + scores) / (count + 1)
        self.state["steps_counted"] = count + 1

    def coefficients(self, scores: list[float], means: list[float]) -> list[float]:
        """Return exp(alpha * min(tau_m - r_m, 10)) from s `(2,)` and S `(2,)`."""
        ratios = [math.exp(min(scores[1 - m] - scores[m], LARGEST)) for m in range(2)]
        references = [math.exp(min(means[1 - m] - means[m], LARGEST)) for m in range(2)]
        return [
            math.exp(min(self.alpha * min(reference - ratio, 10.0), LARGEST))
            for reference, ratio in zip(references, ratios, strict=True)
        ]

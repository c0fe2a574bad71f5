"""OPM: on-the-fly prediction modulation (Wei et al., TPAMI 2024, arXiv 2410.11582)."""

from __future__ import annotations

import math

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.balancing.scores import collect_scores
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


@register_balancing_method("opm")
class OPM(BalancingMethod):
    r"""Clips lose the modality that is ahead, at a rate that grows with its lead; the loss is CE(z) of the rest.

    With s as in OGM, and rho_m = s_m / s_m', in steps that drop modalities (with `probability`):

        q_m = min(base * (1 + strength * tanh(rho_m - 1)), 1)  if rho_m > 1,  else 0
        f_m := f_m / (1 - theta),  theta = sum_m d_m q_m / sum_m d_m,  d_m the width of f_m

    A dropped modality is missing for its clip, as it would be at test (the published code sets its feature to 0, which
    for the published head is the same except for half a bias); a clip keeps its only modality. The scores are sums
    over the step before: those of this step are complete only after its last batch.
    Draws are keyed by seed, step and clip, so that they do not depend on how a step is split.

    Args:
        base: Rate at the smallest lead; published: 0.4 to 0.5. 0 is joint training.
        strength: lambda; published: 0.5.
        probability: Probability that a step drops modalities; published: 0.7.
        warmup: Fraction of the training before the method starts; published: the first 6 of 100 epochs.
    """

    two_modalities = True
    needs_clip_index = True
    needs_pooled_features = True

    def __init__(self, base: float = 0.5, strength: float = 0.5, probability: float = 0.7, warmup: float = 0.0):
        for name, value in (("base", base), ("probability", probability), ("warmup", warmup)):
            if not 0 <= value <= 1:
                raise ValueError(f"opm: {name}={value!r} must lie in [0, 1]")
        if strength < 0:
            raise ValueError(f"opm: strength={strength!r} must not be negative")
        self.base, self.strength, self.probability, self.warmup = base, strength, probability, warmup

    def start(self) -> None:
        self.state = {"scores": torch.zeros(2)}

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        if not self.base:
            return batch.loss
        collect_scores(self, batch)
        rates = self.rates(self.state["scores"].tolist())
        generator = self.generator()
        drops = torch.rand((), generator=generator) < self.probability
        if (self.warmup and self.progress < self.warmup) or not drops or not any(rates):
            return batch.loss
        assert self.num_clips is not None and self.clip_index is not None  # checked
        draws = torch.rand(self.num_clips, 2, generator=generator)[self.clip_index.cpu()].to(batch.labels.device)
        kept = batch.modality_mask & (draws >= torch.tensor(rates, device=draws.device))
        kept = torch.where(kept.any(1, keepdim=True), kept, batch.modality_mask)
        widths = [feature.shape[1] for feature in batch.features]
        share = sum(width * rate for width, rate in zip(widths, rates, strict=True)) / sum(widths)
        _, fused = self.model.decide(tuple(feature / (1 - share) for feature in batch.features), kept, batch.tokens)
        loss = self.fused_weight * self.model.clip_losses(fused.logits, batch.labels).mean()
        return self.connected(loss + self.unimodal_weight * batch.unimodal_loss, batch)

    def rates(self, scores: list[float]) -> list[float]:
        """Return q_m for the two scores s_m; 0 if no clip has both modalities."""
        found = []
        for own, other in (scores, scores[::-1]):
            lead = own / other - 1 if other else math.inf
            found.append(min(self.base * (1 + self.strength * math.tanh(lead)), 1.0) if own > other else 0.0)
        return found

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        if self.base:
            self.state["scores"] = totals["scores"]

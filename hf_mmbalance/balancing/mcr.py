"""MCR: multimodal competition regulariser (Kontras et al., NeurIPS 2025, arXiv 2411.07335)."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import normalize

from hf_mmbalance.balancing.adam import adam_state, adam_step, learned_parameter
from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


@register_balancing_method("mcr")
class MCR(BalancingMethod):
    r"""CE(z, y) + sum_m CE(z_m, y) + information L_MIPD + contrast L_Con + bottleneck L_CEB.

    - L_MIPD = sum_m L_m, what each modality tells beyond the other: L_m = -mean JS(softmax z^(m) || softmax z), where
      z^(m) are the fused logits with modality m taken from another clip, by random permutations of the batch. It is a
      game: the parameters of modality n (tower and unimodal head) follow grad L_n + strategy * grad L_m.
    - L_Con, what they share: normalised features f_i and f_j of the same class, from both modalities, against those of
      other classes: mean over all such pairs of -log(e^(f_i f_j / t) / (e^(f_i f_j / t) + sum_k e^(f_i f_k / t))).
    - L_CEB, what they share besides the class: mean squared difference between the features and g(z), with z held
      constant; g is two linear maps with a ReLU in between.

    Where the documentation leaves formulas open, they follow the released code. There, L_Con's denominator has one
    positive, and g learns with the model's optimiser; here it has its own Adam, since no part of a method belongs to
    the model. Permutations apply to the features of one forward pass, for clips that have both modalities, and are
    drawn by seed and step. Pairs are formed in a batch: two processes form the same ones as two accumulated batches.

    Args:
        information: Weight of L_MIPD; published: 0.1 (CREMA-D), 0.01 (AVE). With all three weights 0, training uses
            the sum of all losses.
        contrast: Weight of L_Con; published: 1. Above 0, both towers' features must have the same width.
        bottleneck: Weight of L_CEB; published: 1 (transformers), 0 (ResNet).
        strategy: k of the paper: with -1 each modality reduces the other's influence (greedy), with 0 it does not
            affect it (independent), with 1 it also raises it (collaborative); published: -1.
        permutations: Number of permutations of every batch; published: 32.
        temperature: t; published: 0.5.
        learning_rate: Learning rate of g's Adam.
    """

    two_modalities = True
    unimodal_loss_weight = 1.0

    def __init__(
        self,
        information: float = 0.1,
        contrast: float = 1.0,
        bottleneck: float = 1.0,
        strategy: float = -1.0,
        permutations: int = 32,
        temperature: float = 0.5,
        learning_rate: float = 1e-3,
    ):
        for name, value in (("information", information), ("contrast", contrast), ("bottleneck", bottleneck)):
            if value < 0:
                raise ValueError(f"mcr: {name}={value!r} must not be negative")
        if not -1 <= strategy <= 1:
            raise ValueError(f"mcr: strategy={strategy!r} must lie in [-1, 1]")
        if permutations < 1 or permutations != int(permutations):
            raise ValueError(f"mcr: permutations={permutations!r} must be a whole number of at least 1")
        for name, value in (("temperature", temperature), ("learning_rate", learning_rate)):
            if not value > 0:
                raise ValueError(f"mcr: {name}={value!r} must be above 0")
        self.information, self.contrast, self.bottleneck = information, contrast, bottleneck
        self.strategy, self.permutations, self.temperature = strategy, int(permutations), temperature
        self.learning_rate = learning_rate

    def _check(self, model: MMBalanceForAudioVisualClassification) -> None:
        super()._check(model)
        widths = model.fusion.feature_sizes
        if self.contrast and len(set(widths)) != 1:
            raise ValueError(
                f"mcr compares the features of both towers, whose widths {list(widths)} differ: set contrast to 0"
            )

    def start(self) -> None:
        if self.bottleneck:
            head, generator = self.model.fusion, self.generator()
            sizes = (head.num_labels, max(head.feature_sizes), sum(head.feature_sizes))
            for place, (inner, outer) in enumerate(zip(sizes, sizes[1:], strict=False)):
                bound = 1 / math.sqrt(inner)  # as torch initialises a linear layer
                value = (2 * torch.rand(outer, inner, generator=generator) - 1) * bound
                self.state |= adam_state(f"decoder.{place}", value)

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        loss = batch.loss
        if self.information:
            loss = loss + self.information * self.influence_loss(batch)
        if self.contrast:
            present = batch.modality_mask.T.flatten()
            features = torch.cat([normalize(feature.float()) for feature in batch.features])[present]
            loss = loss + self.contrast * contrastive_loss(features, batch.labels.repeat(2)[present], self.temperature)
        if self.bottleneck:
            loss = loss + self.bottleneck * self.bottleneck_loss(batch)
        return loss

    def influence_loss(self, batch: TrainingBatch) -> torch.Tensor:
        """Return L_MIPD; its gradients are those of the game, its value is sum_m L_m."""
        rows = batch.modality_mask.all(1).nonzero().squeeze(1)
        count = len(rows)
        if count < 2:
            return 0.0 * batch.loss
        generator = self.generator()
        drawn = torch.stack([torch.randperm(count, generator=generator) for _ in range(self.permutations)])
        same = rows.repeat(self.permutations)
        other = rows[drawn.to(rows.device)].flatten()
        total = torch.zeros((), device=rows.device)
        for m in range(2):
            logits = scaled_gradients(batch.modality_logits, m, self.strategy)
            plain = self._fused(batch, logits, [same, same])
            moved = self._fused(batch, logits, [other if n == m else same for n in range(2)])
            total = total - divergence(moved, plain).mean()
        return total

    def _fused(self, batch: TrainingBatch, logits: torch.Tensor, rows: list[torch.Tensor]) -> torch.Tensor:
        """Return the fused logits of clips whose modality m is taken from the batch's `rows[m]`."""
        taken = torch.stack([logits[row, m] for m, row in enumerate(rows)], dim=1)
        return self.fuse(batch, taken, torch.ones_like(taken[:, :, 0], dtype=torch.bool), rows)

    def bottleneck_loss(self, batch: TrainingBatch) -> torch.Tensor:
        """Return L_CEB; a modality that a clip lacks adds 0."""
        hidden = (batch.fused.logits.detach() @ learned_parameter(self, "decoder.0").T).relu()
        difference = torch.cat(batch.features, dim=1).float() - hidden @ learned_parameter(self, "decoder.1").T
        widths = torch.tensor(self.model.fusion.feature_sizes, device=difference.device)
        there = batch.modality_mask.repeat_interleave(widths, dim=1)
        return torch.where(there, difference, 0.0).square().mean()

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        for name in ("decoder.0", "decoder.1") if self.bottleneck else ():
            adam_step(self, name, totals, self.learning_rate)


def scaled_gradients(logits: torch.Tensor, player: int, strategy: float) -> torch.Tensor:
    """Return the logits `(B, M, C)` with the gradients of all modalities but the player's multiplied by `strategy`."""
    factors = torch.full((logits.shape[1], 1), strategy, device=logits.device, dtype=logits.dtype)
    factors[player] = 1.0
    return factors * logits + (1 - factors) * logits.detach()


def divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the Jensen-Shannon divergence in nats of softmax distributions, `(N, C)` and `(N, C)` -> `(N,)`."""
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    mean = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * ((p.exp() * (p - mean)).sum(-1) + (q.exp() * (q - mean)).sum(-1))


def contrastive_loss(features: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return L_Con of normalised features `(N, D)` with labels `(N,)`; 0 if no two have the same label."""
    similar = features @ features.T / temperature
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    negatives = similar.masked_fill(same, torch.finfo(similar.dtype).min).logsumexp(1, keepdim=True)
    losses = torch.logaddexp(similar, negatives) - similar
    pairs = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return torch.where(pairs, losses, 0.0).sum() / pairs.sum().clamp(min=1)

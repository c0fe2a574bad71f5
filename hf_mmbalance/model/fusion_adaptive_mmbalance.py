"""The adaptive fusion head: calibrated log-probabilities under class-level weights that follow capability."""

import math

import torch
from torch import nn
from transformers import initialization as init

from .fusion_mmbalance import FusionHead, FusionOutput, masked_log_softmax, register_fusion_head


CALIBRATIONS = ("temperature", "vector", "dirichlet")
GATES = ("none", "modality", "class")
EVIDENCE_SIZE = 3
SHARED_PULL = 0.1


@register_fusion_head("adaptive")
class AdaptiveFusion(FusionHead):
    r"""Adaptive weight allocation at the decision layer (answering arXiv 2510.14411, section 5).

    With \\(\ell_m = \mathrm{logsoftmax}(z_m)\\):

    - calibration: \\(\hat z_m = \mathrm{logsoftmax}(g_m(\ell_m) / T_m)\\), where g is the identity (`"temperature"`;
      Guo et al., 2017), a scale and bias a class (`"vector"`) or a full map (`"dirichlet"`; Kull et al., 2019);
    - share: softmax over the modalities present of \\(\alpha_{m,c} + (G s(x))_{m,c}\\), where s is detached evidence
      of every modality (see [`evidence`]) and G is 0 with `gate="none"`;
    - weight: \\(w_{m,c} = \kappa_c \frac{|S|}{M} \mathrm{share}_{m,c}\\), S = modalities present;
    - fused: \\(\sum_m w_{m,c} \hat z_{m,c} + b_c\\). With one modality present kappa = 1 and b = 0: its own calibrated
      log-probabilities.

    A new head is the plain sum: T = 1, alpha = 0, kappa = M, b = 0.

    Args:
        num_modalities, num_labels, feature_sizes: See [`FusionHead`].
        calibration (`str`, defaults to `"temperature"`): `"temperature"`, `"vector"` or `"dirichlet"`.
        gate (`str`, defaults to `"none"`): `"none"`, `"modality"` (one gate output a modality) or `"class"` (one a
            modality and class).

    Raises:
        ValueError: if `calibration` or `gate` is none of the above.
    """

    learns_from_calibration = True

    def __init__(
        self,
        num_modalities: int,
        num_labels: int,
        feature_sizes: tuple[int, ...] = (),
        calibration: str = "temperature",
        gate: str = "none",
    ):
        super().__init__(num_modalities, num_labels, feature_sizes)
        if calibration not in CALIBRATIONS:
            raise ValueError(f"calibration={calibration!r} is unknown: choose one of {', '.join(CALIBRATIONS)}")
        if gate not in GATES:
            raise ValueError(f"gate={gate!r} is unknown: choose one of {', '.join(GATES)}")
        self.calibration, self.gate = calibration, gate
        per_class = (num_modalities, num_labels)
        self.log_temperature = nn.Parameter(torch.zeros(num_modalities))
        if calibration == "vector":
            self.calibration_scale = nn.Parameter(torch.ones(per_class))
        if calibration == "dirichlet":
            self.calibration_map = nn.Parameter(torch.eye(num_labels).repeat(num_modalities, 1, 1))
        if calibration != "temperature":
            self.calibration_bias = nn.Parameter(torch.zeros(per_class))
        self.alpha = nn.Parameter(torch.zeros(per_class))
        self.log_kappa = nn.Parameter(torch.full((num_labels,), math.log(num_modalities)))
        self.bias = nn.Parameter(torch.zeros(num_labels))
        if gate != "none":
            outputs = (num_modalities,) if gate == "modality" else per_class
            self.gate_weight = nn.Parameter(torch.zeros(*outputs, EVIDENCE_SIZE * num_modalities))
        #: Held-out recall above chance of every modality and class, measured on the calibration split.
        self.capability: torch.Tensor
        self.register_buffer("capability", torch.zeros(per_class))

    def init_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if name == "log_kappa":
                init.constant_(parameter, math.log(self.num_modalities))
            elif name == "calibration_scale":
                init.ones_(parameter)
            elif name == "calibration_map":
                init.copy_(parameter, torch.eye(self.num_labels).repeat(self.num_modalities, 1, 1))
            else:
                init.zeros_(parameter)
        init.zeros_(self.capability)

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
        freeze_allocation: bool = False,
    ) -> FusionOutput:
        """See [`FusionHead.forward`]; `freeze_allocation` stops gradients from reaching the head's own parameters."""
        # Decisions are float32, also where the head's parameters are stored in half precision or under autocast.
        own = {name: value.float() for name, value in self.named_parameters()}
        if freeze_allocation:
            own = {name: value.detach() for name, value in own.items()}
        with torch.autocast(modality_logits.device.type, enabled=False):
            log_probs = self.calibrate(modality_logits, modality_mask, own)
            shares = self.allocate(log_probs, modality_mask, own)
        several = modality_mask.sum(1, keepdim=True) > 1  # (B, 1)
        present = modality_mask.sum(1, keepdim=True) / self.num_modalities
        kappa = torch.where(several, own["log_kappa"].exp() * present, torch.ones_like(present))  # (B, C)
        weights = kappa.unsqueeze(1) * shares
        contributions = weights * log_probs
        logits = contributions.sum(1) + torch.where(several, own["bias"], torch.zeros_like(own["bias"]))
        return FusionOutput(
            logits=logits, modality_weights=weights, modality_contributions=contributions, shares=shares
        )

    def calibrate(
        self, modality_logits: torch.Tensor, modality_mask: torch.Tensor, own: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Calibrated log-probabilities `(B, M, C)`, 0 where missing."""
        scores = masked_log_softmax(modality_logits, modality_mask)
        if self.calibration == "vector":
            scores = own["calibration_scale"] * scores + own["calibration_bias"]
        elif self.calibration == "dirichlet":
            scores = torch.einsum("mdc,bmc->bmd", own["calibration_map"], scores) + own["calibration_bias"]
        return masked_log_softmax(scores / own["log_temperature"].exp().unsqueeze(-1), modality_mask)

    def allocate(
        self, log_probs: torch.Tensor, modality_mask: torch.Tensor, own: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Shares `(B, M, C)`: softmax over the modalities present, 0 where missing."""
        scores = own["alpha"].expand_as(log_probs)
        if self.gate != "none":
            equation = "me,be->bm" if self.gate == "modality" else "mce,be->bmc"
            gate = torch.einsum(equation, own["gate_weight"], evidence(log_probs.detach(), modality_mask))
            scores = scores + (gate.unsqueeze(-1) if self.gate == "modality" else gate)
        missing = ~modality_mask.unsqueeze(-1)
        # The smallest finite number instead of -inf: a clip with no modality must give no NaN on the way.
        shares = torch.softmax(scores.masked_fill(missing, torch.finfo(scores.dtype).min), dim=1)
        return shares.masked_fill(missing, 0.0)

    def capability_share(self) -> torch.Tensor:
        """Capability clipped at 0 and normalised over modalities `(M, C)`; uniform for a class where all are 0."""
        capability = self.capability.clamp(min=0.0)
        total = capability.sum(0, keepdim=True)
        uniform = torch.full_like(capability, 1.0 / self.num_modalities)
        return torch.where(total > 0, capability / total.clamp(min=torch.finfo(total.dtype).tiny), uniform)

    def balance_loss(self, shares: torch.Tensor | None, clips: torch.Tensor) -> torch.Tensor:
        """Relative balance: mean over classes of KL(capability share || mean share of the clips), a scalar.

        Args:
            shares (`torch.FloatTensor` of shape `(B, M, C)`): Shares of clips with every modality present.
            clips (`torch.BoolTensor` of shape `(B,)`): Clips that count; without any the loss is 0.
        """
        assert shares is not None  # this head always returns them
        keep = clips.to(shares.dtype).view(-1, 1, 1)
        mean_share = (shares * keep).sum(0) / keep.sum().clamp(min=1.0)
        target = self.capability_share().to(shares.dtype)
        tiny = torch.finfo(shares.dtype).tiny
        divergence = torch.xlogy(target, target) - target * mean_share.clamp(min=tiny).log()
        return divergence.sum(0).mean() * clips.any()

    def shrinkage(self) -> torch.Tensor:
        """Squared distance of the head's parameters from the plain sum, a scalar.

        Temperatures and the mean over classes of what there is once a class count `SHARED_PULL` of theirs: every
        calibration clip tells something of them, while a class's own deviation has only the clips of that class.
        """
        shared = SHARED_PULL * self.log_temperature.square().sum()
        total = shared + _pull(self.alpha) + _pull(self.bias) + _pull(self.log_kappa - math.log(self.num_modalities))
        if self.calibration == "vector":
            total = total + _pull(self.calibration_scale - 1.0)
        if self.calibration == "dirichlet":
            identity = torch.eye(self.num_labels, device=self.calibration_map.device, dtype=self.alpha.dtype)
            total = total + (self.calibration_map - identity).square().sum()
        if self.calibration != "temperature":
            total = total + _pull(self.calibration_bias)
        if self.gate != "none":
            total = total + self.gate_weight.square().sum()
        return total


def _pull(values: torch.Tensor) -> torch.Tensor:
    """Sum of squares of values `(..., C)`, of which the part that all classes share counts `SHARED_PULL`."""
    mean = values.mean(-1, keepdim=True)
    return (values - mean).square().sum() + SHARED_PULL * values.shape[-1] * mean.square().sum()


def evidence(log_probs: torch.Tensor, modality_mask: torch.Tensor) -> torch.Tensor:
    """How sure each modality is of a clip: entropy / log C, margin p1 - p2 and largest probability, all in [0, 1].

    Energy is not among them: the log-sum-exp of a log-softmaxed row is 0.

    Args:
        log_probs (`torch.FloatTensor` of shape `(B, M, C)`): Calibrated log-probabilities.
        modality_mask (`torch.BoolTensor` of shape `(B, M)`): Modalities present.

    Returns:
        `torch.FloatTensor` of shape `(B, 3 M)`, modality by modality; zeros where a modality is missing.
    """
    probs = log_probs.exp()
    entropy = -(probs * log_probs).sum(-1) / math.log(log_probs.shape[-1])
    top = probs.topk(2, dim=-1).values
    stacked = torch.stack([entropy, top[..., 0] - top[..., 1], top[..., 0]], dim=-1)
    return stacked.masked_fill(~modality_mask.unsqueeze(-1), 0.0).flatten(1)


__all__ = ["AdaptiveFusion", "evidence"]

"""The adaptive fusion head: calibrated log-probabilities under class-level weights that follow capability."""

import math

import torch
from transformers import initialization as init

from .fusion_mmbalance import FusionHead, FusionOutput, masked_log_softmax, register_fusion_head


CALIBRATIONS = ("temperature", "vector", "dirichlet")
GATES = ("none", "modality", "class")
EVIDENCE_SIZE = 3


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

    fitted = True

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
        self.register_buffer("log_temperature", torch.zeros(num_modalities))
        if calibration == "vector":
            self.register_buffer("calibration_scale", torch.ones(per_class))
        if calibration == "dirichlet":
            self.register_buffer("calibration_map", torch.eye(num_labels).repeat(num_modalities, 1, 1))
        if calibration != "temperature":
            self.register_buffer("calibration_bias", torch.zeros(per_class))
        self.register_buffer("alpha", torch.zeros(per_class))
        self.register_buffer("log_kappa", torch.full((num_labels,), math.log(num_modalities)))
        self.register_buffer("bias", torch.zeros(num_labels))
        if gate != "none":
            outputs = (num_modalities,) if gate == "modality" else per_class
            self.register_buffer("gate_weight", torch.zeros(*outputs, EVIDENCE_SIZE * num_modalities))

    def init_weights(self) -> None:
        for name, parameter in self.named_buffers():
            if name == "log_kappa":
                init.constant_(parameter, math.log(self.num_modalities))
            elif name == "calibration_scale":
                init.ones_(parameter)
            elif name == "calibration_map":
                init.copy_(parameter, torch.eye(self.num_labels).repeat(self.num_modalities, 1, 1))
            else:
                init.zeros_(parameter)

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        # Decisions are float32, also where the head's parameters are stored in half precision or under autocast.
        own = {name: value.float() for name, value in self.named_buffers()}
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

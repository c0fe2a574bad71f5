"""The adaptive fusion head: calibrated posteriors, prior counted once, weights and typicality; fitted, not trained."""

import math
from collections.abc import Sequence

import torch
from transformers import initialization as init

from .fusion_mmbalance import FusionHead, FusionOutput, masked_log_softmax, register_fusion_head


CALIBRATIONS = ("temperature", "vector", "dirichlet")
#: Upper bound of typicality: clips less typical than this all count the same.
TYPICALITY_BOUND = 8.0


@register_fusion_head("adaptive")
class AdaptiveFusion(FusionHead):
    r"""Adaptive weight allocation at the decision layer (answering arXiv 2510.14411, section 5).

    For modalities that are independent given the class, Bayes' rule is
    \\(\log p(c|x) = \log \pi_c + \sum_m [\log p(c|x_m) - \log \pi_c]\\). With
    \\(\ell_m = \mathrm{logsoftmax}(z_m)\\) and S the modalities present, this head computes

    - calibration: \\(D_m = \mathrm{logsoftmax}((A_m \ell_m + a_m) e^{-\log T_m + s_m t_m(x)})\\), where A, a are
      the identity and 0 (`"temperature"`; Guo et al., 2017), a scale and bias per class (`"vector"`) or a full map
      (`"dirichlet"`; Kull et al., 2019) and t is the typicality below;
    - weights: \\(w_{m,c}(S) = 1 + r (w_{m,c} - 1)\\) with \\(r = (|S| - 1) / (M - 1)\\);
    - fused: \\(F_c = \log \pi_c + \sum_{m \in S} w_{m,c}(S) [D_{m,c} - \log \pi_c] + r b_c + \delta_c\\).

    A modality may know only a set \\(K_m\\) of the classes (`known`). It gives no evidence for the others,
    \\(p(x_m|c) = p(x_m)\\): they keep their prior, and its logits are calibrated within \\(K_m\\),
    \\(D_{m,c} = \log \pi(K_m) + \log p(c|x_m, K_m)\\) for c in \\(K_m\\) and \\(D_{m,c} = \log \pi_c\\) otherwise,
    where \\(\log p(c|x_m, K_m)\\) is the calibration above with the log-softmax over \\(K_m\\). This is a normalised
    posterior, and its evidence \\(D_{m,c} - \log \pi_c\\) is 0 outside \\(K_m\\).

    With one modality present r = 0: the result is its calibrated posterior. \\(\delta\\) (`prior_shift`) is
    \\(\log \pi' - \log \pi\\) if the prior \\(\pi'\\) at deployment is known (Bayes' rule), else 0.

    Typicality: \\(t_m(x)\\) is the log of the Mahalanobis distance from tower m's mean token to the nearest class mean
    of the training clips (one shared covariance). Its mean over the clean clips of the fit is subtracted, and it is
    divided by their standard deviation and clipped to [0, 8]. With a negative slope, a tower counts less for less
    typical clips; clips more typical than the mean get no extra weight. The covariance is stored as
    \\(V \mathrm{diag}(1/p) V^T + (1/q) (I - V V^T)\\) with orthonormal rows V, and class means within V.

    All state is in buffers: the head is fitted on held-out clips (`hf_mmbalance.decision`), never trained by
    gradient descent. A new head is the plain sum up to a constant per clip: uniform prior, T = 1, w = 1, b = 0, s = 0.

    Args:
        num_modalities, num_labels, feature_sizes: See [`FusionHead`].
        calibration (`str`, defaults to `"temperature"`): `"temperature"`, `"vector"` or `"dirichlet"`.
        typicality (`Sequence[int]`, *optional*):
            Number of rows of V for each modality, 0 to ignore its typicality; `None` for no typicality at all.
        known (`Sequence[Sequence[bool]]` of shape `(M, C)`, *optional*):
            Classes that each modality knows, stored in the buffer `class_mask`; `None` for all.

    Raises:
        ValueError: if `calibration` is unknown, `typicality` does not fit `feature_sizes`, or `known` has the wrong
            shape or leaves a modality with fewer than two classes.
    """

    fitted = True
    takes_known_classes = True
    # The fitted state stays in float32 in half-precision models: 1 / variance can exceed the range of float16, and
    # differences in typicality can be lost in the rounding of bfloat16.
    _keep_in_fp32_modules_strict = ("^fusion",)

    def __init__(
        self,
        num_modalities: int,
        num_labels: int,
        feature_sizes: tuple[int, ...] = (),
        calibration: str = "temperature",
        typicality: Sequence[int] | None = None,
        known: Sequence[Sequence[bool]] | None = None,
    ):
        super().__init__(num_modalities, num_labels, feature_sizes)
        if calibration not in CALIBRATIONS:
            raise ValueError(f"calibration={calibration!r} is unknown: choose one of {', '.join(CALIBRATIONS)}")
        ranks = None if typicality is None else tuple(int(rank) for rank in typicality)
        if ranks is not None and (
            len(ranks) != num_modalities
            or any(rank < 0 for rank in ranks)
            or any(
                rank and (m >= len(self.feature_sizes) or rank > self.feature_sizes[m]) for m, rank in enumerate(ranks)
            )
        ):
            raise ValueError(
                f"typicality={list(ranks)} must give {num_modalities} ranks, each at most the width of that modality's"
                f" features {list(self.feature_sizes)}"
            )
        self.calibration, self.ranks = calibration, ranks
        self.known = None if known is None else [[bool(value) for value in row] for row in known]
        if self.known is not None:
            check_known(self.known, num_modalities, num_labels)
        for name, shape in self._shapes().items():
            self.register_buffer(name, torch.zeros(shape))
        self.init_weights()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every buffer."""
        modalities, classes = self.num_modalities, self.num_labels
        shapes: dict[str, tuple[int, ...]] = {
            "log_prior": (classes,),
            "prior_shift": (classes,),
            "log_temperature": (modalities,),
            "weights": (modalities, classes),
            "bias": (classes,),
        }
        if self.calibration == "vector":
            shapes["calibration_scale"] = (modalities, classes)
        if self.calibration == "dirichlet":
            shapes["calibration_map"] = (modalities, classes, classes)
        if self.calibration != "temperature":
            shapes["calibration_bias"] = (modalities, classes)
        if self.known is not None:
            shapes["class_mask"] = (modalities, classes)
        if self.ranks is not None:
            for name in ("slope", "location", "scale", "rest"):
                shapes[f"typicality_{name}"] = (modalities,)
            for m, rank in enumerate(self.ranks):
                if rank:
                    width = self.feature_sizes[m]
                    shapes[f"typicality_mean_{m}"] = (width,)
                    shapes[f"typicality_basis_{m}"] = (rank, width)
                    shapes[f"typicality_precision_{m}"] = (rank,)
                    shapes[f"typicality_centres_{m}"] = (classes, rank)
        return shapes

    def init_weights(self) -> None:
        for name, buffer in self.named_buffers():
            if name == "log_prior":
                init.constant_(buffer, -math.log(self.num_labels))
            elif name in ("weights", "calibration_scale", "typicality_scale"):
                init.ones_(buffer)
            elif name == "class_mask":
                init.copy_(buffer, torch.tensor(self.known).to(buffer.dtype))
            elif name == "calibration_map":
                init.copy_(buffer, torch.eye(self.num_labels).repeat(self.num_modalities, 1, 1))
            else:
                init.zeros_(buffer)

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        """See [`FusionHead.forward`]; without `features`, every clip counts as typical (t = 0)."""
        # Decisions are computed in at least float32, even if buffers are in half precision or autocast is on.
        dtype = torch.promote_types(modality_logits.dtype, torch.float32)
        own = {name: value.to(dtype) for name, value in self.named_buffers()}
        with torch.autocast(modality_logits.device.type, enabled=False):
            typicality = None if features is None else self.typicality(features, modality_mask)
            log_probs = masked_log_softmax(modality_logits.to(dtype), modality_mask)
            posteriors = calibrate(log_probs, modality_mask, own, typicality)
            return combine(posteriors, modality_mask, own)

    def typicality(self, features: Sequence[torch.Tensor | None], modality_mask: torch.Tensor) -> torch.Tensor | None:
        """Return typicality t `(B, M)`, 0 where a modality or its features are missing; `None` if it is not used.

        No gradient reaches the towers through it, since a tower must not learn to make its features typical.
        """
        if self.ranks is None:
            return None
        columns = []
        for m, rank in enumerate(self.ranks):
            known = features[m]
            if not rank or known is None:
                columns.append(torch.zeros(modality_mask.shape[0], device=modality_mask.device))
                continue
            distance = self.log_distance(known.detach(), m)
            location = self.get_buffer("typicality_location")[m]
            scale = self.get_buffer("typicality_scale")[m]
            columns.append(torch.nan_to_num(((distance - location) / scale).clamp(0.0, TYPICALITY_BOUND)))
        return torch.stack(columns, dim=1).masked_fill(~modality_mask, 0.0)

    def log_distance(self, features: torch.Tensor, m: int) -> torch.Tensor:
        """Return the log Mahalanobis distance `(B,)` of modality m's features `(B, D_m)` to the nearest class mean."""
        own = {name: self.get_buffer(f"typicality_{name}_{m}") for name in ("mean", "basis", "precision", "centres")}
        dtype = torch.promote_types(own["mean"].dtype, torch.float32)
        own = {name: value.to(dtype) for name, value in own.items()}
        centred = features.to(dtype) - own["mean"]
        along = centred @ own["basis"].T  # (B, r)
        root = own["precision"].sqrt()
        # No matrix products: they lose precision where a distance is small compared to the norms.
        nearest = torch.cdist(along * root, own["centres"] * root, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        outside = (centred.square().sum(1) - along.square().sum(1)).clamp(min=0.0)
        rest = outside * self.get_buffer("typicality_rest")[m].to(dtype)
        return 0.5 * (nearest.square() + rest).clamp(min=torch.finfo(dtype).tiny).log()


def check_known(known: Sequence[Sequence[bool]], modalities: int, classes: int) -> None:
    """Check `known`, which says for each modality and class, `(M, C)`, whether the modality knows the class.

    Raises:
        ValueError: if the shape is wrong, or a modality knows fewer than two classes.
    """
    if [len(row) for row in known] != [classes] * modalities:
        raise ValueError(f"known must have {modalities} rows of {classes} values, one per modality and class")
    for m, row in enumerate(known):
        if sum(row) < 2:
            raise ValueError(f"modality {m} knows {sum(row)} of the {classes} classes: at least 2 are needed")


def calibrate(
    log_probs: torch.Tensor,
    modality_mask: torch.Tensor,
    own: dict[str, torch.Tensor],
    typicality: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the calibrated log-posteriors D `(B, M, C)`, 0 where a modality is missing.

    Args:
        log_probs (`torch.Tensor` of shape `(B, M, C)`): Log-softmaxed unimodal logits, finite everywhere.
        modality_mask (`torch.BoolTensor` of shape `(B, M)`): Modalities present.
        own (`dict`): Buffers of [`AdaptiveFusion`] by name.
        typicality (`torch.Tensor` of shape `(B, M)`, *optional*): Typicality t; `None` counts all clips as typical.
    """
    scores = log_probs
    if "calibration_map" in own:
        scores = torch.einsum("mdc,bmc->bmd", own["calibration_map"], scores)
    if "calibration_scale" in own:
        scores = own["calibration_scale"] * scores
    if "calibration_bias" in own:
        scores = scores + own["calibration_bias"]
    log_factor = -own["log_temperature"]
    if typicality is not None and "typicality_slope" in own:
        log_factor = log_factor + own["typicality_slope"] * typicality.to(scores.dtype)
    scores = scores * log_factor.exp().unsqueeze(-1)
    if "class_mask" in own:
        return posteriors_within(scores, modality_mask, own["class_mask"] > 0, own["log_prior"])
    return masked_log_softmax(scores, modality_mask)


def posteriors_within(
    scores: torch.Tensor, modality_mask: torch.Tensor, known: torch.Tensor, log_prior: torch.Tensor
) -> torch.Tensor:
    """Return the log-posteriors `(B, M, C)` of modalities that know only some classes, 0 where missing.

    log pi(K_m) + logsoftmax over K_m of the scores for c in K_m; log pi_c for the others (see [`AdaptiveFusion`]).

    Args:
        scores (`torch.Tensor` of shape `(B, M, C)`): Calibrated scores; those of unknown classes are not used.
        modality_mask (`torch.BoolTensor` of shape `(B, M)`): Modalities present.
        known (`torch.BoolTensor` of shape `(M, C)`): K_m, the classes that each modality knows.
        log_prior (`torch.Tensor` of shape `(C,)`): log pi.
    """
    inside = torch.log_softmax(scores.masked_fill(~known, -torch.inf), dim=-1)
    share = log_prior.expand_as(known).masked_fill(~known, -torch.inf).logsumexp(1)
    # A modality that knows all classes has exactly pi(K_m) = 1; the sum would be rounded.
    share = share.masked_fill(known.all(1), 0.0)
    posteriors = torch.where(known, inside + share.unsqueeze(-1), log_prior)
    return posteriors.masked_fill(~modality_mask.unsqueeze(-1), 0.0)


def fused_logits(evidence: torch.Tensor, several: torch.Tensor, own: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the fused logits `(B, C)`, computed as log pi + delta + sum_m e_m + r (sum_m (w_m - 1) e_m + b).

    This is the equation of [`AdaptiveFusion`], regrouped.

    Args:
        evidence (`torch.Tensor` of shape `(B, M, C)`): e = D - log pi, 0 where missing.
        several (`torch.Tensor` of shape `(B, 1)`): r.
        own (`dict`): Buffers of [`AdaptiveFusion`] by name.
    """
    # Not einsum: its batched matrix product is half as fast for few modalities.
    beyond_sum = (evidence * (own["weights"] - 1)).sum(1) + own["bias"]
    return own["log_prior"] + own["prior_shift"] + evidence.sum(1) + several * beyond_sum


def evidence_of(
    posteriors: torch.Tensor, modality_mask: torch.Tensor, log_prior: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the arguments `evidence` and `several` of [`fused_logits`] for calibrated log-posteriors `(B, M, C)`."""
    evidence = (posteriors - log_prior).masked_fill(~modality_mask.unsqueeze(-1), 0.0)
    others = (modality_mask.sum(1, keepdim=True) - 1).clamp(min=0).to(posteriors.dtype)
    return evidence, others / max(modality_mask.shape[1] - 1, 1)


def combine(posteriors: torch.Tensor, modality_mask: torch.Tensor, own: dict[str, torch.Tensor]) -> FusionOutput:
    """Return the output of the head for calibrated log-posteriors D `(B, M, C)`.

    The contribution of modality m is w_m(S) (D_m - log pi), its weighted evidence beyond the prior; the logits are the
    sum of the contributions plus log pi + delta + r b, the head's output without evidence.
    """
    missing = ~modality_mask.unsqueeze(-1)
    evidence, several = evidence_of(posteriors, modality_mask, own["log_prior"])
    if "class_mask" in own:
        missing = missing | ~(own["class_mask"] > 0)
    weights = (1 + several.unsqueeze(-1) * (own["weights"] - 1)).masked_fill(missing, 0.0)
    return FusionOutput(
        logits=fused_logits(evidence, several, own),
        modality_weights=weights,
        modality_contributions=weights * evidence,
        modality_trust=posteriors.exp().amax(-1).masked_fill(~modality_mask, 0.0),
    )


__all__ = ["AdaptiveFusion", "calibrate", "combine", "evidence_of", "fused_logits"]

"""Outputs of the model and its towers, and the batch that a balancing method receives."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .fusion_mmbalance import FusionOutput


@dataclass
class MMBalanceOutput(ModelOutput):
    """
    Output of [`MMBalanceForAudioVisualClassification`] for `B` clips, `M` modalities and `C` classes.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): Total loss, when `labels` are given.
        logits (`torch.FloatTensor` of shape `(B, C)`): Fused logits.
        modality_logits (`torch.FloatTensor` of shape `(B, M, C)`):
            Unimodal logits; 0 where a modality is missing. For a class that the modality does not know, the logit is
            20 below its lowest other one.
        modality_weights (`torch.FloatTensor` of shape `(B, M, C)`, *optional*):
            Weight that the decision layer gave each modality for each class; `None` for heads without weights.
        modality_contributions (`torch.FloatTensor` of shape `(B, M, C)`):
            Exact terms whose sum over modalities is `logits` minus the head's bias.
        modality_mask (`torch.LongTensor` of shape `(B, M)`): 1 for modalities used in the decision.
        modality_features (`tuple(torch.FloatTensor)` of shape `(B, D_m)`):
            Pooled feature of every tower, the input of its unimodal head.
        modality_tokens (`tuple(torch.FloatTensor)` of shape `(B, D_m)`, *optional*):
            Mean of every tower's tokens (last hidden states), from which the adaptive head computes typicality; `None`
            if the model was given features without them.
        modality_trust (`torch.FloatTensor` of shape `(B, M)`, *optional*):
            Calibrated probability that each modality's own prediction is right, 0 where it is missing; `None` if the
            head does not compute it.
        fused_loss, unimodal_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Parts of the loss before weighting.
        audio_model_output, vision_model_output (`ModelOutput`, *optional*): Outputs of the towers; `None` for audio of
            several lengths in towers that process one length at a time.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    modality_logits: torch.Tensor | None = None
    modality_weights: torch.Tensor | None = None
    modality_contributions: torch.Tensor | None = None
    modality_mask: torch.Tensor | None = None
    modality_features: tuple[torch.Tensor, ...] | None = None
    modality_tokens: tuple[torch.Tensor, ...] | None = None
    modality_trust: torch.Tensor | None = None
    fused_loss: torch.Tensor | None = None
    unimodal_loss: torch.Tensor | None = None
    audio_model_output: ModelOutput | None = None
    vision_model_output: ModelOutput | None = None

    def to_tuple(self) -> tuple:
        return tuple(self[key].to_tuple() if key.endswith("model_output") else self[key] for key in self.keys())


@dataclass
class EmbedOutput(ModelOutput):
    """
    Output of the towers for `B` clips, before the unimodal heads.

    Args:
        features (`tuple(torch.FloatTensor)` of shape `(B, D_m)`):
            Pooled feature of every tower, the input of its head; any value where a modality is missing.
        tokens (`tuple(torch.FloatTensor)` of shape `(B, D_m)`, *optional*):
            Mean of every tower's tokens (last hidden states), from which the adaptive head computes typicality.
        modality_mask (`torch.BoolTensor` of shape `(B, M)`): Modalities present.
        frame_log_probs (`torch.FloatTensor` of shape `(B, K)`, *optional*):
            Mean over the frames of each frame's log-probabilities: of the K source labels if the vision head was
            reused from a classifier, else of the classes, and then only with `frame_pooling="log_probs"`.
        audio_model_output, vision_model_output (`ModelOutput`, *optional*): Outputs of the towers; `None` for audio of
            several lengths in towers that process one length at a time.
    """

    features: tuple[torch.Tensor, ...] = None  # type: ignore[assignment]  # always set; ModelOutput requires a default
    tokens: tuple[torch.Tensor, ...] = None  # type: ignore[assignment]  # None only if `forward` got none
    modality_mask: torch.Tensor = None  # type: ignore[assignment]
    frame_log_probs: torch.Tensor | None = None
    audio_model_output: ModelOutput | None = None
    vision_model_output: ModelOutput | None = None


@dataclass
class TrainingBatch:
    """
    Input of a balancing method for `B` training clips, `M` modalities and `C` classes.

    Args:
        features (`tuple(torch.FloatTensor)` of shape `(B, D_m)`): Feature of every tower, before dropout.
        tokens (`tuple(torch.FloatTensor)` of shape `(B, D_m)`, *optional*):
            Mean of every tower's tokens, which some fusion heads use; `None` if the model was given features only.
        modality_logits (`torch.FloatTensor` of shape `(B, M, C)`): Unimodal logits; any finite value where missing.
        modality_mask (`torch.BoolTensor` of shape `(B, M)`): True where a clip has a modality.
        taught_mask (`torch.BoolTensor` of shape `(B, M)`):
            True where the modality also knows the clip's class: only these count in unimodal losses and comparisons.
        labels (`torch.LongTensor` of shape `(B,)`): Classes.
        fused (`FusionOutput`): Output of the fusion head.
        loss (`torch.FloatTensor` of shape `(1,)`): Loss with the config's weights.
        fused_loss, unimodal_loss (`torch.FloatTensor` of shape `(1,)`): Its parts before weighting.
    """

    features: tuple[torch.Tensor, ...]
    tokens: tuple[torch.Tensor, ...] | None
    modality_logits: torch.Tensor
    modality_mask: torch.Tensor
    taught_mask: torch.Tensor
    labels: torch.Tensor
    fused: FusionOutput
    loss: torch.Tensor
    fused_loss: torch.Tensor
    unimodal_loss: torch.Tensor


__all__ = ["EmbedOutput", "MMBalanceOutput", "TrainingBatch"]

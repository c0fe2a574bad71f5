"""Audio-visual classifier: two pretrained towers, one unimodal head each, and a fusion head at the decision layer."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from .backbones_mmbalance import Backbone, compose_from_backbones
from .configuration_mmbalance import MMBalanceConfig
from .fusion_files_mmbalance import copy_fusion_file, portable_name, saved_fusion_class
from .fusion_mmbalance import FusionOutput, is_fusion_class
from .heads_mmbalance import build_fusion, build_unimodal_head
from .losses_mmbalance import check_labels, clip_cross_entropy, tower_losses
from .outputs_mmbalance import EmbedOutput, MMBalanceOutput, TrainingBatch
from .source_heads_mmbalance import SourceHead, class_logits, features_for, label_log_probs, mask_for
from .towers_mmbalance import (
    FramePooling,
    TowerFeatures,
    build_tower,
    check_audio_mask,
    check_features,
    check_frames,
    check_spectrograms,
    frames_per_clip,
    freeze_tower,
    masked_mean,
    present_modalities,
    tower_features,
    tower_width,
    with_silence,
)


logger = logging.get_logger(__name__)


AUTO_CLASSES = ("AutoModel", "AutoModelForAudioClassification", "AutoModelForVideoClassification")


class MMBalancePreTrainedModel(PreTrainedModel):
    """Base class that declares the model's config, inputs and supported features to transformers."""

    config: MMBalanceConfig
    config_class = MMBalanceConfig
    base_model_prefix = "mmbalance"
    main_input_name = "input_values"
    input_modalities = ["audio", "image"]
    supports_gradient_checkpointing = True
    # The loss is a mean over the clips of one batch: Trainer must divide by the accumulation steps itself.
    accepts_loss_kwargs = False
    _no_split_modules = ["ASTLayer", "ViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FramePooling):
            module.init_weights(self.config.initializer_range)
        elif isinstance(module, SourceHead):
            module.init_weights()
        elif is_fusion_class(type(module)):
            module.init_weights()  # type: ignore[operator]  # its class may come from another copy of this code


class MMBalanceForAudioVisualClassification(MMBalancePreTrainedModel):
    """
    Classifier of clips with audio and frames, with an adaptive decision layer.

    Each tower computes one feature per clip, and a linear head turns it into unimodal logits. The fusion head combines
    the unimodal logits of the modalities present into one decision.

    Args:
        config ([`MMBalanceConfig`]): Configuration of the model, which gets random weights. Use [`from_backbones`] for
            pretrained towers, and [`~PreTrainedModel.from_pretrained`] to load a trained model.
    """

    # Saved models include their code: the files of this folder are copied next to the weights.
    _auto_class = "AutoModel"
    #: Called with each training batch, returns the loss to minimise; set by training code, not saved.
    balancing: Callable[[TrainingBatch], torch.Tensor] | None = None

    def __init__(self, config: MMBalanceConfig):
        super().__init__(config)
        self.num_labels: int = config.num_labels or 0
        towers: tuple[PreTrainedConfig, ...] = (config.audio_config, config.vision_config)  # type: ignore[assignment]
        self.audio_model, self.vision_model = (build_tower(tower) for tower in towers)
        self._widths = widths = tuple(tower_width(tower) for tower in towers)
        self.frame_pooling = FramePooling(
            widths[1], config.frame_pooling, config.max_frames, config.temporal_heads, config.classifier_dropout
        )
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.fusion = build_fusion(config, widths)
        if not self.fusion.owns_unimodal_logits:
            self.unimodal_heads = nn.ModuleList(
                build_unimodal_head(config, name, width) for name, width in zip(config.modalities, widths, strict=True)
            )
        self.add_model_tags(["audio-visual-classification", "multimodal", "hf_mmbalance"])  # searchable on the Hub
        self.post_init()

    @classmethod
    def from_backbones(cls, audio: Backbone = None, vision: Backbone = None, **kwargs: Any) -> PreTrainedModel:
        """Compose a model from two backbones; see [`compose_from_backbones`] for the arguments and errors."""
        return compose_from_backbones(cls, audio, vision, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the rest is passed on
        cls, pretrained_model_name_or_path: str | os.PathLike, *model_args: Any, **kwargs: Any
    ) -> "MMBalanceForAudioVisualClassification":
        """Load a model as [`PreTrainedModel.from_pretrained`] does, with its user-defined fusion head, if any.

        Weights are loaded from safetensors only, unless you pass `use_safetensors=False` for pickled ones.

        Raises:
            ValueError: if the model's fusion head is not registered, and its file does not exist or cannot be run
                because `trust_remote_code=True` is missing.
        """
        kwargs.setdefault("use_safetensors", True)
        with saved_fusion_class(cls, pretrained_model_name_or_path, kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def save_pretrained(  # type: ignore[override]  # the rest is passed on
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_original_format: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as [`PreTrainedModel.save_pretrained`] does, plus the code that `trust_remote_code=True` loads.

        The file of a user-defined fusion head is copied as well, and the config names it. Weights keep the names that
        they have in memory (`save_original_format=False`). `Trainer` loads checkpoints without renaming, and would
        skip weights with the towers' legacy names with only a warning.

        Raises:
            ValueError: if `push_to_hub=True` and the fusion head is user-defined.
        """
        own = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **dict.fromkeys(AUTO_CLASSES, own)}
        head = type(self.fusion)
        self.config.fusion = portable_name(self.config.fusion, head)
        # This import also makes transformers copy the pipeline's file, and those it imports, with the model's.
        from .pipeline_mmbalance import custom_pipelines

        self.config.custom_pipelines = custom_pipelines()
        if kwargs.get("push_to_hub") and ":" in self.config.fusion:
            raise ValueError("push_to_hub=True would not upload the fusion head's file: call push_to_hub() instead")
        super().save_pretrained(
            save_directory, is_main_process=is_main_process, save_original_format=save_original_format, **kwargs
        )
        if is_main_process:
            copy_fusion_file(self.config.fusion, head, save_directory)

    def freeze_towers(self, trainable_layers: int | str) -> None:
        """Set which layers of the towers are trained: all (`"all"`), none (0), or only the last k.

        Raises:
            ValueError: if `trainable_layers` is neither `"all"` nor a number up to the number of layers.
        """
        for tower in (self.audio_model, self.vision_model):
            freeze_tower(tower, trainable_layers)

    def train(self, mode: bool = True) -> "MMBalanceForAudioVisualClassification":
        """Set training mode, except for frozen batch norms, whose running statistics would change."""
        super().train(mode)
        for module in self.modules() if mode else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.training = module.weight.requires_grad
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        audio_mask: torch.Tensor | None = None,
        modality_features: tuple[torch.Tensor | None, ...] | None = None,
        modality_tokens: tuple[torch.Tensor | None, ...] | None = None,
        frame_log_probs: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | MMBalanceOutput:
        r"""
        input_values (`torch.FloatTensor` of shape `(B, frames, mel_bins)` for AST, *optional*):
            Input of the audio tower. Omit if no clip has audio.
        pixel_values (`torch.FloatTensor` of shape `(B, T, 3, H, W)` or `(B, 3, H, W)`, *optional*):
            Frames. Omit if no clip has any.
        frame_mask (`torch.BoolTensor` of shape `(B, T)`, *optional*):
            True where a frame is present; by default, all are.
        modality_mask (`torch.BoolTensor` of shape `(B, M)`, *optional*):
            True where a clip has a modality; by default, every clip has all those passed.
        labels (`torch.LongTensor` of shape `(B,)`, *optional*):
            Class indices in `[0, C)`.
        audio_mask (`torch.LongTensor` of shape `(B, S)`, *optional*):
            1 for audio, 0 for padding. S is the number of samples or, for Whisper, of spectrogram frames. Only for
            Whisper and for towers that accept an `attention_mask`.
        modality_features (`tuple` of `torch.FloatTensor` of shape `(B, D_m)`, *optional*):
            Features that [`embed`] returned for these clips, in place of inputs; `None` for a modality that no clip
            has.
        modality_tokens (`tuple` of `torch.FloatTensor` of shape `(B, D_m)`, *optional*):
            With `modality_features`: mean tokens that [`embed`] returned. Without them, every clip counts as typical.
        frame_log_probs (`torch.FloatTensor` of shape `(B, K)`, *optional*):
            With `modality_features`: output of [`embed`] of that name, used with `frame_pooling="log_probs"`.

        Raises:
            ValueError: if a clip has no modality (or only one that the model was not trained on), shapes
                disagree, or a label lies outside `[0, C)`.
        """
        if modality_features is None:
            embedded = self.embed(input_values, pixel_values, frame_mask, modality_mask, audio_mask, **kwargs)
        elif input_values is not None or pixel_values is not None:
            raise ValueError("modality_features replace input_values and pixel_values: pass one of the two")
        else:
            embedded = self._given_features(modality_features, modality_tokens, modality_mask, frame_log_probs)
        features, present = embedded.features, embedded.modality_mask
        modality_logits, fused = self.decide(features, present, embedded.tokens, embedded.frame_log_probs)
        loss = fused_loss = unimodal_loss = None
        if labels is not None:
            loss, fused_loss, unimodal_loss = self._losses(embedded, modality_logits, fused, labels)
        return MMBalanceOutput(
            loss=loss,
            logits=fused.logits,
            modality_logits=modality_logits.masked_fill(~present.unsqueeze(-1), 0.0),
            modality_weights=fused.modality_weights,
            modality_contributions=fused.modality_contributions,
            modality_mask=present.long(),
            modality_features=features,
            modality_tokens=embedded.tokens,
            modality_trust=fused.modality_trust,
            fused_loss=fused_loss,
            unimodal_loss=unimodal_loss,
            audio_model_output=embedded.audio_model_output,
            vision_model_output=embedded.vision_model_output,
        )

    def embed(
        self,
        input_values: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        audio_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EmbedOutput:
        """Compute the towers' features of some clips; `forward` accepts them in place of the inputs.

        Arguments and errors are those of `forward`. In training mode, modalities are dropped as in `forward`.
        """
        input_values, pixel_values = self._trained_inputs(input_values, pixel_values)
        untrained = self.config.untrained_modalities
        present = present_modalities(input_values, pixel_values, frame_mask, modality_mask, untrained)
        if self.training:
            present = self._drop_modalities(present)
        audio, audio_output = self._audio_features(input_values, audio_mask, present, dict(kwargs))
        vision, log_probs, vision_output = self._vision_features(pixel_values, frame_mask, present, dict(kwargs))
        features, tokens = zip(audio, vision, strict=True)
        return EmbedOutput(features, tokens, present, log_probs, audio_output, vision_output)

    def _given_features(
        self,
        features: tuple[torch.Tensor | None, ...],
        tokens: tuple[torch.Tensor | None, ...] | None,
        modality_mask: torch.Tensor | None,
        frame_log_probs: torch.Tensor | None,
    ) -> EmbedOutput:
        """Check precomputed features, and return them with the modalities that are used."""
        check_features(features, tokens, dict(zip(self.config.modalities, self._widths, strict=True)))
        used = self._trained_inputs(*features)
        present = present_modalities(*used, None, modality_mask, self.config.untrained_modalities)
        if self.training:
            present = self._drop_modalities(present)
        if self.config.frame_pooling == "log_probs" and (used[1] is None or frame_log_probs is not None):
            frame_log_probs = self._given_log_probs(frame_log_probs, present)
        used_tokens = None if tokens is None else self._present_only(self._trained_inputs(*tokens), present)
        return EmbedOutput(self._present_only(used, present), used_tokens, present, frame_log_probs)  # type: ignore[arg-type]

    def _present_only(
        self, values: tuple[torch.Tensor | None, ...], present: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return the features with 0 for modalities that are missing."""
        return tuple(
            self._no_features(m, present)[0]
            if value is None
            else value.to(self.dtype).masked_fill(~present[:, m : m + 1], 0.0)
            for m, value in enumerate(values)
        )

    def _given_log_probs(self, log_probs: torch.Tensor | None, present: torch.Tensor) -> torch.Tensor:
        """Check `frame_log_probs` and set it to 0 for clips without frames; `None` means that no clip has any."""
        head: Any = self.unimodal_heads[1]
        expected = (len(present), getattr(head, "linear", head).out_features)
        if log_probs is None:
            return torch.zeros(expected, device=present.device)
        if log_probs.shape != expected:
            raise ValueError(f"frame_log_probs has shape {tuple(log_probs.shape)}, expected {expected}")
        return log_probs.masked_fill(~present[:, 1:], 0.0)

    def _trained_inputs(
        self, input_values: torch.Tensor | None, pixel_values: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Remove `config.untrained_modalities` from the inputs: an untrained tower must not affect the decision."""
        inputs = {"audio": input_values, "vision": pixel_values}
        for name in self.config.untrained_modalities:
            if inputs[name] is not None:
                logger.warning_once(f"{name} is ignored: no clip that this model was trained on had it")
                inputs[name] = None
        return inputs["audio"], inputs["vision"]

    def _drop_modalities(self, modality_mask: torch.Tensor) -> torch.Tensor:
        if not any(self.config.modality_dropout):
            return modality_mask
        rates = torch.tensor(self.config.modality_dropout, device=modality_mask.device)
        kept = modality_mask & (torch.rand(modality_mask.shape, device=modality_mask.device) >= rates)
        # A clip that would lose all its modalities keeps them.
        return torch.where(kept.any(1, keepdim=True), kept, modality_mask)

    def _audio_features(
        self,
        input_values: torch.Tensor | None,
        audio_mask: torch.Tensor | None,
        modality_mask: torch.Tensor,
        kwargs: dict[str, Any],
    ) -> tuple[TowerFeatures, ModelOutput | None]:
        """Return the pooled feature and mean token of the audio tower, and its outputs."""
        if input_values is None:
            return self._no_features(0, modality_mask), None
        check_spectrograms(input_values, self.audio_model.config)
        # Values in place of missing audio (which can be NaN) must not reach the tower.
        present = modality_mask[:, 0].view(-1, *[1] * (input_values.dim() - 1))
        values = input_values.masked_fill(~present, 0.0).to(self.audio_model.dtype)
        if audio_mask is not None:
            check_audio_mask(audio_mask, input_values, self.audio_model.config)
        if input_values.dim() == 2:  # raw audio
            values, audio_mask = with_silence(values, audio_mask, self.audio_model.config)
        head = None if self.fusion.owns_unimodal_logits else self.unimodal_heads[0]
        shares = head.layer_shares if isinstance(head, SourceHead) else None
        return tower_features(self.audio_model, values, mask_for(head, self.audio_model, audio_mask), shares, **kwargs)

    def _vision_features(
        self,
        pixel_values: torch.Tensor | None,
        frame_mask: torch.Tensor | None,
        modality_mask: torch.Tensor,
        kwargs: dict[str, Any],
    ) -> tuple[TowerFeatures, torch.Tensor | None, ModelOutput | None]:
        """Return features `(B, D)`, mean log-probabilities `(B, K)` of the frames if they are needed, and outputs."""
        if pixel_values is None:
            features = self._no_features(1, modality_mask)
            return features, self._frame_log_probs(features[0].unsqueeze(1), modality_mask[:, 1:]), None
        if pixel_values.dim() == 4:
            pixel_values = pixel_values.unsqueeze(1)
        if pixel_values.dim() != 5:
            raise ValueError(f"pixel_values has {pixel_values.dim()} axes: expected (B, T, 3, H, W) or (B, 3, H, W)")
        batch, time = pixel_values.shape[:2]
        present = modality_mask[:, 1:].expand(batch, time)
        if frame_mask is not None:
            present = present & frame_mask.bool()
        check_frames(present, modality_mask[:, 1:], self.vision_model.config)
        values = pixel_values.masked_fill(~present[:, :, None, None, None], 0.0)
        values = values.to(self.vision_model.dtype)
        if frames_per_clip(self.vision_model.config) is None:
            values = values.flatten(0, 1)
        else:
            present = present[:, :1]  # one feature for all frames of a clip
        features, outputs = tower_features(self.vision_model, values, **kwargs)
        if not self.fusion.owns_unimodal_logits:
            features = features_for(self.unimodal_heads[1], self.vision_model, features)
        frames, tokens = (part.view(batch, present.shape[1], -1) for part in features)
        pooled = self.frame_pooling(frames, present)
        return (pooled, masked_mean(tokens, present)), self._frame_log_probs(frames, present), outputs

    def _frame_log_probs(self, frames: torch.Tensor, present: torch.Tensor) -> torch.Tensor | None:
        """Average the vision head's log-probabilities of `(B, T, D)` features over the frames present: `(B, K)`."""
        if self.fusion.owns_unimodal_logits:
            return None
        head = self.unimodal_heads[1]
        if self.config.frame_pooling != "log_probs" and not isinstance(head, SourceHead):
            return None
        if self.fusion.unimodal_for_diagnosis:
            frames = frames.detach()
        keep = present.unsqueeze(-1)
        log_probs = label_log_probs(head, self.dropout(frames)) * keep
        return log_probs.sum(1) / keep.sum(1).clamp(min=1)

    def _no_features(self, modality: int, modality_mask: torch.Tensor) -> TowerFeatures:
        zeros = torch.zeros(len(modality_mask), self._widths[modality], device=modality_mask.device, dtype=self.dtype)
        return zeros, zeros

    def decide(
        self,
        features: tuple[torch.Tensor, ...],
        modality_mask: torch.Tensor,
        tokens: tuple[torch.Tensor, ...] | None = None,
        frame_log_probs: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, FusionOutput]:
        """Return unimodal logits `(B, M, C)` and the fusion head's output for features from [`embed`].

        Without `tokens`, every clip counts as typical.
        """
        # Decisions are computed in float32: bf16 is too coarse for a log-softmax over many classes.
        modality_logits = self._unimodal_logits(features, frame_log_probs).float()
        read = features if self.fusion.reads_pooled else tokens
        return modality_logits, self.fusion(modality_logits, modality_mask, read)

    def _unimodal_logits(
        self, features: tuple[torch.Tensor, ...], frame_log_probs: torch.Tensor | None = None
    ) -> torch.Tensor:
        features = tuple(self.dropout(feature) for feature in features)
        if self.fusion.owns_unimodal_logits:
            return self.fusion.unimodal_logits(features)
        if self.fusion.unimodal_for_diagnosis:
            features = tuple(feature.detach() for feature in features)
        logits = [head(feature).float() for head, feature in zip(self.unimodal_heads, features, strict=True)]
        if self.config.frame_pooling == "log_probs":
            if frame_log_probs is None:
                raise ValueError("frame_pooling='log_probs' needs frame_log_probs: pass those of embed()")
            logits[1] = class_logits(self.unimodal_heads[1], frame_log_probs.float())
        return torch.stack(logits, dim=1)

    @property
    def loss_weights(self) -> tuple[float, float]:
        """Weights of the fused and the unimodal loss, from the config or else from the fusion head's defaults."""
        config, head = self.config, self.fusion
        chosen = (config.fused_loss_weight, config.unimodal_loss_weight)
        defaults = (head.default_fused_loss_weight, head.default_unimodal_loss_weight)
        fused, unimodal = (d if c is None else c for c, d in zip(chosen, defaults, strict=True))
        return fused, unimodal

    def _losses(
        self, embedded: EmbedOutput, modality_logits: torch.Tensor, fused: FusionOutput, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the total, fused and unimodal loss; in training, the total is that of `balancing` if there is one."""
        config, present = self.config, embedded.modality_mask
        check_labels(labels, len(present), self.num_labels)
        # A modality has nothing to learn from a clip whose class it does not know.
        taught = present & torch.tensor(config.known_classes, device=labels.device)[:, labels].T
        class_weights, smoothing = self._class_weights(modality_logits), config.label_smoothing
        parts = tower_losses(fused.logits, modality_logits, taught, labels, class_weights, smoothing)
        fused_weight, unimodal_weight = self.loss_weights
        loss = fused_weight * parts[0] + unimodal_weight * parts[1]
        if self.balancing is not None and self.training:
            features, tokens = embedded.features, embedded.tokens
            batch = TrainingBatch(features, tokens, modality_logits, present, taught, labels, fused, loss, *parts)
            loss = self.balancing(batch)
        return loss, *parts

    def _class_weights(self, logits: torch.Tensor) -> torch.Tensor | None:
        weights = self.config.class_weights
        return None if weights is None else torch.tensor(weights, device=logits.device, dtype=logits.dtype)

    def clip_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return each clip's cross-entropy, `(..., C)` -> `(...)`, with the config's class weights and smoothing."""
        return clip_cross_entropy(logits, labels, self._class_weights(logits), self.config.label_smoothing)


__all__ = ["EmbedOutput", "MMBalanceForAudioVisualClassification", "MMBalanceOutput", "MMBalancePreTrainedModel"]

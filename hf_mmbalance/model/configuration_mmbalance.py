"""Configuration of the audio-visual classifier: two backbone configs, frame pooling and a fusion head."""

import math
import re
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


FRAME_POOLINGS = ("mean", "temporal", "log_probs")
UNIMODAL_HEADS = ("linear", "cosine")
FORMAT_VERSION = 1  # increased by changes that would make older code misread a saved model
# A file next to the model is named without a path, because a path could lead outside the model's folder.
FUSION_NAME = re.compile(r"[\w-]+(:[A-Za-z_]\w*)?")


@strict
class MMBalanceConfig(PreTrainedConfig):
    r"""
    Configuration of [`MMBalanceForAudioVisualClassification`].

    Args:
        audio_config (`dict` or `PreTrainedConfig`, *optional*, defaults to an AST-base config):
            Configuration of the audio tower, e.g. of AST, Wav2Vec2, HuBERT, Whisper or CLAP.
        vision_config (`dict` or `PreTrainedConfig`, *optional*, defaults to a ViT-base config):
            Configuration of the vision tower, which runs on every frame (a video model: on all frames of a clip).
        modalities (`list[str]`, *optional*, defaults to `["audio", "vision"]`):
            Names of the modalities, in the order of every `(B, M, C)` tensor.
        fusion (`str`, *optional*, defaults to `"adaptive"`):
            Fusion head: `"sum"`, `"mean_prob"`, `"concat"`, `"gated"`, `"film"`, `"mmcosine"`, `"qmf"`, `"mla"`,
            `"pdf"`, `"adaptive"`, a registered name, or `"file:ClassName"` for a head whose file is saved with the
            model.
        fusion_options (`dict`, *optional*):
            Options of the fusion head, e.g. `{"hidden_size": 128}` for `"gated"`.
        unimodal_head (`str`, *optional*, defaults to `"linear"`):
            Type of the unimodal heads: `"linear"`, or `"cosine"` (scaled cosine between feature and class weight).
        source_labels (`dict[str, dict]`, *optional*):
            For each modality whose head was reused from a classifier: `labels` (names of the source labels), `classes`
            (for every class, in order, the indices of the labels that count for it; empty if the modality does not
            know the class), `layer_norm_eps` (epsilon of the layer norm before the linear layer, or `None`) and
            `layers` (number of the tower's hidden states whose weighted sum is the feature, or `None`).
        cosine_scale (`float`, *optional*, defaults to 10.0):
            Scale of cosine heads.
        classifier_dropout (`float`, *optional*, defaults to 0.0):
            Dropout applied to the features before the unimodal heads.
        frame_pooling (`str`, *optional*, defaults to `"mean"`):
            Pooling over the frames present: `"mean"`, the mean of their features; `"temporal"`, the same after one
            small transformer layer with time positions; `"log_probs"`, the mean of the log-probabilities that the head
            computes from each frame.
        max_frames (`int`, *optional*, defaults to 64):
            Maximum number of frames per clip with `frame_pooling="temporal"`.
        temporal_heads (`int`, *optional*, defaults to 4):
            Number of attention heads in the temporal layer.
        modality_dropout (`list[float]`, *optional*, defaults to `[0.0, 0.0]`):
            For each modality, the probability that it is removed from a training clip. Modalities are drawn
            independently; a clip that would lose all of them keeps them.
        fused_loss_weight (`float`, *optional*):
            Weight of the fused cross-entropy in the towers' loss; `None` uses the fusion head's default. With 0, each
            tower learns only from its unimodal loss, so that a fast tower cannot suppress the other.
        unimodal_loss_weight (`float`, *optional*):
            Weight of the sum of unimodal cross-entropies; `None` uses the fusion head's default.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Label smoothing of the towers' losses.
        class_weights (`list[float]`, *optional*):
            Weight of each class in all losses; their mean over the training clips should be 1.
        untrained_modalities (`list[str]`, *optional*, defaults to `[]`):
            Modalities that no training clip had. The model ignores them, and rejects clips that have no other.
        id2label (`dict[int, str]`, *optional*):
            Names of the classes, numbered from 0. `label2id` is derived from it, and used only without `id2label`.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of new linear layers.
        format_version (`int`, *optional*, defaults to 1):
            Version of the format that the model was saved in. Versions newer than this code supports are rejected.

    Raises:
        `StrictDataclassError`: if a field has the wrong type, or a value that its description does not allow.

    Example:

    ```python
    >>> from hf_mmbalance import MMBalanceConfig, MMBalanceForAudioVisualClassification

    >>> config = MMBalanceConfig(id2label={0: "calm", 1: "angry"}, fusion="adaptive")
    >>> model = MMBalanceForAudioVisualClassification(config)  # random weights
    ```"""

    model_type = "mmbalance"
    _auto_class = "AutoConfig"
    # Large outputs that `Trainer.predict` does not need to gather: features and the towers' outputs.
    keys_to_ignore_at_inference = [
        "modality_contributions",
        "modality_features",
        "modality_tokens",
        "fused_loss",
        "unimodal_loss",
        "audio_model_output",
        "vision_model_output",
    ]
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="audio-spectrogram-transformer"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="vit"),
    }

    audio_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    modalities: list[str] | tuple[str, ...] = ("audio", "vision")
    fusion: str = "adaptive"
    fusion_options: dict | None = None
    unimodal_head: str = "linear"
    source_labels: dict | None = None
    cosine_scale: float | int = 10.0
    classifier_dropout: float | int = 0.0
    frame_pooling: str = "mean"
    max_frames: int = 64
    temporal_heads: int = 4
    modality_dropout: list[float | int] | tuple[float | int, ...] = (0.0, 0.0)
    fused_loss_weight: float | int | None = None
    unimodal_loss_weight: float | int | None = None
    label_smoothing: float | int = 0.0
    class_weights: list[float | int] | None = None
    untrained_modalities: list[str] | tuple[str, ...] = ()
    initializer_range: float | int = 0.02
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        self.modalities = list(self.modalities)
        self.modality_dropout = list(self.modality_dropout)
        self.untrained_modalities = list(self.untrained_modalities)
        if self.id2label is None and self.label2id:
            self.id2label = {int(number): name for name, number in self.label2id.items()}
        super().__post_init__(**kwargs)
        self.label2id = {name: int(number) for number, name in (self.id2label or {}).items()}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "MMBalanceConfig":
        """Build a config like [`PreTrainedConfig.from_dict`], and also check the fields given to `from_pretrained`."""
        # The base class would set them afterwards, one by one: unchecked, and `id2label` without `label2id`.
        names = {*cls.__annotations__, "id2label", "label2id"} - {*cls.sub_configs_defaults}
        given = {name: kwargs.pop(name) for name in names & {*kwargs}}
        if "label2id" in given:
            given.setdefault("id2label", None)
        return super().from_dict({**config_dict, **given}, **kwargs)

    def validate_format(self) -> None:
        """Reject a model saved by newer code, where the same fields may have a different meaning."""
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"format_version={self.format_version}: the model was saved by a newer hf_mmbalance than this one,"
                f" which supports {FORMAT_VERSION}: pip install -U hf_mmbalance"
            )

    def validate_modalities(self) -> None:
        """Check that the modalities' names and dropout rates match the two towers."""
        if list(self.modalities) != ["audio", "vision"]:
            raise ValueError(f"modalities={self.modalities!r}: this model has the towers ['audio', 'vision']")
        if len(self.modality_dropout) != len(self.modalities) or not all(0 <= r < 1 for r in self.modality_dropout):
            raise ValueError(
                f"modality_dropout={self.modality_dropout!r}: give one rate in [0, 1) for each of {self.modalities}"
            )

        if not set(self.untrained_modalities) < set(self.modalities):
            raise ValueError(
                f"untrained_modalities={self.untrained_modalities!r}: name some of {self.modalities}, but not all"
            )

    def validate_choices(self) -> None:
        """Check that named choices exist, and that rates and sizes are in range."""
        if not FUSION_NAME.fullmatch(self.fusion):
            raise ValueError(
                f"fusion={self.fusion!r} is not a valid name: give a registered one, or 'file:ClassName' for a"
                " file next to the model, without its folder and '.py'"
            )
        if self.frame_pooling not in FRAME_POOLINGS:
            raise ValueError(f"frame_pooling={self.frame_pooling!r} is unknown: choose one of {FRAME_POOLINGS}")
        if self.unimodal_head not in UNIMODAL_HEADS:
            raise ValueError(f"unimodal_head={self.unimodal_head!r} is unknown: choose one of {UNIMODAL_HEADS}")
        for name in ("max_frames", "temporal_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")
        for name in ("classifier_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must lie in [0, 1)")
        if not self.cosine_scale > 0:
            raise ValueError(f"cosine_scale={self.cosine_scale!r} must be above 0")
        for name in ("fused_loss_weight", "unimodal_loss_weight"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name}={value!r} must not be negative")

        if self.frame_pooling == "log_probs" and self.unimodal_head != "linear":
            raise ValueError("frame_pooling='log_probs' needs linear heads, or heads reused from classifiers")

    def validate_source_labels(self) -> None:
        """Check the mapping from each classifier's labels to the classes."""
        for modality, entry in (self.source_labels or {}).items():
            where = f"source_labels[{modality!r}]"
            if modality not in self.modalities:
                raise ValueError(f"{where}: the modalities are {self.modalities}")
            if not isinstance(entry, dict) or set(entry) != {"labels", "classes", "layer_norm_eps", "layers"}:
                raise ValueError(f"{where}: give 'labels', 'classes', 'layer_norm_eps' and 'layers'")
            labels, classes = entry["labels"], entry["classes"]
            if len(classes) != self.num_labels:
                raise ValueError(f"{where}: 'classes' has {len(classes)} entries for {self.num_labels} classes")
            used = [index for group in classes for index in group]
            if any(not isinstance(index, int) or not 0 <= index < len(labels) for index in used):
                raise ValueError(f"{where}: 'classes' must hold indices of its {len(labels)} labels, from 0")
            twice = sorted({labels[index] for index in used if used.count(index) > 1})
            if twice:
                raise ValueError(f"{where}: a label counts for one class only, but {twice} occur twice in 'classes'")
            known = sum(bool(group) for group in classes)
            if known < 2:
                raise ValueError(
                    f"{where}: its labels {labels[:20]} are mapped to {known} of the {self.num_labels} classes;"
                    " at least 2 are needed"
                )

    @property
    def known_classes(self) -> list[list[bool]]:
        """Whether each modality (row) knows each class (column): those with source labels, or all if it has none."""
        sources = self.source_labels or {}
        every = [[True]] * (self.num_labels or 0)
        return [
            [bool(group) for group in (sources[name]["classes"] if name in sources else every)]
            for name in self.modalities
        ]

    def validate_classes(self) -> None:
        """Check that there are at least two classes, numbered without gaps, and that class weights are positive."""
        names = self.id2label or {}
        if len(names) < 2:
            raise ValueError(f"id2label: name at least 2 classes, got {names!r}")
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"id2label: number the classes from 0 to {len(names) - 1}, got {sorted(names)}")
        if len(set(names.values())) < len(names):
            raise ValueError(f"id2label: two classes have the same name in {list(names.values())}; rename one")
        weights = self.class_weights
        if weights is not None and (len(weights) != self.num_labels or not all(0 < w < math.inf for w in weights)):
            raise ValueError(f"class_weights: give {self.num_labels} positive numbers, one for each class")


__all__ = ["MMBalanceConfig"]

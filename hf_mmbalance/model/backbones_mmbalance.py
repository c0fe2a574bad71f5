"""Build a model from two backbones or classifiers: load and check them, and copy their weights."""

import difflib
import inspect
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    ClapAudioModel,
    ClapAudioModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configuration_mmbalance import MMBalanceConfig
from .fusion_files_mmbalance import fusion_class, load_fusion_head
from .heads_mmbalance import check_fusion
from .source_heads_mmbalance import SourceHead, label_names, source_head_of
from .towers_mmbalance import (
    CLAP,
    CLAP_AUDIO,
    WHISPER,
    fit_ast_positions,
    frames_per_clip,
    tower_config,
    tower_of,
    tower_options,
    tower_width,
)


DEFAULTS = {"audio": "MIT/ast-finetuned-audioset-10-10-0.4593", "vision": "google/vit-base-patch16-224-in21k"}
MAIN_INPUTS = {"audio": "input_values", "vision": "pixel_values"}

Backbone = str | os.PathLike | PreTrainedConfig | PreTrainedModel | None
#: For each class name, the names of the classifier's labels that are mapped to it.
LabelMap = dict[str, list[str]]


@dataclass
class _Loaded:
    """A backbone's config and weights (`None` for random weights), and the head and labels of a classifier."""

    config: PreTrainedConfig
    tower: PreTrainedModel | None = None
    head: SourceHead | None = None
    labels: list[str] = field(default_factory=list)


def compose_from_backbones(
    model_class: Any,
    audio: Backbone = None,
    vision: Backbone = None,
    *,
    id2label: dict[int, str],
    fusion: str = "adaptive",
    label_maps: dict[str, LabelMap] | None = None,
    audio_max_length: int | None = None,
    trainable_layers: int | str = "all",
    dtype: torch.dtype = torch.float32,
    audio_revision: str | None = None,
    vision_revision: str | None = None,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
    cache_dir: str | None = None,
    **config_options: Any,
) -> PreTrainedModel:
    """Compose `model_class` from an audio and a vision backbone.

    Args:
        audio, vision: Hub name or folder of a pretrained backbone, a config (random weights), or a loaded model. The
            defaults are AST trained on AudioSet and ViT-base trained on ImageNet-21k.
        id2label: Class names by index.
        fusion: Fusion head (see [`MMBalanceConfig`]), or `"path/to/my_head.py:MyHead"`.
        label_maps: For each modality whose unimodal head is reused from a classifier (of audio, images or video),
            the classifier's labels that count for each class, e.g. `{"audio": {"angry": ["ang", "fury"]}}`. If
            several labels share a name, all of them count. The modality gives no evidence for classes missing from
            the map, and labels missing from it are left out. Other modalities get a new head.
        audio_max_length: Length of the audio tower's input in spectrogram frames (10 ms each). AST's position
            embeddings are interpolated to it. Default: the backbone's length.
        trainable_layers: `"all"`, 0 to freeze both towers, or k to train only the last k layers of each.
        dtype: Type of all weights. By default, half-precision checkpoints are converted to float32.
        audio_revision, vision_revision: Branch, tag or commit of the backbones.
        trust_remote_code: Whether to run code that comes with the backbones. Off by default.
        token, cache_dir: As in `from_pretrained`.
        **config_options: Other fields of [`MMBalanceConfig`].

    Returns:
        The model, with the modalities in the order (audio, vision).

    Raises:
        ValueError: if a backbone cannot be loaded or does not accept audio or frames; if a fusion head, option or
            field is unknown; if the fusion head fails on made-up clips; if a name in `label_maps` does not exist; or
            if a classifier's head cannot be reused.
    """
    maps = label_maps or {}
    _check_names(config_options, maps)
    fusion = load_fusion_head(fusion)
    fusion_class(fusion)
    hub = {"trust_remote_code": trust_remote_code, "token": token, "cache_dir": cache_dir}
    id2label = _numbered(id2label)
    given = {"audio": (audio, audio_revision), "vision": (vision, vision_revision)}
    parts = {
        name: _load(backbone, name, dtype, {**hub, "revision": revision or "main"}, with_head=name in maps)
        for name, (backbone, revision) in given.items()
    }
    if audio_max_length is not None:
        _fit_audio_length(parts["audio"], audio_max_length)
    source_labels = {
        name: _source_labels(name, parts[name], label_map, list(id2label.values())) for name, label_map in maps.items()
    }
    config = model_class.config_class(
        audio_config=parts["audio"].config.to_dict(),
        vision_config=parts["vision"].config.to_dict(),
        fusion=fusion,
        source_labels=source_labels or None,
        id2label=id2label,
        **config_options,
    )
    model = model_class(config).to(dtype)
    check_fusion(model.fusion, fusion, dtype)
    for m, (tower, part) in enumerate(zip((model.audio_model, model.vision_model), parts.values(), strict=True)):
        if part.tower is not None:
            _copy_weights(tower, part.tower)
        if part.head is not None:
            model.unimodal_heads[m].take_weights(part.head)
    model.freeze_towers(trainable_layers)
    return model


def _numbered(id2label: dict[int, str]) -> dict[int, str]:
    """Return class names sorted by their numbers, which can be strings (as in JSON)."""
    try:
        return dict(sorted((int(number), name) for number, name in id2label.items()))
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            f"id2label={id2label!r}: map every class number to its name, e.g. {{0: 'calm', 1: 'angry'}}"
        ) from None


def _check_names(config_options: dict[str, Any], label_maps: dict[str, LabelMap]) -> None:
    unknown = sorted(set(config_options) - set(MMBalanceConfig.__dataclass_fields__))
    if unknown:
        close = difflib.get_close_matches(unknown[0], MMBalanceConfig.__dataclass_fields__, n=1)
        raise ValueError(f"unknown option {unknown[0]!r}" + (f": did you mean {close[0]!r}?" if close else ""))
    if not set(label_maps) <= {"audio", "vision"}:
        raise ValueError(f"label_maps names {sorted(label_maps)}: the modalities are ['audio', 'vision']")


def _source_labels(modality: str, part: _Loaded, label_map: LabelMap, classes: list[str]) -> dict[str, Any]:
    """Convert a label map, which has names, to an entry of `config.source_labels`, which has indices."""
    assert part.head is not None
    for name in label_map:
        _check_name(name, classes, f"label_maps: {modality} names the class", "the model has the classes")
        if isinstance(label_map[name], str):
            raise ValueError(f"label_maps: {modality} needs a list for class {name!r}, e.g. [{label_map[name]!r}]")
    for name in (label for labels in label_map.values() for label in labels):
        _check_name(
            name, part.labels, f"label_maps: {modality} names the source label", "the classifier has the labels"
        )
    indices = [[k for k, label in enumerate(part.labels) if label in label_map.get(name, [])] for name in classes]
    shares = part.head.layer_shares
    return {
        "labels": part.labels,
        "classes": indices,
        "layer_norm_eps": getattr(part.head.norm, "eps", None),
        "layers": None if shares is None else len(shares),
    }


def _check_name(name: str, names: list[str], problem: str, remedy: str) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"{remedy} {names[:20]}"
        raise ValueError(f"{problem} {name!r}, which does not exist: {hint}")


def _load(backbone: Backbone, modality: str, dtype: torch.dtype, hub: dict, with_head: bool) -> _Loaded:
    if isinstance(backbone, PreTrainedConfig):
        if with_head:
            raise ValueError(f"label_maps names {modality}, but its backbone is a config, which has no trained head")
        _check_input(MODEL_MAPPING.get(type(backbone), None), backbone, modality)
        tower_width(backbone)
        return _Loaded(tower_config(backbone))
    if isinstance(backbone, PreTrainedModel):
        model = backbone
    else:
        name = str(backbone or DEFAULTS[modality])
        try:
            model = _pretrained_classifier(name, modality, hub) if with_head else _pretrained_tower(name, dtype, hub)
        except (OSError, ValueError) as error:
            kind = "classifier" if with_head else "backbone"
            text = f"{modality} {kind} {name!r} cannot be loaded: {error}"
            if "safetensors" in str(error):
                text += (
                    "\nPickled weights are not loaded, since they can run any code: if you trust them, load the"
                    f" {kind} yourself and pass the model"
                )
            raise ValueError(text) from error
    tower = tower_of(model, modality)
    _check_input(type(tower), tower.config, modality)
    tower_width(tower.config)
    config = tower_config(tower.config)
    if not with_head:
        return _Loaded(config, tower)
    return _Loaded(config, tower, source_head_of(model), label_names(model))


def _pretrained_tower(name: str, dtype: torch.dtype, hub: dict) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(name, **hub)
    options = {"dtype": dtype, "use_safetensors": True, **tower_options(config)}
    if config.model_type == CLAP_AUDIO:  # for which AutoModel has no class
        projected = "ClapAudioModelWithProjection" in (config.architectures or [])
        clap: Any = ClapAudioModelWithProjection if projected else ClapAudioModel
        return clap.from_pretrained(name, **options, **hub)
    return AutoModel.from_pretrained(name, config=config, **options, **hub)


def _pretrained_classifier(name: str, modality: str, hub: dict) -> PreTrainedModel:
    """Load a classifier in float32, the precision in which its head is checked against its logits."""
    config = AutoConfig.from_pretrained(name, **hub)
    auto_class: Any = AutoModelForAudioClassification
    if modality == "vision":
        videos = frames_per_clip(config) is not None
        auto_class = AutoModelForVideoClassification if videos else AutoModelForImageClassification
    own_code = getattr(config, "auto_map", None) is not None
    if not own_code and type(config) not in auto_class._model_mapping:
        raise ValueError(
            f"transformers has no {modality} classifier of type {config.model_type!r}: use its backbone only (remove"
            f" {modality} from label_maps)"
        )
    options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    model, info = auto_class.from_pretrained(name, config=config, **options, **hub)
    new = sorted(key for key in info["missing_keys"] if not key.startswith(f"{model.base_model_prefix}."))
    if new:
        raise ValueError(
            f"it has no weights {new} of the head of {type(model).__name__}: use its backbone only (remove {modality}"
            " from label_maps)"
        )
    return model


def _check_input(model_class: Any, config: PreTrainedConfig, modality: str) -> None:
    main_input = MAIN_INPUTS[modality]
    taken = getattr(model_class, "main_input_name", main_input)  # None: a class defined only on the Hub
    if modality == "audio" and config.model_type in (WHISPER, CLAP, CLAP_AUDIO):
        return  # their spectrograms are called input_features
    if taken != main_input:
        raise ValueError(
            f"{modality} backbone {model_class.__name__} accepts {taken}, not {main_input}: it cannot be used as the"
            f" {modality} backbone"
        )
    arguments = list(inspect.signature(model_class.forward).parameters.values())[2:] if model_class else []
    needed = [entry.name for entry in arguments if entry.default is entry.empty and entry.kind != entry.VAR_KEYWORD]
    if needed:
        raise ValueError(
            f"{modality} backbone {model_class.__name__} also needs {', '.join(needed)}, which is not supported: use"
            " another backbone"
        )


def _fit_audio_length(part: _Loaded, max_length: int) -> None:
    model, config = part.tower, part.config
    if config.model_type != "audio-spectrogram-transformer":
        raise ValueError(f"audio_max_length is for AST backbones, not for {config.model_type!r}: remove it")
    if max_length < config.patch_size:
        raise ValueError(f"audio_max_length={max_length} is shorter than one patch of {config.patch_size} frames")
    fitted = type(config).from_dict({**config.to_dict(), "max_length": max_length})
    if model is not None and max_length != config.max_length:
        positions: torch.Tensor = model.get_parameter("embeddings.position_embeddings")
        resized = type(model)(fitted)
        resized.to(positions.dtype)  # type: ignore[arg-type]
        weights = model.state_dict()
        weights["embeddings.position_embeddings"] = fit_ast_positions(positions.data, config, fitted)
        resized.load_state_dict(weights)
        part.tower = resized
    part.config = fitted


def _copy_weights(tower: PreTrainedModel, loaded: PreTrainedModel) -> None:
    missing, unexpected = tower.load_state_dict(loaded.state_dict(), strict=False)
    # A backbone passed as a loaded model may still have the pooling layer that the tower omits.
    unexpected = [key for key in unexpected if not key.startswith("pooler.")]
    if missing or unexpected:
        raise ValueError(f"backbone {type(loaded).__name__}: missing weights {missing}, unexpected {unexpected}")


__all__ = ["compose_from_backbones"]

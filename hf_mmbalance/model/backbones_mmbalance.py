"""Compose a model from two pretrained (or new) backbones."""

import difflib
import os
from typing import Any

import torch
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .configuration_mmbalance import MMBalanceConfig
from .custom_fusion_mmbalance import fusion_class, load_fusion_head
from .towers_mmbalance import fit_ast_positions, tower_options, tower_width


DEFAULT_AUDIO = "MIT/ast-finetuned-audioset-10-10-0.4593"
DEFAULT_VISION = "google/vit-base-patch16-224-in21k"

Backbone = str | os.PathLike | PreTrainedConfig | PreTrainedModel | None


def compose_from_backbones(
    model_class: Any,
    audio: Backbone = None,
    vision: Backbone = None,
    *,
    id2label: dict[int, str],
    fusion: str = "adaptive",
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
        audio, vision: Hub name or folder of a pretrained backbone, a config (random weights), or a loaded model. By
            default AST trained on AudioSet and ViT-base trained on ImageNet-21k.
        id2label: Class names by index.
        fusion: Fusion head (see [`MMBalanceConfig`]), or `"path/to/my_head.py:MyHead"`.
        audio_max_length: Spectrogram frames (10 ms each) the audio tower is to take; AST's position embeddings are
            interpolated. By default as the backbone has it.
        trainable_layers: `"all"`, 0 to freeze both towers, or k to train only the last k layers of each.
        dtype: Type of all weights; checkpoints in half precision are widened by default.
        audio_revision, vision_revision: Branch, tag or commit of the backbones.
        trust_remote_code: Run code that comes with the backbones. Never on by itself.
        token, cache_dir: As in `from_pretrained`.
        **config_options: Other fields of [`MMBalanceConfig`].

    Returns:
        The model, in training order of modalities (audio, vision).

    Raises:
        ValueError: for a backbone that cannot be loaded or does not take audio or frames, an unknown fusion head,
            option or field.
    """
    unknown = set(config_options) - set(MMBalanceConfig.__dataclass_fields__)
    if unknown:
        name = sorted(unknown)[0]
        close = difflib.get_close_matches(name, MMBalanceConfig.__dataclass_fields__, n=1)
        raise ValueError(f"unknown option {name!r}" + (f": did you mean {close[0]!r}?" if close else ""))
    fusion = load_fusion_head(fusion)
    fusion_class(fusion)
    hub = {"trust_remote_code": trust_remote_code, "token": token, "cache_dir": cache_dir}
    audio_model, audio_config = _load(audio, DEFAULT_AUDIO, "audio", "input_values", dtype, audio_revision, hub)
    vision_model, vision_config = _load(vision, DEFAULT_VISION, "vision", "pixel_values", dtype, vision_revision, hub)
    if audio_max_length is not None:
        audio_model, audio_config = _fit_audio_length(audio_model, audio_config, audio_max_length)
    config = model_class.config_class(
        audio_config=audio_config.to_dict(),
        vision_config=vision_config.to_dict(),
        fusion=fusion,
        id2label={int(index): label for index, label in id2label.items()},
        label2id={label: int(index) for index, label in id2label.items()},
        **config_options,
    )
    model = model_class(config).to(dtype)
    for tower, loaded in ((model.audio_model, audio_model), (model.vision_model, vision_model)):
        if loaded is not None:
            _copy_weights(tower, loaded)
    model.freeze_towers(trainable_layers)
    return model


def _load(
    backbone: Backbone,
    default: str,
    modality: str,
    main_input: str,
    dtype: torch.dtype,
    revision: str | None,
    hub: dict,
) -> tuple[PreTrainedModel | None, PreTrainedConfig]:
    if isinstance(backbone, PreTrainedConfig):
        model_class = MODEL_MAPPING.get(type(backbone), None)
        _check_input(model_class, modality, main_input)
        tower_width(backbone)
        return None, backbone
    model: PreTrainedModel
    if isinstance(backbone, PreTrainedModel):
        model = backbone.base_model  # type: ignore[assignment]  # without the head of, say, a classifier
    else:
        name = str(backbone or default)
        hub = {**hub, "revision": revision or "main"}
        try:
            config = AutoConfig.from_pretrained(name, **hub)
            options = {"dtype": dtype, "use_safetensors": True, **tower_options(config)}
            model = AutoModel.from_pretrained(name, config=config, **options, **hub)
        except (OSError, ValueError) as error:
            text = f"{modality} backbone {name!r} cannot be loaded: {error}"
            if "safetensors" in str(error):
                text += (
                    "\nPickled weights are not read, since they can run any code: if you trust them, load the backbone"
                    " yourself and pass the model"
                )
            raise ValueError(text) from error
    _check_input(type(model), modality, main_input)
    tower_width(model.config)
    return model, model.config


def _check_input(model_class: Any, modality: str, main_input: str) -> None:
    taken = getattr(model_class, "main_input_name", main_input)  # None: a class known to the Hub only
    if taken != main_input:
        raise ValueError(
            f"{modality} backbone {model_class.__name__} takes {taken}, not {main_input}: it is no {modality} model"
            " that can be used here"
        )


def _fit_audio_length(
    model: PreTrainedModel | None, config: PreTrainedConfig, max_length: int
) -> tuple[PreTrainedModel | None, PreTrainedConfig]:
    if config.model_type != "audio-spectrogram-transformer":
        raise ValueError(f"audio_max_length is for AST backbones, not for {config.model_type!r}: leave it out")
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
        model = resized
    return model, fitted


def _copy_weights(tower: PreTrainedModel, loaded: PreTrainedModel) -> None:
    missing, unexpected = tower.load_state_dict(loaded.state_dict(), strict=False)
    # A backbone passed as a loaded model may still have the pooling layer that the tower does without.
    unexpected = [key for key in unexpected if not key.startswith("pooler.")]
    if missing or unexpected:
        raise ValueError(f"backbone {type(loaded).__name__}: missing weights {missing}, unexpected {unexpected}")


__all__ = ["compose_from_backbones"]

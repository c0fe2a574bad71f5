"""Model and processor of a run, from its arguments and the clips they have to fit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from transformers import AutoConfig, PreTrainedConfig, set_seed

from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.data.clips import ClipSplits
from hf_mmbalance.model.backbones_mmbalance import DEFAULT_AUDIO, DEFAULT_VISION
from hf_mmbalance.training.arguments import ModelArguments
from hf_mmbalance.training.batches import SpecAugment
from hf_mmbalance.training.trainer import check_classes


FITTED_CLIPS = 200  # train clips looked at when the spectrogram length is fitted
ROUND_FRAMES = 16


def build_model_and_processor(
    arguments: ModelArguments, clips: ClipSplits, seed: int
) -> tuple[MMBalanceForAudioVisualClassification, MMBalanceProcessor]:
    """Compose what the arguments name, with as many classes and spectrogram frames as the clips need.

    Raises:
        ValueError: as [`compose_from_backbones`]; or if a trained model has other classes than the clips.
    """
    set_seed(seed)
    if arguments.model_name_or_path is not None:
        return _load_trained(arguments, clips)
    audio = _backbone(arguments.audio_config, arguments.audio_model, DEFAULT_AUDIO)
    vision = _backbone(arguments.vision_config, arguments.vision_model, DEFAULT_VISION)
    processor = MMBalanceProcessor.from_backbones(
        audio,
        vision,
        audio_max_length=_audio_max_length(arguments, audio, clips),
        frames_per_clip=_frames_per_clip(clips),
        audio_revision=arguments.audio_revision,
        vision_revision=arguments.vision_revision,
        trust_remote_code=arguments.trust_remote_code,
    )
    _set_statistics(processor, arguments)
    model = MMBalanceForAudioVisualClassification.from_backbones(
        audio,
        vision,
        id2label=dict(enumerate(clips.classes)),
        audio_max_length=getattr(processor.feature_extractor, "max_length", None) if _is_ast(audio) else None,
        audio_revision=arguments.audio_revision,
        vision_revision=arguments.vision_revision,
        trust_remote_code=arguments.trust_remote_code,
        trainable_layers=_layers(arguments.trainable_layers),
        class_weights=_class_weights(clips) if arguments.class_weighted_loss else None,
        **{name: getattr(arguments, name) for name in CONFIG_FIELDS},
    )
    if arguments.attn_implementation is not None:
        model.set_attn_implementation(arguments.attn_implementation)
    return model, processor


CONFIG_FIELDS = (
    "fusion",
    "fusion_options",
    "unimodal_head",
    "frame_pooling",
    "classifier_dropout",
    "modality_dropout",
    "fused_loss_weight",
    "unimodal_loss_weight",
    "balance_loss_weight",
    "allocation_shrinkage",
    "label_smoothing",
    "initializer_range",
)


def spec_augment(arguments: ModelArguments, seed: int) -> SpecAugment | None:
    """The spectrogram masks that the arguments ask for."""
    if not (arguments.frequency_masks or arguments.time_masks):
        return None
    return SpecAugment(
        arguments.frequency_masks,
        arguments.frequency_mask_width,
        arguments.time_masks,
        arguments.time_mask_width,
        seed=seed,
    )


def _load_trained(
    arguments: ModelArguments, clips: ClipSplits
) -> tuple[MMBalanceForAudioVisualClassification, MMBalanceProcessor]:
    name = arguments.model_name_or_path
    model = MMBalanceForAudioVisualClassification.from_pretrained(name, trust_remote_code=arguments.trust_remote_code)
    check_classes(model.config, clips.classes)
    model.freeze_towers(_layers(arguments.trainable_layers))
    return model, MMBalanceProcessor.from_pretrained(name)


def _set_statistics(processor: MMBalanceProcessor, arguments: ModelArguments) -> None:
    for part, names in ((processor.feature_extractor, ("mean", "std")), (processor.image_processor, IMAGE_STATISTICS)):
        for name in names:
            value = getattr(arguments, name if name in IMAGE_STATISTICS else f"audio_{name}")
            if value is not None:
                setattr(part, name, value)


IMAGE_STATISTICS = ("image_mean", "image_std")


def _backbone(config: dict[str, Any] | None, name: str | None, default: str) -> str | PreTrainedConfig:
    if config is None:
        return name or default
    if name is not None:
        raise ValueError(f"a backbone is named ({name}) and configured: give one of the two")
    config = dict(config)
    model_type = config.pop("model_type", None)
    if model_type is None:
        raise ValueError(
            f"backbone config {config} names no model_type, e.g. 'audio-spectrogram-transformer' or 'vit'"
        )
    try:
        return AutoConfig.for_model(model_type, **config)
    except ValueError as error:
        raise ValueError(f"model_type={model_type!r} is no backbone that transformers knows") from error


def _is_ast(audio: str | PreTrainedConfig) -> bool:
    config = audio if isinstance(audio, PreTrainedConfig) else AutoConfig.from_pretrained(audio)
    return config.model_type == "audio-spectrogram-transformer"


def _audio_max_length(arguments: ModelArguments, audio: str | PreTrainedConfig, clips: ClipSplits) -> int | None:
    if arguments.audio_max_length is not None or isinstance(audio, PreTrainedConfig) or not _is_ast(audio):
        return arguments.audio_max_length
    return fitted_frames(clips)


def fitted_frames(clips: ClipSplits) -> int:
    """Spectrogram frames (10 ms) that hold the longest of 200 train clips spread over the split, in steps of 16."""
    train = clips.splits["train"]
    picked = np.unique(np.linspace(0, len(train) - 1, min(FITTED_CLIPS, len(train))).astype(int))
    seconds = 0.0
    for index in picked:
        example = train[int(index)]
        if example["audio"] is not None:
            seconds = max(seconds, len(example["audio"]) / example["sampling_rate"])
    return max(ROUND_FRAMES, math.ceil(seconds * 100 / ROUND_FRAMES) * ROUND_FRAMES)


def _frames_per_clip(clips: ClipSplits) -> int:
    train = clips.splits["train"]
    counts = [len(train[index]["frames"]) for index in range(min(8, len(train))) if train[index]["frames"] is not None]
    return max(counts, default=8)


def _layers(text: str) -> int | str:
    return int(text) if str(text).isdigit() else text


def _class_weights(clips: ClipSplits) -> list[float]:
    count = np.bincount(clips.splits["train"].labels, minlength=len(clips.classes))
    if not count.all():
        missing = clips.classes[int(np.argmin(count))]
        raise ValueError(f"class_weighted_loss: class {missing!r} has no train clip")
    return [float(value) for value in count.sum() / (len(count) * count)]

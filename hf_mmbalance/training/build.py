"""Construction of a run's model and processor from its arguments and clips."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, set_seed
from transformers.models.audio_spectrogram_transformer import ASTFeatureExtractor

from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.data.clips import ClipSplits
from hf_mmbalance.embedding.build import AST, TowerName, fitted_frames, reading_of, warn_of_lower_rate
from hf_mmbalance.hub.errors import explain_hub_errors
from hf_mmbalance.hub.limits import check_head
from hf_mmbalance.hub.reach import check_reachable
from hf_mmbalance.model.backbones_mmbalance import DEFAULTS
from hf_mmbalance.training.arguments import TOWER_FIELDS, ModelArguments
from hf_mmbalance.training.batches import SpecAugment
from hf_mmbalance.training.checks import check_classes


# Fields of the model's config: those that define what is built, and those that only affect training.
BUILT_FIELDS = (
    "fusion",
    "fusion_options",
    "unimodal_head",
    "frame_pooling",
    "classifier_dropout",
    "initializer_range",
)
LOSS_FIELDS = ("modality_dropout", "fused_loss_weight", "unimodal_loss_weight", "label_smoothing")
IMAGE_STATISTICS = ("image_mean", "image_std")
HEADS_ONLY_RATE = 1e-3  # usual learning rate of heads on frozen towers


def build_model_and_processor(
    arguments: ModelArguments, clips: ClipSplits, seed: int
) -> tuple[MMBalanceForAudioVisualClassification, MMBalanceProcessor]:
    """Build the model that the arguments describe, with as many classes and spectrogram frames as the clips need.

    Raises:
        ValueError: as in [`compose_from_backbones`], or if a trained model has different classes from the clips.
        HubError: if a backbone or model cannot be fetched from the Hub.
    """
    set_seed(seed)
    load = _compose if arguments.model_name_or_path is None else _load_trained
    _check_reachable(arguments)
    with explain_hub_errors("building the model"):
        model, processor = load(arguments, clips)
    if arguments.attn_implementation is not None:
        model.set_attn_implementation(arguments.attn_implementation)
    return model, processor


def frozen_notes(arguments: ModelArguments, learning_rate: float) -> list[str]:
    """Return notes about frozen towers: random ones never learn, and heads need a larger learning rate."""
    if str(arguments.trainable_layers) != "0":
        return []
    notes = []
    configured = [name for name in ("audio", "vision") if getattr(arguments, f"{name}_config") is not None]
    if configured and arguments.model_name_or_path is None:
        notes.append(
            f"tower(s) with random weights are frozen and learn nothing: {', '.join(configured)}; remove"
            " --trainable_layers, or name pretrained towers"
        )
    elif learning_rate < HEADS_ONLY_RATE:
        notes.append(
            f"the towers are frozen and only the heads learn: --learning_rate {learning_rate:g} is small for heads,"
            f" {HEADS_ONLY_RATE:g} is usual"
        )
    if arguments.balancing is not None:
        notes.append(f"the towers are frozen: --balancing {arguments.balancing} changes only how the heads learn")
    return notes


def tower_names(arguments: ModelArguments) -> dict[str, TowerName]:
    """Return the pretrained towers by modality, without those that come from a config or a trained model."""
    if arguments.model_name_or_path is not None:
        return {}
    return {
        modality: TowerName(
            getattr(arguments, f"{modality}_model") or default, getattr(arguments, f"{modality}_revision")
        )
        for modality, default in DEFAULTS.items()
        if getattr(arguments, f"{modality}_config") is None
    }


def _check_reachable(arguments: ModelArguments) -> None:
    if arguments.model_name_or_path is not None:
        check_reachable(arguments.model_name_or_path)
    for tower in tower_names(arguments).values():
        check_reachable(tower.name, tower.revision)


def _compose(
    arguments: ModelArguments, clips: ClipSplits
) -> tuple[MMBalanceForAudioVisualClassification, MMBalanceProcessor]:
    audio, vision = (_backbone(arguments, modality) for modality in DEFAULTS)
    named = None if isinstance(audio, PreTrainedConfig) else tower_names(arguments)["audio"]
    length = arguments.audio_max_length
    if length is None and named is not None and named.config(arguments.trust_remote_code).model_type == AST:
        length = fitted_frames(clips)
    processor = MMBalanceProcessor.from_backbones(
        audio,
        vision,
        audio_max_length=length,
        reading=reading_of(clips),
        audio_revision=arguments.audio_revision,
        vision_revision=arguments.vision_revision,
        trust_remote_code=arguments.trust_remote_code,
    )
    warn_of_lower_rate(clips, processor)
    _set_statistics(processor, arguments)
    with _options_checked():
        model = MMBalanceForAudioVisualClassification.from_backbones(
            audio,
            vision,
            id2label=dict(enumerate(clips.classes)),
            audio_max_length=length,
            audio_revision=arguments.audio_revision,
            vision_revision=arguments.vision_revision,
            trust_remote_code=arguments.trust_remote_code,
            trainable_layers=_layers(arguments.trainable_layers),
            class_weights=_class_weights(clips) if arguments.class_weighted_loss else None,
            **{name: getattr(arguments, name) for name in (*BUILT_FIELDS, *LOSS_FIELDS)},
        )
    return model, processor


@contextmanager
def _options_checked() -> Iterator[None]:
    """Report an invalid config field as the option that set it, not as a config of another version."""
    try:
        yield
    except StrictDataclassError as error:
        if str(error.__cause__).startswith((*BUILT_FIELDS, *LOSS_FIELDS)):
            raise ValueError(str(error.__cause__)) from None  # without a cause, which `explain_hub_errors` would read
        raise


def spec_augment(arguments: ModelArguments, processor: MMBalanceProcessor, seed: int) -> SpecAugment | None:
    """Return the spectrogram masks that the arguments ask for, or None.

    Raises:
        ValueError: if the audio tower is not an AST.
    """
    if not (arguments.frequency_masks or arguments.time_masks):
        return None
    if not isinstance(processor.feature_extractor, ASTFeatureExtractor):
        raise ValueError(
            "frequency_masks and time_masks are for AST, and this audio tower is a different one: remove them"
        )
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
    name = str(arguments.model_name_or_path)
    for field in TOWER_FIELDS:
        if getattr(arguments, field) is not None:
            raise ValueError(
                f"--{field} cannot be combined with --model_name_or_path: {name} has its own towers, remove the option"
            )
    declared, _ = PreTrainedConfig.get_config_dict(name)
    check_head(declared, name, arguments.trust_remote_code)
    model = MMBalanceForAudioVisualClassification.from_pretrained(name, trust_remote_code=arguments.trust_remote_code)
    check_classes(model.config, clips.classes)
    for field in BUILT_FIELDS:
        asked, built = getattr(arguments, field), getattr(model.config, field)
        if asked != built and (field in arguments.named or asked != getattr(ModelArguments, field, None)):
            raise ValueError(f"--{field} {asked}: {name} was built with {built!r}; remove the option")
    for field in LOSS_FIELDS:
        setattr(model.config, field, getattr(arguments, field))
    model.config.validate_choices()
    model.config.validate_modalities()
    model.config.class_weights = _class_weights(clips) if arguments.class_weighted_loss else None
    model.freeze_towers(_layers(arguments.trainable_layers))
    processor = MMBalanceProcessor.from_pretrained(name)
    processor.reading = reading_of(clips).to_dict()
    _set_statistics(processor, arguments)
    return model, processor


def _set_statistics(processor: MMBalanceProcessor, arguments: ModelArguments) -> None:
    for part, names in ((processor.feature_extractor, ("mean", "std")), (processor.image_processor, IMAGE_STATISTICS)):
        for name in names:
            value = getattr(arguments, name if name in IMAGE_STATISTICS else f"audio_{name}")
            if value is not None:
                setattr(part, name, value)


def _backbone(arguments: ModelArguments, modality: str) -> str | PreTrainedConfig:
    name, given = getattr(arguments, f"{modality}_model"), getattr(arguments, f"{modality}_config")
    if given is None:
        return name or DEFAULTS[modality]
    if name is not None:
        raise ValueError(f"{modality}_model={name!r} and {modality}_config are both given: remove one of the two")
    config = dict(given)
    model_type = config.pop("model_type", None)
    if model_type is None:
        raise ValueError(
            f"{modality}_config {config} names no model_type, e.g. 'audio-spectrogram-transformer' or 'vit'"
        )
    try:
        return AutoConfig.for_model(model_type, **config)
    except ValueError as error:
        raise ValueError(f"model_type={model_type!r} is not a backbone that transformers knows") from error


def _layers(text: str) -> int | str:
    return int(text) if str(text).isdigit() else text


def _class_weights(clips: ClipSplits) -> list[float]:
    count = np.bincount(clips.splits["train"].labels, minlength=len(clips.classes))
    if not count.all():
        missing = clips.classes[int(np.argmin(count))]
        raise ValueError(f"class_weighted_loss: class {missing!r} has no train clip")
    return [float(value) for value in count.sum() / (len(count) * count)]

"""Training with frozen towers: they run once over each clip, and training reads the stored features."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from transformers.utils import logging

from hf_mmbalance.data.clips import ClipSplits
from hf_mmbalance.embedding.draws import Draws, changes_by_epoch
from hf_mmbalance.embedding.embed import EmbedOptions, embed
from hf_mmbalance.embedding.parts import EmbeddingError
from hf_mmbalance.embedding.stored import EmbeddedClips, Embeddings
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.processing_mmbalance import MMBalanceProcessor
from hf_mmbalance.training.arguments import ModelArguments, RunArguments
from hf_mmbalance.training.build import tower_names


logger = logging.get_logger(__name__)

FEATURES = "embeddings"  # subfolder of a run's folder


def stored_clips(arguments: RunArguments) -> ClipSplits:
    """Load the clips whose features `--embeddings` holds.

    Raises:
        EmbeddingError: if the folder cannot be used.
        ValueError: if an option asks for training of the towers, or for augmentation of media that are not read.
    """
    model = arguments.model
    if str(model.trainable_layers) not in ("all", "0"):
        raise ValueError(
            f"--trainable_layers {model.trainable_layers} cannot be combined with --embeddings: remove the option"
        )
    model.trainable_layers = "0"  # towers that are not run cannot learn
    if model.frequency_masks or model.time_masks or arguments.data.train_corruptions != ["none"]:
        raise ValueError("--embeddings holds features, which SpecAugment and --train_corruptions cannot change:"
                         " remove them, or embed with --augmented")  # fmt: skip
    stored = Embeddings.read(str(arguments.data.embeddings))
    arguments.data.dataset = stored.plan["dataset"]
    if model.model_name_or_path is None:
        _name_towers(model, stored)
    length = getattr(stored.processor.feature_extractor, "max_length", None)
    if model.audio_max_length is None and model.audio_config is None and model.model_name_or_path is None:
        model.audio_max_length = length
    return stored.clip_splits()


def _name_towers(model: ModelArguments, stored: Embeddings) -> None:
    """Set each tower that is not named to the one that the features come from.

    Raises:
        EmbeddingError: if that tower has no name.
    """
    for modality, tower in stored.plan["towers"].items():
        if getattr(model, f"{modality}_model") is None and getattr(model, f"{modality}_config") is None:
            if tower["name"] is None:
                raise EmbeddingError(
                    f"{stored.folder}: its {modality} features come from a tower without a name, built from a config"
                    f" or a trained model: give --{modality}_config or --model_name_or_path as you did to embed"
                )
            setattr(model, f"{modality}_model", tower["name"])
            setattr(model, f"{modality}_revision", getattr(model, f"{modality}_revision") or tower["revision"])


def frozen_clips(
    clips: ClipSplits,
    model: MMBalanceForAudioVisualClassification,
    processor: MMBalanceProcessor,
    arguments: RunArguments,
) -> ClipSplits:
    """Return the clips for training, replaced by their features if the towers are frozen and no clip ever changes.

    Raises:
        EmbeddingError: if the features come from different towers than the model's.
    """
    first = next(iter(clips.splits.values()))
    if isinstance(first, EmbeddedClips):
        first.embeddings.check_towers(model, processor)
        return clips
    if str(arguments.model.trainable_layers) != "0":
        return clips
    reason = _why_not(clips, model, arguments)
    if reason is not None:
        logger.warning("the towers are frozen, but run in every epoch: %s", reason)
        return clips
    folder = Path(str(arguments.training.output_dir)) / FEATURES
    decision = arguments.decision
    fitted = bool(model.fusion.fitted) and decision.calibration_corruptions != ["none"]
    draws = Draws(
        decision.calibration_draws if fitted else 1,
        tuple(decision.calibration_corruptions) if fitted else ("seen",),
        seed=arguments.training.seed,
    )
    options = EmbedOptions(batch_size=arguments.training.per_device_eval_batch_size)
    embed(clips, model, processor, folder, draws=draws, options=options, towers=tower_names(arguments.model))
    return dataclasses.replace(Embeddings.read(folder).clip_splits(), bayes=clips.bayes)


def _why_not(clips: ClipSplits, model: MMBalanceForAudioVisualClassification, arguments: RunArguments) -> str | None:
    """Return the reason why the towers' features cannot be stored; None if they can."""
    if model.config.frame_pooling != "mean":
        return f"--frame_pooling {model.config.frame_pooling} learns from the features of single frames"
    if arguments.model.frequency_masks or arguments.model.time_masks:
        return "SpecAugment changes the spectrograms of train clips"
    if changes_by_epoch(clips.splits["train"]):
        return "train clips are augmented; `mmbalance embed --augmented N` and --embeddings keep N versions of each"
    return None

"""Build one model and its processor from two models on the Hub; classifiers can keep their own heads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from hf_mmbalance.data.clips import ClipSplits
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.processing_mmbalance import MMBalanceProcessor
from hf_mmbalance.model.reading_mmbalance import ReadingSpec


logger = logging.get_logger(__name__)

FITTED_CLIPS = 200  # clips of a split that are read to fit the spectrogram length
ROUND_FRAMES = 16
CLASSIFIERS = ("ForAudioClassification", "ForImageClassification", "ForVideoClassification",
               "ForSequenceClassification")  # fmt: skip
AST = "audio-spectrogram-transformer"


@dataclass(frozen=True)
class TowerName:
    """A model on the Hub or in a folder.

    Attributes:
        name: repository or folder.
        revision: branch, tag or commit.
        backbone_only: ignore its head, even if it is a classifier.
    """

    name: str
    revision: str | None = None
    backbone_only: bool = False

    def config(self, trust_remote_code: bool = False) -> PreTrainedConfig:
        """Load the config of the model.

        Raises:
            ValueError: the config cannot be loaded.
        """
        try:
            return AutoConfig.from_pretrained(
                self.name, revision=self.revision or "main", trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"model {self.name!r} cannot be loaded: {error}") from error

    def labels(self, trust_remote_code: bool = False) -> list[str] | None:
        """Return the names of a classifier's labels in order, or None for a backbone."""
        config = self.config(trust_remote_code)
        is_classifier = any(name.endswith(CLASSIFIERS) for name in config.architectures or [])
        if self.backbone_only or not is_classifier:
            return None
        labels: dict[Any, str] = config.id2label or {}
        return [str(labels[index]) for index in sorted(labels)]


def build_towers(
    towers: dict[str, TowerName],
    clips: ClipSplits,
    label_maps: dict[str, dict[str, list[str]]],
    *,
    trust_remote_code: bool = False,
    **fields: Any,
) -> tuple[MMBalanceForAudioVisualClassification, MMBalanceProcessor]:
    """Build a model with two towers, and its processor.

    Args:
        towers: one tower per modality, `audio` and `vision`.
        clips: clips that determine the classes and, for an AST backbone, the length of its spectrograms.
        label_maps: modality -> class -> labels of the classifier, for classifiers that keep their head.
        trust_remote_code: run code that comes with the towers.
        **fields: further fields of the model's config.

    Raises:
        ValueError: a tower cannot be loaded or is of the wrong kind.
    """
    audio, vision = towers["audio"], towers["vision"]
    config = audio.config(trust_remote_code)
    # A classifier that keeps its head also keeps the spectrogram length that it was trained on.
    length = fitted_frames(clips) if config.model_type == AST and "audio" not in label_maps else None
    hub: dict[str, Any] = {
        "audio_revision": audio.revision,
        "vision_revision": vision.revision,
        "trust_remote_code": trust_remote_code,
    }
    processor = MMBalanceProcessor.from_backbones(
        audio.name, vision.name, audio_max_length=length, reading=reading_of(clips), **hub
    )
    warn_of_lower_rate(clips, processor)
    model = MMBalanceForAudioVisualClassification.from_backbones(
        audio.name,
        vision.name,
        id2label=dict(enumerate(clips.classes)),
        audio_max_length=length,
        trainable_layers=0,
        label_maps=label_maps or None,
        **hub,
        **fields,
    )
    return model, processor  # type: ignore[return-value]


def warn_of_lower_rate(clips: ClipSplits, processor: MMBalanceProcessor) -> None:
    """Warn if clips are read at a lower sampling rate than the audio tower was trained on."""
    if clips.sampling_rate < processor.audio_sampling_rate and PartialState().is_main_process:
        logger.warning(
            "clips are read at %d Hz, but the audio tower was trained on %d Hz: --sampling_rate %d keeps the higher"
            " frequencies",
            clips.sampling_rate, processor.audio_sampling_rate, processor.audio_sampling_rate,
        )  # fmt: skip


def fitted_frames(clips: ClipSplits) -> int:
    """Return how many spectrogram frames (10 ms each) hold the longest clips, rounded up to a multiple of 16.

    The lengths come from up to 200 clips spread over the first split, and from up to 200 of the unlabelled clips.
    """
    seconds = 0.0
    for part in filter(None, (first_split(clips), clips.unlabelled)):
        picked = np.unique(np.linspace(0, len(part) - 1, min(FITTED_CLIPS, len(part))).astype(int))
        for example in (part[int(index)] for index in picked):
            if example["audio"] is not None:
                seconds = max(seconds, len(example["audio"]) / example["sampling_rate"])
    return max(ROUND_FRAMES, math.ceil(seconds * 100 / ROUND_FRAMES) * ROUND_FRAMES)


def first_split(clips: ClipSplits) -> Any:
    """Return the first split (normally the train clips), or the unlabelled clips if there is no split."""
    return next(iter(clips.splits.values()), clips.unlabelled)


def reading_of(clips: ClipSplits) -> ReadingSpec:
    """Return how the clips were read; for clips that are not media files, their rate, frame count and frame size."""
    if clips.reading is not None:
        return clips.reading
    frames = first_split(clips)[0]["frames"]
    count, size = (None, None) if frames is None else (len(frames), frames[0].shape[:2])
    return ReadingSpec(sampling_rate=clips.sampling_rate, round_audio=False, frames=count, frame_size=size)

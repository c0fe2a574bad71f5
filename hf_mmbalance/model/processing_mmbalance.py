"""Processor that converts clips (files, arrays, images) to the model's input tensors."""

import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    PreTrainedConfig,
    ProcessorMixin,
    WhisperFeatureExtractor,
)
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.audio_spectrogram_transformer import ASTFeatureExtractor
from transformers.models.vit import ViTImageProcessorPil
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.utils import cached_file, logging

from .audio_features_mmbalance import audio_features, has_audio_mask, input_seconds
from .inputs_mmbalance import is_batch_of_audio, is_batch_of_frames
from .media_request_mmbalance import LIMITS, Limits, MediaError
from .media_sound_mmbalance import resample
from .reading_mmbalance import Clip, ReadingSpec, read
from .towers_mmbalance import WHISPER, frames_per_clip


logger = logging.get_logger(__name__)


class MMBalanceProcessor(ProcessorMixin):
    """
    Processor of clips: converts audio to `input_values` and frames to `pixel_values`, with masks of what is present.

    Args:
        feature_extractor: Feature extractor of the audio tower. Those of AST, CLAP and Whisper return spectrograms of
            a fixed length; others pad a batch to its longest clip. Except for AST and CLAP, an `audio_mask` marks the
            padding.
        image_processor: Image processor of the vision tower.
        reading (`dict` or [`ReadingSpec`], *optional*):
            How clips are read: rates, frames, crop, spans. Training sets it to its own values, so that a saved model
            reads raw files as its training data were read. Default: the audio tower's rate and 8 frames per file.
    """

    _auto_class = "AutoProcessor"
    audio_kwargs = {"return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(
        self,
        feature_extractor: Any = None,
        image_processor: Any = None,
        reading: dict[str, Any] | ReadingSpec | None = None,
        **kwargs: Any,
    ):
        if reading is None:
            reading = ReadingSpec(sampling_rate=getattr(feature_extractor, "sampling_rate", 16_000))
        # Stored as plain values, as they are saved; the conversion also checks them.
        self.reading = (ReadingSpec.from_dict(reading) if isinstance(reading, dict) else reading).to_dict()
        # Saving sets this and loading removes it; setting it here makes a loaded processor equal to the saved one.
        self.auto_map = {"AutoProcessor": f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"}
        super().__init__(feature_extractor, image_processor, **kwargs)

    @property
    def spec(self) -> ReadingSpec:
        """How clips are read."""
        return ReadingSpec.from_dict(self.reading)

    @classmethod
    def from_backbones(
        cls,
        audio: str | os.PathLike | PreTrainedConfig,
        vision: str | os.PathLike | PreTrainedConfig,
        *,
        audio_max_length: int | None = None,
        reading: dict[str, Any] | ReadingSpec | None = None,
        audio_revision: str | None = None,
        vision_revision: str | None = None,
        trust_remote_code: bool = False,
        token: str | bool | None = None,
        cache_dir: str | None = None,
    ) -> "MMBalanceProcessor":
        """Create the processor that fits two backbones.

        Args:
            audio, vision: Hub name, folder or config of the backbones. If an AST or ViT backbone has no processor file
                (or is a config), one is made from its config: AST's AudioSet statistics, mean and std 0.5.
            audio_max_length: Length of AST's input in spectrogram frames (10 ms each), as given to the model.
            reading: How clips are read, see the class. A video backbone sets the number of frames.
            audio_revision, vision_revision, trust_remote_code, token, cache_dir: As in `from_pretrained`.

        Raises:
            ValueError: if a backbone has no processor and none can be made, or `reading` has a different number of
                frames from a video backbone.
        """
        hub = {"trust_remote_code": trust_remote_code, "token": token, "cache_dir": cache_dir}
        extractor = _load_part(AutoFeatureExtractor, audio, audio_revision, _new_feature_extractor, hub)
        image_processor = _load_part(AutoImageProcessor, vision, vision_revision, _new_image_processor, hub)
        if audio_max_length is not None:
            extractor.max_length = audio_max_length
        number = _number_of_frames(vision, {**hub, "revision": vision_revision or "main"})
        if number is not None:
            spec = ReadingSpec.from_dict(reading) if isinstance(reading, dict) else reading
            spec = spec or ReadingSpec(sampling_rate=getattr(extractor, "sampling_rate", 16_000))
            if spec.frames not in (None, number):
                raise ValueError(
                    f"reading.frames={spec.frames}, but the vision backbone accepts clips of {number} frames: read"
                    f" {number} frames per clip (frames={number})"
                )
            reading = replace(spec, frames=number)
        return cls(extractor, image_processor, reading=reading)

    def __call__(
        self,
        audio: Any = None,
        frames: Any = None,
        images: Any = None,
        video: Any = None,
        start: float | list[float | None] | None = None,
        end: float | list[float | None] | None = None,
        max_seconds: float | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """Read and prepare one clip or a list of clips.

        Args:
            audio: Waveform, path or bytes of one clip, or a list of them, with None for a clip without audio.
                Waveforms are `(S,)`, `(channels, S)` or `(S, channels)`, at any rate.
            frames: Frames of one clip (a list, or an array `(T, H, W, 3)`), or a list of those, with None for a clip
                without frames. Clips can have different numbers of frames. Pass them uncropped: the crop and the
                number of frames in `reading` are applied to them. Each frame counts as shown for an equal part of the
                clip.
            images: Alias of `frames` if nested. A flat list is one image per clip, and `pixel_values` are then
                `(B, 3, H, W)`.
            video: File(s) from which audio and evenly spaced frames are read. If you also pass `audio` or `frames`,
                they replace those of the file.
            start, end: Seconds of the span to read, one for each clip; None for complete clips.
            max_seconds: Maximum length of a file, 600 by default.
            **kwargs: `sampling_rate` in Hz, required for waveforms passed as arrays; `return_tensors`, `"pt"`
                (default) or `"np"`; options of the feature extractor and image processor, flat or as
                `audio_kwargs={...}` and `images_kwargs={...}`.

        Returns:
            `BatchFeature` with `modality_mask` `(B, M)`. If any clip has audio, it also has `input_values` `(B, ...)`
            and, for raw audio and Whisper, `audio_mask` `(B, S)`, 0 for padding. If any clip has frames, it also has
            `pixel_values` `(B, T, 3, H, W)` and `frame_mask` `(B, T)`.

        Raises:
            ValueError: if an input is invalid; the message names the clip, the problem and the remedy.
            MediaError: (a ValueError) if a file cannot be used.
        """
        for name in ("text", "videos"):
            if kwargs.get(name) is not None:  # transformers would ignore them silently
                raise ValueError(f"{name}= is not supported: pass audio=, frames= (or images=) or video=")
        merged = self._merge_kwargs(ProcessingKwargs, **kwargs)  # type: ignore[arg-type]
        sampling_rate = merged["audio_kwargs"].pop("sampling_rate", None)
        if frames is not None and images is not None:
            raise ValueError("frames and images are two names for the same input: pass one of them")
        flat = images is not None and not _is_nested(images)
        if flat:
            frames = [[image] for image in (images if isinstance(images, (list, tuple)) else [images])]
        elif images is not None:
            frames = images
        spec = replace(self.spec, frames=None) if flat else self.spec
        limits = LIMITS if max_seconds is None else replace(LIMITS, max_seconds=max_seconds)
        clips = [
            _read_clip(source, index, spec, limits)
            for index, source in enumerate(_sources(audio, frames, video, sampling_rate, start, end))
        ]
        self.warn_of_longer([clip.seconds for clip in clips], spans=start is not None)
        data = self.tensors(clips, merged["audio_kwargs"], merged["images_kwargs"])
        if flat:
            data["pixel_values"] = data["pixel_values"][:, 0]
        return data

    def tensors(
        self,
        clips: list[Clip],
        audio_kwargs: dict[str, Any] | None = None,
        images_kwargs: dict[str, Any] | None = None,
    ) -> BatchFeature:
        """Convert clips that were already read to the model's input; training and the pipeline call this method.

        Args:
            clips: Results of [`read`].
            audio_kwargs, images_kwargs: Options of the feature extractor and image processor; `return_tensors`, `"pt"`
                (default) or `"np"`.

        Returns:
            The same as `__call__`.
        """
        audio_options, image_options = dict(audio_kwargs or {}), dict(images_kwargs or {})
        asked = [options.pop("return_tensors", None) or "pt" for options in (audio_options, image_options)]
        tensor_types = {getattr(kind, "value", kind) for kind in asked}  # a TensorType or its name
        if not tensor_types <= {"pt", "np"}:
            raise ValueError(f"return_tensors={asked[0]!r} is not supported: choose 'pt' or 'np'")
        for clip in clips:
            _check_clip(clip)
        waveforms = [
            None
            if clip.parts["audio"] is None
            else resample(clip.parts["audio"], clip.sampling_rate, self.audio_sampling_rate)
            for clip in clips
        ]
        frames = [[] if clip.parts["vision"] is None else list(clip.parts["vision"]) for clip in clips]
        data: dict[str, Any] = {}
        if any(wave is not None for wave in waveforms):
            data |= self._audio_features(waveforms, audio_options)
        if any(frames):
            data["pixel_values"], data["frame_mask"] = self._frame_features(frames, image_options)
        data["modality_mask"] = torch.tensor(
            [[wave is not None for wave in waveforms], [bool(part) for part in frames]]
        ).T
        if "np" in tensor_types:
            data = {name: values.numpy() for name, values in data.items()}
        return BatchFeature(data)

    def warn_of_longer(self, seconds: list[float], spans: bool) -> None:
        """Warn once if a model trained on spans is given complete clips, unless they are as short as spans."""
        spec = self.spec
        if spec.unit == "clip" or spans or not seconds:
            return
        if max(seconds) > (spec.longest_seconds or 0.0) + 1e-3:
            of = "" if spec.longest_seconds is None else f" of at most {spec.longest_seconds:.2f} s"
            logger.warning_once(  # type: ignore[attr-defined]
                f"this model was trained on spans{of}, single words or events, but got a complete clip: pass start="
                " and end= (seconds) of the span to classify"
            )

    @property
    def model_input_names(self) -> list[str]:
        masked = has_audio_mask(self.feature_extractor)
        return ["input_values", *["audio_mask"] * masked, "pixel_values", "frame_mask", "modality_mask"]

    @property
    def audio_seconds(self) -> float | None:
        """Length of the audio tower's input in seconds; `None` if it accepts audio of any length."""
        return input_seconds(self.feature_extractor)

    @property
    def audio_sampling_rate(self) -> int:
        """Sampling rate in Hz that the audio tower expects."""
        return self.feature_extractor.sampling_rate

    def _audio_features(self, waveforms: list[np.ndarray | None], options: dict) -> dict[str, torch.Tensor]:
        rows = [index for index, wave in enumerate(waveforms) if wave is not None]
        parts = audio_features(self.feature_extractor, [wave for wave in waveforms if wave is not None], options)
        return {name: _at_rows(values, rows, len(waveforms)) for name, values in parts.items()}

    def _frame_features(self, clips: list[list[np.ndarray]], options: dict) -> tuple[torch.Tensor, torch.Tensor]:
        counts = torch.tensor([len(clip) for clip in clips])
        pixels = self._pixels([frame for clip in clips for frame in clip], options)
        frame_mask = torch.arange(int(counts.max()))[None, :] < counts[:, None]
        out = pixels.new_zeros(*frame_mask.shape, *pixels.shape[1:])
        out[frame_mask] = pixels
        return out, frame_mask

    def _pixels(self, frames: list[np.ndarray], options: dict) -> torch.Tensor:
        processor = self.image_processor
        if not options and _only_normalises(processor, frames):
            # Same arithmetic as the image processor, for all frames at once instead of frame by frame.
            pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
            return (pixels * processor.rescale_factor - mean) / std
        pixels = processor(frames, return_tensors="pt", **options).pixel_values
        return pixels.flatten(0, 1) if pixels.dim() == 5 else pixels  # some processors treat the frames as one video


def _at_rows(values: torch.Tensor, rows: list[int], batch: int) -> torch.Tensor:
    """Place the values of the clips in `rows` at their indices in the batch, with zeros elsewhere."""
    out = values.new_zeros(batch, *values.shape[1:])
    out[rows] = values
    return out


def _only_normalises(processor: Any, frames: list[np.ndarray]) -> bool:
    if not isinstance(processor, ViTImageProcessorPil) or not (processor.do_rescale and processor.do_normalize):
        return False
    if any(getattr(processor, step, False) for step in ("do_center_crop", "do_pad")):
        return False
    size = (processor.size["height"], processor.size["width"])
    return all(frame.shape[:2] == size for frame in frames)


def _is_nested(images: Any) -> bool:
    if isinstance(images, (list, tuple)):
        return any(
            isinstance(image, (list, tuple)) or image is None or getattr(image, "ndim", 0) == 4 for image in images
        )
    return getattr(images, "ndim", 0) >= 4


def _sources(audio: Any, frames: Any, video: Any, rate: int | None, start: Any, end: Any) -> list[dict[str, Any]]:
    """Return one mapping per clip for [`read`], from arguments for one clip or lists for several."""
    given: dict[str, list[Any]] = {}
    for name, value, is_batch in (
        ("audio", audio, is_batch_of_audio(audio)),
        ("frames", frames, is_batch_of_frames(frames)),
        ("video", video, isinstance(video, (list, tuple))),
    ):
        if value is not None:
            given[name] = list(value) if is_batch else [value]
            if not given[name]:
                raise ValueError(f"{name} is an empty list: pass at least one clip, or omit {name}")
    if not given:
        raise ValueError("no modality at all: pass audio, frames or video")
    lengths = {name: len(values) for name, values in given.items()}
    batch = max(lengths.values())
    if set(lengths.values()) != {batch}:
        raise ValueError(f"{' and '.join(lengths)} have different numbers of clips: {sorted(lengths.values())}")
    for name, value in (("start", start), ("end", end)):
        values = list(value) if np.ndim(value) == 1 else [value] * batch
        if len(values) != batch:
            raise ValueError(f"{name} has {len(values)} entries for {batch} clips")
        given[name] = values
    sources = [{name: values[i] for name, values in given.items() if values[i] is not None} for i in range(batch)]
    empty = [i for i, source in enumerate(sources) if not {"audio", "frames", "video"} & set(source)]
    if empty:
        raise ValueError(f"no modality at all in clip(s) {empty}: every clip needs audio or frames")
    return [{**source, "sampling_rate": rate} for source in sources]


def _check_clip(clip: Clip) -> None:
    """Reject clips that no tower can process. Those from [`read`] pass; arrays of a user's own dataset may not."""
    audio, frames = clip.parts["audio"], clip.parts["vision"]
    if audio is None and frames is None:
        raise ValueError("no modality at all: every clip needs audio or frames")
    if audio is not None and not len(audio):
        raise ValueError("the audio is empty: pass None for a clip without audio")
    if audio is not None and not np.isfinite(audio).all():
        raise ValueError("the audio has NaN or infinite samples: repair it, or pass None for a clip without audio")
    if frames is not None and not len(frames):
        raise ValueError("zero frames: pass None for a clip without frames")


def _read_clip(source: dict[str, Any], index: int, spec: ReadingSpec, limits: Limits) -> Clip:
    """Read one clip; errors are prefixed with its index in the batch."""
    try:
        return read(source, spec, limits=limits)
    except MediaError as error:
        raise MediaError(error.reason, f"clip {index}: {error}") from None
    except ValueError as error:
        raise ValueError(f"clip {index}: {error}") from None


def _number_of_frames(vision: Any, hub: dict) -> int | None:
    """Return a video backbone's frames per clip; None for others, and for a folder with processor files only."""
    if isinstance(vision, PreTrainedConfig):
        return frames_per_clip(vision)
    try:
        return frames_per_clip(AutoConfig.from_pretrained(vision, **hub))
    except (OSError, ValueError):
        return None


def _load_part(auto_class: Any, backbone: Any, revision: str | None, make_new: Any, hub: dict) -> Any:
    if isinstance(backbone, PreTrainedConfig):
        return make_new(backbone)
    hub = {**hub, "revision": revision or "main"}
    try:
        return auto_class.from_pretrained(backbone, **hub)
    except (OSError, ValueError):
        return make_new(_config_of_backbone_without_processor(backbone, hub))


def _config_of_backbone_without_processor(backbone: Any, hub: dict) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(backbone, **hub)
    except (OSError, ValueError) as error:
        raise ValueError(f"backbone {str(backbone)!r} cannot be loaded: {error}") from error
    location = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if cached_file(backbone, name, _raise_exceptions_for_missing_entries=False, **location) is not None:
            raise ValueError(f"backbone {str(backbone)!r}: its {name} cannot be used; repair or remove the file")
    return config


def _new_feature_extractor(config: PreTrainedConfig) -> Any:
    if config.model_type == "audio-spectrogram-transformer":
        return ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)
    if config.model_type == WHISPER:  # two spectrogram frames of 10 ms per position
        return WhisperFeatureExtractor(config.num_mel_bins, chunk_length=config.max_source_positions // 50)
    raise ValueError(f"audio backbone {config.model_type!r} has no feature extractor: save one with its weights")


def _new_image_processor(config: PreTrainedConfig) -> ViTImageProcessorPil:
    size = getattr(config, "image_size", None)
    if size is None:
        raise ValueError(f"vision backbone {config.model_type!r} has no image processor: save one with its weights")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return ViTImageProcessorPil(size={"height": height, "width": width})


__all__ = ["MMBalanceProcessor"]

"""From clips as people have them (files, arrays, images) to what the model takes."""

import os
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, PreTrainedConfig, ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.audio_spectrogram_transformer import ASTFeatureExtractor
from transformers.models.vit import ViTImageProcessorPil
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.utils import cached_file

from .inputs_mmbalance import MAX_SECONDS, as_frames, as_waveforms
from .media_mmbalance import read_media


class MMBalanceProcessor(ProcessorMixin):
    """
    Processor of clips: sound to `input_values`, frames to `pixel_values`, and masks of what is there.

    Args:
        feature_extractor: Feature extractor of the audio tower. Log-mel spectrograms of an `ASTFeatureExtractor` are
            computed for the whole batch at once, equal to its own within 1e-3. Other extractors pad a batch to its
            longest clip; those with `return_attention_mask=True` also give an `audio_mask`, under which padding
            changes nothing. Without it (models whose first layer is normalised over time, which ask for none) the
            tower sees the padding: give clips of one length, or fix it by `audio_kwargs={"padding": "max_length",
            "max_length": ...}`.
        image_processor: Image processor of the vision tower.
        frames_per_clip (`int`, *optional*, defaults to 8):
            Evenly spaced frames taken from a video file.
    """

    _auto_class = "AutoProcessor"
    audio_kwargs = {"return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(
        self, feature_extractor: Any = None, image_processor: Any = None, frames_per_clip: int = 8, **kwargs: Any
    ):
        self.frames_per_clip = frames_per_clip
        # Set by saving, dropped by loading: set here, a processor equals itself saved and loaded.
        self.auto_map = {"AutoProcessor": f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"}
        super().__init__(feature_extractor, image_processor, **kwargs)

    @classmethod
    def from_backbones(
        cls,
        audio: str | os.PathLike | PreTrainedConfig,
        vision: str | os.PathLike | PreTrainedConfig,
        *,
        audio_max_length: int | None = None,
        frames_per_clip: int = 8,
        audio_revision: str | None = None,
        vision_revision: str | None = None,
        trust_remote_code: bool = False,
        token: str | bool | None = None,
        cache_dir: str | None = None,
    ) -> "MMBalanceProcessor":
        """The processor that fits two backbones.

        Args:
            audio, vision: Hub name, folder or config of the backbones. Where an AST or ViT backbone has no processor
                file (or is a config), one is made from its config: AST's AudioSet statistics, mean and std 0.5.
            audio_max_length: Spectrogram frames (10 ms each) of AST, as given to the model.
            frames_per_clip: Frames taken from a video file.
            audio_revision, vision_revision, trust_remote_code, token, cache_dir: As in `from_pretrained`.

        Raises:
            ValueError: if a backbone has no processor and none can be made.
        """
        hub = {"trust_remote_code": trust_remote_code, "token": token, "cache_dir": cache_dir}
        extractor = _load_part(AutoFeatureExtractor, audio, audio_revision, _new_feature_extractor, hub)
        image_processor = _load_part(AutoImageProcessor, vision, vision_revision, _new_image_processor, hub)
        if audio_max_length is not None:
            extractor.max_length = audio_max_length
        return cls(extractor, image_processor, frames_per_clip=frames_per_clip)

    def __call__(
        self,
        audio: Any = None,
        frames: Any = None,
        images: Any = None,
        video: Any = None,
        max_seconds: float | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """Prepare one clip or a list of clips.

        Args:
            audio: Waveform, path or bytes of one clip, or a list of them; None in a list where a clip has no sound.
                Waveforms `(S,)`, `(channels, S)` or `(S, channels)` at any rate.
            frames: Frames of one clip (a list, or an array `(T, H, W, 3)`), or a list of those; clips may have
                different numbers of frames; None in a list where a clip has none.
            images: Alias of `frames` when nested; a flat list is one image a clip, and `pixel_values` stay
                `(B, 3, H, W)`.
            video: File(s) whose own sound and evenly spaced frames are taken; `audio` or `frames` passed beside it
                stand in for the file's own.
            max_seconds: Longest file that is taken, 600 by default.
            **kwargs: `sampling_rate`, Hz of waveforms passed as arrays, required for them; `return_tensors`, `"pt"`
                (default) or `"np"`; options of the feature extractor and image processor, flat or as
                `audio_kwargs={...}` and `images_kwargs={...}`.

        Returns:
            `BatchFeature` with `input_values` `(B, ...)` (and `audio_mask` `(B, S)`, 1 for what is no padding, where
            the feature extractor gives one) and `pixel_values` `(B, T, 3, H, W)` with `frame_mask`
            `(B, T)`, each only if some clip was given it, and always `modality_mask` `(B, M)`.

        Raises:
            ValueError: for input that makes no sense; the message names the clip, the trouble and the remedy.
            MediaError: (a ValueError) for a file that cannot be used.
        """
        for name in ("text", "videos"):
            if kwargs.get(name) is not None:  # transformers would pass over them without a word
                raise ValueError(f"{name}= is not taken: pass audio=, frames= (or images=) or video=")
        merged = self._merge_kwargs(ProcessingKwargs, **kwargs)  # type: ignore[arg-type]
        audio_options, image_options = merged["audio_kwargs"], merged["images_kwargs"]
        sampling_rate = audio_options.pop("sampling_rate", None)
        tensor_types = {options.pop("return_tensors", None) or "pt" for options in (audio_options, image_options)}
        tensor_types = {getattr(kind, "value", kind) for kind in tensor_types}  # a TensorType or its name
        if not tensor_types <= {"pt", "np"}:
            raise ValueError(f"return_tensors={kwargs.get('return_tensors')!r} is not offered: choose 'pt' or 'np'")
        if frames is not None and images is not None:
            raise ValueError("frames and images are two names of one input: pass one of them")
        flat = images is not None and not _is_nested(images)
        if flat:
            frames = [[image] for image in (images if isinstance(images, (list, tuple)) else [images])]
        elif images is not None:
            frames = images
        waveforms, clips = self._gather(audio, frames, video, sampling_rate, max_seconds or MAX_SECONDS)
        data: dict[str, Any] = {}
        if waveforms is not None and any(wave is not None for wave in waveforms):
            data |= self._audio_features(waveforms, audio_options)
        if clips is not None and any(clips):
            data["pixel_values"], data["frame_mask"] = self._frame_features(clips, image_options)
        if flat:
            data["pixel_values"] = data["pixel_values"][:, 0]
        data["modality_mask"] = _modality_mask(waveforms, clips)
        if "np" in tensor_types:
            data = {name: values.numpy() for name, values in data.items()}
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        extractor = self.feature_extractor
        masked = getattr(extractor, "return_attention_mask", False) and not isinstance(extractor, ASTFeatureExtractor)
        return ["input_values", *["audio_mask"] * masked, "pixel_values", "frame_mask", "modality_mask"]

    @property
    def audio_sampling_rate(self) -> int:
        """Hz that the audio tower takes."""
        return self.feature_extractor.sampling_rate

    def _gather(
        self, audio: Any, frames: Any, video: Any, sampling_rate: int | None, max_seconds: float
    ) -> tuple[list[np.ndarray | None] | None, list[list[np.ndarray]] | None]:
        waveforms = (
            None if audio is None else as_waveforms(audio, sampling_rate, self.audio_sampling_rate, max_seconds)
        )
        clips = None if frames is None else as_frames(frames)
        if video is None:
            return waveforms, clips
        videos = list(video) if isinstance(video, (list, tuple)) else [video]
        if not videos:
            raise ValueError("video is an empty list: pass at least one file, or leave video out")
        media = [
            read_media(
                source,
                num_frames=self.frames_per_clip,
                want_audio=waveforms is None,
                want_frames=clips is None,
                max_seconds=max_seconds,
            )
            for source in videos
            if waveforms is None or clips is None
        ]
        if waveforms is None:
            waveforms = [
                None
                if clip.audio is None
                else as_waveforms(clip.audio, clip.sampling_rate, self.audio_sampling_rate)[0]
                for clip in media
            ]
        if clips is None:
            clips = [[] if clip.frames is None else list(clip.frames) for clip in media]
        return waveforms, clips

    def _audio_features(self, waveforms: list[np.ndarray | None], options: dict) -> dict[str, torch.Tensor]:
        extractor = self.feature_extractor
        present = [wave for wave in waveforms if wave is not None]
        parts = {}
        if isinstance(extractor, ASTFeatureExtractor):
            features, _ = log_mel(
                present,
                sampling_rate=extractor.sampling_rate,
                num_mel_bins=extractor.num_mel_bins,
                max_length=options.get("max_length") or extractor.max_length,
            )
            if extractor.do_normalize:
                features = (features - extractor.mean) / (2 * extractor.std)
            parts["input_values"] = features
        else:
            options = {"padding": True, **options}
            outputs = extractor(present, sampling_rate=self.audio_sampling_rate, return_tensors="pt", **options)
            parts["input_values"] = outputs[extractor.model_input_names[0]]
            if "attention_mask" in outputs:
                parts["audio_mask"] = outputs["attention_mask"]
        rows = [index for index, wave in enumerate(waveforms) if wave is not None]
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
            # The image processor's own arithmetic for all frames at once; it would go frame by frame.
            pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
            return (pixels * processor.rescale_factor - mean) / std
        return processor(frames, return_tensors="pt", **options).pixel_values


def _at_rows(values: torch.Tensor, rows: list[int], batch: int) -> torch.Tensor:
    """The values of the clips that have any, at their places in the batch; zeros elsewhere."""
    out = values.new_zeros(batch, *values.shape[1:])
    out[rows] = values
    return out


def _only_normalises(processor: Any, frames: list[np.ndarray]) -> bool:
    if not isinstance(processor, ViTImageProcessorPil) or not (processor.do_rescale and processor.do_normalize):
        return False
    size = (processor.size["height"], processor.size["width"])
    return all(frame.shape[:2] == size for frame in frames)


def _is_nested(images: Any) -> bool:
    if isinstance(images, (list, tuple)):
        return any(
            isinstance(image, (list, tuple)) or image is None or getattr(image, "ndim", 0) == 4 for image in images
        )
    return getattr(images, "ndim", 0) >= 4


def _modality_mask(waveforms: list | None, clips: list | None) -> torch.Tensor:
    lengths = {len(part) for part in (waveforms, clips) if part is not None}
    if not lengths:
        raise ValueError("no modality at all: pass audio, frames or video")
    if len(lengths) > 1:
        raise ValueError(f"audio and frames are of different numbers of clips: {sorted(lengths)}")
    batch = lengths.pop()
    audio = [False] * batch if waveforms is None else [wave is not None for wave in waveforms]
    vision = [False] * batch if clips is None else [bool(clip) for clip in clips]
    empty = [index for index in range(batch) if not (audio[index] or vision[index])]
    if empty:
        raise ValueError(f"no modality at all in clip(s) {empty}: every clip needs sound or frames")
    return torch.tensor([audio, vision]).T


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
    place = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if cached_file(backbone, name, _raise_exceptions_for_missing_entries=False, **place) is not None:
            raise ValueError(f"backbone {str(backbone)!r}: its {name} cannot be used; repair or remove the file")
    return config


def _new_feature_extractor(config: PreTrainedConfig) -> ASTFeatureExtractor:
    if config.model_type != "audio-spectrogram-transformer":
        raise ValueError(f"audio backbone {config.model_type!r} has no feature extractor: save one beside its weights")
    return ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)


def _new_image_processor(config: PreTrainedConfig) -> ViTImageProcessorPil:
    size = getattr(config, "image_size", None)
    if size is None:
        raise ValueError(f"vision backbone {config.model_type!r} has no image processor: save one beside its weights")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return ViTImageProcessorPil(size={"height": height, "width": width})


FRAME_MS, SHIFT_MS = 25, 10
PREEMPHASIS = 0.97
LOW_FREQUENCY = 20.0


@lru_cache(maxsize=8)
def mel_banks(num_mel_bins: int, fft_size: int, sampling_rate: int) -> np.ndarray:
    """Triangular filters in the HTK mel domain, mel(f) = 1127 ln(1 + f / 700), from 20 Hz to the Nyquist frequency.

    Returns:
        `np.ndarray` of shape `(num_mel_bins, fft_size // 2 + 1)`.
    """

    def mel(frequency: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(frequency) / 700.0)

    edges = np.linspace(mel(LOW_FREQUENCY), mel(sampling_rate / 2), num_mel_bins + 2)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = mel(np.arange(fft_size // 2) * sampling_rate / fft_size)[None, :]
    banks = np.maximum(0.0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    return np.pad(banks, ((0, 0), (0, 1))).astype(np.float32)  # Kaldi leaves the Nyquist bin out


def log_mel(
    waveforms: list[np.ndarray], *, sampling_rate: int, num_mel_bins: int, max_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel spectrograms of a batch (Kaldi fbank: 25 ms Hann windows, 10 ms shift, power, no dither).

    Args:
        waveforms: One mono float waveform a clip, each `(S_i,)`. Shorter ones than a window are padded with zeros.
        sampling_rate: Samples a second, of all of them.
        num_mel_bins: Number of mel filters.
        max_length: Spectrogram frames a clip; longer clips are cut, shorter ones padded with 0 as AST does.

    Returns:
        `(B, max_length, num_mel_bins)` float32 spectrograms, not normalised, and the `(B,)` number of frames filled.
    """
    window, shift = sampling_rate * FRAME_MS // 1000, sampling_rate * SHIFT_MS // 1000
    fft_size = 1 << (window - 1).bit_length()
    longest = window + (max_length - 1) * shift
    samples = [max(window, min(len(wave), longest)) for wave in waveforms]
    batch = torch.zeros(len(waveforms), max(samples))
    for row, wave, length in zip(batch, waveforms, samples, strict=True):
        part = torch.as_tensor(np.ascontiguousarray(wave[:length], dtype=np.float32))
        row[: len(part)] = part
    filled = torch.tensor([1 + (length - window) // shift for length in samples])
    frames = batch.unfold(1, window, shift)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    frames = (frames - PREEMPHASIS * previous) * torch.hann_window(window, periodic=False)
    power = torch.fft.rfft(frames, n=fft_size).abs().square()
    banks = torch.from_numpy(mel_banks(num_mel_bins, fft_size, sampling_rate))
    mel = (power @ banks.T).clamp(min=torch.finfo(torch.float32).eps).log()
    out = torch.zeros(len(waveforms), max_length, num_mel_bins)
    out[:, : mel.shape[1]] = mel[:, :max_length]
    beyond = torch.arange(max_length)[None, :] >= filled[:, None]
    return out.masked_fill_(beyond.unsqueeze(-1), 0.0), filled


__all__ = [
    "MMBalanceProcessor",
    "log_mel",
    "mel_banks",
]

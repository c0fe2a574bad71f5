"""The reading spec, which says how a clip is read and is saved with the processor."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .media_request_mmbalance import Box, check_crop


RESAMPLER = "swresample"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_size(value: Any) -> bool:
    return _is_count(value) or isinstance(value, tuple) and len(value) == 2 and all(map(_is_count, value))


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < float("inf")


@dataclass(frozen=True)
class ReadingSpec:
    """
    Settings for reading a clip, saved in `processor_config.json`.

    Args:
        sampling_rate (`int`, *optional*, defaults to 16000):
            Rate in Hz that audio is resampled to.
        resampler (`str`, *optional*, defaults to `"swresample"`):
            Resampling library; this is the only one supported.
        round_audio (`bool`, *optional*, defaults to `True`):
            Whether to round audio to 16 bits, as datasets store it.
        frames (`int`, *optional*):
            Number of frames per input: those shown at the centres of equal parts of it. `None` takes 8 from a file,
            and all frames that are passed as images.
        fps (`float`, *optional*):
            Frames per second, instead of `frames`; used by stored datasets only.
        frame_size (`tuple[int, int]` or `int`, *optional*):
            (height, width) of a frame, or length of its shorter side; `None` keeps the size.
        crop (`tuple[float, float, float, float]`, *optional*):
            Box to keep of the upright frame: left, top, right and bottom edge as fractions of it.
        image_format, image_quality (`str`, `int`, *optional*):
            Format (`"jpeg"`, `"png"`) and quality in which a dataset stores frames; used in `stored` only.
        unit (`str`, *optional*, defaults to `"clip"`):
            Extent of one input: `"clip"`, a complete clip, or `"span"`, the time of one word or event in it.
        margin (`float`, *optional*, defaults to 0.0):
            Seconds kept before and after a span.
        longest_seconds (`float`, *optional*):
            Length of the longest input that the model was trained or tested on.
        stored (`ReadingSpec`, *optional*):
            How raw files were stored in the dataset used for training. A raw file is first converted in this way:
            with `unit="clip"` only the part that is one input, else the complete file.
    """

    sampling_rate: int = 16_000
    resampler: str = RESAMPLER
    round_audio: bool = True
    frames: int | None = None
    fps: float | None = None
    frame_size: int | tuple[int, int] | None = None
    crop: Box | None = None
    image_format: str | None = None
    image_quality: int = 90
    unit: str = "clip"
    margin: float = 0.0
    longest_seconds: float | None = None
    stored: "ReadingSpec | None" = None

    def __post_init__(self) -> None:
        for name in ("frame_size", "crop"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, (list, tuple)) else value)
        if isinstance(self.stored, Mapping):
            object.__setattr__(self, "stored", ReadingSpec.from_dict(self.stored))
        for name, valid, remedy in (
            ("sampling_rate", _is_count(self.sampling_rate), "must be a whole number of Hz"),
            ("resampler", self.resampler == RESAMPLER, f"is unknown; this version supports {RESAMPLER!r}"),
            ("round_audio", isinstance(self.round_audio, bool), "must be True or False"),
            ("frames", self.frames is None or _is_count(self.frames), "must be a whole number above 0, or None"),
            ("fps", self.fps is None or self.fps != 0 and _is_seconds(self.fps), "must be a number above 0, or None"),
            (
                "frame_size",
                self.frame_size is None or _is_size(self.frame_size),
                "must be (height, width) or a number",
            ),
            ("image_format", self.image_format in (None, "jpeg", "png"), "is unknown; choose 'jpeg' or 'png'"),
            ("image_quality", _is_count(self.image_quality), "must be a whole number above 0"),
            ("unit", self.unit in ("clip", "span"), "is unknown; choose 'clip' or 'span'"),
            ("margin", _is_seconds(self.margin), "must be seconds, at least 0"),
            ("longest_seconds", self.longest_seconds is None or _is_seconds(self.longest_seconds), "must be seconds"),
            ("stored", self.stored is None or isinstance(self.stored, ReadingSpec), "must be a ReadingSpec, or None"),
        ):
            if not valid:
                raise ValueError(f"reading: {name}={getattr(self, name)!r} {remedy}")
        check_crop(self.crop)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ReadingSpec":
        """Build a spec from the result of `to_dict`, even if that was saved as JSON in between.

        Raises:
            ValueError: if this version does not know a field, or a value is invalid.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"reading: unknown field {unknown[0]!r}: the processor was saved by a newer version")
        return cls(**values)


__all__ = ["ReadingSpec"]

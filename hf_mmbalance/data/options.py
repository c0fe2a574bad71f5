"""Options that every source of media files shares; each field carries its help text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from hf_mmbalance.data.clips import DataError
from hf_mmbalance.model.media_request_mmbalance import LIMITS, Limits
from hf_mmbalance.model.reading_mmbalance import ReadingSpec


def option(default: Any, text: str) -> Any:
    """Return a dataclass field with a help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def check_at_least(options: Any, least: float, *names: str) -> None:
    """Check that options are numbers of at least `least`.

    Raises:
        DataError: an option is not; the message names the first one.
    """
    for name in names:
        value = getattr(options, name)
        if not (isinstance(value, Real) and float(value) >= least):
            raise DataError(f"{name} must be at least {least}, got {value!r}")


@dataclass
class MediaOptions:
    """Options that all sources of media files share."""

    unlabelled: str = option(
        "refuse", "Clips without a label: refuse, or keep (outside all splits, for prediction only)."
    )
    sampling_rate: int = option(16_000, "Sampling rate to which audio is resampled, in Hz.")
    frames: int = option(8, "Frames per clip, spread evenly over its window.")
    frame_size: list[int] | None = option([224, 224], "Height and width of a frame.")
    crop: list[float] | None = option(
        None,
        "Box to keep of every frame: left, top, right, bottom as fractions of the frame, e.g. 0.3 0.7 0.7 1.0.",
    )
    noise: str = option("none", "Noise added to the audio: none, white, or babble (other clips of the split).")
    snr_db: float = option(0.0, "Signal-to-noise ratio in dB over the window.")
    train_snr_db: list[float] | None = option(
        None, "Range [low, high] from which the ratio of train clips is drawn, again in every epoch."
    )
    margin: float = option(0.0, "Seconds kept before and after a window of a clip (a word, an event).")
    redraw_noise: bool = option(True, "Give train clips new noise in every epoch.")
    shift: float = option(0.0, "Training: move the window by up to this many seconds.")
    crop_jitter: float = option(0.0, "Training: move the frames by up to this fraction of their size.")
    flip: bool = option(False, "Training: mirror half of the clips.")
    brightness: float = option(0.0, "Training: change the brightness by up to this fraction.")
    calibration_fraction: float = option(0.1, "Fraction of train that becomes calibration if the source has none.")
    validation_fraction: float = option(0.1, "Fraction of train that becomes validation if the source has none.")
    test_fraction: float = option(0.2, "Fraction of train that becomes test if the source has none.")
    on_error: str = option("raise", "What to do with a clip that cannot be decoded: raise, or skip (and name it).")
    cache: str = option("auto", "Keep decoded clips in memory: auto (if they fit in cache_gib), memory, none.")
    cache_gib: float = option(2.0, "Memory that `auto` may use, in GiB.")
    cache_dir: str | None = option(None, "Also keep decoded clips in this folder, for the next run.")
    workers: int = option(0, "Number of decoding threads; 0 means one per processor.")
    max_seconds: float = option(LIMITS.max_seconds, "Maximum length of a clip in seconds.")
    seed: int = option(0, "Seed of splits, noise and augmentation.")

    def __post_init__(self) -> None:
        for name, known in (
            ("noise", ("none", "white", "babble")),
            ("on_error", ("raise", "skip")),
            ("cache", ("auto", "memory", "none")),
            ("unlabelled", ("refuse", "keep")),
        ):
            if getattr(self, name) not in known:
                raise DataError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, length in (("frame_size", 2), ("crop", 4), ("train_snr_db", 2)):
            value = getattr(self, name)
            if value is not None and len(value) != length:
                raise DataError(f"{name} needs {length} numbers, got {value}")
        if self.frame_size is not None and min(self.frame_size) < 1:
            raise DataError(f"frame_size must be at least 1 pixel, got {self.frame_size}")
        for ratio in (self.snr_db, *(self.train_snr_db or ())):
            if not math.isfinite(ratio):
                raise DataError(f"snr_db and train_snr_db must be finite numbers of dB, got {ratio}")
        if self.train_snr_db is not None and self.train_snr_db[0] > self.train_snr_db[1]:
            raise DataError(f"train_snr_db needs the lower ratio first, got {self.train_snr_db}")
        fixed = [self.snr_db, self.snr_db]
        if self.noise != "none" and not self.redraw_noise and list(self.train_snr_db or fixed) != fixed:
            raise DataError(
                "train_snr_db is drawn again with the noise of every epoch: with redraw_noise=false give"
                f" train_snr_db={self.snr_db:g} {self.snr_db:g}, the ratio of all other clips, or remove it"
            )
        check_at_least(self, 1, "frames", "sampling_rate")
        check_at_least(self, 0, "margin", "shift", "crop_jitter", "brightness", "cache_gib", "workers")
        check_at_least(self, 1e-3, "max_seconds")

    def reading(self, spans: bool = False, stored: ReadingSpec | None = None) -> ReadingSpec:
        """Return how these options read a clip, as training uses it and as it is saved with the processor.

        Args:
            spans: True if an input is a span of a clip (a word, an event), not a complete clip.
            stored: how raw files were stored, if rows of a built dataset are read.

        Raises:
            DataError: the crop is not inside the frame.
        """
        try:
            return ReadingSpec(
                sampling_rate=self.sampling_rate,
                frames=self.frames,
                frame_size=None if self.frame_size is None else (self.frame_size[0], self.frame_size[1]),
                crop=None if self.crop is None else (self.crop[0], self.crop[1], self.crop[2], self.crop[3]),
                unit="span" if spans else "clip",
                margin=self.margin if spans else 0.0,
                stored=stored,
            )
        except ValueError as error:
            raise DataError(str(error)) from None

    @property
    def limits(self) -> Limits:
        """Upper bounds on one clip."""
        return Limits(max_seconds=self.max_seconds)

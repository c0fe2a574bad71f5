"""A request for parts of a media file, the limits on it, and the error, with a reason, if it cannot be met."""

from dataclasses import dataclass

import numpy as np


Box = tuple[float, float, float, float]
MEDIA_REASONS = (
    "missing",  # the file does not exist, or was removed while it was read
    "unreadable",  # the file exists but there is no permission to read it
    "empty",  # zero bytes
    "lfs_pointer",  # a git-lfs pointer in place of the media
    "undecodable",  # not a media file, or nothing in it decodes
    "no_audio",  # only audio was requested and there is none
    "no_video",  # only frames were requested and there are none
    "too_short",  # the window lies outside the clip, or the clip has no length
    "too_long",  # longer than max_seconds
    "too_large",  # more pixels than max_pixels, or more output than max_bytes
)


class MediaError(ValueError):
    """Error for a clip that cannot be used.

    Args:
        reason (`str`): one of `MEDIA_REASONS`.
        message (`str`): what happened to which file, and the remedy.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(reason, message)  # both in args, so that the error can be pickled between processes
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]


@dataclass(frozen=True)
class Limits:
    """Upper bounds on one input, as a guard against files that decode to far more than their size on disk.

    Args:
        max_seconds (`float`, *optional*, defaults to 600): length of the part that is read.
        max_pixels (`int`, *optional*, defaults to 7680 x 4320): pixels of one frame.
        max_bytes (`int`, *optional*, defaults to 2 GiB): size of a download, and of what one input decodes to.
    """

    max_seconds: float = 600.0
    max_pixels: int = 7680 * 4320
    max_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        for name in ("max_seconds", "max_pixels", "max_bytes"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and value > 0):
                raise ValueError(f"{name}={value!r} must be a number above 0")

    def check_seconds(self, name: str, seconds: float) -> None:
        if seconds > self.max_seconds:
            raise MediaError("too_long", f"{name}: {seconds:.1f} s is over max_seconds={self.max_seconds:g}; raise it")

    def check_pixels(self, name: str, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            text = f"{name}: {width} x {height} pixels are over max_pixels={self.max_pixels}; raise it"
            raise MediaError("too_large", text)

    def check_bytes(self, name: str, held: int, what: str) -> None:
        if held > self.max_bytes:
            text = f"{name}: {held} bytes of {what} are over max_bytes={self.max_bytes}; raise it"
            raise MediaError("too_large", text)


LIMITS = Limits()


@dataclass(frozen=True)
class Pick:
    """Frames to take: those shown at the centres of `count` equal parts of an interval of the clip.

    Args:
        start, end (`float`, *optional*): seconds; None is the start or end of the video stream.
        count (`int`, *optional*): None takes every frame of the interval.
    """

    start: float | None = None
    end: float | None = None
    count: int | None = None

    def overlap(self, span: tuple[float, float]) -> tuple[float, float]:
        """Return the part of the interval that lies inside `span`."""
        low = span[0] if self.start is None else max(span[0], self.start)
        return low, span[1] if self.end is None else min(span[1], self.end)


@dataclass(frozen=True)
class MediaRequest:
    """The checked arguments of `read_media`.

    Args:
        picks: intervals to take frames from; the first one is the window of the input.
        audio_span: start and end in seconds of the audio to return; None stands for the start or end of the clip.
    """

    name: str
    picks: tuple[Pick, ...]
    fps: float | None
    sampling_rate: int | None
    audio_span: tuple[float | None, float | None]
    crop: Box | None
    size: int | tuple[int, int] | None
    limits: Limits
    threads: int

    def __post_init__(self) -> None:
        for pick in self.picks:
            if pick.count is not None and pick.count < 1:
                raise ValueError(f"num_frames must be at least 1 or None (every frame), got {pick.count}")
            if pick.start is not None and pick.end is not None and not pick.start < pick.end:
                raise ValueError(f"the window must have start < end (seconds), got {pick.start} and {pick.end}")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps must be positive, got {self.fps}")
        if self.sampling_rate is not None and not 100 <= self.sampling_rate <= 768_000:
            raise ValueError(f"sampling_rate must be in Hz, between 100 and 768000, got {self.sampling_rate}")
        check_crop(self.crop)
        if self.size is not None and min(np.atleast_1d(self.size)) < 1:
            raise ValueError(f"size must be (height, width) or the shorter side in pixels, got {self.size}")
        start, end = self.start, self.end
        if start is not None and end is not None:
            self.limits.check_seconds(self.name, end - start)

    @property
    def start(self) -> float | None:
        """Second at which reading starts: the earliest of all requested starts; None for the start of the clip."""
        starts = [*(pick.start for pick in self.picks), self.audio_span[0]]
        known = [start for start in starts if start is not None]
        return min(known) if len(known) == len(starts) else None

    @property
    def end(self) -> float | None:
        """Second at which reading ends: the latest of all requested ends; None for the end of the clip."""
        ends = [*(pick.end for pick in self.picks), self.audio_span[1]]
        known = [end for end in ends if end is not None]
        return max(known) if len(known) == len(ends) else None


def check_crop(crop: Box | None) -> None:
    """Raise a ValueError if the box does not lie inside the frame."""
    if crop is not None:
        numbers = len(crop) == 4 and all(isinstance(edge, (int, float)) for edge in crop)
        if not numbers or not (0 <= crop[0] < crop[2] <= 1 and 0 <= crop[1] < crop[3] <= 1):
            raise ValueError(f"crop must be (left, top, right, bottom), fractions of the frame in [0, 1], got {crop}")

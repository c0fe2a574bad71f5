"""What a pipeline is given as one clip (a file, an address, bytes, arrays), read window by window."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from huggingface_hub import get_session
from huggingface_hub.utils import httpx
from transformers.utils import logging

from .inputs_mmbalance import as_frames, as_waveforms
from .media_mmbalance import MediaClip, MediaError, declared_duration, read_audio, read_media


logger = logging.get_logger(__name__)

SOUND_KEYS, FRAME_KEYS, FILE_KEY = ("audio",), ("frames", "images"), "video"
ENCODED = "_hf_encoded"  # where `datasets` keeps the file behind a decoder
DOWNLOAD_TIMEOUT = 60.0  # seconds without a byte
Source = str | os.PathLike | bytes


@dataclass(frozen=True)
class Window:
    """Part of a clip: mono sound `(S,)` at the model's rate and RGB frames, None where there is none."""

    audio: np.ndarray | None
    frames: list[np.ndarray] | None


@dataclass(frozen=True)
class ClipReader:
    """Reads clips as one model wants them.

    Args:
        sampling_rate: Hz of the sound.
        frames_per_window: Evenly spaced frames taken from a video file for each window.
        modalities: Those that are read; what else a clip has is left alone.
        window_seconds: Length of a window; None reads a clip whole.
        stride_seconds: Step from one window to the next; None: no overlap.
        max_seconds: Longest clip.
        max_pixels: Largest frame.
        max_bytes: Largest download, and most that one window may decode to.

    Raises:
        ValueError: if the numbers make no sense.
    """

    sampling_rate: int
    frames_per_window: int
    modalities: tuple[str, ...] = ("audio", "vision")
    window_seconds: float | None = None
    stride_seconds: float | None = None
    max_seconds: float = 600.0
    max_pixels: int = 7680 * 4320
    max_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        for name in ("window_seconds", "stride_seconds", "max_seconds", "max_pixels", "max_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value!r} must be above 0")
        if self.stride_seconds is not None and self.stride_seconds > (self.window_seconds or np.inf):
            raise ValueError(
                f"stride_seconds={self.stride_seconds:g} is longer than window_seconds={self.window_seconds:g}: parts"
                " of the clip would be skipped"
            )

    def windows(self, clip: Any) -> Iterator[Window]:
        """The windows of a clip, one after the other; the last one ends where the clip ends.

        Args:
            clip: A path or http(s) address of a video or sound file, its bytes, or a mapping with `audio` (array,
                `{"array", "sampling_rate"}`, or file), `frames` or `images` (one or several), `video` (file), and
                `sampling_rate` for an array; a part may be missing or None, other keys are passed over.

        Raises:
            MediaError: (a ValueError) for a file that cannot be used; `.reason` says why.
            ValueError: for a clip that has none of the modalities, or that makes no sense.
        """
        if _is_file(clip):
            return self._windows_of_file(self._fetch(_source(clip)))
        if not isinstance(clip, Mapping):
            raise ValueError(
                f"a clip of type {type(clip).__name__} is not taken: give a path, an address, bytes, or a dict of"
                " 'audio' and 'frames', e.g. {'audio': wave, 'sampling_rate': 16000, 'frames': frames}"
            )
        parts = {key: clip[key] for key in (*SOUND_KEYS, *FRAME_KEYS, FILE_KEY) if clip.get(key) is not None}
        if "frames" in parts and "images" in parts:
            raise ValueError("frames and images are two names of one input: give one of them")
        if set(parts) == {FILE_KEY}:
            return self._windows_of_file(self._fetch(_source(parts[FILE_KEY])))
        return self._windows_of_parts(parts, clip.get("sampling_rate"), list(clip))

    def _windows_of_file(self, source: Source) -> Iterator[Window]:
        duration = declared_duration(source)
        if duration is None and self.window_seconds is not None:
            duration = self._measured_duration(source)
        if duration is None or self.window_seconds is None or duration <= self.window_seconds:
            yield self._read(source)
            return
        if duration > self.max_seconds:
            raise MediaError(
                "too_long", f"{_name(source)}: {duration:.1f} s is over max_seconds={self.max_seconds:g}; raise it"
            )
        for number, start in enumerate(self._starts(duration)):
            try:
                yield self._read(source, start, start + self.window_seconds)
            except MediaError as error:
                # Some files end long before the end that they declare.
                if number == 0 or error.reason != "too_short":
                    raise
                logger.warning(f"{_name(source)} ends before {start:g} s, it declares {duration:.1f} s")
                return

    def _measured_duration(self, source: Source) -> float:
        """Of a file that does not say (as browsers record them): what decodes of its sound, or of its frames."""
        return max(
            read_media(source, num_frames=1, max_seconds=self.max_seconds, max_bytes=self.max_bytes).duration, 0.01
        )

    def _read(self, source: Source, start: float | None = None, end: float | None = None) -> Window:
        media = read_media(
            source,
            num_frames=self.frames_per_window,
            start=start,
            end=end,
            want_audio="audio" in self.modalities,
            want_frames="vision" in self.modalities,
            max_seconds=self.max_seconds,
            max_pixels=self.max_pixels,
            max_bytes=self.max_bytes,
        )
        for note in media.notes:
            if "the file has no" not in note:  # a silent film or a sound file is whole; a damaged one is not
                logger.warning(f"{_name(source)}: {note}")
        return Window(self._sound_of(media), None if media.frames is None else list(media.frames))

    def _sound_of(self, media: MediaClip) -> np.ndarray | None:
        if media.audio is None:
            return None
        return as_waveforms([media.audio], media.sampling_rate, self.sampling_rate)[0]

    def _windows_of_parts(self, parts: dict[str, Any], rate: int | None, keys: list[str]) -> Iterator[Window]:
        audio = frames = None
        if "audio" in self.modalities:
            audio = self._sound(parts, rate)
        if "vision" in self.modalities:
            frames = self._frames(parts)
        if audio is None and frames is None:
            raise ValueError(
                f"a clip with the keys {keys} has nothing of {' or '.join(self.modalities)}: give 'audio', 'frames'"
                " (or 'images') or 'video'"
            )
        if audio is None:  # frames by themselves have no clock: they are one window
            yield Window(None, frames)
            return
        duration = len(audio) / self.sampling_rate
        if duration > self.max_seconds:
            raise ValueError(f"audio of {duration:.1f} s is over max_seconds={self.max_seconds:g}; raise it")
        if self.window_seconds is None or duration <= self.window_seconds:
            yield Window(audio, frames)
            return
        for start in self._starts(duration):
            end = start + self.window_seconds
            first, last = round(start * self.sampling_rate), round(end * self.sampling_rate)
            yield Window(audio[first:last], None if frames is None else _between(frames, start, end, duration))

    def _sound(self, parts: dict[str, Any], rate: int | None) -> np.ndarray | None:
        audio = parts.get("audio")
        if audio is None:
            if FILE_KEY not in parts:
                return None
            source = self._fetch(_source(parts[FILE_KEY]))
            media = read_media(source, want_frames=False, max_seconds=self.max_seconds, max_bytes=self.max_bytes)
            return self._sound_of(media)
        if _is_file(audio):
            source = self._fetch(_source(audio))
            audio, rate = read_audio(source, max_seconds=self.max_seconds, max_bytes=self.max_bytes)
        elif not hasattr(audio, "shape") and not isinstance(audio, (list, tuple)):
            try:  # what `datasets` gives for an Audio column
                audio, rate = audio["array"], audio["sampling_rate"]
            except (KeyError, TypeError):
                raise ValueError(
                    f"audio of type {type(audio).__name__} is not taken: give an array and its sampling_rate,"
                    " {'array': ..., 'sampling_rate': ...}, or a file"
                ) from None
        return as_waveforms([audio], rate, self.sampling_rate)[0]

    def _frames(self, parts: dict[str, Any]) -> list[np.ndarray] | None:
        frames = next((parts[key] for key in FRAME_KEYS if key in parts), None)
        if frames is None:
            if FILE_KEY not in parts:
                return None
            source = self._fetch(_source(parts[FILE_KEY]))
            media = read_media(
                source,
                num_frames=self.frames_per_window,
                want_audio=False,
                max_seconds=self.max_seconds,
                max_pixels=self.max_pixels,
                max_bytes=self.max_bytes,
            )
            return list(media.frames) if media.frames is not None else None
        if isinstance(frames, (list, tuple)):
            frames = [_source(frame) if _is_file(frame) else frame for frame in frames]
        elif _is_file(frames):
            frames = _source(frames)
        return as_frames([frames], self.max_pixels)[0]

    def _starts(self, duration: float) -> list[float]:
        """Starts of the windows: every stride, and one that ends where the clip ends."""
        assert self.window_seconds is not None
        last = duration - self.window_seconds
        step = self.stride_seconds or self.window_seconds
        return [*np.arange(0.0, last - 1e-6, step).tolist(), last]

    def _fetch(self, source: Source) -> Source:
        """The content behind an http(s) address; anything else as it is."""
        if not isinstance(source, str) or not source.lower().startswith(("http://", "https://")):
            return source
        # what is cut off may be a password or a signature
        name = re.sub(r"//[^/]*@", "//", re.split(r"[?#]", source, maxsplit=1)[0])
        content = bytearray()
        try:
            with get_session().stream("GET", source, follow_redirects=True, timeout=DOWNLOAD_TIMEOUT) as answer:
                if answer.status_code != 200:
                    raise MediaError("missing", f"{name}: cannot be downloaded (HTTP status {answer.status_code})")
                for piece in answer.iter_bytes():
                    content += piece
                    if len(content) > self.max_bytes:
                        raise MediaError(
                            "too_large", f"{name}: the download is over max_bytes={self.max_bytes}; raise it"
                        )
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise MediaError("unreadable", f"{name}: cannot be downloaded ({type(error).__name__})") from error
        return bytes(content)


def _is_file(value: Any) -> bool:
    """A path, address, bytes, or what `datasets` gives for a column, not decoded or as torchcodec's decoder."""
    if isinstance(value, Mapping):
        return bool(value) and set(value) <= {"bytes", "path"}
    return isinstance(value, (str, os.PathLike, bytes, bytearray)) or hasattr(value, ENCODED)


def _source(value: Any) -> Source:
    value = getattr(value, ENCODED, value)
    if isinstance(value, Mapping):
        content = value.get("bytes")
        value = value.get("path") if content is None else content
    if isinstance(value, bytearray):
        return bytes(value)
    if not isinstance(value, (str, os.PathLike, bytes)):
        raise ValueError(f"a file of type {type(value).__name__} is not taken: give a path, an address or bytes")
    return value


def _name(source: Source) -> str:
    return "<bytes>" if isinstance(source, bytes) else os.fspath(source)


def _between(frames: list[np.ndarray], start: float, end: float, duration: float) -> list[np.ndarray]:
    """The frames on show between two times, if all are spread evenly over the clip; at least the nearest one."""
    times = (np.arange(len(frames)) + 0.5) / len(frames) * duration
    inside = np.flatnonzero((times >= start) & (times < end))
    if not len(inside):
        inside = np.array([np.abs(times - (start + end) / 2).argmin()])
    return [frames[index] for index in inside]


__all__ = ["ClipReader", "Window"]

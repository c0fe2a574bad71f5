"""Read clips that are too long for one input in windows."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from .inputs_mmbalance import is_file, source_of
from .media_mmbalance import Pick, Source, declared_duration, read_media, shown_name
from .media_request_mmbalance import LIMITS, Limits, MediaError
from .reading_mmbalance import (
    DEFAULT_FRAMES,
    MODALITIES,
    Clip,
    DecodedClip,
    ReadingSpec,
    Span,
    cut,
    decode,
    log_notes,
    parts_of,
    read,
    span_of,
)


logger = logging.getLogger(__name__)

SLACK = 1.1  # a clip of up to this many times `longest` is still one input
MOST_WINDOWS = 100_000
WINDOW_BYTES = 256 << 20  # size of the frames of a long clip's windows that are in memory at once


def windows(
    source: Any,
    spec: ReadingSpec,
    *,
    window_seconds: float | None = None,
    stride_seconds: float | None = None,
    longest: float | None = None,
    modalities: tuple[str, ...] = MODALITIES,
    limits: Limits = LIMITS,
) -> Iterator[Clip]:
    """Yield the inputs of one clip: the clip itself or, if it is too long for one input, its windows in order.

    Args:
        source, spec, modalities, limits: As in [`read`]; a source with `start` and `end` is one input.
        window_seconds: Length of a window; None makes every clip one input.
        stride_seconds: Step from one window to the next; None for no overlap. The last one ends where the clip ends.
        longest: Clips up to about this many seconds are one input; None for clips up to `window_seconds`.

    Raises:
        MediaError, ValueError: As in [`read`], or if a number is invalid.
    """
    for name, value in (("window_seconds", window_seconds), ("stride_seconds", stride_seconds)):
        if value is not None and not (isinstance(value, (int, float)) and value > 0):
            raise ValueError(f"{name}={value!r} must be above 0")
    if stride_seconds is not None and window_seconds is None:
        raise ValueError("stride_seconds is the step between windows: give window_seconds, their length, as well")
    if stride_seconds is not None and window_seconds is not None and stride_seconds > window_seconds:
        raise ValueError(
            f"stride_seconds={stride_seconds:g} is longer than window_seconds={window_seconds:g}: parts of the clip"
            " would be skipped"
        )
    options: dict[str, Any] = {"modalities": modalities, "limits": limits}
    span = span_of(source)
    if window_seconds is None or span is not None:
        yield read(source, spec, **options)
        return
    # The duration that a container declares is a little longer than its audio.
    longest = max(SLACK * (longest or 0.0), window_seconds) + 1e-6
    parts = {"video": source} if is_file(source) else parts_of(source)
    source = source_of(parts["video"], limits) if set(parts) == {"video"} else source
    if not is_file(source):
        clip = decode(source, spec, **options)
        starts = _starts(clip.window[1], window_seconds, stride_seconds, longest)
        if not clip.timed or len(starts) < 2:
            yield cut(clip, spec)
        elif "video" in parts:  # the decoded frames are those of the complete clip, not of each window
            yield from _windows_one_by_one(source, spec, starts, window_seconds, modalities, limits)
        else:
            yield from (cut(clip, spec, (start, start + window_seconds)) for start in starts)
        return
    seconds = _seconds_of(source, limits)
    starts = _starts(seconds, window_seconds, stride_seconds, longest)
    if len(starts) < 2:
        yield read(source, spec, **options)
        return
    limits.check_seconds(shown_name(source), seconds)
    by_kind = _windows_of_file if spec.stored is None else _windows_one_by_one
    yield from by_kind(source, spec, starts, window_seconds, modalities, limits)


def _starts(seconds: float, window: float, stride: float | None, longest: float) -> list[float]:
    """Return the starts of the windows: one every stride, and one that ends where the clip ends."""
    if seconds <= longest:
        return [0.0]
    last = seconds - window
    if last / (stride or window) > MOST_WINDOWS:
        raise ValueError(
            f"a window every {stride or window:g} s makes more than {MOST_WINDOWS} windows for a clip of {seconds:g}"
            " s: give a larger stride_seconds or window_seconds"
        )
    return [*np.arange(0.0, last - 1e-6, stride or window).tolist(), last]


def _seconds_of(source: Source, limits: Limits) -> float:
    declared = declared_duration(source)
    if declared is not None:
        return declared
    # A file without a declared duration (browsers record such files): the length of its decoded audio or frames.
    return max(read_media(source, num_frames=1, limits=limits).duration, 0.01)


def _windows_of_file(
    source: Source, spec: ReadingSpec, starts: list[float], length: float, modalities: tuple[str, ...], limits: Limits
) -> Iterator[Clip]:
    """Yield the windows of a file, decoded in as few passes as `WINDOW_BYTES` of frames allow."""
    count, done, group = spec.frames or DEFAULT_FRAMES, 0, 1
    while done < len(starts):
        spans = [(start, start + length) for start in starts[done : done + group]]
        try:
            clip, last = _decode_spans(source, spec, spans, count, modalities, limits)
        except MediaError as error:
            if done == 0 or error.reason != "too_short":
                raise
            last = spans[0][0]
        for number, span in enumerate(spans, start=done):
            if number and span[0] >= last:
                _warn_of_early_end(source, span[0], starts[-1] + length)
                return
            yield cut(clip, replace(spec, frames=count), span)
        done += group
        # The first window shows how many bytes the frames of a window take.
        window_bytes = 0 if clip.frames is None else clip.frames[0].nbytes * count
        group = max(WINDOW_BYTES // window_bytes, 1) if window_bytes else len(starts)


def _windows_one_by_one(
    source: Any, spec: ReadingSpec, starts: list[float], length: float, modalities: tuple[str, ...], limits: Limits
) -> Iterator[Clip]:
    """Yield windows, each read as one clip: converted as in the built dataset, and with as many frames."""
    spec = replace(spec, unit="clip", margin=0.0)
    for start in starts:
        try:
            yield read(source, spec, (start, start + length), modalities=modalities, limits=limits)
        except MediaError as error:
            if start == 0 or error.reason != "too_short":
                raise
            _warn_of_early_end(source, start, starts[-1] + length)
            return


def _warn_of_early_end(source: Any, seconds: float, declared: float) -> None:
    """Warn that a file ends long before its declared duration, as some files do."""
    name = shown_name(source) if is_file(source) else "the clip"
    logger.warning(f"{name} ends before {seconds:g} s, but its declared duration is {declared:g} s")


def _decode_spans(
    source: Source, spec: ReadingSpec, spans: list[Span], count: int, modalities: tuple[str, ...], limits: Limits
) -> tuple[DecodedClip, float]:
    """Decode some windows in one pass; return them and the time in seconds at which audio and frames end."""
    media = read_media(
        source,
        num_frames=count,
        start=spans[0][0],
        end=spans[0][1],
        sampling_rate=spec.sampling_rate,
        crop=spec.crop,
        size=spec.frame_size,
        want_audio="audio" in modalities,
        want_frames="vision" in modalities,
        more_frames=[Pick(*span, count) for span in spans[1:]],
        audio_span=(spans[0][0], spans[-1][1]),
        limits=limits,
    )
    log_notes(source, media.notes)
    whole, exact = (spans[0][0], spans[-1][1]), len(spans) == 1
    ends = [0.0 if media.audio is None else media.audio_start + len(media.audio) / spec.sampling_rate]
    if media.frame_times is not None:
        ends.append(float(media.frame_times[-1]) + 1e-3)
    clip = DecodedClip(
        media.audio, media.audio_start, media.frames, media.frame_times, whole, whole, exact, media.notes
    )
    return clip, max(ends)


__all__ = ["windows"]

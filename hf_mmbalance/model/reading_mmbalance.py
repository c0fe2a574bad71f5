"""Read a clip, given as a file, a stored row or arrays, as input for the processor.

Training, building, `processor(video=...)`, the pipeline, `mmbalance predict` and the demo all use [`read`] with the
[`ReadingSpec`] saved with the processor, so that a model gets the same input in use as in training.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .inputs_mmbalance import (
    as_frames,
    as_sound,
    encode_image,
    is_file,
    round_sound,
    same_size,
    source_of,
)
from .media_frames_mmbalance import fit_frame, frames_shown
from .media_mmbalance import Pick, Source, read_media, shown_name
from .media_request_mmbalance import LIMITS, Limits, MediaError
from .media_sound_mmbalance import cut_sound, resample
from .reading_spec_mmbalance import ReadingSpec


logger = logging.getLogger(__name__)

MODALITIES = ("audio", "vision")
DEFAULT_FRAMES = 8  # taken from a file if the spec sets no number
SHORT_WINDOW = 3.0  # seconds; a window that can be moved keeps every frame if it is no longer than this
LARGEST_GAIN = 1e6

Span = tuple[float, float]


@dataclass(frozen=True)
class DecodedClip:
    """A decoded clip: the audio and frames of its window, optionally with a margin around it.

    Args:
        audio (`np.ndarray` of shape `(S,)`, *optional*): Audio at the spec's rate.
        audio_start (`float`): Time of the first audio sample in seconds, on the clip's clock.
        frames (`np.ndarray` of shape `(T, H, W, 3)` or list of `(H, W, 3)`, *optional*): Frames, cropped and resized.
        frame_times (`np.ndarray` of shape `(T,)`, *optional*): Times in seconds at which the frames appear.
        window (`tuple[float, float]`): Start and end of the input in seconds.
        frame_span (`tuple[float, float]`): The part of the window that has frames.
        exact (`bool`): Whether `frames` are exactly those of the window, so that none have to be selected.
        notes (`tuple[str, ...]`): Remarks for the user.
        timed (`bool`): False for frames without times or audio, each of which counts as one second.
    """

    audio: np.ndarray | None
    audio_start: float
    frames: Any
    frame_times: np.ndarray | None
    window: Span
    frame_span: Span
    exact: bool
    notes: tuple[str, ...] = ()
    timed: bool = True

    @property
    def nbytes(self) -> int:
        """Size of audio and frames in bytes."""
        frames = () if self.frames is None else self.frames
        return (0 if self.audio is None else self.audio.nbytes) + sum(frame.nbytes for frame in frames)


@dataclass(frozen=True)
class Clip:
    """One input of a model.

    Args:
        parts (`dict[str, Any]`): Values by modality: `"audio"` `(S,)` float32, `"vision"` `(T, H, W, 3)` uint8 (a list
            of frames if their sizes differ); None where the modality is missing.
        sampling_rate (`int`): Sampling rate of the audio in Hz.
        seconds (`float`): Length of the input in seconds.
        frame_times (`np.ndarray` of shape `(T,)`, *optional*): Times of the frames in seconds from the input's start.
        notes (`tuple[str, ...]`): Remarks for the user.
    """

    parts: dict[str, Any]
    sampling_rate: int
    seconds: float
    frame_times: np.ndarray | None = None
    notes: tuple[str, ...] = field(default=())


def read(
    source: Any,
    spec: ReadingSpec,
    span: Span | None = None,
    *,
    modalities: tuple[str, ...] = MODALITIES,
    limits: Limits = LIMITS,
) -> Clip:
    """Read one input.

    Args:
        source: A path or http(s) address of a video or audio file, its bytes, or a mapping with `audio` (a file, an
            array with `sampling_rate`, or `{"array", "sampling_rate"}`), `frames` or `images`, `video` (a file),
            and optionally `audio_gain`, `frame_times`, `start` and `end`; other keys are ignored.
        spec: Settings for reading the clip.
        span: Start and end of the input in seconds, to which the spec's margin is added; None for the complete clip.
        modalities: Modalities to read; others are ignored.
        limits: Limits on the input; larger ones are rejected.

    Raises:
        MediaError: (a ValueError) if a file cannot be used; `.reason` says why.
        ValueError: if a clip has none of the modalities, or is invalid.
    """
    return cut(decode(source, spec, span, modalities=modalities, limits=limits), spec)


def decode(
    source: Any,
    spec: ReadingSpec,
    span: Span | None = None,
    *,
    around: float = 0.0,
    whole_audio: bool = False,
    modalities: tuple[str, ...] = MODALITIES,
    limits: Limits = LIMITS,
) -> DecodedClip:
    """Decode an input once, with the margin needed to move its window; [`cut`] extracts the input from the result.

    Args:
        source, spec, span, modalities, limits: As in [`read`].
        around: Seconds by which the window can be moved afterwards.
        whole_audio: Keep the audio of the complete clip, not only of the window.
    """
    span = span_of(source, span)
    if span is not None:
        span = (max(span[0] - spec.margin, 0.0), span[1] + spec.margin)
    parts = {"video": source} if is_file(source) else parts_of(source)
    if "video" in parts and spec.stored is not None:
        if span is not None and spec.unit == "clip":  # the part read counts as one clip of the built dataset
            parts, span = {**parts, "start": span[0], "end": span[1]}, None
        parts = _as_stored(parts, spec.stored, MODALITIES if "vision" in modalities else modalities, limits)
    if set(parts) == {"video"}:
        file = source_of(parts["video"], limits)
        found = _decode_file(file, spec, span, around, whole_audio, modalities, limits)
    else:
        found = _decode_parts(parts, spec, span, around, modalities, limits)
        found = found if span is None else _trim(found, spec, around, whole_audio)
    return found


def cut(clip: DecodedClip, spec: ReadingSpec, window: Span | None = None) -> Clip:
    """Extract the input in a window (by default the clip's own): its audio, rounded if the spec says so, and frames.

    Args:
        clip: The result of [`decode`].
        spec: The spec that it was decoded with.
        window: Start and end of the window in seconds.
    """
    own = window is None or window == clip.window
    start, end = clip.window if own or window is None else window
    parts: dict[str, Any] = dict.fromkeys(MODALITIES)
    if clip.audio is not None:
        wave, _ = cut_sound(clip.audio, round(clip.audio_start * spec.sampling_rate), spec.sampling_rate, (start, end))
        if len(wave):
            parts["audio"] = round_sound(wave) if spec.round_audio else wave
    times = None
    if clip.frames is not None and clip.frame_times is not None:
        indices = _frame_indices(clip, spec, own, start, end)
        times = clip.frame_times[indices] - start
        parts["vision"] = (
            clip.frames[indices] if isinstance(clip.frames, np.ndarray) else [clip.frames[i] for i in indices]
        )
    return Clip(parts, spec.sampling_rate, end - start, times, clip.notes)


def _frame_indices(clip: DecodedClip, spec: ReadingSpec, own: bool, start: float, end: float) -> np.ndarray:
    assert clip.frame_times is not None
    if own and clip.exact:
        return np.arange(len(clip.frame_times))
    low, high = clip.frame_span if own else (start, end)
    if spec.frames is not None:
        return frames_shown(clip.frame_times, low, high, spec.frames)
    inside = np.flatnonzero((clip.frame_times >= low) & (clip.frame_times < high))
    return inside if len(inside) else frames_shown(clip.frame_times, low, high, 1)


def span_of(source: Any, span: Span | None = None) -> Span | None:
    """Return the requested span: the argument, or else the source's `start` and `end`.

    Raises:
        ValueError: if only one end is given, start is not before end, or the end is not after 0.
    """
    ends: tuple[Any, Any] = (None, None) if span is None else span
    if span is None and isinstance(source, Mapping):
        ends = (source.get("start"), source.get("end"))
        if (ends[0] is None) != (ends[1] is None):
            raise ValueError(f"a span needs both start and end in seconds, got start={ends[0]} and end={ends[1]}")
    if ends[0] is None:
        return None
    try:
        start, end = float(ends[0]), float(ends[1])
    except (TypeError, ValueError):
        raise ValueError(f"start={ends[0]!r} and end={ends[1]!r} must be numbers of seconds") from None
    if not (np.isfinite([start, end]).all() and max(start, 0.0) < end):
        raise ValueError(f"a span must have start < end and end > 0 (seconds), got {start:g} and {end:g}")
    return start, end


# -- files ------------------------------------------------------------------------------------------------------


def _decode_file(
    source: Source,
    spec: ReadingSpec,
    span: Span | None,
    around: float,
    whole_audio: bool,
    modalities: tuple[str, ...],
    limits: Limits,
) -> DecodedClip:
    start, end = (None, None) if span is None else span
    count = spec.frames or (None if spec.fps else DEFAULT_FRAMES)
    moved: Span | None = None if span is None else (max(span[0] - around, 0.0), span[1] + around)
    more = []
    if around:
        short = moved is not None and moved[1] - moved[0] <= SHORT_WINDOW
        low, high = (None, None) if moved is None else moved
        more = [Pick(low, high, None if short else 4 * (count or DEFAULT_FRAMES))]
    media = read_media(
        source,
        num_frames=count,
        fps=spec.fps,
        sampling_rate=spec.sampling_rate,
        start=start,
        end=end,
        crop=spec.crop,
        size=spec.frame_size,
        want_audio="audio" in modalities,
        want_frames="vision" in modalities,
        more_frames=more,
        audio_span=(None, None) if whole_audio else moved,
        limits=limits,
    )
    log_notes(source, media.notes)
    begin = max(start or 0.0, 0.0)
    window = (begin, begin + media.duration)
    return DecodedClip(
        media.audio,
        media.audio_start,
        media.frames,
        media.frame_times,
        window,
        media.frame_span or window,
        not more,
        media.notes,
    )


def log_notes(source: Source, notes: tuple[str, ...]) -> None:
    """Warn of damage in a file. A video without audio, or an audio file without video, is not damaged."""
    for note in notes:
        if "the file has no" not in note:
            logger.warning("%s: %s", shown_name(source), note)


# -- parts: arrays, single files, rows of a dataset ----------------------------------------------------------------


def parts_of(source: Any) -> dict[str, Any]:
    """Return the entries of a mapping that describe a clip; `images` is returned as `frames`.

    Raises:
        ValueError: if the source is not a mapping, has no audio or frames, or names one input twice.
    """
    if not isinstance(source, Mapping):
        raise ValueError(
            f"a clip of type {type(source).__name__} is not supported: give a path, an address, bytes, or a dict with"
            " 'audio' and 'frames', e.g. {'audio': wave, 'sampling_rate': 16000, 'frames': frames}"
        )
    known = ("audio", "frames", "images", "video", "sampling_rate", "audio_gain", "frame_times")
    parts = {key: source[key] for key in known if source.get(key) is not None}
    if not set(parts) & {"audio", "frames", "images", "video"}:
        raise ValueError(
            f"a clip with the keys {list(source)} has no audio or frames: give 'audio', 'frames' (or 'images') or"
            " 'video'"
        )
    if "frames" in parts and "images" in parts:
        raise ValueError("frames and images are two names for the same input: give one of them")
    if "images" in parts:
        parts["frames"] = parts.pop("images")
    if set(parts) <= {"video", "sampling_rate"}:
        parts.pop("sampling_rate", None)
    return parts


def _as_stored(
    source: dict[str, Any], stored: ReadingSpec, modalities: tuple[str, ...], limits: Limits
) -> dict[str, Any]:
    """Convert a raw file, or its span from `start` to `end`, to a row as the built dataset stores it."""
    clip = read(source, stored, modalities=modalities, limits=limits)
    row: dict[str, Any] = {}
    if clip.parts["audio"] is not None:
        row |= {"audio": clip.parts["audio"], "sampling_rate": clip.sampling_rate}
    if clip.parts["vision"] is not None:
        row |= {"frames": stored_frames(clip, stored), "frame_times": stored_times(clip)}
    return row


def stored_frames(clip: Clip, stored: ReadingSpec) -> list[bytes]:
    """Encode frames as image files, as a built dataset stores them."""
    return [encode_image(frame, stored.image_format or "png", stored.image_quality) for frame in clip.parts["vision"]]


def stored_times(clip: Clip) -> list[float]:
    """Return the times of the frames in seconds from the input's start, as a built dataset stores them."""
    assert clip.frame_times is not None
    return [round(float(time), 6) for time in clip.frame_times]


def _decode_parts(
    parts: dict[str, Any],
    spec: ReadingSpec,
    span: Span | None,
    around: float,
    modalities: tuple[str, ...],
    limits: Limits,
) -> DecodedClip:
    audio = frames = times = video = None
    notes: list[str] = []
    if "audio" in modalities or "frames" in parts:
        audio = _audio_of(parts, spec, limits)
    if "vision" in modalities and "frames" in parts:
        frames, times = _frames_of(parts, spec, limits)
    elif "vision" in modalities and "video" in parts:
        file = source_of(parts["video"], limits)
        video = _decode_file(file, spec, span, around, False, ("vision",), limits)
        frames, times, notes = video.frames, video.frame_times, list(video.notes)
    # Audio says when frames are shown, even if it is not requested: predictions from frames must not depend on that.
    timed = audio is not None or "frames" not in parts or times is not None
    seconds = 0.0 if audio is None else len(audio) / spec.sampling_rate
    audio = audio if "audio" in modalities else None
    if audio is None and frames is None:
        raise ValueError(
            f"a clip with the keys {list(parts)} has no {' or '.join(modalities)}: give 'audio', 'frames' (or"
            " 'images') or 'video'"
        )
    notes += ["no_audio: the clip has no audio"] if audio is None else []
    notes += ["no_video: the clip has no frames"] if frames is None else []
    if frames is not None and times is None:
        if span is not None and not timed:
            raise ValueError(
                "frames without audio have no times to cut a span from: give frame_times, or omit start and end"
            )
        seconds = seconds or float(len(frames))
        times = np.arange(len(frames)) * seconds / len(frames)  # each is shown for an equal part of the audio
    if times is not None:
        seconds = max(seconds, float(times[-1]) + 1e-3)
    window = (0.0, seconds) if span is None else (span[0], min(span[1], seconds))
    if not window[0] < window[1]:
        raise MediaError("too_short", f"the window starts at {window[0]:g} s, the clip ends at {seconds:.2f} s")
    exact = span is None and frames is not None and spec.frames in (None, len(frames))
    frame_span = window
    if video is not None:
        exact, frame_span = video.exact, video.frame_span
    return DecodedClip(audio, 0.0, frames, times, window, frame_span, exact, tuple(notes), timed)


def _audio_of(parts: dict[str, Any], spec: ReadingSpec, limits: Limits) -> np.ndarray | None:
    if "audio" not in parts:
        if "video" not in parts:
            return None
        source = source_of(parts["video"], limits)
        try:
            return read_media(source, sampling_rate=spec.sampling_rate, want_frames=False, limits=limits).audio
        except MediaError as error:
            if error.reason != "no_audio":
                raise
            return None
    wave, rate = as_sound(parts["audio"], parts.get("sampling_rate"), "audio", limits)
    gain = parts.get("audio_gain", 1.0)
    if not 0 < gain <= LARGEST_GAIN:
        raise MediaError("undecodable", f"audio_gain is {gain}; it must be above 0 and at most {LARGEST_GAIN:g}")
    return resample(wave * np.float32(gain) if gain != 1.0 else wave, rate, spec.sampling_rate)


def _frames_of(parts: dict[str, Any], spec: ReadingSpec, limits: Limits) -> tuple[Any, np.ndarray | None]:
    done = as_frames(parts["frames"], crop=spec.crop, size=spec.frame_size, limits=limits)
    times = None if parts.get("frame_times") is None else np.asarray(parts["frame_times"], dtype=np.float64)
    if times is not None and times.shape != (len(done),):
        raise MediaError(
            "undecodable", f"{len(done)} frames but frame_times of shape {times.shape}: give one time per frame"
        )
    if times is not None and not (np.isfinite(times).all() and (np.diff(times) >= 0).all()):
        raise MediaError("undecodable", "frame_times must be finite numbers of seconds in ascending order")
    # Frames are stacked if their sizes are equal; without a frame_size in the spec they get the size of the first one.
    if not same_size(done) and spec.frame_size is None and spec.frames is not None:
        done = [fit_frame(frame, None, (done[0].shape[0], done[0].shape[1])) for frame in done]
    return np.stack(done) if same_size(done) else done, times


def _trim(clip: DecodedClip, spec: ReadingSpec, around: float, whole_audio: bool) -> DecodedClip:
    """Drop audio and frames that no move of the window can reach, from a clip that was decoded completely."""
    low, high = max(clip.window[0] - around, 0.0), clip.window[1] + around
    audio, audio_start = clip.audio, clip.audio_start
    if audio is not None and not whole_audio:
        audio, first = cut_sound(audio, 0, spec.sampling_rate, (low, high))
        audio, audio_start = audio.copy(), first / spec.sampling_rate
    frames, times = clip.frames, clip.frame_times
    if times is not None:
        if clip.exact:  # already those of the window
            return replace(clip, audio=audio, audio_start=audio_start)
        begin = max(int(np.searchsorted(times, low + 1e-6, side="right")) - 1, 0)
        end = max(int(np.searchsorted(times, high, side="left")), begin + 1)
        frames, times = frames[begin:end], times[begin:end]
        frames = frames.copy() if isinstance(frames, np.ndarray) else frames
    return replace(clip, audio=audio, audio_start=audio_start, frames=frames, frame_times=times)


__all__ = ["MODALITIES", "Clip", "DecodedClip", "ReadingSpec", "cut", "decode", "read"]

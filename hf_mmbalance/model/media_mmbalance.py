"""Decode a clip file in one pass to mono audio and evenly spaced frames, with a named reason if that fails."""

import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from .media_frames_mmbalance import FrameReader
from .media_request_mmbalance import LIMITS, MEDIA_REASONS, Box, Limits, MediaError, MediaRequest, Pick
from .media_sound_mmbalance import SoundReader, aligned_span, cut_sound, resample


try:  # optional, so that a published model loads without it; needed only to read media files
    import av
except ImportError:
    av = None  # type: ignore[assignment]
try:
    import soundfile
except ImportError:
    soundfile = None
try:
    from PIL import Image
except ImportError:
    Image = None  # type: ignore[assignment]

LFS_HEAD = b"version https://git-lfs"
SEEK_FROM = 20.0  # seconds; up to here reading from the start is cheaper than a seek, which may fail
MAX_ERRORS = 50  # consecutive demuxing errors after which the rest of a file is not read
# Formats that libsndfile, the faster library, decodes to the same samples as FFmpeg. For lossy formats (mp3, Ogg)
# the two keep different numbers of samples at the start, so a file would read differently as an audio column and as a
# clip.
EXACT_SUBTYPES = ("PCM_", "FLOAT", "DOUBLE")
# Tags that are not UTF-8 are no reason to reject a clip; PyAV before version 19 needs this option to read them.
OLD_AV = av is not None and int(av.__version__.split(".")[0]) < 19
TAG_OPTIONS: dict[str, Any] = {"metadata_errors": "replace"} if OLD_AV else {}

Source = str | os.PathLike | bytes

__all__ = [
    "LIMITS",
    "MEDIA_REASONS",
    "Limits",
    "MediaClip",
    "MediaError",
    "Pick",
    "declared_duration",
    "read_audio",
    "read_media",
    "resample",
]


@dataclass(frozen=True)
class MediaClip:
    """The decoded audio and frames of one clip file.

    Attributes:
        audio: `(S,)` float32 mono (mean of the channels) in about [-1, 1], or None.
        sampling_rate: sampling rate of `audio` in Hz, or None.
        frames: `(T, H, W, 3)` uint8 RGB, upright, or None.
        frame_times: `(T,)` float64 seconds on the clip's clock (0 = start of the container), or None.
        duration: seconds of the window that was read.
        notes: remarks for the user, each `code: text`; empty for a clip without defects.
        audio_start: time of the first sample in seconds.
        frame_span: seconds of the window in which there is video, or None.
    """

    audio: np.ndarray | None
    sampling_rate: int | None
    frames: np.ndarray | None
    frame_times: np.ndarray | None
    duration: float
    notes: tuple[str, ...] = ()
    audio_start: float = 0.0
    frame_span: tuple[float, float] | None = None


def read_media(
    source: Source,
    *,
    num_frames: int | None = 8,
    fps: float | None = None,
    sampling_rate: int | None = None,
    start: float | None = None,
    end: float | None = None,
    crop: Box | None = None,
    size: int | tuple[int, int] | None = None,
    want_audio: bool = True,
    want_frames: bool = True,
    more_frames: Sequence[Pick] = (),
    audio_span: tuple[float | None, float | None] | None = None,
    limits: Limits = LIMITS,
    threads: int = 1,
) -> MediaClip:
    """Read the audio and evenly spaced frames of a clip, decoding each stream once.

    The best video and audio streams are used (FFmpeg's rule; cover art does not count as video). Frames are those
    shown at the centres of `num_frames` equal parts of the window; a clip with fewer frames repeats them. Damaged
    packets are skipped and noted.

    Args:
        source (`str`, `os.PathLike` or `bytes`): a local file or its content. Nothing is fetched from a network.
        num_frames (`int`, *optional*, defaults to 8): frames to take; None takes every frame of the window.
        fps (`float`, *optional*): frames per second to take instead of `num_frames`.
        sampling_rate (`int`, *optional*): rate in Hz to resample to (inside FFmpeg); None keeps the file's own rate.
        start, end (`float`, *optional*): window in seconds from the start of the clip, limited to the clip. Its
            audio samples equal those that the complete clip has there after resampling.
        crop (`tuple[float, float, float, float]`, *optional*): left, top, right and bottom edge as fractions of the
            upright frame.
        size (`tuple[int, int]` or `int`, *optional*): (height, width) after the crop, or the length of the shorter
            side with the aspect ratio kept; None keeps the size.
        want_audio, want_frames (`bool`): False skips that part.
        more_frames (`Sequence[Pick]`, *optional*): further intervals to take frames from in the same pass; if given,
            `frames` has every frame of all intervals once, in order of time.
        audio_span (`tuple`, *optional*): start and end in seconds of the audio to return; None for the window.
        limits (`Limits`, *optional*): larger inputs are rejected; raise the limits for large files that you trust.
        threads (`int`, *optional*, defaults to 1): decoding threads.

    Returns:
        `MediaClip`: if a stream is absent or does not decode, that part is None and there is a note.

    Raises:
        MediaError: if nothing that was requested could be read; `.reason` is one of `MEDIA_REASONS`.
        ValueError: if an argument is invalid.
        ImportError: if PyAV or Pillow is not installed.
    """
    if av is None or Image is None:
        raise ImportError("reading media files needs PyAV and Pillow: pip install av pillow")
    if not (want_audio or want_frames):
        raise ValueError("want_audio and want_frames are both off: nothing to read")
    name = shown_name(source)
    picks = (Pick(start, end, num_frames), *more_frames)
    request = MediaRequest(name, picks, fps, sampling_rate, audio_span or (start, end), crop, size, limits, threads)
    with _decoder_errors(name):
        return _read(source, request, want_audio, want_frames)


def _read(source: Source, request: MediaRequest, want_audio: bool, want_frames: bool) -> MediaClip:
    notes: list[str] = []
    window = request.picks[0]
    with _open(source, request.name) as container:
        _check_declared_length(container, request)
        sound = SoundReader(_best_stream(container, "audio"), request) if want_audio else None
        video = FrameReader(_best_stream(container, "video"), request) if want_frames else None
        _demux(container, request, sound, video, notes)
        audio, rate, audio_start = sound.wave(notes) if sound else (None, None, 0.0)
        frames, times = video.frames(lambda: _replay(source, video, request), notes) if video else (None, None)
    if audio is None and frames is None:
        _raise_nothing_read(request.name, want_audio, want_frames, notes)
    ends = [] if audio is None or rate is None else [audio_start + len(audio) / rate]
    if video is not None and video.times:
        ends.append(video.span[1])
    last = max(ends) if window.end is None else min(max(ends), window.end)
    duration = max(last - max(window.start or 0.0, 0.0), 0.0)
    span = None if video is None or frames is None else window.overlap(video.span)
    return MediaClip(audio, rate, frames, times, duration, tuple(notes), audio_start, span)


def read_audio(
    source: Source,
    *,
    sampling_rate: int | None = None,
    start: float | None = None,
    end: float | None = None,
    limits: Limits = LIMITS,
) -> tuple[np.ndarray, int]:
    """Read an audio file (wav, flac, ogg, mp3, or the audio of a video) as mono.

    Args:
        source (`str`, `os.PathLike` or `bytes`): a local file or its content.
        sampling_rate (`int`, *optional*): rate in Hz to resample to; None keeps the file's own rate.
        start, end (`float`, *optional*): window in seconds, limited to the file.
        limits (`Limits`, *optional*): larger inputs are rejected.

    Returns:
        `tuple[np.ndarray, int]`: waveform `(S,)`, float32, and its rate in Hz.

    Raises:
        MediaError: as in `read_media`.
    """
    name = shown_name(source)
    if soundfile is not None:
        _check_file_start(source, name)
        try:
            with _decoder_errors(name):
                return _read_soundfile(source, name, sampling_rate, (start, end), limits)
        except _NotForLibsndfile:
            pass  # FFmpeg reads it below
    clip = read_media(source, sampling_rate=sampling_rate, start=start, end=end, want_frames=False, limits=limits)
    assert clip.audio is not None and clip.sampling_rate is not None  # read_media raises otherwise
    return clip.audio, clip.sampling_rate


class _NotForLibsndfile(Exception):
    """A format that libsndfile does not know, or decodes to different samples from FFmpeg."""


def _read_soundfile(
    source: Source, name: str, sampling_rate: int | None, span: tuple[float | None, float | None], limits: Limits
) -> tuple[np.ndarray, int]:
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as file:
            if not file.subtype.startswith(EXACT_SUBTYPES):
                raise _NotForLibsndfile
            rate = file.samplerate
            new_rate = sampling_rate or rate
            first, last = aligned_span(span, rate, new_rate)
            first, last = min(first, file.frames), file.frames if last is None else min(last, file.frames)
            limits.check_seconds(name, (last - first) / rate)
            limits.check_bytes(name, (last - first) * file.channels * 4, "decoded audio")
            file.seek(first)
            wave = file.read(last - first, dtype="float32", always_2d=True).mean(axis=1)
    except soundfile.SoundFileError as error:
        raise _NotForLibsndfile from error
    if not np.isfinite(wave).all():
        raise MediaError("undecodable", f"{name}: the audio has values that are not finite")
    wave, _ = cut_sound(resample(wave, rate, new_rate), first * new_rate // rate, new_rate, span)
    if len(wave) == 0:
        raise MediaError("too_short", f"{name}: no audio between {span[0]} s and {span[1]} s")
    return wave, new_rate


def declared_duration(source: Source) -> float | None:
    """Return the duration in seconds that the container declares, or None if it declares none; nothing is decoded.

    Raises:
        MediaError: if the file cannot be opened.
    """
    name = shown_name(source)
    with _decoder_errors(name), _open(source, name) as container:
        return None if container.duration is None else container.duration / 1e6


@contextmanager
def _decoder_errors(name: str) -> Iterator[None]:
    """Turn any error that a decoder raises for a damaged file into a MediaError that names the file."""
    try:
        yield
    except (MediaError, ImportError, _NotForLibsndfile):
        raise
    except MemoryError:
        raise MediaError("too_large", f"{name}: decoding needs more memory than is available") from None
    except Exception as error:
        raise MediaError("undecodable", f"{name}: does not decode ({type(error).__name__}: {error})") from error


# -- opening ----------------------------------------------------------------------------------------------------


def shown_name(source: Source) -> str:
    """Return the name of a source for messages."""
    return "<bytes>" if isinstance(source, bytes) else os.fspath(source)


def _check_file_start(source: Source, name: str) -> None:
    """Raise a MediaError if a file is clearly not a media file, before a decoder opens it."""
    if isinstance(source, bytes):
        head = source[:64]
    else:
        try:
            if not stat.S_ISREG(os.stat(source).st_mode):
                # Reading a pipe or a device can block, or never end.
                raise MediaError("unreadable", f"{name}: not a regular file; give a media file")
            with open(source, "rb") as file:
                head = file.read(64)
        except (FileNotFoundError, NotADirectoryError):
            raise MediaError("missing", f"{name}: no such file") from None
        except OSError as error:
            raise MediaError("unreadable", f"{name}: cannot be read ({error.strerror})") from None
    if not head:
        raise MediaError("empty", f"{name}: the file is empty (0 bytes); download it again")
    if head.startswith(LFS_HEAD):
        text = (
            f"{name}: a git-lfs pointer, not the media; run `git lfs pull` there, or download the file from a mirror"
        )
        raise MediaError("lfs_pointer", text)


@contextmanager
def _open(source: Source, name: str) -> Iterator[Any]:
    _check_file_start(source, name)
    # With a Python file object and no allowed protocol, a playlist disguised as a clip cannot open other files.
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        try:
            container = av.open(file, options={"protocol_whitelist": "none"}, **TAG_OPTIONS)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise MediaError("undecodable", f"{name}: not a media file FFmpeg can open ({error})") from None
        with container:
            yield container


def _best_stream(container: Any, kind: str) -> Any:
    """Return FFmpeg's best stream of a kind, among those that have a decoder and are not cover art."""
    usable = [
        stream
        for stream in container.streams
        if stream.type == kind and stream.codec_context is not None and not _is_cover(stream)
    ]
    best = container.streams.best(kind)
    return best if best in usable else next(iter(usable), None)


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _check_declared_length(container: Any, request: MediaRequest) -> None:
    if container.duration is None:
        return
    seconds = container.duration / 1e6
    if request.start is not None and request.start >= seconds + 1:
        text = f"{request.name}: the window starts at {request.start:g} s, the clip ends at {seconds:.2f} s"
        raise MediaError("too_short", text)
    request.limits.check_seconds(request.name, min(seconds, request.end or seconds) - (request.start or 0.0))


def _origin(container: Any) -> float:
    """Return the zero of the clip's clock: the container's start time, in MPEG files often about half a second."""
    if container.start_time is not None:
        return container.start_time / 1e6
    starts = [float(s.start_time * s.time_base) for s in container.streams if s.start_time is not None and s.time_base]
    return min(starts, default=0.0)


def _packets(container: Any, streams: list[Any], request: MediaRequest, notes: list[str]) -> Iterator[Any]:
    """Yield packets from the window's start on; damaged parts are skipped and noted."""
    if request.start is not None and request.start > SEEK_FROM:
        try:
            container.seek(int((request.start - 1 + _origin(container)) * 1e6), backward=True)
        except av.error.FFmpegError:
            pass  # some formats (FLV) cannot seek; nothing has been read yet, so reading starts at the beginning
    errors, reader = 0, container.demux(streams)
    while errors < MAX_ERRORS:
        try:
            yield next(reader)
            errors = 0
        except StopIteration:
            return
        except av.error.FFmpegError as error:
            errors += 1
            if errors == 1:
                notes.append(f"damaged: the container is broken ({error})")
            reader = container.demux(streams)


def _demux(
    container: Any, request: MediaRequest, sound: SoundReader | None, video: FrameReader | None, notes: list[str]
) -> None:
    """Pass every packet of the window to the reader of its stream."""
    origin = _origin(container)
    readers = {part.stream.index: part for part in (sound, video) if part is not None and part.stream is not None}
    limit = (request.start or 0.0) + request.limits.max_seconds if request.end is None else request.end
    done: set[int] = set()
    for packet in _packets(container, [part.stream for part in readers.values()], request, notes) if readers else ():
        reader = readers[packet.stream.index]
        stamp = packet.dts if packet.dts is not None else packet.pts
        time = None if stamp is None else stamp * reader.base - origin
        if time is not None and time > limit + (0 if request.end is None else 1.0):
            if request.end is None:
                request.limits.check_seconds(request.name, time - (request.start or 0.0))
            done.add(packet.stream.index)
            if len(done) == len(readers):
                break
        elif packet.stream.index not in done:
            reader.feed(packet, origin)


def _raise_nothing_read(name: str, want_audio: bool, want_frames: bool, notes: list[str]) -> NoReturn:
    why = "; ".join(notes)
    if any(note.startswith("too_short") for note in notes):
        raise MediaError("too_short", f"{name}: {why}")
    if want_audio and want_frames or any("decode" in note for note in notes):
        raise MediaError("undecodable", f"{name}: neither audio nor frames could be decoded ({why})")
    raise MediaError("no_audio" if want_audio else "no_video", f"{name}: {why}")


def _replay(source: Source, video: FrameReader, request: MediaRequest) -> Iterator[Any]:
    """Yield the same packets again, for a stream too large to keep in memory."""
    with _open(source, request.name) as container:
        stream = container.streams[video.stream.index]
        yield from (packet for packet in _packets(container, [stream], request, []) if packet.size)

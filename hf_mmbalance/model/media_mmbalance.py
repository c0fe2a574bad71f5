"""Decode a clip file once: mono sound, evenly spaced frames, and a named reason where that cannot be done."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np


try:  # optional for whoever loads a published model: only needed to read media files
    import av
except ImportError:
    av = None
try:
    import soundfile
except ImportError:
    soundfile = None
try:
    from PIL import Image
except ImportError:
    Image = None

MEDIA_REASONS = (
    "missing",  # no such file, or it vanished while it was read
    "unreadable",  # the file exists but may not be read
    "empty",  # zero bytes
    "lfs_pointer",  # a git-lfs pointer in place of the media
    "undecodable",  # not a media file, or nothing in it decodes
    "no_audio",  # only sound was asked for and there is none
    "no_video",  # only frames were asked for and there are none
    "too_short",  # the window lies outside the clip, or the clip has no length
    "too_long",  # longer than max_seconds
    "too_large",  # more pixels than max_pixels, or more output than max_bytes
)
LFS_HEAD = b"version https://git-lfs"
SEEK_FROM = 20.0  # seconds; before that decoding from the start costs less than a seek that may fail
SOUND_GAP = 0.05  # seconds; smaller steps of sound timestamps are rounding (FLV counts in milliseconds)
PACKET_STORE = 128 << 20  # bytes of compressed video kept while its timestamps are read; beyond, it is read twice
MAX_ERRORS = 50  # consecutive demuxing errors after which the rest of a file is given up

Source = str | os.PathLike | bytes
Box = tuple[float, float, float, float]


class MediaError(ValueError):
    """A clip that cannot be used.

    Args:
        reason (`str`): one of `MEDIA_REASONS`.
        message (`str`): what happened to which file, and the remedy.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(reason, message)  # both in args, so that it crosses process borders
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]


@dataclass(frozen=True)
class MediaClip:
    """What one clip file holds.

    Attributes:
        audio: `(S,)` float32 mono (mean of the channels) in about [-1, 1], or None.
        sampling_rate: Hz of `audio`, or None.
        frames: `(T, H, W, 3)` uint8 RGB, upright, or None.
        frame_times: `(T,)` float64 seconds on the clip's clock (0 = start of the container), or None.
        duration: seconds of the part that was read.
        notes: what is worth knowing, each `code: text`; empty for a sound clip.
    """

    audio: np.ndarray | None
    sampling_rate: int | None
    frames: np.ndarray | None
    frame_times: np.ndarray | None
    duration: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Request:
    """The arguments of `read_media`, checked."""

    name: str
    num_frames: int | None
    sampling_rate: int | None
    start: float | None
    end: float | None
    crop: Box | None
    size: int | tuple[int, int] | None
    max_seconds: float
    max_pixels: int
    max_bytes: int
    threads: int

    def __post_init__(self):
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames must be at least 1 or None (every frame), got {self.num_frames}")
        if self.sampling_rate is not None and not 100 <= self.sampling_rate <= 768_000:
            raise ValueError(f"sampling_rate must be in Hz, between 100 and 768000, got {self.sampling_rate}")
        if self.start is not None and self.end is not None and not self.start < self.end:
            raise ValueError(f"the window must have start < end (seconds), got {self.start} and {self.end}")
        if self.crop is not None:
            left, top, right, bottom = self.crop
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError(
                    f"crop is (left, top, right, bottom) as parts of the frame in [0, 1], got {self.crop}"
                )
        if self.size is not None and min(np.atleast_1d(self.size)) < 1:
            raise ValueError(f"size must be (height, width) or the shorter side in pixels, got {self.size}")
        if self.start is not None and self.end is not None and self.end - self.start > self.max_seconds:
            self.too_long(self.end - self.start)

    def too_long(self, seconds: float) -> None:
        raise MediaError(
            "too_long", f"{self.name}: {seconds:.1f} s is over max_seconds={self.max_seconds:g}; raise it"
        )

    def check_pixels(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            text = f"{self.name}: frames of {width}x{height} are over max_pixels={self.max_pixels}; raise it"
            raise MediaError("too_large", text)


def read_media(
    source: Source,
    *,
    num_frames: int | None = 8,
    sampling_rate: int | None = None,
    start: float | None = None,
    end: float | None = None,
    crop: Box | None = None,
    size: int | tuple[int, int] | None = None,
    want_audio: bool = True,
    want_frames: bool = True,
    max_seconds: float = 600.0,
    max_pixels: int = 7680 * 4320,
    max_bytes: int = 2 << 30,
    threads: int = 1,
) -> MediaClip:
    """Read the sound and evenly spaced frames of a clip, decoding each stream once.

    The best video and audio stream are taken (FFmpeg's rule; cover art is no video). Frames are those on show at
    the centres of `num_frames` equal parts of the window; a clip with fewer frames repeats them. Damaged packets
    are left out and noted.

    Args:
        source (`str`, `os.PathLike` or `bytes`): a local file or its content. Nothing is fetched from a network.
        num_frames (`int`, *optional*, defaults to 8): frames to take; None takes every frame of the window.
        sampling_rate (`int`, *optional*): Hz to resample to (inside FFmpeg); None keeps the file's own rate.
        start, end (`float`, *optional*): window in seconds from the start of the clip, cut to the clip.
        crop (`tuple[float, float, float, float]`, *optional*): left, top, right, bottom as parts of the upright frame.
        size (`tuple[int, int]` or `int`, *optional*): (height, width) after the crop, or the length of the shorter
            side with the shape kept; None keeps the pixels.
        want_audio, want_frames (`bool`): leave a part undecoded.
        max_seconds, max_pixels, max_bytes: limits on the window, on one frame and on the decoded output (against
            files that decode to much more than they weigh); raise them for honest large files.
        threads (`int`, *optional*, defaults to 1): decoding threads.

    Returns:
        `MediaClip`: a stream that is absent or does not decode gives None for that part and a note.

    Raises:
        MediaError: nothing that was asked for can be had; `.reason` is one of `MEDIA_REASONS`.
        ValueError: senseless arguments.
        ImportError: PyAV or Pillow is not installed.
    """
    if av is None or Image is None:
        raise ImportError("reading media files needs PyAV and Pillow: pip install av pillow")
    if not (want_audio or want_frames):
        raise ValueError("want_audio and want_frames are both off: nothing to read")
    name = _name(source)
    request = _Request(
        name, num_frames, sampling_rate, start, end, crop, size, max_seconds, max_pixels, max_bytes, threads
    )
    notes: list[str] = []
    with _open(source, name) as container:
        _check_declared_length(container, request)
        sound = _Sound(_best_stream(container, "audio"), request) if want_audio else None
        video = _Video(_best_stream(container, "video"), request) if want_frames else None
        _demux(container, request, sound, video, notes)
        audio, rate = sound.wave(notes) if sound else (None, None)
        frames, times = video.frames(source, notes) if video else (None, None)
    if audio is None and frames is None:
        _raise_nothing(name, want_audio, want_frames, notes)
    return MediaClip(audio, rate, frames, times, _duration(request, audio, rate, sound, video), tuple(notes))


def read_audio(
    source: Source,
    *,
    sampling_rate: int | None = None,
    start: float | None = None,
    end: float | None = None,
    max_seconds: float = 600.0,
) -> tuple[np.ndarray, int]:
    """Read a sound file (wav, flac, ogg, mp3, or the sound of a video) as mono.

    Args:
        source (`str`, `os.PathLike` or `bytes`): a local file or its content.
        sampling_rate (`int`, *optional*): Hz to resample to; None keeps the file's own rate.
        start, end (`float`, *optional*): window in seconds.
        max_seconds (`float`, *optional*, defaults to 600): limit on the window.

    Returns:
        `tuple[np.ndarray, int]`: `(S,)` float32 and its rate in Hz.

    Raises:
        MediaError: as `read_media`.
    """
    name = _name(source)
    if soundfile is not None:
        _head(source, name)
        try:
            with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as file:
                first = min(int((start or 0.0) * file.samplerate), file.frames)
                last = file.frames if end is None else min(int(end * file.samplerate), file.frames)
                if (last - first) / file.samplerate > max_seconds:
                    text = f"{name}: {(last - first) / file.samplerate:.1f} s is over max_seconds={max_seconds:g}"
                    raise MediaError("too_long", f"{text}; raise it")
                file.seek(first)
                wave = file.read(last - first, dtype="float32", always_2d=True).mean(axis=1)
                rate = file.samplerate
            if len(wave) == 0:
                raise MediaError("too_short", f"{name}: no sound between {start} s and {end} s")
            if not np.isfinite(wave).all():
                raise MediaError("undecodable", f"{name}: the sound holds values that are not finite")
            return (
                (wave, rate) if sampling_rate in (None, rate) else (resample(wave, rate, sampling_rate), sampling_rate)
            )
        except soundfile.SoundFileError:
            pass  # a format libsndfile does not know: FFmpeg's turn
    clip = read_media(
        source, sampling_rate=sampling_rate, start=start, end=end, want_frames=False, max_seconds=max_seconds
    )
    return clip.audio, clip.sampling_rate


def resample(wave: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample a mono wave with FFmpeg's swresample.

    Args:
        wave (`np.ndarray` of shape `(S,)`): float32.
        rate, new_rate (`int`): Hz.

    Returns:
        `np.ndarray` of shape `(ceil(S * new_rate / rate),)`: float32, aligned with the input.
    """
    if rate == new_rate:
        return wave
    length = -(-len(wave) * new_rate // rate)
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(wave, dtype=np.float32)[None], format="fltp", layout="mono"
    )
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=new_rate)
    parts = [part.to_ndarray()[0] for part in (*resampler.resample(frame), *resampler.resample(None))]
    out = np.concatenate(parts)[:length]
    return np.pad(out, (0, length - len(out)))


# -- opening ----------------------------------------------------------------------------------------------------


def _name(source: Source) -> str:
    return "<bytes>" if isinstance(source, bytes) else os.fspath(source)


def _head(source: Source, name: str) -> None:
    """Refuse what is no media file before a decoder sees it."""
    if isinstance(source, bytes):
        head = source[:64]
    else:
        try:
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
    _head(source, name)
    # Through a Python file object and with no protocol allowed, a playlist that poses as a clip can open nothing else.
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        try:
            container = av.open(file, options={"protocol_whitelist": "none"}, metadata_errors="replace")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise MediaError("undecodable", f"{name}: not a media file FFmpeg can open ({error})") from None
        with container:
            yield container


def _best_stream(container, kind: str):
    """FFmpeg's best stream of a kind that has a decoder and is no cover art."""
    usable = [
        stream
        for stream in container.streams
        if stream.type == kind and stream.codec_context is not None and not _is_cover(stream)
    ]
    best = container.streams.best(kind)
    return best if best in usable else next(iter(usable), None)


def _is_cover(stream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _check_declared_length(container, request: _Request) -> None:
    if container.duration is None:
        return
    seconds = container.duration / 1e6
    if request.start is not None and request.start >= seconds + 1:
        text = f"{request.name}: the window starts at {request.start:g} s, the clip ends at {seconds:.2f} s"
        raise MediaError("too_short", text)
    length = min(seconds, request.end or seconds) - (request.start or 0.0)
    if length > request.max_seconds:
        request.too_long(length)


def _origin(container) -> float:
    """The clock's zero: MPEG files often start at half a second."""
    if container.start_time is not None:
        return container.start_time / 1e6
    starts = [float(s.start_time * s.time_base) for s in container.streams if s.start_time is not None and s.time_base]
    return min(starts, default=0.0)


def _packets(container, streams: list, request: _Request, notes: list[str]) -> Iterator[Any]:
    """Packets from the window's start on; a damaged stretch is passed over and noted."""
    if request.start is not None and request.start > SEEK_FROM:
        try:
            container.seek(int((request.start - 1 + _origin(container)) * 1e6), backward=True)
        except av.error.FFmpegError:
            pass  # e.g. FLV: nothing has been read yet, so go on from the start
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


def _demux(container, request: _Request, sound, video, notes: list[str]) -> None:
    """Hand every packet of the window to its stream's reader."""
    origin = _origin(container)
    readers = {part.stream.index: part for part in (sound, video) if part is not None and part.stream is not None}
    limit = (request.start or 0.0) + request.max_seconds if request.end is None else request.end
    done: set[int] = set()
    for packet in _packets(container, [part.stream for part in readers.values()], request, notes) if readers else ():
        reader = readers[packet.stream.index]
        stamp = packet.dts if packet.dts is not None else packet.pts
        time = None if stamp is None else float(stamp * packet.time_base) - origin
        if time is not None and time > limit + (0 if request.end is None else 1.0):
            if request.end is None:
                request.too_long(time - (request.start or 0.0))
            done.add(packet.stream.index)
            if len(done) == len(readers):
                break
        elif packet.stream.index not in done:
            reader.feed(packet, origin)


def _raise_nothing(name: str, want_audio: bool, want_frames: bool, notes: list[str]) -> None:
    why = "; ".join(notes)
    if any(note.startswith("too_short") for note in notes):
        raise MediaError("too_short", f"{name}: {why}")
    if want_audio and want_frames or any("decode" in note for note in notes):
        raise MediaError("undecodable", f"{name}: neither sound nor frames could be decoded ({why})")
    raise MediaError("no_audio" if want_audio else "no_video", f"{name}: {why}")


def _duration(request: _Request, audio, rate, sound, video) -> float:
    ends = [len(audio) / rate + (request.start or 0.0)] if audio is not None else []
    if video is not None and video.span is not None:
        ends.append(video.span[1])
    last = max(ends) if request.end is None else min(max(ends), request.end)
    return max(last - max(request.start or 0.0, 0.0), 0.0)


# -- sound ------------------------------------------------------------------------------------------------------


class _Sound:
    """Decodes one audio stream into mono chunks and lays them on the clip's clock."""

    def __init__(self, stream, request: _Request):
        self.stream, self.request = stream, request
        self.rate = 0
        self.chunks: list[tuple[float | None, np.ndarray]] = []
        self.errors = 0
        if stream is not None:
            stream.codec_context.thread_count = request.threads

    def feed(self, packet, origin: float) -> None:
        try:
            frames = packet.decode()
        except (av.error.FFmpegError, ValueError):
            self.errors += 1
            return
        for frame in frames:
            if self.rate and frame.sample_rate != self.rate:
                self.errors += 1  # a change of rate in the middle: not the same recording any more
                continue
            self.rate = frame.sample_rate
            self.chunks.append((None if frame.time is None else frame.time - origin, _mono(frame)))

    def wave(self, notes: list[str]) -> tuple[np.ndarray | None, int | None]:
        if self.stream is None:
            notes.append("no_audio: the file has no audio stream")
            return None, None
        if self.errors:
            notes.append(f"damaged: {self.errors} audio packets did not decode")
        if not self.chunks:
            notes.append("no_audio: the audio stream does not decode")
            return None, None
        wave = self._assemble()
        if len(wave) == 0:
            notes.append("too_short: the window holds no sound")
            return None, None
        if not np.isfinite(wave).all():
            raise MediaError("undecodable", f"{self.request.name}: the sound holds values that are not finite")
        rate = self.request.sampling_rate or self.rate
        return resample(wave, self.rate, rate), rate

    def _assemble(self) -> np.ndarray:
        """Silence where timestamps leave a gap, so that sound and frames stay together."""
        start = max(self.request.start or 0.0, 0.0)
        parts: list[np.ndarray] = []
        cursor = None  # samples from the window's start
        for time, chunk in self.chunks:
            place = cursor if time is None else round((time - start) * self.rate)
            if cursor is None:
                cursor = 0 if place is None else min(place, 0)
                place = cursor if place is None else place
            gap = place - cursor
            if gap > (SOUND_GAP * self.rate if parts else 0):
                if gap > self.request.max_seconds * self.rate:
                    self.request.too_long(gap / self.rate)
                parts.append(np.zeros(gap, dtype=np.float32))
                cursor += gap
            parts.append(chunk)
            cursor += len(chunk)
        wave = np.concatenate(parts)
        first = max(len(wave) - cursor, 0) if cursor < len(wave) else 0
        last = None if self.request.end is None else max(first + round((self.request.end - start) * self.rate), 0)
        return wave[first:last]


def _mono(frame) -> np.ndarray:
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.mean(axis=0, dtype=np.float32) if len(samples) > 1 else samples[0].astype(np.float32)


# -- frames -----------------------------------------------------------------------------------------------------


class _Video:
    """Notes the packets of one video stream, then decodes only as far as the wanted frames need."""

    def __init__(self, stream, request: _Request):
        self.stream, self.request = stream, request
        self.times: list[float] = []  # in decoding order
        self.keys: list[bool] = []
        self.store: list | None = []
        self.stored = 0
        self.errors = 0
        self.span: tuple[float, float] | None = None  # seconds the stream covers
        self.origin = 0.0
        if stream is not None:
            request.check_pixels(stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.thread_count = request.threads

    def feed(self, packet, origin: float) -> None:
        self.origin = origin
        if packet.size == 0:
            return
        stamp = packet.pts if packet.pts is not None else packet.dts
        time = len(self.times) / self._fps() if stamp is None else float(stamp * packet.time_base) - origin
        self.times.append(time)
        self.keys.append(packet.is_keyframe)
        if self.store is not None:
            self.store.append(packet)
            self.stored += packet.size
            if self.stored > PACKET_STORE:
                self.store = None

    def _fps(self) -> float:
        return float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def frames(self, source: Source, notes: list[str]) -> tuple[np.ndarray | None, np.ndarray | None]:
        if self.stream is None or not self.times:
            notes.append(f"no_video: the file has no video {'stream' if self.stream is None else 'packets'}")
            return None, None
        shown = np.sort(np.asarray(self.times))
        steps = np.diff(shown)
        self.span = (shown[0], shown[-1] + (float(np.median(steps)) if len(steps) else 1 / self._fps()))
        targets = self._targets(shown)
        if len(targets) == 0:
            notes.append("too_short: the window holds no frame")
            return None, None
        taken = self._decode(source, np.unique(targets), notes)
        if self.errors:
            notes.append(f"damaged: {self.errors} video packets did not decode")
        if not taken:
            notes.append("no_video: the video stream does not decode")
            return None, None
        order = np.searchsorted(np.unique(targets), targets)
        return np.stack([taken[i][1] for i in order]), np.array([taken[i][0] for i in order])

    def _targets(self, shown: np.ndarray) -> np.ndarray:
        """Times of the frames to take: those on show at the centres of equal parts of the window."""
        request = self.request
        low = max(self.span[0], request.start if request.start is not None else self.span[0])
        high = min(self.span[1], request.end if request.end is not None else self.span[1])
        if not low < high:
            return np.zeros(0)
        if request.num_frames is None:
            return shown[(shown >= low - 1e-6) & (shown < high - 1e-6)]
        centres = low + (np.arange(request.num_frames) + 0.5) * (high - low) / request.num_frames
        return shown[np.maximum(np.searchsorted(shown, centres + 1e-6, side="right") - 1, 0)]

    def _decode(self, source: Source, wanted: np.ndarray, notes: list[str]) -> list[tuple[float, np.ndarray]]:
        taken: list[tuple[float, np.ndarray]] = []
        held = None  # the latest frame, for a wanted one that does not decode
        for time, frame in self._shown_frames(source, wanted, taken, notes):
            while len(taken) < len(wanted) and time > wanted[len(taken)] + 1e-6:
                self._take(taken, held or (time, frame), len(wanted))
            if len(taken) < len(wanted) and abs(time - wanted[len(taken)]) <= 1e-6:
                self._take(taken, (time, frame), len(wanted))
            held = (time, frame)
            if len(taken) == len(wanted):
                return taken
        while held is not None and len(taken) < len(wanted):
            self._take(taken, held, len(wanted))
        return taken

    def _take(self, taken: list, shown: tuple[float, Any], total: int) -> None:
        picture = _picture(shown[1], self.request)
        if picture.nbytes * total > self.request.max_bytes:
            text = (
                f"{total} frames of {picture.shape[1]}x{picture.shape[0]} are over max_bytes={self.request.max_bytes}"
            )
            raise MediaError("too_large", f"{self.request.name}: {text}; ask for fewer or smaller frames, or raise it")
        taken.append((shown[0], picture))

    def _shown_frames(self, source: Source, wanted: np.ndarray, taken: list, notes: list[str]) -> Iterator:
        """Frames in order of showing; stretches between key frames that hold no wanted frame are not decoded."""
        codec = self.stream.codec_context
        key_places = [i for i, key in enumerate(self.keys) if key]
        resume, aimed, shown = 0, -1, 0
        for place, packet in enumerate(self._replay(source)):
            if len(taken) != aimed and len(taken) < len(wanted):
                aimed = len(taken)
                jumps = [i for i in key_places if i > place and self.times[i] <= wanted[aimed] + 1e-6]
                if place == 0 or jumps:
                    resume = max(jumps, default=0)
                    if place and jumps:
                        codec.flush_buffers()
            if place < resume:
                continue
            for frame in self._decode_packet(codec, packet):
                time = shown / self._fps() if frame.time is None else frame.time - self.origin
                shown += 1
                yield time, frame
        for frame in self._decode_packet(codec, None):
            yield (shown / self._fps() if frame.time is None else frame.time - self.origin), frame
            shown += 1

    def _decode_packet(self, codec, packet) -> list:
        try:
            return codec.decode(packet)
        except av.error.FFmpegError:
            self.errors += 1
            return []

    def _replay(self, source: Source) -> Iterator:
        if self.store is not None:
            yield from self.store
            return
        with _open(source, self.request.name) as container:
            stream = container.streams[self.stream.index]
            packets = _packets(container, [stream], self.request, [])
            yield from (packet for packet, _ in zip((p for p in packets if p.size), self.times, strict=False))


def _picture(frame, request: _Request) -> np.ndarray:
    """One frame as upright RGB, cropped and sized."""
    request.check_pixels(frame.width, frame.height)
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    if turns:
        pixels = np.ascontiguousarray(np.rot90(pixels, turns))
    if request.crop is None and request.size is None:
        return pixels
    height, width = pixels.shape[:2]
    left, top, right, bottom = request.crop or (0.0, 0.0, 1.0, 1.0)
    box = (left * width, top * height, right * width, bottom * height)
    if request.size is None:
        left, top, right, bottom = (round(edge) for edge in box)
        return np.ascontiguousarray(pixels[top : max(bottom, top + 1), left : max(right, left + 1)])
    if isinstance(request.size, int):
        wide, high = box[2] - box[0], box[3] - box[1]
        scale = request.size / min(wide, high)
        target = (max(round(high * scale), 1), max(round(wide * scale), 1))
    else:
        target = tuple(request.size)
    if target == (height, width) and request.crop is None:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BILINEAR, box=box))

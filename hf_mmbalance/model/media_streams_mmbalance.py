"""Read the packets of one stream of a clip: sound laid on the clip's clock, frames decoded as far as needed."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

import numpy as np


try:  # optional for whoever loads a published model: only needed to read media files
    import av
    from av.video.reformatter import VideoReformatter
except ImportError:
    av = None  # type: ignore[assignment]
try:
    from PIL import Image
except ImportError:
    Image = None  # type: ignore[assignment]

Box = tuple[float, float, float, float]
Replay = Callable[[], Iterable[Any]]
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
# swscale's own threads cost milliseconds a frame to start; older PyAV has no such argument.
ONE_THREAD = {"threads": 1} if av is not None and "threads" in (VideoReformatter.reformat.__doc__ or "") else {}
SOUND_GAP = 0.05  # seconds; smaller steps of sound timestamps are rounding (FLV counts in milliseconds)
PACKET_STORE = 128 << 20  # bytes of compressed video kept while its timestamps are read; beyond, it is read twice


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
class MediaRequest:
    """The arguments of `read_media`, checked."""

    name: str
    num_frames: int | None
    fps: float | None
    sampling_rate: int | None
    start: float | None
    end: float | None
    crop: Box | None
    size: int | tuple[int, int] | None
    max_seconds: float
    max_pixels: int
    max_bytes: int
    threads: int

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames must be at least 1 or None (every frame), got {self.num_frames}")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps must be positive, got {self.fps}")
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

    def too_long(self, seconds: float) -> NoReturn:
        raise MediaError(
            "too_long", f"{self.name}: {seconds:.1f} s is over max_seconds={self.max_seconds:g}; raise it"
        )

    def check_pixels(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            text = f"{self.name}: frames of {width}x{height} are over max_pixels={self.max_pixels}; raise it"
            raise MediaError("too_large", text)


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


# -- sound ------------------------------------------------------------------------------------------------------


class SoundReader:
    """Decodes one audio stream into mono chunks and lays them on the clip's clock."""

    def __init__(self, stream: Any, request: MediaRequest):
        self.stream, self.request = stream, request
        self.rate = 0
        self.chunks: list[tuple[float | None, np.ndarray]] = []
        self.errors = 0
        self.held = 0  # bytes
        if stream is not None:
            self.base = float(stream.time_base)
            stream.codec_context.thread_count = request.threads

    def feed(self, packet: Any, origin: float) -> None:
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
            chunk = _mono(frame)
            self.held += chunk.nbytes
            check_sound_bytes(self.request.name, self.held, self.request.max_bytes)
            self.chunks.append((None if frame.time is None else frame.time - origin, chunk))

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
        begin = cursor = 0  # samples from the window's start; sound before it is cut off at the end
        for time, chunk in self.chunks:
            gap = 0 if time is None else round((time - start) * self.rate) - cursor
            if not parts and gap < 0:
                begin = cursor = gap
            elif gap > (SOUND_GAP * self.rate if parts else 0):
                if gap > self.request.max_seconds * self.rate:
                    self.request.too_long(gap / self.rate)
                parts.append(np.zeros(gap, dtype=np.float32))
                cursor += gap
            parts.append(chunk)
            cursor += len(chunk)
        last = None if self.request.end is None else max(round((self.request.end - start) * self.rate) - begin, 0)
        return np.concatenate(parts)[-begin:last]


def check_sound_bytes(name: str, held: int, most: int) -> None:
    """Refuse sound that decodes to more than was allowed."""
    if held > most:
        raise MediaError("too_large", f"{name}: {held} bytes of decoded sound are over max_bytes={most}; raise it")


def _mono(frame: Any) -> np.ndarray:
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.mean(axis=0, dtype=np.float32) if len(samples) > 1 else samples[0].astype(np.float32)


# -- frames -----------------------------------------------------------------------------------------------------


class FrameReader:
    """Notes the packets of one video stream, then decodes only as far as the wanted frames need."""

    def __init__(self, stream: Any, request: MediaRequest):
        self.stream, self.request = stream, request
        self.times: list[float] = []  # in decoding order
        self.keys: list[bool] = []
        self.store: list | None = []
        self.stored = 0
        self.errors = 0
        self.span = (0.0, 0.0)  # seconds the stream covers
        self.origin = 0.0
        self.converter = VideoReformatter()  # one for all frames: setting it up costs more than a frame
        if stream is not None:
            self.base = float(stream.time_base)
            request.check_pixels(stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.thread_count = request.threads

    def feed(self, packet: Any, origin: float) -> None:
        self.origin = origin
        if packet.size == 0:
            return
        stamp = packet.pts if packet.pts is not None else packet.dts
        time = len(self.times) / self._fps() if stamp is None else stamp * self.base - origin
        self.times.append(time)
        self.keys.append(packet.is_keyframe)
        if self.store is not None:
            self.store.append(packet)
            self.stored += packet.size
            if self.stored > PACKET_STORE:
                self.store = None

    def _fps(self) -> float:
        return float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def frames(self, replay: Replay, notes: list[str]) -> tuple[np.ndarray | None, np.ndarray | None]:
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
        taken = self._decode(replay, np.unique(targets))
        if self.errors:
            notes.append(f"damaged: {self.errors} video packets did not decode")
        if not taken:
            notes.append("no_video: the video stream does not decode")
            return None, None
        order = np.searchsorted(np.unique(targets), targets)
        return np.stack([taken[i][1] for i in order]), np.maximum.accumulate([taken[i][0] for i in order])

    def _targets(self, shown: np.ndarray) -> np.ndarray:
        """Times of the frames to take: those on show at the centres of equal parts of the window."""
        request = self.request
        low = max(self.span[0], request.start if request.start is not None else self.span[0])
        high = min(self.span[1], request.end if request.end is not None else self.span[1])
        if not low < high:
            return np.zeros(0)
        count = request.num_frames if request.fps is None else max(round((high - low) * request.fps), 1)
        if count is None:
            first = max(int(np.searchsorted(shown, low + 1e-6, side="right")) - 1, 0)  # on show as the window opens
            return shown[first:][shown[first:] < high - 1e-6]
        centres = low + (np.arange(count) + 0.5) * (high - low) / count
        return shown[np.maximum(np.searchsorted(shown, centres + 1e-6, side="right") - 1, 0)]

    def _decode(self, replay: Replay, wanted: np.ndarray) -> list[tuple[float, np.ndarray]]:
        taken: list[tuple[float, np.ndarray]] = []
        held = None  # the latest frame, for a wanted one that does not decode
        for time, frame in self._shown_frames(replay, wanted, taken):
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
        picture = _picture(shown[1], self.converter, self.request)
        if picture.nbytes * total > self.request.max_bytes:
            text = (
                f"{total} frames of {picture.shape[1]}x{picture.shape[0]} are over max_bytes={self.request.max_bytes}"
            )
            raise MediaError("too_large", f"{self.request.name}: {text}; ask for fewer or smaller frames, or raise it")
        taken.append((shown[0], picture))

    def _shown_frames(self, replay: Replay, wanted: np.ndarray, taken: list) -> Iterator:
        """Frames in order of showing; stretches between key frames that hold no wanted frame are not decoded."""
        codec = self.stream.codec_context
        key_places = [i for i, key in enumerate(self.keys) if key]
        resume, aimed, shown = 0, -1, 0
        packets = replay() if self.store is None else self.store
        for place, packet in enumerate(chain(packets, [None])):  # None: what the decoder holds back
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
                yield (shown / self._fps() if frame.pts is None else frame.pts * self.base - self.origin), frame
                shown += 1

    def _decode_packet(self, codec: Any, packet: Any) -> list:
        try:
            return codec.decode(packet)
        except av.error.FFmpegError:
            self.errors += 1
            return []


def _picture(frame: Any, converter: Any, request: MediaRequest) -> np.ndarray:
    """One frame as upright RGB, cropped and sized."""
    request.check_pixels(frame.width, frame.height)
    pixels = converter.reformat(frame, format="rgb24", **ONE_THREAD).to_ndarray()
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
        target = (request.size[0], request.size[1])
    if target == (height, width) and request.crop is None:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BILINEAR, box=box))

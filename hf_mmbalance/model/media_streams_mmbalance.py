"""Read one stream of a clip: sound placed by its timestamps, frames decoded as far as the wanted ones need.

`media_mmbalance` opens the file and passes each packet to the reader of its stream. Packet and frame timestamps become
seconds on the clip's clock, `t = pts * time_base - origin`, where `origin` is the start time of the container, so that
sound and frames share one zero.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import gcd
from typing import Any

import numpy as np


try:  # optional, so that a published model loads without it; needed only to read media files
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
    "missing",  # the file does not exist, or was removed while it was read
    "unreadable",  # the file exists but there is no permission to read it
    "empty",  # zero bytes
    "lfs_pointer",  # a git-lfs pointer in place of the media
    "undecodable",  # not a media file, or nothing in it decodes
    "no_audio",  # only sound was asked for and there is none
    "no_video",  # only frames were asked for and there are none
    "too_short",  # the window lies outside the clip, or the clip has no length
    "too_long",  # longer than max_seconds
    "too_large",  # more pixels than max_pixels, or more output than max_bytes
)
# Starting swscale's own threads takes milliseconds per frame; older versions of PyAV have no `threads` argument.
ONE_THREAD = {"threads": 1} if av is not None and "threads" in (VideoReformatter.reformat.__doc__ or "") else {}
SOUND_LEAD = 0.05  # seconds of sound read before and after a window, so that no filter edge falls inside it
SOUND_GAP = 0.05  # seconds; smaller gaps between sound timestamps are rounding (FLV counts in milliseconds)
PACKET_STORE = 128 << 20  # bytes of compressed video kept while its timestamps are read; a larger stream is read twice


class MediaError(ValueError):
    """A clip that cannot be used.

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
    """Upper bounds on one input, against files that decode to far more than their size on disk.

    Args:
        max_seconds (`float`, *optional*, defaults to 600): length of the part that is read.
        max_pixels (`int`, *optional*, defaults to 7680 x 4320): pixels of one frame.
        max_bytes (`int`, *optional*, defaults to 2 GiB): size of a download, and of what one input decodes to.
    """

    max_seconds: float = 600.0
    max_pixels: int = 7680 * 4320
    max_bytes: int = 2 << 30

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
        """The part of the interval that lies inside `span`."""
        low = span[0] if self.start is None else max(span[0], self.start)
        return low, span[1] if self.end is None else min(span[1], self.end)


@dataclass(frozen=True)
class MediaRequest:
    """The checked arguments of `read_media`.

    Args:
        picks: intervals to take frames from; the first one is the window of the input.
        audio_span: seconds of sound to return; None in either place is the start or end of the clip.
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
    """Raise a ValueError for a box that is not inside the frame."""
    if crop is not None:
        left, top, right, bottom = crop
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"crop is (left, top, right, bottom) as fractions of the frame in [0, 1], got {crop}")


def resample(wave: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample a mono wave with FFmpeg's swresample.

    Args:
        wave (`np.ndarray` of shape `(S,)`): float32.
        rate, new_rate (`int`): Hz.

    Returns:
        `np.ndarray` of shape `(ceil(S * new_rate / rate),)`: float32, aligned with the input.
    """
    if rate == new_rate or not len(wave):
        return wave
    if av is None:
        raise ImportError(f"resampling from {rate} to {new_rate} Hz needs PyAV: pip install av")
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
    """Decodes one audio stream to mono and places every chunk by its timestamp.

    How this works:

    1. `feed` decodes each packet to frames and averages their channels to mono chunks `(S,)`, each kept with its time
       in seconds on the clip's clock.
    2. `wave` joins the chunks from a little before the window on. A chunk that starts more than `SOUND_GAP` after the
       end of the previous one is preceded by silence of that length: streams with lost packets or pauses in recording
       would otherwise slide ahead of the frames. Smaller gaps and overlaps are rounding of the timestamps.
    3. The joined wave is resampled. The first sample read is a whole number of resampling periods from the start of
       the clip (see `aligned_span`), so the result equals the same part of the resampled whole clip.
    4. The samples outside the window, read only for the filter's sake, are cut off.
    """

    def __init__(self, stream: Any, request: MediaRequest):
        self.stream, self.request = stream, request
        # Packed by FFmpeg's converter: PyAV reads past the end of a planar frame with more than 8 channels.
        self.packer = av.AudioResampler(format="flt")
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
                self.errors += 1  # the rate changes within the stream: from here on it is another recording
                continue
            self.rate = frame.sample_rate
            time = None if frame.time is None else frame.time - origin
            try:
                parts = self.packer.resample(frame)
            except (av.error.FFmpegError, ValueError):
                self.errors += 1  # the channel layout changes within the stream
                continue
            for part in parts:
                chunk = part.to_ndarray().reshape(-1, part.layout.nb_channels).mean(axis=1, dtype=np.float32)
                self.held += chunk.nbytes
                self.request.limits.check_bytes(self.request.name, self.held, "decoded sound")
                self.chunks.append((time, chunk))
                time = None if time is None else time + len(chunk) / self.rate

    def wave(self, notes: list[str]) -> tuple[np.ndarray | None, int | None, float]:
        """Sound `(S,)` of the request's `audio_span`, its rate in Hz, and the second at which it starts."""
        nothing = (None, None, 0.0)
        if self.stream is None:
            notes.append("no_audio: the file has no audio stream")
            return nothing
        if self.errors:
            notes.append(f"damaged: {self.errors} audio packets did not decode")
        if not self.chunks:
            notes.append("no_audio: the audio stream does not decode")
            return nothing
        rate = self.request.sampling_rate or self.rate
        first, last = aligned_span(self.request.audio_span, self.rate, rate)
        wave = self._assemble(first / self.rate, None if last is None else last - first)
        if not np.isfinite(wave).all():
            raise MediaError("undecodable", f"{self.request.name}: the sound has values that are not finite")
        begin = first * rate // self.rate
        wave, begin = cut_sound(resample(wave, self.rate, rate), begin, rate, self.request.audio_span)
        if len(wave) == 0:
            notes.append("too_short: the window has no sound")
            return nothing
        return wave, rate, begin / rate

    def _assemble(self, start: float, length: int | None) -> np.ndarray:
        """Up to `length` samples from second `start` on, with silence where the timestamps have a gap."""
        parts: list[np.ndarray] = []
        begin = cursor = 0  # in samples from `start`; begin < 0: sound before `start`, which the last line cuts off
        for time, chunk in self.chunks:
            gap = 0 if time is None else round((time - start) * self.rate) - cursor
            if not parts and gap < 0:
                begin = cursor = gap
            elif gap > (SOUND_GAP * self.rate if parts else 0):
                self.request.limits.check_seconds(self.request.name, gap / self.rate)
                parts.append(np.zeros(gap, dtype=np.float32))
                cursor += gap
            parts.append(chunk)
            cursor += len(chunk)
        return np.concatenate(parts)[-begin : None if length is None else length - begin]


def aligned_span(span: tuple[float | None, float | None], rate: int, new_rate: int) -> tuple[int, int | None]:
    """First and last sample to read so that resampling them gives the same samples as resampling the whole clip.

    With g = gcd(rate, new_rate), every rate / g input samples yield exactly new_rate / g output samples. The first
    sample is a multiple of rate / g, so that the output samples fall on the same times as those of the whole clip.
    Both ends lie `SOUND_LEAD` outside the span, beyond the reach of the resampler's filter.
    """
    period = rate // gcd(rate, new_rate)
    lead = 0 if rate == new_rate else round(SOUND_LEAD * rate)
    start, end = span
    first = max(round(start * rate) - lead, 0) // period * period if start is not None else 0
    return first, None if end is None else round(end * rate) + lead


def cut_sound(
    wave: np.ndarray, begin: int, rate: int, span: tuple[float | None, float | None]
) -> tuple[np.ndarray, int]:
    """The part of a wave inside a span in seconds, and the index in the clip of its first sample (before: `begin`)."""
    first = begin if span[0] is None else max(round(span[0] * rate), begin)
    last = begin + len(wave) if span[1] is None else max(round(span[1] * rate), first)
    return wave[first - begin : last - begin], first


# -- frames -----------------------------------------------------------------------------------------------------


class FrameReader:
    """Collects the packets of one video stream, then decodes only what the wanted frames need.

    How this works:

    1. `feed` records the time and the key-frame flag of every packet and keeps the packet itself, while all of them
       fit in `PACKET_STORE`; a larger stream is read a second time (`replay`). The sorted times are those at which
       frames are shown. They are used because declared frame rates and frame counts are often wrong or absent.
    2. The frames to take follow from these times: a frame is shown from its own time until that of the next one.
    3. A frame can only be decoded after its key frame. Before each wanted frame the decoder is moved to the last key
       frame that is shown no later, and the packets between are left out. Where no key frame lies in between, decoding
       goes on in order. Frames leave the decoder in the order in which they are shown.
    4. Each decoded frame that was wanted is converted to RGB, turned upright by its display matrix, cropped and
       resized. A wanted frame that does not decode is replaced by the latest one before it.
    """

    def __init__(self, stream: Any, request: MediaRequest):
        self.stream, self.request = stream, request
        self.times: list[float] = []  # in decoding order
        self.keys: list[bool] = []
        self.store: list | None = []
        self.stored = 0
        self.errors = 0
        self.span = (0.0, 0.0)  # seconds the stream covers
        self.origin = 0.0
        self.converter = VideoReformatter()  # shared by all frames: creating one takes longer than converting a frame
        if stream is not None:
            self.base = float(stream.time_base)
            context = stream.codec_context
            request.limits.check_pixels(request.name, context.width, context.height)
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
        targets = np.concatenate([self._targets(shown, pick) for pick in self.request.picks])
        if len(targets) == 0:
            notes.append("too_short: the window has no frame")
            return None, None
        wanted = np.unique(targets)
        taken = self._decode(replay, wanted)
        if self.errors:
            notes.append(f"damaged: {self.errors} video packets did not decode")
        if not taken:
            notes.append("no_video: the video stream does not decode")
            return None, None
        # One pick returns its frames with repeats. Several return each frame once: the caller selects by time.
        order = np.searchsorted(wanted, targets if len(self.request.picks) == 1 else wanted)
        return np.stack([taken[i][1] for i in order]), np.maximum.accumulate([taken[i][0] for i in order])

    def _targets(self, shown: np.ndarray, pick: Pick) -> np.ndarray:
        """Times of the frames to take: those shown at the centres of equal parts of the interval."""
        low, high = pick.overlap(self.span)
        if not low < high:
            return np.zeros(0)
        fps = self.request.fps
        count = pick.count if fps is None else max(round((high - low) * fps), 1)
        if count is None:
            first = max(int(np.searchsorted(shown, low + 1e-6, side="right")) - 1, 0)  # shown when the window starts
            return shown[first:][shown[first:] < high - 1e-6]
        return shown[on_show(shown, low, high, count)]

    def _decode(self, replay: Replay, wanted: np.ndarray) -> list[tuple[float, np.ndarray]]:
        taken: list[tuple[float, np.ndarray]] = []
        held = None  # the latest frame, which replaces a wanted one that does not decode
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
        size = f"frames ({total} of {picture.shape[1]}x{picture.shape[0]})"
        self.request.limits.check_bytes(self.request.name, picture.nbytes * total, size)
        taken.append((shown[0], picture))

    def _shown_frames(self, replay: Replay, wanted: np.ndarray, taken: list) -> Iterator:
        """(seconds, frame) in the order of showing; packets that no wanted frame needs are not decoded."""
        codec = self.stream.codec_context
        key_places = [i for i, key in enumerate(self.keys) if key]
        resume, aimed, shown = 0, -1, 0
        packets = replay() if self.store is None else self.store
        for place, packet in enumerate(chain(packets, [None])):  # None flushes the decoder
            if len(taken) != aimed and len(taken) < len(wanted):  # a new frame is wanted: skip to its key frame
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


def on_show(times: np.ndarray, low: float, high: float, count: int) -> np.ndarray:
    """Indices of the frames shown at the centres of `count` equal parts of [low, high], given the time of each."""
    centres = low + (np.arange(count) + 0.5) * (high - low) / count
    return np.maximum(np.searchsorted(times, centres + 1e-6, side="right") - 1, 0)


def _picture(frame: Any, converter: Any, request: MediaRequest) -> np.ndarray:
    """One frame as upright RGB, cropped and resized."""
    request.limits.check_pixels(request.name, frame.width, frame.height)
    pixels = converter.reformat(frame, format="rgb24", **ONE_THREAD).to_ndarray()
    return fit_frame(upright(pixels, _display_matrix(frame)), request.crop, request.size)


def _display_matrix(frame: Any) -> np.ndarray | None:
    """The upper left 2 x 2 part of the frame's display matrix, or None if it has none."""
    try:
        data = frame.side_data["DISPLAYMATRIX"]
    except (KeyError, AttributeError):
        return None
    return np.frombuffer(bytes(data), "<i4")[:9].reshape(3, 3)[:2, :2].astype(np.float64)


def upright(pixels: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Rotate and mirror a frame `(H, W, 3)` as its display matrix says.

    The matrix [[a, b], [c, d]] shows the point (x, y) of the stored frame at (a x + c y, b x + d y) (ISO 14496-12,
    section 6.2.2). It is rounded to the nearest rotation by a multiple of 90 degrees, mirrored or not:

    - |a|, |d| dominate: the axes stay; d < 0 reverses rows (y), a < 0 reverses columns (x);
    - |b|, |c| dominate: x and y are swapped (transpose); then b < 0 reverses rows, c < 0 reverses columns;
    - neither (all zeros, for example): the matrix is ignored.
    """
    if matrix is None:
        return pixels
    (a, b), (c, d) = matrix
    if min(abs(a), abs(d)) > max(abs(b), abs(c)):
        flips = (d < 0, a < 0)
    elif min(abs(b), abs(c)) > max(abs(a), abs(d)):
        pixels, flips = pixels.transpose(1, 0, 2), (b < 0, c < 0)
    else:
        return pixels
    pixels = pixels[::-1] if flips[0] else pixels
    return np.ascontiguousarray(pixels[:, ::-1] if flips[1] else pixels)


def fit_frame(pixels: np.ndarray, crop: Box | None, size: int | tuple[int, int] | None) -> np.ndarray:
    """Crop and resize (bilinear) one frame `(H, W, 3)`; all code of this package crops and resizes here.

    Args:
        crop: left, top, right, bottom as fractions of the frame.
        size: (height, width), or the length of the shorter side with the aspect ratio kept; None keeps the pixels.
    """
    if crop is None and size is None:
        return pixels
    height, width = pixels.shape[:2]
    left, top, right, bottom = crop or (0.0, 0.0, 1.0, 1.0)
    box = (left * width, top * height, right * width, bottom * height)
    if size is None:
        left, top, right, bottom = (round(edge) for edge in box)
        return np.ascontiguousarray(pixels[top : max(bottom, top + 1), left : max(right, left + 1)])
    if isinstance(size, int):
        wide, high = box[2] - box[0], box[3] - box[1]
        scale = size / min(wide, high)
        target = (max(round(high * scale), 1), max(round(wide * scale), 1))
    else:
        target = (size[0], size[1])
    if target == (height, width) and crop is None:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BILINEAR, box=box))

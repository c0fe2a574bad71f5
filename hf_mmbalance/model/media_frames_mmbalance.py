"""Read the frames of a clip: decode no more than needed, then turn upright, crop and resize them.

Timestamps are on the clip's clock, which `media_sound_mmbalance` defines.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from .media_request_mmbalance import Box, MediaRequest, Pick


try:  # optional, so that a published model loads without it; needed only to read media files
    import av
    from av.video.reformatter import VideoReformatter
except ImportError:
    av = None  # type: ignore[assignment]
try:
    from PIL import Image
except ImportError:
    Image = None  # type: ignore[assignment]

Replay = Callable[[], Iterable[Any]]
# Starting swscale's own threads takes milliseconds per frame; older versions of PyAV have no `threads` argument.
ONE_THREAD = {"threads": 1} if av is not None and "threads" in (VideoReformatter.reformat.__doc__ or "") else {}
PACKET_STORE = 128 << 20  # bytes of compressed video kept while its timestamps are read; a larger stream is read twice


class FrameReader:
    """Collects the packets of one video stream, then decodes only what the wanted frames need.

    How this works:

    1. `feed` records the time and the key-frame flag of every packet. It also keeps the packets, as long as all of
       them fit in `PACKET_STORE`; a larger stream is read a second time (`replay`). Sorted, the times are those at
       which frames are shown. They are used because declared frame rates and frame counts are often wrong or absent.
    2. The frames to take follow from these times: a frame is shown from its own time until that of the next one.
    3. A frame can only be decoded after its key frame. Before each wanted frame, the decoder jumps to the last key
       frame that is shown no later, and skips the packets in between. If there is no key frame in between, decoding
       continues in order. Frames leave the decoder in the order in which they are shown.
    4. Each wanted frame is converted to RGB, turned upright according to its display matrix, cropped and resized. If
       it does not decode, the latest frame before it is used instead.
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
        """Return the times of the frames to take: those shown at the centres of equal parts of the interval."""
        low, high = pick.overlap(self.span)
        if not low < high:
            return np.zeros(0)
        fps = self.request.fps
        count = pick.count if fps is None else max(round((high - low) * fps), 1)
        if count is None:
            first = max(int(np.searchsorted(shown, low + 1e-6, side="right")) - 1, 0)  # shown when the window starts
            return shown[first:][shown[first:] < high - 1e-6]
        return shown[frames_shown(shown, low, high, count)]

    def _decode(self, replay: Replay, wanted: np.ndarray) -> list[tuple[float, np.ndarray]]:
        taken: list[tuple[float, np.ndarray]] = []
        held = None  # the latest frame, used in place of a wanted one that does not decode
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
        """Yield (seconds, frame) in display order; packets that no wanted frame needs are not decoded."""
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


def frames_shown(times: np.ndarray, low: float, high: float, count: int) -> np.ndarray:
    """Return indices into `times` of the frames shown at the centres of `count` equal parts of [low, high]."""
    centres = low + (np.arange(count) + 0.5) * (high - low) / count
    return np.maximum(np.searchsorted(times, centres + 1e-6, side="right") - 1, 0)


def _picture(frame: Any, converter: Any, request: MediaRequest) -> np.ndarray:
    """Convert one frame to upright RGB, cropped and resized."""
    request.limits.check_pixels(request.name, frame.width, frame.height)
    pixels = converter.reformat(frame, format="rgb24", **ONE_THREAD).to_ndarray()
    return fit_frame(rotate_upright(pixels, _display_matrix(frame)), request.crop, request.size)


def _display_matrix(frame: Any) -> np.ndarray | None:
    """Return the upper left 2 x 2 part of the frame's display matrix, or None if it has none."""
    try:
        data = frame.side_data["DISPLAYMATRIX"]
    except (KeyError, AttributeError):
        return None
    return np.frombuffer(bytes(data), "<i4")[:9].reshape(3, 3)[:2, :2].astype(np.float64)


def rotate_upright(pixels: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Rotate and mirror a frame `(H, W, 3)` according to its display matrix.

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
    """Crop and resize (bilinear) one frame `(H, W, 3)`; all cropping and resizing in this package happens here.

    Args:
        crop: Left, top, right and bottom edge as fractions of the frame.
        size: (height, width), or the length of the shorter side with the aspect ratio kept; None keeps the size.
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

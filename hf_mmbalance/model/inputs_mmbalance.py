"""Convert every accepted form of audio and frames (files, addresses, bytes, arrays, images) to checked arrays."""

import io
import ipaddress
import numbers
import os
import re
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np

from .media_frames_mmbalance import ONE_THREAD, fit_frame
from .media_mmbalance import Source, read_audio
from .media_request_mmbalance import LIMITS, Box, Limits, MediaError


try:  # optional, so that a published model loads without it; needed only to read files
    import av
    from av.video.reformatter import VideoReformatter
except ImportError:
    av = None  # type: ignore[assignment]
try:
    from PIL import Image, ImageOps
except ImportError:
    Image = None  # type: ignore[assignment]

FileLike = (str, os.PathLike, bytes)
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
FULL_SCALE = 32768.0
LOUDEST = 100.0  # larger floats are integer samples that were not divided by full scale
MOST_CHANNELS = 8
ENCODED = "_hf_encoded"  # attribute in which a decoder of `datasets` keeps the encoded file
PLAIN_JPEG = ("yuvj420p", "yuvj422p", "yuvj444p")  # neither grey nor CMYK
IDLE_SECONDS, DOWNLOAD_SECONDS, MOST_REDIRECTS = 60.0, 600.0, 5


# -- files and addresses ----------------------------------------------------------------------------------------


def is_file(value: Any) -> bool:
    """Return True for a path, address, bytes, or a `datasets` column value (undecoded, or torchcodec's decoder)."""
    if isinstance(value, Mapping):
        return bool(value) and set(value) <= {"bytes", "path"}
    return isinstance(value, (str, os.PathLike, bytes, bytearray)) or hasattr(value, ENCODED)


def source_of(value: Any, limits: Limits = LIMITS) -> Source:
    """Return the path or content behind a value that `is_file` accepts; http(s) addresses are downloaded.

    Raises:
        MediaError: if the address cannot be downloaded, or there is neither content nor a path.
    """
    value = getattr(value, ENCODED, value)
    if isinstance(value, Mapping):
        content = value.get("bytes")
        value = value.get("path") if content is None else content
        if value is None:
            raise MediaError("missing", "a file has neither bytes nor a path")
    if isinstance(value, bytearray):
        return bytes(value)
    if not isinstance(value, FileLike):
        raise ValueError(f"a file of type {type(value).__name__} is not supported: give a path, an address or bytes")
    if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
        return _download(value, limits)
    return value


def _download(address: str, limits: Limits) -> bytes:
    """Download the content of an http(s) address, within the limits on size and time."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import httpx

    name, first, deadline = _shown(address), address, time.monotonic() + DOWNLOAD_SECONDS
    try:
        for _ in range(MOST_REDIRECTS + 1):
            # Without compression, the bytes counted below are those kept in memory.
            headers = {"Accept-Encoding": "identity"}
            with get_session().stream(
                "GET", address, headers=headers, follow_redirects=False, timeout=IDLE_SECONDS
            ) as answer:
                if answer.is_redirect:
                    address = urljoin(address, answer.headers["location"])
                    _check_redirect(first, address, name)
                    continue
                if answer.status_code != 200:
                    raise MediaError("missing", f"{name}: cannot be downloaded (HTTP status {answer.status_code})")
                if answer.headers.get("content-encoding", "identity") != "identity":
                    raise MediaError("unreadable", f"{name}: the server sends it compressed; download it first")
                return _joined(answer.iter_raw(), name, limits, deadline)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise MediaError("unreadable", f"{name}: cannot be downloaded ({type(error).__name__})") from error
    raise MediaError("unreadable", f"{name}: more than {MOST_REDIRECTS} redirects")


def _joined(pieces: Any, name: str, limits: Limits, deadline: float) -> bytes:
    content = bytearray()
    for piece in pieces:
        content += piece
        limits.check_bytes(name, len(content), "the download")
        if time.monotonic() > deadline:
            raise MediaError("unreadable", f"{name}: the download took over {DOWNLOAD_SECONDS:g} s; download it first")
    return bytes(content)


def _check_redirect(first: str, address: str, name: str) -> None:
    """Check that a public address does not redirect a server into its own network."""
    if urlsplit(address).scheme not in ("http", "https"):
        raise MediaError("unreadable", f"{name}: redirects to something that is not http")
    if _is_local(address) and not _is_local(first):
        raise MediaError("unreadable", f"{name}: redirects to a local address; give that address if it is intended")


def _is_local(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False  # the download reports the error
    return any(not ipaddress.ip_address(str(place).split("%")[0]).is_global for place in found)


def _shown(address: str) -> str:
    """Remove user, query and fragment from an address for messages: they can contain a password or a signature."""
    return re.sub(r"//[^/]*@", "//", re.split(r"[?#]", address, maxsplit=1)[0])


# -- audio ------------------------------------------------------------------------------------------------------


def as_sound(audio: Any, sampling_rate: int | None, name: str, limits: Limits = LIMITS) -> tuple[np.ndarray, int]:
    """Return one clip's mono float32 waveform `(S,)`, not resampled, and its rate in Hz.

    Args:
        audio: A file, the value of an Audio column of `datasets`, an array or tensor `(S,)`, `(channels, S)` or
            `(S, channels)` of floats or 8, 16 or 32-bit integers, or a list of floats.
        sampling_rate: Sampling rate of an array in Hz; files contain their own.
        name: Name of the input in messages.
        limits: Limits on the input; larger ones are rejected.

    Raises:
        MediaError: (a ValueError) if a file cannot be used.
        ValueError: if an array has no valid `sampling_rate`, or a waveform is empty or not finite.
    """
    if is_file(audio):
        return read_audio(source_of(audio, limits), limits=limits)
    if not hasattr(audio, "shape") and not isinstance(audio, (list, tuple)):
        try:  # the value of a decoded column of `datasets`
            audio, sampling_rate = audio["array"], audio["sampling_rate"]
        except (KeyError, TypeError):
            raise ValueError(
                f"{name} of type {type(audio).__name__} is not supported: give an array and its sampling_rate,"
                " {'array': ..., 'sampling_rate': ...}, or a file"
            ) from None
    rate = _check_rate(sampling_rate, name)
    wave = _mono(to_numpy(audio), name)
    if not np.isfinite(wave).all():
        raise ValueError(f"{name} has NaN or infinite samples: repair it, or pass None for a clip without audio")
    if (peak := np.abs(wave).max()) > LOUDEST:
        raise ValueError(f"{name} has samples of up to {peak:g}: pass floats in [-1, 1], or int16 or int32")
    limits.check_seconds(name, len(wave) / rate)
    return wave, rate


def is_batch_of_audio(audio: Any) -> bool:
    """Return True if a value is the audio of several clips, not of one."""
    if isinstance(audio, (list, tuple)):
        return not (len(audio) > 0 and all(isinstance(value, numbers.Number) for value in audio))
    return hasattr(audio, "ndim") and audio.ndim == 3


def to_numpy(values: Any) -> np.ndarray:
    """Convert values to an array; tensors can be on any device and of any type."""
    if hasattr(values, "cpu"):  # a tensor
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    return np.asarray(values)


def _mono(wave: np.ndarray, name: str) -> np.ndarray:
    if wave.dtype.kind not in "fiu" or wave.dtype.itemsize > 4 and wave.dtype.kind in "iu":
        raise ValueError(f"{name} has samples of type {wave.dtype}: pass floats in [-1, 1], or int16 or int32")
    if wave.size == 0:
        raise ValueError(f"{name} is empty: pass None for a clip without audio")
    if wave.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {wave.shape}: expected (samples,) or (channels, samples)")
    if wave.ndim == 2 and min(wave.shape) > MOST_CHANNELS:
        raise ValueError(
            f"{name} has shape {wave.shape}: one clip can have up to {MOST_CHANNELS} channels; pass several clips as a"
            " list"
        )
    if wave.dtype.kind in "iu":
        half = 2.0 ** (8 * wave.dtype.itemsize - 1)
        wave = (wave.astype(np.float64) - (half if wave.dtype.kind == "u" else 0.0)) / half
    wave = wave.astype(np.float32, copy=False)
    return wave if wave.ndim == 1 else wave.mean(axis=0 if wave.shape[0] <= wave.shape[1] else 1)


def _check_rate(sampling_rate: Any, name: str) -> int:
    if sampling_rate is None:
        raise ValueError(f"{name} is an array: pass its sampling_rate in Hz, which an array does not contain")
    number = isinstance(sampling_rate, numbers.Real) and not isinstance(sampling_rate, bool)
    if not number or not LOWEST_RATE <= sampling_rate <= HIGHEST_RATE:
        raise ValueError(
            f"sampling_rate={sampling_rate!r} is not valid for {name}: give one rate in Hz from {LOWEST_RATE} to"
            f" {HIGHEST_RATE}, for all arrays"
        )
    return int(sampling_rate)


def round_sound(wave: np.ndarray) -> np.ndarray:
    """Round audio to 16-bit steps of 1 / 32768, as datasets store it; values beyond full scale are kept."""
    return (np.rint(wave * FULL_SCALE) / FULL_SCALE).astype(np.float32)


# -- frames -----------------------------------------------------------------------------------------------------


def as_frames(
    frames: Any,
    *,
    crop: Box | None = None,
    size: int | tuple[int, int] | None = None,
    limits: Limits = LIMITS,
) -> list[np.ndarray]:
    """Return one clip's RGB frames `(H, W, 3)`, uint8, upright, cropped and resized.

    Args:
        frames: An array or tensor `(T, H, W, 3)` or `(T, 3, H, W)`, a list of frames, or one frame. A frame is an
            array `(H, W, 3)`, `(3, H, W)` or `(H, W)` of integers up to 255, or of floats up to 1 or up to 255; a PIL
            image, or an image file.
        crop: Left, top, right and bottom edge as fractions of the frame.
        size: (height, width), or the length of the shorter side; None keeps the size.
        limits: Limits on the input; larger ones are rejected.

    Raises:
        MediaError: (a ValueError) if an image file does not decode or exceeds the limits.
        ValueError: if there are no frames, or a value is not a frame.
    """
    if not isinstance(frames, (list, tuple)):
        frames = frames if getattr(frames, "ndim", 0) == 4 else [frames]
    if len(frames) == 0:
        raise ValueError("zero frames: pass None for a clip without frames")
    jpeg, done, total_bytes, white = _Jpeg(), [], 0, _white(frames)
    for number, frame in enumerate(frames):
        label = f"frame {number}"
        if is_file(frame) or frame is None:
            pixels = _image_file(frame, label, jpeg, limits)
        else:
            pixels = _frame(frame, label, white)
            limits.check_pixels(label, pixels.shape[1], pixels.shape[0])
        done.append(fit_frame(pixels, crop, size))
        total_bytes += done[-1].nbytes
        limits.check_bytes(f"{len(frames)} frames", total_bytes, "pixels")
    return done


def is_batch_of_frames(frames: Any) -> bool:
    """Return True if a value is the frames of several clips, not of one."""
    if not isinstance(frames, (list, tuple)):
        return hasattr(frames, "ndim") and frames.ndim == 5
    return not frames or any(
        clip is None or isinstance(clip, (list, tuple)) or getattr(clip, "ndim", 0) == 4 for clip in frames
    )


def _white(frames: Any) -> float:
    """Return the value of white in a clip's float frames, 1 or 255.

    All frames decide together: the pixels of a dark frame are below 1 on either scale.
    """
    arrays = [to_numpy(frame) for frame in frames if isinstance(frame, (list, tuple)) or hasattr(frame, "dtype")]
    return 1.0 if all(values.max() <= 1 for values in arrays if values.size and values.dtype.kind in "bf") else 255.0


def _frame(frame: Any, name: str, white: float) -> np.ndarray:
    if Image is not None and isinstance(frame, Image.Image):
        frame = np.asarray(frame.convert("RGB"))
    frame = to_numpy(frame)
    if frame.ndim == 2:
        frame = np.repeat(frame[..., None], 3, axis=-1)
    if frame.ndim == 3 and frame.shape[0] == 3 and frame.shape[-1] != 3:
        frame = frame.transpose(1, 2, 0)
    if frame.ndim != 3 or frame.shape[-1] != 3 or frame.size == 0:
        raise ValueError(f"{name} has shape {frame.shape}: expected (H, W, 3) or (3, H, W), colour or (H, W), grey")
    if frame.dtype == np.uint8:
        return frame
    if not np.isfinite(frame).all():
        raise ValueError(f"{name} has NaN or infinite pixels")
    top = white if frame.dtype.kind in "bf" else 255.0
    if frame.min() < 0 or frame.max() > 255:
        raise ValueError(f"{name} has pixels outside [0, 255]: pass uint8, or floats in [0, 1]")
    return np.round(frame.astype(np.float32) * (255.0 / top)).astype(np.uint8)


def _image_file(image: Any, name: str, jpeg: "_Jpeg", limits: Limits) -> np.ndarray:
    if Image is None:
        raise ImportError("reading image files needs Pillow: pip install pillow")
    if image is None:
        raise MediaError("missing", f"{name} is null")
    source = source_of(image, limits)
    label = name if isinstance(source, bytes) else os.fspath(source)
    try:
        if not isinstance(source, bytes):
            with open(source, "rb") as file:
                source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `limits` is checked below instead
            opened = Image.open(io.BytesIO(source))
        limits.check_pixels(label, *opened.size)
        pixels = jpeg.decode(source)
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB")) if pixels is None else pixels
    except MediaError:
        raise
    except FileNotFoundError:
        raise MediaError("missing", f"{label}: no such image file") from None
    except Exception as error:  # Pillow raises many types of error for damaged files
        raise MediaError("undecodable", f"{label} cannot be read as an image ({error})") from error


class _Jpeg:
    """FFmpeg's JPEG decoder, set up once per clip; it takes less than half the time of Pillow.

    FFmpeg interpolates colour in a simpler way than Pillow; values differ by about one level of 255 on average.
    """

    def __init__(self) -> None:
        self.codec: Any = None

    def decode(self, content: bytes) -> np.ndarray | None:
        """Return the pixels, or None to leave it to Pillow (other formats, rotated or unusual JPEG, damaged files)."""
        # Pillow rejects a truncated image; FFmpeg would make up the missing part.
        whole = content.startswith(b"\xff\xd8") and content.rstrip(b"\0").endswith(b"\xff\xd9")
        if av is None or not whole or b"Exif" in content[:64]:
            return None
        if self.codec is None:
            self.codec = av.CodecContext.create("mjpeg", "r")
            self.codec.thread_count = 1
            self.converter = VideoReformatter()
        try:
            frames = self.codec.decode(av.Packet(content))
        except av.error.FFmpegError:
            return None
        if len(frames) != 1 or frames[0].format.name not in PLAIN_JPEG or frames[0].is_corrupt:
            return None
        frame = self.converter.reformat(frames[0], format="rgb24", **ONE_THREAD)
        # A view, not a copy: the pixels are copied once, when the frames of a clip are stacked.
        rows = np.frombuffer(memoryview(frame.planes[0]), np.uint8).reshape(frame.height, -1)
        return rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)


def encode_image(frame: np.ndarray, image_format: str, quality: int) -> bytes:
    """Encode a frame `(H, W, 3)` as a dataset stores it: JPEG of the given quality, or PNG (lossless)."""
    out = io.BytesIO()
    if image_format == "png":
        Image.fromarray(frame).save(out, "PNG", compress_level=3)
    else:
        Image.fromarray(frame).save(out, "JPEG", quality=quality)
    return out.getvalue()


def same_size(frames: Sequence[np.ndarray]) -> bool:
    """Return True if the frames have the same size, so that they can be stacked."""
    return len({frame.shape for frame in frames}) == 1


__all__ = ["as_frames", "as_sound", "encode_image", "is_file", "round_sound", "source_of"]

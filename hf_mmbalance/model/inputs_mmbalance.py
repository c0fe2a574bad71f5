"""What users pass for sound and frames, brought to one form and checked: mono waveforms and lists of RGB frames."""

import io
import numbers
import os
import warnings
from fractions import Fraction
from typing import Any

import numpy as np

from .media_mmbalance import read_audio


try:  # optional for whoever loads a published model: only needed for waveforms at another rate than the model's
    import torchaudio
except (ImportError, OSError):
    torchaudio = None  # type: ignore[assignment]
try:
    from PIL import Image
except ImportError:
    Image = None  # type: ignore[assignment]

FileLike = (str, os.PathLike, bytes)
MAX_PIXELS = 7680 * 4320
MAX_SECONDS = 600.0
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
# torchaudio's filter bank grows with the terms of the ratio of rates: 44101 to 16000 Hz would take gigabytes. So the
# ratio is rounded to this denominator, by less than 4 parts in 100,000.
MAX_RATIO_TERM = 1_000


def as_waveforms(
    audio: Any, sampling_rate: int | None, target_rate: int, max_seconds: float = MAX_SECONDS
) -> list[np.ndarray | None]:
    """One mono float32 waveform `(S,)` a clip at `target_rate`; None where a clip has no sound.

    Args:
        audio: One clip or a list of clips. A clip is a path, bytes, an array or tensor `(S,)`, `(channels, S)` or
            `(S, channels)` of floats or 8, 16 or 32-bit integers, a list of floats, or None.
        sampling_rate: Samples a second of arrays; files know their own.
        target_rate: Samples a second of the result.
        max_seconds: Longest file.

    Raises:
        ValueError: for arrays without (or with a senseless) `sampling_rate`, an empty or not finite waveform, or no
            clip at all.
    """
    batch = list(audio) if _is_batch_of_audio(audio) else [audio]
    if not batch:
        raise ValueError("audio is an empty list: pass at least one clip, or leave audio out")
    return [
        None if clip is None else _waveform(clip, sampling_rate, target_rate, f"audio of clip {index}", max_seconds)
        for index, clip in enumerate(batch)
    ]


def _is_batch_of_audio(audio: Any) -> bool:
    if isinstance(audio, (list, tuple)):
        return not (len(audio) > 0 and all(isinstance(value, numbers.Number) for value in audio))
    return hasattr(audio, "ndim") and audio.ndim == 3


def _waveform(clip: Any, sampling_rate: int | None, target_rate: int, name: str, max_seconds: float) -> np.ndarray:
    if isinstance(clip, FileLike):
        wave, rate = read_audio(clip, max_seconds=max_seconds)
        name = str(clip) if not isinstance(clip, bytes) else name
    else:
        rate = _check_rate(sampling_rate, name)
        wave = _mono(_to_numpy(clip), name)
    if not np.isfinite(wave).all():
        raise ValueError(f"{name} has NaN or infinite samples: repair it, or leave the sound out (None)")
    return resample(wave, rate, target_rate)


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "cpu"):  # a tensor
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    return np.asarray(values)


def _mono(wave: np.ndarray, name: str) -> np.ndarray:
    if wave.dtype.kind not in "fiu" or wave.dtype.itemsize > 4 and wave.dtype.kind in "iu":
        raise ValueError(f"{name} has samples of type {wave.dtype}: pass floats in [-1, 1], or int16 or int32")
    if wave.size == 0:
        raise ValueError(f"{name} is empty: leave the sound out (None) if the clip has none")
    if wave.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {wave.shape}: expected (samples,) or (channels, samples)")
    if wave.dtype.kind in "iu":
        half = 2.0 ** (8 * wave.dtype.itemsize - 1)
        wave = (wave.astype(np.float64) - (half if wave.dtype.kind == "u" else 0.0)) / half
    wave = wave.astype(np.float32, copy=False)
    return wave if wave.ndim == 1 else wave.mean(axis=0 if wave.shape[0] <= wave.shape[1] else 1)


def _check_rate(sampling_rate: Any, name: str) -> int:
    if sampling_rate is None:
        raise ValueError(f"{name} is an array: pass its sampling_rate in Hz, it cannot be read off an array")
    number = isinstance(sampling_rate, numbers.Real) and not isinstance(sampling_rate, bool)
    if not number or not LOWEST_RATE <= sampling_rate <= HIGHEST_RATE:
        raise ValueError(
            f"sampling_rate={sampling_rate!r} makes no sense for {name}: give one number of Hz from {LOWEST_RATE} to"
            f" {HIGHEST_RATE}, for all arrays"
        )
    return int(sampling_rate)


def resample(wave: np.ndarray, rate: int, target_rate: int) -> np.ndarray:
    """Resample `(S,)` with torchaudio's windowed sinc.

    Raises:
        ImportError: if the rates differ and torchaudio does not work.
    """
    if rate == target_rate:
        return np.ascontiguousarray(wave)
    if torchaudio is None:
        raise ImportError(
            f"resampling from {rate} to {target_rate} Hz needs torchaudio:"
            ' pip install "torch>=2.11,<2.15" "torchaudio==2.11.*"'
        )
    import torch

    ratio = Fraction(rate, target_rate).limit_denominator(MAX_RATIO_TERM)
    tensor = torch.from_numpy(np.ascontiguousarray(wave))
    return torchaudio.functional.resample(tensor, ratio.numerator, ratio.denominator).numpy()


def as_frames(frames: Any, max_pixels: int = MAX_PIXELS) -> list[list[np.ndarray]]:
    """One list of RGB frames `(H, W, 3)` a clip, uint8; an empty list where a clip has no frames (None).

    Args:
        frames: One clip or a list of clips. A clip is an array or tensor `(T, H, W, 3)` or `(T, 3, H, W)`, a list of
            frames, one frame, or None. A frame is an array `(H, W, 3)`, `(3, H, W)` or `(H, W)` of integers up to 255,
            or of floats up to 1 or up to 255; a PIL image, a path or bytes.
        max_pixels: Largest image file, against files that decode to much more than they weigh.

    Raises:
        ValueError: for a clip with zero frames, something that is no frame, an image over `max_pixels`, or no clip at
            all.
    """
    clips = list(frames) if _is_batch_of_frames(frames) else [frames]
    if not clips:
        raise ValueError("frames is an empty list: pass at least one clip, or leave frames out")
    out: list[list[np.ndarray]] = []
    for index, clip in enumerate(clips):
        if clip is None:
            out.append([])
            continue
        name = f"frames of clip {index}"
        if not isinstance(clip, (list, tuple)):
            clip = clip if getattr(clip, "ndim", 0) == 4 else [clip]
        if len(clip) == 0:
            raise ValueError(f"{name}: zero frames; leave the frames out (None) if the clip has none")
        out.append([_frame(frame, f"frame {number} of clip {index}", max_pixels) for number, frame in enumerate(clip)])
    return out


def _is_batch_of_frames(frames: Any) -> bool:
    if not isinstance(frames, (list, tuple)):
        return hasattr(frames, "ndim") and frames.ndim == 5
    return not frames or any(
        clip is None or isinstance(clip, (list, tuple)) or getattr(clip, "ndim", 0) == 4 for clip in frames
    )


def _frame(frame: Any, name: str, max_pixels: int) -> np.ndarray:
    if isinstance(frame, FileLike):
        frame = _open_image(frame, name, max_pixels)
    if Image is not None and isinstance(frame, Image.Image):
        frame = np.asarray(frame.convert("RGB"))
    frame = _to_numpy(frame)
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
    top = 1.0 if frame.dtype.kind in "bf" and frame.max() <= 1.0 else 255.0
    if frame.min() < 0 or frame.max() > 255:
        raise ValueError(f"{name} has pixels outside [0, 255]: pass uint8, or floats in [0, 1]")
    return np.round(frame.astype(np.float32) * (255.0 / top)).astype(np.uint8)


def _open_image(source: str | os.PathLike | bytes, name: str, max_pixels: int) -> Any:
    if Image is None:
        raise ImportError("reading image files needs Pillow: pip install pillow")
    label = name if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        if image.width * image.height > max_pixels:
            raise ValueError(
                f"{label} has {image.width} x {image.height} pixels, over max_pixels={max_pixels}; raise it"
            )
        image.load()
        return image
    except Image.DecompressionBombError as error:
        raise ValueError(f"{label} is too large an image: {error} Raise PIL.Image.MAX_IMAGE_PIXELS.") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{label} cannot be read as an image: {error}") from error


__all__ = ["as_frames", "as_waveforms", "resample"]

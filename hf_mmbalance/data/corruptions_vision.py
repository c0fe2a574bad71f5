"""Frame corruptions: every function maps `(frames, level, rng)` to frames of the same shape, `(T, H, W, 3)` uint8.

`level` is the corruption's parameter at one severity; each function names its unit. Sizes are fractions of the frame,
so that a mouth of 24 pixels and a scene of 224 are corrupted equally.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage


def sensor_noise(frames: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise of standard deviation `level` (1 = full scale), new in every pixel and frame."""
    noise = rng.standard_normal(frames.shape, dtype=np.float32)
    return np.clip(np.rint(frames + np.float32(255 * level) * noise), 0, 255).astype(np.uint8)


def blur(frames: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Apply a Gaussian blur; `level` is its standard deviation as a fraction of the frame's shorter side."""
    sigma = level * min(frames.shape[1:3])
    smooth = ndimage.gaussian_filter(frames.astype(np.float32), (0, sigma, sigma, 0), mode="nearest")
    return np.clip(np.rint(smooth), 0, 255).astype(np.uint8)


def darkness(frames: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Imitate too little light: every value times `level`, rounded to the 8 bits that are stored."""
    return np.rint(np.arange(256) * level).astype(np.uint8)[frames]


def occlusion(frames: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Cover the same place in all frames with a rectangle of one colour; `level` is the fraction of area covered."""
    height, width = frames.shape[1:3]
    place, colour = rng.random(2), rng.integers(0, 256, 3, dtype=np.uint8)
    tall, wide = (min(max(round(np.sqrt(level) * side), 1), side) for side in (height, width))
    top, left = round(place[0] * (height - tall)), round(place[1] * (width - wide))
    out = frames.copy()
    out[:, top : top + tall, left : left + wide] = colour
    return out


def pixelate(frames: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Lower the resolution: average down to the fraction `level` of height and width, then enlarge in squares."""
    height, width = frames.shape[1:3]
    small = (max(round(width * level), 1), max(round(height * level), 1))
    box = Image.Resampling.BOX
    coarse = [Image.fromarray(frame).resize(small, box).resize((width, height), box) for frame in frames]
    return np.stack([np.asarray(frame) for frame in coarse])


def jpeg_compression(frames: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Compress the frames as JPEG of quality `level` (1 to 95) and decode them again."""
    return np.stack([_as_jpeg(frame, level) for frame in frames])


def _as_jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def frozen_frames(frames: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Make the video stutter: replace the fraction `level` of the frames, each by the frame shown before it.

    The first frame is never replaced, so that `level` 1 leaves one still image.
    """
    count = len(frames)
    frozen = np.zeros(count, dtype=bool)
    frozen[1 + rng.permutation(max(count - 1, 0))[: round(level * (count - 1))]] = True
    return frames[np.maximum.accumulate(np.where(frozen, 0, np.arange(count)))]

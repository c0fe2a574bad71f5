"""Noise at a given level, and changes that are the same for all frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def add_noise(wave: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise at a given signal-to-noise ratio, measured over the complete wave.

    Args:
        wave: waveform, `(S,)` float32.
        noise: waveform `(S,)`; it is scaled, so its own level does not matter.
        snr_db: 10 log10 of mean signal power over mean noise power.

    Returns:
        `(S,)` float32; unchanged if the wave or the noise is silent.
    """
    signal_power, noise_power = float(np.mean(wave**2)), float(np.mean(noise**2))
    if signal_power == 0 or noise_power == 0:
        return wave
    gain = np.sqrt(signal_power / noise_power / 10 ** (snr_db / 10))
    return (wave + gain * noise).astype(np.float32)


def babble(voices: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of voices, each scaled to the same level; all are `(S,)`."""
    levels = [np.sqrt(np.mean(voice**2)) for voice in voices]
    return np.sum([voice / level for voice, level in zip(voices, levels, strict=True) if level > 0] or voices, axis=0)


def cut_padded(wave: np.ndarray, first: int, length: int) -> np.ndarray:
    """Return `length` samples starting at `first`, with silence where the wave has none."""
    out = np.zeros(length, dtype=np.float32)
    low, high = max(first, 0), min(first + length, len(wave))
    if low < high:
        out[low - first : high - first] = wave[low:high]
    return out


def jitter_frames(
    frames: np.ndarray, rng: np.random.Generator, *, shift: float = 0.0, flip: bool = False, brightness: float = 0.0
) -> np.ndarray:
    """Shift, mirror and brighten all frames of a clip in the same way.

    Args:
        frames: `(T, H, W, 3)` uint8.
        rng: source of all random numbers, which are drawn in a fixed order.
        shift: largest shift, as a fraction of height and width; edge pixels are repeated.
        flip: mirror the frames with probability one half.
        brightness: largest relative change of brightness.

    Returns:
        uint8 frames of the same shape.
    """
    height, width = frames.shape[1:3]
    down, right = (round(rng.uniform(-shift, shift) * side) for side in (height, width))
    if down or right:
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        frames = frames[:, rows][:, :, columns]
    if flip and rng.random() < 0.5:
        frames = frames[:, :, ::-1]
    if brightness:
        table = np.clip(np.arange(256) * (1 + rng.uniform(-brightness, brightness)), 0, 255).astype(np.uint8)
        frames = table[frames]
    return np.ascontiguousarray(frames)

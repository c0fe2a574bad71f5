"""Sound at 16 bits: what a built data set stores, and what training takes from raw media too."""

from __future__ import annotations

import numpy as np


FULL_SCALE = 32768.0


def to_sixteen_bits(wave: np.ndarray) -> tuple[np.ndarray, float]:
    """Round to 16 bits.

    Args:
        wave: float samples, 1.0 at full scale; lossy codecs overshoot it.

    Returns:
        int16 samples, and the gain (1 unless the sound goes beyond full scale) that brings the sound back.
    """
    gain = max(1.0, float(np.abs(wave).max(initial=0.0)))
    return np.clip(np.rint(wave / gain * FULL_SCALE), -32768, 32767).astype(np.int16), gain


def from_sixteen_bits(samples: np.ndarray, gain: float) -> np.ndarray:
    """The float32 samples that `to_sixteen_bits` rounded."""
    return samples.astype(np.float32) / np.float32(FULL_SCALE) * np.float32(gain)

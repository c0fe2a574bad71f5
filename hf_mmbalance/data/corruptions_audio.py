"""Audio corruptions: every function maps `(wave, level, rng, rate, voices)` to a wave of the same length.

`level` is the corruption's parameter at one severity; each function names its unit. `voices` are waves of other clips,
of the same length, which only some functions use. A silent wave stays silent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import signal

from hf_mmbalance.data.augmentation import add_noise
from hf_mmbalance.data.augmentation import babble as babble_of


PACKET_SECONDS = 0.04
MAX_REVERBERATION_SECONDS = 1.0

Voices = Sequence[np.ndarray]


def babble(wave: np.ndarray, level: float, rng: np.random.Generator, rate: int, voices: Voices) -> np.ndarray:
    """Add other clips' audio, all at the same power; `level` is the signal-to-noise ratio in dB."""
    return add_noise(wave, babble_of(voices), level)


def white_noise(wave: np.ndarray, level: float, rng: np.random.Generator, rate: int, voices: Voices) -> np.ndarray:
    """Add Gaussian noise with a flat spectrum; `level` is the signal-to-noise ratio in dB."""
    return add_noise(wave, rng.standard_normal(len(wave)), level)


def pink_noise(wave: np.ndarray, level: float, rng: np.random.Generator, rate: int, voices: Voices) -> np.ndarray:
    """Add Gaussian noise whose power falls as 1 / frequency; `level` is the signal-to-noise ratio in dB."""
    spectrum = np.fft.rfft(rng.standard_normal(len(wave)))
    spectrum[0] = 0.0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return add_noise(wave, np.fft.irfft(spectrum, len(wave)), level)


def telephone(
    wave: np.ndarray, level: tuple[float, float], rng: np.random.Generator, rate: int, voices: Voices
) -> np.ndarray:
    """Keep a narrow band: Butterworth band-pass of order 4, run in both directions; `level` is the band in Hz."""
    low, high = level[0], min(level[1], 0.475 * rate)
    sections = signal.butter(4, (min(low, 0.5 * high), high), btype="bandpass", fs=rate, output="sos")
    return signal.sosfiltfilt(sections, wave, padlen=min(len(wave) - 1, 256)).astype(np.float32)


def clipping(wave: np.ndarray, level: float, rng: np.random.Generator, rate: int, voices: Voices) -> np.ndarray:
    """Imitate a recording level set too high: the peak stays, and the fraction `level` of samples is cut to it."""
    magnitude = np.abs(wave)
    limit, peak = np.quantile(magnitude, 1 - level), magnitude.max()
    return (np.clip(wave, -limit, limit) * (peak / limit)).astype(np.float32) if limit > 0 else wave.copy()


def dropouts(wave: np.ndarray, level: float, rng: np.random.Generator, rate: int, voices: Voices) -> np.ndarray:
    """Silence lost packets of 40 ms; `level` is the fraction of packets lost (at least one)."""
    packet = max(round(PACKET_SECONDS * rate), 1)
    packets = -(-len(wave) // packet)
    out = wave.copy()
    for lost in rng.permutation(packets)[: max(round(level * packets), 1)]:
        out[lost * packet : (lost + 1) * packet] = 0.0
    return out


def reverberation(wave: np.ndarray, level: float, rng: np.random.Generator, rate: int, voices: Voices) -> np.ndarray:
    """Add the reverberation of a room, at unchanged power; `level` is the direct-to-reverberant ratio in dB.

    See `room_response`. The reverberation time grows as the ratio falls: 0.2 s at 6 dB, 1 s at -12 dB.
    """
    seconds = 0.2 + 0.8 * np.clip((6.0 - level) / 18.0, 0.0, 1.0)
    out = signal.fftconvolve(wave, room_response(level, seconds, rate, rng))[: len(wave)]
    power, before = np.mean(out**2), np.mean(wave.astype(np.float64) ** 2)
    return (out * np.sqrt(before / power)).astype(np.float32) if power > 0 else wave.copy()


def room_response(ratio_db: float, seconds: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Return a room's impulse response: a unit impulse, then Gaussian noise that decays by 60 dB in `seconds`.

    This is Polack's model of late reverberation. `ratio_db` is 10 log10 of the impulse's energy over the tail's, and
    the response has exactly this ratio.
    """
    length = max(round(min(seconds, MAX_REVERBERATION_SECONDS) * rate), 2)
    time = np.arange(1, length) / rate
    tail = rng.standard_normal(length - 1) * 10 ** (-3 * time / seconds)
    tail *= np.sqrt(10 ** (-ratio_db / 10) / np.sum(tail**2))
    return np.concatenate([[1.0], tail])


def conflict(wave: np.ndarray, level: float | None, rng: np.random.Generator, rate: int, voices: Voices) -> np.ndarray:
    """Mix in the audio of a clip of a different class, `voices[0]`, at `level` dB; None replaces the wave by it."""
    other = np.asarray(voices[0], dtype=np.float32)
    return other.copy() if level is None else add_noise(wave, other, level)


def fit_length(wave: np.ndarray, length: int) -> np.ndarray:
    """Return the wave cut or repeated to `length` samples."""
    return np.resize(wave, length).astype(np.float32, copy=False) if len(wave) else np.zeros(length, np.float32)

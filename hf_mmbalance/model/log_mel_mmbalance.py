"""Log-mel spectrograms of a batch of waveforms, as AST expects them."""

from functools import lru_cache

import numpy as np
import torch


FRAME_MS, SHIFT_MS = 25, 10
PREEMPHASIS = 0.97
LOW_FREQUENCY = 20.0


@lru_cache(maxsize=8)
def mel_banks(num_mel_bins: int, fft_size: int, sampling_rate: int) -> np.ndarray:
    """Return triangular filters in the HTK mel domain, from 20 Hz to the Nyquist frequency.

    The HTK mel domain is mel(f) = 1127 ln(1 + f / 700).

    Returns:
        `np.ndarray` of shape `(num_mel_bins, fft_size // 2 + 1)`.
    """

    def mel(frequency: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(frequency) / 700.0)

    edges = np.linspace(mel(LOW_FREQUENCY), mel(sampling_rate / 2), num_mel_bins + 2)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = mel(np.arange(fft_size // 2) * sampling_rate / fft_size)[None, :]
    banks = np.maximum(0.0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    return np.pad(banks, ((0, 0), (0, 1))).astype(np.float32)  # Kaldi does not use the Nyquist bin


def log_mel(
    waveforms: list[np.ndarray], *, sampling_rate: int, num_mel_bins: int, max_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute log-mel spectrograms of a batch (Kaldi fbank: 25 ms Hann windows, 10 ms shift, power, no dither).

    Args:
        waveforms: One mono float waveform `(S_i,)` per clip. Waveforms shorter than a window are padded with zeros.
        sampling_rate: Sampling rate of all waveforms in Hz.
        num_mel_bins: Number of mel filters.
        max_length: Spectrogram frames per clip; longer clips are cut, shorter ones padded with 0 as AST does.

    Returns:
        `(B, max_length, num_mel_bins)` float32 spectrograms, not normalised, and the number of filled frames `(B,)`.
    """
    window, shift = sampling_rate * FRAME_MS // 1000, sampling_rate * SHIFT_MS // 1000
    fft_size = 1 << (window - 1).bit_length()
    longest = window + (max_length - 1) * shift
    samples = [max(window, min(len(wave), longest)) for wave in waveforms]
    batch = torch.zeros(len(waveforms), max(samples))
    for row, wave, length in zip(batch, waveforms, samples, strict=True):
        part = torch.as_tensor(np.ascontiguousarray(wave[:length], dtype=np.float32))
        row[: len(part)] = part
    filled = torch.tensor([1 + (length - window) // shift for length in samples])
    frames = batch.unfold(1, window, shift)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    frames = (frames - PREEMPHASIS * previous) * torch.hann_window(window, periodic=False)
    power = torch.fft.rfft(frames, n=fft_size).abs().square()
    banks = torch.from_numpy(mel_banks(num_mel_bins, fft_size, sampling_rate))
    mel = (power @ banks.T).clamp(min=torch.finfo(torch.float32).eps).log()
    out = torch.zeros(len(waveforms), max_length, num_mel_bins)
    out[:, : mel.shape[1]] = mel[:, :max_length]
    beyond = torch.arange(max_length)[None, :] >= filled[:, None]
    return out.masked_fill_(beyond.unsqueeze(-1), 0.0), filled


__all__ = ["log_mel", "mel_banks"]

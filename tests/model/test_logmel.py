"""Batched log-mel spectrograms against transformers' own AST feature extractor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor

from hf_mmbalance.model.log_mel_mmbalance import log_mel, mel_banks


RATE = 16_000


def _signal(kind: str, seconds: float = 0.7) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    signals = {
        "noise": np.random.default_rng(0).normal(size=len(time)) * 0.1,
        "sine": 0.5 * np.sin(2 * np.pi * 440 * time),
        "chirp": 0.5 * np.sin(2 * np.pi * (50 * time + 5000 * time**2)),
        "silence": np.zeros(len(time)),
        "offset": np.full(len(time), 0.3),
        "click": (np.arange(len(time)) == 1000).astype(float),
    }
    return signals[kind].astype(np.float32)


def _both(wave: np.ndarray, num_mel_bins: int = 128, max_length: int = 100, rate: int = RATE):
    extractor = ASTFeatureExtractor(
        num_mel_bins=num_mel_bins, max_length=max_length, sampling_rate=rate, do_normalize=False
    )
    theirs = extractor(wave, sampling_rate=rate, return_tensors="pt").input_values
    ours, filled = log_mel([wave], sampling_rate=rate, num_mel_bins=num_mel_bins, max_length=max_length)
    return ours, theirs, filled


@pytest.mark.parametrize("kind", ["noise", "sine", "chirp", "silence", "offset", "click"])
def test_equals_the_feature_extractor(kind):
    ours, theirs, filled = _both(_signal(kind))
    assert ours.shape == theirs.shape == (1, 100, 128) and filled.tolist() == [68]
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 561, 8000, 20_000])
def test_equals_the_feature_extractor_at_every_length(samples):
    wave = np.random.default_rng(samples).normal(size=samples).astype(np.float32) * 0.1
    ours, theirs, filled = _both(wave)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    assert filled.item() == min(100, 1 + (samples - 400) // 160)


@pytest.mark.parametrize("num_mel_bins", [16, 40, 64])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
def test_equals_the_feature_extractor_at_other_sizes_and_rates(num_mel_bins, rate):
    ours, theirs, _ = _both(_signal("noise"), num_mel_bins=num_mel_bins, rate=rate)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_a_batch_of_different_lengths_equals_its_clips_one_by_one():
    waves = [_signal("noise", seconds) for seconds in (0.01, 0.3, 0.7, 2.0)]
    together, filled = log_mel(waves, sampling_rate=RATE, num_mel_bins=32, max_length=90)
    for row, wave in enumerate(waves):
        alone, count = log_mel([wave], sampling_rate=RATE, num_mel_bins=32, max_length=90)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)
        assert count.item() == filled[row].item()
        assert (together[row, count.item() :] == 0).all()
    assert filled.tolist() == [1, 28, 68, 90]


def test_shorter_than_a_window_is_padded_with_silence():
    wave = _signal("noise", 0.01)
    padded, _ = log_mel([np.pad(wave, (0, 400 - len(wave)))], sampling_rate=RATE, num_mel_bins=32, max_length=9)
    short, _ = log_mel([wave], sampling_rate=RATE, num_mel_bins=32, max_length=9)
    assert torch.equal(short, padded)


def test_mel_banks_are_triangles_in_the_mel_domain():
    banks = mel_banks(40, 512, RATE)
    assert banks.shape == (40, 257) and banks.min() == 0 and banks.max() <= 1
    assert (banks[:, -1] == 0).all()

    def mel(f):
        return 1127 * np.log(1 + f / 700)

    step = (mel(RATE / 2) - mel(20)) / 41
    for index in (0, 17, 39):
        centre = mel(20) + (index + 1) * step
        expected = np.clip(1 - np.abs(mel(np.arange(256) * RATE / 512) - centre) / step, 0, None)
        np.testing.assert_allclose(banks[index, :256], expected, atol=1e-6)

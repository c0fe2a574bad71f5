"""Noise at the stated level; changes that are the same for all frames of a clip."""

from __future__ import annotations

import numpy as np
import pytest

from hf_mmbalance.data.augmentation import add_noise, babble, cut_padded, jitter_frames


@pytest.mark.parametrize("snr", [-6.0, 0.0, 10.0])
def test_noise_has_the_stated_level(snr):
    rng = np.random.default_rng(0)
    wave, noise = rng.standard_normal(16_000).astype(np.float32) * 0.1, rng.standard_normal(16_000) * 7
    added = add_noise(wave, noise, snr) - wave
    assert 10 * np.log10((wave**2).mean() / (added**2).mean()) == pytest.approx(snr, abs=1e-3)
    assert add_noise(np.zeros(5, np.float32), noise[:5], 0.0).max() == 0
    np.testing.assert_array_equal(add_noise(wave, np.zeros(16_000), 0.0), wave)


def test_babble_gives_voices_the_same_level():
    loud, soft = np.array([4.0, -4.0]), np.array([0.1, 0.1])
    np.testing.assert_allclose(babble([loud, soft]), [2.0, 0.0])
    np.testing.assert_allclose(babble([loud, np.zeros(2)]), [1.0, -1.0])
    np.testing.assert_allclose(babble([np.zeros(2)]), [0.0, 0.0])


def test_cut_pads_with_silence():
    wave = np.arange(1, 5, dtype=np.float32)
    assert cut_padded(wave, -1, 3).tolist() == [0, 1, 2]
    assert cut_padded(wave, 3, 3).tolist() == [4, 0, 0]
    assert cut_padded(wave, 9, 2).tolist() == [0, 0]


def test_all_frames_of_a_clip_change_equally():
    frames = np.repeat(np.random.default_rng(0).integers(0, 200, (1, 20, 30, 3), dtype=np.uint8), 4, axis=0)
    changed = [
        jitter_frames(frames, np.random.default_rng(seed), shift=0.2, flip=True, brightness=0.2) for seed in range(8)
    ]
    for out in changed:
        assert out.shape == frames.shape and out.dtype == np.uint8
        for frame in out[1:]:
            np.testing.assert_array_equal(frame, out[0])
    assert len({out.tobytes() for out in changed}) == 8
    np.testing.assert_array_equal(jitter_frames(frames, np.random.default_rng(0)), frames)


def test_flip_mirrors_and_shift_moves():
    frames = np.arange(12, dtype=np.uint8).reshape(1, 1, 4, 3).repeat(5, axis=1)
    outs = {jitter_frames(frames, np.random.default_rng(seed), flip=True).tobytes() for seed in range(20)}
    assert outs == {frames.tobytes(), np.ascontiguousarray(frames[:, :, ::-1]).tobytes()}
    bright = jitter_frames(np.full((1, 2, 2, 3), 250, np.uint8), np.random.default_rng(2), brightness=0.5)
    assert len(np.unique(bright)) == 1

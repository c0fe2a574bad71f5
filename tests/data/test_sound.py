"""Sound at 16 bits: rounded, never clipped, and the same from a stored file as from memory."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from hf_mmbalance.building.encode import flac
from hf_mmbalance.data.sound import from_sixteen_bits, to_sixteen_bits


@pytest.mark.parametrize("peak", [0.3, 1.0, 1.7])
def test_rounding_is_half_a_step_at_most_and_survives_storing(peak):
    wave = np.random.default_rng(0).uniform(-1, 1, 4000).astype(np.float32)
    wave *= np.float32(peak / np.abs(wave).max())
    samples, gain = to_sixteen_bits(wave)
    assert gain == pytest.approx(max(1.0, peak)) and samples.dtype == np.int16
    back = from_sixteen_bits(samples, gain)
    # Half a step, but a whole one at +1, which 16 bits do not hold.
    inside = wave / gain < 1 - 0.5 / 32768
    assert np.abs(back - wave)[inside].max() <= 0.501 * gain / 32768
    assert np.abs(back - wave).max() <= 1.001 * gain / 32768
    stored, rate = soundfile.read(io.BytesIO(flac(samples, 16_000)), dtype="float32")
    assert rate == 16_000
    np.testing.assert_array_equal(stored * np.float32(gain), back)


def test_no_samples():
    samples, gain = to_sixteen_bits(np.zeros(0, np.float32))
    assert len(samples) == 0 and gain == 1.0

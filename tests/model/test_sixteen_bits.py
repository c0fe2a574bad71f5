"""Sound rounded to 16 bits: never clipped, and the same from a stored file as from memory."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from hf_mmbalance.building.encode import flac
from hf_mmbalance.model.inputs_mmbalance import round_sound


@pytest.mark.parametrize(("peak", "gain"), [(0.3, 1.0), (1.0, 2.0), (1.7, 2.0), (2.1, 4.0)])
def test_rounding_is_half_a_step_and_survives_storing(peak, gain):
    wave = np.random.default_rng(0).uniform(-1, 1, 4000).astype(np.float32)
    wave *= np.float32(peak / np.abs(wave).max())
    rounded = round_sound(wave)
    assert np.abs(rounded - wave).max() <= 0.501 / 32768 and rounded.dtype == np.float32
    np.testing.assert_array_equal(round_sound(rounded), rounded)
    content, found = flac(rounded, 16_000)
    assert found == gain
    stored, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate == 16_000
    np.testing.assert_array_equal(stored * np.float32(gain), rounded)


def test_no_samples():
    assert len(round_sound(np.zeros(0, np.float32))) == 0

"""Randomisation test, Holm's correction and measures of resampled clips, against closed forms."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hf_mmbalance.metrics import measures
from hf_mmbalance.metrics.paired import holm, sign_flip_p
from hf_mmbalance.metrics.sums import MEASURES, UnitSums


def test_few_units_try_every_sign_pattern() -> None:
    values = np.array([3.0, 1.0, -0.5, 0.0])  # their sum is 3.5
    sums = [abs(sum(s * v for s, v in zip(signs, values[:3], strict=True))) for signs in product((1, -1), repeat=3)]
    assert sign_flip_p(values, list("abcd")) == np.mean([total >= 3.5 for total in sums]) == 4 / 8
    assert sign_flip_p(np.zeros(4), list("abcd")) == 1.0


def test_clips_of_one_group_flip_together() -> None:
    values = np.array([1.0, -1.0, 2.0, 2.0])
    assert sign_flip_p(values, list("aabb")) == 1.0  # one group is left that differs: its mirror is as large
    assert sign_flip_p(values, list("abcd")) == pytest.approx(6 / 16)


def test_random_patterns_hold_their_level() -> None:
    rng = np.random.default_rng(0)
    p = [sign_flip_p(rng.normal(size=30), range(30), draws=400, seed=i) for i in range(400)]
    assert 0.03 < np.mean(np.array(p) <= 0.05) < 0.08
    assert sign_flip_p(np.ones(30), range(30), draws=999) == 1 / 1000  # never 0


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([]) == [] and holm([0.7, 0.8]) == [1.0, 1.0]


def test_measures_of_drawn_units_are_those_of_the_drawn_clips() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)  # class 3 has no clip
    unit = rng.integers(0, 7, 60)
    unit[:7] = np.arange(7)
    counts = rng.multinomial(7, np.full(7, 1 / 7), size=5)
    found = UnitSums.of(logits, labels, unit, 7).measure(counts)
    for draw in range(5):
        rows = np.concatenate([np.flatnonzero(unit == u) for u in range(7) for _ in range(counts[draw, u])])
        for measure in MEASURES:
            assert found[measure][draw] == pytest.approx(getattr(measures, measure)(logits[rows], labels[rows]))


def test_differences_that_cancel_are_not_told_apart_by_rounding() -> None:
    assert sign_flip_p([0.1, 0.2, -0.3], list("abc")) == 1.0  # 0.1 + 0.2 - 0.3 is 6e-17 in binary
    values = np.array([1, 1, 1, -1, -1, -1, 1, -1, 1, -1]) / 3  # as of a mean over three seeds
    assert sign_flip_p(np.append(values, [0.1, 0.2, -0.3]), range(13)) == 1.0

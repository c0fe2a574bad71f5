"""Paired comparisons: a randomisation test over whole groups, and Holm's correction for several tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


EXACT_UNITS = 12  # up to this many, all sign patterns are tried


def sign_flip_p(differences: Any, units: Any, *, draws: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p value of a mean paired difference, by flipping the signs of whole units.

    If both methods were equal, the sum of each unit could as well have the other sign. All sign patterns are tried for
    up to 12 units with a difference, else `draws` random ones and the observed one (Phipson & Smyth, 2010: p is never
    0).

    Args:
        differences: `(N,)` difference of every clip between two methods.
        units: `(N,)` unit of every clip that flips as a whole: its group, or the clip itself.
        draws: number of random sign patterns.
        seed: random seed of the patterns.
    """
    unit = np.unique(np.asarray(units).astype(str), return_inverse=True)[1].reshape(-1)
    total = np.bincount(unit, np.asarray(differences, dtype=np.float64))
    total = total[total != 0]
    if not len(total):
        return 1.0
    # Sums of equal size must count as equal although rounding, relative to the size of the terms, makes them differ.
    most = abs(total.sum()) - 1e-12 * np.abs(total).sum()
    if len(total) <= EXACT_UNITS:
        patterns = 1.0 - 2.0 * ((np.arange(2 ** len(total))[:, None] >> np.arange(len(total))) & 1)
        return float((np.abs(patterns @ total) >= most).mean())
    rng, reached = np.random.default_rng(seed), 0
    step = max(1, 4_000_000 // len(total))
    for start in range(0, draws, step):
        signs = rng.choice((-1.0, 1.0), size=(min(step, draws - start), len(total)))
        reached += int((np.abs(signs @ total) >= most).sum())
    return (1 + reached) / (1 + draws)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values after Holm's step-down correction (1979), in the given order; they keep their ranking."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected.tolist()

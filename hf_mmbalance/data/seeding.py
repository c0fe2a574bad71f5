"""Random numbers keyed by names: the same for a clip and epoch in any order, worker or process."""

from __future__ import annotations

import hashlib

import numpy as np


def rng_for(*key: object) -> np.random.Generator:
    """Return a generator seeded by the text of `key`, e.g. `rng_for(seed, "shift", epoch, clip_id)`.

    Python's own `hash` differs from process to process; blake2b does not.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))

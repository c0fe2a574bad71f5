"""Ways to damage bytes, each drawn from a seeded generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


Damage = Callable[[bytes, np.random.Generator], bytes]
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x01", b"\x80\0\0\0")


def flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    """1 to 200 bits anywhere."""
    array = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(0, len(array), int(rng.integers(1, 201)))
    np.bitwise_xor.at(array, places, (1 << rng.integers(0, 8, len(places))).astype(np.uint8))
    return array.tobytes()


def flip_header_bits(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bits of the first 512 bytes."""
    head = min(len(content), 512)
    return flip_bits(content[:head], rng)[:head] + content[head:]


def truncate(content: bytes, rng: np.random.Generator) -> bytes:
    """Only a first part, perhaps empty."""
    return content[: int(rng.integers(0, len(content)))]


def lose_block(content: bytes, rng: np.random.Generator) -> bytes:
    """A part in the middle is zero, missing, or there twice."""
    first, last = sorted(rng.integers(0, len(content), 2).tolist())
    middle = (b"\0" * (last - first), b"", content[first:last] * 2)[int(rng.integers(3))]
    return content[:first] + middle + content[last:]


def lie(content: bytes, rng: np.random.Generator) -> bytes:
    """Up to 6 four-byte fields hold extreme numbers, mostly near the start or the end, where headers are."""
    array = bytearray(content)
    for _ in range(int(rng.integers(1, 7))):
        reach = min(len(array) - 4, 2000)
        place = int(rng.integers(0, max(reach, 1)))
        place = len(array) - 4 - place if rng.random() < 0.3 else place
        array[max(place, 0) : max(place, 0) + 4] = EXTREMES[int(rng.integers(len(EXTREMES)))]
    return bytes(array)


def nothing(content: bytes, rng: np.random.Generator) -> bytes:
    """Undamaged: must be answered."""
    return content


def noise(content: bytes, rng: np.random.Generator) -> bytes:
    """Random bytes behind the first 16, which name the format."""
    return content[:16] + rng.bytes(int(rng.integers(0, 5000)))


DAMAGES: tuple[Damage, ...] = (flip_bits, flip_header_bits, truncate, lose_block, lie, lie, noise, nothing)


def damaged(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """The content after one kind of damage, and its name."""
    damage = DAMAGES[int(rng.integers(len(DAMAGES)))]
    return damage.__name__, damage(content, rng) if content else content

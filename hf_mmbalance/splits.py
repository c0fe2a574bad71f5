"""Names of splits and their customary aliases, in one place."""

from __future__ import annotations


SPLITS = ("train", "calibration", "validation", "test")
SPLIT_ALIASES = {
    "training": "train",
    "calib": "calibration",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "eval": "validation",
    "testing": "test",
}


def canonical_split(name: str) -> str:
    """`name` without surrounding blanks, in lower case and under its canonical name; unknown names are kept."""
    lowered = name.strip().lower()
    return SPLIT_ALIASES.get(lowered, lowered)

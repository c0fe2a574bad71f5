"""Names of splits and their common aliases."""

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
    """Return the canonical name of a split, ignoring case and surrounding blanks; unknown names are kept."""
    lowered = name.strip().lower()
    return SPLIT_ALIASES.get(lowered, lowered)

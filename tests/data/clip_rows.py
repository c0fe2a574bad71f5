"""Rows of the `datasets` library that hold one small clip each."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, Features, Value, Video


#: Two small frames per clip, and the splits as they are.
WHOLE: dict[str, Any] = {
    "frames": 2,
    "frame_size": [16, 16],
    "test_fraction": 0.0,
    "validation_fraction": 0.0,
    "calibration_fraction": 0.0,
}

CONTENT = {"bytes": Value("binary"), "path": Value("string")}


def made(clip: bytes, kind: object = "string", **columns: list) -> Dataset:
    """Rows with the same clip; `kind` is the type of the label, in a column `label` or `what`."""
    label = Value(kind) if isinstance(kind, str) else kind
    types = {"label": label, "what": label, "start": Value("float64"), "end": Value("float64")}
    features = Features({name: types.get(name, Value("string")) for name in columns} | {"clip": CONTENT})
    count = len(next(iter(columns.values())))
    rows = {**columns, "clip": [{"bytes": clip, "path": None}] * count}
    return Dataset.from_dict(rows, features=features).cast_column("clip", Video())

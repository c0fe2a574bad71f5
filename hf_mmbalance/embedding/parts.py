"""The Parquet files of an embeddings folder: one row per clip, draw and modality, written atomically.

    DIR/embeddings.json                                    the plan: clips, towers, options
    DIR/processor/                                         how a clip is read
    DIR/<modality>-<fingerprint of its tower>/part-00000-of-00012.parquet

A part holds the rows of consecutive clips, with all draws of a clip together. Its bytes depend only on the plan, the
clips and the tower, not on which process wrote it or how often the work was interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_mmbalance.console import UserError


PLAN = "embeddings.json"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("clip", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("label", pa.int64()),
        ("draw", pa.int64()),
        ("seconds", pa.float64()),
        ("key", pa.string()),
        ("feature", pa.list_(pa.float32())),
        ("token", pa.list_(pa.float32())),
        ("log_probs", pa.list_(pa.float32())),
    ]
)


class EmbeddingError(UserError):
    """Raised if embeddings cannot be made or used; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class Feature:
    """The output of a tower for one content (the audio or the frames of a clip).

    Attributes:
        vector: `(D,)` float32, the pooled feature that heads use.
        token: `(D,)` float32, the mean of the tower's tokens, which typicality uses.
        log_probs: `(K,)` float32 log-probabilities of a classifier's own labels, mean over frames; otherwise None.
    """

    vector: np.ndarray
    token: np.ndarray
    log_probs: np.ndarray | None = None


def part_name(index: int, count: int) -> str:
    """Return the file name of a part."""
    return f"part-{index:05d}-of-{count:05d}.parquet"


def write_part(path: Path, rows: Sequence[dict[str, Any]], features: Sequence[Feature | None]) -> None:
    """Write the rows of one part with their features (None where the modality is missing)."""
    full = [
        {
            **row,
            "feature": None if feature is None else feature.vector,
            "token": None if feature is None else feature.token,
            "log_probs": None if feature is None else feature.log_probs,
        }
        for row, feature in zip(rows, features, strict=True)
    ]
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(pa.Table.from_pylist(full, schema=SCHEMA), draft, compression="zstd")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_part(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read the rows of one part.

    Raises:
        EmbeddingError: the file cannot be read.
    """
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise EmbeddingError(f"{path} cannot be read ({error}): remove it and run `mmbalance embed` again") from None


def features_in(paths: Iterable[Path], keys: set[str]) -> dict[str, Feature]:
    """Collect the features of `keys` that the part files hold, by key."""
    found: dict[str, Feature] = {}
    for path in paths:
        have = [key for key in read_part(path, ["key"])["key"].to_pylist() if key in keys and key not in found]
        if have:
            table = read_part(path, ["key", "feature", "token", "log_probs"])
            for key, *values in zip(*(matrix(table[name]) for name in table.column_names), strict=True):
                if key in keys and values[0] is not None:
                    found[key] = Feature(*values)
    return found


def matrix(column: pa.ChunkedArray) -> list[Any]:
    """Return the entries of a column: strings and numbers unchanged, lists as float32 arrays, None for nulls."""
    if not pa.types.is_list(column.type):
        return column.to_pylist()
    entries: list[Any] = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy(zero_copy_only=False)
        ends = chunk.offsets.to_numpy()
        entries += [
            values[start:end] if valid else None
            for start, end, valid in zip(ends[:-1], ends[1:], chunk.is_valid().to_pylist(), strict=True)
        ]
    return entries

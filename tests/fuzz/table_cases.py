"""Damaged decision tables: bytes of good files changed, and files that are whole but say what cannot be."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_mmbalance.decision.table import DecisionTable

from .damage import damaged
from .outcome import need


CLIPS, CLASSES = 24, 3


def good_columns(rng: np.random.Generator) -> dict[str, Any]:
    """Columns of a good table with two modalities, as a file holds them."""
    logits = {f"logits.{name}": rng.normal(size=(CLIPS, CLASSES)).astype(np.float32) for name in ("audio", "vision")}
    logits["logits.audio"][3] = np.nan
    return {
        "id": np.array([f"clip{i}" for i in range(CLIPS)]),
        "group": np.array([f"group{i // 3}" for i in range(CLIPS)]),
        "split": np.array(["calibration", "test"] * (CLIPS // 2)),
        "label": rng.integers(0, CLASSES, CLIPS),
        **logits,
    }


def _change(columns: dict[str, Any], rng: np.random.Generator) -> str:
    """Change the columns in place; returns what was done."""
    names = list(columns)
    name = names[int(rng.integers(len(names)))]
    numbers = np.asarray([0, -1, 10**6, -(2**40), 2**62])
    changes = {
        "missing column": lambda: columns.pop(name),
        "short column": lambda: columns.update({name: columns[name][:-5]}),
        "empty column": lambda: columns.update({name: columns[name][:0]}),
        "all empty": lambda: columns.update({key: value[:0] for key, value in columns.items()}),
        "text": lambda: columns.update({name: np.array(["x"] * CLIPS)}),
        "odd labels": lambda: columns.update(label=rng.choice(numbers, CLIPS)),
        "float labels": lambda: columns.update(label=rng.normal(size=CLIPS)),
        "nan labels": lambda: columns.update(label=np.full(CLIPS, np.nan)),
        "infinite logits": lambda: columns["logits.vision"].__setitem__((2, 1), np.inf),
        "half a row missing": lambda: columns["logits.vision"].__setitem__((2, 1), np.nan),
        "no modality": lambda: [columns[f"logits.{m}"].__setitem__(5, np.nan) for m in ("audio", "vision")],
        "huge logits": lambda: columns.update({"logits.vision": columns["logits.vision"] * np.float32(1e37)}),
        "one class": lambda: columns.update({f"logits.{m}": np.zeros((CLIPS, 1)) for m in ("audio", "vision")}),
        "other classes": lambda: columns.update({"logits.vision": np.zeros((CLIPS, CLASSES + 1))}),
        "three axes": lambda: columns.update({"logits.vision": np.zeros((CLIPS, CLASSES, 2))}),
        "double ids": lambda: columns.update(id=np.array(["a"] * CLIPS)),
        "odd split": lambda: columns.update(split=np.array(["nowhere"] * CLIPS)),
        "features": lambda: columns.update({"features.audio": np.full((CLIPS, 4), np.inf)}),
        "odd reference": lambda: columns.update({"reference.sum": np.zeros((CLIPS, CLASSES + 2))}),
        "unknown column": lambda: columns.update(surprise=np.arange(CLIPS)),
    }
    chosen = list(changes)[int(rng.integers(len(changes)))]
    changes[chosen]()
    return f"{chosen} ({name})"


def _write_npz(path: Path, columns: dict[str, Any], rng: np.random.Generator) -> str:
    np.savez(path, **columns)
    kind = rng.random()
    if kind < 0.1:  # pickled objects
        np.savez(path, **columns | {"id": np.array([{"a": 1}] * CLIPS, dtype=object)})
        return "objects"
    if kind < 0.2:  # an array that is 4 GB when unpacked
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            header = {"descr": "<f4", "fortran_order": False, "shape": (CLIPS, 45_000_000)}
            with archive.open("features.audio.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.write(b"\0" * 1000)
        return "lying header"
    return "as written"


def _write_parquet(path: Path, columns: dict[str, Any], rng: np.random.Generator) -> str:
    arrays = {}
    longest = max((len(value) for value in columns.values()), default=0)
    for name, value in columns.items():
        entries: list[Any] = list(value.tolist()) + [None] * (longest - len(value))
        if rng.random() < 0.05 and entries:
            entries[int(rng.integers(len(entries)))] = None
        arrays[name] = pa.array(entries)
    pq.write_table(pa.table(arrays), path)
    return "as written"


def run_case(folder: Path, rng: np.random.Generator) -> Iterator[str]:
    """Yields the description, then reads the table and checks what comes back."""
    columns = good_columns(rng)
    path = folder / f"table.{'npz' if rng.random() < 0.5 else 'parquet'}"
    what = _change(columns, rng) if rng.random() < 0.5 else "good columns"
    write = _write_npz if path.suffix == ".npz" else _write_parquet
    what += f", {write(path, columns, rng)}"
    if rng.random() < 0.5:
        name, content = damaged(path.read_bytes(), rng)
        path.write_bytes(content)
        what += f", {name}"
    yield f"{path} {what}"
    table = DecisionTable.read(path)
    count = len(table.labels)
    need(count > 0 and len(table.ids) == len(table.groups) == len(table.splits) == count, "columns of other lengths")
    rows = table.logits
    missing = np.isnan(rows).all(axis=2)
    need(np.isfinite(rows[~missing]).all(), "logits that are neither finite nor missing")
    need((table.labels >= 0).all() and (table.labels < rows.shape[2]).all(), "labels outside the classes")

"""Files of decision tables: Parquet, `.npz` of plain arrays, and text, read as columns and metadata.

Columns by name are `(N,)` arrays of texts or integers, or float matrices `(N, width)` with NaN rows for null ones.
Metadata are `classes`, `modalities`, `kind` and `known`, as far as the file has them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.decision.text_columns import read_columns


Columns = dict[str, Any]
Metadata = dict[str, Any]
#: Name of the table in the output folder of a run.
RUN_TABLE = "decisions.parquet"
#: Prefixes of columns that hold a row of numbers per clip.
MATRICES = ("logits.", "features.", "reference.")


class TableError(ValueError):
    """A decision table that cannot be used; the message names the file, the field and the remedy."""


def table_path(path: Path) -> Path:
    """Return the path of the table: the file itself, or the table in the output folder of a run.

    Raises:
        TableError: if the folder has none.
    """
    if not path.is_dir():
        return path
    if not (path / RUN_TABLE).is_file():
        what = "a saved model without the table of its run" if (path / "config.json").is_file() else "not a run folder"
        raise TableError(
            f"{path}: the folder holds no {RUN_TABLE}, so it is {what}; give the output folder of a run, a model that"
            " was pushed with its run (`mmbalance push`), or a decision table."
        )
    return path / RUN_TABLE


def table_name(path: Path) -> str:
    """Return the name of a table: that of its run folder, or of its file without suffix."""
    return Path(os.path.abspath(path)).name if path.is_dir() else path.stem


def read_file(path: Path) -> tuple[Columns, Metadata]:
    """Read columns and metadata of a file; the suffix tells its format.

    Raises:
        TableError: if there is no such file, or it is not a table of this format; the message does not name the file.
    """
    if not path.is_file():
        raise TableError("no such file; give a decision table (.parquet, .npz or .csv).")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise TableError(f"unknown suffix {path.suffix!r}; a decision table is {', '.join(READERS)}.")
    return reader(path)


def write_file(path: str | os.PathLike[str], columns: Columns, meta: Metadata) -> None:
    """Write a `.parquet` or `.npz` file, and create its parent folders.

    Raises:
        TableError: if the suffix is neither of these; the message names the file.
    """
    path = Path(path)
    writer = WRITERS.get(path.suffix)
    if writer is None:
        raise TableError(f"{path}: unknown suffix {path.suffix!r}; write .parquet or .npz.")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer(path, columns, meta)


def _read_npz(path: Path) -> tuple[Columns, Metadata]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            columns: Columns = {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged archive can raise anything: zlib, zipfile, struct, MemoryError
        raise TableError(f"not a readable .npz of plain arrays ({type(error).__name__}: {error}).") from error
    meta: Metadata = {}
    for name in ("classes", "modalities"):
        if name in columns:
            meta[name] = [str(value) for value in np.atleast_1d(columns.pop(name))]
    if "kind" in columns:
        meta["kind"] = str(columns.pop("kind"))
    if "known" in columns:
        meta["known"] = _known_of(columns.pop("known"))
    for name, value in columns.items():
        matrix = name.startswith(MATRICES)
        if value.ndim != (2 if matrix else 1):
            raise TableError(f"array {name!r} has shape {value.shape}; expected {'(N, width)' if matrix else '(N,)'}.")
    lengths = {name: len(value) for name, value in columns.items()}
    if len(set(lengths.values())) > 1:
        raise TableError(f"the arrays have different lengths: {lengths}.")
    return columns, meta


def _read_parquet(path: Path) -> tuple[Columns, Metadata]:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except Exception as error:  # a damaged file can raise anything: ArrowException, OSError, MemoryError
        raise TableError(f"not a readable Parquet file ({type(error).__name__}: {error}).") from error
    raw = table.schema.metadata or {}
    meta: Metadata = {}
    for name in ("classes", "modalities"):
        if name.encode() in raw:
            meta[name] = _names_of(raw[name.encode()], name)
    if b"kind" in raw:
        meta["kind"] = raw[b"kind"].decode(errors="replace").strip('"')
    if b"known" in raw:
        try:
            meta["known"] = _known_of(json.loads(raw[b"known"]))
        except ValueError as error:
            raise TableError(f"metadata 'known' is not a JSON list of lists ({error}).") from error
    columns: Columns = {}
    for name in table.column_names:
        column = table[name]
        if name.startswith(MATRICES):
            columns[name] = _matrix(column, name)
            continue
        if name in ("id", "label", "clip", "draw", "split") and column.null_count:
            raise TableError(f"column {name!r} has {column.null_count} empty entries.")
        columns[name] = np.asarray(column.to_pylist()) if name in ("label", "draw") else column.to_pylist()
    return columns, meta


def _read_text(path: Path) -> tuple[Columns, Metadata]:
    try:
        return read_columns(path)
    except ValueError as error:
        raise TableError(str(error).removeprefix(f"{path}: ")) from None


READERS = {".parquet": _read_parquet, ".npz": _read_npz, ".csv": _read_text, ".tsv": _read_text}


def _names_of(text: bytes, name: str) -> list[str]:
    """Parse names from the file's metadata."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise TableError(f"metadata {name!r} is not JSON ({error}).") from error
    if not isinstance(found, list) or not all(isinstance(value, str | int) for value in found):
        raise TableError(f"metadata {name!r} must be a JSON list of names; it is {str(found)[:60]}.")
    return [str(value) for value in found]


def _known_of(values: Any) -> np.ndarray:
    """Convert 0 and 1 from the file to `(M, C)` bool."""
    found = np.asarray(values)
    if found.ndim != 2 or found.dtype.kind not in "biu" or not np.isin(found, (0, 1)).all():
        raise TableError("'known' must hold 0 or 1 for every modality (row) and class (column).")
    return found > 0


def _matrix(column: Any, name: str) -> np.ndarray:
    """Convert a column of lists to a float array `(N, width)`; null rows become NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if pa.types.is_null(array.type):
        return np.full((len(array), 0), np.nan)
    if not (
        pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type)
    ):
        raise TableError(f"column {name!r} is {array.type}; expected a list of floats per row.")
    present = np.asarray(array.is_valid())
    kept = array.drop_null()
    sizes = np.unique(np.asarray(pc.list_value_length(kept)))
    if len(sizes) > 1:
        raise TableError(f"column {name!r} has rows of different lengths: {sizes.tolist()}.")
    width = int(sizes[0]) if len(sizes) else 0
    flat = kept.flatten()
    matrix = np.full((len(array), width), np.nan)
    values = np.asarray(flat.to_numpy(zero_copy_only=False), dtype=np.float64)
    matrix[present] = values.reshape(-1, width) if width else values.reshape(0, 0)
    return matrix


def _write_parquet(path: Path, columns: Columns, meta: Metadata) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays: dict[str, Any] = {}
    for name, value in columns.items():
        if value.ndim == 1:
            arrays[name] = pa.array(value.tolist() if value.dtype.kind == "U" else value)
            continue
        present = ~np.isnan(value).all(axis=1)
        offsets = np.concatenate([[0], np.cumsum(present * value.shape[1])]).astype(np.int32)
        flat = pa.array(value[present].reshape(-1), type=pa.float32())
        arrays[name] = pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(~present))
    listed = {name: value for name, value in meta.items() if name not in ("kind", "known")}
    if "known" in meta:
        listed["known"] = meta["known"].astype(int).tolist()
    encoded = {name: json.dumps(value, ensure_ascii=False) for name, value in listed.items()} | {"kind": meta["kind"]}
    pq.write_table(pa.table(arrays).replace_schema_metadata(encoded), path)


def _write_npz(path: Path, columns: Columns, meta: Metadata) -> None:
    names = {name: np.array(meta[name], dtype=str) for name in ("classes", "modalities", "kind")}
    arrays: dict[str, Any] = {**columns, **meta, **names}
    np.savez_compressed(path, **arrays)


WRITERS = {".parquet": _write_parquet, ".npz": _write_npz}

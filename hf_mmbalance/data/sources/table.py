"""Clips in a table of paths and labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_mmbalance.data.clips import ClipSplits, DataError, split_name
from hf_mmbalance.data.options import MediaOptions, option
from hf_mmbalance.data.sources.rows import Row, cell, clips_from_rows, sorted_labels, window_in
from hf_mmbalance.text_tables import read_text_table


@dataclass
class TableOptions(MediaOptions):
    """Options of a CSV or Parquet table with one clip per row; paths are relative to the table."""

    path_column: str = option("path", "Column with the file's path.")
    label_column: str = option("label", "Column with the class: a name, or a number if classes are given.")
    group_column: str = option("group", "Column with the group (actor, speaker, source video); else the path.")
    split_column: str = option("split", "Column with the split, if present.")
    id_column: str = option("id", "Column with the clip's id, if present; else the path.")
    start_column: str = option("start", "Column with the window's start in seconds, if present.")
    end_column: str = option("end", "Column with the window's end in seconds, if present.")
    classes: list[str] | None = option(None, "Names of the classes in order; by default the sorted labels.")


def table_clips(path: str, options: TableOptions) -> ClipSplits:
    """Load a CSV, TSV or Parquet table of clips.

    Raises:
        DataError: a table or column is missing or empty, a label is outside `classes`, ids are repeated, or clips do
            not decode.
    """
    table = Path(path)
    entries = read_table(table, (options.path_column, options.label_column))
    names = set(entries[0])
    needed = [options.path_column, *([options.label_column] if options.unlabelled == "refuse" else [])]
    for column in needed:
        if column not in names:
            raise DataError(
                f"{path}: no column {column!r} (it has {', '.join(sorted(names))}); give its name as an option"
            )
    rows = [_table_row(table, number, entry, options) for number, entry in enumerate(entries, start=1)]
    labels = sorted_labels(row.label for row in rows if row.label is not None)
    classes = options.classes or labels
    if options.classes and all(label.isdecimal() for label in labels) and not set(labels) <= set(classes):
        named = dict(zip(map(str, range(len(classes))), classes, strict=True))
        rows = [row if row.label is None else replace(row, label=named.get(row.label, row.label)) for row in rows]
    outside = [row for row in rows if row.label is not None and row.label not in classes]
    if outside:
        text = f"{path}: label {outside[0].label!r} of {outside[0].id!r} is not among the classes {', '.join(classes)}"
        raise DataError(f"{text} ({len(outside)} such rows)")
    labelled = [row for row in rows if row.label is not None]
    without = [row.id for row in labelled if row.split is None]
    some = 0 < len(without) < len(labelled)
    notes = [f"{len(without)} rows have no split and count as train, e.g. {without[0]}"] if some else []
    return clips_from_rows(table.stem, rows, classes, options, notes)


TABLE_SUFFIXES = {".csv", ".tsv", ".parquet"}


def read_table(table: Path, columns: Sequence[str] = ("path",)) -> list[dict[str, Any]]:
    """Read the rows of a CSV, TSV or Parquet file; `columns` are names by which a header is recognised.

    Raises:
        DataError: the file is missing, empty, or not such a table; the message names the file and the remedy.
    """
    if not table.is_file():
        raise DataError(f"{table}: no such file")
    if table.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(table)
            inside = [field.name for field in schema if pa.types.is_nested(field.type) or "binary" in str(field.type)]
            if inside and columns[0] not in schema.names:
                text = f"{table}: the clips are in its columns ({', '.join(inside)}), it names no files"
                raise DataError(f"{text}; name the folder of this file as the dataset")
            entries = pq.read_table(table).to_pylist()
        except pa.ArrowException as error:
            raise DataError(f"{table}: not a Parquet file that can be read ({error})") from error
    else:
        try:
            entries = list(read_text_table(table, columns))
        except ValueError as error:
            raise DataError(str(error)) from None
    if not entries:
        raise DataError(f"{table}: the table has no rows")
    return entries


def _table_row(table: Path, number: int, entry: dict[str, Any], options: TableOptions) -> Row:
    where = f"{table}, row {number}"
    path, label = cell(entry, options.path_column), cell(entry, options.label_column)
    if path is None:
        raise DataError(f"{where}: column {options.path_column!r} is empty")
    if label is None and options.unlabelled == "refuse":
        raise DataError(
            f"{where}: column {options.label_column!r} is empty: label the clip, or remove the row"
            " (of the commands, only `mmbalance fuse` accepts clips without a label)"
        )
    window = window_in(entry, options.start_column, options.end_column, where)
    split = cell(entry, options.split_column)
    own = path if window is None else f"{path}@{cell(entry, options.start_column)}"
    name = cell(entry, options.id_column) or own
    group = cell(entry, options.group_column) or path  # windows of one file must not be on both sides of a split
    try:
        split = split_name(split) if split else None
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return Row(name, label, os.path.join(table.parent, path), group, split, window)

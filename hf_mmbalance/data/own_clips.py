"""Your own clips: a folder of class folders, or a table of paths and labels."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_mmbalance.data.clips import SPLIT_ALIASES, SPLITS, ClipDataset, ClipSplits, DataError, split_name
from hf_mmbalance.data.files import walk_files
from hf_mmbalance.data.media_clips import ClipRecord, Decoder, MediaClips, decode_all, decode_file
from hf_mmbalance.data.options import MediaOptions, option
from hf_mmbalance.data.splits import fill_splits


MEDIA_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .flv .mpg .mpeg .wmv .3gp .ts .ogv .wav .flac .mp3 .ogg .opus .m4a .aac".split()
)


@dataclass
class FolderOptions(MediaOptions):
    """Options of a folder of class folders: `<class>/<clip>` or `<split>/<class>/<clip>`."""

    group_pattern: str | None = option(
        None,
        "Regular expression on the file name (without suffix); its first bracket is the group that must not be on "
        "both sides of a split, e.g. '^([^_]+)_' for speaker_clip.mp4. By default every clip is its own group.",
    )


@dataclass
class TableOptions(MediaOptions):
    """Options of a CSV or Parquet table with one clip a row; paths are relative to the table."""

    path_column: str = option("path", "Column of the file's path.")
    label_column: str = option("label", "Column of the class: a name, or a number with classes given.")
    group_column: str = option("group", "Column of the group (actor, speaker, source video), if there.")
    split_column: str = option("split", "Column of the split, if there.")
    id_column: str = option("id", "Column of the clip's id, if there; else the path.")
    start_column: str = option("start", "Column of the window's start in seconds, if there.")
    end_column: str = option("end", "Column of the window's end in seconds, if there.")
    classes: list[str] | None = option(None, "Names of the classes in order; by default the sorted labels.")


@dataclass(frozen=True)
class Row:
    """A clip as a source names it."""

    id: str
    label: str
    source: str
    group: str
    split: str | None = None
    window: tuple[float, float] | None = None


def folder_clips(path: str, options: FolderOptions) -> ClipSplits:
    """Load a folder of class folders.

    Raises:
        DataError: a missing or empty folder, two files of one name, clips that do not decode.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{path}: no such folder")
    tops = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not tops:
        raise DataError(f"{path}: the folder holds no class folders; the layout is <class>/<clip> in it")
    known = {name for name in tops if name.lower() in SPLITS or name.lower() in SPLIT_ALIASES}
    if known and known != set(tops):
        text = f"{path}: {', '.join(sorted(known))} are splits but {', '.join(sorted(set(tops) - known)[:5])} are not"
        raise DataError(f"{text}; use either <split>/<class>/<clip> or <class>/<clip>")
    pattern = re.compile(options.group_pattern) if options.group_pattern else None
    rows: list[Row] = []
    ignored: list[str] = []
    for split in sorted(known) or [None]:  # type: ignore[list-item]
        rows += _folder_rows(root / split if split else root, split, pattern, ignored)
    if not rows:
        raise DataError(f"{path}: no media files (e.g. mp4, flv, wav) in its class folders")
    files = Counter(os.path.realpath(row.source) for row in rows)
    doubled = [file for file, count in files.items() if count > 1]
    if doubled:
        raise DataError(f"{path}: {len(doubled)} files stand twice (by links), e.g. {doubled[0]}; keep one")
    notes = [f"{len(ignored)} files are no media and were ignored: {', '.join(ignored[:5])}"] if ignored else []
    return clips_from_rows(root.name, rows, sorted({row.label for row in rows}), options, notes)


def _folder_rows(root: Path, split: str | None, pattern: re.Pattern[str] | None, ignored: list[str]) -> list[Row]:
    rows = []
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        for path in walk_files(folder):
            if path.suffix.lower() not in MEDIA_SUFFIXES:
                ignored.append(str(path.relative_to(root)))
                continue
            # With split folders the split is part of the name: files of one name may stand in several.
            name = path.relative_to(root.parent if split else root).with_suffix("").as_posix()
            found = pattern.search(path.stem) if pattern else None
            if pattern and (found is None or not found.groups()):
                raise DataError(f"{path}: group_pattern {pattern.pattern!r} finds no group in {path.stem!r}")
            group = found.group(1) if found else name
            rows.append(Row(name, folder.name, str(path), group, split_name(split) if split else None))
    return rows


def table_clips(path: str, options: TableOptions) -> ClipSplits:
    """Load a CSV (comma or tab) or Parquet table of clips.

    Raises:
        DataError: a missing or empty table or column, a label outside `classes`, doubled ids, undecodable clips.
    """
    table = Path(path)
    entries = _read_table(table)
    names = set(entries[0])
    for column in (options.path_column, options.label_column):
        if column not in names:
            raise DataError(f"{path}: no column {column!r} (it has {', '.join(sorted(names))}); name it by the option")
    rows = [_table_row(table, number, entry, options) for number, entry in enumerate(entries, start=1)]
    labels = sorted({row.label for row in rows})
    classes = options.classes or labels
    if options.classes and all(label.isdigit() for label in labels) and not set(labels) <= set(classes):
        if max(map(int, labels)) < len(classes):
            rows = [replace(row, label=classes[int(row.label)]) for row in rows]
    outside = [row for row in rows if row.label not in classes]
    if outside:
        text = f"{path}: label {outside[0].label!r} of {outside[0].id!r} is not among the classes {', '.join(classes)}"
        raise DataError(f"{text} ({len(outside)} such rows)")
    return clips_from_rows(table.stem, rows, classes, options, [])


def _read_table(table: Path) -> list[dict[str, Any]]:
    if not table.is_file():
        raise DataError(f"{table}: no such file")
    if table.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        entries = pq.read_table(table).to_pylist()
    else:
        with table.open(newline="", encoding="utf-8-sig") as file:
            entries = list(csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ","))
    if not entries:
        raise DataError(f"{table}: the table has no rows")
    return entries


def _table_row(table: Path, number: int, entry: dict[str, Any], options: TableOptions) -> Row:
    def value(column: str) -> str | None:
        found = entry.get(column)
        return None if found is None or str(found).strip() == "" else str(found).strip()

    path, label = value(options.path_column), value(options.label_column)
    if path is None or label is None:
        missing = options.path_column if path is None else options.label_column
        raise DataError(f"{table}, row {number}: column {missing!r} is empty")
    start, end = value(options.start_column), value(options.end_column)
    try:
        window = None if start is None or end is None else (float(start), float(end))
    except ValueError:
        raise DataError(f"{table}, row {number}: the window {start!r} to {end!r} is no pair of seconds") from None
    split = value(options.split_column)
    name = value(options.id_column) or (path if window is None else f"{path}@{start}")
    source = os.path.join(table.parent, path)
    return Row(name, label, source, value(options.group_column) or name, split_name(split) if split else None, window)


def clips_from_rows(
    name: str,
    rows: Sequence[Row],
    classes: Sequence[str],
    options: MediaOptions,
    notes: list[str],
    decoder: Decoder = decode_file,
) -> ClipSplits:
    """Splits, records and decoded clips of rows from any source.

    Raises:
        DataError: ids that stand twice, a single class, clips that do not decode.
    """
    doubled = [clip for clip, count in Counter(row.id for row in rows).items() if count > 1]
    if doubled:
        sources = [row.source for row in rows if row.id == doubled[0]]
        raise DataError(f"{len(doubled)} clip ids stand twice, e.g. {doubled[0]!r}: {', '.join(sources[:2])}")
    if len(classes) < 2:
        raise DataError(f"{name}: only one class ({', '.join(classes)}); at least two are needed")
    rows = sorted(rows, key=lambda row: row.id)  # one order, whatever the source: seeds then mean the same
    place = {label: i for i, label in enumerate(classes)}
    fractions = {split: getattr(options, f"{split}_fraction") for split in ("test", "validation", "calibration")}
    splits, more = fill_splits(
        [row.id for row in rows],
        [place[row.label] for row in rows],
        [row.group for row in rows],
        [row.split for row in rows],
        fractions=fractions,
        seed=options.seed,
    )
    records: dict[str, list[ClipRecord]] = {}
    for row, split in zip(rows, splits, strict=True):
        record = ClipRecord(row.id, row.group, place[row.label], row.source, row.window)
        records.setdefault(split, []).append(record)
    media = {split: MediaClips(part, classes, options, split, decoder) for split, part in records.items()}
    media, remarks = decode_all(media, options)
    datasets: dict[str, ClipDataset] = dict(media)
    loaded = ClipSplits(name, list(classes), datasets, options.sampling_rate, notes + more + remarks)
    for (first, second), shared in loaded.shared_groups().items():
        loaded.notes.append(f"{len(shared)} groups are in both {first} and {second}, e.g. {shared[0]}")
    return loaded

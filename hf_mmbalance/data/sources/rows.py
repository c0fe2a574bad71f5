"""Turn the rows that any source of media provides into clips in splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_mmbalance.data.clips import ClipDataset, ClipSplits, DataError, NoLabels
from hf_mmbalance.data.decoding import decode_all
from hf_mmbalance.data.media_clips import ClipRecord, Fetch, MediaClips, media_file
from hf_mmbalance.data.options import MediaOptions
from hf_mmbalance.data.splits import fill_splits
from hf_mmbalance.model.reading_mmbalance import ReadingSpec, cut


UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Row:
    """One clip of a source; `window` is in seconds without margin, and `label` is None if the clip has no label."""

    id: str
    label: str | None
    source: str
    group: str
    split: str | None = None
    window: tuple[float, float] | None = None


def match_group(text: str, pattern: str | None, where: str) -> str:
    """Return what the first capturing group of a pattern finds in a text, or the text itself without a pattern.

    Args:
        text: text to search, e.g. a file name.
        pattern: regular expression, or None.
        where: name of the clip, for messages.

    Raises:
        DataError: the pattern is not valid, or finds nothing.
    """
    if pattern is None:
        return text
    try:
        found = re.search(pattern, text)
    except re.error as error:
        raise DataError(f"group_pattern {pattern!r} is not a regular expression ({error})") from None
    if found is None or not found.groups() or found.group(1) is None:
        raise DataError(f"{where}: group_pattern {pattern!r} finds no group in {text!r}")
    return found.group(1)


def cell(entry: dict[str, Any], column: str | None) -> str | None:
    """Return the text of a cell; None if the cell is absent, empty or NaN."""
    found = None if column is None else entry.get(column)
    return None if found is None or found != found else str(found).strip() or None


def window_in(
    entry: dict[str, Any], start_column: str | None, end_column: str | None, where: str
) -> tuple[float, float] | None:
    """Return start and end of a row's window in seconds, or None if it has no window.

    Args:
        entry: the row.
        start_column, end_column: columns with start and end, if there are any.
        where: name of the row, for messages.

    Raises:
        DataError: only one of the two is given, one is not a number, or the end is not after the start.
    """
    start, end = cell(entry, start_column), cell(entry, end_column)
    if start is None and end is None:
        return None
    if start is None or end is None:
        raise DataError(f"{where}: a window needs both start and end in seconds, got {start} and {end}")
    try:
        window = float(start), float(end)
    except ValueError:
        text = f"{where}: start {start!r} and end {end!r} must be seconds"
        raise DataError(f"{text}, with a decimal point") from None
    if not window[0] < window[1]:
        raise DataError(f"{where}: start {start} must be before end {end}")
    return window


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Return each label once, sorted by name, or by number if all are whole numbers."""
    names = set(labels)
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def clips_from_rows(
    name: str,
    rows: Sequence[Row],
    classes: Sequence[str],
    options: MediaOptions,
    notes: list[str],
    fetch: Fetch = media_file,
    stored: ReadingSpec | None = None,
) -> ClipSplits:
    """Split and decode the clips that the rows of any source describe.

    Args:
        name: name of the dataset.
        rows: clips of the dataset.
        classes: names of the labels, in order.
        options: splits, noise, augmentation, cache and limits.
        notes: remarks on the data so far.
        fetch: function that returns a record's media.
        stored: how raw files were stored, if these are rows of a built dataset.

    Raises:
        DataError: ids or classes occur twice, there is a single class, or clips do not decode.
    """
    _check_rows(name, rows, classes)
    rows = sorted(rows, key=lambda row: row.id)  # so that a seed gives the same splits from every source
    unlabelled, labelled = [row for row in rows if row.label is None], [row for row in rows if row.label is not None]
    records, split_notes = _records_in_splits(labelled, classes, options)
    if unlabelled:
        records[UNLABELLED] = [ClipRecord(row.id, row.group, 0, row.source, row.window) for row in unlabelled]
        notes = [*notes, f"clips without a label, which are only predicted: {len(unlabelled)}"]
    spec = options.reading(spans=any(row.window is not None for row in rows), stored=stored)
    media = {split: MediaClips(part, classes, options, split, spec, fetch) for split, part in records.items()}
    media, remarks = decode_all(media, options)
    remarks += _note_on_frames(media, spec)
    datasets: dict[str, ClipDataset] = dict(media)
    loaded = ClipSplits(
        name,
        list(classes),
        datasets,
        options.sampling_rate,
        notes + split_notes + remarks,
        reading=spec,
        unlabelled=datasets.pop(UNLABELLED, None),
    )
    if len({row.group for row in labelled}) > 1:
        loaded.notes += _notes_on_groups(loaded)
    return loaded


def _check_rows(name: str, rows: Sequence[Row], classes: Sequence[str]) -> None:
    repeated = [clip for clip, count in Counter(row.id for row in rows).items() if count > 1]
    if repeated:
        sources = [row.source for row in rows if row.id == repeated[0]]
        text = f"{len(repeated)} clip ids occur twice, e.g. {repeated[0]!r}: {', '.join(sources[:2])}"
        raise DataError(f"{text}; rename or remove one, or name a column with unique ids")
    if not classes and all(row.label is None for row in rows):
        raise NoLabels(f"{name}: no clip has a label; name the classes with --classes")
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise DataError(f"{name}: classes names {twice[0]!r} twice")
    if len(classes) < 2:
        raise DataError(f"{name}: only one class ({', '.join(classes)}); at least two are needed")


def _records_in_splits(
    rows: Sequence[Row], classes: Sequence[str], options: MediaOptions
) -> tuple[dict[str, list[ClipRecord]], list[str]]:
    """Return the records of labelled rows by split, and notes on splits that the source does not have."""
    if not rows:
        return {}, []
    place: dict[str | None, int] = {label: i for i, label in enumerate(classes)}
    splits, notes = fill_splits(
        [row.id for row in rows],
        [place[row.label] for row in rows],
        [row.group for row in rows],
        [row.split for row in rows],
        fractions={split: getattr(options, f"{split}_fraction") for split in ("test", "validation", "calibration")},
        seed=options.seed,
    )
    records: dict[str, list[ClipRecord]] = {}
    for row, split in zip(rows, splits, strict=True):
        record = ClipRecord(row.id, row.group, place[row.label], row.source, row.window)
        records.setdefault(split, []).append(record)
    return records, notes


def _note_on_frames(media: dict[str, MediaClips], spec: ReadingSpec) -> list[str]:
    """Return a note if frames repeat because the spans of a built dataset hold fewer frames than are read."""
    if spec.stored is None or spec.unit != "span" or spec.frames is None:
        return []
    firsts = [cut(part.decoded(0), spec).frame_times for part in media.values() if len(part)]
    held = [len(set(times.tolist())) for times in firsts if times is not None]
    if not held or max(held) >= spec.frames:
        return []
    return [
        f"a span holds about {round(sum(held) / len(held))} of the stored frames, and {spec.frames} are read, so"
        " frames repeat: build the dataset with more (e.g. --fps 25)"
    ]


def _notes_on_groups(clips: ClipSplits) -> list[str]:
    """Return a note on groups that several splits share."""
    shared = clips.shared_groups()
    if not shared:
        return []
    pairs = ", ".join(f"{first} and {second} ({len(groups)})" for (first, second), groups in shared.items())
    return [f"groups are on both sides of splits: {pairs}, e.g. {next(iter(shared.values()))[0]}"]

"""Rows of a `datasets` dataset: which column has which content, and what a row says about its clip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_mmbalance.data.adapter import Adapter
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.data.media_clips import ClipRecord
from hf_mmbalance.data.sources.rows import Row, cell, match_group, window_in


if TYPE_CHECKING:
    from hf_mmbalance.data.sources.hub import HubOptions

GROUP_NAMES = ("group", "actor", "speaker", "speaker_id", "subject", "video_id", "youtube_id")
ID_NAMES = ("id", "clip_id", "clip", "file", "name")
LABEL_NAMES = ("label", "labels", "class", "emotion", "target")
TIME_NAMES = ("frame_times", "times")
NO_LABEL = -1  # "no label" in a ClassLabel column, by convention of the `datasets` library
GAIN_NAME = "audio_gain"  # factor by which this package's builds scaled down audio beyond full scale


@dataclass(frozen=True)
class Columns:
    """Name of the column for each kind of content."""

    label: str
    audio: str | None
    frames: str | None
    video: str | None
    group: str | None
    id: str | None
    times: str | None
    gain: str | None
    start: str | None
    end: str | None

    @property
    def media(self) -> dict[str, str]:
        """Columns with media, by the names that `read` expects."""
        named = {
            "audio": self.audio,
            "frames": self.frames,
            "video": self.video,
            "frame_times": self.times,
            "audio_gain": self.gain,
        }
        return {name: column for name, column in named.items() if column}


def find_columns(name: str, features: Any, options: HubOptions, adapter: Adapter | None = None) -> Columns:
    """Find columns by type (Audio, Image or a list of images, Video) and usual name.

    Args:
        name: name of the dataset, for messages.
        features: mapping from column to type.
        options: options, some of which name columns.
        adapter: adapter that named the columns that the user did not.

    Raises:
        DataError: a named column does not exist, or no column matches.
    """
    from datasets import Audio, ClassLabel, Image, List, Value, Video

    def chosen(asked: str | None, kinds: Iterable[str], what: str) -> str | None:
        if asked is not None and asked not in features:
            remedy = f"; {adapter.remedy}" if adapter is not None and asked in adapter.columns.values() else ""
            raise DataError(f"{name}: no column {asked!r} for the {what} (it has {', '.join(features)}){remedy}")
        return asked or next(iter(kinds), None)

    def of_type(kind: type, lists: bool = False) -> list[str]:
        return [
            column
            for column, feature in features.items()
            if isinstance(feature, kind) or (lists and isinstance(feature, List) and isinstance(feature.feature, kind))
        ]

    media = {column for kind in (Audio, Image, Video) for column in of_type(kind, lists=True)}

    def of_name(names: Iterable[str]) -> list[str]:
        return [column for column in names if column in features and column not in media]

    label = chosen(options.label_column, of_name(LABEL_NAMES), "label")
    if label is None:
        raise DataError(f"{name}: no label column (it has {', '.join(features)}); give it as label_column=")
    if not isinstance(features[label], (ClassLabel, Value)):
        raise DataError(
            f"{name}: column {label!r} does not hold one label per clip ({features[label]}); name a different one as"
            " label_column="
        )
    columns = Columns(
        label=label,
        audio=chosen(options.audio_column, of_type(Audio), "audio"),
        frames=chosen(options.frames_column, of_type(Image, lists=True), "frames"),
        video=chosen(options.video_column, of_type(Video), "video"),
        group=chosen(options.group_column, of_name(GROUP_NAMES), "group"),
        id=chosen(options.id_column, of_name(ID_NAMES), "id"),
        times=chosen(None, of_name(TIME_NAMES), "frame times"),
        gain=chosen(None, of_name((GAIN_NAME,)), "gain"),
        start=chosen(options.start_column, (), "window's start"),
        end=chosen(options.end_column, (), "window's end"),
    )
    if options.group_pattern and columns.group is None:
        raise DataError(f"{name}: group_pattern needs group_column= (it has {', '.join(features)})")
    if (columns.start is None) != (columns.end is None):
        raise DataError(f"{name}: a window needs both start_column= and end_column=")
    if not (columns.audio or columns.frames or columns.video):
        raise DataError(f"{name}: no column of audio, images or video (it has {', '.join(features)})")
    return columns


def label_names(name: str, feature: Any, adapter: Adapter) -> list[str] | None:
    """Return names of integer labels, from the column or the adapter; None if the labels themselves are names.

    Raises:
        DataError: the adapter lists names for a column that has its own names, or that does not hold integers.
    """
    own = getattr(feature, "names", None)
    if not isinstance(adapter.labels, list):
        return own
    if own is not None or not str(getattr(feature, "dtype", "")).startswith(("int", "uint")):
        raise DataError(
            f"{name}: the adapter {adapter.name} lists labels, which are names of integers, but the labels here are"
            f" already names; write a mapping, `their name: class`"
        )
    return adapter.labels


def rows_of_split(split: str, part: Any, columns: Columns, names: list[str] | None, options: HubOptions) -> list[Row]:
    wanted = [column for column in (columns.label, columns.id, columns.group, columns.start, columns.end) if column]
    entries = enumerate(part.select_columns(sorted(set(wanted))))
    return [read_row(entry, split, index, columns, names, options) for index, entry in entries]


def read_row(
    entry: dict[str, Any], split: str, index: int, columns: Columns, names: list[str] | None, options: HubOptions
) -> Row:
    """Return id, label, group and window of one row. The id defaults to the row number, the group to the id.

    Raises:
        DataError: the label is outside the classes or missing where it is needed, the window is incomplete, or the
            pattern finds no group.
    """
    clip = cell(entry, columns.id) or f"{split}-{index:06d}"
    label = entry[columns.label]
    text = cell(entry, columns.label)
    if text is None or (names is not None and label == NO_LABEL):
        if options.unlabelled == "refuse":
            raise DataError(f"clip {clip!r} has no label ({columns.label} is {label!r}): label it, or remove the clip")
        text = None
    elif names is not None:
        if not 0 <= label < len(names):
            raise DataError(f"clip {clip!r} has label {label}, outside the {len(names)} classes")
        text = names[label]
    window = window_in(entry, columns.start, columns.end, f"clip {clip!r}")
    group = cell(entry, columns.group)
    group = clip if group is None else match_group(group, options.group_pattern, f"clip {clip!r}")
    return Row(clip, text, f"{split}:{index}", group, split, window)


class RowList(list[dict[str, Any]]):
    """Rows of a stream in a list, with the methods of `datasets.Dataset` that are used here."""

    @classmethod
    def of(cls, stream: Any, columns: Columns) -> RowList:
        """Read all rows of a stream, including the content of media for which it has only a path."""
        media = columns.media.values()
        return cls(
            {name: _fetched(value) if name in media else value for name, value in row.items()} for row in stream
        )

    def select_columns(self, names: list[str]) -> RowList:
        return RowList({name: row[name] for name in names} for row in self)


def _fetched(value: Any) -> Any:
    if isinstance(value, list):
        return [_fetched(one) for one in value]
    if not isinstance(value, dict) or value["bytes"] is not None or "://" not in str(value["path"]):
        return value
    import fsspec

    with fsspec.open(value["path"], "rb") as file:
        return value | {"bytes": file.read()}


def undecoded(part: Any) -> Any:
    """Return the same rows with media as bytes or paths."""
    from datasets import Audio, Image, IterableDataset, List, Video

    if isinstance(part, IterableDataset):
        return part.decode(False)  # also undoes the decoding of a stream of media files
    for column, feature in part.features.items():
        inner = feature.feature if isinstance(feature, List) else feature
        if isinstance(inner, (Audio, Image, Video)):
            raw = type(inner)(decode=False)
            part = part.cast_column(column, List(raw) if isinstance(feature, List) else raw)
    return part


@dataclass(frozen=True)
class RowReader:
    """Reader of a row's media by the index in its record, so that records can be pickled."""

    parts: dict[str, Any]
    columns: Columns

    def __call__(self, record: ClipRecord) -> dict[str, Any]:
        split, _, index = record.source.partition(":")
        part = self.parts[split]
        stored = part if isinstance(part, RowList) else part.select_columns(list(self.columns.media.values()))
        return media_of_row(stored[int(index)], self.columns)


def media_of_row(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Return a row's media under the names that `read` expects."""
    return {name: row[column] for name, column in columns.media.items() if row[column] is not None}

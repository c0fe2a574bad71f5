"""A data set of the `datasets` library, on the Hub or in a folder, with sound and frames or videos in its columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_mmbalance.data.clips import ClipSplits, DataError, split_name
from hf_mmbalance.data.images import decode_images
from hf_mmbalance.data.media_clips import ClipRecord, DecodedClip, DecodeSpec
from hf_mmbalance.data.options import MediaOptions, option
from hf_mmbalance.data.own_clips import Row, clips_from_rows
from hf_mmbalance.model.media_mmbalance import MediaError, read_audio, read_media


GROUP_NAMES = ("group", "actor", "speaker", "speaker_id", "subject", "video_id", "youtube_id")
ID_NAMES = ("id", "clip_id", "clip", "file", "name")
LABEL_NAMES = ("label", "labels", "class", "emotion", "target")
TIME_NAMES = ("frame_times", "times")
GAIN_NAME = "audio_gain"  # what our own builds scaled a sound down by that went beyond full scale


@dataclass
class HubOptions(MediaOptions):
    """Options of a Hub or local data set; columns are found by their type and name unless named here."""

    config: str | None = option(None, "Configuration of the data set, e.g. fold3.")
    revision: str | None = option(None, "Branch, tag or commit on the Hub.")
    audio_column: str | None = option(None, "Column with the sound.")
    frames_column: str | None = option(None, "Column with a list of images, or one image.")
    video_column: str | None = option(None, "Column with a video; gives both sound and frames.")
    label_column: str | None = option(None, "Column with the class.")
    group_column: str | None = option(None, "Column with the group (actor, speaker, source video).")
    id_column: str | None = option(None, "Column with the clip's id.")
    start_column: str | None = option(None, "Column with the start of the window to use, in seconds.")
    end_column: str | None = option(None, "Column with the end of the window to use, in seconds.")
    margin: float = option(0.0, "Seconds kept before and after that window.")
    streaming: bool = option(False, "Read the rows as a stream: no copy of the data set on disk, clips in memory.")


@dataclass(frozen=True)
class Columns:
    """Which column holds what."""

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


def hub_clips(name: str, options: HubOptions) -> ClipSplits:
    """Load a data set by `datasets.load_dataset`; bytes are decoded here, so torchcodec is not needed.

    Raises:
        DataError: nothing is there, columns are missing or of a wrong kind, clips that do not decode.
    """
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, options.config, revision=options.revision, streaming=options.streaming)
    except Exception as error:  # many kinds: a missing folder, an unknown config, no network
        raise DataError(f"{name}: the data set cannot be loaded ({type(error).__name__}: {error})") from error
    features = next(iter(loaded.values())).features
    if features is None:
        raise DataError(f"{name}: the columns are unknown until read; use streaming=false")
    columns = find_columns(name, features, options)
    parts: dict[str, Any] = {split_name(split): undecoded(part) for split, part in loaded.items()}
    if options.streaming:
        parts = {split: StreamedRows(part) for split, part in parts.items()}
    labels = getattr(features[columns.label], "names", None)
    rows: list[Row] = []
    for split, part in parts.items():
        rows += _rows(split, part, columns, labels, options)
    classes = list(labels) if labels else sorted({row.label for row in rows})
    return clips_from_rows(name, rows, classes, options, [], RowDecoder(parts, columns))


class StreamedRows(list[dict[str, Any]]):
    """The rows of a stream, read once; as much of `datasets.Dataset` as is used here."""

    def select_columns(self, names: list[str]) -> StreamedRows:
        return StreamedRows({name: row[name] for name in names} for row in self)


def undecoded(part: Any) -> Any:
    """The same rows with media left as bytes or paths."""
    from datasets import Audio, Image, List, Video

    for column, feature in part.features.items():
        inner = feature.feature if isinstance(feature, List) else feature
        if isinstance(inner, (Audio, Image, Video)):
            raw = type(inner)(decode=False)
            part = part.cast_column(column, List(raw) if isinstance(feature, List) else raw)
    return part


def find_columns(name: str, features: Any, options: HubOptions) -> Columns:
    """Columns by type (Audio, Image or a list of it, Video) and customary name.

    Raises:
        DataError: a named column is not there, or none fits.
    """
    from datasets import Audio, Image, List, Video

    def chosen(asked: str | None, kinds: Iterable[str], what: str) -> str | None:
        if asked is not None and asked not in features:
            raise DataError(f"{name}: no column {asked!r} for the {what} (it has {', '.join(features)})")
        return asked or next(iter(kinds), None)

    def typed(kind: type, lists: bool = False) -> list[str]:
        return [
            column
            for column, feature in features.items()
            if isinstance(feature, kind) or (lists and isinstance(feature, List) and isinstance(feature.feature, kind))
        ]

    def named(names: Iterable[str]) -> list[str]:
        return [column for column in names if column in features]

    label = chosen(options.label_column, named(LABEL_NAMES), "label")
    if label is None:
        raise DataError(f"{name}: no label column (it has {', '.join(features)}); name it by label_column=")
    columns = Columns(
        label=label,
        audio=chosen(options.audio_column, typed(Audio), "sound"),
        frames=chosen(options.frames_column, typed(Image, lists=True), "frames"),
        video=chosen(options.video_column, typed(Video), "video"),
        group=chosen(options.group_column, named(GROUP_NAMES), "group"),
        id=chosen(options.id_column, named(ID_NAMES), "id"),
        times=chosen(None, named(TIME_NAMES), "frame times"),
        gain=chosen(None, named((GAIN_NAME,)), "gain"),
        start=chosen(options.start_column, (), "window's start"),
        end=chosen(options.end_column, (), "window's end"),
    )
    if not (columns.audio or columns.frames or columns.video):
        raise DataError(f"{name}: no column of sound, images or video (it has {', '.join(features)})")
    return columns


def _rows(split: str, part: Any, columns: Columns, names: list[str] | None, options: HubOptions) -> list[Row]:
    wanted = [column for column in (columns.label, columns.id, columns.group, columns.start, columns.end) if column]
    entries = enumerate(part.select_columns(sorted(set(wanted))))
    return [read_row(entry, split, index, columns, names, options) for index, entry in entries]


def read_row(
    entry: dict[str, Any], split: str, index: int, columns: Columns, names: list[str] | None, options: HubOptions
) -> Row:
    """Id, label, group and window of one row.

    Raises:
        DataError: a label outside the classes.
    """
    clip = str(entry[columns.id]) if columns.id else f"{split}-{index:06d}"
    label = entry[columns.label]
    if names is not None and not (label is not None and 0 <= label < len(names)):
        raise DataError(f"clip {clip!r} has label {label}, outside the {len(names)} classes")
    window = None
    if columns.start and columns.end and entry[columns.start] is not None:
        window = (max(entry[columns.start] - options.margin, 0.0), entry[columns.end] + options.margin)
    text = names[label] if names is not None else str(label)
    group = str(entry[columns.group]) if columns.group else clip
    return Row(clip, text, f"{split}:{index}", group, split, window)


@dataclass(frozen=True)
class RowDecoder:
    """Decodes a row's bytes; picklable, since rows are read by number."""

    parts: dict[str, Any]
    columns: Columns

    def __call__(self, record: ClipRecord, spec: DecodeSpec) -> DecodedClip:
        split, _, index = record.source.partition(":")
        media = [name for name in (self.columns.audio, self.columns.frames, self.columns.video) if name]
        wanted = media + [name for name in (self.columns.times, self.columns.gain) if name]
        part = self.parts[split]
        stored = part if isinstance(part, StreamedRows) else part.select_columns(wanted)
        row = stored[int(index)]
        return decode_row(row, self.columns, record, spec)


def decode_row(row: dict[str, Any], columns: Columns, record: ClipRecord, spec: DecodeSpec) -> DecodedClip:
    """Decode the media of one row.

    Raises:
        MediaError: names the clip.
    """
    try:
        return _decode_parts(row, columns, record, spec)
    except MediaError as error:
        raise MediaError(error.reason, f"clip {record.id!r}: {error}") from None


def _decode_parts(row: dict[str, Any], columns: Columns, record: ClipRecord, spec: DecodeSpec) -> DecodedClip:
    notes: list[str] = []
    audio = frames = times = None
    if columns.video and row[columns.video] is not None:
        clip = read_media(
            _content(row[columns.video]),
            num_frames=None if record.window else spec.frames,
            sampling_rate=spec.sampling_rate,
            crop=spec.crop,
            size=spec.frame_size,
            max_seconds=spec.max_seconds,
        )
        audio, frames, times = clip.audio, clip.frames, clip.frame_times
        notes += clip.notes
    if columns.audio and row[columns.audio] is not None:
        audio, _ = read_audio(
            _content(row[columns.audio]), sampling_rate=spec.sampling_rate, max_seconds=spec.max_seconds
        )
        if columns.gain and row[columns.gain] is not None:
            audio = audio * np.float32(row[columns.gain])
    if columns.frames and row[columns.frames]:
        images = row[columns.frames]
        images = [images] if isinstance(images, dict) else images
        frames = decode_images([_content(image) for image in images], spec.crop, spec.frame_size)
        times = np.array(row[columns.times], dtype=np.float64) if columns.times and row[columns.times] else None
    if audio is None and frames is None:
        raise MediaError("undecodable", "the row holds neither sound nor frames")
    notes += ["no_audio: the row has no sound"] if audio is None else []
    notes += ["no_video: the row has no frames"] if frames is None else []
    length = len(audio) / spec.sampling_rate if audio is not None else 0.0
    if frames is not None and times is None:
        length = length or float(len(frames))
        times = (np.arange(len(frames)) + 0.5) * length / len(frames)
    window = record.window or (0.0, length or float(times[-1]) + 1e-3)  # type: ignore[index]
    exact = record.window is None and frames is not None and len(frames) == spec.frames
    return DecodedClip(audio, 0.0, frames, times, window, tuple(notes), exact)


def _content(media: Any) -> bytes | str:
    """Bytes where they are embedded, else the path."""
    content = media if isinstance(media, (bytes, str)) else media.get("bytes") or media.get("path")
    if content is None:
        raise MediaError("missing", "the row holds neither bytes nor a path")
    return content

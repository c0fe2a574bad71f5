"""Clips in a folder of class folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hf_mmbalance.data.clips import SPLIT_ALIASES, SPLITS, ClipSplits, DataError, split_name
from hf_mmbalance.data.files import walk_files
from hf_mmbalance.data.options import MediaOptions, option
from hf_mmbalance.data.sources.rows import Row, clips_from_rows, match_group, sorted_labels


MEDIA_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .flv .mpg .mpeg .wmv .3gp .ts .ogv .wav .flac .mp3 .ogg .opus .m4a .aac".split()
)

PICTURE_SUFFIXES = frozenset(".jpg .jpeg .png .gif .bmp .webp .tif .tiff".split())


@dataclass
class FolderOptions(MediaOptions):
    """Options of a folder of class folders: `<class>/<clip>` or `<split>/<class>/<clip>`."""

    group_pattern: str | None = option(
        None,
        "Regular expression for the file name (without suffix); its first capturing group is the group, which must not"
        " be on both sides of a split, e.g. '^([^_]+)_' for speaker_clip.mp4. By default every clip is its own group.",
    )
    classes: list[str] | None = option(None, "Names of the classes in order; by default the sorted class folders.")


def folder_clips(path: str, options: FolderOptions) -> ClipSplits:
    """Load a folder of class folders.

    Raises:
        DataError: the folder is missing or empty, files are repeated, or clips do not decode.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{path}: no such folder")
    tops = [folder.name for folder in _folders(root)]
    if not tops and options.unlabelled == "refuse":
        raise DataError(f"{path}: the folder has no class folders; its layout must be <class>/<clip>")
    known = {name for name in tops if name.lower() in SPLITS or name.lower() in SPLIT_ALIASES}
    if known and known != set(tops):
        text = f"{path}: {', '.join(sorted(known))} are splits but {', '.join(sorted(set(tops) - known)[:5])} are not"
        raise DataError(f"{text}; use either <split>/<class>/<clip> or <class>/<clip>")
    pattern = options.group_pattern
    rows: list[Row] = []
    ignored: list[str] = []
    parts: dict[str | None, Path] = {split: root / split for split in sorted(known)} or {None: root}
    loose = _loose_files(dict.fromkeys([root, *parts.values()]))
    if loose and options.unlabelled == "refuse":
        text = f"{root}: {len(loose)} media files are outside the class folders, e.g. {loose[0].relative_to(root)}"
        raise DataError(f"{text}; move each into the folder of its class, or elsewhere")
    rows += [_row(file, root, None, None, pattern) for file in loose]
    for split, part in parts.items():
        rows += _folder_rows(part, split, pattern, ignored)
    if not rows:
        raise DataError(_without_media(path, ignored))
    files = Counter(os.path.realpath(row.source) for row in rows)
    repeated = [file for file, count in files.items() if count > 1]
    if repeated:
        raise DataError(f"{path}: {len(repeated)} files occur twice (by links), e.g. {repeated[0]}; keep one")
    notes = [f"{len(ignored)} files are not media files and were ignored: {', '.join(ignored[:5])}"] if ignored else []
    found = sorted_labels(row.label for row in rows if row.label is not None)
    classes = options.classes or found
    empty = sorted({folder.name for part in parts.values() for folder in _folders(part)} - set(found))
    if empty:
        notes.append(f"{len(empty)} class folders hold no clips: {', '.join(empty[:5])}")
    outside = [label for label in found if label not in classes]
    if outside:
        raise DataError(f"{path}: class folder {outside[0]!r} is not among the classes {', '.join(classes)}")
    return clips_from_rows(Path(os.path.abspath(root)).name, rows, classes, options, notes)


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _without_media(path: str, ignored: list[str]) -> str:
    pictures = [name for name in ignored if Path(name).suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        return f"{path}: no media files (e.g. mp4, flv, wav) in its class folders"
    return (
        f"{path}: {len(pictures)} images (e.g. {pictures[0]}) but no clips: clips are video or audio files. To"
        " classify images alone, use an image classifier. Frames of clips can be joined with their audio into"
        " video files, e.g. by ffmpeg, or stored in a dataset with columns of audio and frames"
    )


def _loose_files(places: Iterable[Path]) -> list[Path]:
    """Return media files found where class folders are expected; they have no class."""
    return [
        path
        for place in places
        for path in sorted(place.iterdir())
        if path.is_file() and path.suffix.lower() in MEDIA_SUFFIXES
    ]


def _folder_rows(root: Path, split: str | None, pattern: str | None, ignored: list[str]) -> list[Row]:
    rows = []
    for folder in _folders(root):
        if folder.suffix.lower() in MEDIA_SUFFIXES:
            raise DataError(f"{folder}: a folder named like a media file; rename it if it holds the clips of a class")
        for path in walk_files(folder):
            if path.suffix.lower() not in MEDIA_SUFFIXES:
                ignored.append(str(path.relative_to(root)))
                continue
            rows.append(_row(path, root, split, folder.name, pattern))
    return rows


def _row(path: Path, root: Path, split: str | None, label: str | None, pattern: str | None) -> Row:
    # With split folders, the split is part of the name: several splits can have files of the same name.
    name = path.relative_to(root.parent if split else root).with_suffix("").as_posix()
    group = match_group(path.stem, pattern, str(path)) if pattern else name
    return Row(name, label, str(path), group, split_name(split) if split else None)

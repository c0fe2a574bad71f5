"""Load clips from any source."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_mmbalance.console import did_you_mean
from hf_mmbalance.data.clips import SPLIT_ALIASES, SPLITS, ClipSplits, DataError
from hf_mmbalance.data.files import walk_files
from hf_mmbalance.data.sources.folder import MEDIA_SUFFIXES
from hf_mmbalance.data.sources.table import TABLE_SUFFIXES
from hf_mmbalance.data.splits import coverage_notes


# source -> module, options, loader
SOURCES = {
    "synthetic": ("sources.synthetic", "SyntheticOptions", "synthetic_clips"),
    "grid": ("sources.grid", "GridOptions", "grid_clips"),
    "folder": ("sources.folder", "FolderOptions", "folder_clips"),
    "table": ("sources.table", "TableOptions", "table_clips"),
    "hub": ("sources.hub", "HubOptions", "hub_clips"),
}
NAMED = ("synthetic", "grid")
#: Options whose name means something else on a command line (the training seed, a file of options).
TYPED_AS = {"seed": "clip_seed", "config": "data_config"}
BUILT_SUFFIXES = {".parquet", ".arrow", ".tar"}


def source_of(dataset: str) -> str:
    """Return the name of the source that reads a dataset, from the dataset's own name or the files at that path.

    A folder with Parquet, Arrow or tar files, or a `metadata.jsonl` or `metadata.csv` (with `file_name`) above its
    media, is a built dataset (`hub`). A folder with class folders is `folder` (JSON beside its clips does not count),
    and one with JSON only is `hub`. A CSV, TSV or Parquet file is `table`. Any other name is looked up on the Hub.
    """
    if dataset in NAMED:
        return dataset
    if not dataset:
        raise DataError("the name of the dataset is empty: name a folder, a table, or a dataset on the Hub")
    path = Path(dataset)
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return "table"
    if path.is_dir():
        return "hub" if _is_built(path) else "folder"
    if path.suffix.lower() in TABLE_SUFFIXES or path.is_absolute() or dataset.startswith((".", "~")):
        raise DataError(f"{dataset}: no such file or folder")
    if dataset.partition("@")[0].count("/") > 1 or path.is_file():
        raise DataError(f"{dataset}: neither a folder, a CSV/TSV/Parquet table, nor a dataset's name on the Hub")
    return "hub"


def _is_built(path: Path) -> bool:
    lists = False
    for file in walk_files(path):
        suffix = file.suffix.lower()
        in_class = file.parent != path and file.parent.name.lower() not in {*SPLITS, *SPLIT_ALIASES}
        if suffix in BUILT_SUFFIXES or (not in_class and (suffix == ".jsonl" or _lists_media(file))):
            return True
        if suffix in MEDIA_SUFFIXES and in_class:
            return False  # the first media file in a class folder decides, because folders can be large
        lists = lists or suffix in (".json", ".jsonl")  # rows, or a downloader's notes on each clip
    return lists


def _lists_media(file: Path) -> bool:
    """Return True if a file is the `metadata.csv` with which `datasets` describes the media in its folder."""
    if file.name != "metadata.csv":
        return False
    with file.open(encoding="utf-8", errors="replace") as lines:
        return "file_name" in lines.readline()


def options_class(dataset: str) -> type:
    """Return the options dataclass of a dataset; each field has a help text in its metadata."""
    return options_class_of(source_of(dataset))


def typed_name(option: str) -> str:
    """Return the name of a dataset's option on a command line, in a YAML file and in `results.json`."""
    return TYPED_AS.get(option, option)


def options_class_of(source: str) -> type:
    """Return the options dataclass of a source, given its name in `SOURCES`."""
    module, name, _ = SOURCES[source]
    return getattr(importlib.import_module(f"hf_mmbalance.data.{module}"), name)


def read_options(dataset: str, options: Mapping[str, Any]) -> Any:
    """Create the options of a dataset from names and values.

    Raises:
        DataError: an option does not exist, or a value is invalid.
    """
    kind = options_class(dataset)
    known = [entry.name for entry in fields(kind)]
    for name in options:
        if name not in known:
            raise DataError(f"{dataset} has no option {name!r}{did_you_mean(name, known)} (it has {', '.join(known)})")
    return kind(**options)


def load_clips(dataset: str, **options: Any) -> ClipSplits:
    """Load a dataset in splits.

    Args:
        dataset: `synthetic`, `grid`, a folder of class folders, a CSV/TSV/Parquet table of clips, a folder built for
            the `datasets` library, or a dataset's name on the Hub, optionally as `user/name@revision`.
        **options: fields of `options_class(dataset)`.

    Returns:
        `ClipSplits`; if the source has no calibration, validation or test split, it is taken from train, and `notes`
        says so.

    Raises:
        DataError: an unknown dataset or option, or data that cannot be used; the message names it and the remedy.
    """
    source, read = source_of(dataset), read_options(dataset, options)
    module, _, loader = SOURCES[source]
    load = getattr(importlib.import_module(f"hf_mmbalance.data.{module}"), loader)
    clips = load(read) if source in NAMED else load(dataset, read)
    clips.notes += coverage_notes(clips)
    return clips

"""Datasets of the `datasets` library, on the Hub or in a folder, with audio and frames or videos in their columns."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from hf_mmbalance.data.adapter import NONE, Adapter, adapter_names, find_adapter
from hf_mmbalance.data.clips import ClipSplits, DataError
from hf_mmbalance.data.options import MediaOptions, option
from hf_mmbalance.data.sources.hub_rows import (
    Columns,
    RowList,
    RowReader,
    find_columns,
    label_names,
    rows_of_split,
    undecoded,
)
from hf_mmbalance.data.sources.rows import Row, clips_from_rows, sorted_labels
from hf_mmbalance.model.reading_mmbalance import ReadingSpec


REPORT = "build_report.json"


@dataclass
class HubOptions(MediaOptions):
    """Options of a Hub or local dataset; columns named neither here nor in an adapter are found by type and name."""

    dataset_adapter: str | None = option(
        None,
        "YAML file that says how to read the dataset (columns, labels, groups, splits), or none. By default, the"
        f" package's own adapter is used for {', '.join(adapter_names())}.",
    )
    config: str | None = option(None, "Configuration of the dataset, e.g. fold3.")
    revision: str | None = option(None, "Branch, tag or commit on the Hub, as in user/name@revision.")
    audio_column: str | None = option(None, "Column with the audio.")
    frames_column: str | None = option(None, "Column with a list of images, or one image.")
    video_column: str | None = option(None, "Column with a video, used for both audio and frames.")
    label_column: str | None = option(None, "Column with the class.")
    group_column: str | None = option(None, "Column with the group (actor, speaker, source video).")
    group_pattern: str | None = option(
        None, "Regular expression for the group column; its first capturing group is the group."
    )
    id_column: str | None = option(None, "Column with the clip's id.")
    start_column: str | None = option(None, "Column with the start of the window to use, in seconds.")
    end_column: str | None = option(None, "Column with the end of the window to use, in seconds.")
    in_memory: bool = option(False, "Read the rows over the network into memory, without a copy on disk.")


def hub_clips(name: str, options: HubOptions) -> ClipSplits:
    """Load a dataset with the `datasets` library; media is decoded here, so torchcodec is not needed.

    Raises:
        DataError: the dataset does not exist, columns are missing or of a wrong type, or clips do not decode.
    """
    name, options = split_revision(name, options)
    adapter = find_adapter(name, options.dataset_adapter)
    builder = open_builder(name, options)
    if builder.info.features is not None:  # before anything is downloaded
        find_columns(name, builder.info.features, apply_adapter(options, adapter or Adapter(NONE)), adapter)
    with _loading(name):
        if options.in_memory:
            loaded = builder.as_streaming_dataset()
        else:
            builder.download_and_prepare()
            loaded = builder.as_dataset()
    commit = commit_of(name, builder)
    clips = clips_of(
        loaded, options, name=name, stored=stored_reading(name, builder, commit or options.revision), adapter=adapter
    )
    return replace(clips, commit=commit)


def split_revision(name: str, options: HubOptions) -> tuple[str, HubOptions]:
    """Return name and options of a dataset, with the revision of `user/name@revision` moved to the options.

    Raises:
        DataError: the options name a different revision.
    """
    repository, _, revision = name.partition("@")
    if not revision or Path(name).exists():
        return name, options
    if options.revision not in (None, revision):
        raise DataError(f"{name}: revision={options.revision} is a different one; give only one of the two")
    return repository, replace(options, revision=revision)


def open_builder(name: str, options: HubOptions) -> Any:
    """Return the `datasets` builder of a dataset, which knows the files and any declared columns.

    Raises:
        DataError: the dataset, configuration or revision does not exist, or cannot be reached.
    """
    import datasets
    from datasets.fingerprint import Hasher
    from datasets.packaged_modules.cache.cache import Cache

    with _loading(name):
        builder = datasets.load_dataset_builder(name, options.config, revision=options.revision)
        if Path(name).is_dir():
            # By default, `datasets` names its cache by README.md and the folder's last name, even if files changed.
            files = Hasher.hash(builder.config.data_files)  # paths and modification times
            cache = f"{datasets.config.HF_DATASETS_CACHE}/{builder.dataset_name}-{files}"
            builder = datasets.load_dataset_builder(name, options.config, cache_dir=cache)
    if isinstance(builder, Cache) and options.revision not in (None, builder.hash):
        # `datasets` falls back to the newest copy in its cache, ignoring the requested revision.
        raise DataError(
            f"{name}: revision {options.revision} cannot be read from the Hub, and the cache holds {builder.hash};"
            " name that commit to use it"
        )
    return builder


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # many types: a missing folder, an unknown config, no network
        raise DataError(f"{name}: the dataset cannot be loaded ({type(error).__name__}: {error})") from error


def commit_of(name: str, builder: Any) -> str | None:
    """Return the Hub commit that a builder reads (from the cache if the Hub is not reached); None for a folder."""
    found = str(builder.hash)
    return found if not Path(name).exists() and re.fullmatch("[0-9a-f]{40}", found) else None


def clips_of(
    loaded: Any,
    options: HubOptions | None = None,
    *,
    name: str = "dataset",
    stored: ReadingSpec | None = None,
    adapter: Adapter | None = None,
) -> ClipSplits:
    """Load the clips of a `datasets.DatasetDict` (or a mapping of splits, or one `Dataset`, used as train).

    Args:
        loaded: dataset with a label column, and audio, images or video in other columns.
        options: how to read the dataset; by default `HubOptions()`.
        name: name of the dataset in messages.
        stored: how raw files were stored in it, for a built dataset.
        adapter: how to read the dataset where the options do not say.

    Raises:
        DataError: columns are missing or of a wrong type, or clips do not decode.
    """
    adapter = adapter or Adapter(NONE)
    options = apply_adapter(options or HubOptions(), adapter)
    loaded = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    notes = [] if adapter.name == NONE else adapter.remarks
    loaded, more = canonical_splits(name, loaded, adapter)
    features = next(iter(loaded.values())).features
    if features is None:
        raise DataError(f"{name}: the columns of a stream are not known before it is read; use in_memory=false")
    columns = find_columns(name, features, options, adapter)
    labels = label_names(name, features[columns.label], adapter)
    _check_same_labels(name, loaded, columns.label)
    if options.cache_dir is not None:
        options = replace(options, cache_dir=str(Path(options.cache_dir) / _content_name(name, loaded, columns)))
    parts: dict[str, Any] = {split: undecoded(part) for split, part in loaded.items()}
    if options.in_memory:
        parts = {split: RowList.of(part, columns) for split, part in parts.items()}
    rows: list[Row] = []
    for split, part in parts.items():
        rows += rows_of_split(split, part, columns, labels, options)
    classes: list[str] = list(labels) if labels else sorted_labels(row.label for row in rows if row.label is not None)
    if isinstance(adapter.labels, Mapping):
        adapter.check_labels(name, classes)
        to: dict[str | None, str | None] = {None: None} | dict(adapter.labels)
        kept = [replace(row, label=to[row.label]) for row in rows if row.label in to]
        if len(kept) < len(rows):
            more.append(f"{len(rows) - len(kept)} of {len(rows)} clips have labels that the adapter leaves out")
        rows, classes = kept, list(dict.fromkeys(adapter.labels.values()))
    return clips_from_rows(name, rows, classes, options, notes + more, RowReader(parts, columns), stored)


def _check_same_labels(name: str, loaded: Mapping[str, Any], column: str) -> None:
    """Refuse splits in which the same number stands for different classes."""
    names = {split: getattr((part.features or {}).get(column), "names", None) for split, part in loaded.items()}
    (first, known), *others = names.items()
    for split, own in others:
        if own != known:
            raise DataError(
                f"{name}: column {column!r} has the classes {known} in {first}, but {own} in {split}, so a number"
                " means a different class there; give all splits one type (`cast_column`)"
            )


def _content_name(name: str, loaded: Mapping[str, Any], columns: Columns) -> str:
    """Return a cache folder's name for a dataset's content: decoded clips in that folder are named by row number.

    Raises:
        DataError: the rows are a stream, whose content is not known.
    """
    prints = {split: getattr(part, "_fingerprint", None) for split, part in loaded.items()}
    if None in prints.values():
        raise DataError(f"{name}: cache_dir needs a dataset on this machine; remove it, or set in_memory=false")
    return hashlib.blake2b(repr((sorted(prints.items()), columns.media)).encode(), digest_size=8).hexdigest()


def apply_adapter(options: HubOptions, adapter: Adapter) -> HubOptions:
    """Return the options, with unset ones filled from the adapter."""
    named: dict[str, Any] = {f"{kind}_column": column for kind, column in adapter.columns.items()}
    if options.group_column is None:  # the pattern is for the adapter's own column
        named["group_pattern"] = adapter.group_pattern
    return replace(options, **{name: value for name, value in named.items() if getattr(options, name) is None})


def canonical_splits(name: str, loaded: Mapping[Any, Any], adapter: Adapter) -> tuple[dict[str, Any], list[str]]:
    """Return the splits to read under their canonical names, and a note on those that are not read.

    Raises:
        DataError: a split's name is not known, no split is read, or two splits have the same canonical name.
    """
    try:
        names = {str(split): adapter.split(str(split)) for split in loaded}
    except DataError as error:
        raise DataError(f"{name}: {error}; say in an adapter which split it is (docs/data.md)") from None
    read = [known for known in names.values() if known is not None]
    if not read:
        raise DataError(
            f"{name}: no split {' or '.join(adapter.splits or ())} (it has {', '.join(names)}); {adapter.remedy}"
        )
    twice = next((known for known in read if read.count(known) > 1), None)
    if twice is not None:
        both = [split for split, known in names.items() if known == twice]
        raise DataError(f"{name}: the splits {' and '.join(both)} are both {twice}; name one of them in an adapter")
    left_out = [split for split, known in names.items() if known is None]
    notes = [f"splits that the adapter does not name are not read: {', '.join(left_out)}"] if left_out else []
    return {known: loaded[split] for split, known in names.items() if known is not None}, notes


def stored_reading(name: str, builder: Any, revision: str | None) -> ReadingSpec | None:
    """Return how raw files were stored in a dataset that this package built; None for other datasets.

    Args:
        name: folder, or name on the Hub.
        builder: builder of the dataset, from `open_builder`.
        revision: branch, tag or commit on the Hub.

    Raises:
        DataError: the build report exists but cannot be read.
    """
    found = (_local_report(name, place, builder, revision) for place in _places_of_report(builder))
    path = next((path for path in found if path is not None), None)
    if path is None:
        return None
    try:
        reading = json.loads(path.read_text(encoding="utf-8")).get("reading")
        return None if reading is None else ReadingSpec.from_dict(reading)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: the build report cannot be read ({error}); build the dataset again") from error


def _places_of_report(builder: Any) -> list[str]:
    """Return the places where a build report can be; for data on the Hub, paths within the repository.

    The report is beside the folder `data` of the shards. A build that was published under a name has one folder for
    everything.
    """
    files = [file for part in (builder.config.data_files or {}).values() for file in part]
    if files:
        shards = PurePosixPath(re.sub("^hf://datasets/[^@]+@[^/]+/", "", files[0])).parent
        folders = [shards.parent if shards.name == "data" else shards]
    else:  # only the configuration is known from the cache of `datasets`; for a named build it begins with the name
        words = str(builder.config.name).split("-")
        folders = [PurePosixPath("-".join(words[:count])) for count in range(len(words), -1, -1)]
    return [str(folder / REPORT) for folder in folders]


def _local_report(name: str, place: str, builder: Any, revision: str | None) -> Path | None:
    if Path(name).is_dir():
        return Path(place) if Path(place).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RemoteEntryNotFoundError

    # If the Hub is reached, only its own answer counts as proof that there is no report.
    absent = RemoteEntryNotFoundError if builder.config.data_files else EntryNotFoundError
    with _loading(name):
        try:
            return Path(hf_hub_download(name, place, repo_type="dataset", revision=revision))
        except absent:
            return None

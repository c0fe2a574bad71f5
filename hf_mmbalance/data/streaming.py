"""Read a split in any training loop, map-style or as a stream of batches with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from copy import copy
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.data import IterableDataset, get_worker_info

from hf_mmbalance.data.adapter import NONE, Adapter, find_adapter
from hf_mmbalance.data.clips import Clip, ClipDataset, DataError, longer_part, split_name
from hf_mmbalance.data.media_clips import ClipRecord, augmented, decode_record, frame_seconds
from hf_mmbalance.data.seeding import rng_for
from hf_mmbalance.data.sources import load_clips, read_options, source_of
from hf_mmbalance.data.sources.hub import (
    HubOptions,
    apply_adapter,
    canonical_splits,
    commit_of,
    open_builder,
    split_revision,
    stored_reading,
)
from hf_mmbalance.data.sources.hub_rows import Columns, find_columns, label_names, media_of_row, read_row
from hf_mmbalance.model.reading_mmbalance import ReadingSpec


WINDOW_GROUPS = 8  # row groups that are shuffled together, and that a worker keeps in memory
FRACTIONS = ("calibration_fraction", "validation_fraction", "test_fraction")


def load(
    source: str,
    *,
    split: str = "train",
    streaming: bool = False,
    batch_size: int = 32,
    shuffle: bool = True,
    **options: Any,
) -> ClipDataset | ClipStream:
    """Read one split of a dataset.

    Args:
        source: `synthetic`, `grid`, a folder or table of clips, a built folder, or a name on the Hub.
        split: train, calibration, validation or test, as in the source. One that it lacks is taken from train only if
            `calibration_fraction`, `validation_fraction` or `test_fraction` is given.
        streaming: read Parquet as a stream (for built folders and names on the Hub).
        batch_size: clips per batch of the stream.
        shuffle: shuffle the stream, differently in every epoch.
        **options: fields of the source's options (`options_class(source)`).

    Returns:
        A `ClipDataset` (map-style; index with `(i, epoch)` for augmentation), or a `ClipStream` of batches.

    Raises:
        DataError: the data, split or option does not exist.
    """
    if source != "synthetic":
        options = dict.fromkeys(FRACTIONS, 0.0) | options
    if streaming:
        if source_of(source) != "hub":
            raise DataError(f"{source} cannot be streamed: build it to Parquet first (dataset_scripts/)")
        taken = [name for name in FRACTIONS if options[name]]
        if taken:
            raise DataError(f"a stream has the splits of its files: remove {taken[0]}, or use streaming=False")
        return ClipStream.open(source, split, read_options(source, options), batch_size=batch_size, shuffle=shuffle)
    splits = load_clips(source, **options).splits
    if split_name(split) not in splits:
        raise DataError(f"{source} has no split {split!r}; it has {', '.join(splits)}")
    return splits[split_name(split)]


class ClipStream(IterableDataset):
    """Stream of batches of clips in an order that depends only on seed and epoch, for any number of workers.

    Pass it to a `DataLoader(stream, batch_size=None, num_workers=n, collate_fn=...)`: each worker makes every n-th
    batch, and the loader takes them in turn. `hf_mmbalance.training.batches.ClipCollator` converts them to the model's
    input. A train clip has its `epoch`, from which that collator draws SpecAugment masks.

    Args:
        files: Parquet files, local or `hf://`.
        rows: number of clips in every row group of every file.
        columns: column of each kind of content.
        classes: names of the labels.
        options: decoding, noise and augmentation.
        split: name of the split; clips of `train` are augmented.
        batch_size: clips per batch.
        shuffle: shuffle the row groups, and the rows within every eight row groups.
        stored: how raw files were stored in a built dataset.
    """

    def __init__(
        self,
        files: Sequence[str],
        rows: Sequence[Sequence[int]],
        columns: Columns,
        classes: Sequence[str],
        options: HubOptions,
        split: str,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        stored: ReadingSpec | None = None,
    ):
        if options.noise == "babble":
            raise DataError("babble mixes clips of the whole split, so it needs streaming=False")
        if options.unlabelled != "refuse":
            raise DataError("a stream returns labelled clips only: remove unlabelled, or use streaming=False")
        if options.on_error != "raise":
            raise DataError("a stream cannot leave clips out: remove on_error, or use streaming=False")
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}")
        self.files, self.columns, self.classes = list(files), columns, list(classes)
        # (file, row group, number of its rows, number of rows before it in the split)
        sizes = [(f, g, n) for f, counts in enumerate(rows) for g, n in enumerate(counts)]
        before = accumulate((n for _, _, n in sizes), initial=0)
        self.groups = [(f, g, n, first) for (f, g, n), first in zip(sizes, before, strict=False)]
        self.options, self.split, self.batch_size, self.shuffle = options, split, batch_size, shuffle
        spans = columns.start is not None and columns.end is not None
        self.reading = options.reading(spans=spans, stored=stored)
        self.around = options.shift if split == "train" else 0.0
        self.rank, self.world = 0, 1
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # shared: persistent workers see changes

    @classmethod
    def open(
        cls, name: str, split: str, options: HubOptions, *, batch_size: int = 32, shuffle: bool = True
    ) -> ClipStream:
        """Find the Parquet files of a split and read their footers (no clip is read).

        Raises:
            DataError: the dataset, configuration or split does not exist, or its files are not Parquet.
        """
        name, options = split_revision(name, options)
        builder = open_builder(name, options)
        adapter = find_adapter(name, options.dataset_adapter) or Adapter(NONE)
        if isinstance(adapter.labels, dict):
            raise DataError(f"{name}: the adapter {adapter.name} leaves clips out, which needs streaming=False")
        options = apply_adapter(options, adapter)
        if not builder.config.data_files:
            raise DataError(f"{name}: a stream needs the dataset's files, which are not known; use streaming=False")
        found, _ = canonical_splits(name, builder.config.data_files, adapter)
        if split_name(split) not in found:
            raise DataError(f"{name} has no split {split!r}; it has {', '.join(found)}")
        files = list(found[split_name(split)])
        if not all(path.endswith(".parquet") for path in files):
            raise DataError(f"{name}: only Parquet files are streamed; use streaming=False")
        rows, features = [], builder.info.features
        for path in files:
            with _open(path) as file:
                footer = pq.ParquetFile(file)
                rows.append([footer.metadata.row_group(g).num_rows for g in range(footer.num_row_groups)])
                features = features or _features(footer)
        columns = find_columns(name, features, options, adapter)
        names = label_names(name, features[columns.label], adapter)  # type: ignore[index]
        if names is None:
            raise DataError(f"{name}: column {columns.label!r} has no class names; streaming needs a ClassLabel")
        stored = stored_reading(name, builder, commit_of(name, builder) or options.revision)
        return cls(
            files,
            rows,
            columns,
            names,
            options,
            split_name(split),
            batch_size=batch_size,
            shuffle=shuffle,
            stored=stored,
        )

    @property
    def num_clips(self) -> int:
        """Number of clips of the split on all nodes together."""
        return sum(count for _, _, count, _ in self.groups)

    def __len__(self) -> int:
        """Return the number of batches in an epoch on this node."""
        return len(self._batches())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that determines order and augmentation of the next pass."""
        self._epoch.fill_(epoch)

    def split_by_node(self, rank: int, world: int) -> ClipStream:
        """Return the stream for one of several machines or processes: every `world`-th batch.

        If the number of batches is not a multiple of `world`, a shuffled stream repeats the first ones, so that all
        nodes make the same number of steps; an unshuffled stream returns every clip once. Within a process,
        `set_epoch` of one part applies to all parts.
        """
        if not 0 <= rank < world:
            raise DataError(f"split_by_node needs 0 <= rank < world, got {rank} and {world}")
        part = copy(self)
        part.rank, part.world = rank, world
        return part

    def _order(self) -> list[tuple[int, int, int]]:
        """Return (window, group, row) for every clip of the epoch."""
        epoch = int(self._epoch)
        rng = rng_for(self.options.seed, "stream", epoch if self.shuffle else None)
        groups = rng.permutation(len(self.groups)).tolist() if self.shuffle else list(range(len(self.groups)))
        order: list[tuple[int, int, int]] = []
        for window, first in enumerate(range(0, len(groups), WINDOW_GROUPS)):
            places = [
                (window, group, row)
                for group in groups[first : first + WINDOW_GROUPS]
                for row in range(self.groups[group][2])
            ]
            order += [places[i] for i in rng.permutation(len(places))] if self.shuffle else places
        return order

    def _batches(self) -> list[list[tuple[int, int, int]]]:
        order = self._order()
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        if self.shuffle and self.world > 1:
            batches += (batches * self.world)[: -len(batches) % self.world]
        return batches[self.rank :: self.world]

    def __iter__(self) -> Iterator[list[Clip]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        tables: dict[int, Any] = {}
        for batch in self._batches()[first::step]:
            needed = {group for _, group, _ in batch}
            windows = {window for window, _, _ in batch}
            tables = {group: kept for group, kept in tables.items() if kept[0] in windows}
            for group in needed - tables.keys():
                tables[group] = (next(w for w, g, _ in batch if g == group), self._read(group))
            yield [self._clip(tables[group][1], group, row) for _, group, row in batch]

    def _read(self, group: int) -> Any:
        file, number, _, _ = self.groups[group]
        columns = self.columns
        wanted = {value for value in vars(columns).values() if value}
        with _open(self.files[file]) as handle:
            return pq.ParquetFile(handle).read_row_group(number, columns=sorted(wanted))

    def _clip(self, table: Any, group: int, place: int) -> Clip:
        entry = table.slice(place, 1).to_pylist()[0]
        before = self.groups[group][3]
        row = read_row(entry, self.split, before + place, self.columns, self.classes, self.options)
        label = self.classes.index(str(row.label))
        record = ClipRecord(row.id, row.group, label, row.source, row.window)
        clip = decode_record(record, media_of_row(entry, self.columns), self.reading, self.options, self.around)
        epoch = int(self._epoch) if self.shuffle and self.split == "train" else None
        audio, frames = augmented(clip, self.reading, row.id, self.options, self.split, epoch, lambda rng: [])
        return {
            "id": row.id,
            "group": row.group,
            "label": label,
            "audio": audio,
            "sampling_rate": self.options.sampling_rate,
            "frames": frames,
            "seconds": longer_part(frame_seconds(clip), audio, self.options.sampling_rate),
            "epoch": epoch,
        }


class EpochOrder:
    """Sampler for a map-style dataset: yields `(index, epoch)` in an order keyed by seed and epoch.

    Args:
        dataset: the clips.
        seed: seed of the order.
        rank, world: index and number of processes; each process gets every `world`-th clip, starting at `rank`.
        fill: extend the order to a multiple of this many clips with the start of another order, so that all
            training steps have the same number of clips.
    """

    def __init__(self, dataset: Sized, *, seed: int = 0, rank: int = 0, world: int = 1, fill: int = 1):
        self.length = -(-len(dataset) // fill) * fill
        self.clips, self.seed, self.rank, self.world, self.epoch = len(dataset), seed, rank, world, 0

    def __len__(self) -> int:
        return -(-(self.length - self.rank) // self.world)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that determines the order of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = rng_for(self.seed, "order", self.epoch)
        passes = [rng.permutation(self.clips) for _ in range(-(-self.length // self.clips))]
        return ((int(i), self.epoch) for i in np.concatenate(passes)[: self.length][self.rank :: self.world])


def _open(path: str) -> Any:
    """Open a file on disk or, with fsspec, anywhere else."""
    if "://" not in path:
        return open(path, "rb")
    import fsspec

    return fsspec.open(path, "rb").open()


def _features(file: pq.ParquetFile) -> Any:
    from datasets import Features

    return Features.from_arrow_schema(file.schema_arrow)

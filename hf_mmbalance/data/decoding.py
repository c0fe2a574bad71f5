"""Decode all clips of a data set before training starts, and report those that fail."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from hf_mmbalance.data.clips import DataError
from hf_mmbalance.data.media_clips import MediaClips
from hf_mmbalance.data.options import MediaOptions
from hf_mmbalance.model.media_mmbalance import MediaError
from hf_mmbalance.progress import bar


def decode_all(splits: dict[str, MediaClips], options: MediaOptions) -> tuple[dict[str, MediaClips], list[str]]:
    """Decode every clip of every split once, in parallel threads, with a progress bar.

    Args:
        splits: data sets that share `options`.
        options: `on_error`, `cache`, `cache_gib` and `workers` are used.

    Returns:
        The data sets, less the clips that were skipped, and notes.

    Raises:
        DataError: clips do not decode and `on_error` is `raise`; names them with their reasons.
    """
    places = [(name, place) for name, dataset in splits.items() for place in range(len(dataset))]
    notes, keep = [], options.cache != "none"
    if options.cache == "auto" and places:
        size = _first_size(splits, places) * len(places) / 2**30
        keep = size <= options.cache_gib
        if not keep:
            text = f"decoded clips would take about {size:.1f} GiB (cache_gib={options.cache_gib})"
            notes.append(f"{text}: they are decoded again in every epoch")
    if not keep and options.cache_dir is None and options.on_error == "raise":
        return splits, notes
    if keep:
        for dataset in splits.values():
            dataset.keep()
    failed: dict[tuple[str, int], MediaError] = {}
    remarks: dict[str, int] = {}

    def decode_one(clip: tuple[str, int]) -> None:
        name, place = clip
        try:
            for note in splits[name].decoded(place).notes:
                remarks[note.split(":")[0]] = remarks.get(note.split(":")[0], 0) + 1
        except MediaError as error:
            failed[clip] = error

    with ThreadPoolExecutor(options.workers or os.cpu_count() or 1) as pool:
        list(
            bar(
                pool.map(decode_one, places),
                total=len(places),
                desc="decoding clips",
                unit="clip",
                disable=len(places) < 50,
            )
        )
    notes += [f"{count} clips: {remark}" for remark, count in sorted(remarks.items())]
    return _without_failures(splits, failed, options, notes), notes


def _first_size(splits: dict[str, MediaClips], places: list[tuple[str, int]]) -> int:
    """Bytes of the first clip that decodes, as an estimate for the others."""
    for name, place in places[:20]:
        try:
            return splits[name].decoded(place).nbytes
        except MediaError:
            continue
    return 0


def _without_failures(
    splits: dict[str, MediaClips], failed: dict[tuple[str, int], MediaError], options: MediaOptions, notes: list[str]
) -> dict[str, MediaClips]:
    if not failed:
        return splits
    some = [f"{error} [{error.reason}]" for _, error in sorted(failed.items())]
    if options.on_error == "raise":
        more = f"\n  ... and {len(some) - 10} more" if len(some) > 10 else ""
        text = f"{len(some)} clips cannot be used:\n  " + "\n  ".join(some[:10]) + more
        raise DataError(f"{text}\nrepair or remove them, or pass on_error=skip to leave them out")
    notes.append(f"{len(some)} clips were left out: {'; '.join(some)}")
    out = {
        name: dataset.without({place for split, place in failed if split == name}) for name, dataset in splits.items()
    }
    empty = [name for name, dataset in out.items() if len(dataset) == 0]
    if empty:
        raise DataError(f"no clip of the {', '.join(empty)} split can be decoded: {some[0]}")
    return out

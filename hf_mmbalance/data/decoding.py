"""Decode all clips of a dataset before training starts, and report those that fail."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from hf_mmbalance.data.clips import DataError
from hf_mmbalance.data.media_clips import MediaClips, media_file
from hf_mmbalance.data.options import MediaOptions
from hf_mmbalance.model.media_mmbalance import MediaError
from hf_mmbalance.progress import bar


SAMPLED = 8  # clips from which the size of a dataset is estimated


def decode_all(splits: dict[str, MediaClips], options: MediaOptions) -> tuple[dict[str, MediaClips], list[str]]:
    """Decode every clip of every split once, in parallel threads, with a progress bar.

    Args:
        splits: datasets by split name; all share `options`.
        options: options of the source; `on_error`, `cache`, `cache_gib`, `cache_dir` and `workers` are used.

    Returns:
        The datasets without the skipped clips, and notes.

    Raises:
        DataError: some clips do not decode and `on_error` is `raise`; the message names them with their reasons.
    """
    places = [(name, place) for name, dataset in splits.items() for place in range(len(dataset))]
    notes, keep = [], options.cache != "none"
    if options.cache == "auto" and places:
        size = _mean_size(splits, places) * len(places) / 2**30
        keep = size <= options.cache_gib
        if not keep:
            text = f"decoded clips would take about {size:.1f} GiB (cache_gib={options.cache_gib})"
            notes.append(f"{text}: they are decoded again in every epoch")
    if not keep and options.cache_dir is None and options.on_error == "raise":
        _check_files(splits)
        return splits, notes
    if keep:
        for dataset in splits.values():
            dataset.keep()
    failed: dict[tuple[str, int], MediaError] = {}

    def decode_one(clip: tuple[str, int]) -> list[str]:
        name, place = clip
        try:
            return [note.split(":")[0] for note in splits[name].decoded(place).notes]
        except MediaError as error:
            failed[clip] = error
            return []

    with ThreadPoolExecutor(options.workers or os.cpu_count() or 1) as pool:
        found = list(
            bar(
                pool.map(decode_one, places),
                total=len(places),
                desc="decoding clips",
                unit="clip",
                disable=len(places) < 50,
            )
        )
    remarks = Counter(remark for part in found for remark in part)
    notes += [f"{count} clip{'s' * (count > 1)}: {remark}" for remark, count in sorted(remarks.items())]
    return _without_failures(splits, failed, options, notes), notes


def _check_files(splits: dict[str, MediaClips]) -> None:
    """Refuse clips without a file now, because they are decoded only when training reaches them."""
    records = [record for dataset in splits.values() if dataset.fetch is media_file for record in dataset.records]
    missing = [record.source for record in records if not os.path.isfile(record.source)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(records)} clips have no file, e.g. {missing[0]}; add the files, remove the clips,"
            " or pass on_error=skip to leave them out"
        )


def _mean_size(splits: dict[str, MediaClips], places: list[tuple[str, int]]) -> float:
    """Estimate the mean bytes of a clip from a few, taken evenly from all because clips can differ in length."""
    sizes = []
    for name, place in places[:: -(-len(places) // SAMPLED)]:
        try:
            sizes.append(splits[name].decoded(place).nbytes)
        except MediaError:
            continue
    return sum(sizes) / max(len(sizes), 1)


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

"""Plan of a GRID build: six words per clip, each with its time, and splits by speaker if there are several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_mmbalance.building.encode import class_label, file_size, value
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions, PlannedClip
from hf_mmbalance.data.clips import SPLITS
from hf_mmbalance.data.sources.grid import VOCABULARY, WORDS, GridClip, GridOptions, assign_splits, scan_grid
from hf_mmbalance.data.splits import MIN_GROUPS


def plan_grid(
    source: Path,
    encode: EncodeOptions,
    *,
    label: str = "digit",
    speakers: list[str] | None = None,
    clips_per_shard: int = 128,
    max_lost: float = 0.05,
) -> BuildPlan:
    """Plan the build of GRID.

    Args:
        source: folder that holds `s1/` and its alignments.
        encode: how clips are stored.
        label: word that the contact sheet, the counts and the balance of splits use; all six words are columns.
        speakers: speakers to use; by default all.
        clips_per_shard: clips per shard.
        max_lost: largest fraction of clips that can be lost.

    Returns:
        The plan. Its splits are those of `labels.csv`, else whole speakers if there are at least five.

    Raises:
        DataError: the folder is missing or empty, or the files are not GRID's.
    """
    found = scan_grid(source, speakers)
    people = {clip.speaker for clip in found}
    # Calibration is taken now, because the finished train split may have too few speakers left to split by speaker.
    calibration = GridOptions.calibration_fraction if len(people) >= MIN_GROUPS else 0.0
    options = GridOptions(data_dir=str(source), label=label, calibration_fraction=calibration)
    splits, notes = assign_splits(found, options)
    if len(people) < MIN_GROUPS:
        notes.append(f"{len(people)} speaker(s): splits are by clip, so new speakers are not tested")
    unaligned = [clip.id for clip in found if clip.times is None]
    if unaligned:
        notes.append(f"{len(unaligned)} clips have no alignment file, e.g. {unaligned[0]}: their word times are null")
    return BuildPlan(
        name="grid",
        clips=[_planned(clip, split, label) for clip, split in zip(found, splits, strict=True)],
        classes=list(VOCABULARY[label].values()),
        label_column=label,
        group_column="speaker",
        features=_features(label),
        configs={"default": {split: [split] for split in SPLITS if split in splits}},
        encode=encode,
        clips_per_shard=clips_per_shard,
        shared_groups_allowed=("default",) if len(people) < MIN_GROUPS else (),
        max_lost=max_lost,
        notes=notes,
    )


def _features(label: str) -> dict[str, dict[str, Any]]:
    """Return all metadata columns except that of the labelled word, which is the class."""
    features: dict[str, dict[str, Any]] = {"speaker": value("string"), "sentence": value("string")}
    features |= {word: class_label(list(VOCABULARY[word].values())) for word in WORDS if word != label}
    return features | {f"{word}_{edge}": value("float64") for word in WORDS for edge in ("start", "end")}


def _planned(clip: GridClip, split: str, label: str) -> PlannedClip:
    numbers = {word: list(VOCABULARY[word].values()).index(clip.words[word]) for word in WORDS}
    columns: dict[str, Any] = {"speaker": clip.speaker, "sentence": " ".join(clip.words[word] for word in WORDS)}
    columns |= {word: number for word, number in numbers.items() if word != label}
    for word in WORDS:
        start, end = clip.times[word] if clip.times else (None, None)
        columns |= {f"{word}_start": start, f"{word}_end": end}
    return PlannedClip(clip.id, str(clip.path), split, numbers[label], columns, size=file_size(clip.path))

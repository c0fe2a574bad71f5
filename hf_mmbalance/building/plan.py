"""Plan of a build: the clips, in shards that all configurations of the dataset share."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_mmbalance.data.clips import SPLITS, DataError
from hf_mmbalance.data.seeding import rng_for
from hf_mmbalance.model.reading_mmbalance import ReadingSpec


# Possible results for a planned clip. `ok` clips are in the shards; for all others the manifest gives the reason.
STATUSES = (
    "ok",
    "missing",
    "unreadable",
    "empty",
    "lfs_pointer",
    "undecodable",
    "crashed",  # decoding ended the process twice
    "no_audio",
    "no_video",
    "too_short",
    "too_long",
    "too_large",
    "changed",  # the size differs from that at the start of the build
    "checksum",  # the content does not match the list of checksums
)


@dataclass(frozen=True)
class EncodeOptions:
    """How clips are stored; the same for all clips of a build.

    Attributes:
        sampling_rate: sampling rate of the FLAC (16 bit, mono) in Hz.
        frames: frames per clip, evenly spaced; ignored with `fps`.
        fps: frames per second, instead of `frames`.
        frame_size: length of the shorter side in pixels (the aspect ratio is kept), or (height, width); None keeps the
            original size.
        crop: left, top, right, bottom as fractions of the frame.
        image_format: `jpeg` or `png` (lossless).
        quality: JPEG quality, 1 to 95.
        need_audio, need_frames: leave out clips without audio, or without frames; the manifest gives the reason.
        min_seconds: shorter clips are `too_short`.
        max_seconds: longer clips are `too_long`.
    """

    sampling_rate: int = 16_000
    frames: int = 8
    fps: float | None = None
    frame_size: int | tuple[int, int] | None = None
    crop: tuple[float, float, float, float] | None = None
    image_format: str = "jpeg"
    quality: int = 90
    need_audio: bool = True
    need_frames: bool = True
    min_seconds: float = 0.1
    max_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.image_format not in ("jpeg", "png"):
            raise DataError(f"image_format must be jpeg or png, got {self.image_format!r}")
        if self.frames < 1 or (self.fps is not None and not 0 < self.fps < math.inf):
            raise DataError(f"frames and fps must be positive, got {self.frames} and {self.fps}")
        if not 1 <= self.quality <= 95:
            raise DataError(f"quality must be between 1 and 95, got {self.quality}")
        try:
            self.reading()
        except ValueError as error:
            raise DataError(str(error)) from None

    def reading(self) -> ReadingSpec:
        """Return how the build reads clips; models trained on its rows read raw files in the same way."""
        return ReadingSpec(
            sampling_rate=self.sampling_rate,
            frames=self.frames if self.fps is None else None,
            fps=self.fps,
            frame_size=self.frame_size,
            crop=self.crop,
            image_format=self.image_format,
            image_quality=self.quality,
        )


@dataclass(frozen=True)
class PlannedClip:
    """One clip of the plan.

    Attributes:
        id: id, unique in the dataset.
        source: media file, or None if there is none.
        cell: name of the set of shards that holds the clip; a split of a configuration is a list of cells.
        label: number of the clip's class.
        columns: values of the metadata columns.
        size: bytes of the source when the plan was made.
        sound: second file with the audio, if the audio is not taken from the source.
        sound_size: bytes of that file when the plan was made.
        window: start and end of the part of the source to use, in seconds.
        window_if_longer: if True, a source that ends before the window does and has about its length is used
            completely, as the clip itself.
        sha256: SHA-256 of the source, if it is in a list of checksums.
        sound_sha256: SHA-256 of the audio file, if it is in a list of checksums.
        problem: status and text of a problem known before decoding (e.g. missing), or None.
        notes: remarks to record about the clip.
    """

    id: str
    source: str | None
    cell: str
    label: int
    columns: dict[str, Any]
    size: int = 0
    sound: str | None = None
    sound_size: int = 0
    window: tuple[float, float] | None = None
    window_if_longer: bool = False
    sha256: str | None = None
    sound_sha256: str | None = None
    problem: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shard:
    """Clips of one cell that are written as one file."""

    name: str
    clips: tuple[PlannedClip, ...]


@dataclass
class BuildPlan:
    """A dataset to build.

    Attributes:
        name: short name, e.g. `crema_d`.
        clips: all clips of the dataset, including those without media.
        classes: names of the labels.
        label_column: name of the label column.
        group_column: name of the column whose values must not be on both sides of a split.
        features: metadata columns and their `datasets` types, in order, without the media and label columns.
        configs: cells by configuration and split; the first configuration is the default.
        encode: how clips are stored.
        clips_per_shard: largest number of clips in a file; a killed build loses at most one shard per process.
        shared_groups_allowed: configurations whose splits share groups, as their card says.
        max_lost: largest fraction of clips that can be lost.
        notes: remarks for the card and the report.
    """

    name: str
    clips: list[PlannedClip]
    classes: list[str]
    label_column: str
    group_column: str
    features: dict[str, dict[str, Any]]
    configs: dict[str, dict[str, list[str]]]
    encode: EncodeOptions
    clips_per_shard: int = 128
    shared_groups_allowed: tuple[str, ...] = ()
    max_lost: float = 1.0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        repeated = [name for name, count in Counter(clip.id for clip in self.clips).items() if count > 1]
        if repeated:
            raise DataError(f"{self.name}: {len(repeated)} clip ids are used twice, e.g. {repeated[0]!r}")
        if not self.clips:
            raise DataError(f"{self.name}: the plan has no clips")
        for clip in self.clips:
            if not 0 <= clip.label < len(self.classes):
                raise DataError(f"{self.name}: clip {clip.id!r} has label {clip.label}, not among {self.classes}")
        cells = {clip.cell for clip in self.clips}
        for config, splits in self.configs.items():
            unknown = [split for split in splits if split not in SPLITS]
            named = [cell for part in splits.values() for cell in part]
            if unknown or len(named) != len(set(named)):
                raise DataError(f"{self.name}: configuration {config} has unknown splits or a cell in two of them")
        unused = cells - {cell for splits in self.configs.values() for part in splits.values() for cell in part}
        if unused:
            raise DataError(f"{self.name}: no configuration uses the cells {', '.join(sorted(unused))}")

    def shards(self) -> list[Shard]:
        """Return all shards in order; clips are shuffled with a fixed seed, so that consecutive ones are a mixture."""
        cells: dict[str, list[PlannedClip]] = {}
        for clip in sorted(self.clips, key=lambda clip: rng_for("order", clip.id).random()):
            cells.setdefault(clip.cell, []).append(clip)
        shards = []
        for cell in sorted(cells):
            count = -(-len(cells[cell]) // self.clips_per_shard)
            for i in range(count):
                # shards of equal size: no tiny last one, and several reading workers stay in step
                first, last = i * len(cells[cell]) // count, (i + 1) * len(cells[cell]) // count
                shards.append(Shard(f"{cell}-{i:05d}-of-{count:05d}", tuple(cells[cell][first:last])))
        return shards

    def fingerprint(self) -> str:
        """Return a hash of the plan: clips, files and their sizes, columns and encoding."""
        content = [self.name, self.classes, self.features, asdict(self.encode), self.clips_per_shard, self.configs]
        content += [[asdict(clip) | {"source": None, "sound": None} for clip in self.clips]]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return all fields, to be saved in the build's folder."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> BuildPlan:
        """Create a plan from the output of `to_json`."""
        encode = content["encode"]
        for name in ("crop", "frame_size"):
            encode[name] = tuple(encode[name]) if isinstance(encode[name], list) else encode[name]
        clips = []
        for clip in content["clips"]:
            for name in ("window", "problem", "notes"):
                clip[name] = None if clip[name] is None else tuple(clip[name])
            clips.append(PlannedClip(**clip))
        allowed = tuple(content["shared_groups_allowed"])
        rest = {"encode": EncodeOptions(**encode), "clips": clips, "shared_groups_allowed": allowed}
        return cls(**(content | rest))

    def splits(self, config: str) -> dict[str, list[PlannedClip]]:
        """Return the planned clips of every split of a configuration, without empty splits."""
        out = {}
        for split in SPLITS:
            cells = set(self.configs[config].get(split, ()))
            clips = [clip for clip in self.clips if clip.cell in cells]
            if clips:
                out[split] = clips
        return out


def check_ids(name: str, wanted: Sequence[str], known: set[str], where: str) -> None:
    """Check that a split file names only clips of the dataset, and each of them once.

    Raises:
        DataError: a clip is unknown or listed twice; the message names examples.
    """
    unknown = sorted(set(wanted) - known)
    if unknown:
        raise DataError(f"{where}: {len(unknown)} clips do not belong to {name}, e.g. {', '.join(unknown[:3])}")
    repeated = [clip for clip, count in Counter(wanted).items() if count > 1]
    if repeated:
        raise DataError(f"{where}: {len(repeated)} clips are listed twice, e.g. {repeated[0]}")

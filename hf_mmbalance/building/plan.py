"""What is to be built: clips in shards that every configuration of the data set shares."""

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


# Results of a planned clip. `ok` clips are in the shards; all others are in the manifest with the reason.
STATUSES = (
    "ok",
    "missing",
    "unreadable",
    "empty",
    "lfs_pointer",
    "undecodable",
    "crashed",  # decoding it ended the process, twice
    "no_audio",
    "no_video",
    "too_short",
    "too_long",
    "too_large",
    "changed",  # another size than at the start of the build
    "checksum",  # not the file that the list of checksums names
)


@dataclass(frozen=True)
class EncodeOptions:
    """How a clip is stored; the same for every clip of a build.

    Attributes:
        sampling_rate: Hz of the FLAC, 16 bit mono.
        frames: frames per clip, evenly spaced; ignored with `fps`.
        fps: frames per second, instead of `frames`.
        frame_size: length of the shorter side in pixels (the shape is kept), or (height, width); None keeps the
            pixels.
        crop: left, top, right, bottom as fractions of the frame.
        image_format: `jpeg` or `png` (lossless).
        quality: of the JPEG, 1 to 95.
        need_audio, need_frames: a clip without it is left out, with the reason in the manifest.
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
        """How the build reads a clip; kept in the build's report, so that models trained on it read raw files so."""
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
        id: unique in the data set.
        source: media file, or None if there is none.
        cell: name of the shards it goes to; configurations are made of cells.
        label: number of its class.
        columns: the metadata columns.
        size: bytes of the source when the plan was made.
        sound: a second file with the sound, if it is not taken from the source.
        sound_size: its bytes when the plan was made.
        window: seconds of the source to use.
        window_if_longer: if the source ends before the window does, and is about as long, it is the clip.
        sha256: of the source, if a list of checksums names it.
        sound_sha256: of the sound file.
        problem: a status and text known before decoding (e.g. missing), or None.
        notes: what to record about the clip.
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
    """Some clips of one cell, written as one file."""

    name: str
    clips: tuple[PlannedClip, ...]


@dataclass
class BuildPlan:
    """A data set to build.

    Attributes:
        name: short name, e.g. `crema_d`.
        clips: all clips of the data set, including those without media.
        classes: names of the labels.
        label_column: name of the label column.
        group_column: name of the column that must not be on both sides of a split.
        features: metadata columns and their `datasets` types, in order, without the media and label columns.
        configs: configuration -> split -> cells; the first configuration is the default.
        encode: how clips are stored.
        clips_per_shard: a killed build loses at most one shard per process.
        shared_groups_allowed: configurations whose splits share groups, as their card says.
        max_lost: greatest share of clips that may be lost.
        notes: for the card and the report.
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
        """All shards, in order; clips in a seeded order, so that any run of them is a mixture."""
        cells: dict[str, list[PlannedClip]] = {}
        for clip in sorted(self.clips, key=lambda clip: rng_for("order", clip.id).random()):
            cells.setdefault(clip.cell, []).append(clip)
        shards = []
        for cell in sorted(cells):
            count = -(-len(cells[cell]) // self.clips_per_shard)
            for i in range(count):
                # even parts: no tiny last shard, and reading by several workers stays in step
                first, last = i * len(cells[cell]) // count, (i + 1) * len(cells[cell]) // count
                shards.append(Shard(f"{cell}-{i:05d}-of-{count:05d}", tuple(cells[cell][first:last])))
        return shards

    def fingerprint(self) -> str:
        """Hash of the plan: clips, files and their sizes, columns and encoding."""
        content = [self.name, self.classes, self.features, asdict(self.encode), self.clips_per_shard, self.configs]
        content += [[asdict(clip) | {"source": None, "sound": None} for clip in self.clips]]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """All fields, to be saved in the build's folder."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> BuildPlan:
        """The plan that `to_json` wrote."""
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
        """Planned clips of every split of a configuration, empty splits left out."""
        out = {}
        for split in SPLITS:
            cells = set(self.configs[config].get(split, ()))
            clips = [clip for clip in self.clips if clip.cell in cells]
            if clips:
                out[split] = clips
        return out


def check_ids(name: str, wanted: Sequence[str], known: set[str], where: str) -> None:
    """Refuse a split file that names clips the data set does not have.

    Raises:
        DataError: names some of them.
    """
    unknown = sorted(set(wanted) - known)
    if unknown:
        raise DataError(f"{where}: {len(unknown)} clips do not belong to {name}, e.g. {', '.join(unknown[:3])}")
    repeated = [clip for clip, count in Counter(wanted).items() if count > 1]
    if repeated:
        raise DataError(f"{where}: {len(repeated)} clips are listed twice, e.g. {repeated[0]}")

"""Interface of all data sources: clips are read one by one, and augmentation depends only on a key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_mmbalance.data.bayes import BayesOptimum
from hf_mmbalance.model.reading_mmbalance import ReadingSpec
from hf_mmbalance.splits import SPLIT_ALIASES, SPLITS, canonical_split


Clip = dict[str, Any]


class DataError(ValueError):
    """Raised for data that cannot be used; the message names the file or clip and the remedy."""


class NoLabels(DataError):
    """Raised when no clip has a label and the classes are not given."""


def split_name(name: str) -> str:
    """Return the canonical name, one of `SPLITS`, for a split's name or alias.

    Raises:
        DataError: the name is not known.
    """
    known = canonical_split(name)
    if known not in SPLITS:
        raise DataError(f"unknown split {name!r}; known are {', '.join(SPLITS)} (and {', '.join(SPLIT_ALIASES)})")
    return known


def longer_part(frame_seconds: float, audio: np.ndarray | None, sampling_rate: int) -> float:
    """Return the seconds of a clip: those of its frames or of its audio `(S,)`, whichever is longer."""
    return max(frame_seconds, 0.0 if audio is None else len(audio) / sampling_rate)


class ClipDataset(ABC):
    """Map-style dataset with the clips of one split; it is picklable and does not need torch.

    `dataset[3]` reads the fourth clip unchanged; `dataset[3, 7]` reads it augmented for epoch 7, keyed by seed, epoch
    and clip id. An example is `{"id": str, "group": str, "label": int, "audio": float32 (S,) or None,
    "sampling_rate": int, "frames": uint8 (T, H, W, 3) or None, "seconds": float}`, where `seconds` is the length of
    its audio or of its frames, whichever is longer.

    Attributes:
        ids, groups, labels: one entry per clip; a group (actor, speaker, source video) should be in one split only.
        classes: names of the labels, in order.
        sampling_rate: sampling rate of every clip's audio, in Hz.
    """

    def __init__(
        self,
        ids: Sequence[str],
        groups: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        *,
        sampling_rate: int,
    ):
        self.ids, self.groups, self.classes = list(ids), list(groups), list(classes)
        self.labels = [int(label) for label in labels]
        self.sampling_rate = sampling_rate
        if not len(self.ids) == len(self.groups) == len(self.labels):
            raise DataError("ids, groups and labels must have the same length")
        repeated = [name for name, count in Counter(self.ids).items() if count > 1]
        if repeated:
            raise DataError(f"clip ids must be unique in a split; {len(repeated)} are not, e.g. {repeated[0]!r}")
        outside = [i for i, label in enumerate(self.labels) if not 0 <= label < len(self.classes)]
        if outside:
            first = outside[0]
            text = f"clip {self.ids[first]!r} has label {self.labels[first]}, outside the {len(self.classes)} classes"
            raise DataError(f"{text} ({len(outside)} such clips)")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | tuple[int, int]) -> Clip:
        place, epoch = index if isinstance(index, tuple) else (index, None)
        if not -len(self) <= place < len(self):
            raise IndexError(f"clip {place} of {len(self)}")
        place = int(place) % len(self)
        audio, frames = self.media(place, None if epoch is None else int(epoch))
        return {
            "id": self.ids[place],
            "group": self.groups[place],
            "label": self.labels[place],
            "audio": audio,
            "sampling_rate": self.sampling_rate,
            "frames": frames,
            "seconds": longer_part(self.frame_seconds(place), audio, self.sampling_rate),
        }

    def __iter__(self) -> Iterator[Clip]:
        return (self[i] for i in range(len(self)))

    @abstractmethod
    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return audio `(S,)` and frames `(T, H, W, 3)` of one clip, augmented if `epoch` is given."""

    def frame_seconds(self, place: int) -> float:
        """Return the length of a clip with frames in seconds; 0 for clips without frames or of unknown length."""
        return 0.0

    def class_counts(self) -> dict[str, int]:
        """Return the number of clips of every class, including zeros."""
        counts = Counter(self.labels)
        return {name: counts[i] for i, name in enumerate(self.classes)}


class ClipsOfEpoch(ClipDataset):
    """Clips of a dataset as training reads them in one epoch: augmented, with that epoch's noise."""

    def __init__(self, dataset: ClipDataset, epoch: int):
        self.dataset, self.epoch = dataset, epoch
        super().__init__(
            dataset.ids, dataset.groups, dataset.labels, dataset.classes, sampling_rate=dataset.sampling_rate
        )

    def __getitem__(self, index: int | tuple[int, int]) -> Clip:
        return self.dataset[index[0] if isinstance(index, tuple) else index, self.epoch]

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        return self.dataset.media(place, self.epoch)

    def frame_seconds(self, place: int) -> float:
        return self.dataset.frame_seconds(place)


class DrawnClips(ClipDataset):
    """Several versions (draws) of every clip of another dataset; the rows of a clip are consecutive.

    Args:
        dataset: the clips.
        draws: versions of each clip; draw 0 is the unchanged clip and keeps its id, the others are `ID#1`, `ID#2`, ...

    Attributes:
        clips: id of every row's clip in `dataset`.
        draws: number of every row's draw.
    """

    def __init__(self, dataset: ClipDataset, draws: int):
        self.dataset = dataset
        self.clips = [name for name in dataset.ids for _ in range(draws)]
        self.draws = [draw for _ in dataset.ids for draw in range(draws)]
        super().__init__(
            [f"{name}#{draw}" if draw else name for name, draw in zip(self.clips, self.draws, strict=True)],
            [group for group in dataset.groups for _ in range(draws)],
            [label for label in dataset.labels for _ in range(draws)],
            dataset.classes,
            sampling_rate=dataset.sampling_rate,
        )

    def frame_seconds(self, place: int) -> float:
        return self.dataset.frame_seconds(place // (len(self) // len(self.dataset)))


@dataclass
class ClipSplits:
    """A dataset in splits, as training uses it.

    Attributes:
        name: the requested dataset, e.g. `grid`.
        classes: names of the labels, in order.
        splits: dataset of each split, by name, in the order of `SPLITS`.
        sampling_rate: sampling rate in Hz.
        notes: remarks for the user on how the splits were made.
        bayes: the closed-form optimum, for synthetic data only.
        reading: how clips were read, to be saved with a model's processor; None for clips that are not media.
        unlabelled: clips without a label (their label is set to 0), which belong to no split; None if there are none.
        commit: commit of the Hub dataset that was read; None for other data, or if it is not known.
    """

    name: str
    classes: list[str]
    splits: dict[str, ClipDataset]
    sampling_rate: int
    notes: list[str] = field(default_factory=list)
    bayes: BayesOptimum | None = None
    reading: ReadingSpec | None = None
    unlabelled: ClipDataset | None = None
    commit: str | None = None

    def __post_init__(self) -> None:
        self.splits = {name: self.splits[name] for name in SPLITS if name in self.splits}

    def __getitem__(self, split: str) -> ClipDataset:
        if split not in self.splits:
            raise KeyError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split]

    def shared_groups(self) -> dict[tuple[str, str], list[str]]:
        """Return the groups that each pair of splits shares (empty if the splits are group-disjoint)."""
        groups = {name: set(dataset.groups) for name, dataset in self.splits.items()}
        pairs = [(a, b) for i, a in enumerate(groups) for b in list(groups)[i + 1 :]]
        return {(a, b): sorted(groups[a] & groups[b]) for a, b in pairs if groups[a] & groups[b]}

    def summary(self) -> str:
        """Return a readable summary: clips and groups of every split, then the notes."""
        names = ", ".join(self.classes[:12]) + (", ..." if len(self.classes) > 12 else "")
        lines = [f"{self.name}: {len(self.classes)} classes ({names})"]
        for name, dataset in self.splits.items():
            lines.append(f"  {name:<12} {len(dataset):>6} clips  {len(set(dataset.groups)):>4} groups")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

"""The versions of each clip that are embedded: clean, corrupted and augmented draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_mmbalance.data.clips import SPLITS, ClipDataset, ClipSplits, DataError, DrawnClips
from hf_mmbalance.data.corruptions import CorruptedClips, CorruptionPlan
from hf_mmbalance.data.sources.rows import UNLABELLED


@dataclass(frozen=True)
class Draws:
    """How many versions (draws) of every clip to embed, and how they are made.

    Attributes:
        corrupted: versions of each clip in `splits`, including the clean one.
        corruptions: kinds of corruption, or groups such as `seen`, that the corrupted versions are drawn from.
        splits: splits that get corrupted versions.
        augmented: versions of each train clip, including the clean one; the others are augmented as in training.
        seed: seed of the corruptions.
    """

    corrupted: int = 1
    corruptions: tuple[str, ...] = ("seen",)
    splits: tuple[str, ...] = ("calibration",)
    augmented: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, count in (("draws", self.corrupted), ("augmented", self.augmented)):
            if count < 1:
                raise DataError(f"{name}={count} must be at least 1: the clean clip is always among them")
        unknown = sorted(set(self.splits) - set(SPLITS))
        if unknown:
            raise DataError(
                f"{unknown[0]!r} is not a split that draws can be made of: choose among {', '.join(SPLITS)}"
            )

    def of(self, clips: ClipSplits) -> dict[str, ClipDataset]:
        """Return the clips of every split, and the unlabelled clips, with their draws.

        The `clips` and `draws` of each dataset say which clip and which version a row is.

        Raises:
            DataError: a corruption is unknown, or train clips would get both augmented and corrupted draws.
        """
        if self.augmented > 1 and self.corrupted > 1 and "train" in self.splits:
            raise DataError("draws of train clips are either corrupted or augmented, not both: remove --augmented")
        plan = CorruptionPlan.of(self.corruptions, draws=self.corrupted, seed=self.seed)
        found: dict[str, ClipDataset] = {}
        for split, dataset in clips.splits.items():
            if split == "train" and self.augmented > 1:
                found[split] = AugmentedClips(dataset, self.augmented)
            else:
                corrupted = self.corrupted > 1 and split in self.splits
                found[split] = CorruptedClips(dataset, plan) if corrupted else dataset
        if clips.unlabelled is not None:
            found[UNLABELLED] = clips.unlabelled
        return found


class AugmentedClips(DrawnClips):
    """Several versions of every train clip: draw 0 is clean, draw k is what training reads in epoch k - 1.

    Args:
        dataset: the train clips.
        draws: versions of every clip.
    """

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        clean, draw = divmod(place, len(self) // len(self.dataset))
        example = self.dataset[(clean, draw - 1) if draw else clean]
        return example["audio"], example["frames"]


def changes_by_epoch(dataset: ClipDataset, looked_at: int = 20) -> bool:
    """Return True if train clips are augmented, i.e. one of the first clips differs between two epochs."""
    for index in range(min(looked_at, len(dataset))):
        first, second = dataset[index], dataset[index, 1]
        for part in ("audio", "frames"):
            if first[part] is not None and not np.array_equal(first[part], second[part]):
                return True
    return False

"""Batches of clips: examples keyed by epoch, masks on spectrograms, and the collator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_mmbalance.data.clips import ClipDataset
from hf_mmbalance.data.seeding import rng_for
from hf_mmbalance.model.processing_mmbalance import MMBalanceProcessor
from hf_mmbalance.model.reading_mmbalance import Clip


class KeyedClips(Dataset):
    """Clips that are read by `(index, epoch)` for training and by `index` for prediction.

    A train example carries its `epoch`. Any other carries its `index`, which orders rows gathered from all processes.

    Args:
        clips: The clips.
        indexed: Train examples also carry their `index`, by which balancing methods with a history identify clips.
    """

    def __init__(self, clips: ClipDataset, indexed: bool = False):
        self.clips, self.indexed = clips, indexed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        if not isinstance(key, tuple):
            return {**self.clips[key], "index": key}
        example = {**self.clips[key], "epoch": key[1]}
        return {**example, "index": key[0]} if self.indexed else example


@dataclass(frozen=True)
class SpecAugment:
    """Masks over bands and time ranges of a spectrogram (Park et al., 2019), drawn for every clip and epoch.

    The masks depend only on seed, clip id and epoch, not on the order of batches or the number of workers.
    """

    frequency_masks: int = 0
    frequency_width: int = 8
    time_masks: int = 0
    time_width: int = 8
    seed: int = 0

    def __call__(self, features: torch.Tensor, clip_id: str, epoch: int) -> None:
        """Set the masked parts of one clip's `(frames, mel bins)` spectrogram to 0, in place."""
        rng = rng_for(self.seed, "specaugment", clip_id, epoch)
        for axis, count, width in (
            (1, self.frequency_masks, self.frequency_width),
            (0, self.time_masks, self.time_width),
        ):
            for _ in range(count):
                length = int(rng.integers(0, min(width, features.shape[axis]) + 1))
                features.narrow(axis, int(rng.integers(0, features.shape[axis] - length + 1)), length).zero_()


class ClipCollator:
    """Collator that turns examples into model inputs with the processor.

    Args:
        processor: The model's processor.
        augment: Masks for the spectrograms of train clips, i.e. of examples with an `epoch`.
    """

    def __init__(self, processor: MMBalanceProcessor, augment: SpecAugment | None = None):
        self.processor, self.augment = processor, augment

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the processor's tensors and `labels` `(B,)`.

        Examples with an `index` add `clip_index` `(B,)`; those without an `epoch` add `clip_seconds` `(B,)`.

        Raises:
            ValueError: if the processor refuses a clip; the message names it.
        """
        try:
            batch = self._process(examples) if "features" not in examples[0] else _features(examples)
        except (ValueError, RuntimeError) as error:
            for example in examples if len(examples) > 1 else ():
                self([example])  # raises for the clip at fault, naming only that one
            raise ValueError(f"clip {', '.join(repr(example['id']) for example in examples)}: {error}") from error
        if self.augment is not None and "input_values" in batch:
            for features, example in zip(batch["input_values"], examples, strict=True):
                if example.get("epoch") is not None:
                    self.augment(features, example["id"], example["epoch"])
        batch["labels"] = torch.tensor([example["label"] for example in examples])
        if "index" in examples[0]:
            batch["clip_index"] = torch.tensor([example["index"] for example in examples])
        if "epoch" not in examples[0]:
            batch["clip_seconds"] = torch.tensor([float(example["seconds"]) for example in examples])
        return dict(batch)

    def _process(self, examples: list[dict[str, Any]]) -> Any:
        return self.processor.tensors(
            [
                Clip(
                    {"audio": example["audio"], "vision": example["frames"]},
                    example["sampling_rate"],
                    example["seconds"],
                )
                for example in examples
            ]
        )


def _features(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch of stored features, which replace the media of their clips."""
    batch: dict[str, Any] = {}
    for part in ("features", "tokens"):
        columns = [np.stack([example[part][name] for example in examples]) for name in examples[0][part]]
        present = np.stack([~np.isnan(values[:, 0]) for values in columns], axis=1)
        batch[f"modality_{part}"] = tuple(torch.from_numpy(np.nan_to_num(values)) for values in columns)
    return {**batch, "modality_mask": torch.from_numpy(present)}


def missing_modalities(example: dict[str, Any]) -> set[str]:
    """Return the modalities that a clip does not have."""
    if "features" in example:
        return {name for name, vector in example["features"].items() if np.isnan(vector[0])}
    return {name for name, part in (("audio", "audio"), ("vision", "frames")) if example[part] is None}

"""Batches in which a fixed part of the clips are calibration clips, the same whatever the number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_mmbalance.data.clips import ClipDataset
from hf_mmbalance.data.seeding import rng_for
from hf_mmbalance.model.processing_mmbalance import MMBalanceProcessor
from hf_mmbalance.model.reading_mmbalance import Clip


class TrainingClips(Dataset):
    """Train clips, then calibration clips, in one index; each example says which kind it is.

    Args:
        train: Clips the towers learn from.
        calibration: Clips only the allocation learns from; None if the fusion head needs none.
    """

    def __init__(self, train: ClipDataset, calibration: ClipDataset | None):
        self.train, self.calibration = train, calibration

    def __len__(self) -> int:
        return len(self.train) + (len(self.calibration) if self.calibration is not None else 0)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """The clip at `(index, epoch)`; calibration clips are never augmented, they stand for clips in use."""
        index, epoch = key if isinstance(key, tuple) else (key, None)
        if index < len(self.train):
            return {**self.train[index if epoch is None else (index, epoch)], "calibration": False, "epoch": epoch}
        assert self.calibration is not None
        return {**self.calibration[index - len(self.train)], "calibration": True, "epoch": None}


class MixedBatches:
    """Batch sampler: every batch holds as many train and as many calibration clips as every other.

    The clips of one optimiser step depend on `seed`, epoch and step alone: splitting the global batch over processes
    or accumulation steps deals the same clips to more hands. So losses that are means over each kind of clip agree
    between one process and several. The last step of an epoch is filled up with clips drawn a second time.

    Args:
        num_train, num_calibration: Clips of each kind; calibration clips come after train clips in the index.
        batch_size: Clips a process and accumulation step.
        parts: Processes times accumulation steps, into which a global batch is split.
        calibration_per_step: Calibration clips a global batch. By default their proportion among all clips, rounded to
            a multiple of `parts`; it must be such a multiple.
        seed: Seed of the order.

    Raises:
        ValueError: if `calibration_per_step` is no multiple of `parts` or leaves no room for train clips.
    """

    drop_last = False

    def __init__(
        self,
        num_train: int,
        num_calibration: int,
        batch_size: int,
        parts: int = 1,
        calibration_per_step: int | None = None,
        seed: int = 0,
    ):
        if calibration_per_step is None:
            share = num_calibration / (num_train + num_calibration)
            calibration_per_step = max(1, round(batch_size * share)) * parts if num_calibration else 0
        if calibration_per_step % parts:
            raise ValueError(
                f"calibration_per_step={calibration_per_step} must be a multiple of {parts}, the number of processes"
                " times accumulation steps"
            )
        if not 0 <= calibration_per_step < batch_size * parts or (calibration_per_step and not num_calibration):
            raise ValueError(
                f"calibration_per_step={calibration_per_step} does not fit a global batch of {batch_size * parts}"
                f" clips and {num_calibration} calibration clips: every batch needs train clips too; raise"
                " per_device_train_batch_size or lower calibration_per_step"
            )
        self.num_train, self.num_calibration = num_train, num_calibration
        self.batch_size, self.parts, self.seed = batch_size, parts, seed
        self.calibration_per_step = calibration_per_step
        self.epoch = 0
        # accelerate passes set_epoch on to the `sampler` of a batch sampler that it has wrapped.
        self.sampler = self

    @property
    def train_per_step(self) -> int:
        """Train clips a global batch."""
        return self.batch_size * self.parts - self.calibration_per_step

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch: every train clip is seen once."""
        return math.ceil(self.num_train / self.train_per_step)

    def __len__(self) -> int:
        return self.steps * self.parts

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        train = _endless(rng, self.num_train, self.steps * self.train_per_step)
        calibration = _endless(rng, self.num_calibration, self.steps * self.calibration_per_step) + self.num_train
        for part in range(len(self)):
            kinds = (
                chunk[part * size : (part + 1) * size]
                for chunk, size in (
                    (train, self.train_per_step // self.parts),
                    (calibration, self.calibration_per_step // self.parts),
                )
            )
            yield [(int(index), self.epoch) for kind in kinds for index in kind]


def _endless(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """`length` indices: one permutation of `count` after another."""
    if length == 0:
        return np.zeros(0, dtype=np.int64)
    return np.concatenate([rng.permutation(count) for _ in range(math.ceil(length / count))])[:length]


@dataclass(frozen=True)
class SpecAugment:
    """Masks over bands and stretches of a spectrogram (Park et al., 2019), drawn anew for every clip and epoch.

    What is drawn depends on seed, clip id and epoch alone, not on the order of batches or the number of workers.
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
    """Examples to what the model takes, through the processor.

    Args:
        processor: The model's processor.
        augment: Masks for training clips' spectrograms; an example with an `epoch` is one.
    """

    def __init__(self, processor: MMBalanceProcessor, augment: SpecAugment | None = None):
        self.processor, self.augment = processor, augment

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors of the processor, `labels` `(B,)` and, where examples say what kind they are, `calibration_mask`.

        Raises:
            ValueError: for a clip that the processor refuses, naming it.
        """
        try:
            batch = self._process(examples)
        except (ValueError, RuntimeError) as error:
            for example in examples if len(examples) > 1 else ():
                self([example])  # the clip at fault says so itself
            raise ValueError(f"clip {', '.join(repr(example['id']) for example in examples)}: {error}") from error
        if self.augment is not None and "input_values" in batch:
            for features, example in zip(batch["input_values"], examples, strict=True):
                if example.get("epoch") is not None:
                    self.augment(features, example["id"], example["epoch"])
        batch["labels"] = torch.tensor([example["label"] for example in examples])
        if "calibration" in examples[0]:
            batch["calibration_mask"] = torch.tensor([example["calibration"] for example in examples])
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

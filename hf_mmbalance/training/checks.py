"""What clips, model and arguments of a run must have in common, checked before training."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_mmbalance.data.clips import ClipSplits
from hf_mmbalance.training.batches import missing_modalities


LOOKED_AT = 200  # train clips read first to see which modalities there are


def check_splits(clips: ClipSplits, *needed: str) -> None:
    """Splits that training cannot do without.

    Raises:
        ValueError: naming those that have no clips.
    """
    missing = [split for split in needed if not len(clips.splits.get(split, ()))]
    if missing:
        raise ValueError(f"dataset {clips.name!r} has no clips in split(s) {', '.join(missing)}")


def absent_modalities(clips: ClipSplits) -> list[str]:
    """Modalities that no train clip has: of 200 clips spread over the split or, where one lacks in those, of all."""
    train = clips.splits["train"]
    spread = np.unique(np.linspace(0, len(train) - 1, min(LOOKED_AT, len(train))).astype(int)).tolist()
    absent: set[str] | None = None
    for index in [*spread, *range(len(train))]:
        if absent is not None and not absent:
            break
        missing = missing_modalities(train[index])
        absent = missing if absent is None else absent & missing
    return sorted(absent or ())


def check_metric(name: str | None, modalities: list[str] | tuple[str, ...]) -> None:
    """The measure that selects the model must be one that `evaluate` gives; better now than after an epoch.

    Raises:
        ValueError: naming those there are.
    """
    known = ["nll", "loss", "accuracy", "accuracy_sum", *(f"accuracy_{modality}" for modality in modalities)]
    if name is not None and name.removeprefix("eval_") not in known:
        raise ValueError(f"metric_for_best_model={name!r} is unknown: choose one of {', '.join(known)}")


def check_loss_weights(model: Any) -> None:
    """A model must have a loss to learn by.

    Raises:
        ValueError: both weights of the losses are 0.
    """
    fused, unimodal = model.loss_weights
    if not (fused or unimodal):
        raise ValueError(
            f"fused_loss_weight={fused:g} and unimodal_loss_weight={unimodal:g}: the towers have no loss to learn by"
        )


def check_classes(config: Any, classes: list[str]) -> None:
    """A model and a dataset must name the same classes in the same order.

    Raises:
        ValueError: naming the first that differs.
    """
    named = [config.id2label[index] for index in range(config.num_labels)]
    if named != list(classes):
        pairs = zip(named + ["(none)"] * len(classes), list(classes) + ["(none)"] * len(named), strict=False)
        ours, theirs = next((a, b) for a, b in pairs if a != b)
        raise ValueError(
            f"the model has other classes than the dataset: {ours!r} where the dataset has {theirs!r}"
            f" ({len(named)} and {len(classes)} classes); use a model trained on these classes, or start a new one"
        )

"""Checks before training that the clips, model and arguments of a run fit together."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_mmbalance.data.clips import ClipSplits
from hf_mmbalance.training.batches import missing_modalities


LOOKED_AT = 200  # train clips read first to see which modalities there are


def check_splits(clips: ClipSplits, *needed: str) -> None:
    """Check that the splits that training needs have clips.

    Raises:
        ValueError: if some have none; the message names them.
    """
    missing = [split for split in needed if not len(clips.splits.get(split, ()))]
    if missing:
        raise ValueError(f"dataset {clips.name!r} has no clips in split(s) {', '.join(missing)}")


def absent_modalities(clips: ClipSplits) -> list[str]:
    """Return the modalities that no train clip has.

    Reads up to 200 clips spread over the split, and the others only if all of these lack the same modality.
    """
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
    """Check, before the first epoch, that `evaluate` returns the measure that selects the model.

    Raises:
        ValueError: if it does not; the message lists the known measures.
    """
    known = ["nll", "loss", "accuracy", "accuracy_sum", *(f"accuracy_{modality}" for modality in modalities)]
    if name is not None and name.removeprefix("eval_") not in known:
        raise ValueError(f"metric_for_best_model={name!r} is unknown: choose one of {', '.join(known)}")


def check_loss_weights(model: Any) -> None:
    """Check that the model has a loss to learn from.

    Raises:
        ValueError: if the weights of both losses are 0.
    """
    fused, unimodal = model.loss_weights
    if not (fused or unimodal):
        raise ValueError(
            f"fused_loss_weight={fused:g} and unimodal_loss_weight={unimodal:g}: the towers have no loss to learn from"
        )


def check_classes(config: Any, classes: list[str]) -> None:
    """Check that a model and a dataset name the same classes in the same order.

    Raises:
        ValueError: if they do not; the message names the first difference.
    """
    named = [config.id2label[index] for index in range(config.num_labels)]
    if named != list(classes):
        pairs = zip(named + ["(none)"] * len(classes), list(classes) + ["(none)"] * len(named), strict=False)
        ours, theirs = next((a, b) for a, b in pairs if a != b)
        raise ValueError(
            f"the model has different classes from the dataset: {ours!r} where the dataset has {theirs!r}"
            f" ({len(named)} and {len(classes)} classes); use a model trained on these classes, or start a new one"
        )

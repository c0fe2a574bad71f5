"""Installation of a fitted allocation as the fusion head of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_mmbalance.model.fusion_adaptive_mmbalance import AdaptiveFusion


if TYPE_CHECKING:
    from hf_mmbalance.decision.allocation import Allocation


def write_to_model(allocation: Allocation, model: Any) -> None:
    """Install an allocation as the fusion head of a model; see [`Allocation.write_to`]."""
    _check_model(allocation, model)
    old, options = model.fusion, allocation.state_.options
    head = allocation.state_.head(old.feature_sizes).float()
    if isinstance(old, AdaptiveFusion) and (old.calibration, old.ranks) == (head.calibration, head.ranks):
        with torch.no_grad():
            old.load_state_dict(head.state_dict())
    else:
        model.fusion = head.to(next(model.parameters()).device).train(old.training)
    model.config.fusion = "adaptive"
    model.config.fusion_options = options or None


def _check_model(allocation: Allocation, model: Any) -> None:
    """Check that the model's modalities, classes and feature widths are those of the fit.

    Raises:
        ValueError: if they are not.
    """
    classes, modalities, state = allocation.class_names_, allocation.modality_names_, allocation.state_
    have = (model.fusion.num_modalities, model.fusion.num_labels)
    if have != state.shape:
        raise ValueError(f"the model has {have} modalities and classes, the allocation was fitted on {state.shape}.")
    labels = [str(model.config.id2label[i]) for i in range(have[1])] if model.config.id2label else []
    named = not all(name == str(i) for i, name in enumerate(classes))
    if named and labels and labels != classes and not all(label.startswith("LABEL_") for label in labels):
        raise ValueError(f"the model's classes {labels[:5]}... are not those of the fit {classes[:5]}...")
    towers = list(getattr(model.config, "modalities", modalities))
    if not modalities[0].startswith("modality ") and towers != modalities:
        raise ValueError(f"the model's modalities are {towers}, those of the fit are {modalities}.")
    known = np.asarray(getattr(model.config, "known_classes", np.ones(have)), dtype=bool)
    if not np.array_equal(known, state.known):
        raise ValueError(
            f"the model's modalities know {known.sum(axis=1).tolist()} of {have[1]} classes, those of the fit"
            f" different ones ({state.known.sum(axis=1).tolist()}): fit on a table with the `known` of the model"
        )
    for m, name in enumerate(modalities):
        mean = state.arrays.get(f"typicality_mean_{m}")
        if mean is not None and len(mean) != (width := model.fusion.feature_sizes[m]):
            raise ValueError(f"the model's {name} features have width {width}, those of the fit have {len(mean)}.")

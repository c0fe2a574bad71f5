"""Optimiser steps of tiny models under balancing methods, for the tests of this package."""

from __future__ import annotations

from typing import Any

import torch

from hf_mmbalance.balancing import BALANCING_METHODS, BalancingMethod, build_method
from hf_mmbalance.model.fusion_mmbalance import FusionOutput
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch

from ..model.tiny import tiny_inputs, tiny_model


LABELS = torch.tensor([0, 3, 1, 2, 2, 0, 1, 3])
CLIPS = len(LABELS)
#: The fusion head that a method is tried with; `sum` where not named.
FUSIONS = {"frozen": "concat", "mla": "mla", "pdf": "pdf", "qmf": "qmf"}
NAMES = sorted(BALANCING_METHODS)
#: Methods that compare the clips of a batch with each other: another split of a step has other pairs.
PAIRED = ("mcr", "qmf")


def clips(seed: int = 1) -> dict[str, torch.Tensor]:
    """A step's clips; every one knows its place in the train split."""
    return {**tiny_inputs(CLIPS, seed=seed), "labels": LABELS, "clip_index": torch.arange(CLIPS)}


def some_missing(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same clips, of which three lack a modality."""
    mask = torch.ones(CLIPS, 2, dtype=torch.bool)
    mask[1, 0] = mask[4, 1] = mask[6, 0] = False
    return {**inputs, "modality_mask": mask}


def attached(name: str | BalancingMethod, fusion: str | None = None, model: Any = None, **options: Any) -> Any:
    """A tiny model that learns by a method."""
    method = build_method(name, options) if isinstance(name, str) else name
    fusion = fusion or FUSIONS.get(name if isinstance(name, str) else "", "sum")
    model = tiny_model(fusion=fusion) if model is None else model
    method.num_clips, method.progress, method.epoch = CLIPS, 0.0, 0
    method.attach(model)
    return model.train()


def backward(
    model: Any, inputs: dict[str, torch.Tensor], parts: int = 1, scale: float = 1.0, wrapped: Any = None
) -> float:
    """The backward of one optimiser step over accumulated parts, as a training loop does it; returns the loss."""
    total = 0.0
    for part in range(parts):
        piece = {name: value.chunk(parts)[part] for name, value in inputs.items()}
        index = piece.pop("clip_index")
        if model.balancing is not None:
            model.balancing.clip_index = index
        loss = (model if wrapped is None else wrapped)(**piece).loss / parts
        (scale * loss).backward()
        total += loss.item()
    if model.balancing is not None:
        model.balancing.before_step()
    return total


def gradients(model: Any, inputs: dict[str, torch.Tensor] | None = None, **options: Any) -> dict[str, torch.Tensor]:
    """Gradients of one step by the names of their parameters."""
    model.zero_grad()
    backward(model, clips() if inputs is None else inputs, **options)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train(model: Any, seeds: Any, parts: int = 1, optimizer: Any = None, wrapped: Any = None) -> list[float]:
    """One step for each seed; returns the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) if optimizer is None else optimizer
    losses = []
    for seed in seeds:
        optimizer.zero_grad()
        losses.append(backward(model, clips(seed), parts, wrapped=wrapped))
        optimizer.step()
    return losses


def by_tower(values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of the audio and of the vision tower, each as one vector."""
    towers = ("audio_model.", "vision_model.")
    return [torch.cat([v.flatten() for name, v in values.items() if name.startswith(tower)]) for tower in towers]


def plain_gradients(fusion: str = "sum", inputs: Any = None, **weights: float) -> dict[str, torch.Tensor]:
    """Gradients without any method, by the weights of the losses."""
    return gradients(tiny_model(fusion=fusion, **weights).train(), inputs)


def batch_of(logits: torch.Tensor, taught: torch.Tensor | None = None) -> TrainingBatch:
    """A batch with these unimodal logits `(8, M, C)`, of any number of modalities, and no features or losses."""
    nothing = torch.zeros(())
    mask = torch.ones(logits.shape[:2], dtype=torch.bool)
    taught = mask if taught is None else taught
    return TrainingBatch((), None, logits, mask, taught, LABELS, FusionOutput(), nothing, nothing, nothing)

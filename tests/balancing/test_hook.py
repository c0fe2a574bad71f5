"""The hook: sums over batches and processes, separate gradients, checkpoints, what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch

from hf_mmbalance.balancing import BALANCING_METHODS, BalancingMethod, build_method

from ..model.tiny import tiny_inputs, tiny_model


LABELS = torch.tensor([0, 3, 1, 2, 2, 0, 1, 3])


def batch(size: int = 8, seed: int = 1) -> dict[str, torch.Tensor]:
    return {**tiny_inputs(size, seed=seed), "labels": LABELS[:size]}


def gradients(model, parts: int = 1, inputs=None, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Gradients of one optimiser step of 8 clips dealt over `parts` accumulated batches."""
    inputs = batch() if inputs is None else inputs
    model.train().zero_grad()
    for part in range(parts):
        piece = {name: value.chunk(parts)[part] for name, value in inputs.items()}
        (scale * model(**piece).loss / parts).backward()
    if model.balancing is not None:
        model.balancing.before_step()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained(method: str | BalancingMethod, fusion: str = "sum", **options) -> torch.nn.Module:
    model = tiny_model(fusion=fusion)
    method = build_method(method, options) if isinstance(method, str) else method
    method.clip_index, method.num_clips = torch.arange(8), 8
    method.attach(model)
    return model

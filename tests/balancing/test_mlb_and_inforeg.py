"""MLB and InfoReg against hand computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ..model.tiny import tiny_model
from .steps import attached, by_tower, clips, gradients, plain_gradients, some_missing, train
from .test_ogm import scores


BOTH = {"fused_loss_weight": 1.0, "unimodal_loss_weight": 1.0}


@pytest.mark.parametrize("missing", [False, True])
def test_mlb_slows_one_tower_and_hastens_the_other(missing):
    inputs = some_missing(clips()) if missing else clips()
    s = scores("sum", inputs, [0, 2, 3, 5, 7] if missing else list(range(8)))
    factors = [1 + math.tanh(0.5 * (s[1 - m] / s[m] - 1)) for m in range(2)]
    assert min(factors) < 1 < max(factors)
    plain = by_tower(plain_gradients("sum", inputs, **BOTH))
    found = by_tower(gradients(attached("mlb", alpha=0.5), inputs))
    for m in range(2):
        torch.testing.assert_close(found[m], factors[m] * plain[m], rtol=1e-4, atol=1e-7)
    assert attached("mlb").balancing.coefficients([0.0, 0.0]) == [1.0, 1.0]


def moved_model(model):
    """The model after the towers have moved since the start of the epoch."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def test_inforeg_holds_the_tower_that_is_ahead_near_its_start():
    model = attached("inforeg", beta=[0.9, 0.4])
    start = by_tower(dict(model.named_parameters()))
    start = [value.detach().clone() for value in start]
    gradients(model)  # the epoch's first step: nothing has moved
    plain = by_tower(gradients(moved_model(tiny_model(fusion="sum", **BOTH)).train()))
    found = by_tower(gradients(moved_model(model)))
    reference = moved_model(tiny_model(fusion="sum")).train()
    inputs = {k: v for k, v in clips().items() if k != "clip_index"}
    with torch.no_grad():
        probabilities = reference(**inputs).modality_logits.softmax(-1)
    s = [float(probabilities[range(8), m, inputs["labels"]].mean()) for m in range(2)]
    ahead = int(np.argmax(s))
    now = [value.detach() for value in by_tower(dict(model.named_parameters()))]
    strength = [0.9, 0.4][ahead] * math.exp(math.tanh(s[ahead] - s[1 - ahead]))
    torch.testing.assert_close(
        found[ahead], plain[ahead] + strength * (now[ahead] - start[ahead]), rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(found[1 - ahead], plain[1 - ahead], rtol=1e-4, atol=1e-6)


def test_the_window_by_hand():
    """T is a mean over 10 epochs, 0 before the first; the window is open while it grows by more than 5 %."""
    model = attached("inforeg", window=0.05)
    method = model.balancing
    traces, expected, found = [], [], []
    rng = np.random.default_rng(0)
    for epoch in range(16):
        method.epoch = epoch
        train(model, range(1), optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
        found.append(bool(method.state["open"][0]))
        padded = [0.0] * 11 + traces
        newest, before = np.mean(padded[-10:]), np.mean(padded[-11:-1])
        expected.append(epoch == 0 or (newest - before) / newest > 0.05)
        traces.append(float(rng.uniform(0.5, 1.5)))
        method.state["traces"][-1, 0] = traces[-1]
    assert found == expected and True in found[1:] and False in found


def test_the_trace_is_of_weight_matrices_without_the_loss_scale():
    plain = plain_gradients("sum", **BOTH)
    expected = [
        sum(float(v.square().mean()) for k, v in plain.items() if k.startswith(tower) and v.dim() > 1)
        for tower in ("audio_model.", "vision_model.")
    ]
    for scale in (1.0, 4096.0):
        model = attached("inforeg")
        gradients(model, scale=scale)
        np.testing.assert_allclose(model.balancing.state["traces"][-1].numpy(), expected, rtol=1e-4)

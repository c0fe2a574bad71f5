"""AGM against hand computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ..model.tiny import log_softmax, tiny_model
from .steps import LABELS, attached, by_tower, clips, gradients, plain_gradients


def test_coefficients_in_closed_form():
    method = attached("agm", alpha=2.0).balancing
    audio, vision = method.coefficients([0.5, 1.5], [0.8, 1.0])
    assert audio == pytest.approx(math.exp(2 * (math.exp(0.2) - math.exp(1.0))))
    assert vision == pytest.approx(math.exp(2 * (math.exp(-0.2) - math.exp(-1.0))))
    assert audio < 1 < vision  # audio is further ahead than it has been
    assert method.coefficients([1.0, 0.0], [0.0, 9.0])[0] == pytest.approx(math.exp(20))  # min(., 10)


def response_losses(inputs: dict[str, torch.Tensor]) -> list[float]:
    """CE of phi_a = [f(a, v) - f(v) + f(a)] / 2 and of phi_v, with the head applied to subsets of modalities."""
    model = tiny_model(fusion="sum").train()
    with torch.no_grad():
        logits = model(**{k: v for k, v in inputs.items() if k != "clip_index"}).modality_logits
        f = {
            subset: model.fusion(logits, torch.tensor([subset] * 8)).logits.double().numpy()
            for subset in ((True, True), (True, False), (False, True))
        }
    audio = (f[True, True] - f[False, True] + f[True, False]) / 2
    vision = (f[True, True] - f[True, False] + f[False, True]) / 2
    return [float(-log_softmax(phi)[np.arange(8), LABELS.numpy()].mean()) for phi in (audio, vision)]


def test_two_steps_by_hand():
    model, plain = attached("agm", alpha=0.7), None
    means, count = np.zeros(2), 0
    for seed in range(2):
        inputs = clips(seed)
        plain = by_tower(plain_gradients("sum", inputs, fused_loss_weight=1.0, unimodal_loss_weight=0.0))
        found = by_tower(gradients(model, inputs))
        scores = np.array(response_losses(inputs))
        for m in range(2):
            ratio, reference = math.exp(scores[1 - m] - scores[m]), math.exp(means[1 - m] - means[m])
            factor = math.exp(0.7 * min(reference - ratio, 10))
            torch.testing.assert_close(found[m], factor * plain[m], rtol=1e-4, atol=1e-7)
        means, count = (means * count + scores) / (count + 1), count + 1
    np.testing.assert_allclose(model.balancing.state["mean_scores"].numpy(), means, rtol=1e-5)


def test_losses_that_are_far_apart_give_finite_coefficients():
    method = attached("agm", alpha=1.5).balancing
    ahead, behind = method.coefficients([0.0, 1000.0], [0.0, 0.0])
    assert ahead == 0.0 and behind == pytest.approx(math.exp(1.5))
    assert all(map(math.isfinite, attached("agm", alpha=100.0).balancing.coefficients([0.0, 9.0], [0.0, 90.0])))

"""Training losses against hand computations: each part over the modalities present only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_mmbalance.model.losses_mmbalance import clip_cross_entropy, tower_losses

from .tiny import log_softmax, random_case, tiny_inputs, tiny_model


LABELS = torch.tensor([0, 3, 1, 2, 3])
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.25])


def _cross_entropy(logits: np.ndarray, label: int, smoothing: float = 0.0, weights=None) -> float:
    target = np.full(len(logits), smoothing / len(logits))
    target[label] += 1 - smoothing
    return -(target * log_softmax(logits)).sum() * (1.0 if weights is None else float(weights[label]))


@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_clip_cross_entropy(smoothing, weights):
    logits, _ = random_case()
    expected = [
        _cross_entropy(row, y, smoothing, weights) for row, y in zip(logits[:, 0].numpy(), LABELS, strict=True)
    ]
    actual = clip_cross_entropy(logits[:, 0], LABELS, weights, smoothing)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5)


def test_tower_losses_count_only_present_modalities_and_divide_by_clips():
    logits, mask = random_case()
    fused = logits.sum(1)
    fused_loss, unimodal_loss = tower_losses(fused, logits, mask, LABELS, CLASS_WEIGHTS, 0.1)
    hand = [_cross_entropy(fused[i].numpy(), int(LABELS[i]), 0.1, CLASS_WEIGHTS) for i in range(5)]
    assert fused_loss.item() == pytest.approx(sum(hand) / 5, rel=1e-5)
    hand = [
        _cross_entropy(logits[i, m].numpy(), int(LABELS[i]), 0.1, CLASS_WEIGHTS)
        for i in range(5)
        for m in range(2)
        if mask[i, m]
    ]
    assert unimodal_loss.item() == pytest.approx(sum(hand) / 5, rel=1e-5)


def _total(model, **inputs):
    return model(**tiny_inputs(5), labels=LABELS, **inputs)


@pytest.mark.parametrize(
    ("fusion", "fused_weight", "unimodal_weight"),
    [("sum", 1, 1), ("mean_prob", 0, 1), ("concat", 1, 0), ("gated", 1, 1), ("film", 1, 1), ("mmcosine", 1, 0)]
    + [("qmf", 1, 1), ("adaptive", 1, 1)],
)
def test_total_loss_of_each_head(fusion, fused_weight, unimodal_weight):
    out = _total(tiny_model(fusion=fusion))
    expected = fused_weight * out.fused_loss + unimodal_weight * out.unimodal_loss
    torch.testing.assert_close(out.loss, expected)
    out = _total(tiny_model(fusion=fusion, unimodal_loss_weight=0.3))
    torch.testing.assert_close(out.loss, fused_weight * out.fused_loss + 0.3 * out.unimodal_loss)
    out = _total(tiny_model(fusion=fusion, fused_loss_weight=0.6))
    torch.testing.assert_close(out.loss, 0.6 * out.fused_loss + unimodal_weight * out.unimodal_loss)


def test_class_weights_scale_the_losses():
    plain, doubled = tiny_model(fusion="sum"), tiny_model(fusion="sum", class_weights=[2.0] * 4)
    torch.testing.assert_close(_total(doubled).loss, 2 * _total(plain).loss)

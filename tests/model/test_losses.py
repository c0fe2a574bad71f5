"""Training losses against hand computations: each part over its own clips, nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hf_mmbalance.model.fusion_mmbalance import FusionOutput
from hf_mmbalance.model.modeling_mmbalance import clip_cross_entropy, mean_over, tower_losses

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


def test_mean_over_marked_clips():
    values = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    assert mean_over(values, torch.tensor([True, False, True])).item() == 3.5
    nothing = mean_over(values, torch.tensor([False] * 3))
    nothing.backward()
    assert nothing.item() == 0.0 and torch.equal(values.grad, torch.zeros(3))


def test_tower_losses_count_only_what_is_there_and_divide_by_clips():
    logits, mask = random_case()
    fused = FusionOutput(logits=logits.sum(1))
    clips = torch.tensor([True, True, False, True, True])
    fused_loss, unimodal_loss = tower_losses(fused, logits, mask, LABELS, clips, CLASS_WEIGHTS, 0.1)
    marked = [index for index in range(5) if clips[index]]
    hand = [_cross_entropy(fused.logits[i].numpy(), int(LABELS[i]), 0.1, CLASS_WEIGHTS) for i in marked]
    assert fused_loss.item() == pytest.approx(sum(hand) / 4, rel=1e-5)
    hand = [
        _cross_entropy(logits[i, m].numpy(), int(LABELS[i]), 0.1, CLASS_WEIGHTS)
        for i in marked
        for m in range(2)
        if mask[i, m]
    ]
    assert unimodal_loss.item() == pytest.approx(sum(hand) / 4, rel=1e-5)


def _total(model, **inputs):
    return model(**tiny_inputs(5), labels=LABELS, **inputs)


@pytest.mark.parametrize(
    ("fusion", "fused_weight", "unimodal_weight"),
    [("sum", 1, 1), ("mean_prob", 0, 1), ("concat", 1, 0), ("gated", 1, 1), ("film", 1, 1), ("mmcosine", 1, 0)]
    + [("qmf", 1, 1)],
)
def test_total_loss_of_each_head(fusion, fused_weight, unimodal_weight):
    out = _total(tiny_model(fusion=fusion))
    expected = fused_weight * out.fused_loss + unimodal_weight * out.unimodal_loss
    torch.testing.assert_close(out.loss, expected)
    assert out.allocation_loss is None and out.balance_loss is None
    out = _total(tiny_model(fusion=fusion, unimodal_loss_weight=0.3))
    torch.testing.assert_close(out.loss, fused_weight * out.fused_loss + 0.3 * out.unimodal_loss)
    out = _total(tiny_model(fusion=fusion, fused_loss_weight=0.6))
    torch.testing.assert_close(out.loss, 0.6 * out.fused_loss + unimodal_weight * out.unimodal_loss)


def test_total_loss_of_the_adaptive_head():
    model = tiny_model(balance_loss_weight=0.7, allocation_shrinkage=0.05, unimodal_loss_weight=0.4)
    model.fusion.capability.copy_(torch.tensor([[0.9, 0.5, 0.1, 0.2], [0.1, 0.5, 0.6, 0.2]]))
    calibration = torch.tensor([True, False, False, True, False])
    out = _total(model, calibration_mask=calibration)
    logits, labels = out.logits.detach().numpy(), LABELS.tolist()
    assert out.fused_loss.item() == pytest.approx(np.mean([_cross_entropy(logits[i], labels[i]) for i in (1, 2, 4)]))
    assert out.allocation_loss.item() == pytest.approx(np.mean([_cross_entropy(logits[i], labels[i]) for i in (0, 3)]))
    expected_balance = model.fusion.balance_loss(
        model.fusion(out.modality_logits, out.modality_mask.bool()).shares, calibration
    )
    torch.testing.assert_close(out.balance_loss, expected_balance)
    parts = out.fused_loss + 0.4 * out.unimodal_loss + out.allocation_loss + 0.7 * out.balance_loss
    torch.testing.assert_close(out.loss, parts + 0.05 * model.fusion.shrinkage())


def test_balance_counts_only_clips_with_every_modality():
    model = tiny_model()
    model.fusion.capability.copy_(torch.tensor([[0.9, 0.5, 0.1, 0.2], [0.1, 0.5, 0.6, 0.2]]))
    one_missing = torch.tensor([[True, True], [True, False], [False, True], [True, True], [True, False]])
    some = _total(model, modality_mask=one_missing).balance_loss
    both = model(**{k: v[[0, 3]] for k, v in tiny_inputs(5).items()}, labels=LABELS[[0, 3]]).balance_loss
    torch.testing.assert_close(some, both)
    none = _total(model, modality_mask=torch.tensor([[True, False]] * 5)).balance_loss
    assert none.item() == 0.0


def test_class_weights_scale_the_losses():
    plain, doubled = tiny_model(fusion="sum"), tiny_model(fusion="sum", class_weights=[2.0] * 4)
    torch.testing.assert_close(_total(doubled).loss, 2 * _total(plain).loss)


def test_label_smoothing_reaches_the_towers_losses_only():
    sharp, smooth = _total(tiny_model()), _total(tiny_model(label_smoothing=0.3))
    assert not math.isclose(sharp.fused_loss.item(), smooth.fused_loss.item(), rel_tol=1e-4)
    torch.testing.assert_close(sharp.allocation_loss, smooth.allocation_loss)

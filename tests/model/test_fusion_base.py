"""The registry, and the functions that heads share, against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hf_mmbalance.model.fusion_mmbalance import (
    FUSION_HEADS,
    FusionHead,
    masked_log_softmax,
    mean_log_prob,
    register_fusion_head,
    shapley_contributions,
)

from .tiny import HEADS, log_softmax, random_case


def test_every_head_is_registered():
    assert set(HEADS) <= set(FUSION_HEADS)


def test_a_name_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="'sum' is already registered .SumFusion.: choose another name"):
        register_fusion_head("sum")(type("Other", (FusionHead,), {}))
    assert FUSION_HEADS["sum"].__name__ == "SumFusion"


def test_masked_log_softmax():
    logits, mask = random_case()
    expected = log_softmax(logits.double().numpy()) * mask.numpy()[..., None]
    np.testing.assert_allclose(masked_log_softmax(logits, mask).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("modalities", [2, 3])
def test_mean_log_prob(modalities):
    logits, mask = random_case(batch=7, modalities=modalities)
    probs = np.exp(log_softmax(logits.double().numpy())) * mask.numpy()[..., None]
    expected = np.log(probs.sum(1) / mask.numpy().sum(1, keepdims=True))
    actual = mean_log_prob(torch.log_softmax(logits, -1), mask)
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-5)


def test_mean_log_prob_without_any_modality_is_zero_with_finite_gradient():
    logits = torch.randn(1, 2, 3, requires_grad=True)
    pooled = mean_log_prob(torch.log_softmax(logits, -1), torch.tensor([[False, False]]))
    pooled.sum().backward()
    assert torch.equal(pooled, torch.zeros(1, 3))
    assert torch.isfinite(logits.grad).all()


def test_shapley_is_the_mean_marginal_contribution_over_orders():
    """Three modalities, a set function without structure: phi_m is the mean over all 3! orders of what m adds."""
    worth = np.random.default_rng(0).normal(size=(8, 2))
    worth[0] = 0.0

    def fuse(mask: torch.Tensor) -> torch.Tensor:
        return torch.tensor(worth)[(mask * torch.tensor([1, 2, 4])).sum(1)]

    masks = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    actual = shapley_contributions(fuse, masks)
    for mask, values in zip(masks.tolist(), actual.numpy(), strict=True):
        expected = np.zeros((3, 2))
        orders = list(itertools.permutations(range(3)))
        for order in orders:
            code = 0
            for modality in order:
                joined = code | (mask[modality] << modality)
                expected[modality] += (worth[joined] - worth[code]) / len(orders)
                code = joined
        np.testing.assert_allclose(values, expected, atol=1e-12)
        np.testing.assert_allclose(values.sum(0), worth[sum(present << m for m, present in enumerate(mask))])


def test_shapley_never_evaluates_the_empty_subset():
    """A fuse that divides by the number of modalities would turn every contribution into NaN."""
    mask = torch.tensor([[True, False], [False, True], [True, True]])
    values = shapley_contributions(lambda part: 1 / part.sum(1, keepdim=True), mask)
    torch.testing.assert_close(values[..., 0], torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.25]]))


def test_only_the_adaptive_head_is_fitted():
    assert [name for name, head in FUSION_HEADS.items() if head.fitted] == ["adaptive"]


def test_base_head_is_abstract():
    head = FusionHead(2, 3)
    with pytest.raises(NotImplementedError):
        head.forward(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(NotImplementedError):
        head.unimodal_logits((torch.zeros(1, 4), torch.zeros(1, 5)))

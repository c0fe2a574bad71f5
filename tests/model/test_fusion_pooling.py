"""Heads that pool unimodal logits, against hand computations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hf_mmbalance.model.fusion_mmbalance import FUSION_HEADS

from .tiny import HEADS as ALL_HEADS
from .tiny import log_softmax, random_case


#: Heads for any number of modalities with features of any widths; the others are in test_fusion_uncertainty.py.
HEADS = [name for name in ALL_HEADS if name not in ("mla", "pdf")]


@pytest.mark.parametrize("modalities", [2, 3])
def test_sum(modalities):
    logits, mask = random_case(batch=7, modalities=modalities)
    out = FUSION_HEADS["sum"](modalities, 4)(logits, mask)
    terms = log_softmax(logits.double().numpy()) * mask.numpy()[..., None]
    np.testing.assert_allclose(out.logits.numpy(), terms.sum(1), atol=1e-5)
    np.testing.assert_allclose(out.modality_contributions.numpy(), terms, atol=1e-5)
    np.testing.assert_array_equal(out.modality_weights.numpy(), np.repeat(mask.numpy()[..., None], 4, axis=2))


def test_mean_prob_and_its_shapley_values():
    logits, mask = random_case(batch=6)
    out = FUSION_HEADS["mean_prob"](2, 4)(logits, mask)
    assert out.modality_weights is None
    probs = np.exp(log_softmax(logits.double().numpy()))
    for row, (audio, vision) in enumerate(mask.tolist()):
        alone = np.log(probs[row])
        if audio and vision:
            fused = np.log(probs[row].mean(0))
            contributions = np.stack([(alone[0] + fused - alone[1]) / 2, (alone[1] + fused - alone[0]) / 2])
        else:
            fused = alone[0] if audio else alone[1]
            contributions = alone * [[audio], [vision]]
        np.testing.assert_allclose(out.logits[row].numpy(), fused, atol=1e-5)
        np.testing.assert_allclose(out.modality_contributions[row].numpy(), contributions, atol=1e-5)


def test_mmcosine_adds_raw_logits():
    logits, mask = random_case()
    out = FUSION_HEADS["mmcosine"](2, 4)(logits, mask)
    terms = logits.numpy() * mask.numpy()[..., None]
    np.testing.assert_allclose(out.logits.numpy(), terms.sum(1), atol=1e-6)
    np.testing.assert_allclose(out.modality_contributions.numpy(), terms, atol=1e-6)
    assert FUSION_HEADS["mmcosine"].required_unimodal_head == "cosine"


def test_qmf_weights_by_detached_energy():
    logits, mask = random_case()
    logits.requires_grad_()
    out = FUSION_HEADS["qmf"](2, 4)(logits, mask)
    values = logits.detach().double().numpy()
    energy = np.log(np.exp(values).sum(-1, keepdims=True)) / 10 * mask.numpy()[..., None]
    np.testing.assert_allclose(out.modality_weights.detach().numpy(), np.repeat(energy, 4, axis=2), atol=1e-6)
    np.testing.assert_allclose(out.logits.detach().numpy(), (energy * values).sum(1), atol=1e-5)
    out.logits[:, 0].sum().backward()
    expected = np.zeros_like(values)
    expected[..., 0] = energy[..., 0]  # the energy itself passes no gradient
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-6)


def _build(name: str, modalities: int = 2, classes: int = 4):
    torch.manual_seed(0)
    options = {"calibration": "vector"} if name == "adaptive" else {}
    head = FUSION_HEADS[name](modalities, classes, (6, 5, 7)[:modalities], **options)
    with torch.no_grad():
        for value in (*head.parameters(), *head.buffers()):
            value.add_(0.3 * torch.randn_like(value))
    return head


def _features(batch: int, modalities: int):
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(batch, size, generator=generator) for size in (6, 5, 7)[:modalities])


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", HEADS)
def test_contributions_sum_to_logits_minus_bias(name, modalities):
    logits, mask = random_case(batch=9, modalities=modalities)
    head = _build(name, modalities)
    out = head(logits, mask, _features(9, modalities))
    bias: float | torch.Tensor = 0.0
    if (
        name == "adaptive"
    ):  # what it says without evidence: the prior, and the bias as far as several modalities are there
        bias = head.log_prior + head.prior_shift + (mask.sum(1, keepdim=True) - 1) / (modalities - 1) * head.bias
    torch.testing.assert_close(out.modality_contributions.sum(1) + bias, out.logits, atol=1e-5, rtol=1e-5)
    assert (out.modality_contributions[~mask] == 0).all()
    if out.modality_weights is not None:
        assert (out.modality_weights[~mask] == 0).all()
        assert (out.modality_weights[mask] != 0).all()


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", HEADS)
def test_a_clip_gives_the_same_result_in_a_batch_and_missing_modalities_are_ignored(name, modalities):
    logits, mask = random_case(batch=9, modalities=modalities)
    features = _features(9, modalities)
    head = _build(name, modalities)
    whole = head(logits, mask, features)
    noise = torch.where(mask.unsqueeze(-1), logits, 50 * torch.randn_like(logits))
    other = tuple(torch.where(mask[:, m : m + 1], f, 9 * torch.randn_like(f)) for m, f in enumerate(features))
    for row in range(9):
        one = slice(row, row + 1)
        alone = head(noise[one], mask[one], tuple(feature[one] for feature in other))
        torch.testing.assert_close(alone.logits, whole.logits[one], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            alone.modality_contributions, whole.modality_contributions[one], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("name", [name for name in HEADS if name not in ("qmf", "mmcosine", "concat")])
def test_a_constant_added_to_a_row_of_logits_changes_nothing(name):
    """Every row is log-softmaxed first, except in heads defined on raw logits."""
    logits, mask = random_case()
    head, features = _build(name), _features(5, 2)
    shifted = logits + torch.tensor([[[3.0], [-7.0]]])
    plain, moved = head(logits, mask, features), head(shifted, mask, features)
    torch.testing.assert_close(moved.logits, plain.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved.modality_contributions, plain.modality_contributions, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_are_finite_whatever_is_missing(name):
    patterns = list(itertools.product([True, False], repeat=2))[:3]
    logits = torch.randn(3, 2, 4, requires_grad=True)
    head = _build(name)
    features = tuple(feature.requires_grad_() for feature in _features(3, 2))
    head(logits, torch.tensor(patterns), features).logits.square().sum().backward()
    grads = [tensor.grad for tensor in (logits, *features, *head.parameters()) if tensor.grad is not None]
    assert grads and all(torch.isfinite(grad).all() for grad in grads)
    if logits.grad is not None:
        assert (logits.grad[~torch.tensor(patterns)] == 0).all()

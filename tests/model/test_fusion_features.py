"""Heads that fuse features, against hand computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_mmbalance.model.fusion_mmbalance import FUSION_HEADS

from .tiny import log_softmax, random_case


def _head(name: str, **options):
    torch.manual_seed(0)
    head = FUSION_HEADS[name](2, 4, (6, 5), **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head


def _linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    bias = 0.0 if layer.bias is None else layer.bias.detach().double().numpy()
    return x @ layer.weight.detach().double().numpy().T + bias


def _inputs() -> tuple[tuple[torch.Tensor, ...], list[np.ndarray]]:
    generator = torch.Generator().manual_seed(5)
    features = tuple(torch.randn(6, size, generator=generator) for size in (6, 5))
    return features, [feature.double().numpy() for feature in features]


def test_concat_is_one_linear_layer_on_concatenated_features():
    head, (features, (audio, vision)) = _head("concat"), _inputs()
    unimodal = head.unimodal_logits(features)
    everything = torch.ones(6, 2, dtype=torch.bool)
    out = head(unimodal, everything, features)
    weight = np.concatenate([half.weight.detach().double().numpy() for half in head.halves], axis=1)
    expected = np.concatenate([audio, vision], axis=1) @ weight.T + head.bias.detach().double().numpy()
    np.testing.assert_allclose(out.logits.detach().numpy(), expected, atol=1e-5)
    only_audio = head(unimodal, torch.tensor([[True, False]] * 6), features)
    expected = audio @ weight[:, :6].T + head.bias.detach().double().numpy() / 2
    np.testing.assert_allclose(only_audio.logits.detach().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(unimodal[:, 0].detach().numpy(), expected, atol=1e-5)
    assert not hasattr(head, "unimodal_heads") and head.owns_unimodal_logits


def _gated(head, audio: np.ndarray, vision: np.ndarray) -> np.ndarray:
    gate = 1 / (1 + np.exp(-_linear(head.projections[0], audio)))
    return _linear(head.classifier, gate * _linear(head.projections[1], vision))


def _film(head, audio: np.ndarray, vision: np.ndarray) -> np.ndarray:
    gamma, beta = np.split(_linear(head.generators[0], audio), 2, axis=1)
    return _linear(head.classifier, gamma * _linear(head.project, vision) + beta)


@pytest.mark.parametrize(("name", "joint"), [("gated", _gated), ("film", _film)])
def test_conditioned_heads_and_their_fallback(name, joint):
    head, (features, arrays) = _head(name, hidden_size=7), _inputs()
    logits, mask = random_case(batch=6)
    out = head(logits, mask, features)
    together = log_softmax(joint(head, *arrays))
    probs = np.exp(log_softmax(logits.double().numpy()))
    for row, (audio, vision) in enumerate(mask.tolist()):
        alone = np.log(probs[row])
        if audio and vision:
            expected = together[row]
            first = (alone[0] + expected - alone[1]) / 2  # Shapley value of two players
            np.testing.assert_allclose(out.modality_contributions[row, 0].detach().numpy(), first, atol=1e-4)
        else:
            expected = alone[0] if audio else alone[1]
        np.testing.assert_allclose(out.logits[row].detach().numpy(), expected, atol=1e-4)
    assert out.modality_weights is None


@pytest.mark.parametrize("name", ["gated", "film"])
def test_conditioned_heads_compute_logits_in_float32_in_a_bf16_model(name):
    head = _head(name).bfloat16()
    features = tuple(feature.bfloat16() for feature in _inputs()[0])
    logits, _ = random_case(batch=6)
    out = head(logits, torch.ones(6, 2, dtype=torch.bool), features)
    assert out.logits.dtype == torch.float32
    total = out.logits.exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)

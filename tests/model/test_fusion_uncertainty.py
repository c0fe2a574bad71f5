"""Heads that weigh logits by uncertainty, against hand computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_mmbalance.model.fusion_mmbalance import FUSION_HEADS

from .tiny import log_softmax, random_case, tiny_inputs, tiny_model


def _softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(x))


def _entropy(z: np.ndarray) -> float:
    p = _softmax(z)
    return float(-(p * np.log(p)).sum())


def test_mla_weighs_each_clip_by_its_own_entropies():
    """The published test code takes the softmax over the batch: one entropy for all its clips."""
    logits, mask = random_case(6)
    out = FUSION_HEADS["mla"](2, 4, (5, 5))(logits, mask)
    for i in range(6):
        z = logits[i].double().numpy()
        entropies = np.array([_entropy(z[m]) for m in range(2)])
        weights = np.exp(entropies.max() - entropies) * mask[i].numpy()
        weights /= weights.sum()
        np.testing.assert_allclose(out.logits[i].numpy(), weights @ z, atol=1e-5)
        np.testing.assert_allclose(out.modality_weights[i, :, 0].numpy(), weights, atol=1e-5)
    one = FUSION_HEADS["mla"](2, 4, (5, 5))(logits[:1], mask[:1])
    torch.testing.assert_close(one.logits, out.logits[:1])  # whatever else is in the batch
    torch.testing.assert_close(out.modality_contributions.sum(1), out.logits)


def test_mla_shares_one_classifier():
    head = FUSION_HEADS["mla"](2, 4, (5, 5))
    features = (torch.randn(3, 5), torch.randn(3, 5))
    unimodal = head.unimodal_logits(features)
    for m in range(2):
        torch.testing.assert_close(unimodal[:, m], features[m] @ head.classifier.weight.T + head.classifier.bias)
    with pytest.raises(ValueError, match=r"the towers' features must have the same width, not \[6, 5\]"):
        FUSION_HEADS["mla"](2, 4, (6, 5))


@pytest.mark.parametrize("training", [False, True])
def test_pdf_by_hand(training):
    torch.manual_seed(0)
    head = FUSION_HEADS["pdf"](2, 4, (6, 5), hidden_size=7).train(training)
    logits, mask = random_case(9)
    features = (torch.randn(9, 6), torch.randn(9, 5))
    out = head(logits, mask, features)
    confidence = np.stack(
        [
            1 / (1 + np.exp(-net(f).detach().double().numpy()[:, 0]))
            for net, f in zip(head.confidence_nets, features, strict=True)
        ],
        1,
    )
    for i in range(9):
        z, t = logits[i].double().numpy(), confidence[i]
        beliefs = np.array([t[m] + np.log(t[1 - m]) / np.log(t[0] * t[1]) for m in range(2)])
        if not training:
            u = [np.abs(_softmax(z[m]) - 0.25).mean() for m in range(2)]
            beliefs *= [1.0 if u[m] > u[1 - m] else u[m] / u[1 - m] for m in range(2)]
        weights = np.exp(beliefs) * mask[i].numpy()
        weights /= weights.sum()
        np.testing.assert_allclose(out.logits[i].detach().numpy(), weights @ z, atol=1e-5)
    assert not out.modality_weights.requires_grad


def test_pdf_with_certain_confidence_is_finite():
    head = FUSION_HEADS["pdf"](2, 4, (3, 3))
    with torch.no_grad():
        for net in head.confidence_nets:
            net[2].bias.fill_(200.0)
    out = head(torch.zeros(2, 2, 4), torch.ones(2, 2, dtype=torch.bool), (torch.randn(2, 3), torch.randn(2, 3)))
    assert torch.isfinite(out.logits).all() and torch.allclose(out.modality_weights.sum(1), torch.ones(2, 4))
    with pytest.raises(ValueError, match="compares two modalities, not 3"):
        FUSION_HEADS["pdf"](3, 4, (3, 3, 3))


@pytest.mark.parametrize("fusion", ["mla", "pdf"])
def test_a_saved_model_gives_the_same(fusion, tmp_path):
    model = tiny_model(fusion=fusion)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    inputs = tiny_inputs()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
        only = {"input_values": inputs["input_values"]}
        torch.testing.assert_close(loaded(**only).logits, loaded(**only).modality_logits[:, 0])

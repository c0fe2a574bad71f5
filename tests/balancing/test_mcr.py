"""MCR's three terms and its game against hand computations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from hf_mmbalance.balancing.mcr import contrastive_loss, divergence

from ..model.tiny import VISION, log_softmax, tiny_model
from .steps import CLIPS, LABELS, attached, backward, by_tower, clips, gradients, plain_gradients, some_missing


BOTH = {"fused_loss_weight": 1.0, "unimodal_loss_weight": 1.0}
NOTHING = {"information": 0.0, "contrast": 0.0, "bottleneck": 0.0}
COMPLETE = [0, 2, 3, 5, 7]


def outputs(inputs):
    """What the model gives for a batch, in float64 where it is computed from further."""
    with torch.no_grad():
        return tiny_model(fusion="sum").train()(**{k: v for k, v in inputs.items() if k != "clip_index"})


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(values))


def js(p: np.ndarray, q: np.ndarray) -> float:
    m = (p + q) / 2
    return float(0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum())


def test_divergence_in_closed_form():
    """Of (1, 0) and (0, 1): log 2; of equal distributions: 0; of (1, 0) and (1/2, 1/2): 3/4 log(4/3) by hand."""
    first = torch.tensor([[80.0, -80.0], [1.0, 3.0], [80.0, -80.0]])
    second = torch.tensor([[-80.0, 80.0], [2.0, 4.0], [5.0, 5.0]])
    by_hand = 0.5 * math.log(1 / 0.75) + 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    found = divergence(first, second)
    torch.testing.assert_close(found, torch.tensor([math.log(2), 0.0, by_hand]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("missing", [False, True])
def test_the_influence_by_hand(missing):
    """With the permutations that the step draws, clip by clip; only complete clips take part."""
    inputs = some_missing(clips()) if missing else clips()
    rows = COMPLETE if missing else list(range(CLIPS))
    out = outputs(inputs)
    z = out.modality_logits.double().numpy()
    model = attached("mcr", **{**NOTHING, "information": 0.7}, permutations=3)
    generator = model.balancing.generator()
    total = 0.0
    for _ in range(3):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for m, (i, place) in itertools.product(range(2), enumerate(order)):
            own, other = z[rows[i]], z[rows[place]]
            mixed = np.stack([other[n] if n == m else own[n] for n in range(2)])
            total -= js(softmax(log_softmax(mixed).sum(0)), softmax(log_softmax(own).sum(0)))
    plain = float(out.fused_loss + out.unimodal_loss)
    assert total < -0.1
    assert backward(model, inputs) == pytest.approx(plain + 0.7 * total / (3 * len(rows)), abs=1e-5)


def influence_gradients(modality: int) -> list[torch.Tensor]:
    """Gradients of L_m of the towers, by a plain forward with the permutation of one step."""
    model = tiny_model(fusion="sum").train()
    order = torch.randperm(CLIPS, generator=attached("mcr").balancing.generator())
    out = model(**{k: v for k, v in clips().items() if k not in ("clip_index", "labels")})
    log_probs = out.modality_logits.log_softmax(-1)
    plain = log_probs.sum(1).softmax(-1)
    moved = (log_probs[:, 1 - modality] + log_probs[order, modality]).softmax(-1)
    mean = (plain + moved) / 2
    value = (moved * (moved / mean).log() + plain * (plain / mean).log()).sum(1).mean() / 2
    (-value).backward()
    return by_tower({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("strategy", [-1.0, 0.0, 0.5, 1.0])
def test_the_game(strategy):
    """Tower n follows grad L_n + k grad L_m, also through the prediction that is not permuted."""
    plain = by_tower(plain_gradients("sum", **BOTH))
    found = by_tower(gradients(attached("mcr", **{**NOTHING, "information": 1.0}, strategy=strategy, permutations=1)))
    own = [influence_gradients(m) for m in range(2)]
    for n in range(2):
        expected = own[n][n] + strategy * own[1 - n][n]
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found[n] - plain[n], expected, atol=1e-5, rtol=1e-3)


def test_towers_run_once_and_draws_leave_the_random_state_alone():
    """The public code runs both towers again, in evaluation mode, for the permutations."""
    model = attached("mcr")
    calls = []
    model.audio_model.register_forward_hook(lambda *_: calls.append(1))
    before = torch.get_rng_state()
    gradients(model)
    assert len(calls) == 1 and torch.equal(torch.get_rng_state(), before)


def contrast_by_hand(features: np.ndarray, labels: list[int], temperature: float) -> float:
    losses = []
    for i, j in itertools.permutations(range(len(labels)), 2):
        if labels[i] == labels[j]:
            against = sum(
                math.exp(features[i] @ features[k] / temperature) for k in range(len(labels)) if labels[k] != labels[i]
            )
            own = math.exp(features[i] @ features[j] / temperature)
            losses.append(-math.log(own / (own + against)))
    return sum(losses) / max(len(losses), 1)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0], [0, 1, 2, 3, 4, 5], [3, 3, 3, 3, 3, 3]])
def test_the_contrast_by_hand(labels):
    """Also without any pair of a class, and with one class only: then nothing is to be told apart, and it is 0."""
    features = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    features.requires_grad_()
    found = contrastive_loss(features, torch.tensor(labels), 0.5)
    expected = contrast_by_hand(features.detach().double().numpy(), labels, 0.5)
    assert found.item() == pytest.approx(expected, abs=1e-5)
    assert (expected > 0) == (labels[0] == 0 and labels[2] == 0)
    found.backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("missing", [False, True])
def test_the_contrast_is_over_the_features_that_there_are(missing):
    inputs = some_missing(clips()) if missing else clips()
    out = outputs(inputs)
    features, labels = [], []
    for m, i in itertools.product(range(2), range(CLIPS)):
        if out.modality_mask[i, m]:
            feature = out.modality_features[m][i].double().numpy()
            features.append(feature / np.linalg.norm(feature))
            labels.append(int(LABELS[i]))
    expected = float(out.fused_loss + out.unimodal_loss) + 0.3 * contrast_by_hand(np.stack(features), labels, 0.7)
    model = attached("mcr", **{**NOTHING, "contrast": 0.3}, temperature=0.7)
    assert backward(model, inputs) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("missing", [False, True])
def test_the_bottleneck_and_its_decoder_by_hand(missing):
    """The model stands still; g moves by torch's Adam. It reads constants: the heads learn nothing by it."""
    model = attached("mcr", **{**NOTHING, "bottleneck": 2.0}, learning_rate=0.05)
    layers = [model.balancing.state[f"decoder.{place}"].double().requires_grad_() for place in range(2)]
    adam = torch.optim.Adam(layers, lr=0.05)
    for seed in range(3):
        inputs = some_missing(clips(seed)) if missing else clips(seed)
        out = outputs(inputs)
        features = torch.cat(out.modality_features, dim=1).double()
        there = out.modality_mask.bool().repeat_interleave(16, dim=1)
        decoded = torch.relu(out.logits.double() @ layers[0].T) @ layers[1].T
        expected = ((features - decoded)[there] ** 2).sum() / features.numel()
        adam.zero_grad()
        (2 * expected).backward()
        model.zero_grad()
        total = float(out.fused_loss + out.unimodal_loss) + 2 * expected.item()
        assert backward(model, inputs) == pytest.approx(total, abs=1e-4)
        adam.step()
        for place, layer in enumerate(layers):
            found = model.balancing.state[f"decoder.{place}"].double()
            torch.testing.assert_close(found, layer.detach(), atol=1e-4, rtol=1e-4)
    plain = plain_gradients("sum", **BOTH)
    found = gradients(attached("mcr", **{**NOTHING, "bottleneck": 2.0}))
    for name in plain:
        if not name.startswith(("audio_model", "vision_model")):
            torch.testing.assert_close(found[name], plain[name], msg=name)
    for before, after in zip(by_tower(plain), by_tower(found), strict=True):
        assert (after - before).abs().max() > 1e-3


def test_towers_of_different_width_have_no_contrast():
    vision = {**VISION, "hidden_size": 12}
    with pytest.raises(ValueError, match=r"whose widths \[16, 12\] differ: set contrast to 0"):
        attached("mcr", model=tiny_model(fusion="sum", vision_config=vision))
    model = attached("mcr", model=tiny_model(fusion="sum", vision_config=vision), contrast=0.0)
    assert all(torch.isfinite(value).all() for value in gradients(model).values())

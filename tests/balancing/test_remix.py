"""Data Remixing by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hf_mmbalance.balancing.remix import assigned

from ..model.tiny import tiny_model
from .steps import CLIPS, LABELS, attached, batch_of, by_tower, clips, gradients, plain_gradients, some_missing


def kl_to_uniform(logits: torch.Tensor) -> float:
    p = torch.softmax(logits.double(), 0).tolist()
    return sum(value * math.log2(value * len(p)) for value in p)


@pytest.mark.parametrize(("modalities", "classes"), [(2, 4), (2, 31), (3, 5)])
def test_a_clip_trains_what_is_closest_to_uniform(modalities, classes):
    """For any number of classes: the published code has 6 of them in its divergence, whatever the data."""
    logits = 2 * torch.randn(20, modalities, classes, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(20, modalities, dtype=torch.bool)
    mask[3, 0] = mask[7, 1] = False
    found = assigned(logits, mask)
    assert found.sum(1).eq(1).all() and found.any(0).all()
    for i in range(20):
        kl = [kl_to_uniform(logits[i, m]) if mask[i, m] else math.inf for m in range(modalities)]
        assert found[i].tolist() == [value == min(kl) for value in kl]


def even_model(fusion: str):
    """A model in which neither modality is the more certain one of all clips."""
    model = tiny_model(fusion=fusion)
    with torch.no_grad():
        for head in model.unimodal_heads[:1] if fusion == "sum" else ():
            head.weight.mul_(4)
    return model.train()


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_the_loss_by_hand(fusion, missing):
    inputs = some_missing(clips()) if missing else clips()
    reference = even_model(fusion)
    out = reference(**{k: v for k, v in inputs.items() if k not in ("clip_index", "labels")})
    chosen, total = [], 0.0
    for i in range(CLIPS):
        kl = [kl_to_uniform(out.modality_logits[i, m]) if out.modality_mask[i, m] else math.inf for m in range(2)]
        n = kl.index(min(kl))
        chosen.append(n)
        # Of these heads the decision by one modality is that modality's own logits.
        ce = torch.nn.functional.cross_entropy(out.modality_logits[i, n], LABELS[i])
        total = total + (1 + 0.3) * ce / CLIPS
    assert 0 < sum(chosen) < CLIPS
    total.backward()
    found = gradients(attached("remix", model=even_model(fusion), gamma=0.3, warmup=0.0), inputs)
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_clip_does_not_reach_the_other_tower():
    """Of a batch whose clips all train vision, the audio tower learns nothing."""
    model = attached("remix", warmup=0.0)
    with torch.no_grad():
        model.unimodal_heads[0].weight.mul_(100)  # audio is certain
    audio, vision = by_tower(gradients(model))
    assert not audio.any() and vision.abs().max() > 1e-3


def test_it_starts_with_all_losses():
    model = attached("remix", warmup=0.5)
    model.balancing.progress = 0.49
    plain = plain_gradients("sum", fused_loss_weight=1.0, unimodal_loss_weight=0.5)
    found = gradients(model)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    model.balancing.progress = 0.5
    assert not all(torch.equal(value, plain[name]) for name, value in gradients(model).items())


def test_three_modalities():
    logits = 2 * torch.randn(CLIPS, 3, 4, generator=torch.Generator().manual_seed(2))
    expected = 0.0
    for i, y in enumerate(LABELS):
        kl = [kl_to_uniform(logits[i, m]) for m in range(3)]
        expected += 1.3 * float(torch.nn.functional.cross_entropy(logits[i, kl.index(min(kl))], y)) / CLIPS
    method = attached("remix", gamma=0.3, warmup=0.0).balancing
    assert method.loss(batch_of(logits)).item() == pytest.approx(expected, abs=1e-5)

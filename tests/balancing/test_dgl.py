"""DGL: who learns from which loss."""

from __future__ import annotations

import pytest
import torch

from .steps import attached, gradients, plain_gradients


FUSED = {"fused_loss_weight": 1.0, "unimodal_loss_weight": 0.0}
UNIMODAL = {"fused_loss_weight": 0.0, "unimodal_loss_weight": 1.0}


def is_tower(name: str) -> bool:
    return name.startswith(("audio_model.", "vision_model.", "frame_pooling."))


@pytest.mark.parametrize("fusion", ["sum", "concat", "qmf", "adaptive"])
@pytest.mark.parametrize(("alpha", "strength"), [(4.0, 1.0), (1.0, 1.0), (2.0, 0.25)])
def test_towers_learn_by_unimodal_losses_and_all_behind_them_by_the_fused_one(fusion, alpha, strength):
    fused, unimodal = plain_gradients(fusion, **FUSED), plain_gradients(fusion, **UNIMODAL)
    found = gradients(attached("dgl", fusion=fusion, alpha=alpha, strength=strength))
    assert found.keys() == fused.keys()
    for name, value in found.items():
        expected = fused[name]
        if is_tower(name):
            expected = (1 - strength) * expected + strength * alpha * unimodal[name]
        torch.testing.assert_close(value, expected, atol=2e-6, rtol=1e-4, msg=name)


def test_the_fused_loss_does_not_reach_the_towers():
    model = attached("dgl", alpha=0.0)
    found = gradients(model)
    assert all(not value.any() for name, value in found.items() if is_tower(name))
    assert all(found[f"unimodal_heads.{m}.weight"].abs().sum() > 0 for m in range(2))


def test_every_batch_has_its_own_gradient():
    """The second batch of a step must not be given the first one's."""
    whole, parts = gradients(attached("dgl")), gradients(attached("dgl"), parts=4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-6, rtol=1e-4, msg=name)
    assert not torch.allclose(whole["audio_model.embeddings.cls_token"], torch.zeros(1))

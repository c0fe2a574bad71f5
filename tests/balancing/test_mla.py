"""MLA: turns, projection of the shared classifier's gradient, and the published code's defects."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_mmbalance.balancing.mla import extend_projection

from ..model.tiny import tiny_model
from .steps import CLIPS, attached, clips, gradients, some_missing, train


def test_the_projection_by_hand():
    feature = torch.tensor([2.0, 0.0, 1.0])
    r, alpha = feature.double().numpy(), 0.1
    expected = np.eye(3) - np.outer(r, r) / (alpha + r @ r)
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(extend_projection(torch.eye(3), feature, alpha).numpy(), expected, rtol=1e-6)


def test_a_projected_gradient_leaves_outputs_on_earlier_features_alone():
    """With alpha near 0, P r = 0: a step along G P^T does not change W r."""
    r = torch.tensor([1.0, -2.0, 0.5, 3.0])
    projection = extend_projection(torch.eye(4), r, 1e-9)
    gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert (gradient @ projection.T @ r).abs().max() < 1e-5 < (gradient @ r).abs().max()


def logits_gradient(inputs, modality: int) -> dict[str, torch.Tensor]:
    """Gradients of CE(z_m, y) over all clips."""
    model = tiny_model(fusion="mla").train()
    out = model(**{k: v for k, v in inputs.items() if k not in ("clip_index", "labels")})
    ce = torch.nn.functional.cross_entropy(out.modality_logits[:, modality], inputs["labels"], reduction="none")
    present = out.modality_mask[:, modality].bool()
    torch.where(present, ce, 0.0).mean().backward()
    features = out.modality_features[modality].detach()[present].mean(0)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, features


@pytest.mark.parametrize("missing", [False, True])
def test_two_steps_by_hand(missing):
    model = attached("mla")
    projection = np.eye(16)
    for step in range(3):
        inputs = some_missing(clips(step)) if missing else clips(step)
        turn = step % 2
        expected, feature = logits_gradient(inputs, turn)
        found = gradients(model, inputs)
        towers = ("audio_model", "vision_model")
        assert not any(name.startswith(towers[1 - turn]) for name in found)
        for name, value in expected.items():
            if name.startswith(towers[turn]):
                torch.testing.assert_close(found[name], value, atol=1e-7, rtol=1e-4)
        weight = expected["fusion.classifier.weight"].double().numpy()
        if step:  # the public code's search for the name "module.weight" finds nothing: it never projects
            assert not np.allclose(found["fusion.classifier.weight"].numpy(), weight, rtol=1e-3)
            weight = weight @ projection.T
        np.testing.assert_allclose(found["fusion.classifier.weight"].numpy(), weight, atol=1e-6)
        torch.testing.assert_close(found["fusion.classifier.bias"], expected["fusion.classifier.bias"])
        r = feature.double().numpy()
        gain = projection @ r
        alpha = 0.1  # every step here is a whole epoch
        projection = projection - np.outer(gain, gain) / (alpha + r @ gain)
        projection /= np.linalg.norm(projection)
        np.testing.assert_allclose(model.balancing.state["projection"].numpy(), projection, atol=1e-5)


def test_alpha_falls_over_an_epoch_and_starts_again():
    model = attached("mla")
    model.balancing.num_clips = 3 * CLIPS
    found = []
    for step in range(4):
        found.append(model.balancing._alpha())
        gradients(model, clips(step))
    np.testing.assert_allclose(found, [0.1, 0.1 ** (4 / 3), 0.1 ** (5 / 3), 0.1], rtol=1e-5)


def test_the_tower_that_waits_does_not_move_under_momentum_and_decay():
    model = attached("mla")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    train(model, range(2), optimizer=optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, range(1), optimizer=optimizer)  # audio's turn
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"audio_model", "fusion"}


def test_without_projection_gradients_are_as_they_are():
    model = attached("mla", project=False)
    gradients(model, clips(0))
    expected, _ = logits_gradient(clips(1), 1)
    found = gradients(model, clips(1))
    torch.testing.assert_close(found["fusion.classifier.weight"], expected["fusion.classifier.weight"])

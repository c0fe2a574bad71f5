"""OLM's coefficients against hand computations and torch's own Adam."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_mmbalance.balancing.olm import norm_gradient

from ..model.tiny import log_softmax, tiny_model
from .steps import LABELS, attached, clips, gradients, some_missing, train


def test_the_norm_gradient_is_that_of_the_loss():
    generator = torch.Generator().manual_seed(0)
    norms = torch.rand(6, 3, generator=generator) + 0.2
    ratio = torch.tensor([0.7, 1.4, 0.9])
    weights = torch.tensor([1.1, 0.8, 1.3], requires_grad=True)
    n = weights * norms
    target = (n.mean(1, keepdim=True) * ratio).detach()
    (n - target).abs().sum(1).mean().backward()
    torch.testing.assert_close(norm_gradient(weights.detach(), norms, ratio), weights.grad)


def test_a_missing_modality_has_no_part_in_a_clips_mean():
    norms, ratio = torch.tensor([[1.0, 0.0, 3.0]]), torch.ones(3)
    # Mean over the two present: 2; n - mean = -1 and 1.
    assert norm_gradient(torch.ones(3), norms, ratio).tolist() == [-1.0, 0.0, 3.0]


def losses_by_hand(logits: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """CE(w_k z_k, y) of modalities and fusion, summed over the clips that have them, by all clips."""
    found = []
    for k in range(3):
        log_probs = log_softmax(weights[k] * logits[:, k])
        found.append(sum(-log_probs[i, int(y)] for i, y in enumerate(LABELS) if mask[i, k]) / len(LABELS))
    return np.array(found)


@pytest.mark.parametrize("missing", [False, True])
def test_three_steps_by_hand(missing):
    """The model stands still; the coefficients move by torch's Adam on the gradients of both losses."""
    model = attached("olm", learning_rate=0.05)
    reference = torch.ones(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([reference], lr=0.05)
    first = None
    for seed in range(3):
        inputs = some_missing(clips(seed)) if missing else clips(seed)
        plain = tiny_model(fusion="sum").train()
        with torch.no_grad():
            out = plain(**{k: v for k, v in inputs.items() if k != "clip_index"})
        logits = torch.cat([out.modality_logits, out.logits.unsqueeze(1)], dim=1).double()
        mask = torch.cat([out.modality_mask.bool(), torch.ones(8, 1, dtype=torch.bool)], dim=1)
        by_hand = losses_by_hand(logits.numpy(), mask.numpy(), reference.detach().numpy())
        adam.zero_grad()
        ce = torch.nn.functional.cross_entropy(
            (reference.view(1, 3, 1) * logits).flatten(0, 1), LABELS.repeat_interleave(3), reduction="none"
        ).view(8, 3)
        task = torch.where(mask, ce, 0.0).sum(0) / 8
        np.testing.assert_allclose(task.detach().numpy(), by_hand, rtol=1e-9)
        first = by_hand if first is None else first
        ratio = torch.tensor(by_hand / first)
        n = reference * torch.where(mask, logits.norm(dim=-1), 0.0)
        target = ((n.sum(1) / mask.sum(1)).unsqueeze(1) * (ratio / ratio.mean())).detach()
        (task.sum() + torch.where(mask, (n - target).abs(), 0.0).sum(1).mean()).backward()
        model.zero_grad()
        inputs_loss = gradients(model, inputs)  # moves the coefficients, not the model
        assert inputs_loss
        adam.step()
        np.testing.assert_allclose(
            model.balancing.state["coefficients"].numpy(), reference.detach().numpy(), rtol=1e-4
        )
    assert abs(reference.detach().numpy() - 1).max() > 0.05


def test_the_reference_losses_are_those_of_the_first_step():
    """The published code overwrites them until the last batch of the first epoch."""
    model = attached("olm")
    gradients(model, clips(0))
    first = model.balancing.state["first_loss"].clone()
    train(model, range(1, 4))
    assert torch.equal(model.balancing.state["first_loss"], first)


def test_evaluation_does_not_know_the_coefficients():
    model = attached("olm", learning_rate=0.5)
    inputs = {k: v for k, v in clips().items() if k not in ("clip_index", "labels")}
    before = model.eval()(**inputs).logits
    model.train()
    gradients(model)
    after = model.eval()(**inputs).logits
    assert torch.equal(before, after)
    assert (model.balancing.state["coefficients"] - 1).abs().max() > 0.4


def test_the_reference_of_a_modality_that_the_first_step_lacks_is_that_of_its_own_first_step():
    """The coefficients learn all the same."""
    model = attached("olm")
    state = model.balancing.state
    silent = {key: value for key, value in clips(0).items() if key != "input_values"}
    gradients(model, silent)
    assert state["first_loss"].tolist()[0] == 0 < min(state["first_loss"].tolist()[1:])
    moved = state["coefficients"].clone()
    assert moved[0] == 1 and (moved[1:] != 1).all()
    gradients(model, clips(1))
    assert (state["first_loss"] > 0).all() and (state["coefficients"] != moved).all()

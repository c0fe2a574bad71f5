"""MMPareto against a search over weights, and the defect of a public re-implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_mmbalance.balancing.mmpareto import min_norm_weight

from ..model.tiny import tiny_model
from .steps import attached, by_tower, gradients, plain_gradients


@pytest.mark.parametrize(
    ("joint", "unimodal"),
    [((1.0, 0.0), (-1.0, 1.0)), ((1.0, 0.0), (-3.0, 0.1)), ((4.0, 0.0), (-0.1, 0.1)), ((1.0, 1.0), (2.0, 3.0))],
)
def test_the_weight_is_that_of_the_shortest_vector(joint, unimodal):
    j, u = np.array(joint), np.array(unimodal)
    weights = np.linspace(0, 1, 200_001)
    lengths = np.linalg.norm(weights[:, None] * j + (1 - weights[:, None]) * u, axis=1)
    found = min_norm_weight(*(torch.tensor(float(value)) for value in (j @ j, j @ u, u @ u)))
    assert found.item() == pytest.approx(weights[lengths.argmin()], abs=1e-5)


def combined(joint: np.ndarray, unimodal: np.ndarray, gamma: float) -> np.ndarray:
    """The formula, with the weight by search."""
    if joint @ unimodal > 0:
        return gamma * (joint + unimodal)
    weights = np.linspace(0, 1, 20_001)
    jj, ju, uu = joint @ joint, joint @ unimodal, unimodal @ unimodal
    weight = weights[(weights**2 * jj + 2 * weights * (1 - weights) * ju + (1 - weights) ** 2 * uu).argmin()]
    vector = 2 * (weight * joint + (1 - weight) * unimodal)
    lengthen = max(1.0, np.linalg.norm(joint + unimodal) / np.linalg.norm(vector))
    return gamma * lengthen * vector


def weighted(fused: float, unimodal: float):
    """A model by the weights of its losses; a fused weight below 0 turns its gradient against the unimodal one."""
    model = tiny_model(fusion="sum").train()
    model.config.fused_loss_weight, model.config.unimodal_loss_weight = fused, unimodal
    return model


@pytest.mark.parametrize("gamma", [1.0, 1.5])
@pytest.mark.parametrize("fused", [1.0, -1.0, -0.2])
def test_gradients_of_each_tower_by_hand(gamma, fused):
    joint, unimodal = (by_tower(gradients(weighted(*weights))) for weights in ((fused, 0.0), (0.0, 1.0)))
    assert all((j @ u > 0) == (fused > 0) for j, u in zip(joint, unimodal, strict=True))
    found = by_tower(gradients(attached("mmpareto", model=weighted(fused, 1.0), gamma=gamma)))
    for g, j, u in zip(found, joint, unimodal, strict=True):
        expected = combined(j.double().numpy(), u.double().numpy(), gamma)
        np.testing.assert_allclose(g.numpy(), expected, atol=1e-3 * np.abs(expected).max())


def test_heads_learn_by_both_losses():
    expected = plain_gradients("sum", fused_loss_weight=1.0, unimodal_loss_weight=1.0)
    found = gradients(attached("mmpareto"))
    for name in (name for name in expected if name.startswith("unimodal_heads")):
        torch.testing.assert_close(found[name], expected[name])


def test_the_two_gradients_are_kept_apart():
    """Read after the backward of all losses, they would be one vector: cosine 1, and never a conflict."""
    model = attached("mmpareto", model=weighted(-1.0, 1.0))
    seen = []
    method = model.balancing
    combine = method.combine
    method.combine = lambda parameters, unimodal: (
        seen.append((torch.cat([p.grad.flatten() for p in parameters]), torch.cat([u.flatten() for u in unimodal]))),
        combine(parameters, unimodal),
    )
    gradients(model)
    cosines = [torch.cosine_similarity(total - own, own, dim=0).item() for total, own in seen]
    assert len(cosines) == 2 and max(cosines) < 0


def test_a_gradient_that_overflowed_is_left_to_the_scaler():
    model = attached("mmpareto")
    method = model.balancing
    parameters = method.tower_parameters()[0][:1]
    parameters[0].grad = torch.full_like(parameters[0], float("inf"))
    method.combine(parameters, [torch.ones_like(parameters[0])])
    assert not torch.isfinite(parameters[0].grad).any()
    parameters[0].grad = torch.full_like(parameters[0], 2.0)
    method.combine(parameters, [torch.full_like(parameters[0], float("inf"))])
    assert not torch.isfinite(parameters[0].grad).any()


@pytest.mark.parametrize("factor", [-1.0, -3.0, -0.7])
def test_opposite_gradients_cancel_and_nothing_is_lengthened(factor):
    """The shortest vector is 0 but for rounding, which has no direction: lengthened, it would be infinite."""
    method = attached("mmpareto").balancing
    parameters = method.tower_parameters()[0]
    generator = torch.Generator().manual_seed(0)
    own = [torch.randn(parameter.shape, generator=generator) for parameter in parameters]
    for parameter, gradient in zip(parameters, own, strict=True):
        parameter.grad = factor * gradient + gradient
    length = torch.cat([gradient.flatten() for gradient in own]).norm()
    method.combine(parameters, [gradient.clone() for gradient in own])
    assert torch.cat([parameter.grad.flatten() for parameter in parameters]).norm() < 1e-3 * length

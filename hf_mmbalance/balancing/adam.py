"""Learned parameters of a balancing method: updated by an Adam in the method's state, not by the model's optimiser."""

from __future__ import annotations

import torch

from hf_mmbalance.balancing.method import BalancingMethod


def adam_state(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the entries of the state for a parameter with this initial value."""
    return {name: value, f"{name}.moment": torch.zeros_like(value), f"{name}.square": torch.zeros_like(value)}


def learned_parameter(method: BalancingMethod, name: str) -> torch.Tensor:
    """Return the parameter for use in a batch's loss; its gradient is collected."""
    value = method.state[name].clone().requires_grad_()
    value.register_hook(lambda gradient: method.collect(**{f"{name}.gradient": gradient}))
    return value


def adam_step(
    method: BalancingMethod,
    name: str,
    totals: dict[str, torch.Tensor],
    learning_rate: float,
    more: float | torch.Tensor = 0.0,
) -> None:
    """Update the parameter by the step's mean gradient plus `more` (Kingma & Ba, 2015; betas 0.9 and 0.999).

    After an overflow in float16 it stays unchanged, since the model's step is skipped, too.
    """
    gradient = method.mean_gradient(totals[f"{name}.gradient"]) + more
    if not torch.isfinite(gradient).all():
        return
    state, number = method.state, method.step + 1
    state[f"{name}.moment"] = 0.9 * state[f"{name}.moment"] + 0.1 * gradient
    state[f"{name}.square"] = 0.999 * state[f"{name}.square"] + 0.001 * gradient**2
    moment = state[f"{name}.moment"] / (1 - 0.9**number)
    square = state[f"{name}.square"] / (1 - 0.999**number)
    state[name] = state[name] - learning_rate * moment / (square.sqrt() + 1e-8)

"""Minimising a loss written with torch (the head's own functions) by L-BFGS-B."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits


Bounds = Sequence[tuple[float | None, float | None]]


def minimise(
    loss: Callable[[torch.Tensor], torch.Tensor], start: np.ndarray, bounds: Bounds | None = None
) -> np.ndarray:
    """The minimiser of `loss`, a scalar of a flat float64 tensor.

    Stops where a step gains less than 1e-6 nats per clip, far below any standard error.

    Args:
        loss: differentiable by autograd.
        start: first point.
        bounds: lower and upper end per parameter; None where free.
    """

    def value_and_gradient(theta: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        value = loss(free)
        (gradient,) = torch.autograd.grad(value, free)
        return value.item(), gradient.numpy()

    options = {"maxiter": 300, "maxcor": 20, "ftol": 1e-6, "gtol": 1e-5}
    found = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.asarray(found.x)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch and BLAS: the products are small and many, a second one costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(before)

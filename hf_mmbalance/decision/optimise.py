"""Minimisation, by L-BFGS-B, of a loss written in torch with the head's own functions."""

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
    """Return the minimiser of `loss`, a scalar function of a flat float64 tensor.

    The search stops when a step gains less than 1e-6 nats per clip, far below any standard error.

    Args:
        loss: function that autograd can differentiate.
        start: starting point.
        bounds: lower and upper bound per parameter; None where there is none.
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
    """Limit torch and BLAS to one thread: with many small products, a second thread costs more than it gains."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(before)

"""The best possible fusion of modalities that show a wrong signature with a known probability, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np


@dataclass(frozen=True)
class BayesOptimum:
    """Fusion of votes that err independently given the class.

    Modality m shows the signature of the clip's class c with probability `1 - error[m, c]`, else that of another
    class, each alike. The log joint probability of class c and the shown signatures s is then a weighted vote plus a
    bias: `log prior_c + sum_m [s_m = c] w_mc + sum_m log(error_mc / (C - 1))` with
    `w_mc = log((1 - error_mc) (C - 1) / error_mc)` (the naive-Bayes combination of classifiers; Kuncheva,
    Combining Pattern Classifiers, 2nd ed., section 4.3).

    Args:
        error: `(M, C)` in (0, 1).
        prior: `(C,)`, positive, summing to 1.
    """

    error: np.ndarray
    prior: np.ndarray

    def __post_init__(self) -> None:
        error, prior = np.asarray(self.error, dtype=np.float64), np.asarray(self.prior, dtype=np.float64)
        if error.ndim != 2 or prior.shape != error.shape[1:] or error.shape[1] < 2:
            raise ValueError(f"error must be (M, C) with C >= 2 and prior (C,), got {error.shape} and {prior.shape}")
        if not ((error > 0) & (error < 1)).all():
            raise ValueError("error rates must lie strictly between 0 and 1")
        if not (prior > 0).all() or abs(prior.sum() - 1) > 1e-6:
            raise ValueError(f"the class prior must be positive and sum to 1, got {prior.tolist()}")
        object.__setattr__(self, "error", error)
        object.__setattr__(self, "prior", prior)

    @property
    def num_classes(self) -> int:
        return self.error.shape[1]

    @cached_property
    def weights(self) -> np.ndarray:
        """`(M, C)`: log-odds weight of a modality's vote for a class."""
        return np.log((1 - self.error) * (self.num_classes - 1) / self.error)

    @cached_property
    def bias(self) -> np.ndarray:
        """`(C,)`: what a class has before any vote for it."""
        return np.log(self.prior) + np.log(self.error / (self.num_classes - 1)).sum(0)

    @cached_property
    def accuracy(self) -> float:
        """Accuracy of the optimum: no classifier of these signatures can be better in the mean."""
        return float(np.exp(self._log_joint).max(1).sum())

    @cached_property
    def unimodal_accuracy(self) -> np.ndarray:
        """`(M,)`: the optimum with one modality alone."""
        return np.array([(self._likelihood(m) * self.prior).max(1).sum() for m in range(len(self.error))])

    @cached_property
    def vote_accuracy(self) -> float:
        """Accuracy of counting votes, each one alike; ties are broken at random."""
        votes = np.zeros_like(self._log_joint)
        for modality in self._combinations.T:
            votes[np.arange(len(votes)), modality] += 1
        first = votes == votes.max(1, keepdims=True)
        return float((np.exp(self._log_joint) * first / first.sum(1, keepdims=True)).sum())

    @cached_property
    def posterior_sum_accuracy(self) -> float:
        """Accuracy of adding up the perfect unimodal log-posteriors: they count the prior once too often each."""
        total = np.zeros_like(self._log_joint)
        for m, modality in enumerate(self._combinations.T):
            posterior = self._likelihood(m) * self.prior
            total += np.log(posterior / posterior.sum(1, keepdims=True))[modality]
        return float(np.exp(self._log_joint)[np.arange(len(total)), total.argmax(1)].sum())

    def scores(self, shown: np.ndarray) -> np.ndarray:
        """Log joint probability `(N, C)` of class and shown signatures `(N, M)`."""
        shown = np.asarray(shown)
        votes = shown[:, :, None] == np.arange(self.num_classes)
        return self.bias + (votes * self.weights).sum(1)

    def predict(self, shown: np.ndarray) -> np.ndarray:
        """Best class `(N,)` for shown signatures `(N, M)`."""
        return self.scores(shown).argmax(1)

    def _likelihood(self, modality: int) -> np.ndarray:
        """`(C shown, C class)`."""
        wrong = np.tile(self.error[modality] / (self.num_classes - 1), (self.num_classes, 1))
        return np.where(np.eye(self.num_classes, dtype=bool), 1 - self.error[modality], wrong)

    @cached_property
    def _combinations(self) -> np.ndarray:
        return np.array(list(product(range(self.num_classes), repeat=len(self.error))))

    @cached_property
    def _log_joint(self) -> np.ndarray:
        return self.scores(self._combinations)

"""Best possible fusion, in closed form, of modalities that show a wrong signature with a known probability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np


@dataclass(frozen=True)
class BayesOptimum:
    """Optimal fusion of votes whose errors are independent given the class; some clips lack some votes.

    In a clip of class c, modality m is corrupted with probability `corrupted[m]`, independently of the class, and then
    shows no signature. Otherwise it shows the signature of class c with probability `1 - error[m, c]`, else that of a
    different class, all with equal probability. **The optimum knows** all these rates and the class prior. For every
    clip, it knows which modalities are corrupted (noise is easy to distinguish from a signature) and which signatures
    the others show, but not whether a shown signature is the right one.

    Let S be the modalities that are not corrupted. The log joint probability of class c and the shown signatures s is
    a weighted vote plus a bias: `log prior_c + sum_{m in S} ([s_m = c] w_mc + log(error_mc / (C - 1)))` with
    `w_mc = log((1 - error_mc) (C - 1) / error_mc)` (the naive-Bayes combination of classifiers; Kuncheva,
    Combining Pattern Classifiers, 2nd ed., section 4.3). Accuracies are sums over all S and all signatures.

    Args:
        error: error rate of every modality and class, `(M, C)` in (0, 1).
        prior: class prior `(C,)`, positive, summing to 1.
        corrupted: rate of corruption of every modality, `(M,)` in [0, 1); empty for none.
    """

    error: np.ndarray
    prior: np.ndarray
    corrupted: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        error, prior = np.asarray(self.error, dtype=np.float64), np.asarray(self.prior, dtype=np.float64)
        if error.ndim != 2 or prior.shape != error.shape[1:] or error.shape[1] < 2:
            raise ValueError(f"error must be (M, C) with C >= 2 and prior (C,), got {error.shape} and {prior.shape}")
        if not ((error > 0) & (error < 1)).all():
            raise ValueError("error rates must lie strictly between 0 and 1")
        if not (prior > 0).all() or abs(prior.sum() - 1) > 1e-6:
            raise ValueError(f"the class prior must be positive and sum to 1, got {prior.tolist()}")
        corrupted = np.asarray(self.corrupted, dtype=np.float64)
        corrupted = corrupted if len(corrupted) else np.zeros(len(error))
        if corrupted.shape != error.shape[:1] or not ((corrupted >= 0) & (corrupted < 1)).all():
            raise ValueError(f"corrupted must be {len(error)} rates in [0, 1), got {corrupted.tolist()}")
        object.__setattr__(self, "error", error)
        object.__setattr__(self, "prior", prior)
        object.__setattr__(self, "corrupted", corrupted)

    @property
    def num_classes(self) -> int:
        return self.error.shape[1]

    @cached_property
    def weights(self) -> np.ndarray:
        """`(M, C)`: log-odds weight of a modality's vote for a class."""
        return np.log((1 - self.error) * (self.num_classes - 1) / self.error)

    @cached_property
    def accuracy(self) -> float:
        """Accuracy of the optimum: on average, no classifier of these clips can be better."""
        return self._mean_accuracy(lambda joint, present: joint)

    @cached_property
    def unimodal_accuracy(self) -> np.ndarray:
        """`(M,)`: accuracy of the optimum with one modality only."""
        single = [
            BayesOptimum(self.error[m : m + 1], self.prior, self.corrupted[m : m + 1]) for m in range(len(self.error))
        ]
        return np.array([optimum.accuracy for optimum in single])

    @cached_property
    def vote_accuracy(self) -> float:
        """Accuracy of counting the shown votes with equal weight; ties are broken at random."""

        def count(joint: np.ndarray, present: np.ndarray) -> np.ndarray:
            return (self._combinations[:, present, None] == np.arange(self.num_classes)).sum(1)

        return self._mean_accuracy(count)

    @cached_property
    def posterior_sum_accuracy(self) -> float:
        """Accuracy of the sum of the exact unimodal log-posteriors, which counts the prior once per modality.

        The posterior of a corrupted modality is the prior.
        """
        single = [
            np.log(self.prior) + self._log_likelihood[m][self._combinations[:, m]] for m in range(len(self.error))
        ]
        single = [scores - np.logaddexp.reduce(scores, axis=1, keepdims=True) for scores in single]

        def total(joint: np.ndarray, present: np.ndarray) -> np.ndarray:
            missing = (len(present) - present.sum()) * np.log(self.prior)
            return missing + sum((single[m] for m in np.flatnonzero(present)), np.zeros_like(joint))

        return self._mean_accuracy(total)

    def scores(self, shown: np.ndarray, corrupted: np.ndarray | None = None) -> np.ndarray:
        """Return the log joint probability `(N, C)` of class and shown signatures.

        Args:
            shown: `(N, M)`, the class whose signature each modality shows.
            corrupted: `(N, M)`, true where a modality shows no signature; by default nowhere.
        """
        shown = np.asarray(shown)
        terms = np.stack([table[shown[:, m]] for m, table in enumerate(self._log_likelihood)], axis=1)
        if corrupted is not None:
            terms = np.where(np.asarray(corrupted)[:, :, None], 0.0, terms)
        return np.log(self.prior) + terms.sum(1)

    def predict(self, shown: np.ndarray, corrupted: np.ndarray | None = None) -> np.ndarray:
        """Return the most probable class `(N,)` for shown signatures `(N, M)`."""
        return self.scores(shown, corrupted).argmax(1)

    def _mean_accuracy(self, rule: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
        """Return the accuracy of a rule that predicts the class with the largest score, ties broken at random.

        `rule` maps the log joint probability `(C^M, C)` and the modalities present `(M,)` to scores of that shape.
        """
        total = 0.0
        for absent in product((False, True), repeat=len(self.error)):
            corrupted = np.array(absent)
            chance = np.where(corrupted, self.corrupted, 1 - self.corrupted).prod()
            # Signatures of absent modalities do not matter: each combination is counted C times for each of them.
            repeats = self.num_classes ** corrupted.sum()
            joint = self.scores(self._combinations, np.broadcast_to(corrupted, self._combinations.shape))
            scores = rule(joint, ~corrupted)
            best = scores >= scores.max(1, keepdims=True) - 1e-12
            total += chance * (np.exp(joint) * best / best.sum(1, keepdims=True)).sum() / repeats
        return float(total)

    @cached_property
    def _log_likelihood(self) -> list[np.ndarray]:
        """For each modality `(C shown, C class)`: log probability of a signature given the class."""
        right = np.eye(self.num_classes, dtype=bool)
        return [np.log(np.where(right, 1 - error, error / (self.num_classes - 1))) for error in self.error]

    @cached_property
    def _combinations(self) -> np.ndarray:
        return np.array(list(product(range(self.num_classes), repeat=len(self.error))))

"""The closed form against enumeration and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hf_mmbalance.data.bayes import BayesOptimum


ERROR = np.array([[0.1, 0.3, 0.6], [0.5, 0.2, 0.05], [0.4, 0.45, 0.3]])
PRIOR = np.array([0.5, 0.2, 0.3])


def joint(error: np.ndarray, prior: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """P(class, shown) by the definition, one combination after the other."""
    table = {}
    for shown in product(range(len(prior)), repeat=len(error)):
        row = []
        for c in range(len(prior)):
            p = prior[c]
            for m, s in enumerate(shown):
                p *= 1 - error[m, c] if s == c else error[m, c] / (len(prior) - 1)
            row.append(p)
        table[shown] = np.array(row)
    return table


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_against_enumeration(modalities):
    error, table = ERROR[:modalities], joint(ERROR[:modalities], PRIOR)
    optimum = BayesOptimum(error, PRIOR)
    assert sum(row.sum() for row in table.values()) == pytest.approx(1)
    assert optimum.accuracy == pytest.approx(sum(row.max() for row in table.values()))
    shown = np.array(list(table))
    np.testing.assert_allclose(np.exp(optimum.scores(shown)), list(table.values()))
    np.testing.assert_array_equal(optimum.predict(shown), [row.argmax() for row in table.values()])
    for m in range(modalities):
        alone = joint(error[m : m + 1], PRIOR)
        assert optimum.unimodal_accuracy[m] == pytest.approx(sum(row.max() for row in alone.values()))
    vote = 0.0
    for combination, row in table.items():
        counts = np.bincount(combination, minlength=3)
        vote += row[counts == counts.max()].mean()
    assert optimum.vote_accuracy == pytest.approx(vote)
    total = 0.0
    for combination, row in table.items():
        logs = np.zeros(3)
        for m, s in enumerate(combination):
            alone = joint(error[m : m + 1], PRIOR)[(s,)]
            logs += np.log(alone / alone.sum())
        total += row[logs.argmax()]
    assert optimum.posterior_sum_accuracy == pytest.approx(total)


def test_weights_are_log_odds():
    optimum = BayesOptimum(np.array([[0.2, 0.5]]), np.array([0.5, 0.5]))
    np.testing.assert_allclose(optimum.weights, [[np.log(4.0), 0.0]])


def test_against_simulation():
    optimum, rng = BayesOptimum(ERROR, PRIOR), np.random.default_rng(0)
    labels = rng.choice(3, size=200_000, p=PRIOR)
    wrong = rng.random((len(labels), 3)) < ERROR.T[labels]
    shown = np.where(wrong, (labels[:, None] + rng.integers(1, 3, size=wrong.shape)) % 3, labels[:, None])
    assert (optimum.predict(shown) == labels).mean() == pytest.approx(optimum.accuracy, abs=0.004)
    for m in range(3):
        best = BayesOptimum(ERROR[m : m + 1], PRIOR).predict(shown[:, m : m + 1])
        assert (best == labels).mean() == pytest.approx(optimum.unimodal_accuracy[m], abs=0.004)


@pytest.mark.parametrize(
    ("error", "prior"),
    [([[0.0, 0.5]], [0.5, 0.5]), ([[0.1, 0.5]], [0.5, 0.6]), ([[0.1, 0.5]], [1.0]), ([0.1, 0.5], [0.5, 0.5])],
)
def test_senseless_rates(error, prior):
    with pytest.raises(ValueError, match="error|prior"):
        BayesOptimum(np.array(error), np.array(prior))

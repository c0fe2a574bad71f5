"""The closed form against enumeration and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hf_mmbalance.data.bayes import BayesOptimum


ERROR = np.array([[0.1, 0.3, 0.6], [0.5, 0.2, 0.05], [0.4, 0.45, 0.3]])
PRIOR = np.array([0.5, 0.2, 0.3])
CORRUPTED = np.array([0.3, 0.0, 0.15])
Shown = tuple[int | None, ...]  # None: corrupted


def joint(error: np.ndarray, prior: np.ndarray, corrupted: np.ndarray) -> dict[Shown, np.ndarray]:
    """P(class, what is shown) by the definition, one combination after the other."""
    table = {}
    for shown in product([*range(len(prior)), None], repeat=len(error)):
        row = []
        for c in range(len(prior)):
            p = prior[c]
            for m, s in enumerate(shown):
                if s is None:
                    p *= corrupted[m]
                else:
                    p *= (1 - corrupted[m]) * (1 - error[m, c] if s == c else error[m, c] / (len(prior) - 1))
            row.append(p)
        table[shown] = np.array(row)
    return table


@pytest.mark.parametrize("corrupted", [np.zeros(3), CORRUPTED])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_against_enumeration(modalities, corrupted):
    error, corrupted = ERROR[:modalities], corrupted[:modalities]
    table, optimum = joint(error, PRIOR, corrupted), BayesOptimum(error, PRIOR, corrupted)
    assert sum(row.sum() for row in table.values()) == pytest.approx(1)
    assert optimum.accuracy == pytest.approx(sum(row.max() for row in table.values()))
    single = [joint(error[m : m + 1], PRIOR, corrupted[m : m + 1]) for m in range(modalities)]
    for m in range(modalities):
        assert optimum.unimodal_accuracy[m] == pytest.approx(sum(row.max() for row in single[m].values()))
    vote = total = 0.0
    for combination, row in table.items():
        counts = np.bincount([s for s in combination if s is not None], minlength=3)
        vote += row[counts == counts.max()].mean()
        logs = np.zeros(3)
        for m, s in enumerate(combination):
            posterior = PRIOR if s is None else single[m][(s,)] / single[m][(s,)].sum()
            logs += np.log(posterior)
        total += row[logs.argmax()]
    assert optimum.vote_accuracy == pytest.approx(vote)
    assert optimum.posterior_sum_accuracy == pytest.approx(total)


def test_scores_are_the_log_joint_given_what_is_corrupted():
    optimum = BayesOptimum(ERROR, PRIOR, CORRUPTED)
    table = joint(ERROR, PRIOR, CORRUPTED)
    for combination, row in table.items():
        corrupted = np.array([[s is None for s in combination]])
        shown = np.array([[s or 0 for s in combination]])
        pattern = np.where(corrupted[0], CORRUPTED, 1 - CORRUPTED).prod()
        np.testing.assert_allclose(np.exp(optimum.scores(shown, corrupted)[0]) * pattern, row)
        if row.sum():
            assert optimum.predict(shown, corrupted)[0] == row.argmax()


def test_weights_are_log_odds():
    optimum = BayesOptimum(np.array([[0.2, 0.5]]), np.array([0.5, 0.5]))
    np.testing.assert_allclose(optimum.weights, [[np.log(4.0), 0.0]])
    assert optimum.accuracy == pytest.approx(0.65) and optimum.corrupted.tolist() == [0.0]


def test_corruption_in_closed_form():
    """One modality: the optimum is right where it is shown and, where it is not, guesses the most frequent class."""
    optimum = BayesOptimum(np.array([[0.2, 0.2]]), np.array([0.6, 0.4]), np.array([0.5]))
    assert optimum.accuracy == pytest.approx(0.5 * 0.8 + 0.5 * 0.6)


def test_against_simulation():
    optimum, rng = BayesOptimum(ERROR, PRIOR, CORRUPTED), np.random.default_rng(0)
    labels = rng.choice(3, size=200_000, p=PRIOR)
    wrong = rng.random((len(labels), 3)) < ERROR.T[labels]
    shown = np.where(wrong, (labels[:, None] + rng.integers(1, 3, size=wrong.shape)) % 3, labels[:, None])
    corrupted = rng.random((len(labels), 3)) < CORRUPTED
    assert (optimum.predict(shown, corrupted) == labels).mean() == pytest.approx(optimum.accuracy, abs=0.004)
    for m in range(3):
        best = BayesOptimum(ERROR[m : m + 1], PRIOR).predict(shown[:, m : m + 1], corrupted[:, m : m + 1])
        assert (best == labels).mean() == pytest.approx(optimum.unimodal_accuracy[m], abs=0.004)
    # A rule that does not know what is corrupted is worse; one that sees what corruption hides is better.
    assert (BayesOptimum(ERROR, PRIOR).predict(shown) == labels).mean() > optimum.accuracy + 0.01
    hidden = np.where(corrupted, rng.integers(0, 3, size=shown.shape), shown)
    assert (optimum.predict(hidden) == labels).mean() < optimum.accuracy - 0.01


@pytest.mark.parametrize(
    ("error", "prior", "corrupted"),
    [
        ([[0.0, 0.5]], [0.5, 0.5], []),
        ([[0.1, 0.5]], [0.5, 0.6], []),
        ([[0.1, 0.5]], [1.0], []),
        ([0.1, 0.5], [0.5, 0.5], []),
        ([[0.1, 0.5]], [0.5, 0.5], [1.0]),
        ([[0.1, 0.5]], [0.5, 0.5], [0.1, 0.1]),
    ],
)
def test_invalid_rates_are_refused(error, prior, corrupted):
    with pytest.raises(ValueError, match="error|prior|corrupted"):
        BayesOptimum(np.array(error), np.array(prior), np.array(corrupted))

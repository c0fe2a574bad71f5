"""The families' fits: gradients, optimality, shrinkage to the parent, unseen classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.linear_model import LogisticRegression

from hf_mmbalance.decision import families
from hf_mmbalance.decision.families import FitData, alone, fit_gate, fit_linear, fit_weights
from hf_mmbalance.decision.head import HeadState
from hf_mmbalance.decision.objective import fit_temperature, fit_temperatures
from hf_mmbalance.metrics.measures import log_softmax, nll

from .drawn_tables import draw


def parts(**options: Any) -> tuple[np.ndarray, np.ndarray, HeadState]:
    data = draw(**options)
    base = HeadState.plain_sum(*data["logits"].shape[1:])
    return (
        data["logits"],
        data["labels"],
        base.replace(log_temperature=fit_temperatures(data["logits"], data["labels"])),
    )


@pytest.mark.parametrize("modalities", [2, 3])
def test_gradients_are_exact(modalities: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels, base = parts(n=50, modalities=modalities, classes=3, missing=0.2)
    rng = np.random.default_rng(0)
    checked = []

    def check(objective: Any, start: np.ndarray, bounds: Any = None) -> np.ndarray:
        theta = start + 0.1 * rng.random(start.shape)
        value, gradient = objective(theta.copy())
        numeric = approx_fprime(theta, lambda t: objective(t.copy())[0], 1e-6)
        np.testing.assert_allclose(gradient, numeric, atol=2e-5)
        checked.append(value)
        return theta

    monkeypatch.setattr(families, "minimise", check)
    data = FitData.of(base.calibrated(logits), labels)
    for tied in (True, False):
        for with_bias in (True, False):
            state = fit_weights(data, base, 2.0, base, tied=tied, with_bias=with_bias)
    gate = fit_gate(data, state, 2.0, state, per_class=False)
    fit_gate(data, gate, 2.0, gate, per_class=True)
    linear = fit_linear(FitData.of(log_softmax(logits), labels), state, 2.0, None)
    alone(linear, logits, labels)
    assert len(checked) == 7 + modalities


def test_temperature_finds_the_true_one() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(size=(20000, 5)) * 1.5
    labels = np.array([rng.choice(5, p=np.exp(row)) for row in log_softmax(true)])
    assert np.exp(fit_temperature(2.5 * true, labels)) == pytest.approx(2.5, rel=0.03)


def test_temperature_of_a_faultless_tower_stays_bounded() -> None:
    logits = 5 * np.eye(3)[np.arange(30) % 3]
    assert -4 <= fit_temperature(logits, np.arange(30) % 3) < 0


def test_global_weights_recover_the_temperatures() -> None:
    logits, labels, base = parts(n=4000)
    plain = HeadState.plain_sum(2, 4)
    state = fit_weights(FitData.of(log_softmax(logits), labels), plain, 1e-3, plain, tied=True, with_bias=True)
    # the first tower is four times too sure: its weight must be a quarter of the second's
    assert state.weights[0, 0] / state.weights[1, 0] == pytest.approx(0.25, rel=0.12)
    assert np.ptp(state.weights, axis=1).max() == pytest.approx(0)


def test_every_rung_fits_better_than_its_parent_in_sample() -> None:
    logits, labels, base = parts(n=500)
    data = FitData.of(base.calibrated(logits), labels)
    tied = fit_weights(data, base, 0.3, base, tied=True, with_bias=False)
    free = fit_weights(data, tied, 0.3, tied, tied=False, with_bias=False)
    both = fit_weights(data, free, 0.3, free, tied=False, with_bias=True)
    gate = fit_gate(data, both, 0.3, both, per_class=False)
    by_class = fit_gate(data, gate, 0.3, gate, per_class=True)
    losses = [nll(state.fuse(logits)[0], labels) for state in (base, tied, free, both, gate, by_class)]
    assert losses == sorted(losses, reverse=True)


def test_strong_shrinkage_is_the_parent() -> None:
    logits, labels, base = parts(n=300, modalities=3, missing=0.2)
    data = FitData.of(base.calibrated(logits), labels)
    parent = fit_weights(data, base, 1.0, base, tied=False, with_bias=True)
    want = log_softmax(parent.fuse(logits)[0])
    for got in (
        fit_weights(data, parent, 1e9, parent, tied=False, with_bias=True),
        fit_gate(data, parent, 1e9, parent, per_class=True),
    ):
        np.testing.assert_allclose(log_softmax(got.fuse(logits)[0]), want, atol=1e-4)


def test_linear_agrees_with_logistic_regression() -> None:
    logits, labels, _ = parts(n=400, classes=3)
    plain = HeadState.plain_sum(2, 3)
    got = fit_linear(FitData.of(log_softmax(logits), labels), plain, 1e-2, None)
    x = log_softmax(logits).reshape(len(labels), -1)
    other = LogisticRegression(C=1e2, max_iter=5000).fit(x, labels)
    loss = -other.predict_log_proba(x)[np.arange(len(labels)), labels].mean()
    assert nll(got.fuse(logits)[0], labels) == pytest.approx(loss, abs=2e-3)


def test_linear_speaks_calibrated_with_one_modality_and_fusion_stays() -> None:
    logits, labels, base = parts(n=2000)
    linear = fit_linear(FitData.of(log_softmax(logits), labels), base, 1.0, None)
    settled = alone(linear, logits, labels)
    np.testing.assert_allclose(log_softmax(settled.fuse(logits)[0]), log_softmax(linear.fuse(logits)[0]), atol=1e-9)
    for m in range(2):
        single = np.where((np.arange(2) == m)[:, None], logits, np.nan)
        assert nll(settled.fuse(single)[0], labels) <= nll(linear.fuse(single)[0], labels) + 1e-9
        assert nll(settled.fuse(single)[0], labels) < nll(base.fuse(single)[0], labels) + 0.02


def test_a_class_without_clips_keeps_its_parent() -> None:
    logits, labels, base = parts(n=400, classes=4)
    kept = labels != 3
    data = FitData.of(base.calibrated(logits[kept]), labels[kept])
    state = fit_weights(data, base, 1.0, base, tied=False, with_bias=True)
    np.testing.assert_allclose(state.weights[:, 3], base.weights[:, 3])
    assert state.bias[3] == 0
    # the others' biases are not pushed up against the absent class
    assert abs(state.bias[:3].mean()) < 1e-6
    assert (state.fuse(logits[~kept])[0].argmax(axis=1) == 3).mean() > 0.5

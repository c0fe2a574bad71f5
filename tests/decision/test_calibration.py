"""Calibrations of one modality."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone

from hf_mmbalance.decision.calibration import CALIBRATIONS, DirichletCalibration, VectorScaling, calibrated_state
from hf_mmbalance.metrics.measures import ece, log_softmax, nll


def distorted(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, 4)) * 2
    labels = np.array([rng.choice(4, p=np.exp(row)) for row in log_softmax(true)])
    return log_softmax(true), 3 * log_softmax(true) + np.array([2.0, 0.0, 0.0, -2.0]), labels


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_each_lowers_nll_and_ece_of_a_distorted_tower(kind: str) -> None:
    _, logits, labels = distorted()
    held, held_labels = distorted(seed=1)[1:]
    fitted = clone(CALIBRATIONS[kind]()).fit(logits, labels)
    after = fitted.transform(held)
    np.testing.assert_allclose(np.exp(after).sum(axis=1), 1)
    assert nll(after, held_labels) < nll(held, held_labels) - 0.3
    assert ece(after, held_labels) < 0.5 * ece(held, held_labels)


@pytest.mark.parametrize("kind", ["vector", "dirichlet"])
def test_biased_towers_are_undone(kind: str) -> None:
    _, logits, labels = distorted()
    true, held, held_labels = distorted(seed=1)
    after = CALIBRATIONS[kind]().fit(logits, labels).transform(held)
    assert nll(after, held_labels) == pytest.approx(nll(true, held_labels), abs=0.01)


def test_temperature_leaves_decisions() -> None:
    _, logits, labels = distorted()
    after = CALIBRATIONS["temperature"]().fit(logits, labels).transform(logits)
    assert (after.argmax(axis=1) == logits.argmax(axis=1)).all()


def test_odir_shrinks_off_diagonal_and_intercept() -> None:
    _, logits, labels = distorted(n=300)
    free = DirichletCalibration(strength=0.1, bias_strength=0.1).fit(logits, labels)
    stiff = DirichletCalibration(strength=1e6, bias_strength=1e6).fit(logits, labels)
    off = ~np.eye(4, dtype=bool)
    assert free.map_ is not None and stiff.map_ is not None and stiff.bias_ is not None
    assert np.abs(stiff.map_[off]).max() < 1e-3 < np.abs(free.map_[off]).max()
    assert np.abs(stiff.bias_).max() < 1e-3
    assert np.abs(np.diag(stiff.map_) - 1).max() > 0.01  # the diagonal is free


def test_absent_class_is_left_alone() -> None:
    _, logits, labels = distorted(n=600)
    kept = labels != 2
    fitted = VectorScaling().fit(logits[kept], labels[kept])
    assert fitted.scale_ is not None and fitted.bias_ is not None
    assert fitted.scale_[2] == 1 and fitted.bias_[2] == 0


def test_head_states_say_the_same() -> None:
    _, logits, labels = distorted(n=300)
    both = np.stack([logits, logits[::-1]], axis=1)
    for kind in ("temperature", "vector", "dirichlet"):
        state = calibrated_state(kind, both, labels)
        want = CALIBRATIONS[kind]().fit(logits, labels).transform(logits)
        np.testing.assert_allclose(state.calibrated(both)[:, 0], want, atol=1e-12)
    with pytest.raises(ValueError, match="'isotonic' is unknown"):
        calibrated_state("isotonic", both, labels)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="NaN or inf"):
        VectorScaling().fit(np.full((3, 2), np.nan), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match=r"0\.\.1"):
        VectorScaling().fit(np.zeros((3, 2)), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="expected logits"):
        VectorScaling().fit(np.zeros((3, 2)), np.zeros(2, dtype=int))

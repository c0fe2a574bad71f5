"""Linear heads against conditions that the minimum must satisfy, computed by hand."""

import numpy as np
import pytest

from hf_mmbalance.embedding.heads import PENALTIES, _fit, fit_head
from hf_mmbalance.metrics.measures import log_softmax


def clips(n=90, width=6, classes=3, seed=0, spread=1.5):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    means = rng.normal(size=(classes, width)) * spread
    return means[labels] + rng.normal(size=(n, width)), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_the_gradient_of_the_stated_loss_is_zero(classes):
    features, labels = clips(classes=classes)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(labels))
    penalty = 0.01
    weight, bias = _fit(features, labels, weights, classes, penalty)
    error = np.exp(log_softmax(features @ weight.T + bias)) - np.eye(classes)[labels]
    share = weights / weights.sum()
    # scikit-learn's two-class model penalises w = w_1 - w_0 once; with w_1 = -w_0 = w / 2 that is 2 |W|^2.
    factor = 2 if classes == 2 else 1
    gradient = (share[:, None] * error).T @ features + factor * penalty * weight
    assert np.abs(gradient).max() < 1e-4
    assert np.abs((share[:, None] * error).sum(0)).max() < 1e-4


def test_fewer_clips_than_dimensions_give_the_same_head_as_the_full_space():
    features, labels = clips(n=24, width=60, spread=0.2)
    folds = np.arange(24) // 3 % 4
    head, _ = fit_head(features, labels, 3, folds)
    mean = features.mean(0)
    scale = np.sqrt(((features - mean) ** 2).sum(1).mean())
    weight, bias = _fit((features - mean) / scale, labels, np.ones(24), 3, head.penalty)
    expected = ((features - mean) / scale @ weight.T + bias) / head.temperature
    assert np.abs(head(features) - expected).max() < 1e-2
    assert head.weight.shape == (3, 60)


def test_held_out_logits_are_those_of_a_head_without_the_fold():
    features, labels = clips()
    folds = np.arange(len(labels)) % 5
    head, held_out = fit_head(features, labels, 3, folds)
    centred = features - features.mean(0)
    points = centred / np.sqrt((centred**2).sum(1).mean())
    learn = folds != 2
    weight, bias = _fit(points[learn], labels[learn], np.ones(learn.sum()), 3, head.penalty)
    assert np.allclose(held_out[~learn], (points[~learn] @ weight.T + bias) / head.temperature)
    assert set(head.nll) == set(PENALTIES)
    assert head.nll[head.penalty] == min(head.nll.values())


def test_noise_is_fitted_with_the_strongest_penalty_and_clear_classes_with_a_weak_one():
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 4
    noise, _ = fit_head(rng.normal(size=(100, 50)), labels, 4, np.arange(100) // 4 % 5)
    clear, _ = fit_head(np.eye(4)[labels] + 0.01 * rng.normal(size=(100, 4)), labels, 4, np.arange(100) // 4 % 5)
    assert clear.penalty < 0.1 and clear.nll[clear.penalty] < 0.05
    assert noise.nll[noise.penalty] < np.log(4) + 0.02
    assert np.abs(noise(rng.normal(size=(100, 50)))).max() < 0.3  # it knows nothing, and says so


def test_the_temperature_is_that_of_the_lowest_held_out_nll():
    features, labels = clips(spread=0.4, n=60, width=40)
    head, held_out = fit_head(features, labels, 3, np.arange(60) // 3 % 5)

    def nll(factor):
        return -log_softmax(held_out * factor)[np.arange(60), labels].mean()

    assert head.nll[head.penalty] == pytest.approx(nll(1.0))
    assert nll(1.0) <= min(nll(0.9), nll(1.1))


def test_a_class_without_clips_is_never_the_answer():
    features, labels = clips()
    head, held_out = fit_head(features, labels, 5, np.arange(len(labels)) // 3 % 5)
    assert (held_out.argmax(1) < 3).all()
    assert np.allclose(head(features)[:, 3], head(features)[:, 4])
    gap = head(features)[:, :3].mean(1) - head(features)[:, 3]
    assert np.allclose(gap, np.log(2 * len(labels)) / head.temperature)


def test_one_class_or_one_fold_is_refused():
    features, labels = clips()
    with pytest.raises(ValueError, match="at least two classes, in at least two folds"):
        fit_head(features, np.zeros(len(labels), int), 3, np.arange(len(labels)) % 5)
    with pytest.raises(ValueError, match="at least two folds"):
        fit_head(features, labels, 3, np.zeros(len(labels), int))

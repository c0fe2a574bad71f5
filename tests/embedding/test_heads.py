"""Linear heads against discriminants written out by hand, and scikit-learn's."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from hf_mmbalance.embedding.heads import SHRINKAGES, _Discriminant, fit_head
from hf_mmbalance.metrics.measures import log_softmax


def clips(n=90, width=6, classes=3, seed=0, spread=1.5):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    means = rng.normal(size=(classes, width)) * spread
    return means[labels] + rng.normal(size=(n, width)), labels


def fitted(features, labels, classes, shrinkage, weights=None):
    weights = np.ones(len(labels)) if weights is None else weights
    return _Discriminant.of(features, labels, weights, classes).head(shrinkage)


def test_log_posteriors_of_normal_classes_with_shrunk_means_and_priors():
    """The equation of the docstring for three classes of 20, 10 and 5 clips, class by class."""
    features, labels = clips(width=4)
    keep = np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate((20, 10, 5))])
    features, labels = features[keep], labels[keep]
    weight, bias = fitted(features, labels, 3, 0.3)
    centre = features.mean(0)
    own = np.stack([features[labels == c].mean(0) for c in range(3)])
    covariance = sum(np.outer(x - own[y], x - own[y]) for x, y in zip(features, labels, strict=True)) / 35
    expected = []
    for c, n in enumerate((20, 10, 5)):
        mean = centre + n / (n + 1) * (own[c] - centre)
        distances = [(x - mean) @ np.linalg.solve(covariance + 0.3 * np.eye(4), x - mean) for x in features]
        expected.append(-np.array(distances) / 2 + np.log((n + 1) / 38))
    assert np.allclose(log_softmax(features @ weight.T + bias), log_softmax(np.stack(expected, 1)))


def test_many_clips_give_the_discriminant_of_scikit_learn():
    features, labels = clips(n=60_000, width=3)
    weight, bias = fitted(features, labels, 3, 1e-12)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(features, labels).predict_log_proba(features)
    assert np.abs(log_softmax(features @ weight.T + bias) - theirs).max() < 5e-3


def test_a_weight_of_two_is_a_clip_given_twice():
    features, labels = clips(n=12)
    weights = np.where(np.arange(12) < 3, 2.0, 1.0)
    twice = np.concatenate([features, features[:3]]), np.concatenate([labels, labels[:3]])
    for one, other in zip(fitted(features, labels, 3, 0.1, weights), fitted(*twice, 3, 0.1), strict=True):
        assert np.allclose(one, other)


def test_fewer_clips_than_dimensions_give_the_same_head_as_the_full_space():
    features, labels = clips(n=24, width=60, spread=0.2)
    folds = np.arange(24) // 3 % 4
    head, _ = fit_head(features, labels, 3, folds)
    mean = features.mean(0)
    scale = np.sqrt(((features - mean) ** 2).sum(1).mean())
    weight, bias = fitted((features - mean) / scale, labels, 3, head.shrinkage)
    expected = ((features - mean) / scale @ weight.T + bias) / head.temperature
    assert np.abs(head(features) - expected).max() < 1e-8
    assert head.weight.shape == (3, 60)


def test_held_out_logits_are_those_of_a_head_without_the_fold():
    features, labels = clips()
    folds = np.arange(len(labels)) % 5
    head, held_out = fit_head(features, labels, 3, folds)
    centred = features - features.mean(0)
    points = centred / np.sqrt((centred**2).sum(1).mean())
    learn = folds != 2
    weight, bias = fitted(points[learn], labels[learn], 3, head.shrinkage)
    assert np.allclose(held_out[~learn], (points[~learn] @ weight.T + bias) / head.temperature)
    assert set(head.nll) == set(SHRINKAGES)
    assert head.nll[head.shrinkage] == min(head.nll.values())


def test_classes_hidden_by_a_common_variance_get_weak_shrinkage_and_noise_gets_no_confidence():
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 4
    noise, _ = fit_head(rng.normal(size=(100, 50)), labels, 4, np.arange(100) // 4 % 5)
    common = rng.normal(size=(100, 1)) * 30 * np.array([1.0, 2, 3, 4])  # the same in every class
    classes = np.eye(4)[labels] + 0.1 * rng.normal(size=(100, 4))
    clear, _ = fit_head(classes + common, labels, 4, np.arange(100) // 4 % 5)
    assert clear.shrinkage < 1e-3 and clear.nll[clear.shrinkage] < 0.05
    assert noise.nll[noise.shrinkage] < np.log(4) + 0.02
    assert np.abs(noise(rng.normal(size=(100, 50)))).max() < 0.3  # it knows nothing, and says so


def test_the_temperature_is_that_of_the_lowest_held_out_nll_of_smoothed_labels():
    features, labels = clips(spread=0.4, n=60, width=40)
    head, held_out = fit_head(features, labels, 3, np.arange(60) // 3 % 5)
    smoothed = 60 / 61 * np.eye(3)[labels] + 1 / 61 / 3

    def nll(factor):
        return -(smoothed * log_softmax(held_out * factor)).sum(1).mean()

    assert nll(1.0) < min(nll(0.97), nll(1.03))
    assert head.nll[head.shrinkage] == pytest.approx(-log_softmax(held_out)[np.arange(60), labels].mean())


def test_a_head_that_is_always_right_does_not_become_certain():
    features, labels = clips(n=30, spread=20)
    head, held_out = fit_head(features, labels, 3, np.arange(30) // 3 % 5)
    confidence = np.exp(log_softmax(held_out)).max(1)
    assert (held_out.argmax(1) == labels).all()
    assert 0.95 < confidence.mean() <= 1 - 2 / 3 / 31  # at most that of the smoothed labels


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

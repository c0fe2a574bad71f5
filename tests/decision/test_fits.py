"""The fits: optimality, shrinkage to the parent, unseen classes, one arithmetic with the head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from hf_mmbalance.decision.fits import (
    FitData,
    fit_maps,
    fit_temperatures,
    fit_weights,
    scaled_sum,
    share_divergence,
    single,
)
from hf_mmbalance.decision.state import HeadState
from hf_mmbalance.metrics.measures import log_softmax, nll

from .drawn_tables import draw


def parts(**options: Any) -> tuple[FitData, HeadState]:
    drawn = draw(**options)
    data = FitData(drawn["logits"], drawn["labels"])
    return data, fit_temperatures(data, HeadState.plain_sum(*data.logits.shape[1:]))


def loss_of(state: HeadState, data: FitData) -> float:
    return nll(state.fuse(data.logits, data.typicality).logits, data.labels)


def test_temperature_finds_the_true_one() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(size=(20000, 1, 5)) * 1.5
    labels = np.array([rng.choice(5, p=np.exp(row)) for row in log_softmax(true[:, 0])])
    state = fit_temperatures(FitData(2.5 * true, labels), HeadState.plain_sum(1, 5))
    assert np.exp(state["log_temperature"][0]) == pytest.approx(2.5, rel=0.03)


def test_temperature_and_slope_find_the_true_ones() -> None:
    rng = np.random.default_rng(1)
    t = rng.normal(size=(20000, 1))
    true = rng.normal(size=(20000, 1, 5)) * 1.5
    labels = np.array([rng.choice(5, p=np.exp(row)) for row in log_softmax(true[:, 0])])
    reported = 2.5 * true * np.exp(0.7 * t)[..., None]
    state = fit_temperatures(FitData(reported, labels, t), HeadState.plain_sum(1, 5), slope=True)
    assert np.exp(state["log_temperature"][0]) == pytest.approx(2.5, rel=0.05)
    assert state["typicality_slope"][0] == pytest.approx(-0.7, abs=0.03)


def test_a_slope_is_never_positive() -> None:
    data, base = parts(n=500)
    confident = np.where((data.logits.argmax(axis=2) == data.labels[:, None]), 2.0, -2.0)
    state = fit_temperatures(FitData(data.logits, data.labels, confident), base, slope=True)
    np.testing.assert_array_equal(state["typicality_slope"], 0)


def test_temperature_of_a_faultless_tower_stays_bounded() -> None:
    logits = 5 * np.eye(3)[np.arange(30) % 3][:, None]
    state = fit_temperatures(FitData(logits, np.arange(30) % 3), HeadState.plain_sum(1, 3))
    assert -4 <= state["log_temperature"][0] < 0


def test_the_fit_is_at_a_minimum_of_what_the_head_computes() -> None:
    """Numeric derivatives of the head's own NLL plus the prior vanish at the fitted weights, biases and maps."""
    data, base = parts(n=300, modalities=3, classes=3, missing=0.2)
    several = data.several()
    state = fit_weights(data, base, 2.0, tied=False, with_bias=True)

    def total(weights: np.ndarray, bias: np.ndarray) -> float:
        away = ((weights - base["weights"]) ** 2).sum() + ((bias - base["bias"]) ** 2).sum()
        return loss_of(base.replace(weights=weights, bias=bias), several) + away / len(several.labels)

    for index in np.ndindex(3, 3):
        step = np.zeros((3, 3))
        step[index] = 1e-3
        slope = (total(state["weights"] + step, state["bias"]) - total(state["weights"] - step, state["bias"])) / 2e-3
        assert abs(slope) < 3e-3, index
    own = data.modality(1)
    assert own is not None
    mapped = fit_maps(data, base, 2.0, "vector")
    temperature = np.exp(base["log_temperature"][1])

    def own_total(scale: np.ndarray, bias: np.ndarray) -> float:
        z = (scale * log_softmax(own.logits[:, 0]) + bias) / temperature
        return nll(z, own.labels) + (((scale - 1) ** 2).sum() + ((bias / temperature) ** 2).sum()) / len(own.labels)

    scale, bias = mapped["calibration_scale"][1], mapped["calibration_bias"][1]
    for c in range(3):
        step = 1e-3 * np.eye(3)[c]
        assert abs(own_total(scale + step, bias) - own_total(scale - step, bias)) / 2e-3 < 3e-3
        assert abs(own_total(scale, bias + step) - own_total(scale, bias - step)) / 2e-3 < 3e-3


def test_global_weights_recover_the_temperatures() -> None:
    data, _ = parts(n=4000)
    state = fit_weights(data, HeadState.plain_sum(2, 4), 1e-3, tied=True, with_bias=True)
    # the first tower is four times too confident: its weight must be a quarter of the second's
    assert state["weights"][0, 0] / state["weights"][1, 0] == pytest.approx(0.25, rel=0.12)
    assert np.ptp(state["weights"], axis=1).max() == pytest.approx(0)


def test_freer_parts_fit_better_in_sample() -> None:
    data, base = parts(n=500)
    tied = fit_weights(data, base, 0.3, tied=True, with_bias=False)
    biased = fit_weights(data, tied, 0.3, tied=True, with_bias=True)
    free = fit_weights(data, biased, 0.3, tied=False, with_bias=True)
    losses = [loss_of(state, data) for state in (base, tied, biased, free)]
    assert losses == sorted(losses, reverse=True)


def test_strong_shrinkage_is_the_parent() -> None:
    data, base = parts(n=300, modalities=3, missing=0.2)
    parent = fit_weights(data, base, 1.0, tied=False, with_bias=True)
    want = log_softmax(parent.fuse(data.logits).logits)
    again = fit_weights(data, parent, 1e9, tied=False, with_bias=True)
    np.testing.assert_allclose(log_softmax(again.fuse(data.logits).logits), want, atol=1e-4)
    for kind in ("vector", "dirichlet"):
        mapped = fit_maps(data, parent, 1e9, kind).fuse(data.logits).logits
        np.testing.assert_allclose(log_softmax(mapped), want, atol=1e-3)


def test_an_own_dirichlet_map_agrees_with_logistic_regression() -> None:
    data, base = parts(n=400, classes=3)
    state = fit_maps(data, base, 1e-2, "dirichlet")
    x = log_softmax(data.logits[:, 0])
    other = LogisticRegression(C=1e3, max_iter=5000).fit(x, data.labels)
    loss = -other.predict_log_proba(x)[np.arange(len(data.labels)), data.labels].mean()
    one = np.where((np.arange(2) == 0)[:, None], data.logits, np.nan)
    assert nll(state.fuse(one).logits, data.labels) == pytest.approx(loss, abs=2e-3)


def test_a_class_without_clips_keeps_its_parent() -> None:
    data, base = parts(n=400, classes=4)
    kept = data.labels != 3
    rest = data.take(kept)
    state = fit_weights(rest, base, 1.0, tied=False, with_bias=True)
    np.testing.assert_allclose(state["weights"][:, 3], base["weights"][:, 3])
    assert state["bias"][3] == 0
    mapped = fit_maps(rest, base, 1.0, "dirichlet")
    np.testing.assert_allclose(mapped["calibration_map"][:, 3], np.eye(4)[[3, 3]], atol=1e-6)
    for found in (state, mapped):
        assert (found.fuse(data.logits[~kept]).logits.argmax(axis=1) == 3).mean() > 0.5


def test_the_scaled_sum_decides_as_the_plain_sum() -> None:
    data, base = parts(n=400, missing=0.2)
    several = ~np.isnan(data.logits).any(axis=(1, 2))
    found = scaled_sum(data).fuse(data.logits).logits
    plain = HeadState.plain_sum(2, 4).fuse(data.logits).logits
    assert (found[several].argmax(axis=1) == plain[several].argmax(axis=1)).all()
    assert nll(found[several], data.labels[several]) < nll(plain[several], data.labels[several])
    own = base.fuse(data.logits).logits
    np.testing.assert_allclose(log_softmax(found[~several]), log_softmax(own[~several]), atol=1e-9)


def test_a_single_modality_is_its_own_posterior_where_it_is_present() -> None:
    data, base = parts(n=200, missing=0.3)
    found = log_softmax(single(base, [1, 0]).fuse(data.logits).logits)
    there = ~np.isnan(data.logits[:, 1, 0])
    want = log_softmax(log_softmax(data.logits[:, 1]) / np.exp(base["log_temperature"][1]))
    np.testing.assert_allclose(found[there], want[there], atol=1e-9)


def test_share_divergence_by_hand() -> None:
    weights = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    target = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    want = 0.5 * (0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    assert share_divergence(weights, target).item() == pytest.approx(want, rel=1e-5)


def test_clips_with_one_modality_each_leave_the_weights_of_the_parent() -> None:
    data, base = parts(n=60)
    data.logits[::2, 0], data.logits[1::2, 1] = np.nan, np.nan
    assert fit_weights(FitData(data.logits, data.labels), base, 3.0, tied=True, with_bias=True) is base

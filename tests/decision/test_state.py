"""States of the head: by hand, and equal to the model's own head for every rung."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mmbalance.decision.allocation import Allocation
from hf_mmbalance.decision.ladder import PARENTS
from hf_mmbalance.decision.state import ORDER, HeadState
from hf_mmbalance.metrics.measures import log_softmax

from .drawn_tables import draw, draw_with_features


def test_plain_sum_adds_log_probabilities() -> None:
    z = np.random.default_rng(0).normal(size=(5, 3, 4))
    fused = HeadState.plain_sum(3, 4).fuse(z)
    np.testing.assert_allclose(log_softmax(fused.logits), log_softmax(log_softmax(z).sum(axis=1)))
    np.testing.assert_allclose(fused.weights, 1)
    np.testing.assert_allclose(fused.contributions, log_softmax(z) + np.log(4))
    np.testing.assert_allclose(fused.trust, np.exp(log_softmax(z)).max(axis=2))


def test_missing_modalities_by_hand() -> None:
    weights = np.array([[1.0, 2.0], [3.0, 2.0], [4.0, 4.0]])
    state = HeadState.plain_sum(3, 2).replace(weights=weights, bias=np.array([0.5, 0.0]))
    z = np.log(np.array([[[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]] * 3))
    z[1, 2] = np.nan
    z[2, 1:] = np.nan
    fused = state.fuse(z)
    np.testing.assert_allclose(fused.weights[0], weights)
    # two of three present: r = 1/2, weights half way to 1
    np.testing.assert_allclose(fused.weights[1], [[1, 1.5], [2, 1.5], [0, 0]])
    want = 1 * (np.log(0.8) + np.log(2)) + 2 * (np.log(0.4) + np.log(2)) + 0.25 - np.log(2)
    np.testing.assert_allclose(fused.logits[1, 0], want)
    np.testing.assert_allclose(fused.logits[2], np.log([0.8, 0.2]))  # one modality: no weight, no bias


def test_class_weights_of_a_diagonal_map_are_its_diagonal() -> None:
    diagonal = np.array([[1.0, 2.0, 3.0], [0.5, 0.1, 0.7]])
    maps = np.stack([np.diag(row) for row in diagonal])
    # a constant added to a column moves every logit alike: it must not show
    maps[0] += np.array([0.3, -2.0, 1.0])
    state = HeadState.plain_sum(2, 3).replace(calibration_map=maps, calibration_bias=np.zeros((2, 3)))
    np.testing.assert_allclose(state.class_weights(), diagonal)


@pytest.fixture(scope="module")
def fitted() -> tuple[Allocation, dict[str, np.ndarray]]:
    """Every rung and fallback, fitted on three modalities, some missing, with features."""
    data = draw_with_features(n=240, modalities=3, classes=3, missing=0.2, groups=6)
    allocation = Allocation(folds=2, strengths=(3.0,))
    return allocation.fit(data["logits"], data["labels"], data["groups"], data["features"]), data


@pytest.mark.parametrize("rung", list(PARENTS))
def test_the_models_head_decides_alike(fitted: tuple[Allocation, dict[str, np.ndarray]], rung: str) -> None:
    allocation, data = fitted
    state = allocation.complete(allocation.ladder_.states[rung])
    logits, features = data["logits"], data["features"]
    mask = ~np.isnan(logits).any(axis=2)
    assert set(mask.sum(axis=1)) == {1, 2, 3}, "all patterns of presence must be met"
    head = state.head([value.shape[1] for value in features]).float()
    given = tuple(torch.from_numpy(value).float() for value in features)
    out = head(torch.from_numpy(np.nan_to_num(logits)).float(), torch.from_numpy(mask), given)
    want = state.fuse(logits, state.typicality(features, mask))
    np.testing.assert_allclose(out.logits.softmax(-1).numpy(), np.exp(log_softmax(want.logits)), atol=1e-5)
    np.testing.assert_allclose(out.modality_weights.numpy(), want.weights, atol=1e-4)
    np.testing.assert_allclose(out.modality_trust.numpy(), want.trust, atol=1e-5)
    assert ("typicality" in state.options) == (
        rung in ("typicality", "global", "bias", "class", "vector", "dirichlet")
    )


def test_best_single_decides_by_the_best_modality_that_a_clip_has(
    fitted: tuple[Allocation, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """Of three modalities too, where the head's weights would let another one in beside it."""
    allocation, data = fitted
    state, logits = allocation.ladder_.states["best_single"], data["logits"]
    order = state[ORDER].astype(int)
    assert order[0] == allocation.ladder_.best_single and sorted(order) == [0, 1, 2]
    fused, mask = state.fuse(logits), ~np.isnan(logits).any(axis=2)
    for clip, row in enumerate(logits):
        m = next(m for m in order if mask[clip, m])
        own = log_softmax(log_softmax(row[m]) / np.exp(state["log_temperature"][m]))
        np.testing.assert_allclose(log_softmax(fused.logits[clip]), own, atol=1e-12)
        np.testing.assert_array_equal(fused.weights[clip, :, 0], np.arange(3) == m)
        np.testing.assert_allclose(fused.trust[clip, m], np.exp(own).max())
    assert (fused.trust[mask] > 0).all(), "trust is told of the others too"
    allocation.state_ = state
    named = ", ".join(f"modality {m}" for m in order)
    assert f"each clip is decided by the first of {named} that it has" in allocation.describe()["lines"]
    allocation.save(tmp_path)
    np.testing.assert_array_equal(Allocation.load(tmp_path).decision_function(logits), fused.logits)
    with pytest.raises(ValueError, match="a head weights all modalities"):
        state.head()


def test_best_single_of_two_modalities_is_a_state_of_the_head() -> None:
    data = draw(n=200, missing=0.2)
    allocation = Allocation(strengths=(3.0,)).fit(data["logits"], data["labels"], data["groups"])
    state = allocation.ladder_.states["best_single"]
    mask = ~np.isnan(data["logits"]).any(axis=2)
    out = state.head()(torch.from_numpy(np.nan_to_num(data["logits"])), torch.from_numpy(mask))
    np.testing.assert_allclose(out.logits.numpy(), state.fuse(data["logits"]).logits)


def test_typicality_of_other_widths_is_refused(fitted: tuple[Allocation, dict[str, np.ndarray]]) -> None:
    allocation, data = fitted
    state = allocation.complete(allocation.ladder_.states["typicality"])
    with pytest.raises(ValueError, match="features of modality 1 have width 2; the fit had"):
        state.typicality([None, np.zeros((240, 2)), None], np.ones((240, 3), dtype=bool))


def test_threads_are_restored() -> None:
    from hf_mmbalance.decision.optimise import one_thread

    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    assert draw(n=20)["logits"].shape == (20, 2, 4)

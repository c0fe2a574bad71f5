"""The head's arithmetic: by hand, and equal to the model's own head for every rung."""

from __future__ import annotations

import numpy as np
import pytest

from hf_mmbalance.decision.allocation import Allocation
from hf_mmbalance.decision.calibration import HEAD_CALIBRATIONS
from hf_mmbalance.decision.families import PARENTS
from hf_mmbalance.decision.head import HeadState, evidence, state_from_arrays
from hf_mmbalance.metrics.measures import log_softmax

from .drawn_tables import draw


def test_plain_sum_adds_log_probabilities() -> None:
    z = np.random.default_rng(0).normal(size=(5, 3, 4))
    fused, weights, terms = HeadState.plain_sum(3, 4).fuse(z)
    np.testing.assert_allclose(fused, log_softmax(z).sum(axis=1))
    np.testing.assert_allclose(weights, 1)
    np.testing.assert_allclose(terms.sum(axis=1), fused)


def test_missing_modalities_by_hand() -> None:
    state = HeadState.plain_sum(3, 2).with_weights(
        np.array([[1.0, 2.0], [3.0, 2.0], [4.0, 4.0]]), np.array([0.5, 0.0])
    )
    z = np.log(np.array([[[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]] * 3))
    z[1, 2] = np.nan
    z[2, 1:] = np.nan
    fused, weights, _ = state.fuse(z)
    np.testing.assert_allclose(weights[0], [[1, 2], [3, 2], [4, 4]])
    # two of three present: kappa = 8 * 2/3, shares 1/4, 3/4 and 1/2, 1/2
    np.testing.assert_allclose(weights[1], [[4 / 3, 8 / 3], [4, 8 / 3], [0, 0]])
    np.testing.assert_allclose(fused[1, 0], 4 / 3 * np.log(0.8) + 4 * np.log(0.4) + 0.5)
    np.testing.assert_allclose(fused[2], np.log([0.8, 0.2]))  # alone: no weight, no bias


def test_evidence_by_hand() -> None:
    scores = np.log(np.array([[[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]]))
    got = evidence(scores, np.array([[True, False]]))
    np.testing.assert_allclose(got[0, :3], [1.5 * np.log(2) / np.log(3), 0.25, 0.5])
    np.testing.assert_allclose(got[0, 3:], 0)


def test_class_weights_of_a_diagonal_map_are_its_diagonal() -> None:
    diagonal = np.array([[1.0, 2.0, 3.0], [0.5, 0.1, 0.7]])
    maps = np.stack([np.diag(row) for row in diagonal])
    # a constant added to a column moves every logit alike: it must not show
    maps[0] += np.array([0.3, -2.0, 1.0])
    state = HeadState.plain_sum(2, 3).replace(calibration_map=maps, calibration_bias=np.zeros((2, 3)))
    np.testing.assert_allclose(state.class_weights(np.zeros((1, 2, 3))), diagonal)


def test_states_survive_as_arrays() -> None:
    state = HeadState.plain_sum(2, 3).replace(gate_weight=np.ones((2, 6)))
    back = state_from_arrays({name: value.tolist() for name, value in state.arrays().items()})
    assert set(back.arrays()) == {"log_temperature", "alpha", "log_kappa", "bias", "gate_weight"}
    np.testing.assert_array_equal(back.gate_weight, state.gate_weight)


@pytest.fixture(scope="module")
def fitted() -> dict[str, tuple[Allocation, np.ndarray]]:
    """Every rung and fallback under every calibration of the head, fitted on three modalities, some missing."""
    data = draw(n=240, modalities=3, classes=3, missing=0.2, groups=6)
    found = {}
    for kind in HEAD_CALIBRATIONS:
        allocation = Allocation(calibration=kind, folds=2, strengths=(3.0,))
        found[kind] = (allocation.fit(data["logits"], data["labels"], data["groups"]), data["logits"])
    return found


@pytest.mark.parametrize("kind", HEAD_CALIBRATIONS)
@pytest.mark.parametrize("rung", [*PARENTS, "best_single"])
def test_the_models_head_decides_alike(fitted: dict[str, tuple[Allocation, np.ndarray]], kind: str, rung: str) -> None:
    torch = pytest.importorskip("torch")
    from hf_mmbalance.model.fusion_adaptive_mmbalance import AdaptiveFusion

    allocation, logits = fitted[kind]
    allocation.state_ = allocation.ladder_.states[rung]
    options, arrays = allocation.to_head_state()
    head = AdaptiveFusion(3, 3, **options)
    head.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    mask = ~np.isnan(logits).any(axis=2)
    assert set(mask.sum(axis=1)) == {1, 2, 3}, "all patterns of presence must be met"
    with torch.no_grad():
        out = head(torch.from_numpy(np.nan_to_num(logits)).float(), torch.from_numpy(mask))
    np.testing.assert_allclose(out.logits.softmax(-1).numpy(), allocation.predict_proba(logits), atol=1e-5)
    np.testing.assert_allclose(out.modality_weights.numpy(), allocation.weights(logits), atol=1e-4)

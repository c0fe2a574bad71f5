"""The `evaluate` modules: loaded offline from their folder, also from a copy that stands alone, and right."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hf_mmbalance.metrics
from hf_mmbalance.metrics import measures as me


FOLDER = Path(hf_mmbalance.metrics.__file__).parent
NAMES = ("modality_balance", "calibration_error")


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`evaluate.load` of a copy of the folder, alone elsewhere, with the network switched off."""
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)

    def from_copy(name: str) -> Any:
        alone = tmp_path / "space" / name
        shutil.copytree(FOLDER / name, alone)
        assert not (alone / "measures.py").is_symlink()
        return evaluate.load(str(alone), cache_dir=str(tmp_path / "cache"))

    return from_copy


@pytest.mark.parametrize("name", NAMES)
def test_the_formulas_stand_beside_each_module_once(name: str) -> None:
    assert (FOLDER / name / "measures.py").resolve() == (FOLDER / "measures.py").resolve() or (
        FOLDER / name / "measures.py"
    ).read_bytes() == (FOLDER / "measures.py").read_bytes()
    text = (FOLDER / name / f"{name}.py").read_text()
    assert "hf_mmbalance" not in text, "the module must work where this package is not installed"
    card = (FOLDER / name / "README.md").read_text()
    assert card.startswith("---\ntitle:") and "tags:\n- evaluate\n- metric" in card


def test_calibration_error(load: Any) -> None:
    p = np.array([[0.55, 0.45], [0.59, 0.41], [0.95, 0.05]])
    metric = load("calibration_error")
    got = metric.compute(predictions=p.tolist(), references=[1, 0, 0], bins=10, probabilities=True)
    assert got["ece"] == pytest.approx((2 * abs(0.5 - 0.57) + 0.05) / 3, abs=1e-6)
    assert got["nll"] == pytest.approx(-(np.log(0.45) + np.log(0.59) + np.log(0.95)) / 3, abs=1e-6)
    for row in np.log(p):  # batches, as a training loop adds them
        metric.add_batch(predictions=[row.tolist()], references=[0])
    assert metric.compute()["nll"] == pytest.approx(-np.log(p[:, 0]).mean(), abs=1e-6)
    with pytest.raises(ValueError, match="not probabilities"):
        metric.compute(predictions=[[2.0, 1.0]], references=[0], probabilities=True)


def test_modality_balance_by_hand(load: Any) -> None:
    # Audio is always right and confident; vision always wrong and not confident: the sum follows audio.
    logits = np.array([[[4.0, 0.0], [0.0, 1.0]], [[0.0, 4.0], [1.0, 0.0]]])
    got = load("modality_balance").compute(
        predictions=logits.tolist(), references=[0, 1], modalities=["audio", "vision"]
    )
    # v(0) = 1/2, v(audio) = 1, v(vision) = 0, v(both) = 1: phi = (3/4, -1/4)
    assert got["contribution"] == {"audio": [0.75, 0.75], "vision": [-0.25, -0.25]}
    assert got["participation"] == {"audio": [1.0, 1.0], "vision": [0.0, 0.0]}
    assert got["capability"] == {"audio": [0.5, 0.5], "vision": [-0.5, -0.5]}
    assert (got["accuracy"], got["relative_balance_index"], got["lost"]) == (1.0, 1.0, 0.0)
    assert got["lean"] == {"audio": 0.0, "vision": 0.0} and got["rescued"]["audio"] == 1.0


def test_modality_balance_follows_the_weights(load: Any) -> None:
    logits = np.array([[[4.0, 0.0], [0.0, 1.0]], [[0.0, 4.0], [1.0, 0.0]]])
    got = load("modality_balance").compute(
        predictions=logits.tolist(), references=[0, 1], weights=[[0.01, 0.01], [1.0, 1.0]]
    )
    assert got["accuracy"] == 0.0 and got["lost"] == 1.0
    # v = (1/2, 1, 0, 0): phi = (1/4, -3/4)
    assert got["contribution"]["modality_0"] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": np.zeros((2, 1, 2))}, "M >= 2 and C >= 2"),
        ({"predictions": np.full((2, 2, 2), -np.inf)}, "partly NaN or infinite"),
        ({"predictions": np.array([[[0.0, np.nan], [1, 2]]] * 2)}, "partly NaN or infinite"),
        ({"predictions": np.full((2, 2, 2), np.nan)}, "no modality at all"),
        ({"references": [0, 2]}, r"must lie in 0\.\.1"),
        ({"references": [0, -1]}, r"must lie in 0\.\.1"),
        ({"weights": np.ones((2, 3))}, r"weights have shape \(2, 3\)"),
        ({"bias": [1.0]}, r"bias has shape \(1,\)"),
        ({"modalities": ["audio"]}, "1 modality names for 2"),
    ],
)
def test_modality_balance_refuses_what_it_cannot_judge(load: Any, change: dict[str, Any], message: str) -> None:
    given = {"predictions": np.array([[[4.0, 0.0], [0.0, 1.0]], [[0.0, 4.0], [1.0, 0.0]]]), "references": [0, 1]}
    metric = load("modality_balance")
    with pytest.raises(ValueError, match=message):
        metric.compute(**given | change)


def test_additive_subsets_are_the_heads() -> None:
    from hf_mmbalance.decision.state import HeadState

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 3, 4))
    logits[:6, 1] = np.nan
    weights, bias = rng.uniform(0.2, 2, size=(3, 4)), rng.normal(size=4)
    state = HeadState.plain_sum(3, 4).replace(weights=weights, bias=bias)
    fused = me.additive_subsets(logits, weights, bias)
    np.testing.assert_allclose(me.additive_subsets(logits, state.fuse(logits).weights, bias), fused)
    for subset in range(1, 8):
        inside = (subset >> np.arange(3) & 1).astype(bool)
        masked = np.where(inside[:, None], logits, np.nan)
        there = ~np.isnan(masked).any(axis=2).all(axis=1)
        np.testing.assert_allclose(fused[subset][there], state.fuse(masked[there]).logits)
        assert np.isnan(fused[subset][~there]).all()

"""Modalities that do not know every class: no evidence for those, exactly, in fit, files and use."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_mmbalance.decision.allocation import Allocation
from hf_mmbalance.decision.compare import Source, align
from hf_mmbalance.decision.diagnosis import modality_detail
from hf_mmbalance.decision.evaluation import baselines
from hf_mmbalance.decision.fits import FitData, fit_temperatures
from hf_mmbalance.decision.results import rows_of
from hf_mmbalance.decision.state import HeadState
from hf_mmbalance.decision.table import DecisionTable, TableError
from hf_mmbalance.robustness.cells import Cell
from hf_mmbalance.robustness.judge import method_logits

from .drawn_tables import make_table


torch = pytest.importorskip("torch")

KNOWN = np.array([[True, True, False], [True, True, True]])
PRIOR = (0.5, 0.3, 0.2)


def hand_state(**changes: Any) -> HeadState:
    """Prior .5 .3 .2; the first modality knows classes 0 and 1 and has temperature 2; weights .5 and 1.5."""
    return (
        HeadState.plain_sum(2, 3)
        .with_known(KNOWN)
        .replace(
            log_prior=np.log(PRIOR),
            log_temperature=np.array([math.log(2), 0.0]),
            weights=np.array([[0.5] * 3, [1.5] * 3]),
            **changes,
        )
    )


def test_by_hand() -> None:
    """z_0 = (log 9, 0, ignored), so that p(. | K) = (3/4, 1/4) at T = 2 and D_0 = log (.8 * 3/4, .8 * 1/4, .2)."""
    first, second = (0.6, 0.2, 0.2), (0.2, 0.3, 0.5)
    logits = np.array([[[math.log(9), 0.0, 40.0], [math.log(p) for p in second]]])
    fused = hand_state().fuse(logits)
    expected = [
        math.log(PRIOR[c])
        + 0.5 * (math.log(first[c]) - math.log(PRIOR[c]))
        + 1.5 * (math.log(second[c]) - math.log(PRIOR[c]))
        for c in range(3)
    ]
    np.testing.assert_allclose(fused.logits[0], expected, atol=1e-12)
    assert fused.contributions[0, 0, 2] == fused.weights[0, 0, 2] == 0
    np.testing.assert_allclose(fused.trust[0], [0.6, 0.5], atol=1e-12)
    logits[0, 1] = np.nan
    np.testing.assert_allclose(np.exp(hand_state().fuse(logits).logits[0]), first, atol=1e-12)


def test_typicality_acts_within_the_known_classes() -> None:
    logits = np.array([[[2.0, 0.0, 7.0], [np.nan] * 3]])
    state = hand_state(typicality_slope=np.array([-0.4, 0.0]))
    found = np.exp(state.fuse(logits, np.array([[1.5, 0.0]])).logits[0])
    odds = math.exp(2.0 * 0.5 * math.exp(-0.4 * 1.5))
    np.testing.assert_allclose(found, [0.8 * odds / (1 + odds), 0.8 / (1 + odds), 0.2], atol=1e-12)


def test_the_head_of_the_model_gives_the_same_and_finite_gradients() -> None:
    head = hand_state().head()
    logits = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True], [True, False], [False, True], [True, True], [True, True]])
    out = head(logits, mask)
    values = logits.detach().numpy().copy()
    values[~mask.numpy()] = np.nan
    np.testing.assert_allclose(out.logits.detach().numpy(), hand_state().fuse(values).logits, atol=1e-12)
    out.logits.logsumexp(1).sum().backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[:, 0, 2].abs().max() < 1e-12


def test_all_classes_known_is_the_head_without_a_mask() -> None:
    assert "class_mask" not in HeadState.plain_sum(2, 3).with_known(np.ones((2, 3))).arrays
    logits = np.random.default_rng(0).normal(size=(20, 2, 3))
    state = hand_state()
    full = state.replace(class_mask=np.ones((2, 3)))
    without = HeadState({name: value for name, value in state.arrays.items() if name != "class_mask"})
    np.testing.assert_array_equal(full.fuse(logits).logits, without.fuse(logits).logits)


def test_a_temperature_is_that_of_the_clips_whose_class_is_known() -> None:
    """The other clips say nothing about it: the fit is the one on two classes."""
    table = make_table(n=300, classes=3)
    data = FitData(table.logits[:, :1], table.labels, known=KNOWN[:1])
    found = fit_temperatures(data, HeadState.plain_sum(1, 3).with_known(KNOWN[:1]))["log_temperature"]
    rows = table.labels < 2
    few = FitData(table.logits[rows, :1, :2], table.labels[rows])
    np.testing.assert_allclose(found, fit_temperatures(few, HeadState.plain_sum(1, 2))["log_temperature"], atol=1e-4)
    assert abs(found[0]) > 0.5


def known_table(n: int = 400) -> DecisionTable:
    """Three classes; the first modality knows two, and its logits of the third are noise."""
    table = make_table(n=n, classes=3)
    table.logits[:, 0, 2] = np.random.default_rng(1).normal(size=n)
    table.known = KNOWN.copy()
    return table


@pytest.fixture(scope="module")
def fitted() -> Allocation:
    with pytest.warns(UserWarning, match="audio|modality 0"):
        return Allocation(strengths=(30.0, 3.0), folds=3).fit_table(known_table())


def test_rungs_by_class_are_left_out_and_the_reason_is_named(fitted: Allocation) -> None:
    assert not {"vector", "class", "dirichlet"} & set(fitted.ladder_.scores)
    assert {"prior_sum", "temperature", "global", "bias"} <= set(fitted.ladder_.scores)
    note = (
        "audio does not know 1 of 3 classes (indices [2]): it gives no evidence for them, and vector, class, dirichlet"
    )
    assert any(note in text for text in fitted.notes_)
    assert all((state.known == KNOWN).all() for state in fitted.ladder_.states.values())


def test_logits_of_unknown_classes_are_not_used(fitted: Allocation) -> None:
    table = known_table()
    other = table.logits.copy()
    other[:, 0, 2] = 50.0
    np.testing.assert_allclose(fitted.predict_proba(other), fitted.predict_proba(table.logits), atol=1e-9)
    assert fitted.check_shift(other, warn=False) == []
    changed = known_table()
    changed.logits[:, 0, 2] = -30.0
    with pytest.warns(UserWarning):
        again = Allocation(strengths=(30.0, 3.0), folds=3).fit_table(changed)
    for name in ("sum", "temperature", "global"):
        np.testing.assert_allclose(again.ladder_.scores[name].nll, fitted.ladder_.scores[name].nll, atol=1e-4)
    total = baselines(table)["sum"]
    table.logits[:, 0, 2] = 50.0
    np.testing.assert_allclose(baselines(table)["sum"], total, atol=1e-9)


def test_a_modality_by_itself_is_judged_within_the_classes_that_it_knows() -> None:
    """By hand: p(. | K) = (3/4, 1/4) of two known classes of three, the third keeps its even share."""
    logits = np.array([[[math.log(3), 0.0, 40.0], [0.0, 0.0, 0.0]], [[np.nan] * 3, [0.0, 1.0, 0.0]]])
    table = make_table(n=20, classes=3).take([0, 1])
    table.logits, table.labels, table.known = logits, np.array([0, 1]), KNOWN
    table.references["fused"] = logits[:, 1]
    found = baselines(table)
    np.testing.assert_allclose(np.exp(found["audio"][0]), [0.5, 1 / 6, 1 / 3], atol=1e-12)
    assert np.isnan(found["audio"][1]).all()
    np.testing.assert_allclose(np.exp(found["mean_prob"][0]), [5 / 12, 1 / 4, 1 / 3], atol=1e-12)
    row = rows_of(table, "test", np.log(PRIOR))[0]
    assert (row["n"], row["accuracy"]) == (1, 1.0) and row["nll"] == pytest.approx(math.log(2))
    cell = Cell("clean", 0, logits, table.log_probs[:, 0], table.mask, None)
    np.testing.assert_allclose(method_logits(cell, table.modalities, np.log(PRIOR), KNOWN)["audio"], found["audio"])


def test_the_diagnosis_of_a_modality_ignores_its_logits_of_unknown_classes() -> None:
    table = known_table()
    details = []
    for value in (-20.0, 50.0):
        table.logits[:, 0, 2] = value
        details.append(modality_detail(table, 0))
    assert details[0] == details[1] and details[0]["recall"][2] == 0


def test_the_sum_of_every_compared_table_respects_what_is_known() -> None:
    sources = [Source(name, known_table()) for name in ("first", "second")]
    second = sources[1].table
    order, columns = np.arange(len(second))[::-1], [2, 0, 1]
    sources[1].table = DecisionTable(
        [second.ids[i] for i in order], [second.groups[i] for i in order], [second.splits[i] for i in order],
        np.argsort(columns)[second.labels[order]], second.logits[order][..., columns],
        [second.classes[c] for c in columns], second.modalities, known=KNOWN[:, columns],
    )  # fmt: skip
    align(sources)
    assert (sources[1].table.known_classes == KNOWN).all()
    sums = [baselines(source.table)["sum"] for source in sources]
    np.testing.assert_allclose(sums[0], sums[1], atol=1e-12)


def test_a_balance_penalty_takes_the_rung_global() -> None:
    with pytest.warns(UserWarning):
        allocation = Allocation(balance=0.1, strengths=(30.0,), folds=2).fit_table(known_table())
    assert allocation.chosen_ == "global"


def test_saved_and_loaded(fitted: Allocation, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    again, table = Allocation.load(tmp_path), known_table()
    assert (again.state_.known == KNOWN).all()
    np.testing.assert_array_equal(again.decision_function(table.logits), fitted.decision_function(table.logits))


def test_a_model_that_knows_other_classes_is_refused(fitted: Allocation) -> None:
    config = SimpleNamespace(id2label={}, modalities=["audio", "vision"], known_classes=[[True] * 3] * 2)
    model = SimpleNamespace(fusion=SimpleNamespace(num_modalities=2, num_labels=3), config=config)
    with pytest.raises(
        ValueError, match=r"modalities know \[3, 3\] of 3 classes, those of the fit different ones \(\[2, 3\]\)"
    ):
        fitted.write_to(model)


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_files_keep_what_is_known(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"table.{suffix}"
    table = known_table()
    table.write(path)
    again = DecisionTable.read(path)
    assert (again.known_classes == KNOWN).all()
    assert (again.take([0, 1]).known_classes == KNOWN).all()
    assert (DecisionTable.concatenate([table.take([0]), table.take([1])]).known_classes == KNOWN).all()
    with pytest.raises(TableError, match="modalities know different classes cannot be joined"):
        DecisionTable.concatenate([again.take([0]), make_table(n=400, classes=3).take([1])])
    make_table(n=20, classes=3).write(path)
    assert DecisionTable.read(path).known_classes.all()


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ("[[1, 1, 0]]", r"'known' has shape \(1, 3\); 2 modalities and 3 classes need \(2, 3\)"),
        ("[[1, 0, 0], [1, 1, 1]]", "modality 'audio' knows 1 of 3 classes; it must know at least 2"),
        ("[[1, 2, 0], [1, 1, 1]]", "'known' must hold 0 or 1 for every modality"),
        ("[[1, 1], [1, 1, 1]]", "'known'"),
        ("{}", "'known' must hold 0 or 1"),
        ("[[1, ", "metadata 'known' is not a JSON list of lists"),
    ],
)
def test_wrong_entries_are_refused(known: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    known_table(n=20).write(path)
    content = pq.read_table(path)
    assert json.loads(content.schema.metadata[b"known"]) == [[1, 1, 0], [1, 1, 1]]
    pq.write_table(content.replace_schema_metadata({**content.schema.metadata, b"known": known.encode()}), path)
    with pytest.raises(TableError, match=message):
        DecisionTable.read(path)

"""Diagnosis: every measure against a hand computation, through the whole chain."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hf_mmbalance.decision.cli import print_ladder
from hf_mmbalance.decision.contributions import balance, class_mean_draws, subset_values
from hf_mmbalance.decision.diagnosis import (
    _telling_clips,
    diagnose,
    feature_geometry,
    lost_clips,
    modality_detail,
    rescued,
    waterfall,
)
from hf_mmbalance.decision.evaluation import DecisionReport, FittedPart, decide_folds, decide_splits, decide_table
from hf_mmbalance.decision.ladder import PARENTS
from hf_mmbalance.decision.report_text import summary
from hf_mmbalance.decision.state import HeadState
from hf_mmbalance.decision.table import DecisionTable, TableError
from hf_mmbalance.metrics import geometry
from hf_mmbalance.metrics.measures import accuracy, bootstrap_ci, correct, log_softmax

from .drawn_tables import make_table


FAST: dict[str, Any] = {"strengths": (30.0, 3.0)}


def two_clips() -> DecisionTable:
    """Audio is always right and confident, vision always wrong and not confident; the last clip has no vision."""
    logits = np.array([[[4.0, 0.0], [1.0, 2.0]], [[0.0, 4.0], [2.0, 1.0]], [[0.0, 2.0], [np.nan, np.nan]]])
    return DecisionTable(["a", "b", "c"], ["x", "y", "z"], ["test"] * 3, np.array([0, 1, 1]), logits, ["no", "yes"],
                         ["audio", "vision"])  # fmt: skip


def plain(table: DecisionTable) -> list[FittedPart]:
    return [FittedPart(np.arange(len(table)), HeadState.plain_sum(*table.logits.shape[1:]))]


def test_subset_values_by_hand() -> None:
    table = two_clips()
    got = subset_values(plain(table), table)
    # rows: nothing, audio, vision, both; the clip without vision is worth chance there
    np.testing.assert_allclose(got, [[0.5] * 3, [1, 1, 1], [0, 0, 0.5], [1, 1, 1]])
    prior = np.array([0.25, 0.75])
    got = subset_values(plain(table), table, "log_likelihood", prior)
    np.testing.assert_allclose(got[0], np.log([0.25, 0.75, 0.75]))
    np.testing.assert_allclose(got[1], -np.log1p(np.exp([-4.0, -4.0, -2.0])))
    np.testing.assert_allclose(got[2], [-np.log1p(np.e), -np.log1p(np.e), np.log(0.75)])
    np.testing.assert_allclose(got[3], -np.log1p(np.exp([-3.0, -3.0, -2.0])))
    with pytest.raises(ValueError, match="'odds'"):
        subset_values(plain(table), table, "odds")


def test_balance_by_hand() -> None:
    table = two_clips()
    found = balance(plain(table), table, draws=10)
    # class no: phi = (3/4, -1/4); class yes: mean of (3/4, -1/4) and (1/2, 0)
    np.testing.assert_allclose(found.contribution[0], [[0.75, 0.625], [-0.25, -0.125]])
    np.testing.assert_allclose(found.capability[0], [[0.5, 0.5], [-0.5, -0.5]])
    np.testing.assert_allclose(found.participation[0], [[1, 1], [0, 0]])
    np.testing.assert_allclose(found.lean[0], 0)
    assert found.index[0] == 1
    report = found.as_dict(table)
    assert report["mean_lean"]["vision"]["value"] == 0 and report["classes_without_capability"] == 0


def test_contributions_of_all_classes_sum_to_accuracy_above_chance() -> None:
    table = make_table(n=300, modalities=3, missing=0.2)
    found = balance(plain(table), table, draws=5)
    share = np.bincount(table.labels) / len(table)
    total = (found.contribution[0].sum(axis=0) * share).sum()
    fused = HeadState.plain_sum(3, 4).fuse(table.logits).logits
    assert total == pytest.approx(accuracy(fused, table.labels) - 1 / 4)


def test_draws_of_class_means_are_the_bootstrap_of_one_class() -> None:
    table = make_table(n=400, classes=2)
    table.labels[:] = 0
    values = np.random.default_rng(0).normal(size=(1, 400))
    draws = class_mean_draws(values, table, draws=2000, seed=0)
    assert draws[0, 0, 0] == pytest.approx(values.mean())
    low, high = bootstrap_ci(values[0], table.groups, seed=0)
    np.testing.assert_allclose(np.quantile(draws[1:, 0, 0], [0.025, 0.975]), [low, high], atol=1e-9)
    assert np.isnan(draws[:, 0, 1]).all()


def test_six_modalities_are_fast_and_exact() -> None:
    import time

    table = make_table(n=1000, modalities=6, classes=5)
    start = time.process_time()
    found = balance(plain(table), table, draws=50)
    assert time.process_time() - start < 10
    assert found.contribution.shape == (51, 6, 5)


@pytest.fixture(scope="module")
def judged() -> DecisionReport:
    """Folds over a table with features, a reference and missing modalities."""
    table = make_table(n=400, classes=3, missing=0.05)
    rng = np.random.default_rng(0)
    table.features = {"audio": rng.normal(size=(400, 5)), "vision": rng.normal(size=(400, 3))}
    table.references = {"other": rng.normal(size=(400, 3))}
    return decide_folds(table, folds=3, **FAST)


def test_decide_rows(judged: DecisionReport) -> None:
    report = judged.as_dict()
    methods = [row["method"] for row in report["rows"]]
    assert methods[:5] == ["audio", "vision", "sum", "prior_sum", "mean_prob"] and methods[-2:] == [
        "adaptive",
        "reference.other",
    ]
    assert {*PARENTS, "best_single"} <= set(methods) and len(methods) == len(set(methods))
    assert report["ci_unit"] == "group" and set(report["weights"]) == {"audio", "vision"}
    rows = {row["method"]: row for row in report["rows"]}
    table = judged.table
    there = table.mask[:, 0]
    assert rows["audio"]["n"] == there.sum() < rows["sum"]["n"] == 400
    assert rows["audio"]["accuracy"] == accuracy(table.logits[there, 0], table.labels[there])
    low, high = rows["adaptive"]["accuracy_ci"]
    assert low < rows["adaptive"]["accuracy"] < high
    pooled = np.log(np.nanmean(np.exp(log_softmax(table.logits)), axis=1))
    assert rows["mean_prob"]["nll"] == pytest.approx(-pooled[np.arange(400), table.labels].mean())
    json.dumps(report)


def test_out_of_fold_means_not_fitted_on_the_clips_group(judged: DecisionReport) -> None:
    rows = np.concatenate([part.rows for part in judged.states["adaptive"]])
    assert sorted(rows) == list(range(400))
    groups = [set(np.array(judged.table.groups)[part.rows]) for part in judged.states["adaptive"]]
    assert not groups[0] & groups[1] and not groups[1] & groups[2]


def test_difference_is_paired(judged: DecisionReport) -> None:
    got = judged.difference("adaptive", "sum")
    hit = correct(judged.fusions["adaptive"], judged.table.labels) - correct(
        judged.fusions["sum"], judged.table.labels
    )
    assert got["accuracy"] == pytest.approx(hit.mean())
    assert got["accuracy_ci"] == list(bootstrap_ci(hit, judged.table.groups))


def test_diagnose_has_everything_and_is_json(judged: DecisionReport) -> None:
    report = diagnose(judged, draws=30)
    text = json.dumps(report, allow_nan=False)
    assert "NaN" not in text
    assert [row["label"] for row in report["ablation"]] == ["global", "+ bias", "+ class weights"]
    assert report["ablation"][0]["over_global"]["accuracy"] == 0
    assert {"sum", "best_single", "adaptive"} <= set(report["balance"])
    for found in report["index_differences"]:
        both = report["balance"]["adaptive"]["index"] - report["balance"][found["baseline"]]["index"]
        assert found["index"] == pytest.approx(both)
    curve = report["balance_curve"]
    assert [point["penalty"] for point in curve] == [0.0, 0.01, 0.03, 0.1, 0.3, 1.0]
    assert report["weights_of"] == "refitted" and report["weights"] == report["weights_refitted"]
    assert set(report["geometry"]["modalities"]) == {"audio", "vision"} and len(report["geometry"]["cka"]) == 1


def test_lost_clips_and_rescue_rates(judged: DecisionReport) -> None:
    table = judged.table
    fused = judged.fusions["adaptive"].argmax(axis=1)
    own = np.where(table.mask[..., None], table.logits, -1e9).argmax(axis=2)
    right = (own == table.labels[:, None]) & table.mask
    lost = right.any(axis=1) & (fused != table.labels)
    found = lost_clips(judged)
    assert found["n"] == lost.sum() == sum(map(sum, found["by_class"].values()))
    assert {clip["id"] for clip in found["clips"]} <= {table.ids[i] for i in np.flatnonzero(lost)}
    rates = rescued(judged, "adaptive")
    only = right[:, 0] & ~right[:, 1]
    assert rates["rescued"]["audio"] == pytest.approx((fused[only] == table.labels[only]).mean())
    assert rates["lost"] == pytest.approx(lost.sum() / right.any(axis=1).sum())


def test_waterfall_adds_up(judged: DecisionReport) -> None:
    for row in (0, 17, 200):
        clip = waterfall(judged, row)
        assert clip["bias"] + sum(clip["terms"].values()) == pytest.approx(clip["margin"])
        fused = judged.fusions["adaptive"][row]
        label = judged.table.labels[row]
        assert clip["margin"] == pytest.approx(fused[label] - np.delete(fused, label).max())


def test_modality_detail_by_hand() -> None:
    logits = np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.5, 1.0]])
    table = DecisionTable(list("abcd"), list("wxyz"), ["test"] * 4, np.array([0, 1, 1, 2]),
                          np.stack([logits, logits], axis=1), ["p", "q", "r"], ["m", "n"])  # fmt: skip
    got = modality_detail(table, 0)
    assert got["recall"] == [1.0, 0.5, 1.0] and got["accuracy"] == 0.75
    assert got["margin"]["median"] == pytest.approx(1.0) and got["logit_range"]["median"] == pytest.approx(1.5)
    assert got["logit_norm"]["median"] == pytest.approx(
        np.median(np.linalg.norm(logits - logits.mean(1, keepdims=True), axis=1))
    )
    assert got["auc"][0] == pytest.approx(1.0)


def test_splits() -> None:
    table = make_table(n=400)
    judged = decide_splits(table, **FAST)
    assert set(judged.table.splits) == {"test"} and judged.fit_clips == table.splits.count("calibration")
    with pytest.raises(TableError, match="same clips"):
        decide_splits(table, fit_split="test", **FAST)
    with pytest.raises(TableError, match="no clip has split 'validation'"):
        decide_splits(table, fit_split="val", **FAST)
    table.groups = ["one"] * 400
    assert any("in both" in note for note in decide_splits(table, **FAST).notes)
    with pytest.raises(TableError, match="only one group"):
        decide_folds(table, **FAST)
    judged = decide_folds(table, folds=3, known_groups=True, rung="temperature")
    assert [len(rows) for rows, _ in judged.parts] == [134, 133, 133]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("split", ["calibration", "test"])
def test_a_modality_that_a_split_lacks(split: str) -> None:
    """Missing in the fit it is not the best single modality; missing in the test it is diagnosed without warnings."""
    table = make_table(n=200)
    table.logits[np.array(table.splits) == split, 0] = np.nan
    judged = decide_splits(table, rung="temperature")
    assert judged.allocation.ladder_.best_single == 1
    balances = diagnose(judged, draws=20)["balance"]
    assert (balances["sum"]["index"] is None) == (split == "test")


def test_geometry_by_hand() -> None:
    square = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert geometry.effective_rank(square) == pytest.approx(2)
    assert geometry.effective_rank(np.outer([1.0, 2.0, 4.0], [1.0, 1.0])) == pytest.approx(1)
    # classes at +-1 on a line, each spread +-0.5: between 4 * 1, within 4 * 0.25
    line = np.array([[1.5], [0.5], [-0.5], [-1.5]])
    assert geometry.scatter_ratio(line, [0, 0, 1, 1]) == pytest.approx(4)
    assert geometry.alignment(square, [0, 0, 1, 1]) == pytest.approx(4)
    assert geometry.alignment(square, [0, 1, 0, 1]) == pytest.approx(2)
    assert np.isnan(geometry.alignment(square, [0, 1, 2, 3]))
    assert geometry.uniformity(square) == pytest.approx(np.log((4 * np.exp(-4) + 2 * np.exp(-8)) / 6))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    turned = x @ np.linalg.qr(rng.normal(size=(4, 4)))[0] * 3
    assert geometry.linear_cka(x, turned) == pytest.approx(1)
    assert geometry.linear_cka(x, rng.normal(size=(200, 4))) < 0.1
    np.testing.assert_allclose(geometry.feature_norms([[3.0, 4.0]]), [5])


def test_geometry_skips_clips_without_the_modality() -> None:
    table = make_table(n=50)
    features = np.random.default_rng(0).normal(size=(50, 3))
    features[:10] = np.nan
    table.features = {"vision": features}
    assert feature_geometry(table)["modalities"]["vision"]["n"] == 40


def test_every_row_counts_a_known_prior() -> None:
    """The row of the chosen rung is the row `adaptive`, and all log odds move by those of the priors."""
    table = make_table(n=300, classes=3)
    new = np.array([0.8, 0.1, 0.1])
    plain = decide_splits(table, rung="temperature")
    known = decide_splits(table, rung="temperature", prior=new)
    np.testing.assert_array_equal(known.fusions["temperature"], known.fusions["adaptive"])
    moved = np.log(new) - np.log(plain.allocation.prior_)
    for method in ("prior_sum", "best_single", "temperature", "adaptive"):
        difference = known.fusions[method] - plain.fusions[method]
        np.testing.assert_allclose(difference, np.tile(moved, (len(known.table), 1)), atol=1e-9, err_msg=method)
    np.testing.assert_array_equal(known.fusions["sum"], plain.fusions["sum"])


def test_a_prior_that_rules_out_clips_to_judge_is_told() -> None:
    table = make_table(n=300, classes=3)
    number = int((table.select("test").labels == 2).sum())
    told = decide_splits(table, rung="temperature", prior=[0.5, 0.5, 0.0]).notes
    assert any(f"the prior given for class 2 is 0, but {number} of the evaluated clips" in note for note in told)
    others = decide_splits(table, rung="temperature", prior=[0.5, 0.4, 0.1]).notes
    assert not any("the prior given" in note for note in others)


def test_splits_that_are_not_there_are_told_and_single_folds_refused() -> None:
    table = make_table(n=200, classes=3)
    table.splits = ["validation"] * 200
    found = decide_table(table, rung="temperature")
    assert found.notes[0] == "no clips of split calibration or test: fitted and evaluated out of fold"
    for folds in (1, 0, -2):
        with pytest.raises(TableError, match="at least 2 folds"):
            decide_table(table, folds=folds)


def test_rows_of_train_are_never_judged_unsaid() -> None:
    table = make_table(n=300)
    table.splits = ["train" if i % 3 else "test" for i in range(300)]
    judged = decide_table(table, rung="temperature")
    assert set(judged.table.splits) == {"test"} and judged.fit_clips == 100
    assert any("200 rows of split 'train' are not evaluated" in note for note in judged.notes)
    table.splits = ["train"] * 300
    with pytest.raises(TableError, match="every row has split 'train'"):
        decide_table(table, rung="temperature")
    assert any("optimistic" in note for note in decide_table(table, folds=3, rung="temperature").notes)
    with pytest.raises(TableError, match="not both"):
        decide_table(table, folds=3, fit_split="train")


def test_draws_of_a_clip_are_one_unit(capsys: pytest.CaptureFixture[str]) -> None:
    """Three equal draws of every clip carry no more than the clip: the interval is that of the clips."""
    table = make_table(n=200)
    table.groups = ["one"] * 200
    rows = np.repeat(np.arange(200), 3)
    tripled = DecisionTable(
        ids=[f"{i}-{d}" for i, d in zip(rows, np.tile(range(3), 200), strict=True)], groups=["one"] * 600,
        splits=[table.splits[i] for i in rows], labels=table.labels[rows], logits=table.logits[rows],
        classes=table.classes, modalities=table.modalities, clips=[str(i) for i in rows],
        draws=np.tile(np.arange(3), 200),
    )  # fmt: skip
    judged = decide_splits(tripled, **FAST)
    one, three = decide_splits(table, **FAST).row("sum"), judged.row("sum")
    width = np.ptp(one["accuracy_ci"])
    assert np.ptp(three["accuracy_ci"]) == pytest.approx(width, rel=0.15)
    assert three["accuracy_clean"] == one["accuracy"]
    report = diagnose(judged, draws=5)
    fit = 3 * table.splits.count("calibration")
    assert (report["n"], report["n_fit"], 3 * report["n_clips_fit"]) == (3 * report["n_clips"], fit, fit)
    assert f"of {report['n_clips']} clips ({report['n']} draws) right" in summary(report)[0]
    print_ladder(report)
    judged_on, fitted_on = report["n_clips"], report["n_clips_fit"]
    told = f"evaluated on {judged_on} clips ({report['n']} draws), fitted on {fitted_on} clips ({fit} draws)"
    assert capsys.readouterr().out.startswith(told)


def test_what_is_not_defined_is_null_with_a_reason() -> None:
    """No modality right anywhere, no clip with both, constant features, logits that overflow: still valid JSON."""
    table = make_table(n=120, classes=3)
    table.logits[:] = -1e4
    wrong = (table.labels + 1) % 3
    table.logits[np.arange(120), :, wrong] = 1e4
    table.logits[::2, 0], table.logits[1::2, 1] = np.nan, np.nan
    table.features = {"audio": np.ones((120, 4)), "vision": np.ones((120, 4))}
    report = diagnose(decide_splits(table, **FAST), draws=10)
    json.dumps(report, allow_nan=False)
    assert report["rescued"]["sum"]["lost"] is None
    reasons = {entry["path"]: entry["reason"] for entry in report["undefined"]}
    assert reasons["rescued.sum.lost"] == "no modality gets any of these clips right"
    assert reasons["rescued.sum.rescued.audio"] == "this modality is never the only one to get a clip right"
    assert all(reason for reason in reasons.values())


def test_where_no_clip_has_a_modality_the_lean_is_said_to_be_undefined_and_why() -> None:
    table = make_table(n=120, classes=3)
    table.logits[:, 0] = np.nan
    report = diagnose(decide_splits(table, rung="temperature"), draws=10)
    why = "no class has evaluated clips of every modality"
    assert {"path": "balance.adaptive.index", "reason": why} in report["undefined"]
    assert summary(report)[2] == f"The lean of the decision is not known: {why}."


def test_the_sum_that_is_diagnosed_is_the_plain_sum() -> None:
    """Also of some of three modalities, and where the fallback `sum` counts the prior of the place of use."""
    table = make_table(n=300, modalities=3, missing=0.2)
    judged = decide_splits(table, rung="temperature", prior=[0.7, 0.1, 0.1, 0.1])
    (part,) = judged.states["sum"]
    np.testing.assert_array_equal(part.fuse(judged.table.logits).logits, judged.fusions["sum"])
    got = subset_values(judged.states["sum"], judged.table)
    np.testing.assert_array_equal(got, subset_values(plain(judged.table), judged.table))


def of_state(table: DecisionTable, state: HeadState) -> Any:
    """What the functions of a diagnosis need of a judged table."""
    fusions = {"adaptive": state.fuse(table.logits).logits}
    return SimpleNamespace(
        table=table, fusions=fusions, states={"adaptive": [FittedPart(np.arange(len(table)), state)]}
    )


def test_a_missing_modality_is_not_to_blame_and_the_bias_may_be() -> None:
    """Odds of 9 against the label from the prior in use; by hand: audio 3:7, then audio 2:3 and vision 19:1."""
    logits = np.log([[[0.3, 0.7], [np.nan, np.nan]], [[0.4, 0.6], [0.95, 0.05]]])
    table = DecisionTable(["a", "b"], ["x", "y"], ["test"] * 2, np.array([1, 1]), logits, ["no", "yes"],
                          ["audio", "vision"])  # fmt: skip
    state = HeadState.plain_sum(2, 2).replace(prior_shift=np.log([0.9, 0.1]) - np.log(0.5))
    found = lost_clips(of_state(table, state))
    assert found["by_class"] == {"audio": [0, 0], "vision": [0, 1], "bias": [0, 1]}
    by_clip = {clip["id"]: (clip["culprit"], clip["pull"]) for clip in found["clips"]}
    assert by_clip["a"] == ("bias", pytest.approx(np.log(9))) and by_clip["b"] == ("vision", pytest.approx(np.log(19)))
    assert list(by_clip) == ["b", "a"], "the hardest pull first"


def test_a_clip_whose_only_modality_is_right_is_not_rescued_from_a_wrong_one() -> None:
    judged = of_state(two_clips().take([0, 2]), HeadState.plain_sum(2, 2))
    assert [judged.table.ids[row] for row in _telling_clips(judged, "adaptive")] == ["a"]

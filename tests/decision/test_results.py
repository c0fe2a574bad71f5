"""Rows, weights and their printing against hand computation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_mmbalance.decision.results import (
    chance_notes,
    mean_weights,
    measure,
    plain_sum,
    render_rows,
    rows_of,
)
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.metrics import measures


def logits_of(probabilities) -> np.ndarray:
    return np.log(np.asarray(probabilities, dtype=float))


# Four clips of two classes; audio is missing in the last. Audio says 0 0 1 -, vision 0 1 1 1; the labels are 0 1 1 0.
AUDIO = [[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [math.nan, math.nan]]
VISION = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9]]
LABELS = np.array([0, 1, 1, 0])
LOG_PRIOR = np.log([0.8, 0.2])


@pytest.fixture
def table() -> DecisionTable:
    return DecisionTable(
        ids=list("abcd"),
        groups=["g1", "g1", "g2", "g3"],
        splits=["test"] * 4,
        labels=LABELS,
        logits=np.stack([logits_of(AUDIO), logits_of(VISION) + 3.0], axis=1),  # rows need not be normalised
        classes=["no", "yes"],
        modalities=["audio", "vision"],
        references={"fused": logits_of([[0.5, 0.5], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])},
    )


def test_rows_by_hand(table):
    rows = rows_of(table, "test", LOG_PRIOR)
    assert [row["method"] for row in rows] == ["audio", "vision", "sum", "prior_sum", "fused"]
    assert {row["split"] for row in rows} == {"test"}
    audio, vision, total, once, fused = rows
    assert [row["n"] for row in rows] == [3, 4, 4, 4, 4]  # audio answers only the clips it is there for
    assert audio["accuracy"] == pytest.approx(2 / 3)
    assert audio["nll"] == pytest.approx(-(math.log(0.8) + math.log(0.4) + math.log(0.7)) / 3)
    # F1 of class 0: 1 hit, 1 false alarm, none missed: 2/3; class 1: 1 hit, none, 1 missed: 2/3
    assert audio["macro_f1"] == pytest.approx(2 / 3)
    # confidences .8 (right), .6 (wrong), .7 (right), each in a bin of its own
    assert audio["ece"] == pytest.approx((0.2 + 0.6 + 0.3) / 3)
    assert vision["accuracy"] == 0.75
    assert vision["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.6) + math.log(0.1)) / 4)
    # products .72/.02, .12/.32, .12/.42 and vision alone .1/.9
    right = [0.72 / 0.74, 0.32 / 0.44, 0.42 / 0.54, 0.1]
    assert total["nll"] == pytest.approx(-sum(map(math.log, right)) / 4)
    assert total["accuracy"] == 0.75
    # with the prior once: products over .8, .2: .9/.1, .15/1.6, .15/2.1 and vision by itself
    right = [0.9 / 1.0, 1.6 / 1.75, 2.1 / 2.25, 0.1]
    assert once["nll"] == pytest.approx(-sum(map(math.log, right)) / 4)
    assert fused["accuracy"] == 0.75  # the tie of the first clip goes to the lower index, which is right


def test_the_sum_leaves_missing_modalities_out(table):
    for total in (plain_sum(table), plain_sum(table, LOG_PRIOR)):
        np.testing.assert_allclose(measures.log_softmax(total)[3], logits_of(VISION)[3], atol=1e-12)
    both = plain_sum(table)[0]
    np.testing.assert_allclose(both[0] - both[1], math.log(0.72 / 0.02), atol=1e-12)


def test_intervals_are_of_clips_with_few_groups_and_of_groups_with_many(table):
    low, high = measure("fused", "test", table.references["fused"], table, np.ones(4, dtype=bool))["accuracy_ci"]
    assert 0.0 <= low <= 0.75 <= high <= 1.0 and isinstance(low, float)
    many = np.repeat([1.0, 0.0], 30)
    labels = np.zeros(60, dtype=int)
    logits = np.where(many[:, None] == 1, [[2.0, 0.0]], [[0.0, 2.0]])  # six groups, all right or all wrong
    clustered = DecisionTable(
        ids=[str(i) for i in range(60)],
        groups=[f"g{i // 10}" for i in range(60)],
        splits=["test"] * 60,
        labels=labels,
        logits=np.stack([logits, logits], axis=1),
        classes=["no", "yes"],
        modalities=["audio", "vision"],
    )
    wide = measure("fused", "test", logits, clustered, np.ones(60, dtype=bool))["accuracy_ci"]
    clustered.groups = [f"g{i % 2}" for i in range(60)]
    narrow = measure("fused", "test", logits, clustered, np.ones(60, dtype=bool))["accuracy_ci"]
    # standard error of a mean of n values that are 0 or 1 alike: .5 / sqrt(n), times 1.96 either way
    assert wide[1] - wide[0] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(6), abs=0.2)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(60), abs=0.04)


def test_a_modality_that_no_clip_has(table):
    table.logits[:, 0] = np.nan
    row = rows_of(table, "test", LOG_PRIOR)[0]
    assert row == {
        "method": "audio",
        "split": "test",
        "n": 0,
        "accuracy": None,
        "accuracy_ci": None,
        "ci_unit": None,
        "macro_f1": None,
        "nll": None,
        "ece": None,
    }
    assert "no clip has this modality" in render_rows([row])


def test_mean_weights_are_of_clips_with_every_modality():
    weights = np.array([[[1.0, 0.5], [1.0, 1.5]], [[3.0, 0.5], [0.0, 2.5]], [[1.0, 1.0], [0.0, 0.0]]])
    mask = np.array([[1, 1], [1, 1], [1, 0]])
    logits = np.where(mask[..., None], weights, np.nan)
    table = DecisionTable(list("abc"), list("abc"), ["test"] * 3, np.zeros(3, dtype=int), logits, ["no", "yes"],
                          ["audio", "vision"])  # fmt: skip
    assert mean_weights(weights, table) == {"audio": [2.0, 0.5], "vision": [0.5, 2.0]}
    assert mean_weights(None, table) is None  # a head without weights
    table.logits[:, 1] = np.nan
    assert mean_weights(weights, table) is None


def test_the_table_a_person_reads(table):
    rows = rows_of(table, "test", LOG_PRIOR)
    lines = render_rows(rows).splitlines()
    assert len(lines) == 7 and lines[-1] == "(intervals: bootstrap over clips)"
    audio = lines[1].split()
    assert audio[:2] == ["audio", "66.7"] and audio[-4:] == ["66.7", f"{rows[0]['nll']:.3f}", "0.367", "3"]
    low, high = rows[0]["accuracy_ci"]
    assert audio[2] == f"{100 * low:.1f}-{100 * high:.1f}"
    assert lines[5].split()[:2] == ["fused", "75.0"]


def test_methods_at_chance_are_named(table):
    rows = [
        {"method": method, "n": n, "accuracy_ci": ci}
        for method, n, ci in (("audio", 4, [0.5, 0.9]), ("vision", 4, [0.51, 0.9]), ("touch", 0, None))
    ]
    (note,) = chance_notes(rows, table)  # two labels of four are class 0
    assert note == "at chance on these 4 clips: audio (naming the largest class every time gives 50.0)"
    assert chance_notes(rows[1:], table) == []


def test_each_row_says_what_its_interval_resamples():
    """Six groups, of which four have sound: sound's interval is over clips, and the printed line says so."""
    logits = np.random.default_rng(0).normal(size=(24, 2, 2))
    groups = [f"g{i % 6}" for i in range(24)]
    logits[[group in ("g4", "g5") for group in groups], 0] = np.nan
    table = DecisionTable([str(i) for i in range(24)], groups, ["test"] * 24, np.arange(24) % 2, logits, ["no", "yes"],
                          ["audio", "vision"], references={"fused": logits[:, 1]})  # fmt: skip
    rows = rows_of(table, "test", np.log([0.5, 0.5]))
    assert [row["ci_unit"] for row in rows] == ["clip", "group", "group", "group", "group"]
    told = "(intervals: bootstrap over groups; for audio, with fewer groups, over clips)"
    assert render_rows(rows).splitlines()[-1] == told

"""The ladder's rules: what may be fitted, what is chosen, and why."""

from __future__ import annotations

import numpy as np
import pytest

from hf_mmbalance.decision.calibration import calibrated_state
from hf_mmbalance.decision.families import PARENTS, SHOWN, STIFF
from hf_mmbalance.decision.folds import clip_folds, group_folds, standard_error
from hf_mmbalance.decision.ladder import Ladder, RungScore, allowed_rungs, ancestry, choose, fit_ladder

from .drawn_tables import draw


def ladder(**options: object) -> Ladder:
    rung = options.pop("rung", None)
    data = draw(**options)  # type: ignore[arg-type]
    return fit_ladder(
        data["logits"],
        data["labels"],
        data["groups"],
        calibrator=lambda z, y: calibrated_state("temperature", z, y),
        strengths=(30.0, 3.0),
        folds=3,
        rung=rung,  # type: ignore[arg-type]
    )


def test_folds_keep_groups_together_and_balance_sizes() -> None:
    groups = np.repeat([f"g{i}" for i in range(10)], [50, 1, 1, 1, 1, 1, 20, 20, 5, 5])
    fold = group_folds(groups, 3, seed=4)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    assert sorted(np.bincount(fold)) == [27, 28, 50]
    assert not np.array_equal(group_folds(groups, 3, seed=5), fold)
    assert group_folds(["a", "b", "a"], 5).tolist() in ([0, 1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="at least two"):
        group_folds(["a", "a"], 5)


def test_clip_folds_are_stratified() -> None:
    labels = np.repeat([0, 1, 2], 20)
    fold = clip_folds(labels, 5)
    assert all((np.bincount(fold[labels == c]) == 4).all() for c in range(3))


def test_standard_error_by_hand() -> None:
    values = np.array([1.0, 1.0, 0.0, 0.0])
    by_clip = np.std(values, ddof=1) / 2
    # two groups that are all 1 and all 0: totals about the mean are +1 and -1
    assert standard_error(values, ["a", "a", "b", "b"]) == pytest.approx(np.sqrt(2 * 2 / 1) / 4)
    assert standard_error(values, ["a", "b", "a", "b"]) == pytest.approx(by_clip)
    assert standard_error(values, ["a"] * 4) == pytest.approx(by_clip)
    assert standard_error(values[:1], ["a"]) == np.inf


def test_names_and_parents_are_those_of_the_design() -> None:
    assert list(PARENTS) == ["sum", "temperature", "global", "global_bias", "class", "class_bias", "linear", "gate",
                             "class_gate"]  # fmt: skip
    assert ancestry("class_gate") == ["class_gate", "gate", "class_bias", "class", "global", "temperature", "sum"]
    with pytest.raises(ValueError, match="'clas' is unknown"):
        ancestry("clas")


def scores(n: int = 1000, **means: float) -> dict[str, RungScore]:
    noise = np.random.default_rng(0).normal(0, 0.1, n)
    rng = np.random.default_rng(1)
    return {name: RungScore(mean + noise + rng.normal(0, 0.05, n), np.ones(n) * 0.5) for name, mean in means.items()}


GROUPS = np.arange(1000).astype(str)


def test_the_simplest_within_one_paired_error_is_taken() -> None:
    # the paired error is about .002, that of a rung's own mean about .004
    found = scores(sum=2.0, best_single=2.0, temperature=1.5, **{"global": 1.0005, "class": 1.0, "class_bias": 0.9999})
    name, reason = choose(found, GROUPS, ["sum", "temperature", "global", "class", "class_bias"])
    assert name == "global" and "one paired standard error" in reason
    found = scores(sum=2.0, best_single=2.0, temperature=1.5, **{"global": 1.01, "class": 1.0})
    assert choose(found, GROUPS, ["sum", "temperature", "global", "class"])[0] == "class"


def test_nothing_is_taken_that_does_not_beat_both_fallbacks() -> None:
    found = scores(sum=1.0, best_single=0.9, temperature=0.95, **{"global": 0.94})
    name, reason = choose(found, GROUPS, ["sum", "temperature", "global"])
    assert name == "best_single" and "does not beat the fallback" in reason


def test_a_gate_must_not_lose_accuracy() -> None:
    found = scores(sum=2.0, best_single=2.0, class_bias=1.0, gate=0.9)
    candidates = ["sum", "class_bias", "gate"]
    assert choose(found, GROUPS, candidates)[0] == "gate"
    found["gate"].hit[0] -= 0.01
    assert choose(found, GROUPS, candidates)[0] == "class_bias"


def test_fewer_than_three_groups_allow_stiff_rungs_only() -> None:
    for number in (1, 2):
        got = ladder(groups=number, n=200)
        assert set(got.states) == {*STIFF, *SHOWN, "best_single"} and got.chosen in {*STIFF, "best_single"}
        assert any(f"{number} group(s)" in note for note in got.notes)
    assert set(ladder(groups=3, n=200).states) == {*PARENTS, "best_single"}


def test_wide_rungs_are_left_out_with_many_classes() -> None:
    logits, labels = np.zeros((200, 2, 65)), np.arange(200) % 65
    allowed, notes = allowed_rungs(logits, labels, np.arange(200).astype(str))
    assert "linear" not in allowed and "class_gate" not in allowed and "gate" in allowed
    assert any("65 classes" in note for note in notes)


def test_a_distorted_sum_is_mended() -> None:
    got = ladder(n=900)
    assert got.chosen not in ("sum", "best_single")
    assert got.scores[got.chosen].nll.mean() < got.scores["sum"].nll.mean() - 0.05
    assert got.scores[got.chosen].hit.mean() > got.scores["sum"].hit.mean()


def test_a_rung_asked_for_is_taken_with_its_parents_only() -> None:
    got = ladder(rung="class", n=200)
    assert got.chosen == "class" and set(got.states) == {"sum", "best_single", "temperature", "global", "class"}
    got = ladder(rung="class", groups=2, n=200)
    assert got.chosen in {*STIFF, "best_single"}
    assert any("'class' was asked for" in note for note in got.notes)


def test_a_useless_modality_leaves_the_other_alone() -> None:
    data = draw(n=600, classes=3)
    rng = np.random.default_rng(5)
    data["logits"][:, 1] = 3 * rng.normal(size=(600, 3))
    got = fit_ladder(**data, calibrator=lambda z, y: calibrated_state("temperature", z, y), strengths=(30.0, 3.0))
    fused = got.states[got.chosen].fuse(data["logits"])[0].argmax(axis=1)
    alone = got.states["best_single"].fuse(data["logits"])[0].argmax(axis=1)
    assert got.best_single == 0
    assert (fused == data["labels"]).mean() >= (alone == data["labels"]).mean() - 0.01

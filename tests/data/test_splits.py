"""Splits: group-disjoint if possible, balanced, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from hf_mmbalance.data.clips import ClipSplits, DataError, split_name
from hf_mmbalance.data.splits import choose_part, coverage_notes, fill_splits
from tests.training.tiny_runs import CLASSES, random_clips


def clips(groups: int, a_group: int, classes: int = 4):
    ids = [f"c{i}" for i in range(groups * a_group)]
    return ids, [i % classes for i in range(len(ids))], [f"g{i // a_group}" for i in range(len(ids))]


def test_whole_groups_balanced_by_class():
    ids, labels, groups = clips(20, 16)
    mask, how = choose_part(ids, labels, groups, 0.2, seed=0, name="calibration")
    inside = {g for g, m in zip(groups, mask, strict=True) if m}
    assert inside.isdisjoint({g for g, m in zip(groups, mask, strict=True) if not m})
    assert len(inside) == 4 and "4 of 20" in how
    np.testing.assert_array_equal(np.bincount(np.array(labels)[mask]), [16] * 4)


def test_uneven_groups_come_near_the_wanted_counts():
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 60, size=30)
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    labels = rng.integers(0, 5, size=len(groups)).tolist()
    mask, _ = choose_part([str(i) for i in range(len(groups))], labels, groups, 0.15, seed=3, name="validation")
    wanted = 0.15 * np.bincount(labels)
    assert np.abs(np.bincount(np.array(labels)[mask]) - wanted).max() < 0.35 * wanted.min()


def test_few_groups_are_split_by_clip_and_reported():
    ids, labels, groups = clips(2, 40)
    mask, how = choose_part(ids, labels, groups, 0.25, seed=0, name="calibration")
    np.testing.assert_array_equal(np.bincount(np.array(labels)[mask]), [5] * 4)
    assert "by clip" in how and "only 2 groups" in how
    assert choose_part(ids, labels, ["a"] * 40, 0.25, seed=0, name="calibration")[1].endswith("(only 1 group)")


def test_split_depends_on_the_seed_and_not_on_the_order():
    ids, labels, groups = clips(2, 40)
    mask, _ = choose_part(ids, labels, groups, 0.25, seed=0, name="calibration")
    turned, _ = choose_part(ids[::-1], labels[::-1], groups[::-1], 0.25, seed=0, name="calibration")
    np.testing.assert_array_equal(mask, turned[::-1])
    other, _ = choose_part(ids, labels, groups, 0.25, seed=1, name="calibration")
    assert (mask != other).any()


def test_few_groups_are_distributed_over_all_parts():
    ids, labels, groups = clips(6, 8)
    fractions = {"test": 0.2, "validation": 0.1, "calibration": 0.1}
    out, _ = fill_splits(ids, labels, groups, [None] * len(ids), fractions=fractions, seed=0)
    sides = {name: {g for g, s in zip(groups, out, strict=True) if s == name} for name in fractions | {"train": 1}}
    assert {name: len(side) for name, side in sides.items()} == {
        "test": 1,
        "validation": 1,
        "calibration": 1,
        "train": 3,
    }


def test_fill_splits_adds_absent_splits_and_keeps_existing_ones():
    ids, labels, groups = clips(100, 1)
    given = ["test" if i < 20 else "train" for i in range(100)]
    fractions = {"test": 0.5, "validation": 0.1, "calibration": 0.0}
    out, notes = fill_splits(ids, labels, groups, given, fractions=fractions, seed=0)
    assert out[:20] == ["test"] * 20 and out.count("validation") == 8 and "calibration" not in out
    assert len(notes) == 1 and "no validation split" in notes[0]
    with pytest.raises(DataError, match="no train split"):
        fill_splits(ids, labels, groups, ["test"] * 100, fractions=fractions, seed=0)


def test_a_split_that_cannot_be_taken_is_not_said_to_be():
    out, notes = fill_splits(["a", "b"], [0, 1], ["a", "b"], ["train"] * 2, fractions={"test": 0.2}, seed=0)
    assert out == ["train"] * 2
    assert notes == ["the source has no test split, and none can be taken from train: every class has one clip"]


def test_bad_fractions_and_names():
    with pytest.raises(DataError, match="fraction"):
        choose_part(["a", "b"], [0, 1], ["a", "b"], 1.0, seed=0, name="test")
    with pytest.raises(DataError, match="cannot be divided"):
        choose_part(["a"], [0], ["a"], 0.5, seed=0, name="test")
    assert split_name("VAL") == "validation"
    with pytest.raises(DataError, match="unknown split"):
        split_name("holdout")


def test_classes_that_a_split_lacks_and_few_calibration_clips_are_noted():
    sizes = {"train": 9, "calibration": 6, "validation": 2, "test": 1}
    notes = coverage_notes(ClipSplits("x", CLASSES, {k: random_clips(k, n) for k, n in sizes.items()}, 16_000))
    assert notes == [
        "1 of 3 classes have no validation clip and are ignored where that split is used: happy",
        "2 of 3 classes have no test clip and are not tested: angry, happy",
        "about 2.0 calibration clip(s) per class: too few to fit the decision layer by class; give more clips, or a"
        " larger calibration_fraction",
    ]
    assert not coverage_notes(ClipSplits("x", CLASSES, {k: random_clips(k, 9) for k in sizes}, 16_000))

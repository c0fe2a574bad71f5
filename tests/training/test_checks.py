"""What clips, model and arguments must have in common."""

from __future__ import annotations

import pytest

from hf_mmbalance.training.checks import absent_modalities, check_classes

from .tiny_runs import (
    CLASSES,
    random_splits,
    tiny_model,
    tiny_trainer,
)


def test_modalities_that_no_train_clip_has():
    assert absent_modalities(random_splits()) == []
    assert absent_modalities(random_splits(without={"train": {0: "audio", 1: "vision"}})) == []
    assert absent_modalities(random_splits(without={"train": dict.fromkeys(range(12), "audio")})) == ["audio"]
    late = random_splits(train=500, without={"train": {i: "audio" for i in range(500) if i != 333}})
    assert absent_modalities(late) == []


def test_classes_must_be_the_models_in_the_same_order():
    config = tiny_model().config
    check_classes(config, CLASSES)
    for classes, words in (
        (["calm", "happy", "angry"], "'angry' where the dataset has 'happy' .3 and 3 classes"),
        (["calm", "angry"], "'happy' where the dataset has '.none.'"),
        ([*CLASSES, "sad"], "'.none.' where the dataset has 'sad' .3 and 4 classes"),
    ):
        with pytest.raises(ValueError, match=words):
            check_classes(config, classes)


def test_splits_that_a_run_cannot_do_without(tmp_path):
    for split in ("train", "validation", "calibration"):
        clips = random_splits()
        del clips.splits[split]
        with pytest.raises(ValueError, match=f"'noise' has no clips in split.s. {split}"):
            tiny_trainer(tmp_path, clips=clips)
    clips = random_splits(calibration=0)
    tiny_trainer(tmp_path, model=tiny_model("sum"), clips=clips, max_steps=1).train()  # this head needs none

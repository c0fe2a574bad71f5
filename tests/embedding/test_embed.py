"""Features are those of the towers, are computed once, survive interruptions, and follow every change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tqdm import tqdm
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.cli import main
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.embedding import embed as embed_module
from hf_mmbalance.embedding.build import TowerName, warn_of_lower_rate
from hf_mmbalance.embedding.draws import Draws
from hf_mmbalance.embedding.embed import EmbedOptions, embed, finish, merge, read_plan
from hf_mmbalance.embedding.parts import EmbeddingError
from hf_mmbalance.embedding.stored import Embeddings
from hf_mmbalance.training.batches import ClipCollator

from ..model.tiny import WHISPER
from ..training.tiny_runs import random_clips, random_splits, tiny_model, tiny_processor


OPTIONS = EmbedOptions(batch_size=4, clips_per_part=5)
WITHOUT = {"train": {3: "audio"}, "test": {1: "vision"}}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(folder: Path, clips=None, model=None, **options):
    clips = random_splits(without=WITHOUT) if clips is None else clips
    return embed(clips, model or tiny_model(), tiny_processor(), folder, options=OPTIONS, **options)


def test_features_are_those_of_the_towers_on_the_same_clips(tmp_path):
    clips, model = random_splits(without=WITHOUT), tiny_model().eval()
    counts = run(tmp_path, clips, model)
    stored = Embeddings.read(tmp_path)
    assert counts["rows"] == len(stored) == 30 and counts["computed"] == 58 and counts["reused"] == 0
    collate = ClipCollator(tiny_processor())
    for split, part in clips.splits.items():
        rows = [i for i, name in enumerate(stored.splits) if name == split]
        assert [stored.ids[i] for i in rows] == part.ids and [stored.groups[i] for i in rows] == part.groups
        assert stored.labels[rows].tolist() == part.labels and not stored.draws[rows].any()
        batch = collate([part[i] for i in range(len(part))])
        batch.pop("labels")
        with torch.no_grad():
            output = model(**batch)
        for m, name in enumerate(stored.modalities):
            there = output.modality_mask[:, m].bool().numpy()
            assert (np.isnan(stored.features[name][rows]).any(axis=1) == ~there).all()
            found = stored.features[name][rows][there]
            assert np.abs(found - output.modality_features[m].numpy()[there]).max() < 1e-5
            means = stored.tokens[name][rows][there]
            assert np.abs(means - output.modality_tokens[m].numpy()[there]).max() < 1e-5


def test_sound_of_any_length_is_padded_to_whispers_own(tmp_path):
    """Its feature is that of the tokens of the sound: the same by itself as in a batch."""
    processor = MMBalanceProcessor(WhisperFeatureExtractor(16, chunk_length=1), tiny_processor().image_processor)
    clips = random_splits()
    clips.splits["train"].kept[0] = (clips.splits["train"].kept[0][0][:900], clips.splits["train"].kept[0][1])
    vision = tiny_model().config.vision_config
    classes = dict(enumerate(clips.classes))
    model = MMBalanceForAudioVisualClassification.from_backbones(WhisperConfig(**WHISPER), vision, id2label=classes)
    embed(clips, model, processor, tmp_path, options=OPTIONS)
    stored = Embeddings.read(tmp_path)
    for index in (0, 1):
        batch = ClipCollator(processor)([clips.splits["train"][index]])
        batch.pop("labels")
        with torch.no_grad():
            alone = model.eval()(**batch).modality_features[0].numpy()
        row = stored.ids.index(clips.splits["train"].ids[index])
        assert np.abs(stored.features["audio"][row] - alone[0]).max() < 1e-5


def test_clips_at_a_lower_rate_than_the_tower_knows_are_noted():
    clips, processor = random_splits(), tiny_processor()
    with CaptureLogger(logging.get_logger("hf_mmbalance.embedding.build")) as caught:
        warn_of_lower_rate(clips, processor)
        assert caught.out == ""
        processor.feature_extractor.sampling_rate = 48_000
        warn_of_lower_rate(clips, processor)
    assert (
        "clips are read at 16000 Hz, but the audio tower was trained on 48000 Hz: --sampling_rate 48000" in caught.out
    )


def test_the_bar_moves_with_every_batch_and_ends_at_its_total(tmp_path, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "disable": True})
            self.planned, self.steps = kwargs["total"], []
            bars.append(self)

        def update(self, n=1):
            self.steps.append(n)

    monkeypatch.setattr(embed_module, "progress_bar", Bar)
    run(tmp_path)
    run(tmp_path)  # all of it is there
    shutil.rmtree(next(tmp_path.glob("audio-*")))
    run(tmp_path)
    assert [bar.planned for bar in bars] == [sum(bar.steps) for bar in bars] == [60, 60, 60]  # 30 rows, two towers
    assert max(bars[0].steps) <= OPTIONS.batch_size


def test_half_precision_is_that_of_the_towers_work_not_of_their_weights(tmp_path):
    """A model that trains on the features is one of the same towers; one that is saved has its weights."""
    model, half = tiny_model(), EmbedOptions(batch_size=4, dtype="bfloat16")
    embed(random_splits(), model, tiny_processor(), tmp_path / "half", options=half)
    assert all(torch.equal(value, tiny_model().state_dict()[name]) for name, value in model.state_dict().items())
    stored = Embeddings.read(tmp_path / "half")
    stored.check_towers(tiny_model(), tiny_processor())
    run(tmp_path / "whole", random_splits())
    for name, values in Embeddings.read(tmp_path / "whole").features.items():
        assert 0 < np.abs(stored.features[name] - values).max() < 0.05 * np.abs(values).max()


def test_what_is_there_is_not_computed_again_and_not_a_byte_changes(tmp_path):
    run(tmp_path)
    before = files(tmp_path)
    counts = run(tmp_path)
    assert counts["computed"] == 0 and counts["reused"] == 58
    assert files(tmp_path) == before


@pytest.mark.parametrize("lost", [0, 4, 11])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, lost):
    run(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    plan = read_plan(tmp_path / "broken")
    for path in sorted((tmp_path / "broken").glob("*-*/part-*.parquet"))[lost:]:
        path.unlink()
    draft = next((tmp_path / "broken").glob("audio-*")) / ".part-00000-of-00009.parquet.123"
    draft.write_bytes(b"half")
    (tmp_path / "broken" / "embeddings.json").write_text(
        (tmp_path / "whole" / "embeddings.json").read_text().replace('"complete": true', '"complete": false')
    )
    with pytest.raises(EmbeddingError, match="run `mmbalance embed` again"):
        Embeddings.read(tmp_path / "broken")
    with pytest.raises(EmbeddingError, match="is missing"):
        finish(tmp_path / "broken")
    counts = run(tmp_path / "broken")
    assert counts["computed"] > 0 and plan["parts"] == 9
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_only_a_changed_clip_is_computed_again(tmp_path):
    clips = random_splits(without=WITHOUT)
    run(tmp_path, clips)
    before = Embeddings.read(tmp_path)
    clips.splits["train"].kept[0] = (clips.splits["train"].kept[0][0] * 0.5, clips.splits["train"].kept[0][1])
    counts = run(tmp_path, clips)
    after = Embeddings.read(tmp_path)
    assert counts["computed"] == 1
    changed = np.abs(after.features["audio"] - before.features["audio"]).max(axis=1) > 0
    assert np.flatnonzero(changed).tolist() == [0]
    np.testing.assert_array_equal(after.features["vision"], before.features["vision"])


def test_only_a_changed_tower_is_run_again(tmp_path):
    model = tiny_model()
    run(tmp_path, model=model)
    with torch.no_grad():
        model.vision_model.get_parameter("layernorm.weight").mul_(1.5)
    counts = run(tmp_path, model=model)
    assert counts["computed"] == 29 and counts["reused"] == 29  # one clip has no frames, one no sound
    assert len(list(tmp_path.glob("vision-*"))) == 1  # features of the old tower are gone
    with pytest.raises(EmbeddingError, match="its vision features come from a different tower"):
        Embeddings.read(tmp_path).check_towers(tiny_model(), tiny_processor())
    Embeddings.read(tmp_path).check_towers(model, tiny_processor())


def test_another_way_to_read_is_another_tower(tmp_path):
    run(tmp_path)
    processor = tiny_processor()
    processor.feature_extractor.mean = -3.0
    counts = embed(random_splits(without=WITHOUT), tiny_model(), processor, tmp_path, options=OPTIONS)
    assert counts["computed"] == 29 and counts["reused"] == 29


def test_added_clips_are_computed_and_the_others_reused(tmp_path):
    run(tmp_path, random_splits(train=12))
    grown = random_splits(train=14)  # the first twelve are the same
    counts = run(tmp_path, grown)
    assert counts["computed"] == 2 * 2
    run(tmp_path / "new", grown)
    found, expected = Embeddings.read(tmp_path), Embeddings.read(tmp_path / "new")
    assert found.ids == expected.ids
    for name in ("audio", "vision"):
        assert np.abs(found.features[name] - expected.features[name]).max() < 1e-5
    assert not (tmp_path / ".reused").exists()


def test_draws_share_what_they_do_not_change(tmp_path):
    draws = Draws(corrupted=3, corruptions=("white_noise",), splits=("calibration",))
    counts = run(tmp_path, random_splits(), draws=draws)
    stored = Embeddings.read(tmp_path)
    rows = [i for i, split in enumerate(stored.splits) if split == "calibration"]
    assert len(rows) == 18 and stored.draws[rows].tolist() == [0, 1, 2] * 6
    assert stored.clips[rows[1]] == stored.clips[rows[0]] and stored.ids[rows[1]] == stored.ids[rows[0]] + "#1"
    # White noise leaves the frames alone: one vision feature per clip, three of sound.
    assert counts["computed"] == 30 + 30 + 12
    np.testing.assert_array_equal(stored.features["vision"][rows[0]], stored.features["vision"][rows[1]])
    assert np.abs(stored.features["audio"][rows[0]] - stored.features["audio"][rows[1]]).max() > 1e-3


def test_shards_of_two_machines_make_the_same_folder(tmp_path):
    run(tmp_path / "whole")
    for index in range(2):
        run(tmp_path / f"part{index}", shard=(index, 2))
    with pytest.raises(EmbeddingError, match="is missing"):
        merge([tmp_path / "part0"], tmp_path / "merged")
    merge([tmp_path / "part0", tmp_path / "part1"], tmp_path / "merged")  # nothing is there of the first try
    assert files(tmp_path / "merged") == files(tmp_path / "whole")
    again = [
        "embed",
        "--merge",
        *(str(tmp_path / name) for name in ("part0", "part1")),
        "--out",
        str(tmp_path / "cli"),
    ]
    assert main([*again, "--json", str(tmp_path / "merged.json")]) == 0
    assert json.loads((tmp_path / "merged.json").read_text()) == {"rows": 30}
    with pytest.raises(EmbeddingError, match="is not empty"):
        merge([tmp_path / "part0", tmp_path / "part1"], tmp_path / "merged")
    run(tmp_path / "other", random_splits(train=9), shard=(1, 2))
    with pytest.raises(EmbeddingError, match="other was made from different clips"):
        merge([tmp_path / "part0", tmp_path / "other"], tmp_path / "mixed")


def test_shards_may_have_found_their_towers_in_different_folders(tmp_path):
    for index in range(2):
        places = {name: TowerName(f"/machine{index}/{name}") for name in ("audio", "vision")}
        run(tmp_path / f"part{index}", shard=(index, 2), towers=places)
    merge([tmp_path / "part0", tmp_path / "part1"], tmp_path / "merged")
    assert read_plan(tmp_path / "merged")["towers"]["audio"]["name"] == "/machine0/audio"


def test_stored_clips_stand_for_the_clips(tmp_path):
    clips = random_splits(without=WITHOUT)
    run(tmp_path, clips)
    stored = Embeddings.read(tmp_path).clip_splits()
    assert list(stored.splits) == list(clips.splits) and stored.classes == clips.classes
    example = stored["train"][3]
    assert example["id"] == "train-3" and np.isnan(example["features"]["audio"]).all()
    assert example["seconds"] == 0.0 and stored["train"][0]["seconds"] == pytest.approx(0.16)


def test_unusable_folders_and_options_are_refused(tmp_path):
    with pytest.raises(EmbeddingError, match="frame_pooling='temporal' is trained"):
        run(tmp_path, model=tiny_model(frame_pooling="temporal"))
    with pytest.raises(EmbeddingError, match="0 <= i < n"):
        run(tmp_path, shard=(2, 2))
    with pytest.raises(EmbeddingError, match="holds no embeddings.json"):
        Embeddings.read(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(EmbeddingError, match="holds no embeddings.json"):
        run(tmp_path)
    with pytest.raises(DataError, match="dtype 'float8' is unknown"):
        EmbedOptions(dtype="float8")
    for name, options in (("draws", {"corrupted": 0}), ("augmented", {"augmented": 0})):
        with pytest.raises(DataError, match=f"^{name}=0 must be at least 1"):
            Draws(**options)
    with pytest.raises(DataError, match="'calibrate' is not a split that draws can be made of: choose among train"):
        Draws(corrupted=2, splits=("calibrate",))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_not_taken_for_missing_clips(tmp_path, value):
    model = tiny_model()
    with torch.no_grad():
        model.vision_model.get_parameter("layernorm.weight").fill_(value)
    with pytest.raises(EmbeddingError, match="the vision tower returns features that are not finite in float32"):
        run(tmp_path, model=model)


def test_a_damaged_part_is_named(tmp_path):
    run(tmp_path)
    path = sorted(tmp_path.glob("audio-*/part-*.parquet"))[0]
    path.write_bytes(b"PAR1 half a file")
    with pytest.raises(EmbeddingError, match=f"{path.name} cannot be read .* remove it"):
        Embeddings.read(tmp_path)


def test_parts_are_plain_parquet(tmp_path):
    run(tmp_path)
    table = pq.read_table(sorted(tmp_path.glob("audio-*/part-*.parquet"))[0])
    assert table.column_names[:7] == ["id", "clip", "group", "split", "label", "draw", "seconds"]
    assert len(table["feature"][0].as_py()) == 16


def test_what_else_is_in_the_folder_is_left_alone(tmp_path):
    """A run, say, that was trained from the features and written beside them."""
    run(tmp_path)
    (tmp_path / "my_run").mkdir()
    (tmp_path / "my_run" / "model.safetensors").write_text("hours of work")
    run(tmp_path)
    run(tmp_path, random_splits(train=14))
    assert (tmp_path / "my_run" / "model.safetensors").read_text() == "hours of work"


def test_shards_with_other_corruptions_or_classes_are_not_mixed(tmp_path):
    """Their clips have the same names, groups and labels."""
    for index in range(2):
        draws = Draws(corrupted=2, corruptions=("white_noise",), seed=index)
        run(tmp_path / f"seed{index}", shard=(index, 2), draws=draws)
    with pytest.raises(EmbeddingError, match="seed1 was made from different clips, towers or options than"):
        merge([tmp_path / "seed0", tmp_path / "seed1"], tmp_path / "merged")
    renamed = random_splits(without=WITHOUT)
    renamed.classes = renamed.classes[::-1]
    run(tmp_path / "part0", shard=(0, 2))
    run(tmp_path / "part1", renamed, shard=(1, 2))
    with pytest.raises(EmbeddingError, match="part1 was made from different clips"):
        merge([tmp_path / "part0", tmp_path / "part1"], tmp_path / "merged")


def test_clips_without_a_label_are_in_no_split_that_training_takes(tmp_path):
    clips = random_splits()
    clips.unlabelled = random_clips("more", 3)
    run(tmp_path, clips)
    stored = Embeddings.read(tmp_path)
    assert len(stored) == 33
    assert {split: part.ids for split, part in stored.clip_splits().splits.items()} == {
        split: part.ids for split, part in clips.splits.items()
    }


def test_a_clip_of_the_same_name_in_another_split_is_another_clip(tmp_path):
    clips = random_splits()
    clips["test"].ids[0] = clips["train"].ids[0]
    run(tmp_path, clips)
    train = Embeddings.read(tmp_path).clip_splits()["train"]
    for epoch in range(2):
        np.testing.assert_array_equal(train[0, epoch]["features"]["audio"], train[0]["features"]["audio"])

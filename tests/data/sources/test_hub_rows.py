"""Rows of the `datasets` library: what is missing in one, what cannot be a label, and whose clip a cache returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, Video

from hf_mmbalance.data import DataError, HubOptions, load_clips
from hf_mmbalance.data.sources.hub import clips_of
from hf_mmbalance.data.streaming import load
from tests.media_factory import write_clip


WHOLE = {
    "frames": 2,
    "frame_size": [16, 16],
    "test_fraction": 0.0,
    "validation_fraction": 0.0,
    "calibration_fraction": 0.0,
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_clip(tmp_path_factory.mktemp("media") / "c.mp4", seconds=0.4, size=(24, 32)).read_bytes()


def made(clip: bytes, kind: object, **columns: list) -> Dataset:
    """Rows with the same clip; `kind` is the type of the label."""
    count = len(columns["label"])
    types = {"label": kind, "group": Value("string"), "start": Value("float64"), "end": Value("float64")}
    stored = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({name: types[name] for name in columns} | {"clip": stored})
    rows = {**columns, "clip": [{"bytes": clip, "path": None}] * count}
    return Dataset.from_dict(rows, features=features).cast_column("clip", Video())


def test_two_data_sets_share_a_cache_folder_and_not_their_clips(tmp_path: Path) -> None:
    for name, colour in (("dark", (20, 20, 20)), ("light", (220, 220, 220))):
        content = write_clip(tmp_path / f"{name}.mp4", seconds=0.3, colour=colour, size=(24, 24)).read_bytes()
        (tmp_path / name / "data").mkdir(parents=True)
        made(content, ClassLabel(names=["a", "b"]), label=[0, 1]).to_parquet(tmp_path / name / "data/train-0.parquet")
    options = {**WHOLE, "cache_dir": str(tmp_path / "cache")}
    grey = {
        name: load_clips(str(tmp_path / name / "data"), **options)["train"][0]["frames"].mean()
        for name in ("dark", "light")
    }
    assert grey["dark"] < 60 and grey["light"] > 180
    files = sorted((tmp_path / "cache").rglob("*.npz"))
    assert len(files) == 4
    load_clips(str(tmp_path / "dark" / "data"), **options)
    assert sorted((tmp_path / "cache").rglob("*.npz")) == files, "the next run decodes nothing again"
    with pytest.raises(DataError, match="cache_dir needs a data set on this machine"):
        load_clips(str(tmp_path / "dark" / "data"), in_memory=True, **options)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [(Value("string"), ["a", None, "b"]), (ClassLabel(names=["a", "b"]), [0, -1, 1]), (Value("int64"), [0, None, 1])],
)
def test_a_row_without_a_label_is_no_class_of_its_own(clip: bytes, kind: object, labels: list) -> None:
    rows = made(clip, kind, label=labels)
    with pytest.raises(DataError, match="clip 'train-000001' has no label .*: label it, or leave it out"):
        clips_of(rows, HubOptions(**WHOLE))
    kept = clips_of(rows, HubOptions(**WHOLE, unlabelled="keep"))
    assert len(kept.classes) == 2 and kept["train"].labels == [0, 1]
    assert kept.unlabelled is not None and kept.unlabelled.ids == ["train-000001"]


def test_integers_without_names_may_be_negative(clip: bytes) -> None:
    assert clips_of(made(clip, Value("int64"), label=[-1, 1]), HubOptions(**WHOLE)).classes == ["-1", "1"]


def test_a_row_without_a_group_is_its_own_group(clip: bytes) -> None:
    rows = made(clip, Value("string"), label=["a", "b", "a"], group=["g", None, None])
    assert clips_of(rows, HubOptions(**WHOLE))["train"].groups == ["g", "train-000001", "train-000002"]


def test_several_labels_per_clip_are_refused(clip: bytes) -> None:
    rows = made(clip, List(Value("string")), label=[["a"], ["a", "b"]])
    with pytest.raises(DataError, match="'label' does not hold one label per clip .*name another as label_column="):
        clips_of(rows, HubOptions(**WHOLE))


def test_pictures_without_times_or_sound_have_no_length() -> None:
    """Counted as seconds, they would have long clips of other data read whole in use."""
    pictures = [[np.zeros((16, 16, 3), np.uint8)] * 30] * 2
    features = Features({"label": ClassLabel(names=["a", "b"]), "frames": List(Image())})
    clips = clips_of(Dataset.from_dict({"label": [0, 1], "frames": pictures}, features=features), HubOptions(**WHOLE))
    assert [clip["seconds"] for clip in clips["train"]] == [0.0, 0.0]


def test_half_a_window_is_refused(clip: bytes) -> None:
    rows = made(clip, Value("string"), label=["a", "b"], start=[0.1, 0.1], end=[0.3, None])
    with pytest.raises(DataError, match="'train-000001': a window needs both start and end .*, got 0.1 and None"):
        clips_of(rows, HubOptions(**WHOLE, start_column="start", end_column="end"))
    with pytest.raises(DataError, match="needs both start_column= and end_column="):
        clips_of(rows, HubOptions(**WHOLE, start_column="start"))


def test_splits_that_nobody_knows_are_named_with_the_remedy(clip: bytes) -> None:
    rows = made(clip, Value("string"), label=["a", "b"])
    with pytest.raises(DataError, match=r"me/mine: unknown split 'fold1'.*say in an adapter which split it is"):
        clips_of(DatasetDict({"fold1": rows}), HubOptions(**WHOLE), name="me/mine")


def test_a_stream_refuses_what_map_style_refuses(clip: bytes, tmp_path: Path) -> None:
    rows = made(clip, ClassLabel(names=["a", "b"]), label=[0, 1])
    for split in ("train", "validation", "dev"):
        (tmp_path / "set").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "set" / f"{split}-00000.parquet")
    head = "configs: [{config_name: default, data_files: [%s]}]"
    files = ", ".join(f"{{split: {split}, path: {split}-*}}" for split in ("train", "validation", "dev"))
    (tmp_path / "set" / "README.md").write_text(f"---\n{head % files}\n---\n")
    for streaming in (False, True):
        with pytest.raises(DataError, match="validation and dev are both validation"):
            load(str(tmp_path / "set"), streaming=streaming, frames=2)
        with pytest.raises(DataError, match="has no option 'frame'; did you mean 'frames'"):
            load(str(tmp_path / "set"), streaming=streaming, frame=2)

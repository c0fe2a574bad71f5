"""Rows of the `datasets` library: what is missing in one, what cannot be a label, and whose clip a cache returns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, Video
from huggingface_hub.errors import LocalEntryNotFoundError

from hf_mmbalance.data import DataError, HubOptions, load_clips
from hf_mmbalance.data.sources.hub import clips_of, stored_reading
from hf_mmbalance.data.streaming import load
from hf_mmbalance.model.reading_mmbalance import ReadingSpec
from tests.data.clip_rows import CONTENT, WHOLE, made
from tests.media_factory import write_clip


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
    with pytest.raises(DataError, match="cache_dir needs a dataset on this machine"):
        load_clips(str(tmp_path / "dark" / "data"), in_memory=True, **options)


def test_a_cache_folder_knows_which_column_was_read_and_within_which_limits(tmp_path: Path) -> None:
    stored = {}
    for name, colour in (("dark", (20, 20, 20)), ("light", (220, 220, 220))):
        path = write_clip(tmp_path / f"{name}.mp4", seconds=0.3, colour=colour, size=(24, 24))
        stored[name] = [{"bytes": path.read_bytes(), "path": None}] * 2
    features = Features({"label": Value("string"), **dict.fromkeys(stored, CONTENT)})
    rows = Dataset.from_dict({"label": ["a", "b"], **stored}, features=features)
    for name in stored:
        rows = rows.cast_column(name, Video())
    options = {**WHOLE, "cache_dir": str(tmp_path / "cache")}
    grey = [clips_of(rows, HubOptions(**options, video_column=name))["train"][0]["frames"].mean() for name in stored]
    assert grey[0] < 60 and grey[1] > 180
    with pytest.raises(DataError, match="(?s)2 clips cannot be used.*over max_seconds=0.1"):
        clips_of(rows, HubOptions(**options, video_column="dark", max_seconds=0.1))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_folder_whose_files_were_replaced_is_read_anew(clip: bytes, tmp_path: Path, kind: str) -> None:
    """`datasets` would give the rows that it has in its cache for this README."""
    parts = ", ".join(f"{{config_name: {name}, data_files: [{{split: train, path: {name}.{kind}}}]}}" for name in "ab")
    types = "[{name: label, dtype: {class_label: {names: {'0': cat, '1': dog}}}}, {name: clip, dtype: video}]"
    infos = ", ".join(f"{{config_name: {name}, features: {types}}}" for name in "ab")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs: [{parts}]\ndataset_info: [{infos}]\n---\n")
    for labels in ([0, 1], [1, 0]):
        for name, count in (("a", 2), ("b", 1)):
            table = made(clip, "int64", label=labels * count).data.table.replace_schema_metadata()
            path = tmp_path / "set" / f"{name}.{kind}"
            if kind == "parquet":
                pq.write_table(table, path)
            else:
                with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                    writer.write_table(table)
            clips = load_clips(str(tmp_path / "set"), config=name, **WHOLE)
            assert clips.classes == ["cat", "dog"] and clips["train"].labels == labels * count
            if kind == "parquet":  # whose columns are described in README.md only
                stream = load(str(tmp_path / "set"), config=name, streaming=True, shuffle=False, frames=2)
                assert [one["label"] for batch in stream for one in batch] == labels * count


def test_a_stream_of_media_files_is_read_into_memory(clip: bytes, tmp_path: Path) -> None:
    """Of a folder of videos on the Hub `datasets` gives addresses, and has the videos decoded by torchcodec."""
    (tmp_path / "c.mp4").write_bytes(clip)
    place = {"bytes": None, "path": (tmp_path / "c.mp4").as_uri()}
    features = Features({"label": Value("string"), "clip": CONTENT})
    rows = Dataset.from_dict({"label": ["a", "b"], "clip": [place] * 2}, features=features).cast_column(
        "clip", Video()
    )
    stream = rows.to_iterable_dataset().decode(num_threads=2)
    clips = clips_of(stream, HubOptions(**WHOLE, in_memory=True))["train"]
    assert [one["frames"].shape for one in clips] == [(2, 16, 16, 3)] * 2


def test_only_the_hubs_own_word_says_that_there_is_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that is down must not make a model read files otherwise than its training did."""
    asked = []

    def download(name: str, place: str, **options: object) -> str:
        asked.append(place)
        raise LocalEntryNotFoundError("the Hub cannot be reached")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for place in ("data", "lips"):
        files = {"train": [f"hf://datasets/me/mine@{'1' * 40}/{place}/part0-0.parquet"]}
        reached = SimpleNamespace(config=SimpleNamespace(data_files=files))
        with pytest.raises(DataError, match="me/mine: the dataset cannot be loaded .*cannot be reached"):
            stored_reading("me/mine", reached, None)
    cached = SimpleNamespace(config=SimpleNamespace(data_files=None, name="lips-fold0"))
    assert stored_reading("me/mine", cached, None) is None
    places = ["", "lips/", "lips-fold0/", "lips/", ""]
    assert asked == [f"{place}build_report.json" for place in places]


def test_a_number_that_is_another_class_in_another_split_is_refused(clip: bytes) -> None:
    splits = {
        "train": made(clip, ClassLabel(names=["a", "b", "c"]), label=[0, 1, 2]),
        "test": made(clip, ClassLabel(names=["a", "c"]), label=[0, 1]),
    }
    message = r"'label' has the classes \['a', 'b', 'c'\] in train, but \['a', 'c'\] in test"
    with pytest.raises(DataError, match=message):
        clips_of(DatasetDict(splits), HubOptions(**WHOLE))


def test_rows_without_ids_have_the_same_names_streamed(clip: bytes, tmp_path: Path) -> None:
    rows = made(clip, ClassLabel(names=["a", "b"]), label=[0, 1, 1])
    for i in range(2):
        rows.to_parquet(tmp_path / f"train-{i}.parquet")
    options = {"frames": 2, "frame_size": [16, 16], "noise": "white"}
    clips = load(str(tmp_path), **options)
    (batch,) = load(str(tmp_path), streaming=True, shuffle=False, **options)
    assert [one["id"] for one in batch] == clips.ids == [f"train-{i:06d}" for i in range(6)]
    for one, other in zip(batch, clips, strict=True):
        assert one["label"] == other["label"]
        np.testing.assert_array_equal(one["audio"], other["audio"])


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        (Value("string"), ["a", None, "b"]),
        (Value("string"), ["a", " ", "b"]),
        (ClassLabel(names=["a", "b"]), [0, -1, 1]),
        (Value("int64"), [0, None, 1]),
        (Value("float64"), [0.0, float("nan"), 1.0]),
    ],
)
def test_a_row_without_a_label_is_no_class_of_its_own(clip: bytes, kind: object, labels: list) -> None:
    rows = made(clip, kind, label=labels)
    with pytest.raises(DataError, match="clip 'train-000001' has no label .*: label it, or remove the clip"):
        clips_of(rows, HubOptions(**WHOLE))
    kept = clips_of(rows, HubOptions(**WHOLE, unlabelled="keep"))
    assert len(kept.classes) == 2 and kept["train"].labels == [0, 1]
    assert kept.unlabelled is not None and kept.unlabelled.ids == ["train-000001"]


def test_integers_without_names_may_be_negative(clip: bytes) -> None:
    assert clips_of(made(clip, Value("int64"), label=[-1, 1]), HubOptions(**WHOLE)).classes == ["-1", "1"]


def test_a_row_without_an_id_goes_by_its_number_and_without_a_group_is_its_own(clip: bytes) -> None:
    rows = made(clip, Value("string"), label=["a", "b", "a"], group=["g", None, ""], id=["one", None, ""])
    train = clips_of(rows, HubOptions(**WHOLE))["train"]
    assert train.ids == ["one", "train-000001", "train-000002"] and train.groups == ["g", *train.ids[1:]]


def test_several_labels_per_clip_are_refused(clip: bytes) -> None:
    rows = made(clip, List(Value("string")), label=[["a"], ["a", "b"]])
    with pytest.raises(DataError, match="does not hold one label per clip .*name a different one as label_column="):
        clips_of(rows, HubOptions(**WHOLE))


def test_pictures_without_times_or_sound_have_no_length() -> None:
    """Counted as seconds, they would have long clips of other data read whole in use."""
    pictures = [[np.zeros((16, 16, 3), np.uint8)] * 30] * 2
    features = Features({"label": ClassLabel(names=["a", "b"]), "frames": List(Image())})
    clips = clips_of(Dataset.from_dict({"label": [0, 1], "frames": pictures}, features=features), HubOptions(**WHOLE))
    assert [clip["seconds"] for clip in clips["train"]] == [0.0, 0.0]


def test_spans_that_hold_too_few_stored_frames_are_noted() -> None:
    features = Features({"label": Value("string"), "start": Value("float64"), "end": Value("float64")})
    features |= {"frames": List(Image()), "frame_times": List(Value("float64"))}
    pictures = [np.full((16, 16, 3), 50 * i, np.uint8) for i in range(4)]
    columns = {"label": ["a", "b"], "frames": [pictures] * 2, "frame_times": [[0.0, 1.0, 2.0, 3.0]] * 2}
    options = HubOptions(**WHOLE, start_column="start", end_column="end")
    for end, noted in ((0.9, True), (2.9, False)):
        rows = Dataset.from_dict({**columns, "start": [0.1] * 2, "end": [end] * 2}, features=Features(features))
        notes = clips_of(rows, options, stored=ReadingSpec(frames=4)).notes
        assert noted == any("holds about 1 of the stored frames, and 2 are read" in note for note in notes)


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

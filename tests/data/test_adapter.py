"""Adapters: the package's own are whole and listed, a user's own is checked, and options go before them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from datasets import ClassLabel, DatasetDict

from hf_mmbalance.building.recipes.kinetics_sounds import CLASSES
from hf_mmbalance.data import DataError, HubOptions, load_clips
from hf_mmbalance.data.adapter import Adapter, adapter_names, find_adapter, own_file, read_adapter
from hf_mmbalance.data.sources.hub import clips_of
from hf_mmbalance.data.streaming import ClipStream
from tests.data.clip_rows import WHOLE, made


@pytest.mark.parametrize("name", adapter_names())
def test_own_adapters_say_where_their_columns_were_read(name):
    adapter, text = find_adapter(name), own_file(name).read_text()
    assert adapter is not None and adapter.repository == name
    assert re.fullmatch("[0-9a-f]{40}", adapter.revision or "") and adapter.license and adapter.notes
    assert text.startswith("# ") and "# Columns: " in text
    assert {"audio", "video", "label"} <= set(adapter.columns)


def test_own_adapters_are_listed():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for name in adapter_names():
        assert f"`{name}`" in page
        assert name in HubOptions.__dataclass_fields__["dataset_adapter"].metadata["help"]
    kinetics = find_adapter("mteb/kinetics-400")
    assert kinetics is not None and isinstance(kinetics.labels, dict)
    assert list(kinetics.labels.values()) == CLASSES


def test_the_adapter_of_the_page_can_be_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(columns.*?)```", page, flags=re.S)
    (tmp_path / "mine.yaml").write_text(text)
    adapter = read_adapter(tmp_path / "mine.yaml", "mine.yaml")
    assert re.search(adapter.group_pattern or "", "s1_005.mp4")[1] == "s1"  # type: ignore[index]
    assert adapter.labels == {"ang": "angry", "exc": "happy", "hap": "happy"} and adapter.split("fold2") == "test"


def test_an_adapter_is_chosen_by_repository_or_named():
    assert find_adapter("somebody/else") is None and find_adapter("mteb/VGGSound", "none") is None
    copied = find_adapter("me/copy", "mteb/VGGSound")
    assert copied is not None and copied.columns["label"] == "label"
    with pytest.raises(DataError, match="'mteb/VGGSund' is neither a YAML .*; did you mean 'mteb/VGGSound'?"):
        find_adapter("me/copy", "mteb/VGGSund")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colums: {label: what}", "unknown key 'colums'; did you mean 'columns'?"),
        ("columns: {lable: what}", "unknown kind of column 'lable'; did you mean 'label'?"),
        ("columns: what", "columns must hold `name: value` lines, got 'what'"),
        ("columns: {label: [a]}", "columns: the value of 'label' must be text"),
        ("splits: {dev: validaton}", "unknown split for 'dev': 'validaton'; did you mean 'validation'?"),
        ("labels: cat", "labels must be a list, got 'cat'"),
        ("labels: [no, yes]", "labels: an entry must be text, got False (yes, no, on and off must be in quotes)"),
        ("labels: {no: calm}", "labels: the name must be text, got False"),
        ("license: 4", "license must be text, got 4"),
        ("- a", "the file must hold `name: value` lines"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        find_adapter("me/mine", str(path))
    assert message in str(error.value) and str(path) in str(error.value)
    with pytest.raises(DataError, match="No such file.*dataset_adapter must be a YAML file"):
        read_adapter(tmp_path / "gone.yaml", "gone.yaml")


def test_labels_are_mapped_and_others_left_out(clip):
    rows = made(clip, what=["dog", "Dog", "cat", "wind"])
    adapter = Adapter("mine", columns={"label": "what"}, labels={"dog": "animal", "Dog": "animal", "cat": "pet"})
    clips = clips_of(rows, HubOptions(**WHOLE), adapter=adapter)
    assert clips.classes == ["animal", "pet"] and clips["train"].labels == [0, 0, 1]
    assert "1 of 4 clips have labels that the adapter leaves out" in clips.notes
    adapter = Adapter("mine", columns={"label": "what"}, labels={"dgo": "animal", "cat": "pet"})
    with pytest.raises(
        DataError,
        match=r"no label 'dgo'; did you mean 'dog'\? \(it has Dog, cat, dog, wind\); the adapter mine names it",
    ):
        clips_of(rows, HubOptions(**WHOLE), adapter=adapter)


def test_integers_get_names(clip):
    adapter = Adapter("mine", columns={"label": "what"}, labels=["bark", "meow"])
    clips = clips_of(made(clip, "int64", what=[1, 0, 1]), HubOptions(**WHOLE), adapter=adapter)
    assert clips.classes == ["bark", "meow"] and clips["train"].labels == [1, 0, 1]
    with pytest.raises(DataError, match="label 2, outside the 2 classes"):
        clips_of(made(clip, "int64", what=[1, 0, 2]), HubOptions(**WHOLE), adapter=adapter)
    for kind, values in (("string", ["a", "b"]), (ClassLabel(names=["a", "b"]), [0, 1])):
        with pytest.raises(DataError, match="write a mapping"):
            clips_of(made(clip, kind, what=values), HubOptions(**WHOLE), adapter=adapter)


def test_options_go_before_the_adapter(clip):
    rows = made(clip, what=["a", "b"], other=["c", "d"], file=["s1-x", "s2-y"])
    adapter = Adapter("mine", columns={"label": "what", "group": "file"}, group_pattern="^(s.)")
    assert clips_of(rows, HubOptions(**WHOLE), adapter=adapter)["train"].groups == ["s1", "s2"]
    clips = clips_of(rows, HubOptions(**WHOLE, label_column="other", group_column="what"), adapter=adapter)
    assert clips.classes == ["c", "d"] and clips["train"].groups == ["a", "b"]
    with pytest.raises(DataError, match="clip 's1-x': group_pattern .* finds no group in 's1-x'"):
        clips_of(rows, HubOptions(**WHOLE, group_pattern="z(.)"), adapter=adapter)
    with pytest.raises(DataError, match="is not a regular expression"):
        clips_of(rows, HubOptions(**WHOLE, group_pattern="("), adapter=adapter)
    with pytest.raises(DataError, match="group_pattern needs group_column="):
        clips_of(rows, HubOptions(**WHOLE, label_column="what", group_pattern="(.)"))


def test_a_column_that_is_not_there_names_repository_column_and_what_there_is(clip):
    adapter = Adapter("me/mine", columns={"label": "emotion"}, revision="abc")
    with pytest.raises(DataError) as error:
        clips_of(made(clip, what=["a", "b"]), HubOptions(**WHOLE), name="me/mine", adapter=adapter)
    assert "me/mine: no column 'emotion' for the label (it has what, clip)" in str(error.value)
    assert "describes revision abc" in str(error.value) and "dataset_adapter=none" in str(error.value)


def test_splits_are_renamed_and_others_not_read(clip):
    rows = DatasetDict({name: made(clip, what=["a", "b"]) for name in ("fold1", "fold2", "extra")})
    adapter = Adapter("mine", columns={"label": "what"}, splits={"fold1": "train", "fold2": "test"})
    clips = clips_of(rows, HubOptions(**WHOLE), adapter=adapter)
    assert set(clips.splits) == {"train", "test"}
    assert "splits that the adapter does not name are not read: extra" in clips.notes
    with pytest.raises(DataError, match=r"no split a \(it has fold1, fold2, extra\); the adapter mine names it"):
        clips_of(rows, HubOptions(**WHOLE), adapter=Adapter("mine", splits={"a": "train"}))
    with pytest.raises(DataError, match="fold1 and fold2 are both train"):
        clips_of(rows, HubOptions(**WHOLE), adapter=Adapter("mine", splits={"fold1": "train", "fold2": "train"}))


def test_a_stream_reads_by_the_adapter_too(clip, tmp_path):
    kind = ClassLabel(names=["a", "b"])
    (tmp_path / "data").mkdir()
    made(clip, kind, what=[0, 1], file=["s1-x", "s2-y"]).to_parquet(tmp_path / "data" / "test-0.parquet")
    text = "columns: {label: what, group: file}\ngroup_pattern: ^(s.)\nsplits: {test: train}\n"
    (tmp_path / "mine.yaml").write_text(text)
    options = HubOptions(frames=2, frame_size=[16, 16], dataset_adapter=str(tmp_path / "mine.yaml"))
    (batch,) = list(ClipStream.open(str(tmp_path / "data"), "train", options, shuffle=False))
    assert [(one["group"], one["label"]) for one in batch] == [("s1", 0), ("s2", 1)]
    assert batch[0]["frames"].shape == (2, 16, 16, 3)
    (tmp_path / "mine.yaml").write_text(text + "labels: {a: x, b: y}\n")
    with pytest.raises(DataError, match="leaves clips out, which needs streaming=False"):
        ClipStream.open(str(tmp_path / "data"), "train", options)
    with pytest.raises(DataError, match="has no option 'dataset_adaptor'; did you mean 'dataset_adapter'?"):
        load_clips(str(tmp_path / "data"), dataset_adaptor="x")

"""Reading built data: map-style or as a stream, with any number of workers and nodes, in bounded memory."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_mmbalance.building.engine import build
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions, PlannedClip
from hf_mmbalance.building.report import finish
from hf_mmbalance.data import streaming
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.data.sources.hub import HubOptions
from hf_mmbalance.data.streaming import ClipStream, EpochOrder, load
from tests.media_factory import write_clip
from tests.model.tiny import tiny_processor


SMALL = {"frames": 2, "frame_size": [16, 16]}
TRAIN = SMALL | {"noise": "white", "snr_db": 5.0, "crop_jitter": 0.2, "flip": True, "shift": 0.05}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("stream")
    paths = [write_clip(root / f"{i}.mp4", seconds=0.3, size=(24, 24), tone=200.0 + 50 * i) for i in range(6)]
    clips = [
        PlannedClip(
            f"c{i:03d}",
            str(paths[i % 6]),
            "test" if i % 5 == 4 else "train",
            i % 3,
            {"group": f"g{i}"},
            paths[i % 6].stat().st_size,
        )
        for i in range(150)
    ]
    plan = BuildPlan(
        "stream",
        clips,
        ["a", "b", "c"],
        "label",
        "group",
        {"group": {"dtype": "string", "_type": "Value"}},
        {"default": {"train": ["train"], "test": ["test"]}},
        EncodeOptions(frames=3),
        clips_per_shard=40,
    )
    finish(plan, root / "out", build(plan, root / "out"), "")
    return str(root / "out")


def ids_of(built: str) -> list[str]:
    return load(built, cache="none", **SMALL).ids  # nothing is decoded


def passes(stream, workers: int, epoch: int) -> list[list]:
    stream.set_epoch(epoch)
    return list(DataLoader(stream, batch_size=None, num_workers=workers))


def same(one: list[list], other: list[list]) -> bool:
    return all(
        a["id"] == b["id"] and np.array_equal(a["audio"], b["audio"]) and np.array_equal(a["frames"], b["frames"])
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_a_stream_is_the_same_under_any_number_of_workers(built):
    stream = load(built, streaming=True, batch_size=7, **TRAIN)
    assert stream.num_clips == 120 and len(stream) == 18
    alone = passes(stream, 0, 1)
    assert sorted(clip["id"] for batch in alone for clip in batch) == sorted(ids_of(built))
    assert [len(batch) for batch in alone] == [7] * 17 + [1]
    for workers in (1, 3):
        assert same(alone, passes(stream, workers, 1))
    later = passes(stream, 2, 2)
    assert [c["id"] for b in later for c in b] != [c["id"] for b in alone for c in b]


def test_streamed_clips_are_the_map_style_ones(built):
    clips = load(built, cache="none", **TRAIN)
    place = {name: i for i, name in enumerate(clips.ids)}
    for clip in passes(load(built, streaming=True, batch_size=32, **TRAIN), 0, 3)[0]:
        twin = clips[place[clip["id"]], 3]
        np.testing.assert_array_equal(clip["audio"], twin["audio"])
        np.testing.assert_array_equal(clip["frames"], twin["frames"])
        assert clip["label"] == twin["label"] and clip["group"] == twin["group"]


def test_order_without_shuffling_is_that_of_the_files(built):
    stream = load(built, split="test", streaming=True, shuffle=False, batch_size=8, **SMALL)
    one, two = passes(stream, 0, 0), passes(stream, 2, 5)
    assert same(one, two) and sum(map(len, one)) == 30


def test_batches_are_distributed_over_nodes(built):
    stream = load(built, streaming=True, batch_size=7, **SMALL)
    parts = [stream.split_by_node(rank, 4) for rank in range(4)]
    assert [len(part) for part in parts] == [5, 5, 5, 5]  # 18 batches, two given twice
    seen = [clip["id"] for part in parts for batch in part for clip in batch]
    assert set(seen) == set(ids_of(built))
    test = load(built, split="test", streaming=True, shuffle=False, batch_size=7, **SMALL)
    seen = [clip["id"] for rank in range(3) for batch in test.split_by_node(rank, 3) for clip in batch]
    assert len(seen) == len(set(seen)) == 30
    few = load(built, streaming=True, batch_size=100, **SMALL)
    assert [len(few.split_by_node(rank, 5)) for rank in range(5)] == [1] * 5  # two batches
    part = stream.split_by_node(1, 4)
    before = part._batches()
    stream.set_epoch(7)
    assert part._batches() != before
    with pytest.raises(DataError, match="rank"):
        stream.split_by_node(3, 3)


def test_split_dataset_by_node_of_datasets(built):
    from datasets import Audio, Image, List, load_dataset
    from datasets.distributed import split_dataset_by_node

    stream = load_dataset(built, split="train", streaming=True)
    stream = stream.cast_column("audio", Audio(decode=False)).cast_column("frames", List(Image(decode=False)))
    seen = [row["id"] for rank in range(3) for row in split_dataset_by_node(stream, rank, 3)]
    assert stream.num_shards == 3 and sorted(seen) == sorted(ids_of(built))


def test_map_style_order_and_augmentation_under_workers(built):
    clips = load(built, cache="none", **TRAIN)
    order = EpochOrder(clips, seed=1)
    order.set_epoch(4)
    runs = []
    for workers in (0, 2):
        loader = DataLoader(clips, batch_size=16, sampler=order, num_workers=workers, collate_fn=list)
        runs.append(list(loader))
    assert same(*runs)
    halves = [set(i for i, _ in EpochOrder(clips, rank=rank, world=2)) for rank in (0, 1)]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == len(clips)


def test_the_training_collator_takes_streamed_clips(built):
    """SpecAugment is keyed by id and epoch, so it does not depend on workers either."""
    from hf_mmbalance.training.batches import ClipCollator, SpecAugment

    collate = ClipCollator(tiny_processor(frames=2), SpecAugment(frequency_masks=1, time_masks=1))
    stream = load(built, streaming=True, batch_size=8, **TRAIN)
    stream.set_epoch(2)
    runs = [list(DataLoader(stream, batch_size=None, num_workers=n, collate_fn=collate)) for n in (0, 2)]
    for one, other in zip(*runs, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert runs[0][0]["input_values"].shape == (8, 24, 16) and runs[0][0]["pixel_values"].shape == (8, 2, 3, 16, 16)


def test_the_loops_in_the_docs_run(built):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    code = page.split("## Read in your own loop")[1].split("```python")[1].split("```")[0]
    for written, here in (
        ('config="fold0"', "**small"),
        ("range(10)", "range(1)"),
        ("num_workers=4", "num_workers=0"),
    ):
        assert written in code
        code = code.replace(written, here)
    names = {"processor": tiny_processor(frames=2), "small": SMALL}
    exec(code.replace("built/crema_d", built), names)
    for batch in (names["batch"], next(iter(names["batches"]))):
        assert batch["input_values"].shape[1:] == (24, 16) and batch["pixel_values"].shape[1:] == (2, 3, 16, 16)


def test_what_cannot_be_streamed(built, tmp_path):
    with pytest.raises(DataError, match="babble"):
        load(built, streaming=True, noise="babble", **SMALL)
    with pytest.raises(DataError, match="a stream returns labelled clips only"):
        load(built, streaming=True, unlabelled="keep", **SMALL)
    with pytest.raises(DataError, match="cannot leave clips out"):
        load(built, streaming=True, on_error="skip", **SMALL)
    with pytest.raises(DataError, match="a stream has the splits of its files: remove validation_fraction"):
        load(built, streaming=True, validation_fraction=0.2, **SMALL)  # train would hold the validation clips
    with pytest.raises(DataError, match="has no split 'validation'"):
        load(built, split="validation", streaming=True, **SMALL)
    with pytest.raises(DataError, match="has no split"):
        load(built, split="calibration", cache="none", **SMALL)
    with pytest.raises(DataError, match="batch_size"):
        load(built, streaming=True, batch_size=0, **SMALL)
    with pytest.raises(DataError, match="build it to Parquet"):
        load("synthetic", streaming=True)
    (tmp_path / "train.csv").write_text("label,x\n1,2\n")
    (tmp_path / "README.md").write_text("")
    with pytest.raises(DataError, match="only Parquet"):
        ClipStream.open(str(tmp_path), "train", HubOptions())


def test_row_groups_are_released_and_memory_does_not_grow(built, monkeypatch):
    monkeypatch.setattr(streaming, "WINDOW_GROUPS", 1)
    stream = load(built, streaming=True, batch_size=7, **SMALL)
    read, tables = ClipStream._read, []

    def tracked(self, group):
        table = read(self, group)
        tables.append(weakref.ref(table))
        return table

    monkeypatch.setattr(ClipStream, "_read", tracked)
    resident = []
    for epoch in range(4):
        stream.set_epoch(epoch)
        held = [sum(table() is not None for table in tables) for _ in stream]
        assert max(held) == 2 and len(tables) == 6 * (epoch + 1)  # a batch may be of two windows
        assert not any(table() is not None for table in tables)
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    assert resident[-1] - resident[0] < 8 << 20, resident

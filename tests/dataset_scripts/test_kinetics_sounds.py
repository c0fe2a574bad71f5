"""Kinetics-Sounds: any layout of a local Kinetics copy, what is missing, own classes, and what may be published."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hf_mmbalance.building.plan import EncodeOptions
from hf_mmbalance.building.recipes.kinetics_sounds import (
    CLASSES,
    find_media,
    parse_name,
    plan_kinetics_sounds,
    read_annotations,
    write_annotations,
)
from hf_mmbalance.building.report import read_report
from hf_mmbalance.building.validate import validate
from hf_mmbalance.data import DataError
from tests.media_factory import write_clip

from .test_crema_d import load_script


def youtube_id(number: int) -> str:
    return f"-_{number:05d}_-aZ"[:11]


@pytest.fixture
def small(tmp_path) -> Path:
    """A list of 60 clips of two classes in three splits."""
    database = {}
    for i in range(60):
        name = f"{youtube_id(i)}_{i:06d}_{i + 10:06d}" if i % 3 != 2 else f"{youtube_id(i)}_{i}"
        subset = ("training", "validation", "testing")[i % 3]
        database[name] = {"subset": subset, "label": CLASSES[4 * (i % 2)]}
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"labels": CLASSES, "database": database}))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("ks") / "clip.mp4", seconds=0.4, size=(16, 24))


def test_classes_are_the_published_ones(real_data):
    labels = json.loads((real_data / "kinetics_sounds" / "KS_train_val.json").read_text())["labels"]
    assert labels == CLASSES == sorted(CLASSES) and len(CLASSES) == 31


def test_names_hold_ids_with_underscores():
    assert parse_name("-_00000_-aZ_000012_000022", "x") == ("-_00000_-aZ", 12, 22)
    assert parse_name("--4-0ihtnBU_58", "x") == ("--4-0ihtnBU", 58, 68)
    with pytest.raises(DataError, match="neither"):
        parse_name("short_1", "x")


@pytest.mark.parametrize("layout", ["classes", "flat", "by_split", "ids", "starts"])
def test_customary_layouts(small, clip, tmp_path, layout):
    root = tmp_path / "k400"
    for entry in read_annotations([small]):
        folder = {"classes": entry.label.replace("_", " "), "by_split": f"{entry.split}/{entry.label}"}.get(layout, "")
        stem = {"ids": entry.youtube_id, "starts": f"{entry.youtube_id}_{entry.start}"}.get(layout, entry.id)
        (root / folder).mkdir(parents=True, exist_ok=True)
        os.link(clip, root / folder / f"{stem}.mp4")
    plan = plan_kinetics_sounds(root, EncodeOptions(), annotations=[small], classes=CLASSES[:5:4])
    assert len(plan.clips) == 60 and all(planned.problem is None for planned in plan.clips)
    assert {planned.window is None for planned in plan.clips} == {layout != "ids"}
    assert all(planned.window_if_longer for planned in plan.clips)
    counts = {split: len(clips) for split, clips in plan.splits("three_way").items()}
    assert counts == {"train": 20, "validation": 20, "test": 20}


def test_a_build_with_gaps_and_damage(small, clip, tmp_path):
    root = tmp_path / "k400"
    root.mkdir()
    silent = write_clip(tmp_path / "silent.mp4", seconds=0.4, tone=None, size=(16, 24))
    short = write_clip(tmp_path / "short.mp4", seconds=0.08, size=(16, 24))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video" * 50)
    entries = read_annotations([small])
    for i, entry in enumerate(entries):
        if i % 5 == 0:
            continue  # gone from YouTube
        source = {1: silent, 2: short, 3: broken}.get(i, clip)
        os.link(source, root / f"{entry.id}.mp4")
    lists = tmp_path / "classes.txt"
    lists.write_text("blowing nose\ndribbling_basketball\n")
    flags = ["--source", str(root), "--annotations", str(small), "--classes", str(lists), "--num-proc", "1"]
    flags += ["--frames", "2", "--min-seconds", "0.3"]
    tool = load_script("kinetics_sounds")
    assert tool.main(["build", *flags, "--out", str(tmp_path / "strict"), "--max-lost", "0.1"]) == 2
    assert tool.main(["build", *flags, "--out", str(tmp_path / "out")]) == 0
    report = read_report(tmp_path / "out")
    assert report["status"] == {"ok": 45, "missing": 12, "undecodable": 1, "no_audio": 1, "too_short": 1}
    assert validate(tmp_path / "out") == []
    for split, counts in report["splits"]["three_way"].items():
        mine = [entry for entry in entries if entry.split == split]
        assert counts["planned"] == len(mine) == 20
        assert counts["planned_classes"] == dict(
            sorted(Counter(entry.label for entry in mine).items(), key=lambda pair: pair[0])
        )
        assert counts["built"] == 20 - sum(entry.id in report["left_out"] for entry in mine)
    with (tmp_path / "out" / "manifest.csv").open(newline="") as file:
        manifest = {row["id"]: row["status"] for row in csv.DictReader(file)}
    assert manifest[entries[1].id] == "no_audio" and manifest[entries[3].id] == "undecodable"
    assert manifest[entries[0].id] == "missing" and manifest[entries[4].id] == "ok"


def test_the_whole_list_with_a_fifth_missing(real_data, clip, tmp_path):
    source = real_data / "kinetics_sounds"
    entries = read_annotations([source / "KS_train_val.json"])
    rng, root, gone = random.Random(0), tmp_path / "k400", set()
    root.mkdir()
    for entry in entries:
        if rng.random() < 0.2:
            gone.add(entry.id)
        else:
            os.link(clip, root / f"{entry.youtube_id}_{entry.start:06d}_{entry.end:06d}.mp4")
    two_way = (source / "my_train.txt", source / "my_test.txt")
    plan = plan_kinetics_sounds(
        root, EncodeOptions(), annotations=[source / "KS_train_val.json"], two_way=two_way, max_lost=0.3
    )
    sizes = {split: len(clips) for split, clips in plan.splits("three_way").items()}
    assert sizes == {"train": 14_799, "validation": 1320, "test": 2597}
    assert {split: len(clips) for split, clips in plan.splits("two_way").items()} == {"train": 14_799, "test": 2597}
    assert {clip.id for clip in plan.clips if clip.problem} == gone and len(gone) > 3000
    groups = [{clip.columns["youtube_id"] for clip in clips} for clips in plan.splits("three_way").values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


@pytest.mark.slow
def test_every_fourth_clip_of_the_list_is_built_with_a_fifth_missing_and_some_damaged(real_data, clip, tmp_path):
    listed = json.loads((real_data / "kinetics_sounds" / "KS_train_val.json").read_text())
    source = tmp_path / "list.json"
    source.write_text(json.dumps({**listed, "database": dict(list(listed["database"].items())[::4])}))
    sources = {"ok": clip, "undecodable": tmp_path / "broken.mp4"}
    sources["undecodable"].write_bytes(b"not a video" * 50)
    sources["no_audio"] = write_clip(tmp_path / "silent.mp4", seconds=0.4, tone=None, size=(16, 24))
    sources["too_short"] = write_clip(tmp_path / "short.mp4", seconds=0.08, size=(16, 24))
    rng, root, expected = random.Random(1), tmp_path / "k400", {}
    kinds, shares = ["missing", *sources], [0.2, 0.77, 0.01, 0.01, 0.01]
    entries = read_annotations([source])
    for entry in entries:
        expected[entry.id] = kind = rng.choices(kinds, shares)[0]
        folder = root / entry.label.replace("_", " ")
        folder.mkdir(parents=True, exist_ok=True)
        if kind in sources:
            os.link(sources[kind], folder / f"{entry.youtube_id}_{entry.start:06d}_{entry.end:06d}.mp4")
    out = tmp_path / "out"
    flags = ["--source", str(root), "--annotations", str(source), "--out", str(out), "--frames", "2"]
    flags += ["--min-seconds", "0.3", "--num-proc", "2"]
    assert load_script("kinetics_sounds").main(["build", *flags, "--max-lost", "0.3"]) == 0
    report = read_report(out)
    assert report["status"] == Counter(expected.values()) and sum(report["status"].values()) == 4_679
    with (out / "manifest.csv").open(newline="") as file:
        assert {row["id"]: row["status"] for row in csv.DictReader(file)} == expected
    sizes = {}
    for split, counts in report["splits"]["three_way"].items():
        mine = [entry for entry in entries if entry.split == split]
        built = [entry for entry in mine if expected[entry.id] == "ok"]
        sizes[split] = len(built)
        assert (counts["planned"], counts["built"]) == (len(mine), len(built))
        assert counts["planned_classes"] == Counter(entry.label for entry in mine)
        assert counts["classes"] == Counter(entry.label for entry in built)
    assert validate(out) == []
    code = f"import datasets; d = datasets.load_dataset({str(out)!r}); print({{k: len(v) for k, v in d.items()}})"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert str(sizes) in done.stdout, done.stderr[-800:]


def test_kinetics_own_tables_and_other_class_lists(clip, tmp_path):
    table = tmp_path / "train.csv"
    rows = [
        f"{label},{youtube_id(i)},{i},{i + 10},{'train' if i % 2 else 'validate'}"
        for i, label in enumerate(["playing piano", "typing"] * 6)
    ]
    table.write_text("label,youtube_id,time_start,time_end,split\n" + "\n".join(rows))
    root = tmp_path / "k400"
    root.mkdir()
    os.link(clip, root / f"{youtube_id(0)}.mp4")
    plan = plan_kinetics_sounds(root, EncodeOptions(), annotations=[table], classes=["typing", "playing piano"])
    assert plan.classes == ["typing", "playing_piano"] and len(plan.clips) == 12
    with pytest.raises(DataError, match="no clip of singing"):
        plan_kinetics_sounds(root, EncodeOptions(), annotations=[table], classes=["singing"])


def test_a_file_of_other_times_is_named(small, clip, tmp_path):
    (tmp_path / "k400").mkdir()
    os.link(clip, tmp_path / "k400" / f"{youtube_id(0)}_000090_000100.mp4")
    plan = plan_kinetics_sounds(tmp_path / "k400", EncodeOptions(), annotations=[small], classes=CLASSES[:5:4])
    problems = {planned.id: planned.problem for planned in plan.clips}
    found = f"(but {youtube_id(0)}_000090_000100.mp4, with different times)"
    assert found in problems[f"{youtube_id(0)}_000000_000010"][1]
    assert "different times" not in problems[f"{youtube_id(1)}_000001_000011"][1]


def test_two_way_lists_that_share_a_clip_are_refused(small, clip, tmp_path):
    (tmp_path / "k400").mkdir()
    os.link(clip, tmp_path / "k400" / f"{youtube_id(0)}.mp4")
    for name, numbers in (("train", (0, 1, 2)), ("test", (2, 3))):
        (tmp_path / f"{name}.txt").write_text("".join(f"{youtube_id(i)}_{i},8,0\n" for i in numbers))
    lists = (tmp_path / "train.txt", tmp_path / "test.txt")
    with pytest.raises(DataError, match=rf"test.txt: 1 clips are listed twice, e.g. {youtube_id(2)}_000002"):
        plan_kinetics_sounds(
            tmp_path / "k400", EncodeOptions(), annotations=[small], classes=CLASSES[:5:4], two_way=lists
        )


def test_bad_lists_and_sources(small, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_media(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no videos named"):
        find_media(tmp_path / "empty")
    with pytest.raises(DataError, match="no such annotation file"):
        read_annotations([tmp_path / "none.json"])
    with pytest.raises(DataError, match="(used|listed) twice"):
        read_annotations([small, small])
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="time_end"):
        read_annotations([tmp_path / "bad.csv"])
    entry = {"abcdefghijk_1": {"subset": "later", "label": CLASSES[0]}}
    (tmp_path / "bad.json").write_text(json.dumps({"database": entry}))
    with pytest.raises(DataError, match="bad.json: the entry 'abcdefghijk_1': unknown split 'later'"):
        read_annotations([tmp_path / "bad.json"])
    with pytest.raises(DataError, match="unknown split"):
        write_annotations([tmp_path / "bad.json"], None, tmp_path / "list")
    assert not (tmp_path / "list").exists(), "the next attempt would be refused: the folder is not empty"
    with pytest.raises(DataError, match="names singing twice"):
        write_annotations([small], ["singing", "Singing"], tmp_path / "list")
    with pytest.raises(DataError, match="the annotations have no clip of sinking; check the class list's spelling"):
        write_annotations([small], ["blowing nose", "sinking"], tmp_path / "list")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="no 'database'"):
        read_annotations([tmp_path / "bad.json"])


def test_only_annotations_are_for_publishing(small, tmp_path):
    from datasets import load_dataset

    lists = tmp_path / "classes.txt"
    lists.write_text("blowing_nose\n")
    out = tmp_path / "list"
    flags = ["annotations", "--annotations", str(small), "--classes", str(lists), "--out", str(out)]
    assert load_script("kinetics_sounds").main(flags) == 0
    rows = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert rows["train"].column_names == ["id", "youtube_id", "time_start", "time_end", "label"]
    assert rows.num_rows == {"train": 10, "validation": 10, "test": 10}
    files = sorted((out / "data").iterdir())
    kept = [entry for entry in read_annotations([small]) if entry.label == "blowing_nose"]
    assert sorted(read_annotations(files), key=str) == sorted(kept, key=str), "the list does not serve to build"
    with pytest.raises(DataError, match="clips.parquet: not a list of clips .*unknown split 'clips"):
        read_annotations([files[0].rename(tmp_path / "clips.parquet")])
    assert load_script("kinetics_sounds").main(flags) == 2

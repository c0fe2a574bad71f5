"""`mmbalance predict`: what is classified (files, folders, tables, spans), and the table that it writes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_mmbalance.cli import main
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.hub.predict import inputs_of
from hf_mmbalance.model.reading_mmbalance import ReadingSpec
from tests.media_factory import write_clip
from tests.training.tiny_runs import CLASSES, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, one of them in a folder below, and a file that is not media."""
    root = tmp_path_factory.mktemp("clips")
    for name in ("a.mp4", "below/b.mp4"):
        write_clip(root / name, seconds=0.8, texture=len(name))
    (root / "notes.txt").write_text("not media")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of spans of up to 0.4 s."""
    saved = tmp_path_factory.mktemp("model")
    processor = tiny_processor()
    processor.reading = ReadingSpec(frames=2, frame_size=(16, 16), unit="span", longest_seconds=0.4).to_dict()
    tiny_model().save_pretrained(saved)
    processor.save_pretrained(saved)
    return saved


def test_files_folders_and_addresses(folder):
    inputs = inputs_of([str(folder), "http://host/c.mp4", "absent.mp4"])
    assert [item["clip"] for item in inputs] == [
        str(folder / "a.mp4"), str(folder / "below" / "b.mp4"), "http://host/c.mp4", "absent.mp4"
    ]  # fmt: skip


def test_a_table_names_spans(folder):
    table = folder / "spans.csv"
    table.write_text("path,start,end\na.mp4,0.1,0.5\nbelow/b.mp4,,\n")
    assert inputs_of([str(table)]) == [
        {"clip": str(folder / "a.mp4"), "start": 0.1, "end": 0.5},
        {"clip": str(folder / "below" / "b.mp4")},
    ]
    table.unlink()


def test_a_span_from_second_zero_is_a_span_in_parquet_too(folder):
    table = folder / "spans.parquet"
    nan = float("nan")
    pq.write_table(pa.table({"path": ["a.mp4", "a.mp4"], "start": [0.0, nan], "end": [0.5, nan]}), table)
    assert inputs_of([str(table)]) == [
        {"clip": str(folder / "a.mp4"), "start": 0.0, "end": 0.5}, {"clip": str(folder / "a.mp4")}
    ]  # fmt: skip
    table.unlink()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,start\na.mp4,1\n", "row 1: column 'path' is missing"),
        ("path,start,end\na.mp4,early,2\n", "row 1: .*must be seconds"),
        ("", "the table has no rows"),
    ],
)
def test_tables_that_cannot_be_used_name_file_and_row(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=rf"t\.csv.*{message}"):
        inputs_of([str(tmp_path / "t.csv")])


def test_an_empty_folder_and_a_span_of_several_clips_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="has no media files"):
        inputs_of([str(tmp_path)])
    with pytest.raises(ValueError, match="the name of a clip is empty"):
        inputs_of([""])
    with pytest.raises(ValueError, match="must be used together and with one clip"):
        inputs_of([str(folder)], 0.1, 0.5)
    with pytest.raises(ValueError, match="must be used together"):
        inputs_of([str(folder / "a.mp4")], 0.1)
    assert inputs_of([str(folder / "a.mp4")], 0.1, 0.5) == [{"clip": str(folder / "a.mp4"), "start": 0.1, "end": 0.5}]


def test_answers_as_table_and_json(folder, model, tmp_path, capsys):
    out = tmp_path / "out.csv"
    options = ["--model", str(model), "--device", "cpu", "--csv", str(out), "--json", str(tmp_path / "out.json")]
    assert main(["predict", str(folder / "a.mp4"), "--start", "0.2", "--end", "0.5", *options]) == 0
    printed = capsys.readouterr().out
    assert "a.mp4" in printed and all(name in printed for name in CLASSES)
    (row,) = csv.DictReader(out.open(newline=""))
    (answer,) = json.loads((tmp_path / "out.json").read_text())
    best = answer["answer"][0]
    assert (row["label"], float(row["score"])) == (best["label"], best["score"])
    assert (row["start"], row["end"], row["error"]) == ("0.2", "0.5", "")
    assert float(row["trust.audio"]) == best["trust"]["audio"]


def test_one_bad_clip_costs_that_clip(folder, model, tmp_path, capsys):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a film")
    out = tmp_path / "out.csv"
    clips = [str(bad), str(folder / "a.mp4")]
    assert main(["predict", *clips, "--model", str(model), "--device", "cpu", "--csv", str(out)]) == 2
    rows = list(csv.DictReader(out.open(newline="")))
    assert "bad.mp4" in rows[0]["error"] and not rows[0]["label"] and rows[1]["label"] in CLASSES


def test_a_clip_whose_name_is_no_utf8(folder, model, tmp_path):
    clip = shutil.copy(folder / "a.mp4", tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    places = ["--csv", str(tmp_path / "out.csv"), "--json", str(tmp_path / "out.json")]
    assert main(["predict", str(clip), "--model", str(model), "--device", "cpu", *places]) == 0
    (answer,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    (row,) = csv.DictReader((tmp_path / "out.csv").open(newline="", encoding="utf-8"))
    assert answer["clip"] == str(clip) and row["clip"].endswith("caf\\udce9.mp4")


def test_answers_so_far_are_kept_after_ctrl_c(folder, model, tmp_path, monkeypatch):
    from hf_mmbalance.hub import predict

    def once(item: dict) -> object:
        if "below" in item["clip"]:
            raise KeyboardInterrupt
        return item["clip"]

    monkeypatch.setattr(predict, "_source", once)
    out = tmp_path / "out.csv"
    assert main(["predict", str(folder), "--model", str(model), "--device", "cpu", "--csv", str(out)]) == 130
    (row,) = csv.DictReader(out.open(newline=""))
    assert row["clip"].endswith("a.mp4") and row["label"] in CLASSES


def test_a_span_that_cannot_be_read_names_its_clip(folder, model, tmp_path, capsys):
    table = tmp_path / "spans.csv"
    table.write_text(f"path,start,end\n{folder / 'a.mp4'},0.5,0.1\n{folder / 'a.mp4'},0.1,\n")
    assert main(["predict", str(table), "--model", str(model), "--json", "-"]) == 2
    for answer in json.loads(capsys.readouterr().out):
        assert str(folder / "a.mp4") in answer["error"] and "start" in answer["error"]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--top_k", "0", "'0' must be an integer of at least 1"),
        ("--batch_size", "-2", "'-2' must be an integer of at least 1"),
        ("--window_seconds", "-1", "'-1' must be a number of seconds above 0"),
        ("--stride_seconds", "nan", "'nan' must be a number of seconds above 0"),
        ("--max_seconds", "long", "'long' must be a number of seconds above 0"),
    ],
)
def test_options_out_of_range_are_refused_once_and_not_for_every_clip(option, value, words, capsys):
    with pytest.raises(SystemExit):
        main(["predict", "a.mp4", "b.mp4", "--model", "no/such-model", option, value])
    assert capsys.readouterr().err.count(words) == 1


@pytest.mark.parametrize("option", ["--csv", "--json"])
def test_where_answers_go_is_checked_before_anything_is_classified(folder, model, tmp_path, option, capsys):
    assert main(["predict", str(folder), "--model", "no/such-model", option, str(tmp_path)]) == 2
    assert "name a file, not a folder" in capsys.readouterr().err
    place = tmp_path / "new" / "folder" / "answers"
    assert main(["predict", str(folder / "a.mp4"), "--model", str(model), option, str(place)]) == 0
    assert place.is_file()


def test_a_model_of_spans_given_a_whole_clip_says_so_once(folder, model, monkeypatch):
    from hf_mmbalance.hub import load_classifier
    from hf_mmbalance.model import processing_mmbalance

    said: list[str] = []
    monkeypatch.setattr(processing_mmbalance.logger, "warning_once", said.append)
    classify = load_classifier(str(model), device="cpu")
    classify({"video": str(folder / "a.mp4"), "start": 0.1, "end": 0.25})
    classify.processor(video=str(folder / "a.mp4"), start=0.1, end=0.25)
    assert not said
    classify(str(folder / "a.mp4"))
    assert "trained on spans of at most 0.40 s" in said[0] and "start= and end=" in said[0]


@pytest.mark.parametrize("device", ["cuda:99", "no_such_device"])
@pytest.mark.parametrize("verb", ["predict", "robustness"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(verb, device, capsys):
    words = ["clip.mp4", "--model", "me/model"] if verb == "predict" else ["run"]
    assert main([verb, *words, "--device", device]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: --device {device}: ") and "cpu" in shown and shown.count("\n") == 1


def test_a_name_that_nobody_knows_is_refused_at_once_where_the_hub_does_not_answer(monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    assert main(["predict", "clip.mp4", "--model", "nosuch/model"]) == 2
    shown = capsys.readouterr().err
    assert (
        "nosuch/model: there is no such folder, the cache holds no such model" in shown and "Check the name" in shown
    )
    assert time.monotonic() - begun < 10

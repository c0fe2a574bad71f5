"""Clips in a folder, in a table and in a data set of the datasets library."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from hf_mmbalance.data import CorruptedClips, CorruptionPlan, DataError, FolderOptions, HubOptions, load_clips
from hf_mmbalance.data.sources import source_of
from hf_mmbalance.data.sources.hub import clips_of
from hf_mmbalance.provenance import data_source
from tests.media_factory import write_clip


SMALL = {"frames": 2, "frame_size": [16, 16]}
COLOURS = {"blue": (0, 0, 200), "red": (200, 0, 0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    for name, colour in COLOURS.items():
        for i in range(12):
            write_clip(root / name / f"p{i % 6}_{i}.mp4", seconds=0.3, colour=colour)
    return root


def colour_of(clip) -> str:
    return "red" if clip["frames"][..., 0].mean() > clip["frames"][..., 2].mean() else "blue"


def test_folder_of_class_folders(folder):
    assert source_of(str(folder)) == "folder"
    splits = load_clips(str(folder), group_pattern="^(p[0-9])_", **SMALL)
    assert splits.classes == ["blue", "red"]
    assert {name: len(set(part.groups)) for name, part in splits.splits.items()} == {
        "train": 3,
        "calibration": 1,
        "validation": 1,
        "test": 1,
    }
    assert splits.shared_groups() == {}
    for part in splits.splits.values():
        for clip in part:
            assert splits.classes[clip["label"]] == colour_of(clip)
            assert clip["audio"] is not None and clip["sampling_rate"] == 16_000
    assert sum("the source has no" in note for note in splits.notes) == 3
    assert splits["train"].ids[0].startswith("blue/p")


def test_folder_with_split_folders(folder, tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / split).symlink_to(folder)
    with pytest.raises(DataError, match="occur twice"):
        load_clips(str(tmp_path), **SMALL)
    (tmp_path / "val").unlink()
    (tmp_path / "test").unlink()
    (tmp_path / "test").mkdir()
    for name, colour in COLOURS.items():
        write_clip(tmp_path / "test" / name / "new.mp4", seconds=0.3, colour=colour)
    splits = load_clips(str(tmp_path), validation_fraction=0, **SMALL)
    assert len(splits["test"]) == 2 and "validation" not in splits.splits
    (tmp_path / "extra").mkdir()
    with pytest.raises(DataError, match="extra are not"):
        load_clips(str(tmp_path), **SMALL)


def test_numbered_classes_are_in_the_order_of_their_numbers_and_empty_ones_are_noted(tmp_path):
    for i in range(12):
        (tmp_path / str(i)).mkdir()
        for clip in range(3 if i != 5 else 0):
            (tmp_path / str(i) / f"{clip}.wav").touch()
    splits = load_clips(str(tmp_path), cache="none", **SMALL)
    assert splits.classes == [str(i) for i in range(12) if i != 5]
    assert "1 class folders hold no clips: 5" in splits.notes


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match="no such"):
        load_clips(str(tmp_path / "gone"))
    with pytest.raises(DataError, match="no class folders"):
        load_clips(str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="no media files"):
        load_clips(str(tmp_path))
    (tmp_path / "a" / "x.JPG").touch()
    with pytest.raises(DataError, match=r"1 images \(e.g. a/x.JPG\) but no clips"):
        load_clips(str(tmp_path))
    write_clip(tmp_path / "a" / "x.mp4", seconds=0.2)
    with pytest.raises(DataError, match="only one class"):
        load_clips(str(tmp_path))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "broken.mp4").write_bytes(b"nothing that decodes" * 9)
    write_clip(tmp_path / "b" / "fine.mp4", seconds=0.2)
    options = {"validation_fraction": 0, "calibration_fraction": 0, "test_fraction": 0.5} | SMALL
    with pytest.raises(DataError, match=r"(?s)broken\.mp4.*\[undecodable\]"):
        load_clips(str(tmp_path), **options)
    for pattern in ("^(z)", "^(z)?"):  # the second one matches, but its group takes no part
        with pytest.raises(DataError, match="no group in"):
            load_clips(str(tmp_path), group_pattern=pattern, **options)


def test_clips_with_one_modality_only(tmp_path):
    for i in range(6):
        write_clip(tmp_path / "loud" / f"{i}.wav", seconds=0.3, video=None, audio="pcm_s16le")
        write_clip(tmp_path / "seen" / f"{i}.mp4", seconds=0.3, tone=None)
    splits = load_clips(str(tmp_path), **SMALL)
    for clip in splits["train"]:
        assert (clip["frames"] is None) == (clip["label"] == 0) and (clip["audio"] is None) == (clip["label"] == 1)
    assert {note for note in splits.notes if "no_" in note} == {"6 clips: no_audio", "6 clips: no_video"}
    lengths = {clip["id"]: clip["seconds"] for clip in splits["train"]}
    assert all(seconds == pytest.approx(0.3, abs=0.05) for seconds in lengths.values())
    drawn = CorruptedClips(splits["train"], CorruptionPlan.of("blur", draws=2))
    assert [clip["seconds"] for clip in drawn] == [lengths[name] for name in drawn.clips]


def test_what_a_downloader_notes_beside_clips_makes_no_built_data_set(folder, tmp_path):
    for name in COLOURS:
        (tmp_path / "clips" / name).mkdir(parents=True)
        for clip in sorted((folder / name).iterdir()):
            (tmp_path / "clips" / name / clip.name).symlink_to(clip)
            (tmp_path / "clips" / name / f"{clip.stem}.info.json").write_text("{}")
    (tmp_path / "clips" / "about.json").write_text("{}")
    assert source_of(str(tmp_path / "clips")) == "folder"
    assert load_clips(str(tmp_path / "clips"), **SMALL).classes == ["blue", "red"]
    (tmp_path / "clips" / "metadata.csv").write_text("clip,noise\n")
    assert source_of(str(tmp_path / "clips")) == "folder"
    # as the `datasets` library lists clips in a folder
    for name, content in (("metadata.csv", "file_name,label\n"), ("metadata.jsonl", "{}")):
        (tmp_path / "clips" / "metadata.csv").unlink(missing_ok=True)
        (tmp_path / "clips" / name).write_text(content)
        assert source_of(str(tmp_path / "clips")) == "hub"
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.json").write_text("{}")
    assert source_of(str(tmp_path / "rows")) == "hub"


def test_a_data_set_is_named_by_its_folder_wherever_it_is_read_from(folder, monkeypatch):
    monkeypatch.chdir(folder)
    clips = load_clips(".", **SMALL)
    assert clips.name == folder.name
    assert data_source(clips, FolderOptions())["name"] == folder.name
    clips.name = "."
    assert data_source(clips, FolderOptions())["name"] == folder.name


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables(folder, tmp_path, suffix):
    rows = []
    for i, name in enumerate(COLOURS):
        for j in range(12):
            split = "test" if j > 8 else "valid" if j > 6 else "train"
            path = folder / name / f"p{j % 6}_{j}.mp4"
            rows.append({"path": str(path), "label": name, "group": f"g{i}{j}", "split": split})
    path = tmp_path / f"clips{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "\t" if suffix == ".tsv" else ","
        path.write_text("\n".join(mark.join(row) for row in [list(rows[0]), *(row.values() for row in rows)]))
    assert source_of(str(path)) == "table"
    splits = load_clips(str(path), calibration_fraction=0.2, **SMALL)
    sizes = {name: len(part) for name, part in splits.splits.items()}
    assert sizes == {"train": 12, "calibration": 2, "validation": 4, "test": 6}
    assert all(splits.classes[clip["label"]] == colour_of(clip) for clip in splits["test"])


def test_table_windows_classes_and_relative_paths(tmp_path):
    write_clip(tmp_path / "media" / "long.mp4", seconds=2.0)
    lines = [f"media/long.mp4,{i % 2},{i / 10},{i / 10 + 0.4}" for i in range(12)]
    (tmp_path / "t.csv").write_text("file,y,start,end\n" + "\n".join(lines))
    named = {"path_column": "file", "label_column": "y"} | SMALL
    splits = load_clips(str(tmp_path / "t.csv"), classes=["no", "yes"], **named)
    assert splits.classes == ["no", "yes"]
    assert all(len(clip["audio"]) == 6400 for clip in splits["train"])
    with pytest.raises(DataError, match="label .1. .* not among the classes no .6 such rows"):
        load_clips(str(tmp_path / "t.csv"), classes=["no"], **named)
    with pytest.raises(DataError, match="no column 'path'"):
        load_clips(str(tmp_path / "t.csv"))


def test_a_file_of_a_built_data_set_is_no_table_of_paths(tmp_path):
    rows = pa.table({"id": ["a"], "audio": [{"bytes": b"fLaC", "path": None}], "label": [0]})
    pq.write_table(rows, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet: the clips are in its columns \(audio\).*name the folder"):
        load_clips(str(tmp_path / "train.parquet"))


def test_windows_of_one_file_are_on_one_side_of_a_split(tmp_path):
    lines = ["path,label,start,end,id"]
    for file in range(8):
        (tmp_path / f"{file}.mp4").touch()
        lines += [f"{file}.mp4,{'ab'[file % 2]},{i / 10},{i / 10 + 0.4},{file}-{i}" for i in range(5)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    splits = load_clips(str(tmp_path / "t.csv"), cache="none", **SMALL)  # nothing is decoded
    files = {name: {clip.split("-")[0] for clip in part.ids} for name, part in splits.splits.items()}
    assert sum(map(len, files.values())) == 8 and len(files) == 4
    assert splits.shared_groups() == {} and set(splits["test"].groups) == {f"{file}.mp4" for file in files["test"]}


def test_rows_without_a_split_are_counted(tmp_path):
    lines = [f"{i}.mp4,{'ab'[i % 2]},{split}" for i, split in enumerate(["train", "", "test", "test", "", "train"])]
    (tmp_path / "t.csv").write_text("path,label,split\n" + "\n".join(lines))
    for i in range(6):
        (tmp_path / f"{i}.mp4").touch()
    none = {"validation_fraction": 0, "calibration_fraction": 0}
    splits = load_clips(str(tmp_path / "t.csv"), cache="none", **none, **SMALL)
    assert splits["train"].ids == ["0.mp4", "1.mp4", "4.mp4", "5.mp4"]
    assert "2 rows have no split and count as train, e.g. 1.mp4" in splits.notes


def test_bad_tables(tmp_path):
    table = tmp_path / "t.csv"
    with pytest.raises(DataError, match="no such file"):
        load_clips(str(table))
    table.write_text("path,label\n")
    with pytest.raises(DataError, match="no rows"):
        load_clips(str(table))
    table.write_text("path,label\na.mp4,x\na.mp4,y\n")
    with pytest.raises(DataError, match="occur twice"):
        load_clips(str(table))
    table.write_text("path,label\na.mp4,x\nb.mp4,\n")
    with pytest.raises(DataError, match="row 2.*'label' is empty: label the clip, or remove the row .*mmbalance fuse"):
        load_clips(str(table))
    table.write_text("path,label\na.mp4,x\nb.mp4,y\n")
    with pytest.raises(DataError, match=r"a\.mp4: no such file"):
        load_clips(str(table), validation_fraction=0, calibration_fraction=0, test_fraction=0)
    with pytest.raises(DataError, match=r"2 of 2 clips have no file, e.g. .*a\.mp4; add the files"):
        load_clips(str(table), cache="none", validation_fraction=0, calibration_fraction=0, test_fraction=0)
    table.write_text("path,label,start,end\na.mp4,x,soon,later\n")
    with pytest.raises(DataError, match="must be seconds"):
        load_clips(str(table))
    table.write_text("path,label,start,end\na.mp4,x,0.2,0.4\nb.mp4,y,0.2,\n")
    with pytest.raises(DataError, match="row 2: a window needs both start and end in seconds, got 0.2 and None"):
        load_clips(str(table))
    table.write_text("path,label,split\na.mp4,x,train\nb.mp4,y,later\n")
    with pytest.raises(DataError, match="t.csv, row 2: unknown split 'later'"):
        load_clips(str(table))
    with pytest.raises(DataError, match="the name of the dataset is empty"):
        load_clips("")
    table.write_text("path,label\na.mp4,x\nb.mp4,y\n")
    with pytest.raises(DataError, match="classes names 'x' twice"):
        load_clips(str(table), classes=["x", "y", "x"])
    pq.write_table(pa.table({"path": ["a.mp4", "b.mp4"], "label": [1.0, float("nan")]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 2: column 'label' is empty"):
        load_clips(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"sampling_rate": 0}, "sampling_rate must be at least 1"),
        ({"frame_size": [0, 16]}, "frame_size must be at least 1 pixel"),
        ({"shift": -0.1}, "shift must be at least 0"),
        ({"frames": "2"}, "frames must be at least 1, got '2'"),
        ({"snr_db": float("nan")}, "must be finite numbers of dB, got nan"),
        ({"train_snr_db": [10.0, 0.0]}, "train_snr_db needs the lower ratio first"),
        ({"brightness": float("nan")}, "brightness must be at least 0, got nan"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"max_seconds": 0}, "max_seconds must be at least 0.001"),
        (
            {"noise": "white", "redraw_noise": False, "train_snr_db": [-5.0, 5.0], "snr_db": 3.0},
            "with redraw_noise=false give train_snr_db=3 3",
        ),
    ],
)
def test_numbers_out_of_range_are_named(folder, options, words):
    with pytest.raises(DataError, match=words):
        load_clips(str(folder), **(SMALL | options))


def png(colour) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(out, "PNG")
    return out.getvalue()


def flac(frequency: float) -> bytes:
    out = io.BytesIO()
    wave = 0.3 * np.sin(2 * np.pi * frequency * np.arange(8000) / 16_000)
    soundfile.write(out, wave, 16_000, format="FLAC")
    return out.getvalue()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder as `datasets` publishes it, typed by the schema's metadata."""
    from datasets import Audio, ClassLabel, Features, List, Value
    from datasets import Image as ImageFeature

    root = tmp_path_factory.mktemp("built")
    features = Features(
        {
            "id": Value("string"),
            "actor": Value("string"),
            "audio": Audio(sampling_rate=16_000),
            "frames": List(ImageFeature()),
            "label": ClassLabel(names=list(COLOURS)),
            "said_from": Value("float64"),
            "said_to": Value("float64"),
        }
    )
    for split, count in (("train", 20), ("test", 6)):
        rows = [
            {
                "id": f"{split}{i}",
                "actor": f"a{split}{i % 5}",
                "audio": {"bytes": flac(300 + i), "path": None},
                "frames": [{"bytes": png(list(COLOURS.values())[i % 2]), "path": None}] * 3,
                "label": i % 2,
                "said_from": 0.2,
                "said_to": 0.4,
            }
            for i in range(count)
        ]
        table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet", row_group_size=4)
    return root


@pytest.mark.parametrize("in_memory", [False, True])
def test_built_data_set(built, in_memory):
    assert source_of(str(built)) == "hub"
    splits = load_clips(str(built), in_memory=in_memory, **SMALL)
    assert splits.classes == list(COLOURS) and len(splits["test"]) == 6
    assert splits.shared_groups() == {}
    clip = pickle.loads(pickle.dumps(splits["train"]))[0]
    assert clip["frames"].shape == (2, 16, 16, 3) and clip["audio"].shape == (8000,)
    assert clip["group"].startswith("atrain")
    assert all(splits.classes[clip["label"]] == colour_of(clip) for part in splits.splits.values() for clip in part)
    spectrum = np.abs(np.fft.rfft(splits["test"][0]["audio"]))
    assert np.argmax(spectrum) * 2 == 300


def test_windows_of_a_built_data_set(built):
    splits = load_clips(str(built), start_column="said_from", end_column="said_to", margin=0.05, cache="none", **SMALL)
    assert len(splits["test"][0]["audio"]) == 4800


def test_frames_without_sound_and_times_have_no_length():
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    rows = {"frames": [[{"bytes": png(colour), "path": None}] * 3 for colour in COLOURS.values()], "label": ["a", "b"]}
    stored = {"bytes": Value("binary"), "path": Value("string")}
    table = Dataset.from_dict(rows, features=Features({"frames": List(stored), "label": Value("string")}))
    none = dict.fromkeys(("test_fraction", "validation_fraction", "calibration_fraction"), 0.0)
    clips = clips_of(table.cast_column("frames", List(ImageFeature())), HubOptions(**none, **SMALL))
    assert [clip["seconds"] for clip in clips["train"]] == [0.0, 0.0]


def test_bad_columns_and_names(built, tmp_path):
    with pytest.raises(DataError, match="no column 'sound'"):
        load_clips(str(built), audio_column="sound")
    with pytest.raises(DataError, match="no column 'kind'"):
        load_clips(str(built), label_column="kind")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_clips(str(built), config="fold7")
    with pytest.raises(DataError, match="neither a folder"):
        load_clips("a/b/c")
    table = pa.Table.from_pylist([{"label": "a", "x": 1}, {"label": "b", "x": 2}])
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match="no column of audio, images or video"):
        load_clips(str(tmp_path))

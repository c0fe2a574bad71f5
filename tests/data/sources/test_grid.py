"""GRID's layout, word windows, noise and splits; on generated and on real clips."""

from __future__ import annotations

import csv
import os
import pickle
import time

import numpy as np
import pytest

from hf_mmbalance.data import DataError, load_clips
from hf_mmbalance.data.sources.grid import parse_name, read_alignment, scan_grid
from tests.media_factory import grey_of, write_clip


NAMES = [f"b{colour}{prep}f{digit}{adverb}" for digit in "12" for colour in "bgrw" for prep in "ab" for adverb in "np"]
TIMES = [0, 2500, 5000, 7500, 10_000, 15_000, 20_000]  # the digit is said from .4 to .6 s


def write_align(path, words="bin blue at f two now"):
    path.parent.mkdir(parents=True, exist_ok=True)
    spoken = [f"{TIMES[i]} {TIMES[i + 1]} {word}" for i, word in enumerate(words.split())]
    path.write_text("\n".join(["0 0 sil", *spoken, "20000 25000 sil"]) + "\n")


@pytest.fixture(scope="module")
def one_speaker(tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    for i, name in enumerate(NAMES):
        write_clip(root / "s1" / f"{name}.mp4", tone=300.0 + 40 * i)
        write_align(root / "align" / f"{name}.align")
    return root


def test_file_names_spell_sentences():
    words = {"command": "bin", "colour": "blue", "preposition": "at", "letter": "f", "digit": "two", "adverb": "now"}
    assert parse_name("bbaf2n") == words
    assert parse_name("swizzs")["digit"] == "zero"
    for bad in ("bbaf2", "xbaf2n", "bbaw2n"):
        with pytest.raises(DataError, match="not a GRID file name"):
            parse_name(bad)


def test_alignment_units(tmp_path):
    write_align(tmp_path / "a.align")
    times = read_alignment(tmp_path / "a.align")
    assert times["digit"] == (0.4, 0.6) and times["command"] == (0.0, 0.1)
    (tmp_path / "b.align").write_text("0 100 bin\n")
    with pytest.raises(DataError, match="1 words"):
        read_alignment(tmp_path / "b.align")
    (tmp_path / "c.align").write_text("\n".join(f"0.{i} 0.{i + 1} word" for i in range(6)))
    with pytest.raises(DataError, match="c.align: a line must be .start end word., with times as whole numbers"):
        read_alignment(tmp_path / "c.align")


def test_word_window(one_speaker):
    splits = load_clips("grid", data_dir=str(one_speaker), window="word", margin=0.1, frames=4, frame_size=[24, 32])
    assert splits.classes[:3] == ["zero", "one", "two"] and sum(map(len, splits.splits.values())) == len(NAMES)
    clip = splits["train"][0]
    assert clip["frames"].shape == (4, 24, 32, 3)
    assert len(clip["audio"]) == 6400  # .2 s of the word and .1 s on either side
    # centres of four parts of .3 to .7 s: .35, .45, .55, .65
    expected = [grey_of(n) for n in (8, 11, 13, 16)]
    assert np.abs(clip["frames"].mean(axis=(1, 2, 3)) - expected).max() < 5
    assert any("1 speaker(s)" in note for note in splits.notes)
    assert splits["train"].class_counts()["one"] == splits["train"].class_counts()["two"]


@pytest.mark.parametrize("layout", ["{speaker}/align", "align/{speaker}"])
def test_several_speakers_give_disjoint_splits(tmp_path, tmp_path_factory, layout):
    place = tmp_path_factory.mktemp("clip") / "clip.mpg"
    clip = write_clip(place, video="mpeg1video", audio="mp2", rate=44_100, seconds=0.8)
    for speaker in ("s1", "s2", "s3", "s4", "s5", "s6"):
        for name in NAMES[:4]:
            (tmp_path / speaker).mkdir(exist_ok=True)
            os.link(clip, tmp_path / speaker / f"{name}.mpg")
            write_align(tmp_path / layout.format(speaker=speaker) / f"{name}.align")
    options = {"data_dir": str(tmp_path), "frames": 2, "frame_size": [8, 8], "cache": "none"}
    splits = load_clips("grid", window="word", label="colour", **options)
    assert splits.shared_groups() == {}
    assert sum(map(len, splits.splits.values())) == 24
    assert splits["train"].ids[0].startswith("s") and len(splits["train"][0]["audio"]) == 4800
    some = load_clips("grid", speakers=["s1", "s2"], **options)
    assert {group for part in some.splits.values() for group in part.groups} == {"s1", "s2"}
    with pytest.raises(DataError, match="s9"):
        scan_grid(tmp_path, ["s9"])


def test_clips_of_some_speakers_keep_their_names_and_splits(tmp_path):
    for speaker in ("s1", "s2"):
        for name in NAMES[:2]:
            (tmp_path / speaker).mkdir(exist_ok=True)
            (tmp_path / speaker / f"{name}.mpg").touch()
    rows = [f"{speaker}_{name},test" for speaker in ("s1", "s2") for name in NAMES[:2]]
    (tmp_path / "labels.csv").write_text("\n".join(["id,split", *rows]))
    everyone = {clip.id: clip for clip in scan_grid(tmp_path)}
    assert {clip.id: clip for clip in scan_grid(tmp_path, ["s1"])}.items() <= everyone.items()
    (tmp_path / "labels.csv").write_text("\n".join(["id,split", *rows, f"s1_{NAMES[0]},train"]))
    with pytest.raises(DataError, match=f"labels.csv: 1 clips have several rows, e.g. s1_{NAMES[0]}; keep one"):
        scan_grid(tmp_path)


def test_an_alignment_that_may_be_of_another_speaker_is_not_taken(tmp_path):
    for speaker, name in (("s1", NAMES[0]), ("s2", NAMES[0]), ("s2", NAMES[1])):
        (tmp_path / speaker).mkdir(exist_ok=True)
        (tmp_path / speaker / f"{name}.mpg").touch()
    for name in NAMES[:2]:
        write_align(tmp_path / "align" / f"{name}.align")
    assert [clip.id for clip in scan_grid(tmp_path) if clip.times] == [f"s2_{NAMES[1]}"]


def test_noise_is_keyed_and_redrawn_only_for_training(one_speaker):
    options = {"data_dir": str(one_speaker), "window": "word", "noise": "babble", "snr_db": 0.0, "frames": 2}
    options |= {"frame_size": [8, 8], "train_snr_db": [-10.0, 10.0]}
    noisy, again = load_clips("grid", **options), load_clips("grid", **options)
    clean = load_clips("grid", **(options | {"noise": "none"}))
    for split in ("train", "calibration", "validation", "test"):
        one, other, plain = noisy[split], again[split], clean[split]
        np.testing.assert_array_equal(one[0]["audio"], other[0]["audio"])
        added = one[0]["audio"] - plain[0]["audio"]
        if len(one) > 1:
            ratio = 10 * np.log10((plain[0]["audio"] ** 2).mean() / (added**2).mean())
            assert ratio == pytest.approx(0.0, abs=0.01)  # without an epoch: the fixed ratio
        changes = (one[0, 1]["audio"] != one[0, 2]["audio"]).any()
        assert changes == (split == "train")
    ratios = []
    for epoch in range(30):
        added = noisy["train"][0, epoch]["audio"] - clean["train"][0]["audio"]
        ratios.append(10 * np.log10((clean["train"][0]["audio"] ** 2).mean() / (added**2).mean()))
    assert min(ratios) < -5 and max(ratios) > 5


def test_training_shift_moves_sound_and_frames_together(one_speaker):
    options = {"data_dir": str(one_speaker), "window": "word", "margin": 0.0, "frames": 1, "frame_size": [8, 8]}
    moved = load_clips("grid", shift=0.2, **options)["train"]
    still = load_clips("grid", **options)["train"]
    np.testing.assert_array_equal(moved[0]["frames"], still[0]["frames"])
    np.testing.assert_allclose(moved[0]["audio"], still[0]["audio"], atol=1e-6)
    greys = {int(moved[0, epoch]["frames"].mean()) for epoch in range(30)}
    assert len(greys) > 4  # .4 s of frames at 25 a second
    assert len(moved[0, 1]["audio"]) == len(still[0]["audio"])
    copy = pickle.loads(pickle.dumps(moved))
    np.testing.assert_array_equal(copy[3, 5]["frames"], moved[3, 5]["frames"])


def test_frames_of_the_window_are_selected_from_all_kept_frames(one_speaker):
    """With a shift every frame of a longer window is kept; they must not be mistaken for those of the window."""
    options = {"data_dir": str(one_speaker), "window": "word", "margin": 0.0, "frame_size": [8, 8], "cache": "none"}
    for frames in range(9, 13):  # .2 s of the word and .1 s on either side hold about ten
        moved = load_clips("grid", shift=0.1, frames=frames, **options)["train"]
        still = load_clips("grid", frames=frames, **options)["train"]
        np.testing.assert_array_equal(moved[0]["frames"], still[0]["frames"])


def test_cache_folder_is_used_again(one_speaker, tmp_path, monkeypatch):
    options = {"data_dir": str(one_speaker), "frames": 2, "frame_size": [8, 8], "cache_dir": str(tmp_path / "cache")}
    first = load_clips("grid", **options)["test"][0]
    monkeypatch.setattr("hf_mmbalance.data.media_clips.decode", None)  # a second decoding would fail
    second = load_clips("grid", **options)["test"][0]
    np.testing.assert_array_equal(first["audio"], second["audio"])
    np.testing.assert_array_equal(first["frames"], second["frames"])


def test_labels_csv_gives_the_splits(one_speaker, tmp_path):
    for name in ("s1", "align"):
        (tmp_path / name).symlink_to(one_speaker / name)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = [(name, ("train", "val", "test")[i % 3]) for i, name in enumerate(NAMES)]
        csv.writer(file).writerows([("id", "split"), *rows])
    splits = load_clips("grid", data_dir=str(tmp_path), calibration_fraction=0.0, frames=1, frame_size=[8, 8])
    assert {name: len(part) for name, part in splits.splits.items()} == {"train": 11, "validation": 11, "test": 10}
    # As spreadsheets save it: the same splits, not splits made anew.
    (tmp_path / "labels.csv").write_text("id;split\n" + "\n".join(map(";".join, rows)), encoding="utf-8-sig")
    again = load_clips("grid", data_dir=str(tmp_path), calibration_fraction=0.0, frames=1, frame_size=[8, 8])
    assert again["test"].ids == splits["test"].ids
    (tmp_path / "labels.csv").write_text("clip,part\nbbaf2n,train\n")
    with pytest.raises(DataError, match=r"labels.csv: needs the columns id and split \(it has clip, part\)"):
        load_clips("grid", data_dir=str(tmp_path))
    (tmp_path / "labels.csv").write_text("id,split\nbbaf2n,later\n")
    with pytest.raises(DataError, match="labels.csv: unknown split 'later'"):
        load_clips("grid", data_dir=str(tmp_path))
    (tmp_path / "labels.csv").write_text("id,split\n" + "\n".join(map(",".join, rows)))
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("\npbaf2n,train\n")
    with pytest.raises(DataError, match="pbaf2n"):
        load_clips("grid", data_dir=str(tmp_path))


def test_bad_input(one_speaker, tmp_path):
    with pytest.raises(DataError, match="needs data_dir"):
        load_clips("grid")
    with pytest.raises(DataError, match="no such folder"):
        load_clips("grid", data_dir=str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"\.mpg"):
        load_clips("grid", data_dir=str(tmp_path))
    with pytest.raises(DataError, match="label must be"):
        load_clips("grid", data_dir=str(one_speaker), label="number")
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / "bbaf2n.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    for name in NAMES[:4]:
        write_clip(tmp_path / "s1" / f"{name}.mp4", seconds=0.3)
    with pytest.raises(DataError, match="(?s)bbaf2n.*git-lfs.*on_error=skip"):
        load_clips("grid", data_dir=str(tmp_path), test_fraction=0.4)
    skipped = load_clips(
        "grid", data_dir=str(tmp_path), on_error="skip", validation_fraction=0, calibration_fraction=0
    )
    assert sum(map(len, skipped.splits.values())) == 4
    assert any("bbaf2n" in note and "lfs_pointer" in note for note in skipped.notes)
    with pytest.raises(DataError, match="window=word needs"):
        load_clips("grid", data_dir=str(tmp_path), window="word")


LIPS = {"window": "word", "noise": "babble", "snr_db": -3.0, "crop": [0.32, 0.69, 0.75, 0.96], "frame_size": [32, 48]}


def test_real_clips(real_data, tmp_path):
    (tmp_path / "s1").mkdir()
    (tmp_path / "align").symlink_to(real_data / "grid_s1" / "align")
    for path in sorted((real_data / "grid_s1" / "s1").iterdir())[::20]:
        (tmp_path / "s1" / path.name).symlink_to(path)
    splits = load_clips("grid", data_dir=str(tmp_path), **LIPS)
    assert sum(map(len, splits.splits.values())) == 50
    for clip in (splits["train"][0, 1], splits["test"][0]):
        assert clip["frames"].shape == (8, 32, 48, 3) and np.abs(clip["audio"]).max() > 0.005


@pytest.mark.slow
def test_all_real_clips_load_in_time(real_data):
    start = time.process_time()
    splits = load_clips("grid", data_dir=str(real_data / "grid_s1"), **LIPS)
    assert time.process_time() - start < 80  # 40 s on two cores
    sizes = {name: len(part) for name, part in splits.splits.items()}
    assert sizes == {"train": 610, "calibration": 70, "validation": 120, "test": 200}
    assert set(splits["test"].class_counts().values()) == {20}

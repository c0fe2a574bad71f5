"""CREMA-D: fields, folds, the OGM-GE split, fallbacks, and the human votes."""

from __future__ import annotations

import csv
import importlib.util
import os
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hf_mmbalance.building.plan import EncodeOptions
from hf_mmbalance.building.recipes.crema_d import CLASSES, KNOWN_BAD, actor_folds, plan_crema_d
from hf_mmbalance.building.report import read_report
from hf_mmbalance.building.validate import validate
from hf_mmbalance.data import DataError, load_clips
from tests.media_factory import write_clip


def load_script(name: str):
    path = Path(__file__).parents[2] / "dataset_scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.script()


@pytest.fixture
def tables(real_data, tmp_path) -> Path:
    """The official tables, without media."""
    for name in ("SentenceFilenames.csv", "VideoDemographics.csv", "processedResults", "splits"):
        (tmp_path / "CREMA-D" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "CREMA-D" / name).symlink_to(real_data / "crema_d" / name)
    return tmp_path / "CREMA-D"


@pytest.fixture
def full_tree(tables) -> Path:
    """All 7,442 clips under their official names, as links to a few small files."""
    clip = write_clip(tables.parent / "clip.flv", video="flv", audio="aac", seconds=0.2, size=(16, 16))
    sound = write_clip(tables.parent / "clip.wav", video=None, audio="pcm_s16le", seconds=0.2)
    (tables / "VideoFlash").mkdir()
    (tables / "AudioWAV").mkdir()
    with (tables / "SentenceFilenames.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            os.link(clip, tables / "VideoFlash" / f"{row['Filename']}.flv")
            os.link(sound, tables / "AudioWAV" / f"{row['Filename']}.wav")
    return tables


def test_the_six_official_clips(real_data, tmp_path):
    out = tmp_path / "out"
    source = real_data / "crema_d"
    assert load_script("crema_d").main(["build", "--source", str(source), "--out", str(out), "--num-proc", "1"]) == 0
    rows = {row["id"]: row for path in (out / "data").iterdir() for row in pq.read_table(path).to_pylist()}
    assert len(rows) == 6
    row = rows["1001_DFA_ANG_XX"]
    assert {key: row[key] for key in ("actor", "age", "race", "ethnicity", "sentence_text")} == {
        "actor": "1001",
        "age": 51,
        "race": "Caucasian",
        "ethnicity": "Not Hispanic",
        "sentence_text": "Don't forget a jacket",
    }
    names = pq.read_schema(next((out / "data").iterdir())).names
    assert names[:3] == ["id", "actor", "sex"] and row["sex"] == 1 and row["emotion"] == 0 and row["intensity"] == 3
    with (source / "processedResults" / "tabulatedVotes.csv").open(newline="") as file:
        votes = {r[""][0]: r for r in csv.DictReader(file) if r["fileName"] == "1001_DFA_ANG_XX"}
    for digit, column in (("1", "votes_voice"), ("2", "votes_face"), ("3", "votes_audiovisual")):
        assert row[column] == [int(votes[digit][letter]) for letter in "ADFHNS"]
    assert len(row["frames"]) == len(row["frame_times"]) == 8 and row["duration"] == pytest.approx(2.27, abs=0.05)
    assert "sound_from_flv" in row["notes"]
    assert validate(out) == []
    report = read_report(out)
    assert report["status"] == {"ok": 6, "missing": 7436} and set(report["noted"]) == set(rows)
    assert {row["emotion"] for row in rows.values()} == set(range(6))


def test_a_wrong_checksum_is_found(real_data, tables, tmp_path):
    (tables / "VideoFlash").mkdir()
    real = real_data / "crema_d" / "VideoFlash"
    (tables / "VideoFlash" / "1001_DFA_ANG_XX.flv").write_bytes((real / "1001_DFA_ANG_XX.flv").read_bytes())
    (tables / "VideoFlash" / "1001_DFA_DIS_XX.flv").write_bytes((real / "1001_DFA_ANG_XX.flv").read_bytes())
    (tables / "VideoFlash" / "1001_DFA_SAD_XX.flv").write_text("version https://git-lfs.github.com/spec/v1\n")
    sums = real_data / "crema_d" / "media_sha256.csv"
    flags = ["--source", str(tables), "--out", str(tmp_path / "out"), "--checksums", str(sums), "--num-proc", "1"]
    assert load_script("crema_d").main(["build", *flags]) == 0
    report = read_report(tmp_path / "out")
    assert report["status"] == {"ok": 1, "missing": 7439, "lfs_pointer": 1, "checksum": 1}


def test_a_list_of_checksums_that_checks_nothing_is_refused(tables, tmp_path):
    (tables / "VideoFlash").mkdir()
    for name in ("1001_DFA_ANG_XX", "1001_DFA_DIS_XX"):
        (tables / "VideoFlash" / f"{name}.flv").touch()
    sums = tmp_path / "sums.csv"
    sums.write_text("path,sha256\ncrema/VideoFlash/1001_DFA_ANG_XX.flv,00\n")
    with pytest.raises(DataError, match="names no file of .* not crema/VideoFlash/1001_DFA_ANG_XX.flv"):
        plan_crema_d(tables, EncodeOptions(), checksums=sums)
    sums.write_text("path,sha256\nVideoFlash/1001_DFA_ANG_XX.flv,00\n")
    (note,) = (note for note in plan_crema_d(tables, EncodeOptions(), checksums=sums).notes if "checksums" in note)
    assert note.startswith("1 files are not checked (not in the list of checksums), e.g. ")


def test_folds_and_the_ogm_split_are_exact(full_tree):
    plan = plan_crema_d(full_tree, EncodeOptions())
    assert len(plan.clips) == 7442 and all(clip.problem is None for clip in plan.clips)
    counts = Counter(clip.label for clip in plan.clips)
    assert {CLASSES[i]: n for i, n in counts.items()} == {name: 1271 for name in CLASSES} | {"neutral": 1087}
    tested: Counter[str] = Counter()
    for k in range(10):
        splits = plan.splits(f"fold{k}")
        actors = {name: {clip.columns["actor"] for clip in clips} for name, clips in splits.items()}
        assert not actors["train"] & actors["test"] and not actors["train"] & actors["validation"]
        assert not actors["validation"] & actors["test"] and len(set.union(*actors.values())) == 91
        tested.update(clip.id for clip in splits["test"])
        assert len(actors["test"]) in (9, 10) and 650 < len(splits["test"]) < 850
        shares = Counter(clip.label for clip in splits["test"])
        assert all(abs(shares[c] / len(splits["test"]) - counts[c] / 7442) < 0.02 for c in range(6))
        men = {clip.columns["actor"] for clip in splits["test"] if clip.columns["sex"] == 1}
        assert len(men) in (4, 5)
    assert len(tested) == 7442 and set(tested.values()) == {1}
    ogm = {name: {clip.id for clip in clips} for name, clips in plan.splits("ogm").items()}
    assert len(ogm["train"] | ogm["validation"]) == 6698 and len(ogm["test"]) == 744
    assert len(ogm["validation"]) == pytest.approx(670, abs=5)
    with (full_tree / "splits" / "ogm" / "test.csv").open() as file:
        assert ogm["test"] == {line.split(",")[0] for line in file}
    bad = [clip for clip in plan.clips if clip.id in KNOWN_BAD]
    assert len(bad) == 4 and all(clip.window == (0.0, 0.2) and "known_bad" in clip.notes[0] for clip in bad)
    assert plan_crema_d(full_tree, EncodeOptions()).fingerprint() == plan.fingerprint()
    with (full_tree / "AudioWAV" / "1001_DFA_ANG_XX.wav").open("ab") as file:
        file.write(b"more")
    assert plan_crema_d(full_tree, EncodeOptions()).fingerprint() != plan.fingerprint()


def test_folds_are_dealt_the_same_whatever_the_order():
    sexes = {str(i): "male" if i % 2 else "female" for i in range(40)}
    names = [f"{actor}_DFA_{emotion}_XX" for actor in sexes for emotion in ("ANG", "SAD")]
    turned = dict(reversed(sexes.items()))
    assert actor_folds(sexes, names) == actor_folds(turned, names[::-1])
    assert set(Counter(actor_folds(sexes, names).values()).values()) == {4}


@pytest.mark.slow
def test_the_full_tree_is_built(full_tree, tmp_path):
    out = tmp_path / "out"
    flags = ["--source", str(full_tree), "--out", str(out), "--frames", "2", "--num-proc", "2"]
    assert load_script("crema_d").main(["build", *flags]) == 0
    report = read_report(out)
    assert report["clips"] == {"planned": 7442, "built": 7442}
    assert validate(out) == []
    assert report["splits"]["ogm"]["test"]["built"] == 744 and len(report["splits"]) == 11
    assert sum(report["splits"]["ogm"][split]["built"] for split in ("train", "validation")) == 6698
    splits = load_clips(str(out), config="fold3", cache="none")
    assert splits.shared_groups() == {} and len(splits["test"]) == report["splits"]["fold3"]["test"]["built"]


def test_split_files_and_sources_that_do_not_fit(tables, tmp_path):
    options = EncodeOptions()
    with pytest.raises(DataError, match="no media of CREMA-D.*git lfs pull"):
        plan_crema_d(tables, options)
    with pytest.raises(DataError, match="SentenceFilenames.csv: no such file"):
        plan_crema_d(tmp_path, options)
    split = tmp_path / "split"
    with pytest.raises(DataError, match="train.csv and test.csv"):
        plan_crema_d(tables, options, ogm_split=split)
    split.mkdir()
    for name in ("train", "test"):
        text = (tables / "splits" / "ogm" / f"{name}.csv").read_text()
        (split / f"{name}.csv").write_text(text)
    (split / "test.csv").write_text("9999_DFA_ANG_XX,ANG\n")
    with pytest.raises(DataError, match="9999_DFA_ANG_XX"):
        plan_crema_d(tables, options, ogm_split=split)
    (split / "test.csv").write_text("\n".join((split / "train.csv").read_text().splitlines()[:3]))
    with pytest.raises(DataError, match="(used|listed) twice"):
        plan_crema_d(tables, options, ogm_split=split)


@pytest.mark.parametrize(
    ("table", "row", "words"),
    [
        (
            "VideoDemographics.csv",
            "1003,",
            r"VideoDemographics.csv: 1 of 91 are not in it, e.g. 1003; take it from a clone",
        ),
        (
            "processedResults/tabulatedVotes.csv",
            "1003_DFA_ANG_XX",
            "tabulatedVotes.csv: 1 of 7442 are not in it, e.g. 1003_DFA",
        ),
    ],
)
def test_tables_that_lack_an_actor_or_a_clip_are_named(real_data, tmp_path, table, row, words):
    for name in ("SentenceFilenames.csv", "VideoDemographics.csv", "processedResults/tabulatedVotes.csv"):
        lines = (real_data / "crema_d" / name).read_text().splitlines()
        kept = [line for line in lines if name != table or row not in line]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(kept) + "\n")
    with pytest.raises(DataError, match=words):
        plan_crema_d(tmp_path, EncodeOptions())


def test_votes(real_data, tmp_path):
    from hf_mmbalance.decision.table import DecisionTable

    out = tmp_path / "votes.parquet"
    source = real_data / "crema_d"
    assert load_script("crema_d").main(["votes", "--source", str(source), "--out", str(out)]) == 0
    table = DecisionTable.read(out)
    assert len(table.ids) == 7442 and list(table.modalities) == ["voice", "face"]
    assert list(table.references) == ["audiovisual"] and table.groups[0] == "1001"
    assert load_script("crema_d").main(["votes", "--source", str(tmp_path), "--out", str(out)]) == 2

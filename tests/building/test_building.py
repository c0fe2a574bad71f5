"""The building engine: what is in a shard, in the report and the card; parts, windows, several processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_mmbalance.building import engine
from hf_mmbalance.building.card import fill_card
from hf_mmbalance.building.cli import DatasetScript, join_parts
from hf_mmbalance.building.encode import encode_clip
from hf_mmbalance.building.engine import BuildError, build
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions, PlannedClip
from hf_mmbalance.building.report import configs_of, finish, read_report
from hf_mmbalance.building.validate import validate
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.model.media_mmbalance import MediaError
from tests.media_factory import grey_of, write_clip

from .toy import CARD, make_plan, shard_hashes


def test_plain_datasets_reads_it_without_this_package(built):
    code = f"""
import sys, datasets
ds = datasets.load_dataset({str(built)!r})
train = ds["train"]
assert str(train.features["frames"]).startswith("List(Image"), train.features
assert type(train.features["audio"]).__name__ == "Audio" and train.features["audio"].sampling_rate == 16000
assert train.features["label"].names == ["even", "odd"]
audio = train.cast_column("audio", datasets.Audio(decode=False))[0]["audio"]
assert audio["bytes"][:4] == b"fLaC"
image = train.select_columns(["frames"])[0]["frames"][1]
assert image.size == (48, 32), image.size
stream = datasets.load_dataset({str(built)!r}, split="test", streaming=True)
ids = sorted(row["id"] for row in stream.select_columns(["id"]))
assert "hf_mmbalance" not in sys.modules
print(len(train), len(ds["test"]), ids[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["18", "6", "c03"], done.stderr[-2000:]


def test_a_new_build_of_the_same_name_is_not_read_from_the_cache(media, tmp_path):
    from datasets import load_dataset

    for frames in (1, 2):
        out = tmp_path / str(frames) / "same_name"
        plan = make_plan(media, EncodeOptions(frames=frames), clips=make_plan(media).clips[:8])
        finish(plan, out, build(plan, out), CARD)
        rows = load_dataset(str(out), split="test", cache_dir=str(tmp_path / "cache")).select_columns(["frame_times"])
        assert {len(row["frame_times"]) for row in rows} == {frames}


def test_rows_hold_what_the_clips_hold(built):
    rows = {}
    for path in (built / "data").iterdir():
        rows |= {row["id"]: row for row in pq.read_table(path).to_pylist()}
    assert len(rows) == 24
    row = rows["c05"]
    assert row["group"] == "g5" and row["label"] == 1 and row["notes"] is None
    assert row["duration"] == pytest.approx(0.4, abs=0.07)
    assert row["audio"]["path"] == "c05.flac" and row["audio"]["bytes"][:4] == b"fLaC"
    np.testing.assert_allclose(row["frame_times"], [0.04, 0.2, 0.32], atol=0.041)
    from hf_mmbalance.building.validate import _check_media
    from hf_mmbalance.model.inputs_mmbalance import as_frames

    greys = np.stack(as_frames([image["bytes"] for image in row["frames"]])).mean(axis=(1, 2, 3))
    assert np.abs(greys - [grey_of(n) for n in (1, 5, 8)]).max() < 5
    assert _check_media(row, 16_000) == []


def test_report_card_and_configurations(built):
    report = read_report(built)
    assert report["clips"] == {"planned": 24, "built": 24} and report["status"] == {"ok": 24}
    assert report["splits"]["default"]["test"]["classes"] == {"even": 0, "odd": 6}
    assert {shard["file"] for shard in report["shards"]} == {f"data/{name}" for name in shard_hashes(built)}
    card = (built / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nconfigs:") and "24 of 24" in card and "No clip was left out" in card
    assert len((built / "manifest.csv").read_text().splitlines()) == 25
    assert (built / "contact_sheet.png").stat().st_size > 1000
    with pytest.raises(DataError, match="nonsense"):
        fill_card("{{ nonsense }}", make_plan_like(built), report, [])


def make_plan_like(folder: Path) -> BuildPlan:
    return BuildPlan.from_json(json.loads((folder / ".build" / "plan.json").read_text())["plan"])


def test_sound_beyond_full_scale_keeps_its_shape(tmp_path):
    import io

    import soundfile

    loud = (1.5 * np.sin(np.arange(16_000) / 20)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", loud, 16_000, subtype="FLOAT")
    clip = PlannedClip("a", str(tmp_path / "a.wav"), "train", 0, {}, (tmp_path / "a.wav").stat().st_size)
    row = encode_clip(clip, "label", EncodeOptions(need_frames=False))
    stored, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
    assert row["audio_gain"] == 2.0  # the next power of 2
    np.testing.assert_allclose(stored * row["audio_gain"], loud, atol=1e-4)


def test_two_processes_give_the_same_bytes_and_stay_lean(media, built, tmp_path):
    run = build(make_plan(media), tmp_path / "two", num_proc=2)
    assert shard_hashes(tmp_path / "two") == shard_hashes(built)
    assert run["clips"] == 24
    code = (
        "import sys, hf_mmbalance.building.engine, hf_mmbalance.building.cli;"
        "import hf_mmbalance.building.recipes.crema_d, hf_mmbalance.building.recipes.grid;"
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_what_is_built_is_not_built_again(media, built, monkeypatch):
    monkeypatch.setattr(engine, "encode_clip", None)
    assert build(make_plan(media), built)["clips"] == 0


def test_parts_are_merged_when_all_are_there(media, built, tmp_path):
    plan = make_plan(media)
    for i in range(3):
        build(plan, tmp_path / f"part{i}", part=(i, 3))
    parts = [tmp_path / f"part{i}" for i in range(3)]
    with pytest.raises(BuildError, match="not built yet"):
        join_parts(parts[:2], tmp_path / "whole")
    assert not (tmp_path / "whole").exists(), "the same command would be refused once all parts are there"
    join_parts(parts, tmp_path / "whole")
    whole = join_parts(parts, tmp_path / "whole")  # again, as after a merge that was killed
    finish(whole, tmp_path / "whole", {}, CARD)
    assert shard_hashes(tmp_path / "whole") == shard_hashes(built)
    assert validate(tmp_path / "whole") == []
    with pytest.raises(BuildError, match="in two parts"):
        join_parts([parts[0], parts[0]], tmp_path / "double")
    build(make_plan(media, EncodeOptions(frames=2)), tmp_path / "other", part=(99, 100))  # no shard
    with pytest.raises(BuildError, match="a different plan"):
        join_parts([parts[0], tmp_path / "other"], tmp_path / "mixed")
    with pytest.raises(BuildError, match="holds no part"):
        join_parts([tmp_path], tmp_path / "none")


def test_a_part_leaves_the_drafts_of_others(media, tmp_path):
    """They may be in work on another machine, whose processes have other numbers."""
    plan = make_plan(media, clips=make_plan(media).clips[:12])
    build(plan, tmp_path, part=(99, 100))  # no shard
    drafts = [tmp_path / ".build" / "drafts" / f"{shard.name}.{2**31 - 1}" for shard in plan.shards()[:2]]
    for draft in drafts:
        draft.touch()
    build(plan, tmp_path, part=(0, 2))
    assert [draft.exists() for draft in drafts] == [False, True]


def test_a_merge_may_accept_more_losses_than_its_parts(media, tmp_path, capsys):
    """Parts do not know how much is lost in all; the remedy that the message names must be one that `merge` takes."""
    clips = [replace(clip, source=None, problem=("missing", "gone")) if i < 12 else clip
             for i, clip in enumerate(make_plan(media).clips)]  # fmt: skip
    clips[12] = replace(clips[12], problem=("empty", "no bytes"))
    (tmp_path / "card.md").write_text(CARD)
    tool = DatasetScript(
        "toy", "", lambda args, encode: make_plan(media, clips=clips, max_lost=0.1), tmp_path / "card.md", 0.1
    )
    for i in range(2):
        flags = ["--source", str(media), "--out", str(tmp_path / f"part{i}"), "--shard", f"{i}/2", "--num_proc", "1"]
        assert tool.main(["build", *flags]) == 0
    merge = ["merge", str(tmp_path / "part0"), str(tmp_path / "part1"), "--out", str(tmp_path / "whole")]
    assert tool.main(merge) == 2
    lost = "54.2% of the clips could not be built, more than --max_lost 0.1: 11 ok, 12 missing, 1 empty"
    assert lost in capsys.readouterr().err
    assert tool.main(["validate", str(tmp_path / "whole")]) == 2
    assert "no build_report.json (the build is not finished)" in capsys.readouterr().err
    capsys.readouterr()
    assert tool.main([*merge, "--max_lost", "0.6"]) == 0
    first, *_ = re.findall("left out: .*", capsys.readouterr().out)
    assert first == "left out: c12 (empty: no bytes)", "what is rare is hidden by what is missing"
    assert tool.main(["merge", "--out", str(tmp_path / "whole"), "--max_lost", "0.6"]) == 0
    assert validate(tmp_path / "whole") == []


def test_flags_out_of_range_and_a_missing_card_are_refused_before_the_build(media, tmp_path, capsys):
    tool = DatasetScript("toy", "", lambda args, encode: make_plan(media, encode), tmp_path / "card.md", 0.1)
    flags = ["build", "--source", str(media), "--out", str(tmp_path / "out")]
    for name in ("--clips_per_shard", "--num_proc", "--frames", "--sampling_rate", "--frame_size"):
        with pytest.raises(SystemExit):
            tool.main([*flags, name, "0"])
        assert f"argument {name}: '0' must be an integer of at least 1" in capsys.readouterr().err
    assert tool.main(flags) == 2 and "card.md: No such file" in capsys.readouterr().err
    (tmp_path / "card.md").write_text(CARD)
    for name, wrong in (("--max_lost", "35"), ("--max_seconds", "nan")):
        with pytest.raises(SystemExit):
            tool.main([*flags, name, wrong])
        assert f"argument {name}: '{wrong}' must be a number" in capsys.readouterr().err
    assert tool.main([*flags, "--fps", "nan"]) == 2 and "fps must be positive" in capsys.readouterr().err
    assert tool.main([*flags, "--crop", "0.5", "0", "0.2", "1"]) == 2
    assert "crop" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_damage_after_the_build_is_found(media, built, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    victim = sorted((folder / "data").iterdir())[0]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 255
    victim.write_bytes(content)
    assert any(victim.name in problem for problem in validate(folder))
    with pytest.raises(BuildError, match="no build_report.json"):
        validate(tmp_path)


def test_a_readme_that_does_not_say_the_splits_is_found(built, tmp_path):
    import shutil

    folder = shutil.copytree(built, tmp_path / "copy")
    text = (built / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("split: test", "split: validation"))
    assert validate(folder) == [
        "default/test: 0 clips, but the report says 6",
        "default/validation: in the head of README.md, but not in the report",
    ]
    for content in ("# No head", "---\nlicense: mit\n---\n", "---\nconfigs: [a]\n---\n"):
        (folder / "README.md").write_text(content)
        (problem,) = validate(folder)
        assert problem.startswith("README.md: its head does not say which files are in which split")
    (folder / "build_report.json").write_text("{")
    with pytest.raises(BuildError, match="build_report.json: not JSON"):
        validate(folder)


def test_an_error_of_the_sound_names_the_sound(media, tmp_path):
    clip = make_plan(media).clips[0]
    (tmp_path / "voice.wav").write_bytes(b"no sound" * 9)
    for size, words in ((72, "not a media file"), (71, "72 bytes, 71 when the build was planned")):
        wrong = replace(clip, sound=str(tmp_path / "voice.wav"), sound_size=size)
        with pytest.raises(MediaError, match=rf"voice\.wav: {words}"):
            encode_clip(wrong, "label", EncodeOptions(frames=2))


def test_shared_groups_are_found(media, tmp_path):
    clips = [PlannedClip(**(vars(clip) | {"columns": {"group": "one"}})) for clip in make_plan(media).clips]
    for allowed in ((), ("default",)):
        plan = make_plan(media, clips=clips, shared_groups_allowed=allowed)
        finish(plan, tmp_path / "out", build(plan, tmp_path / "out"), CARD)
        assert any("groups are in both" in problem for problem in validate(tmp_path / "out")) == (not allowed)


def test_windows_apply_to_files_that_are_not_the_clip(media, tmp_path):
    path = write_clip(tmp_path / "a.mp4", seconds=2.0)
    # The last one is of the whole video, which ends within the clip: its other seconds are not the clip's.
    for window, length in (((0.5, 1.0), 0.5), ((5.0, 9.0), 2.0), ((1.5, 2.3), 0.5)):
        clip = PlannedClip("a", str(path), "train", 0, {}, path.stat().st_size, window=window, window_if_longer=True)
        assert encode_clip(clip, "label", EncodeOptions(frames=2))["duration"] == pytest.approx(length, abs=0.1)
    clip = PlannedClip("a", str(path), "train", 0, {}, path.stat().st_size, window=(5.0, 9.0))
    with pytest.raises(MediaError) as caught:
        encode_clip(clip, "label", EncodeOptions(frames=2))
    assert caught.value.reason == "too_short"


def test_png_is_lossless_and_empty_splits_are_left_out(media, tmp_path):
    plan = make_plan(media, EncodeOptions(frames=1, image_format="png", frame_size=(8, 10)))
    plan = make_plan(media, plan.encode, configs=plan.configs | {"more": {"train": ["train"], "test": ["test"]}})
    out = tmp_path / "out"
    report = finish(plan, out, build(plan, out), CARD)
    row = pq.read_table(sorted((out / "data").iterdir())[0]).to_pylist()[0]
    assert row["frames"][0]["bytes"][:4] == b"\x89PNG"
    report["shards"] = [shard for shard in report["shards"] if "train" in shard["file"]]
    configs = configs_of(plan, report)
    assert [[part["split"] for part in config["data_files"]] for config in configs] == [["train"], ["train"]]
    assert [config.get("default") for config in configs] == [True, None]

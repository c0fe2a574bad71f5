"""What becomes of clips and plans that cannot be built."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from hf_mmbalance.building import encode
from hf_mmbalance.building.encode import encode_clip
from hf_mmbalance.building.engine import BuildError, build, file_sha256
from hf_mmbalance.building.plan import STATUSES, EncodeOptions, PlannedClip
from hf_mmbalance.building.report import finish
from hf_mmbalance.building.validate import validate
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.model.media_mmbalance import MEDIA_REASONS, MediaError
from tests.media_factory import write_clip

from .toy import CARD, make_plan


def test_every_media_reason_is_a_status():
    assert set(MEDIA_REASONS) <= set(STATUSES)


def test_bad_clips_are_named_and_left_out(media, tmp_path):
    clips = {clip.id: clip for clip in make_plan(media).clips}
    (tmp_path / "pointer.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    write_clip(tmp_path / "silent.mp4", seconds=0.4, tone=None)
    write_clip(tmp_path / "blind.m4a", seconds=0.4, video=None)
    write_clip(tmp_path / "short.mp4", seconds=0.04)
    write_clip(tmp_path / "long.mp4", seconds=3.0)
    (tmp_path / "broken.mp4").write_bytes(os.urandom(4000))
    (tmp_path / "empty.mp4").touch()
    cases = {
        "missing": {"source": str(tmp_path / "vanished.mp4"), "size": 5},
        "lfs_pointer": {"source": str(tmp_path / "pointer.mp4"), "sha256": "0" * 64},
        "no_audio": {"source": str(tmp_path / "silent.mp4")},
        "no_video": {"source": str(tmp_path / "blind.m4a")},
        "too_short": {"source": str(tmp_path / "short.mp4")},
        "too_long": {"source": str(tmp_path / "long.mp4")},
        "undecodable": {"source": str(tmp_path / "broken.mp4")},
        "empty": {"source": str(tmp_path / "empty.mp4"), "sha256": "0" * 64},
        "changed": {"source": clips["c00"].source, "size": 7},
        "checksum": {"source": clips["c00"].source, "size": clips["c00"].size, "sha256": "0" * 64},
    }
    bad = []
    for status, change in cases.items():
        source = Path(change["source"])
        change = {"size": source.stat().st_size if source.exists() else 0} | change
        bad.append(replace(clips["c01"], id=status, **change))
    plan = make_plan(media, EncodeOptions(frames=2, max_seconds=1.0, min_seconds=0.2))
    plan = make_plan(media, plan.encode, clips=plan.clips + bad)
    report = finish(plan, tmp_path / "out", build(plan, tmp_path / "out"), CARD)
    assert report["clips"] == {"planned": 34, "built": 24}
    assert report["status"] == {"ok": 24} | dict.fromkeys(cases, 1)
    for status in cases:
        assert report["left_out"][status].startswith(f"{status}: ")
    assert validate(tmp_path / "out") == []
    lossy = make_plan(media, plan.encode, clips=plan.clips, max_lost=0.1)
    with pytest.raises(BuildError, match="29.4% of the clips"):
        finish(lossy, tmp_path / "out", {}, CARD)


def test_bad_plans(media, tmp_path):
    plan = make_plan(media)
    with pytest.raises(DataError, match="(used|listed) twice"):
        make_plan(media, clips=plan.clips * 2)
    with pytest.raises(DataError, match="not among"):
        make_plan(media, classes=["even"])
    with pytest.raises(DataError, match="no configuration uses"):
        make_plan(media, configs={"default": {"train": ["train"]}})
    with pytest.raises(DataError, match="unknown splits"):
        make_plan(media, configs={"default": {"learn": ["train"], "test": ["test"]}})
    with pytest.raises(DataError, match="has no clips"):
        make_plan(media, clips=[])
    for options in ({"image_format": "gif"}, {"frames": 0}, {"quality": 99}):
        with pytest.raises(DataError):
            EncodeOptions(**options)
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(BuildError, match="not empty"):
        build(plan, tmp_path)
    plan = make_plan(media, clips=plan.clips[:4])
    build(plan, tmp_path / "out")
    other = make_plan(media, EncodeOptions(frames=1), clips=plan.clips)
    with pytest.raises(BuildError, match="--overwrite"):
        build(other, tmp_path / "out")
    assert build(other, tmp_path / "out", overwrite=True)["clips"] == 4
    assert build(other, tmp_path / "out")["clips"] == 0
    assert build(other, tmp_path / "out", overwrite=True)["clips"] == 4, "the same plan was not built anew"
    (tmp_path / "out" / "data" / "train-stray.parquet").touch()
    with pytest.raises(BuildError, match="not of this build"):
        finish(other, tmp_path / "out", {}, CARD)


class DeadlyClip(PlannedClip):
    """Ends the worker process that decodes it, as a fault in a decoder does."""

    @property
    def window(self) -> None:
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGSEGV)


class FailingClip(PlannedClip):
    """Makes its reader raise what no reader should."""

    @property
    def window(self) -> None:
        if multiprocessing.parent_process() is not None:
            raise MemoryError("an impossible header")


def changed_clip(clip: PlannedClip, kind: type[PlannedClip], name: str) -> PlannedClip:
    made = object.__new__(kind)
    made.__dict__.update(vars(clip) | {"id": name})
    return made


def test_a_clip_that_ends_its_decoder_is_named_and_the_rest_is_built(media, tmp_path):
    plan = make_plan(media)
    bad = [changed_clip(plan.clips[0], DeadlyClip, f"deadly{i}") for i in range(2)]
    plan = make_plan(media, clips=plan.clips + bad)
    report = finish(plan, tmp_path / "out", build(plan, tmp_path / "out", num_proc=2), CARD)
    assert report["status"] == {"ok": 24, "crashed": 2}
    assert report["left_out"]["deadly1"] == (
        f"crashed: {media / '00.mp4'}: decoding it ended the process twice (SIGSEGV)"
    )
    assert validate(tmp_path / "out") == [] and list((tmp_path / "out" / ".build" / "drafts").iterdir()) == []


def test_whatever_a_decoder_raises_is_the_error_of_that_clip(media, tmp_path):
    plan = make_plan(media)
    plan = make_plan(media, clips=[*plan.clips, changed_clip(plan.clips[0], FailingClip, "failing")])
    report = finish(plan, tmp_path / "out", build(plan, tmp_path / "out"), CARD)
    assert report["status"] == {"ok": 24, "undecodable": 1}
    assert report["left_out"]["failing"].endswith("MemoryError: an impossible header")


def test_pipes_and_files_too_large_for_memory_are_not_read_whole(media, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.mp4")
    clip = PlannedClip("pipe", str(tmp_path / "pipe.mp4"), "train", 0, {"group": "a"})
    with pytest.raises(MediaError, match="pipe.mp4: not a regular file") as caught:
        encode_clip(clip, "label", EncodeOptions())
    assert caught.value.reason == "unreadable"
    clip, options = make_plan(media).clips[0], EncodeOptions(frames=2)
    row = encode_clip(replace(clip, sha256=file_sha256(Path(clip.source))), "label", options)
    monkeypatch.setattr(encode, "MAX_IN_MEMORY", 100)
    assert encode._checked(clip.source, clip.size, None) == clip.source
    assert encode_clip(replace(clip, sha256=file_sha256(Path(clip.source))), "label", options) == row
    with pytest.raises(MediaError, match="sha256 .* the list says 0000"):
        encode_clip(replace(clip, sha256="0" * 64), "label", options)


EDGE_STATUS = {
    "corrupt_after_28_frames.mp4": "no_audio",
    "failing_audio.mp4": "ok",
    "h264_opus.mkv": "ok",
    "h265_10bit.mp4": "no_audio",
    "mpeg4_mp3.avi": "ok",
    "no_audio_stream.mp4": "no_audio",
    "rotated_90.mov": "no_audio",
    "six_channel_aac.mp4": "ok",
    "two_video_two_audio_subtitles.mp4": "ok",
    "vp9_opus_no_duration.webm": "ok",
    "youtube_aac.mp4": "ok",
}


@pytest.mark.parametrize("need_audio", [True, False])
def test_edge_cases_are_built_or_in_the_manifest(real_data, tmp_path, need_audio):
    folder = real_data / "media_edge_cases"
    clips = [
        PlannedClip(name, str(folder / name), "train", i % 2, {"group": name}, (folder / name).stat().st_size)
        for i, name in enumerate(EDGE_STATUS)
    ]
    encode = EncodeOptions(frames=2, frame_size=64, need_audio=need_audio)
    plan = make_plan(tmp_path, encode, clips=clips, configs={"default": {"train": ["train"]}})
    report = finish(plan, tmp_path / "out", build(plan, tmp_path / "out"), CARD)
    left_out = {name: text.split(":")[0] for name, text in report["left_out"].items()}
    expected = {name: status for name, status in EDGE_STATUS.items() if status != "ok"} if need_audio else {}
    assert left_out == expected and report["clips"]["built"] == len(EDGE_STATUS) - len(expected)
    assert validate(tmp_path / "out") == []
    if not need_audio:
        assert "damaged" in report["noted"]["corrupt_after_28_frames.mp4"]

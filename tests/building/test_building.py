"""The building engine: what is in a shard, what becomes of bad clips, and that a killed build ends the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_mmbalance.building import encode, engine
from hf_mmbalance.building.card import fill_card
from hf_mmbalance.building.cli import join_parts
from hf_mmbalance.building.encode import encode_clip
from hf_mmbalance.building.engine import BuildError, build, file_sha256
from hf_mmbalance.building.plan import STATUSES, BuildPlan, EncodeOptions, PlannedClip
from hf_mmbalance.building.report import configs_of, finish, read_report
from hf_mmbalance.building.sheet import contact_sheet
from hf_mmbalance.building.validate import validate
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.model.media_mmbalance import MEDIA_REASONS, MediaError
from tests.media_factory import grey_of, write_clip


GROUP = {"group": {"dtype": "string", "_type": "Value"}}
CARD = "---\nlicense: mit\n---\n# Test\n\n{{ clips }}\n\n{{ splits }}\n\n{{ left_out }}\n\n{{ encoding }}\n"


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("media")
    for i in range(24):
        write_clip(root / f"{i:02d}.mp4", seconds=0.4, size=(32, 48), tone=300.0 + 20 * i)
    return root


def make_plan(media: Path, encode: EncodeOptions | None = None, **changes) -> BuildPlan:
    clips = changes.get("clips") or [
        PlannedClip(
            id=f"c{i:02d}",
            source=str(media / f"{i:02d}.mp4"),
            cell="test" if i % 4 == 3 else "train",
            label=i % 2,
            columns={"group": f"g{i}"},
            size=(media / f"{i:02d}.mp4").stat().st_size,
        )
        for i in range(24)
    ]
    fields = {
        "name": "toy",
        "clips": clips,
        "classes": ["even", "odd"],
        "label_column": "label",
        "group_column": "group",
        "features": GROUP,
        "configs": {"default": {"train": ["train"], "test": ["test"]}},
        "encode": encode or EncodeOptions(frames=3),
        "clips_per_shard": 5,
    }
    return BuildPlan(**(fields | changes))


def shard_hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted((folder / "data").iterdir())}


@pytest.fixture(scope="module")
def built(media, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "toy"
    plan = make_plan(media)
    report = finish(plan, out, build(plan, out), CARD)
    contact_sheet(out, report["shards"], plan.classes, "label")
    return out


def test_every_media_reason_is_a_status():
    assert set(MEDIA_REASONS) <= set(STATUSES)


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
        plan = make_plan(media, EncodeOptions(frames=frames))
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


def test_two_processes_give_the_same_bytes_and_stay_lean(media, built, tmp_path, monkeypatch):
    run = build(make_plan(media), tmp_path / "two", num_proc=2)
    assert shard_hashes(tmp_path / "two") == shard_hashes(built)
    assert run["clips"] == 24
    code = (
        "import sys, hf_mmbalance.building.engine, hf_mmbalance.building.cli as s, resource;"
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
        finish(join_parts(parts[:2], tmp_path / "short"), tmp_path / "short", {}, CARD)
    whole = join_parts(parts, tmp_path / "whole")
    finish(whole, tmp_path / "whole", {}, CARD)
    assert shard_hashes(tmp_path / "whole") == shard_hashes(built)
    assert validate(tmp_path / "whole") == []
    with pytest.raises(BuildError, match="in two parts"):
        join_parts([parts[0], parts[0]], tmp_path / "double")
    build(make_plan(media, EncodeOptions(frames=2)), tmp_path / "other", part=(1, 3))
    with pytest.raises(BuildError, match="another plan"):
        join_parts([parts[0], tmp_path / "other"], tmp_path / "mixed")
    with pytest.raises(BuildError, match="holds no part"):
        join_parts([tmp_path], tmp_path / "none")


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
        "lfs_pointer": {"source": str(tmp_path / "pointer.mp4")},
        "no_audio": {"source": str(tmp_path / "silent.mp4")},
        "no_video": {"source": str(tmp_path / "blind.m4a")},
        "too_short": {"source": str(tmp_path / "short.mp4")},
        "too_long": {"source": str(tmp_path / "long.mp4")},
        "undecodable": {"source": str(tmp_path / "broken.mp4")},
        "empty": {"source": str(tmp_path / "empty.mp4")},
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
    build(plan, tmp_path / "out")
    other = make_plan(media, EncodeOptions(frames=1))
    with pytest.raises(BuildError, match="--overwrite"):
        build(other, tmp_path / "out")
    assert build(other, tmp_path / "out", overwrite=True)["clips"] == 24
    (tmp_path / "out" / "data" / "train-stray.parquet").touch()
    with pytest.raises(BuildError, match="not of this build"):
        finish(other, tmp_path / "out", {}, CARD)


def test_a_full_disk_leaves_nothing_half_written(media, tmp_path):
    plan = make_plan(media)
    build(plan, tmp_path / "out", part=(0, 3))
    whole = shard_hashes(tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a worker inherits it; the plan is smaller
    try:
        with pytest.raises(BuildError, match="disk .* is full .*run the same command again"):
            build(plan, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out" / ".build" / "drafts").iterdir()) == []
    assert shard_hashes(tmp_path / "out") == whole and len(whole) == 2
    assert build(plan, tmp_path / "out")["clips"] < 24
    finish(plan, tmp_path / "out", {}, CARD)
    assert validate(tmp_path / "out") == []


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


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_clip_that_ends_its_decoder_is_named_and_the_rest_is_built(media, tmp_path, num_proc):
    plan = make_plan(media)
    bad = [changed_clip(plan.clips[0], DeadlyClip, f"deadly{i}") for i in range(2)]
    plan = make_plan(media, clips=plan.clips + bad)
    report = finish(plan, tmp_path / "out", build(plan, tmp_path / "out", num_proc=num_proc), CARD)
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


def test_shared_groups_are_found(media, tmp_path):
    clips = [PlannedClip(**(vars(clip) | {"columns": {"group": "one"}})) for clip in make_plan(media).clips]
    for allowed in ((), ("default",)):
        plan = make_plan(media, clips=clips, shared_groups_allowed=allowed)
        finish(plan, tmp_path / "out", build(plan, tmp_path / "out"), CARD)
        assert any("groups are in both" in problem for problem in validate(tmp_path / "out")) == (not allowed)


def test_windows_apply_only_to_longer_files(media, tmp_path):
    path = write_clip(tmp_path / "a.mp4", seconds=2.0)
    for window, length in (((0.5, 1.0), 0.5), ((5.0, 9.0), 2.0)):
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


BUILD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.building.test_building import make_plan
from hf_mmbalance.building import encode, engine
if __name__ == "__main__":
    engine.build(make_plan(Path({media!r})), Path({out!r}), num_proc={num_proc})
"""


COMMAND = """
import sys
sys.path.insert(0, {root!r})
from dataclasses import replace
from pathlib import Path
from tests.building.test_building import make_plan
from hf_mmbalance.building.cli import DatasetScript

def long_plan(args, encode):
    clips = make_plan(args.source).clips
    clips = [replace(clip, id=f"{{clip.id}}-{{again}}") for again in range(6) for clip in clips]
    return make_plan(args.source, clips=clips)

if __name__ == "__main__":
    tool = DatasetScript("toy", "", long_plan, Path("nowhere.md"), max_lost=1.0)
    sys.exit(tool.main(["build", "--source", {media!r}, "--out", {out!r}, "--num-proc", "2"]))
"""


def test_an_interrupted_build_says_how_to_resume(media, tmp_path):
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(COMMAND.format(root=str(Path(__file__).parents[2]), media=str(media), out=str(out)))
    command = [sys.executable, str(script)]
    run = subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    while not list((out / ".build" / "drafts").glob("*")):
        assert run.poll() is None, "the build ended before it began"
        time.sleep(0.005)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, shown = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in shown
    line = "toy build: error: interrupted; run the same command again: it resumes the build"
    assert shown.strip().splitlines()[-1] == line
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert validate(out) == []


def process_ids_of_session(session: int) -> list[int]:
    """Processes of a session that still run (zombies do not)."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split() if entry.name.isdigit() else None
        except OSError:
            continue
        if fields is not None and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_within_a_second_of_their_parent(media, tmp_path, signal_number):
    script = tmp_path / "run.py"
    places = {"root": str(Path(__file__).parents[2]), "media": str(media), "out": str(tmp_path / "out")}
    script.write_text(BUILD.format(**places, num_proc=2))
    run = subprocess.Popen([sys.executable, str(script)], start_new_session=True, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "out" / ".build" / "drafts").glob("*")):
        assert run.poll() is None, "the build ended before it began"
        time.sleep(0.005)
    assert len(process_ids_of_session(run.pid)) >= 3
    os.kill(run.pid, signal_number)  # the parent only
    run.wait()
    deadline = time.monotonic() + 1.0
    while (left := process_ids_of_session(run.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def test_killed_at_ten_random_moments_the_shards_are_the_same(media, built, tmp_path):
    rng = random.Random(0)
    out, script, kills = tmp_path / "out", tmp_path / "run.py", 0
    places = {"root": str(Path(__file__).parents[2]), "media": str(media)}
    for attempt in range(10):
        script.write_text(BUILD.format(**places, out=str(out), num_proc=1 + attempt % 2))
        run = subprocess.Popen([sys.executable, str(script)], start_new_session=True, stderr=subprocess.DEVNULL)
        while not (out / ".build" / "drafts").exists():
            assert run.poll() is None, "the build ended before it began"
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.25 if attempt % 2 == 0 else 1.5))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        kills += run.returncode == -signal.SIGKILL
        plan = make_plan(media)
        build(plan, out)
        assert shard_hashes(out) == shard_hashes(built)
        finish(plan, out, {}, CARD)
        assert list((out / ".build" / "drafts").iterdir()) == []
        subprocess.run(["rm", "-rf", str(out)], check=True)
    assert kills >= 8

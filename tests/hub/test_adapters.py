"""Data sets of others on the Hub: their real names and columns, made-up clips, pushed and read by real clients."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hf_mmbalance.data.adapter import adapter_names
from tests.media_factory import write_clip


#: Features by column and rows by split, as in the scripts that made the real repositories (scripts/data/mveb of
#: embeddings-benchmark/mteb). Media are cast, not encoded, which would need torchcodec; what is stored is the same.
PUSH = """
import json, sys
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value, Video
KINDS = {"video": Video(), "audio": Audio(sampling_rate=16000), "text": Value("string"), "int": Value("int32")}
STORED = {"bytes": Value("binary"), "path": Value("string")}
for name, (kinds, splits) in json.load(open(sys.argv[1])).items():
    features = Features({c: KINDS[k] if isinstance(k, str) else ClassLabel(names=k) for c, k in kinds.items()})
    raw = Features({c: STORED if c in ("video", "audio") else kind for c, kind in features.items()})
    made = {s: Dataset.from_list(rows, features=raw).cast(features) for s, rows in splits.items()}
    DatasetDict(made).push_to_hub(name)
"""
READ = """
import json, sys
from hf_mmbalance.data import DataError, load_clips
found = {}
for key, (name, options) in json.loads(sys.argv[1]).items():
    try:
        clips = load_clips(name, frames=2, frame_size=[16, 16], **options)
    except DataError as error:
        found[key] = str(error)
        continue
    parts = clips.splits.values()
    first = next(iter(parts))[0]
    found[key] = {
        "classes": clips.classes, "notes": clips.notes, "commit": clips.commit, "name": clips.name,
        "audio": len(first["audio"]), "frames": first["frames"].shape,
        "splits": {s: [part.ids, part.groups, part.labels] for s, part in clips.splits.items()},
    }
print("FOUND", json.dumps(found))
"""
NO_TRAIN = {"calibration_fraction": 0.0, "validation_fraction": 0.0}
EMOTIONS = "angry calm disgust fearful happy neutral sad surprised".split()


def rows(media: Path, *each: dict) -> list[dict]:
    """Rows with media files in turn."""
    kinds = {"video": "mp4", "audio": "wav"}
    return [
        {column: {"path": str(media / f"{i % 4}.{suffix}")} for column, suffix in kinds.items()} | row
        for i, row in enumerate(each)
    ]


@pytest.fixture
def pushed(hub_server, run_client, tmp_path) -> None:
    media = tmp_path / "media"
    for i in range(4):
        write_clip(media / f"{i}.mp4", seconds=0.32, size=(24, 32), tone=300.0 + 40 * i)
        write_clip(media / f"{i}.wav", seconds=0.32, tone=300.0 + 40 * i, video=None, audio="pcm_s16le")
    events = [{"label": i % 3, "youtube_id": f"v{i // 2}", "start_seconds": 0} for i in range(12)]
    actors = [
        {
            "video_id": f"01-01-0{e + 1}-01-01-01-{actor:02d}.mp4",
            "gender": actor % 2,
            "emotion": e,
            "transcription": "dogs",
        }
        for actor in range(1, 13)
        for e in range(2)
    ]
    kinetics = sorted(["abseiling", "zumba", *_kinetics_sounds()])
    actions = [{"label": kinetics.index(name)} for name in ("abseiling", "tickling", "playing bass guitar") * 4]
    kinetics_rows = rows(media, *actions)
    plain = {"video": "video", "audio": "audio"}
    sets = {
        "mteb/AVE-Dataset": [
            plain | {"label": ["Accordion", "Bus", "Frying (food)"], "youtube_id": "text", "start_seconds": "int"},
            {"train": rows(media, *events), "test": rows(media, *events[3:7])},
        ],
        "mteb/RAVDESS_AV": [
            {"video_id": "text", **plain, "gender": ["male", "female"], "emotion": EMOTIONS, "transcription": "text"},
            {"test": rows(media, *actors)},
        ],
        "mteb/VGGSound": [
            plain | {"label": ["cat meowing", "dog barking"]},
            {"test": rows(media, *[{"label": i % 2} for i in range(20)])},
        ],
        "mteb/kinetics-400": [plain | {"label": kinetics}, {"train": kinetics_rows, "test": kinetics_rows}],
    }  # fmt: skip
    sets |= {"mteb/elsewhere": sets["mteb/RAVDESS_AV"], "mteb/untouched": sets["mteb/VGGSound"]}
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    account = hub_server.add_account("mteb")
    run_client(PUSH, args=[str(tmp_path / "sets.json")], token=account.token)


def head_of(hub, name: str) -> str:
    """Commit that `main` of a data set stands at."""
    return hub.server.store.repos["datasets", name].resolve("main").oid


def first_of(hub, name: str) -> str:
    """The first commit of a data set, which holds no clips."""
    repository = hub.server.store.repos["datasets", name]
    return list(repository.history(repository.resolve("main")))[-1].oid


def sets_read(hub) -> set[str]:
    """Data sets of which some Parquet file was asked for."""
    asked = [re.match(r"/datasets/([^/]+/[^/]+)/resolve/.*\.parquet", record.path) for record in hub.log]
    return {found[1] for found in asked if found}


def _kinetics_sounds() -> list[str]:
    from hf_mmbalance.building.recipes.kinetics_sounds import CLASSES

    return [name.replace("_", " ") for name in CLASSES]


def test_sets_on_the_hub_are_read_as_they_are(hub, pushed, run_client, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("columns: {label: emotion}\nlabels: {calm: rest, angry: excited}\nsplits: {test: test}\n")
    empty = first_of(hub, "mteb/AVE-Dataset")
    asked = {name: (name, {}) for name in adapter_names()} | {
        "renamed": ("mteb/elsewhere", {"dataset_adapter": "mteb/RAVDESS_AV"}),
        "own": ("mteb/elsewhere", {"dataset_adapter": str(own), **NO_TRAIN}),
        "without": ("mteb/RAVDESS_AV", {"dataset_adapter": "none"}),
        "wrong": ("mteb/untouched", {"dataset_adapter": "mteb/RAVDESS_AV"}),
        "rows": ("mteb/AVE-Dataset", {"in_memory": True}),
        "pinned": (f"mteb/AVE-Dataset@{head_of(hub, 'mteb/AVE-Dataset')}", {}),
        "empty": (f"mteb/AVE-Dataset@{empty}", {}),
        "two": ("mteb/AVE-Dataset@main", {"revision": "next"}),
    }
    done = run_client(READ, args=[json.dumps(asked)])
    found = json.loads(done.stdout.split("FOUND ")[1])

    ave = found["mteb/AVE-Dataset"]
    assert ave["classes"] == ["Accordion", "Bus", "Frying (food)"] and ave["frames"] == [2, 16, 16, 3]
    assert ave["audio"] == 5120  # of the column with sound, 0.32 s at 16 kHz
    assert sorted(ave["splits"]["test"][1]) == ["v1", "v2", "v2", "v3"]
    assert any("8 YouTube videos" in note for note in ave["notes"])
    assert any("groups are on both sides of splits: train and test" in note for note in ave["notes"])
    assert {s: sorted(part[0]) for s, part in found["rows"]["splits"].items()} == {
        s: sorted(part[0]) for s, part in ave["splits"].items()
    }

    assert ave["name"] == "mteb/AVE-Dataset" and ave["commit"] == head_of(hub, "mteb/AVE-Dataset")
    assert found["pinned"] == ave
    assert found["empty"] == (  # `datasets` would give the copy in the cache
        f"mteb/AVE-Dataset: revision {empty} cannot be read from the Hub, and the cache holds {ave['commit']};"
        " name that commit to use it"
    )
    assert found["two"] == "mteb/AVE-Dataset@main: revision=next is a different one; give only one of the two"
    described = [r for r in hub.log if r.method == "HEAD" and "mteb/VGGSound/resolve/main/README.md" in r.path]
    assert len(described) == 1  # the repository is resolved once

    ravdess = found["mteb/RAVDESS_AV"]
    assert set(ravdess["splits"]) == {"train", "calibration", "validation", "test"}
    actors = [set(groups) for _, groups, _ in ravdess["splits"].values()]
    assert set.union(*actors) == {f"{i:02d}" for i in range(1, 13)} and sum(map(len, actors)) == 12
    assert "read by the adapter mteb/RAVDESS_AV (license: CC BY-NC-SA 4.0)" in ravdess["notes"]
    assert found["renamed"]["splits"] == ravdess["splits"]
    for ids, _, labels in ravdess["splits"].values():
        assert [EMOTIONS[label] for label in labels] == [EMOTIONS[int(name[6:8]) - 1] for name in ids]

    assert set(found["mteb/VGGSound"]["splits"]) == {"train", "calibration", "validation", "test"}
    kinetics = found["mteb/kinetics-400"]
    assert kinetics["classes"] == sorted(name.replace(" ", "_") for name in _kinetics_sounds())
    assert "8 of 24 clips have labels that the adapter leaves out" in kinetics["notes"]
    _, _, labels = kinetics["splits"]["test"]
    assert sorted(kinetics["classes"][label] for label in labels) == ["playing_bass_guitar"] * 4 + ["tickling"] * 4

    assert found["own"]["classes"] == ["rest", "excited"]
    assert sorted(found["own"]["splits"]["test"][2]) == [0] * 12 + [1] * 12
    assert "there is no train split to take validation from (only test)" in found["without"]
    assert found["wrong"] == (
        "mteb/untouched: no column 'emotion' for the label (it has video, audio, label); the adapter mteb/RAVDESS_AV"
        " names it; it describes revision 13af08387c3ce5e86c179a3718eb158669268d65; correct the file, or read without"
        " it (dataset_adapter=none)"
    )
    read = {name for name in sets_read(hub) if name.startswith("mteb/")}
    assert "mteb/VGGSound" in read and "mteb/untouched" not in read  # refused before anything was downloaded

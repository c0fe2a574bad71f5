"""A model is served exactly what it was trained on: the same tensors, and the answers that its run wrote down."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from hf_mmbalance import MMBalanceProcessor
from hf_mmbalance.building.engine import build
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions, PlannedClip
from hf_mmbalance.building.report import finish
from hf_mmbalance.data import load_clips
from hf_mmbalance.data.clips import ClipSplits
from hf_mmbalance.data.sources.hub import HubOptions, clips_of
from hf_mmbalance.decision import DecisionTable
from hf_mmbalance.embedding.build import reading_of
from hf_mmbalance.hub import load_classifier
from hf_mmbalance.training.batches import ClipCollator
from hf_mmbalance.training.run import main
from tests.media_factory import write_clip

from .tiny_runs import TOWERS, tiny_processor


LABELS = ("calm", "angry", "happy")
# Crop, frame size, shift and another sampling rate than the files': all that a saved model could get wrong.
READING = {"crop": [0.2, 0.3, 0.9, 0.8], "frame_size": [16, 16], "frames": 3, "shift": 0.05}
AUGMENTED = {"crop_jitter": 0.1, "brightness": 0.1, "flip": True}
SPLITS = {"train": 12, "calibration": 6, "validation": 6, "test": 6}
WORDS = ("bin", "blue", "at", "f", "two", "now")


@dataclass
class Source:
    """A data set, and how each of its clips is asked of a saved model."""

    clips: ClipSplits
    raw: Callable[[str, str], Any]  # split, id -> what the pipeline is given
    dataset: str | None = None
    options: dict[str, Any] | None = None


def names() -> list[tuple[str, int, int]]:
    """Split, label and number of every clip."""
    return [(split, i % 3, i) for split, count in SPLITS.items() for i in range(count)]


def span_of(number: int) -> tuple[float, float]:
    return 0.2 + 0.05 * number, 0.6 + 0.05 * number


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 1.4 s, 44.1 kHz, 64 x 48 pixels, in split and class folders."""
    root = tmp_path_factory.mktemp("media") / "clips"
    for split, label, i in names():
        write_clip(
            root / split / LABELS[label] / f"{split}{i:02d}.mp4",
            seconds=1.4,
            rate=44_100,
            tone=200.0 + 150 * label + 7 * i,
            texture=1000 * label + i,
        )
    return root


def path_of(media: Path, split: str, number: int) -> Path:
    return media / split / LABELS[number % 3] / f"{split}{number:02d}.mp4"


def folder_source(media: Path, tmp: Path) -> Source:
    clips = load_clips(str(media), **READING, **AUGMENTED)
    return Source(clips, lambda split, name: str(media / f"{name}.mp4"), str(media), READING)


def table_source(media: Path, tmp: Path) -> Source:
    table = tmp / "clips.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label", "split", "start", "end"])
        for split, label, i in names():
            writer.writerow([f"{split}{i:02d}", path_of(media, split, i), LABELS[label], split, *span_of(i)])
    options = {**READING, "margin": 0.08}

    def raw(split: str, name: str) -> dict[str, Any]:
        start, end = span_of(int(name[-2:]))
        return {"video": str(path_of(media, split, int(name[-2:]))), "start": start, "end": end}

    return Source(load_clips(str(table), **options, **AUGMENTED), raw, str(table), options)


def grid_source(media: Path, tmp: Path) -> Source:
    """GRID's layout: the file's name spells the sentence, its alignment says when each word is."""
    root = tmp / "grid"
    (root / "s1").mkdir(parents=True)
    (root / "align").mkdir()
    stems: dict[str, tuple[str, int]] = {}
    rows = []
    for place, (split, label, i) in enumerate(names()):
        stem = f"{'blps'[place % 4]}{'bgrw'[place // 4 % 4]}{'abiw'[place // 16 % 4]}a{label + 1}n"
        stems[stem] = (split, i)
        (root / "s1" / f"{stem}.mp4").symlink_to(path_of(media, split, i))
        start, end = (round(25_000 * edge) for edge in span_of(i))
        edges = [0, 500, 1000, 1500, start, end, end + 500]
        lines = [f"{a} {b} {word}" for a, b, word in zip(edges[:-1], edges[1:], WORDS, strict=True)]
        (root / "align" / f"{stem}.align").write_text("\n".join(lines) + "\n")
        rows.append(f"{stem},{split}")
    (root / "labels.csv").write_text("id,split\n" + "\n".join(rows) + "\n")
    options = {**READING, "data_dir": str(root), "window": "word", "margin": 0.06}

    def raw(split: str, name: str) -> dict[str, Any]:
        start, end = (round(25_000 * edge) / 25_000 for edge in span_of(stems[name][1]))
        return {"video": str(root / "s1" / f"{name}.mp4"), "start": start, "end": end}

    return Source(load_clips("grid", **options, **AUGMENTED), raw, "grid", options)


def built_source(media: Path, tmp: Path, image_format: str = "jpeg") -> Source:
    """Parquet whose frames were cropped, sized and encoded when it was built, and are cropped and sized again."""
    clips = [
        PlannedClip(f"{split}{i:02d}", str(path), split, label, {"group": f"{split}{i}"}, path.stat().st_size)
        for split, label, i in names()
        for path in [path_of(media, split, i)]
    ]
    plan = BuildPlan(
        name="clips",
        clips=clips,
        classes=list(LABELS),
        label_column="label",
        group_column="group",
        features={"group": {"dtype": "string", "_type": "Value"}},
        configs={"default": {split: [split] for split in SPLITS}},
        encode=EncodeOptions(frames=7, frame_size=(40, 44), crop=(0.1, 0.0, 1.0, 0.9), image_format=image_format),
        clips_per_shard=16,
    )
    out = tmp / f"built-{image_format}"
    build(plan, out)
    finish(plan, out, {}, "# clips\n\n{{ splits }}\n")
    return Source(
        load_clips(str(out), **READING, **AUGMENTED),
        lambda split, name: str(path_of(media, split, int(name[-2:]))),
        str(out),
        READING,
    )


def built_png_source(media: Path, tmp: Path) -> Source:
    return built_source(media, tmp, "png")


def row_source(media: Path, tmp: Path) -> Source:
    """Rows of a data set with a video column, and a span of each."""
    rows = {
        split: datasets.Dataset.from_dict(
            {
                "id": [f"{split}{i:02d}" for i in range(count)],
                "video": [{"bytes": path_of(media, split, i).read_bytes(), "path": None} for i in range(count)],
                "label": [i % 3 for i in range(count)],
                "start": [span_of(i)[0] for i in range(count)],
                "end": [span_of(i)[1] for i in range(count)],
            },
            features=datasets.Features(
                {
                    "id": datasets.Value("string"),
                    "video": datasets.Video(decode=False),
                    "label": datasets.ClassLabel(names=list(LABELS)),
                    "start": datasets.Value("float64"),
                    "end": datasets.Value("float64"),
                }
            ),
        )
        for split, count in SPLITS.items()
    }
    options = HubOptions(**READING, **AUGMENTED, margin=0.03, start_column="start", end_column="end")
    return Source(clips_of(rows, options), lambda split, name: rows[split][int(name[-2:])])


SOURCES = (folder_source, table_source, grid_source, built_source, built_png_source, row_source)


@pytest.fixture(scope="module", params=SOURCES, ids=lambda source: source.__name__.removesuffix("_source"))
def source(request: pytest.FixtureRequest, media: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return request.param(media, tmp_path_factory.mktemp("source"))


def test_a_saved_processor_makes_of_a_raw_file_what_training_made(source, tmp_path):
    made = tiny_processor()
    made.reading = reading_of(source.clips).to_dict()
    made.save_pretrained(tmp_path)
    processor = MMBalanceProcessor.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["reading"]["crop"] == READING["crop"]
    collate = ClipCollator(made)
    for split, clips in source.clips.splits.items():  # of train too: its clips are kept with what shifts need
        trained = collate([clips[i] for i in range(len(clips))])
        raw = [source.raw(split, name) for name in clips.ids]
        served = [processor(**request(item)) for item in raw]
        for key in ("input_values", "pixel_values", "frame_mask", "modality_mask"):
            together = torch.cat([entry[key] for entry in served])
            torch.testing.assert_close(together, trained[key], atol=1e-6, rtol=0)
        assert trained["pixel_values"].std() > 0.1 and trained["input_values"].std() > 0.1


def request(item: Any) -> dict[str, Any]:
    """The processor's arguments for what a pipeline is given."""
    if not isinstance(item, dict):
        return {"video": item}
    return {key: item[key] for key in ("video", "start", "end") if key in item}


def test_augmentation_changes_what_training_sees_and_nothing_else(source):
    train = source.clips["train"]
    plain, moved = train[3], train[3, 1]
    assert not np.array_equal(plain["frames"], moved["frames"])
    test = source.clips["test"]
    np.testing.assert_array_equal(test[3]["frames"], test[3, 1]["frames"])


@pytest.mark.parametrize("make", [folder_source, table_source, grid_source, built_source], ids=lambda m: m.__name__)
def test_the_pipeline_answers_every_test_clip_as_the_run_wrote_it_down(media, tmp_path, make):
    source = make(media, tmp_path)
    assert source.options is not None
    flags = [word for key, value in source.options.items() for word in flag(key, value)]
    run = tmp_path / "run"
    main(
        [
            *("--dataset", str(source.dataset), *flags, *TOWERS, "--output_dir", str(run), "--use_cpu", "true"),
            *("--disable_tqdm", "true", "--num_train_epochs", "2", "--per_device_train_batch_size", "6"),
            *("--learning_rate", "1e-2", "--audio_max_length", "64"),
        ]
    )
    table = DecisionTable.read(run / "decisions.parquet").select("test")
    classify = load_classifier(str(run))
    longest = max(clip["seconds"] for clip in source.clips["test"])
    assert classify.processor.spec.longest_seconds >= longest - 1e-9  # sums of floats differ since Python 3.12
    expected = torch.tensor(table.references["fused"]).softmax(-1)
    for name, row in zip(table.ids, expected, strict=True):
        answer = {entry["label"]: entry["score"] for entry in classify(source.raw("test", name), top_k=10)}
        found = [answer[label] for label in table.classes]
        np.testing.assert_allclose(found, row.numpy(), atol=1e-4)
    assert np.ptp(expected.numpy(), axis=0).max() > 1e-3  # or agreeing would prove nothing


def test_long_clips_with_short_sound_are_read_whole_as_in_training(tmp_path):
    """Their sound fits the audio tower: what is cut into windows must not depend on it alone."""
    for split, label, i in names():
        write_clip(tmp_path / "clips" / split / LABELS[label] / f"{split}{i:02d}.mp4", seconds=1.4, rate=16_000,
                   tone=300.0 + 50 * i, sound_seconds=0.2, size=(32, 32), texture=1000 * label + i)  # fmt: skip
    run = tmp_path / "run"
    main(["--dataset", str(tmp_path / "clips"), *TOWERS, "--frames", "3", "--frame_size", "16", "16",
          "--output_dir", str(run), "--use_cpu", "true", "--disable_tqdm", "true", "--num_train_epochs", "2",
          "--per_device_train_batch_size", "6", "--learning_rate", "1e-2"])  # fmt: skip
    table = DecisionTable.read(run / "decisions.parquet").select("test")
    classify = load_classifier(str(run))
    assert classify.processor.spec.longest_seconds == pytest.approx(1.4, abs=0.1)
    for name, row in zip(table.ids, torch.tensor(table.references["fused"]).softmax(-1), strict=True):
        answer = {entry["label"]: entry["score"] for entry in classify(str(tmp_path / "clips" / f"{name}.mp4"))}
        np.testing.assert_allclose([answer[label] for label in table.classes], row.numpy(), atol=1e-4)


def flag(key: str, value: Any) -> list[str]:
    return [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]

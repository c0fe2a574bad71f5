"""The pipeline: every form of input gives the same answer, windows are averaged, and errors name the remedy."""

from __future__ import annotations

import dataclasses
import http.server
import io
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import Wav2Vec2FeatureExtractor, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hf_mmbalance import AudioVisualClassificationPipeline
from hf_mmbalance.data import load_clips
from hf_mmbalance.decision import DecisionTable
from hf_mmbalance.hub import load_classifier
from hf_mmbalance.model import windows_mmbalance
from hf_mmbalance.model.media_mmbalance import MediaError, read_media
from hf_mmbalance.model.reading_mmbalance import ReadingSpec
from hf_mmbalance.model.windows_mmbalance import windows as windows_of
from hf_mmbalance.training.arguments import parse_arguments
from tests.media_factory import write_clip
from tests.training.tiny_runs import TINY, tiny_run

from .tiny import CLASSES, HEADS, run_python, tiny_model, tiny_processor


def make(**options) -> AudioVisualClassificationPipeline:
    return pipeline(
        "audio-visual-classification", model=tiny_model(**options), processor=tiny_processor(), device="cpu"
    )


@pytest.fixture(scope="module")
def classify() -> AudioVisualClassificationPipeline:
    return make()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "short.mkv", seconds=0.2, video="ffv1", audio="pcm_s16le")
    write_clip(folder / "long.mkv", seconds=0.8, video="ffv1", audio="pcm_s16le")
    write_clip(folder / "silent.mkv", seconds=0.2, video="ffv1", tone=None)
    write_clip(folder / "sound.wav", seconds=0.2, video=None, audio="pcm_s16le")
    return folder


def numbers(answer: list[dict]) -> np.ndarray:
    """Every number of one answer, sorted by label; NaN for None."""
    rows = []
    for entry in sorted(answer, key=lambda entry: entry["label"]):
        groups = [entry["share"] or {"audio": None, "vision": None}, entry["modality_score"]]
        values = [entry["score"], *(group[name] for group in groups for name in ("audio", "vision"))]
        rows.append([math.nan if value is None else value for value in values])
    return np.array(rows)


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    np.testing.assert_allclose(numbers(ours), numbers(theirs), atol=1e-6)


def test_is_what_the_processor_and_the_model_say(classify, folder):
    answer = classify(str(folder / "short.mkv"))
    inputs = classify.processor(video=str(folder / "short.mkv"))
    with torch.no_grad():
        outputs = classify.model(**inputs)
    probability = outputs.logits[0].softmax(-1)
    share = outputs.modality_weights[0] / outputs.modality_weights[0].sum(0)
    order = probability.argsort(descending=True).tolist()
    assert [entry["label"] for entry in answer] == [CLASSES[index] for index in order]
    for entry, index in zip(answer, order, strict=True):
        assert set(entry) == {"label", "score", "share", "modality_score", "trust"}
        assert entry["score"] == pytest.approx(float(probability[index]), abs=1e-6)
        assert entry["share"] == pytest.approx({"audio": share[0, index].item(), "vision": share[1, index].item()})


def test_every_form_of_one_clip_gives_the_same_answer(classify, folder):
    path = folder / "short.mkv"
    expected = classify(str(path))
    media = read_media(path, num_frames=3)
    images = [Image.fromarray(frame) for frame in media.frames]
    sound = {"array": media.audio, "sampling_rate": media.sampling_rate}
    arrays = {"audio": media.audio, "sampling_rate": media.sampling_rate, "frames": media.frames}
    for clip in (
        path,
        path.read_bytes(),
        {"video": str(path)},
        {"path": str(path), "bytes": None},
        {"video": {"path": None, "bytes": path.read_bytes()}, "label": 3},
        arrays,
        {**arrays, "id": "clip 1", "label": 2},
        {"audio": sound, "images": images},
        {"audio": torch.tensor(media.audio), "sampling_rate": 16_000, "frames": torch.tensor(media.frames)},
        {"audio": sound, "video": str(path)},
        {"video": str(path), "frames": images},
    ):
        assert_same(classify(clip), expected)


def test_many_clips_as_list_generator_and_datasets(classify, folder):
    datasets = pytest.importorskip("datasets")
    paths = [str(folder / name) for name in ("short.mkv", "silent.mkv", "long.mkv", "sound.wav")]
    expected = [classify(path) for path in paths]

    class Clips:
        """Counted and indexed, of no library."""

        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            return {"video": paths[index], "label": index}

    table = datasets.Dataset.from_dict({"video": paths, "label": [0, 1, 2, 3]})
    forms = {
        "list": paths,
        "tuple": tuple(paths),
        "generator": (path for path in paths),
        "iterator": iter(paths),
        "KeyDataset": KeyDataset(table, "video"),
        "Dataset": table,
        "IterableDataset": table.to_iterable_dataset(),
        "sequence": Clips(),
    }
    for name, form in forms.items():
        for batch_size in (1, 3):
            if batch_size > 1 and name in ("generator", "iterator"):
                continue  # used up
            answers = list(classify(form, batch_size=batch_size))
            assert len(answers) == len(expected), name
            for ours, theirs in zip(answers, expected, strict=True):
                assert_same(ours, theirs)
    assert classify([]) == []


def test_columns_of_datasets_need_no_torchcodec(classify, folder, tmp_path):
    """Sound, images in a list, and video, as `load_dataset` gives them: they would be decoded by torchcodec."""
    datasets = pytest.importorskip("datasets")
    media = read_media(folder / "short.mkv", num_frames=3)
    images = []
    for frame in media.frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    sound = {"bytes": (folder / "sound.wav").read_bytes(), "path": None}
    rows = datasets.Dataset.from_dict({"audio": [sound], "frames": [images], "label": [1]})
    rows = rows.cast_column("audio", datasets.Audio(decode=False)).cast_column("audio", datasets.Audio())
    rows = rows.cast_column("frames", datasets.List(datasets.Image()))
    (expected,) = classify([{"audio": folder / "sound.wav", "frames": media.frames}])
    rows.to_parquet(tmp_path / "rows.parquet")
    files = {"data_files": str(tmp_path / "rows.parquet"), "split": "train", "cache_dir": str(tmp_path / "cache")}
    for form in (rows, datasets.load_dataset("parquet", **files, streaming=True)):
        (answer,) = list(classify(form))
        assert_same(answer, expected)
    films = datasets.Dataset.from_dict({"video": [str(folder / "short.mkv")]})
    films = films.cast_column("video", datasets.Video(decode=False)).cast_column("video", datasets.Video())
    for form in (films, KeyDataset(films, "video")):
        (answer,) = list(classify(form))
        assert_same(answer, classify(folder / "short.mkv"))

    class Decoder:
        _hf_encoded = {"path": str(folder / "short.mkv"), "bytes": None}

    assert_same(classify({"video": Decoder()}), classify(folder / "short.mkv"))


def test_a_generator_is_read_as_it_goes(classify, folder):
    read = []

    def clips() -> Iterator[str]:
        for number in range(100):
            read.append(number)
            yield str(folder / "short.mkv")

    assert next(iter(classify(clips())))
    assert len(read) < 5


def test_batches_mix_clips_with_and_without_each_modality(classify, folder):
    paths = [str(folder / name) for name in ("silent.mkv", "sound.wav", "long.mkv", "short.mkv", "silent.mkv")]
    alone = [classify(path) for path in paths]
    for batch_size in (2, 3, 50):
        for ours, theirs in zip(classify(paths, batch_size=batch_size), alone, strict=True):
            assert_same(ours, theirs)


def test_read_by_another_process(classify, folder):
    paths = [str(folder / "short.mkv"), str(folder / "long.mkv")]
    for ours, theirs in zip(classify(paths, num_workers=1), classify(paths), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("kind", ["file", "arrays"])
def test_a_long_clip_is_the_mean_of_its_windows(classify, folder, kind):
    """0.8 s in windows of 0.24 s: at 0, 0.24 and 0.48 s, and one that ends with the clip."""
    clip = str(folder / "long.mkv")
    windows = [(0.0, 0.24), (0.24, 0.48), (0.48, 0.72), (0.56, 0.8)]
    if kind == "file":
        parts = [read_media(clip, num_frames=3, start=start, end=end) for start, end in windows]
        parts = [{"audio": p.audio, "sampling_rate": p.sampling_rate, "frames": p.frames} for p in parts]
    else:
        media = read_media(clip, num_frames=20)
        clip = {"audio": media.audio, "sampling_rate": 16_000, "frames": media.frames}
        times = np.arange(0.02, 0.8, 0.04)
        parts = [
            {
                "audio": media.audio[round(start * 16_000) : round(end * 16_000)],
                "sampling_rate": 16_000,
                "frames": media.frames[(times >= start) & (times < end)],
            }
            for start, end in windows
        ]
    each = np.stack([numbers(classify(part, window_seconds=100)) for part in parts])
    np.testing.assert_allclose(numbers(classify(clip)), each.mean(0), atol=1e-5)
    assert np.ptp(each, axis=0).max() > 1e-3  # or pooling would prove nothing
    whole = classify(clip, window_seconds=100)
    assert np.abs(numbers(whole) - each.mean(0)).max() > 1e-4


def test_windows_may_overlap_and_reach_the_end():
    def starts(duration: float, window: float, stride: float | None = None) -> list[float]:
        return [round(start, 6) for start in windows_mmbalance._starts(duration, window, stride, window)]

    assert starts(10.0, 4.0) == [0.0, 4.0, 6.0]
    assert starts(8.0, 4.0) == [0.0, 4.0]
    assert starts(10.0, 4.0, 2.0) == [0.0, 2.0, 4.0, 6.0]
    assert starts(4.1, 4.0) == [0.0, 0.1]


def test_frames_of_a_window_without_any_are_the_nearest():
    frames = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (10, 20)])  # on show from 0 and 2 s
    clip = {"audio": np.zeros(4000, np.float32), "sampling_rate": 1000, "frames": frames}
    windows = list(windows_of(clip, ReadingSpec(sampling_rate=1000), window_seconds=1.0))
    shown = [[int(frame[0, 0, 0]) for frame in window.parts["vision"]] for window in windows]
    assert shown == [[10], [10], [20], [20]]
    assert [len(window.parts["audio"]) for window in windows] == [1000] * 4


def test_a_clip_whose_file_does_not_say_how_long_it_is(folder, monkeypatch):
    """As browsers record them."""
    monkeypatch.setattr(windows_mmbalance, "declared_duration", lambda source: None)
    windows = list(windows_of(folder / "long.mkv", ReadingSpec(frames=3), window_seconds=0.3))
    assert [len(window.parts["audio"]) for window in windows] == [4800] * 3
    assert len(list(windows_of(folder / "long.mkv", ReadingSpec(frames=3), window_seconds=2.0))) == 1


def test_a_file_that_ends_before_it_says_is_warned_of(folder, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(windows_mmbalance, "declared_duration", lambda source: 60.0)
    monkeypatch.setattr(windows_mmbalance.logger, "warning", warnings.append)
    windows = list(windows_of(folder / "long.mkv", ReadingSpec(frames=3), window_seconds=0.5))
    assert [len(window.parts["audio"]) for window in windows] == [8000, 4800]
    assert warnings == [f"{folder / 'long.mkv'} ends before 1 s, but its declared duration is 60 s"]


def test_a_missing_modality_has_no_score_and_no_share(classify, folder):
    for name, missing, there in (("silent.mkv", "audio", "vision"), ("sound.wav", "vision", "audio")):
        for entry in classify(str(folder / name)):
            assert entry["share"] == {missing: 0.0, there: 1.0}
            assert entry["modality_score"][missing] is None
            assert entry["modality_score"][there] == pytest.approx(entry["score"], abs=1e-6)


def test_the_modality_score_is_the_answer_with_the_other_switched_off(classify, folder):
    both = {entry["label"]: entry for entry in classify(str(folder / "long.mkv"))}
    for modality, other in (("audio", "vision"), ("vision", "audio")):
        for chosen in (modality, [modality]):
            alone = classify(str(folder / "long.mkv"), modalities=chosen)
            for entry in alone:
                assert entry["score"] == pytest.approx(both[entry["label"]]["modality_score"][modality], abs=1e-6)
                assert entry["modality_score"][other] is None
    assert numbers(list(both.values()))[:, 0] != pytest.approx(numbers(alone)[:, 0], abs=1e-3)


def test_the_adaptive_head_scores_a_modality_by_its_calibrated_probability(folder):
    classify = make(fusion_options={"calibration": "vector"})
    inputs = classify.processor(video=str(folder / "short.mkv"))
    with torch.no_grad():
        logits = classify.model(**inputs).modality_logits[0]
        fusion = classify.model.fusion
        scores = logits.log_softmax(-1) * fusion.calibration_scale + fusion.calibration_bias
        expected = (scores / fusion.log_temperature.exp()[:, None]).softmax(-1)
    for entry in classify(str(folder / "short.mkv")):
        index = list(CLASSES.values()).index(entry["label"])
        assert entry["modality_score"] == pytest.approx(
            {"audio": expected[0, index].item(), "vision": expected[1, index].item()}, abs=1e-6
        )


@pytest.mark.parametrize("fusion", HEADS)
def test_every_head_answers_and_shares_sum_to_one(folder, fusion):
    classify = make(fusion=fusion)
    answer = classify(str(folder / "long.mkv"))
    assert sum(entry["score"] for entry in answer) == pytest.approx(1.0, abs=1e-5)
    for modality in ("audio", "vision"):
        assert sum(entry["modality_score"][modality] for entry in answer) == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        has_weights = classify.model(**classify.processor(video=str(folder / "long.mkv"))).modality_weights is not None
    for entry in answer:
        assert (entry["share"] is not None) == has_weights
        assert not has_weights or sum(entry["share"].values()) == pytest.approx(1.0, abs=1e-5)


def test_negative_weights_have_no_share(folder):
    """Energy weights are below 0 where all logits are."""
    classify = make(fusion="qmf")
    with torch.no_grad():
        classify.model.unimodal_heads[0].bias.sub_(30.0)
        weights = classify.model(**classify.processor(video=str(folder / "short.mkv"))).modality_weights
    assert (weights[0, 0] < 0).all() and (weights[0, 1] > 0).all()
    assert all(entry["share"] == {"audio": 0.0, "vision": 1.0} for entry in classify(str(folder / "short.mkv")))


def test_top_k(classify, folder):
    path = str(folder / "short.mkv")
    assert len(classify(path, top_k=1)) == 1 and len(classify(path, top_k=99)) == len(CLASSES)
    scores = [entry["score"] for entry in classify(path, top_k=3)]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)


def test_a_tower_of_any_length_hears_a_clip_whole():
    processor = tiny_processor()
    processor.feature_extractor = Wav2Vec2FeatureExtractor()
    classify = make()
    classify.processor = processor
    assert classify.processor.audio_seconds is None


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            """Silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_an_address_is_downloaded(classify, folder, address, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    expected = classify(str(folder / "short.mkv"))
    assert_same(classify(f"{address}/short.mkv"), expected)
    assert_same(classify({"video": f"{address}/short.mkv"}), expected)
    assert_same(classify({"audio": f"{address}/sound.wav"}), classify(str(folder / "sound.wav")))
    with pytest.raises(MediaError, match=r"/absent.mp4: cannot be downloaded \(HTTP status 404\)") as error:
        classify(f"{address}/absent.mp4?signature=secret")
    assert "secret" not in str(error.value)
    with pytest.raises(MediaError, match=r"^http://127.0.0.1:9/x.mp4: cannot be downloaded") as error:
        classify("http://me:password@127.0.0.1:9/x.mp4#token")
    assert "token" not in str(error.value)
    with pytest.raises(MediaError, match="bytes of the download are over max_bytes=1000; raise it"):
        classify(f"{address}/short.mkv", max_bytes=1000)
    with pytest.raises(MediaError, match="cannot be downloaded"):
        classify("http://127.0.0.1:1/clip.mp4")


@pytest.mark.parametrize(
    ("clip", "options", "message"),
    [
        ("absent.mp4", {}, "absent.mp4: no such file"),
        ("file:///etc/passwd", {}, "no such file"),
        (b"not a video", {}, "not a media file"),
        (np.zeros(100), {}, "a clip of type ndarray is not supported: give a path"),
        (None, {}, "a clip of type NoneType is not supported"),
        ({"text": "a video"}, {}, r"the keys \['text'\] has no audio or frames"),
        ({"audio": np.zeros(3200, np.float32)}, {}, "pass its sampling_rate"),
        ({"audio": None, "frames": None}, {}, "has no audio or frames"),
        ({"audio": {"samples": 3}}, {}, "audio of type dict is not supported"),
        ({"frames": [np.zeros((4, 4, 3))], "images": [np.zeros((4, 4, 3))]}, {}, "two names for the same input"),
        ({"video": np.zeros((3, 4, 4, 3))}, {}, "a file of type ndarray is not supported"),
        ({"audio": np.zeros(3200), "sampling_rate": 16_000}, {"modalities": "vision"}, "has no vision"),
        ({"audio": np.zeros(32000), "sampling_rate": 16_000}, {"max_seconds": 1.5}, "2.0 s is over max_seconds=1.5"),
        (pd.DataFrame({"video": ["x.mp4"]}), {}, "a clip of type DataFrame is not supported: give a path"),
        ({"video": "x.mp4", "start": "soon", "end": 1}, {}, "start='soon' and end=1 must be numbers of seconds"),
        ("", {"top_k": 0}, "top_k=0 must be a whole number, at least 1"),
        ("", {"top_k": "3"}, "top_k='3' must be a whole number, at least 1"),
        ("", {"max_seconds": "9"}, "max_seconds='9' must be a number above 0"),
        ("", {"max_bytes": -1}, "max_bytes=-1 must be a number above 0"),
        ("", {"window_seconds": "9"}, "window_seconds='9' must be above 0"),
        (
            {"audio": np.zeros(16_000), "sampling_rate": 16_000},
            {"window_seconds": 0.1, "stride_seconds": 1e-9},
            "a window every 1e-09 s makes more than 100000 windows for a clip of 1 s: give a larger",
        ),
        ("", {"modalities": ["smell"]}, r"modalities=\['smell'\]: choose one or more of \['audio', 'vision'\]"),
        ("", {"modalities": []}, "choose one or more"),
        ("x.mp4", {"window_seconds": 0}, "window_seconds=0 must be above 0"),
        ("x.mp4", {"window_seconds": 1.0, "stride_seconds": 2.0}, "parts of the clip would be skipped"),
    ],
)
def test_what_makes_no_sense_is_refused(classify, clip, options, message):
    with pytest.raises(ValueError, match=message):
        classify(clip, **options)


def test_unknown_options_are_named(classify):
    with pytest.raises(TypeError, match="unknown option 'topk'; the options are top_k, batch_size"):
        classify("x.mp4", topk=3)


def test_absurd_lengths_are_refused_until_the_limit_is_raised(classify, folder):
    path = str(folder / "long.mkv")
    for options in ({}, {"window_seconds": 100.0}):
        with pytest.raises(MediaError, match="max_seconds=0.5; raise it") as error:
            classify(path, max_seconds=0.5, **options)
        assert error.value.reason == "too_long"
    with pytest.raises(MediaError, match="max_pixels"):
        classify(path, max_pixels=100)
    assert classify(path, max_seconds=0.81)
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")  # 81 million pixels in some thousand bytes
    assert len(bomb.getvalue()) < 20_000
    with pytest.raises(ValueError, match="9000 x 9000 pixels are over max_pixels=33177600; raise it"):
        classify({"frames": [bomb.getvalue()]})
    assert classify({"frames": [bomb.getvalue()]}, max_pixels=90_000_000)
    sound, frames = str(folder / "sound.wav"), [np.zeros((8, 8, 3), np.uint8)]
    for clip in (sound, {"audio": sound}, {"video": path, "frames": frames}):
        with pytest.raises(MediaError, match="bytes of decoded audio are over max_bytes=2000; raise it") as error:
            classify(clip, max_bytes=2000)
        assert error.value.reason == "too_large"
    with pytest.raises(MediaError) as error:
        classify(str(folder / "sound.wav"), modalities="vision")
    assert error.value.reason == "no_video"


def test_says_of_a_data_set_what_training_measured(tmp_path):
    """The trained model, saved and loaded, answers the test clips as `decisions.parquet` has it."""
    arguments = parse_arguments([*TINY, "--output_dir", str(tmp_path / "run")])
    clips = load_clips("synthetic", **dataclasses.asdict(arguments.source)).splits["test"]
    tiny_run(tmp_path / "run")
    table = DecisionTable.read(tmp_path / "run" / "decisions.parquet").select("test")
    fused = table.references["fused"]
    expected = np.exp(fused) / np.exp(fused).sum(1, keepdims=True)
    classify = load_classifier(str(tmp_path / "run"), device="cpu")
    for answer, row in zip(classify(clips, batch_size=4), expected, strict=True):
        found = {entry["label"]: entry["score"] for entry in answer}
        assert [found[name] for name in table.classes] == pytest.approx(row, abs=1e-5)


LOAD = """
import json, sys
from transformers import pipeline
folder, again, clip = sys.argv[1:4]
classify = pipeline("audio-visual-classification", model=folder, trust_remote_code=True, device="cpu")
assert type(classify).__module__.startswith("transformers_modules"), type(classify)
classify.save_pretrained(again)
answers = [classify(clip), pipeline(model=again, trust_remote_code=True, device="cpu")(clip)]
try:
    pipeline("audio-visual-classification", model=folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    raise SystemExit("code of others was run unasked")
print("ANSWERS", json.dumps(answers))
"""


def test_saved_with_the_model_and_loaded_without_the_package(classify, folder, tmp_path):
    saved = tmp_path / "saved"
    classify.save_pretrained(saved)
    code, clip = LOAD, folder / "long.mkv"
    done = run_python(code, saved, tmp_path / "again", clip, block=True, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS"))[8:])
    for answer in answers:
        assert_same(answer, classify(str(clip)))
    assert {path.name for path in saved.iterdir()} == {path.name for path in (tmp_path / "again").iterdir()}


@pytest.mark.gpu
def test_on_a_gpu(classify, folder):
    on_gpu = pipeline(
        "audio-visual-classification", model=tiny_model(), processor=tiny_processor(), device="cuda", batch_size=4
    )
    paths = [str(folder / name) for name in ("short.mkv", "silent.mkv", "long.mkv", "sound.wav")]
    for ours, theirs in zip(on_gpu(paths), classify(paths), strict=True):
        np.testing.assert_allclose(numbers(ours), numbers(theirs), atol=1e-4)

"""The processor: sound and frames in every form people have them, and a refusal that says what was wrong."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    AutoProcessor,
    ConvNextConfig,
    ViTConfig,
    ViTImageProcessorPil,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
)
from transformers.utils import TensorType

from hf_mmbalance import MMBalanceProcessor
from hf_mmbalance.model import audio_features_mmbalance
from hf_mmbalance.model.inputs_mmbalance import (
    as_frames,
    as_sound,
    is_batch_of_frames,
    round_sound,
)
from hf_mmbalance.model.media_sound_mmbalance import resample

from .tiny import tiny_model, tiny_processor


RATE = 16_000


@pytest.fixture(scope="module")
def processor() -> MMBalanceProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def every_frame() -> MMBalanceProcessor:
    """One that takes all frames it is given."""
    return tiny_processor(frames=None)


def rounded(wave: np.ndarray) -> np.ndarray:
    return round_sound(wave)


def frames_of(frames) -> list[list[np.ndarray]]:
    return [as_frames(clip) for clip in (frames if is_batch_of_frames(frames) else [frames])]


def _tone(rate: int = RATE, seconds: float = 0.3, frequency: float = 300.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def _frames(count: int = 3, size: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second: frames that get brighter, and a tone at 44.1 kHz."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=12)
        pictures.width = pictures.height = 32
        sound = container.add_stream("aac", rate=44_100, layout="mono")
        for index in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * index, np.uint8), format="rgb24")
            container.mux(pictures.encode(frame))
        wave = av.AudioFrame.from_ndarray(_tone(44_100, 1.0)[None], format="fltp", layout="mono")
        wave.sample_rate, wave.time_base, wave.pts = 44_100, Fraction(1, 44_100), 0
        container.mux(sound.encode(wave))
        container.mux(pictures.encode(None))
        container.mux(sound.encode(None))
    return path


# -- sound ------------------------------------------------------------------------------------------------------


def test_sound_equals_the_feature_extractor(processor):
    wave = _tone()
    expected = processor.feature_extractor(rounded(wave), sampling_rate=RATE, return_tensors="pt").input_values
    out = processor(audio=wave, sampling_rate=RATE)
    torch.testing.assert_close(out["input_values"], expected, atol=1e-3, rtol=0)
    assert set(out) == {"input_values", "modality_mask"}
    assert out["modality_mask"].tolist() == [[True, False]]


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 44_101, 96_000, 16_000.0, np.int64(32_000)])
def test_any_rate_gives_the_same_tone(rate):
    """Resampling keeps the tone: away from the ends the wave at 16 kHz is the tone made at 16 kHz."""
    wave = resample(*as_sound(_tone(int(rate)), rate, "audio"), RATE)
    expected = _tone()
    assert wave.dtype == np.float32 and abs(len(wave) - len(expected)) <= 1
    shared = slice(500, len(expected) - 500)
    np.testing.assert_allclose(wave[shared], expected[shared], atol=5e-3)


def test_sound_shorter_than_the_filter_of_the_resampler(processor):
    assert resample(np.ones(1, np.float32), 44_100, RATE).tolist() == [0.0]
    assert processor(audio=np.ones(1), sampling_rate=44_100)["modality_mask"].tolist() == [[True, False]]


WAVE = _tone()
FORMS = {
    "mono": WAVE,
    "channels first": np.stack([WAVE, WAVE]),
    "channels last": np.stack([WAVE, WAVE], axis=1),
    "one channel": WAVE[None],
    "mix down": np.stack([2 * WAVE, 0 * WAVE]),
    "float64": WAVE.astype(np.float64),
    "int16": np.round(WAVE * 2**15).astype(np.int16),
    "int32": np.round(WAVE.astype(np.float64) * 2**31).astype(np.int32),
    "uint8": np.round(WAVE * 128 + 128).astype(np.uint8),
    "tensor": torch.from_numpy(WAVE),
    "stereo tensor": torch.from_numpy(np.stack([WAVE, WAVE])),
    "bfloat16 tensor": torch.from_numpy(WAVE).bfloat16(),
    "list of floats": WAVE.tolist(),
    "list of numpy floats": list(WAVE),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_a_waveform(form):
    wave, _ = as_sound(FORMS[form], RATE, "audio")
    tolerance = {"uint8": 5e-3, "bfloat16 tensor": 2e-3, "int16": 2e-5}.get(form, 1e-6)
    np.testing.assert_allclose(wave, WAVE, atol=tolerance)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_paths_and_bytes_know_their_rate(processor, tmp_path, suffix):
    path = tmp_path / f"noise.{suffix}"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 5000).astype(np.float32)
    soundfile.write(path, noise, 22_050)
    expected = processor(audio=noise, sampling_rate=22_050)["input_values"]
    for source in (path, str(path), path.read_bytes(), [path], [path.read_bytes()]):
        torch.testing.assert_close(processor(audio=source)["input_values"], expected, atol=0.01, rtol=0)


def test_sound_that_the_tower_does_not_take_is_warned_of(processor, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(audio_features_mmbalance.logger, "warning_once", said.append)
    processor(audio=_tone(seconds=0.25), sampling_rate=RATE)  # of 0.24 s
    assert not said
    processor(audio=_tone(seconds=0.3), sampling_rate=RATE)
    assert "audio beyond the first 0.24 s of a clip is ignored" in said[0] and "in windows" in said[0]


def test_a_batch_of_different_lengths_with_none(processor):
    waves = [_tone(seconds=0.1), None, _tone(seconds=0.2), _tone(seconds=3.0)]
    out = processor(audio=waves, frames=[None, _frames(), None, _frames()], sampling_rate=RATE)
    assert out["modality_mask"].tolist() == [[True, False], [False, True], [True, False], [True, True]]
    for row in (0, 2, 3):
        alone = processor(audio=waves[row], sampling_rate=RATE)["input_values"]
        torch.testing.assert_close(out["input_values"][row : row + 1], alone, atol=1e-5, rtol=0)
    assert (out["input_values"][1] == 0).all()


def test_a_tensor_of_three_axes_is_a_batch(processor):
    batch = torch.from_numpy(np.stack([FORMS["channels first"]] * 3))
    out = processor(audio=batch, sampling_rate=RATE)
    assert out["input_values"].shape[0] == 3


def test_other_feature_extractors_take_raw_sound():
    processor = MMBalanceProcessor(Wav2Vec2FeatureExtractor(), ViTImageProcessorPil())
    out = processor(
        audio=[_tone(seconds=0.1), None, _tone(seconds=0.2)], frames=[None, _frames(), None], sampling_rate=RATE
    )
    assert out["input_values"].shape == (3, 3200) and (out["input_values"][0, 1600:] == 0).all()
    assert out["audio_mask"].sum(1).tolist() == [1600, 0, 3200] and "audio_mask" in processor.model_input_names
    fixed = {"padding": "max_length", "max_length": 4000, "truncation": True}
    assert processor(audio=_tone(), sampling_rate=RATE, audio_kwargs=fixed)["input_values"].shape == (1, 4000)


# -- frames -----------------------------------------------------------------------------------------------------


def test_frames_equal_the_image_processor(processor):
    """At the processor's own size (all frames at once) and at another (its own resizing)."""
    for size in (16, 24):
        frames = _frames(size=size)
        expected = processor.image_processor(list(frames), return_tensors="pt").pixel_values
        out = processor(frames=frames)
        torch.testing.assert_close(out["pixel_values"][0], expected, atol=1e-5, rtol=0)
        assert set(out) == {"pixel_values", "frame_mask", "modality_mask"}
        assert out["modality_mask"].tolist() == [[False, True]] and out["frame_mask"].tolist() == [[True] * 3]


def test_other_steps_of_the_image_processor_are_kept():
    """A centre crop or padding of frames that have the processor's own size already."""
    for options in (
        {"do_center_crop": True, "crop_size": {"height": 8, "width": 8}},
        {"do_pad": True, "pad_size": {"height": 24, "width": 24}},
    ):
        processor = MMBalanceProcessor(
            ASTFeatureExtractor(num_mel_bins=16, max_length=24),
            ViTImageProcessorPil(size={"height": 16, "width": 16}, **options),
        )
        expected = processor.image_processor(list(_frames()), return_tensors="pt").pixel_values
        assert expected.shape[-1] != 16
        torch.testing.assert_close(processor(frames=_frames())["pixel_values"][0], expected, atol=1e-5, rtol=0)


PICTURES = _frames()
FRAME_FORMS = {
    "list of arrays": list(PICTURES),
    "channels first": PICTURES.transpose(0, 3, 1, 2),
    "tensor": torch.from_numpy(PICTURES),
    "tensor, channels first": torch.from_numpy(PICTURES).permute(0, 3, 1, 2),
    "PIL": [Image.fromarray(frame) for frame in PICTURES],
    "floats up to 1": PICTURES.astype(np.float32) / 255,
    "floats up to 255": PICTURES.astype(np.float64),
    "int64": PICTURES.astype(np.int64),
    "batch of one": PICTURES[None],
    "list of one": [PICTURES],
}


@pytest.mark.parametrize("form", FRAME_FORMS)
def test_any_form_of_frames(form):
    (clip,) = frames_of(FRAME_FORMS[form])
    np.testing.assert_array_equal(np.stack(clip), PICTURES)


def test_paths_bytes_and_other_pictures(tmp_path):
    paths = []
    for index, frame in enumerate(PICTURES):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(frame).save(paths[-1])
    for source in (paths, [str(path) for path in paths], [path.read_bytes() for path in paths], [paths]):
        np.testing.assert_array_equal(np.stack(frames_of(source)[0]), PICTURES)
    grey = PICTURES[0, :, :, 0]
    for one in (grey, Image.fromarray(grey)):
        np.testing.assert_array_equal(frames_of([one])[0][0], np.repeat(grey[..., None], 3, axis=2))
    transparent = Image.fromarray(PICTURES[0]).convert("RGBA")
    np.testing.assert_array_equal(frames_of([transparent])[0][0], PICTURES[0])


def test_one_picture_is_a_clip_of_one_frame(tmp_path):
    Image.fromarray(PICTURES[0]).save(tmp_path / "one.png")
    for one in (PICTURES[0], Image.fromarray(PICTURES[0]), tmp_path / "one.png", torch.from_numpy(PICTURES[0])):
        np.testing.assert_array_equal(frames_of(one)[0], PICTURES[:1])


def test_dark_integer_frames_stay_dark():
    dark = np.ones((1, 4, 4, 3), np.int32)
    assert frames_of(dark)[0][0].max() == 1


@pytest.mark.parametrize("kind", [np.asarray, list, torch.from_numpy])
def test_a_dark_frame_of_floats_stays_dark_in_a_clip_up_to_255(kind):
    """A clip that fades in: white is told from all frames, not from each."""
    clip = np.stack([np.full((4, 4, 3), value, np.float32) for value in (0, 1, 200)])
    assert [int(frame.max()) for frame in frames_of(kind(clip))[0]] == [0, 1, 200]


def test_clips_of_differing_numbers_of_frames(every_frame):
    processor = every_frame
    clips = [_frames(2, seed=1), None, _frames(4, seed=2), list(_frames(1, seed=3))]
    out = processor(frames=clips, audio=[None, _tone(), None, None], sampling_rate=RATE)
    assert out["pixel_values"].shape == (4, 4, 3, 16, 16)
    assert out["frame_mask"].sum(1).tolist() == [2, 0, 4, 1]
    for row in (0, 2, 3):
        alone = processor(frames=clips[row])["pixel_values"][0]
        torch.testing.assert_close(out["pixel_values"][row, : len(alone)], alone)
    assert (out["pixel_values"][~out["frame_mask"]] == 0).all()


def test_flat_images_stay_flat_and_nested_ones_are_frames(every_frame):
    processor = every_frame
    flat = processor(images=list(PICTURES))
    assert flat["pixel_values"].shape == (3, 3, 16, 16) and flat["frame_mask"].tolist() == [[True]] * 3
    assert processor(images=PICTURES[0])["pixel_values"].shape == (1, 3, 16, 16)
    nested = processor(images=[list(PICTURES)])
    assert torch.equal(nested["pixel_values"], processor(frames=PICTURES)["pixel_values"])
    torch.testing.assert_close(nested["pixel_values"][0], flat["pixel_values"])
    with_none = processor(images=[PICTURES[0], None], audio=[None, _tone()], sampling_rate=RATE)
    assert with_none["frame_mask"].tolist() == [[True], [False]]


# -- video ------------------------------------------------------------------------------------------------------


def test_a_video_file_gives_its_own_sound_and_frames(processor, video):
    for source in (video, str(video), video.read_bytes(), [video]):
        out = processor(video=source)
        assert out["modality_mask"].tolist() == [[True, True]]
        assert out["pixel_values"].shape == (1, 3, 3, 16, 16)
    brightness = out["pixel_values"][0].mean((1, 2, 3)) * 127.5 + 127.5  # mean and std 0.5
    # Centres of three equal parts of twelve frames: the 3rd, 7th and 11th.
    torch.testing.assert_close(brightness, torch.tensor([40.0, 120.0, 200.0]), atol=6.0, rtol=0)
    tone = processor(audio=_tone(44_100, 1.0), sampling_rate=44_100)["input_values"]
    # AAC is lossy: the loudest bins of the steady part must agree.
    assert torch.equal(out["input_values"][0, 8:20].argmax(1), tone[0, 8:20].argmax(1))


def test_spans_of_several_files(processor, video):
    spans = [processor(video=video, start=start, end=start + 0.5)["input_values"] for start in (0.0, 0.4)]
    for starts in ([0.0, 0.4], (0.0, 0.4), np.array([0.0, 0.4]), torch.tensor([0.0, 0.4], dtype=torch.float64)):
        ends = [start + 0.5 for start in starts]
        assert torch.equal(processor(video=[video] * 2, start=starts, end=ends)["input_values"], torch.cat(spans))
    with pytest.raises(ValueError, match="start has 1 entries for 2 clips"):
        processor(video=[video] * 2, start=[0.0], end=[0.5])


def test_inputs_passed_beside_a_video_stand_in_for_its_own(processor, video):
    out = processor(video=video, audio=_tone(), sampling_rate=RATE)
    assert torch.equal(out["input_values"], processor(audio=_tone(), sampling_rate=RATE)["input_values"])
    assert torch.equal(out["pixel_values"], processor(video=video)["pixel_values"])
    out = processor(video=[video, video], frames=[PICTURES, PICTURES])
    assert torch.equal(out["pixel_values"][1], processor(frames=PICTURES)["pixel_values"][0])
    assert out["modality_mask"].all()


def test_a_sound_file_as_video_has_no_frames(processor, tmp_path):
    soundfile.write(tmp_path / "tone.wav", _tone(), RATE)
    out = processor(video=tmp_path / "tone.wav")
    assert out["modality_mask"].tolist() == [[True, False]] and "pixel_values" not in out


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0, -16_000, 16, 10**9, float("nan"), True, "16000", [16_000, 8_000]])
def test_invalid_rates_are_refused(processor, rate):
    with pytest.raises(ValueError, match=r"sampling_rate=.* is not valid for audio: give one rate in Hz"):
        processor(audio=_tone(), sampling_rate=rate)


def test_arrays_without_a_rate_are_refused(processor):
    with pytest.raises(ValueError, match="clip 1: audio is an array: pass its sampling_rate in Hz"):
        processor(audio=[None, _tone()], frames=[PICTURES, None])


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.array([0.1, np.nan]), "clip 0: audio has NaN or infinite samples: repair it"),
        (np.array([0.1, np.inf]), "clip 0: audio has NaN or infinite samples"),
        (np.zeros(0, np.float32), "clip 0: audio is empty: pass None"),
        (np.zeros((2, 0), np.float32), "clip 0: audio is empty"),
        ([], "audio is an empty list: pass at least one clip"),
        (np.zeros((2, 2, 2, 2)), r"clip 0: audio has shape \(2, 2, 2, 2\): expected \(samples,\)"),
        (np.zeros(9, np.int64), "clip 0: audio has samples of type int64: pass floats"),
        (np.full(9, 20_000.0), r"clip 0: audio has samples of up to 20000: pass floats in \[-1, 1\], or int16"),
        (np.zeros((16, 900)), r"clip 0: audio has shape \(16, 900\): .* 8 channels; pass several clips as a list"),
        ({"array": np.zeros(9)}, "clip 0: audio of type dict|'sampling_rate'"),
    ],
)
def test_waveforms_that_are_none_are_refused(processor, wave, message):
    with pytest.raises(ValueError, match=message):
        processor(audio=wave, sampling_rate=RATE)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "frames is an empty list: pass at least one clip"),
        ([[]], "clip 0: zero frames: pass None"),
        (np.zeros((0, 16, 16, 3), np.uint8), "clip 0: zero frames"),
        ([[PICTURES[0], None]], r"clip 0: frame 1 is null"),
        (np.zeros((2, 16, 16, 4), np.uint8), r"clip 0: frame 0 has shape \(16, 16, 4\): expected \(H, W, 3\)"),
        (np.full((1, 4, 4, 3), 300.0), r"clip 0: frame 0 has pixels outside \[0, 255\]"),
        (np.full((1, 4, 4, 3), -0.5), r"clip 0: frame 0 has pixels outside \[0, 255\]"),
        (np.full((1, 4, 4, 3), np.nan), "clip 0: frame 0 has NaN or infinite pixels"),
        ([b"no picture"], "clip 0: frame 0 cannot be read as an image"),
        (["/no/such/picture.png"], "/no/such/picture.png: no such image file"),
    ],
)
def test_frames_that_are_none_are_refused(processor, frames, message):
    with pytest.raises(ValueError, match=message):
        processor(frames=frames)


def test_files_that_cannot_be_decoded_are_refused(processor, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(bytes(range(256)) * 20)
    pointer = tmp_path / "pointer.wav"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for call in ({"video": broken}, {"audio": broken}):
        with pytest.raises(ValueError, match="broken.mp4"):
            processor(**call)
    with pytest.raises(ValueError, match="pointer.wav.*git lfs pull"):
        processor(audio=pointer)
    with pytest.raises(ValueError, match="missing.wav: no such file"):
        processor(audio=tmp_path / "missing.wav")


def test_counts_that_disagree_are_refused(processor, video):
    with pytest.raises(ValueError, match=r"audio and frames have different numbers of clips: \[1, 2\]"):
        processor(audio=_tone(), frames=[PICTURES, PICTURES], sampling_rate=RATE)
    with pytest.raises(ValueError, match=r"different numbers of clips: \[1, 3\]"):
        processor(audio=_tone(), images=list(PICTURES), sampling_rate=RATE)
    with pytest.raises(ValueError, match=r"different numbers of clips: \[1, 2\]"):
        processor(video=[video, video], audio=_tone(), sampling_rate=RATE)


def test_nothing_at_all_is_refused(processor):
    with pytest.raises(ValueError, match="no modality at all: pass audio, frames or video"):
        processor()
    with pytest.raises(ValueError, match=r"no modality at all in clip\(s\) \[1\]"):
        processor(audio=[_tone(), None], sampling_rate=RATE)
    with pytest.raises(ValueError, match=r"no modality at all in clip\(s\) \[0\]"):
        processor(audio=[None, _tone()], frames=[None, PICTURES], sampling_rate=RATE)
    with pytest.raises(ValueError, match="video is an empty list"):
        processor(video=[])


@pytest.mark.parametrize("name", ["text", "videos"])
def test_inputs_of_other_processors_are_refused(processor, name):
    with pytest.raises(ValueError, match=f"{name}= is not supported: pass audio=, frames= .or images=. or video="):
        processor(audio=_tone(), sampling_rate=RATE, **{name: "clip.mp4"})


def test_other_tensor_types_are_refused(processor):
    with pytest.raises(ValueError, match="return_tensors='mlx' is not supported: choose 'pt' or 'np'"):
        processor(audio=_tone(), sampling_rate=RATE, return_tensors="mlx")


@pytest.mark.parametrize("extractor", [ASTFeatureExtractor, Wav2Vec2FeatureExtractor])
def test_options_that_no_feature_extractor_has_are_refused(extractor):
    processor = MMBalanceProcessor(extractor(), ViTImageProcessorPil())
    with pytest.raises(ValueError, match="audio_kwargs: unknown option 'max_lenght'; the options are .*max_length"):
        processor(audio=_tone(), sampling_rate=RATE, audio_kwargs={"max_lenght": 40})


def test_two_names_of_frames_are_refused(processor):
    with pytest.raises(ValueError, match="frames and images are two names for the same input"):
        processor(frames=PICTURES, images=PICTURES)


# -- the whole --------------------------------------------------------------------------------------------------


def test_numpy_output_and_options(processor):
    out = processor(audio=_tone(), frames=PICTURES, sampling_rate=RATE, return_tensors="np")
    assert all(isinstance(values, np.ndarray) for values in out.values())
    for default in (None, TensorType.PYTORCH):
        assert torch.is_tensor(processor(frames=PICTURES, return_tensors=default)["pixel_values"])
    nested = processor(audio=_tone(), audio_kwargs={"sampling_rate": RATE, "max_length": 40})
    assert nested["input_values"].shape == (1, 40, 16)
    unscaled = processor(frames=PICTURES, images_kwargs={"do_normalize": False})["pixel_values"]
    torch.testing.assert_close(unscaled[0], torch.from_numpy(PICTURES).permute(0, 3, 1, 2) / 255, atol=1e-6, rtol=0)


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["auto_map"]["AutoProcessor"] == "processing_mmbalance.MMBalanceProcessor"
    assert (tmp_path / "processing_mmbalance.py").is_file() and (tmp_path / "media_mmbalance.py").is_file()
    for again in (MMBalanceProcessor.from_pretrained(tmp_path), _auto(tmp_path)):
        assert again.spec.frames == 3 and again.to_dict() == processor.to_dict()
        inputs = {"audio": _tone(), "frames": PICTURES, "sampling_rate": RATE}
        for name, values in processor(**inputs).items():
            assert torch.equal(again(**inputs)[name], values)


def _auto(folder: Path) -> MMBalanceProcessor:
    tiny_model().save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


def test_the_model_takes_what_the_processor_gives(every_frame):
    processor = every_frame
    batch = processor(
        audio=[_tone(), None, _tone()], frames=[PICTURES, PICTURES[:1], None], sampling_rate=RATE, return_tensors="pt"
    )
    out = tiny_model()(**batch)
    assert out.modality_mask.tolist() == [[1, 1], [0, 1], [1, 0]]
    alone = tiny_model()(**processor(frames=PICTURES[:1])).logits
    torch.testing.assert_close(out.logits[1:2], alone, atol=1e-5, rtol=1e-4)


def test_from_backbones(processor, tmp_path):
    audio, vision = ASTConfig(num_mel_bins=16, max_length=24), ViTConfig(image_size=16)
    new = MMBalanceProcessor.from_backbones(audio, vision, audio_max_length=40, reading={"frames": 5})
    assert (new.feature_extractor.max_length, new.feature_extractor.num_mel_bins, new.spec.frames) == (40, 16, 5)
    audio.save_pretrained(tmp_path / "audio")  # a backbone without a processor file
    processor.image_processor.save_pretrained(tmp_path / "vision")
    new = MMBalanceProcessor.from_backbones(tmp_path / "audio", tmp_path / "vision")
    assert new.feature_extractor.max_length == 24
    assert new.image_processor.to_dict() == processor.image_processor.to_dict()


@pytest.mark.parametrize(
    ("audio", "vision", "message"),
    [
        (Wav2Vec2Config(), ViTConfig(), "audio backbone 'wav2vec2' has no feature extractor: save one with"),
        (ASTConfig(), Wav2Vec2Config(), "vision backbone 'wav2vec2' has no image processor: save one with"),
        ("/no/such/folder", ViTConfig(), "backbone '/no/such/folder' cannot be loaded"),
    ],
)
def test_backbones_without_a_processor_are_refused(audio, vision, message):
    with pytest.raises(ValueError, match=message):
        MMBalanceProcessor.from_backbones(audio, vision)


def test_a_broken_processor_file_is_not_replaced_by_defaults(tmp_path):
    ASTConfig(num_mel_bins=16, max_length=24).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{broken")
    with pytest.raises(ValueError, match="its preprocessor_config.json cannot be used; repair or remove the file"):
        MMBalanceProcessor.from_backbones(tmp_path, ViTConfig())


def test_pictures_in_another_shape_than_square():
    new = MMBalanceProcessor.from_backbones(ASTConfig(), ConvNextConfig(image_size=[16, 24]))
    assert new(frames=_frames())["pixel_values"].shape == (1, 3, 3, 16, 24)


def test_bytes_io_is_not_mistaken_for_a_waveform(processor):
    with pytest.raises(ValueError, match="clip 0: audio of type BytesIO is not supported"):
        processor(audio=io.BytesIO(b"abc"), sampling_rate=RATE)


def test_files_of_absurd_length_are_refused_until_the_limit_is_raised(processor, video, tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(1000 * 601, np.float32), 1000)
    for inputs in ({"audio": tmp_path / "long.wav"}, {"video": tmp_path / "long.wav"}):
        with pytest.raises(ValueError, match="max_seconds=600; raise it"):
            processor(**inputs)
        assert processor(**inputs, max_seconds=700)["modality_mask"].tolist() == [[True, False]]
    with pytest.raises(ValueError, match="max_seconds=0.1; raise it"):
        processor(video=video, max_seconds=0.1)

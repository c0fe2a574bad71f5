"""Audio towers on spectrograms of a fixed length, Whisper's encoder and CLAP's part for audio; and vision towers whose
class needs more than frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    AutoModel,
    ClapAudioConfig,
    ClapAudioModelWithProjection,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    MobileViTV2Config,
    PreTrainedModel,
    Siglip2VisionConfig,
    ViTConfig,
    ViTImageProcessorPil,
    ViTMAEConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperModel,
)

from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor

from .test_remote_code import _Case, _check, _clips
from .test_source_heads import SOUNDS, VOICE_MAP, labelled, randomised
from .tiny import AUDIO, CLASSES, SMALL, VISION, WHISPER, tiny_inputs


compose = MMBalanceForAudioVisualClassification.from_backbones
AST = ASTConfig(**{key: value for key, value in AUDIO.items() if key != "model_type"})
VIT = ViTConfig(**{key: value for key, value in VISION.items() if key != "model_type"})
IMAGES = ViTImageProcessorPil(size={"height": 16, "width": 16})
RATE = 16_000
CLAP_RATE = 8_000
CLAP_TEXT = {**SMALL, "vocab_size": 50, "projection_dim": 8}


def whisper() -> PreTrainedModel:
    return randomised(WhisperModel(WhisperConfig(**WHISPER)))


def clap(fused: bool = False) -> PreTrainedModel:
    audio = ClapAudioConfig(
        **{"window_size": 4, "num_mel_bins": 16, "spec_size": 64, "patch_embeds_hidden_size": 8, "patch_size": 4},
        **{"depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 16, "projection_dim": 8},
        **{"enable_fusion": fused, "patch_stride": [4, 4]},
    )
    return randomised(ClapModel(ClapConfig(audio_config=audio.to_dict(), text_config=CLAP_TEXT, projection_dim=8)))


def clap_extractor(fused: bool = False) -> ClapFeatureExtractor:
    """One second at 8 kHz: 101 frames, of at most 256."""
    return ClapFeatureExtractor(
        feature_size=16, sampling_rate=CLAP_RATE, hop_length=80, max_length_s=1, fft_window_size=256,
        frequency_max=4_000, truncation="fusion" if fused else "rand_trunc",
    )  # fmt: skip


def sounds(*seconds: float, rate: int = RATE) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=round(rate * length)).astype("float32") for length in seconds]


def frames(count: int = 2) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 255, (count, 16, 16, 3), dtype="uint8"))


def whisper_pair() -> tuple[MMBalanceForAudioVisualClassification, MMBalanceProcessor]:
    processor = MMBalanceProcessor(WhisperFeatureExtractor(16, chunk_length=1), IMAGES)
    return compose(whisper(), VIT, id2label=CLASSES).eval(), processor


@torch.no_grad()
def test_whisper_is_its_encoder_averaged_over_the_tokens_of_the_sound():
    """0.3 s are 30 spectrogram frames (and the one that ends in padding), 15 or 16 tokens of 50."""
    source = whisper()
    model = compose(source, VIT, id2label=CLASSES).eval()
    processor = MMBalanceProcessor(WhisperFeatureExtractor(16, chunk_length=1), IMAGES)
    batch = processor(audio=[sounds(0.3)[0], None, sounds(1.0)[0]], frames=[frames()] * 3, sampling_rate=RATE)
    assert batch["input_values"].shape == (3, 16, 100) and batch["audio_mask"].shape == (3, 100)
    found = model(**batch)
    hidden = source.encoder(batch["input_values"]).last_hidden_state
    count = int(batch["audio_mask"][0].sum() + 1) // 2
    assert count in (15, 16)
    torch.testing.assert_close(found.modality_features[0][0], hidden[0, :count].mean(0))
    torch.testing.assert_close(found.modality_features[0][2], hidden[2].mean(0))
    alone = model(**processor(audio=sounds(0.3)[0], frames=frames(), sampling_rate=RATE))
    torch.testing.assert_close(found.logits[:1], alone.logits)
    silent = model(pixel_values=batch["pixel_values"][1:2])
    torch.testing.assert_close(found.logits[1:2], silent.logits)
    assert processor.audio_seconds == 1.0 and "audio_mask" in processor.model_input_names


@torch.no_grad()
@pytest.mark.parametrize("weighted", [False, True])
def test_a_whisper_classifier_answers_short_sound_as_it_does_by_itself(weighted):
    """It averages over the whole input, silence included."""
    config = WhisperConfig(**WHISPER, use_weighted_layer_sum=weighted, **labelled(SOUNDS))
    classifier = randomised(WhisperForAudioClassification(config))
    model = compose(classifier, VIT, id2label=CLASSES, label_maps={"audio": VOICE_MAP}).eval()
    _, processor = whisper_pair()
    batch = processor(audio=sounds(0.3, 0.8), frames=[frames()] * 2, sampling_rate=RATE)
    theirs = classifier(batch["input_values"]).logits.log_softmax(-1)
    found = model(**batch).modality_logits[:, 0]
    angry = theirs[:, [0, 3]].logsumexp(-1)  # "ang" and "fury"
    torch.testing.assert_close(found[:, 1:], torch.stack([angry, theirs[:, 1], theirs[:, 2]], 1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
def test_clap_is_its_part_for_audio(fused, tmp_path):
    source = clap(fused)
    model = compose(source, VIT, id2label=CLASSES).eval()
    processor = MMBalanceProcessor(clap_extractor(fused), IMAGES)
    waves = sounds(0.3, 1.0, rate=CLAP_RATE)
    batch = processor(audio=waves, frames=[frames()] * 2, sampling_rate=CLAP_RATE)
    assert batch["input_values"].shape == (2, 4 if fused else 1, 101, 16) and "audio_mask" not in batch
    longer = torch.zeros(2, 1, dtype=torch.bool)
    expected = source.audio_model(batch["input_values"], is_longer=longer).pooler_output
    torch.testing.assert_close(model(**batch).modality_features[0], expected)
    # Its extractor would take random parts of longer sound, or call a random clip longer.
    twice = [
        model(**processor(audio=sounds(2.5, rate=CLAP_RATE)[0], sampling_rate=CLAP_RATE)).logits for _ in range(2)
    ]
    first_second = sounds(2.5, rate=CLAP_RATE)[0][:CLAP_RATE]
    assert torch.equal(*twice)
    assert torch.equal(twice[0], model(**processor(audio=first_second, sampling_rate=CLAP_RATE)).logits)
    model.save_pretrained(tmp_path)
    again = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path)
    assert torch.equal(again(**batch).logits, model(**batch).logits)


@torch.no_grad()
@pytest.mark.parametrize("projected", [False, True])
def test_the_audio_model_of_clap_saved_by_itself(projected, tmp_path):
    """AutoModel has no class for these folders."""
    source = clap()
    saved = source.audio_model
    if projected:
        saved = ClapAudioModelWithProjection(source.config.audio_config)
        saved.audio_model.load_state_dict(source.audio_model.state_dict())
    saved.save_pretrained(tmp_path)
    spectrogram = torch.randn(2, 1, 101, 16)
    expected = source.audio_model(spectrogram).pooler_output
    for backbone in (tmp_path, saved):
        model = compose(backbone, VIT, id2label=CLASSES).eval()
        torch.testing.assert_close(model(input_values=spectrogram).modality_features[0], expected)


def test_folders_as_on_the_hub_and_the_saved_model_without_the_package(tmp_path):
    """Weights in float16 and extractor from one folder; the saved model then runs in a process without the package."""
    cases = []
    for name, source, extractor, rate in (
        ("whisper", whisper(), WhisperFeatureExtractor(16, chunk_length=1), RATE),
        ("clap", clap(), clap_extractor(), CLAP_RATE),
    ):
        audio, saved = tmp_path / f"{name}-tower", tmp_path / name
        source.half().save_pretrained(audio)
        extractor.save_pretrained(audio)
        model, processor = compose(audio, VIT, id2label=CLASSES), MMBalanceProcessor.from_backbones(audio, VIT)
        assert model.dtype == torch.float32
        assert processor.audio_sampling_rate == processor.spec.sampling_rate == rate
        processor.reading = {**processor.reading, "frames": None}
        model.save_pretrained(saved)
        processor.save_pretrained(saved)
        with torch.no_grad():
            cases.append(
                _Case(saved, [model.eval()(**processor(**clip, sampling_rate=22_050)).logits for clip in _clips()])
            )
    _check(tmp_path, *cases)


@pytest.mark.parametrize("kind", ["whisper", "clap"])
def test_they_are_trained_layer_by_layer(kind):
    model = compose(whisper() if kind == "whisper" else clap(), VIT, id2label=CLASSES, trainable_layers=1)
    spectrogram = torch.randn(2, 16, 100) if kind == "whisper" else torch.randn(2, 1, 101, 16)
    out = model(input_values=spectrogram, pixel_values=torch.randn(2, 1, 3, 16, 16), labels=torch.tensor([0, 1]))
    out.loss.backward()
    frozen = [p for p in model.audio_model.parameters() if not p.requires_grad]
    assert frozen and any(p.grad is not None for p in model.audio_model.parameters())


def test_frozen_batch_norms_do_not_change_in_training():
    """CLAP's, which is applied to the spectrogram, and those of a vision tower whose last layer is trained."""
    vision = MobileViTV2Config(image_size=64, width_multiplier=0.25)
    model = compose(clap(), vision, id2label=CLASSES, trainable_layers=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(input_values=torch.randn(2, 1, 101, 16), pixel_values=torch.randn(2, 1, 3, 64, 64))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name.rpartition(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert "audio_model.audio_encoder.batch_norm" not in trained
    assert changed and {name.rpartition(".")[0] for name in changed} <= trained


@pytest.mark.parametrize(
    ("source", "shape", "message"),
    [
        (whisper, (1, 16, 90), r"input_values has shape \(1, 16, 90\), expected \(B, 16, 100\)"),
        (clap, (1, 4, 101, 16), r"input_values has shape \(1, 4, 101, 16\), expected \(B, 1, frames, 16\)"),
    ],
)
def test_spectrograms_of_another_size_are_refused(source, shape, message):
    model = compose(source(), VIT, id2label=CLASSES)
    with pytest.raises(ValueError, match=message):
        model(input_values=torch.zeros(shape))


def test_masks_of_spectrograms():
    model, _ = whisper_pair()
    with pytest.raises(ValueError, match=r"audio_mask has shape \(1, 7\), expected \(1, 100\)"):
        model(input_values=torch.zeros(1, 16, 100), audio_mask=torch.ones(1, 7))
    with pytest.raises(ValueError, match="'clap_audio_model' does not use a mask"):
        compose(clap(), VIT, id2label=CLASSES)(input_values=torch.zeros(1, 1, 101, 16), audio_mask=torch.ones(1, 16))


MAE = ViTMAEConfig(**{**SMALL, "image_size": 16, "patch_size": 4})


@torch.no_grad()
def test_a_masked_autoencoder_sees_the_whole_frame():
    """By itself it would leave out other patches every time, or shuffle all of them, which changes the rounding."""
    assert MAE.mask_ratio > 0
    source = randomised(AutoModel.from_config(MAE))
    model = compose(AST, source, id2label=CLASSES, dtype=torch.bfloat16).eval()
    inputs = tiny_inputs()
    expected, state = model(**inputs), torch.get_rng_state()
    for _ in range(3):
        assert torch.equal(expected.logits, model(**inputs).logits)
    assert torch.equal(state, torch.get_rng_state())
    model.float()
    source.config.mask_ratio = 0.0
    theirs = source.float()(inputs["pixel_values"][:, 0]).last_hidden_state.mean(1)
    found = model(pixel_values=inputs["pixel_values"][:, 0]).modality_features[1]
    torch.testing.assert_close(found, theirs, atol=0.02, rtol=0.02)  # weights were rounded to bfloat16


@pytest.mark.parametrize(
    ("audio", "vision", "fixed"),
    [
        (whisper, VIT, "audio_model.embed_positions.weight"),
        (AST, MAE, "vision_model.embeddings.position_embeddings"),
    ],
)
def test_sinusoidal_positions_stay_as_they_are(audio, vision, fixed):
    model = compose(audio() if audio is whisper else audio, vision, id2label=CLASSES)
    for layers in (0, 2, "all"):
        model.freeze_towers(layers)
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        assert fixed in frozen
    assert frozen == [fixed]


def test_a_width_is_measured_in_the_type_of_the_config():
    vision = MobileViTV2Config(image_size=64, width_multiplier=0.25, dtype="bfloat16")
    model = compose(AST, vision, id2label=CLASSES, dtype=torch.bfloat16)
    assert model.unimodal_heads[1].in_features == 128


def test_a_backbone_that_needs_more_than_frames_is_refused():
    with pytest.raises(ValueError, match="Siglip2VisionModel also needs pixel_attention_mask, spatial_shapes, which"):
        compose(AST, Siglip2VisionConfig(**SMALL, patch_size=8, num_patches=4), id2label=CLASSES)

"""Vision towers that take all frames of a clip together: VideoMAE, TimeSformer and ViViT."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    VivitConfig,
    VivitForVideoClassification,
)

from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.model.reading_mmbalance import ReadingSpec
from hf_mmbalance.model.source_heads_mmbalance import source_head_of

from .test_remote_code import _Case, _check
from .test_source_heads import AST, FACE_MAP, FACES, labelled, randomised
from .tiny import CLASSES, SMALL, tiny_inputs


compose = MMBalanceForAudioVisualClassification.from_backbones
FRAMES = 4
VIDEO = {**SMALL, "image_size": 16, "num_frames": FRAMES, **labelled(FACES)}
KINDS = {
    "videomae": (VideoMAEForVideoClassification, VideoMAEConfig(**VIDEO, patch_size=8, tubelet_size=2)),
    "timesformer": (TimesformerForVideoClassification, TimesformerConfig(**VIDEO, patch_size=8)),
    "vivit": (VivitForVideoClassification, VivitConfig(**VIDEO, tubelet_size=[2, 8, 8])),
}


def classifier(kind: str):
    torch.manual_seed(0)
    model_class, config = KINDS[kind]
    return randomised(model_class(config))


def fused(kind: str, **options):
    return compose(
        ASTConfig(**AST), classifier(kind), id2label=CLASSES, label_maps={"vision": FACE_MAP}, **options
    ).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_classifier(kind):
    pixels = torch.randn(3, FRAMES, 3, 16, 16)
    with torch.no_grad():
        expected = classifier(kind)(pixels).logits.log_softmax(-1)
        found = fused(kind)(pixel_values=pixels).modality_logits[:, 1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_with_a_new_head_is_saved_and_loaded(kind, tmp_path):
    classifier(kind).save_pretrained(tmp_path / "classifier")
    model = compose(ASTConfig(**AST), tmp_path / "classifier", id2label=CLASSES).eval()
    pixels = torch.randn(2, FRAMES, 3, 16, 16)
    taken = fused(kind)(pixel_values=pixels).modality_features[1]
    torch.testing.assert_close(model(pixel_values=pixels).modality_features[1], taken)
    model.save_pretrained(tmp_path / "model")
    again = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(again(pixel_values=pixels).logits, model(pixel_values=pixels).logits)


def test_a_saved_classifier_of_videos_keeps_its_head(tmp_path):
    classifier("videomae").save_pretrained(tmp_path)
    maps = {"vision": FACE_MAP}
    model = compose(ASTConfig(**AST), tmp_path, id2label=CLASSES, label_maps=maps).eval()
    pixels = torch.randn(2, FRAMES, 3, 16, 16)
    expected = fused("videomae")(pixel_values=pixels).modality_logits
    torch.testing.assert_close(model(pixel_values=pixels).modality_logits, expected)


@pytest.mark.parametrize("pooling", ["mean", "log_probs"])
def test_missing_modalities_and_features_in_place_of_inputs(pooling):
    model = fused("timesformer", frame_pooling=pooling)
    inputs = {**tiny_inputs(), "pixel_values": torch.randn(4, FRAMES, 3, 16, 16)}
    inputs["pixel_values"][1] = torch.nan
    mask = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    frames = torch.tensor([[True] * FRAMES, [False] * FRAMES] + [[True] * FRAMES] * 2)
    with torch.no_grad():
        whole = model(**inputs, modality_mask=mask, frame_mask=frames)
        sound = model(input_values=inputs["input_values"][1:2])
        embedded = model.embed(**inputs, modality_mask=mask, frame_mask=frames)
        again = model(
            modality_features=embedded.features,
            modality_tokens=embedded.tokens,
            modality_mask=embedded.modality_mask,
            frame_log_probs=embedded.frame_log_probs,
        )
    assert torch.isfinite(whole.logits).all()
    torch.testing.assert_close(whole.logits[1:2], sound.logits)
    torch.testing.assert_close(again.logits, whole.logits, atol=1e-5, rtol=1e-5)


def test_another_number_of_frames_is_refused():
    model = fused("videomae")
    with pytest.raises(ValueError, match="pixel_values has 3 frames per clip, but vision tower 'videomae' expects 4"):
        model(pixel_values=torch.zeros(2, 3, 3, 16, 16))
    with pytest.raises(ValueError, match="has 1 frames per clip"):
        model(pixel_values=torch.zeros(2, 3, 16, 16))
    partial = torch.tensor([[True] * FRAMES, [True, True, True, False]])
    with pytest.raises(
        ValueError, match=r"clip\(s\) \[1\] of the batch have fewer than the 4 frames .*: repeat frames"
    ):
        model(pixel_values=torch.zeros(2, FRAMES, 3, 16, 16), frame_mask=partial)


def test_a_classifier_that_pools_in_another_way_is_refused():
    config = VideoMAEConfig(**VIDEO, patch_size=8, tubelet_size=2, use_mean_pooling=False)
    with pytest.raises(ValueError, match="VideoMAEForVideoClassification does not reproduce its logits from"):
        source_head_of(randomised(VideoMAEForVideoClassification(config)))


# -- processor --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    classifier("videomae").save_pretrained(tmp_path / "video")
    VideoMAEImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(tmp_path / "video")  # fmt: skip
    ASTFeatureExtractor(num_mel_bins=16, max_length=24).save_pretrained(tmp_path / "audio")
    return tmp_path


def test_the_processor_reads_as_many_frames_as_the_tower_takes(folder):
    processor = MMBalanceProcessor.from_backbones(folder / "audio", folder / "video")
    assert processor.spec.frames == FRAMES
    given = ReadingSpec(sampling_rate=8_000, margin=0.5)
    kept = MMBalanceProcessor.from_backbones(folder / "audio", folder / "video", reading=given.to_dict()).spec
    assert (kept.frames, kept.sampling_rate, kept.margin) == (FRAMES, 8_000, 0.5)
    with pytest.raises(ValueError, match="reading.frames=8, but the vision backbone accepts clips of 4 frames"):
        MMBalanceProcessor.from_backbones(folder / "audio", folder / "video", reading=ReadingSpec(frames=8))


def test_pixels_are_those_of_the_video_processor(folder):
    processor = MMBalanceProcessor.from_backbones(folder / "audio", folder / "video")
    frames = np.random.default_rng(0).integers(0, 256, (2, FRAMES, 20, 24, 3), dtype=np.uint8)
    batch = processor(frames=list(frames))
    assert batch["pixel_values"].shape == (2, FRAMES, 3, 16, 16) and batch["frame_mask"].all()
    expected = processor.image_processor(list(frames[1]), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(batch["pixel_values"][1], expected)


def test_loads_without_the_package(folder, tmp_path, monkeypatch):
    model = fused("videomae")
    processor = MMBalanceProcessor.from_backbones(folder / "audio", folder / "video")
    generator = np.random.default_rng(0)
    wave = generator.normal(size=6000).astype(np.float32)
    frames = generator.integers(0, 256, (FRAMES, 20, 20, 3), dtype=np.uint8)
    clips = [{"audio": wave, "frames": frames}, {"audio": wave}, {"frames": frames}]
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        expected = [model(**processor(**inputs, sampling_rate=22_050)).logits for inputs in clips]
    monkeypatch.setattr("tests.model.test_remote_code._clips", lambda: clips)
    _check(tmp_path, _Case(tmp_path / "saved", expected))

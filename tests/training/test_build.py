"""Model and processor as the arguments say: heads, frozen towers, class weights, input statistics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Wav2Vec2FeatureExtractor

from hf_mmbalance import MMBalanceForAudioVisualClassification, cli
from hf_mmbalance.embedding.build import fitted_frames
from hf_mmbalance.training.arguments import ModelArguments, parse_arguments
from hf_mmbalance.training.build import build_model_and_processor, spec_augment

from .tiny_runs import (
    TINY,
    TOWERS,
    ListedClips,
    random_splits,
    tiny_clips,
    tiny_processor,
    tiny_run,
)


def test_class_weights_are_of_inverse_frequency_with_mean_one(tmp_path):
    clips = random_splits()
    clips.splits["train"] = ListedClips("train", [clips["train"].media(0, None)] * 6, [0, 0, 0, 1, 1, 2])
    arguments = ModelArguments(audio_config=TOWERS[1], vision_config=TOWERS[3], class_weighted_loss=True)
    model, _ = build_model_and_processor(arguments, clips, seed=0)
    assert model.config.class_weights == pytest.approx([6 / 9, 1.0, 2.0])
    assert sum(model.config.class_weights[label] for label in [0, 0, 0, 1, 1, 2]) / 6 == pytest.approx(1.0)
    clips.splits["train"].labels = [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="class 'happy' has no train clip"):
        build_model_and_processor(arguments, clips, seed=0)


MY_HEAD = """
from hf_mmbalance.model.fusion_mmbalance import FusionHead, FusionOutput
import torch


class MyHead(FusionHead):
    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, modality_logits, modality_mask, features=None):
        terms = self.scale * modality_logits.log_softmax(-1) * modality_mask.unsqueeze(-1)
        return FusionOutput(logits=terms.sum(1), modality_contributions=terms)
"""


def test_a_head_of_the_users_own(tmp_path, capsys):
    """It learns with the towers."""
    file = tmp_path / "my_head.py"
    file.write_text(MY_HEAD)
    results = tiny_run(tmp_path / "run", "--fusion", f"{file}:MyHead", "--num_train_epochs", "1")
    assert results["fusion"] == "my_head:MyHead" and results["weights"] is None
    assert (tmp_path / "run" / file.name).exists()
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert saved["fusion.scale"] != 1.0
    loaded = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path / "run", trust_remote_code=True)
    assert torch.equal(loaded.fusion.scale, saved["fusion.scale"])
    for words in (["predict", "a.wav", "--model"], ["robustness"], ["train", *TINY[4:], "--model_name_or_path"]):
        assert cli.main([*words, str(tmp_path / "run")]) == 2
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "read its my_head.py, and if you trust it pass --trust_remote_code" in said


def test_frozen_towers_stay_as_they_are(tmp_path):
    folder = tmp_path / "run"
    tiny_run(folder, "--trainable_layers", "0", "--num_train_epochs", "1")
    arguments = parse_arguments([*TINY])
    fresh, _ = build_model_and_processor(arguments.model, tiny_clips(), seed=0)
    saved, start = load_file(folder / "model.safetensors"), fresh.state_dict()
    moved = {name.split(".")[0] for name in saved if not torch.equal(saved[name], start[name])}
    assert moved - {"fusion"} == {"unimodal_heads"}


def test_the_spectrogram_length_is_fitted_to_the_train_clips_and_to_those_without_a_label():
    clips = random_splits()  # .16 s
    assert fitted_frames(clips) == 16
    clips.splits["train"].kept[5] = (np.zeros(16_000 + 1, dtype=np.float32), None)
    assert fitted_frames(clips) == 112  # 1.00006 s: 101 frames, in steps of 16
    clips.splits["train"].kept = [(None, frames) for _, frames in clips.splits["train"].kept]
    assert fitted_frames(clips) == 16
    clips.unlabelled = ListedClips("unlabelled", [(np.zeros(8_000, dtype=np.float32), None)], [0])
    assert fitted_frames(clips) == 64


def test_masks_are_made_only_when_asked_for():
    processor = tiny_processor()
    assert spec_augment(ModelArguments(), processor, seed=3) is None
    augment = spec_augment(ModelArguments(time_masks=2, time_mask_width=5), processor, seed=3)
    assert dataclasses.astuple(augment) == (0, 8, 2, 5, 3)
    processor.feature_extractor = Wav2Vec2FeatureExtractor()
    with pytest.raises(ValueError, match="time_masks are for AST, and this audio tower is a different one: remove"):
        spec_augment(ModelArguments(time_masks=2), processor, seed=3)


def test_input_statistics(tmp_path):
    arguments = ModelArguments(
        audio_config=TOWERS[1], vision_config=TOWERS[3], audio_mean=-1.5, audio_std=2.5, image_mean=[0.1, 0.2, 0.3]
    )
    _, processor = build_model_and_processor(arguments, random_splits(), seed=0)
    assert (processor.feature_extractor.mean, processor.feature_extractor.std) == (-1.5, 2.5)
    assert processor.image_processor.image_mean == [0.1, 0.2, 0.3]
    assert processor.image_processor.image_std == (0.5, 0.5, 0.5)
    assert processor.spec.frames == 2

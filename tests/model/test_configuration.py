"""The config: defaults, round trip, and an error for every invalid value that names field and remedy."""

from __future__ import annotations

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import ASTConfig, AutoConfig, ViTConfig, Wav2Vec2Config

from hf_mmbalance import MMBalanceConfig

from .tiny import tiny_config


def test_defaults_are_ast_and_vit():
    config = MMBalanceConfig()
    assert isinstance(config.audio_config, ASTConfig) and isinstance(config.vision_config, ViTConfig)
    assert config.modalities == ["audio", "vision"] and config.fusion == "adaptive"
    assert config.num_labels == 2


def test_backbone_configs_may_be_dicts_or_configs_of_any_kind():
    config = MMBalanceConfig(audio_config={"model_type": "wav2vec2", "hidden_size": 32}, vision_config=ViTConfig())
    assert isinstance(config.audio_config, Wav2Vec2Config) and config.audio_config.hidden_size == 32


def test_names_of_classes_are_kept_in_both_directions():
    numbers = {"calm": 0, "angry": 1, "happy": 2, "sad": 3}
    assert tiny_config().label2id == numbers
    assert tiny_config(label2id={"calm": 3, "angry": 2, "happy": 1, "sad": 0}).label2id == numbers
    only = MMBalanceConfig(label2id=numbers)
    assert only.id2label == {0: "calm", 1: "angry", 2: "happy", 3: "sad"} and only.label2id == numbers


def test_round_trip(tmp_path):
    config = tiny_config(
        fusion_options={"calibration": "vector"},
        modality_dropout=[0.1, 0.25],
        class_weights=[1.0, 2.0, 0.5, 0.5],
        frame_pooling="temporal",
        unimodal_loss_weight=0.5,
    )
    config.save_pretrained(tmp_path)
    again = MMBalanceConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.id2label == {0: "calm", 1: "angry", 2: "happy", 3: "sad"}
    assert again.audio_config.max_length == 24 and again.vision_config.patch_size == 8
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (
        saved["model_type"] == "mmbalance"
        and saved["auto_map"]["AutoConfig"] == "configuration_mmbalance.MMBalanceConfig"
    )


def test_fields_given_to_from_pretrained_are_checked_and_agree(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    names = {0: "a", 1: "b", 2: "c", 3: "d"}
    numbers = {name: number for number, name in names.items()}
    for given in ({"id2label": names}, {"label2id": numbers}, {"id2label": {str(k): v for k, v in names.items()}}):
        for load in (MMBalanceConfig.from_pretrained, AutoConfig.from_pretrained):
            config, unused = load(tmp_path, **given, return_unused_kwargs=True)
            assert (config.id2label, config.label2id, unused) == (names, numbers, {})
    config = MMBalanceConfig.from_pretrained(tmp_path, audio_config={"hidden_dropout_prob": 0.5})
    assert config.audio_config.hidden_dropout_prob == 0.5 and config.audio_config.max_length == 24
    for given, message in (
        ({"frame_pooling": "max"}, "frame_pooling='max' is unknown"),
        ({"id2label": {0: "a"}}, "name at least 2 classes"),
    ):
        with pytest.raises(StrictDataclassError, match=message):
            MMBalanceConfig.from_pretrained(tmp_path, **given)


def source(classes: list[list[int]]) -> dict:
    """Three source labels under classes by index."""
    return {"labels": ["a", "b", "c"], "classes": classes, "layer_norm_eps": None, "layers": None}


def test_classes_that_a_modality_knows():
    assert tiny_config().known_classes == [[True] * 4] * 2
    config = tiny_config(source_labels={"vision": source([[0], [], [1, 2], []])})
    assert config.known_classes == [[True] * 4, [True, False, True, False]]


WRONG = [
    (
        {"modalities": ["vision", "audio"]},
        r"modalities=\['vision', 'audio'\]: this model has the towers \['audio', 'vision'\]",
    ),
    (
        {"modality_dropout": [0.1]},
        r"modality_dropout=\[0.1\]: give one rate in \[0, 1\) for each of \['audio', 'vision'\]",
    ),
    ({"modality_dropout": [0.1, 1.0]}, r"modality_dropout=\[0.1, 1.0\]: give one rate in \[0, 1\)"),
    ({"modality_dropout": [-0.1, 0.0]}, r"modality_dropout=\[-0.1, 0.0\]: give one rate in \[0, 1\)"),
    ({"unimodal_head": "cosine", "frame_pooling": "log_probs"}, "'log_probs' needs linear heads"),
    ({"source_labels": {"sound": {}}}, r"source_labels\['sound'\]: the modalities are \['audio', 'vision'\]"),
    ({"source_labels": {"audio": {"labels": ["a"]}}}, "give 'labels', 'classes', 'layer_norm_eps' and 'layers'"),
    ({"source_labels": {"audio": source([[0], [1]])}}, "'classes' has 2 entries for 4 classes"),
    ({"source_labels": {"audio": source([[0], [1], [], [3]])}}, "must hold indices of its 3 labels, from 0"),
    ({"source_labels": {"audio": source([[0], [1], [], [0]])}}, r"one class only, but \['a'\] occur twice"),
    ({"source_labels": {"audio": source([[0, 1], [], [], []])}}, "mapped to 1 of the 4 classes; at least 2"),
    ({"frame_pooling": "max"}, r"frame_pooling='max' is unknown: choose one of \('mean', 'temporal', 'log_probs'\)"),
    ({"unimodal_head": "mlp"}, r"unimodal_head='mlp' is unknown: choose one of \('linear', 'cosine'\)"),
    ({"max_frames": 0}, "max_frames=0 must be at least 1"),
    ({"temporal_heads": 0}, "temporal_heads=0 must be at least 1"),
    ({"cosine_scale": 0.0}, "cosine_scale=0.0 must be above 0"),
    ({"classifier_dropout": 1.0}, r"classifier_dropout=1.0 must lie in \[0, 1\)"),
    ({"label_smoothing": -0.1}, r"label_smoothing=-0.1 must lie in \[0, 1\)"),
    ({"untrained_modalities": ["touch"]}, r"untrained_modalities=\['touch'\]: name some of"),
    ({"untrained_modalities": ["audio", "vision"]}, "name some of .*, but not all"),
    ({"unimodal_loss_weight": -1.0}, "unimodal_loss_weight=-1.0 must not be negative"),
    ({"fused_loss_weight": -1.0}, "fused_loss_weight=-1.0 must not be negative"),
    ({"class_weights": [1.0, 1.0]}, "class_weights: give 4 positive numbers, one for each class"),
    ({"class_weights": [1.0, 1.0, 0.0, 1.0]}, "class_weights: give 4 positive numbers"),
    ({"class_weights": [1.0, float("nan"), 1.0, 1.0]}, "class_weights: give 4 positive numbers"),
    ({"id2label": {0: "calm"}}, "id2label: name at least 2 classes"),
    ({"id2label": {0: "calm", 2: "angry"}}, "id2label: number the classes from 0 to 1"),
    ({"id2label": {0: "calm", 1: "calm"}}, "id2label: two classes have the same name"),
    ({"fusion": 3}, "fusion"),
    ({"max_frames": "many"}, "max_frames"),
]


@pytest.mark.parametrize(
    ("options", "message"), WRONG, ids=["-".join(f"{name}={value}" for name, value in w.items()) for w, _ in WRONG]
)
def test_invalid_values_are_refused(options, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**options)


def test_a_model_of_newer_code_is_refused_and_the_format_is_saved(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["format_version"] == 1
    (tmp_path / "config.json").write_text(json.dumps({**saved, "format_version": 2}))
    with pytest.raises(StrictDataclassError, match="newer hf_mmbalance than this one, which supports 1: pip"):
        MMBalanceConfig.from_pretrained(tmp_path)
    del saved["format_version"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert MMBalanceConfig.from_pretrained(tmp_path).format_version == 1


@pytest.mark.parametrize(
    "name", ["../evil:Head", "/tmp/evil:Head", "sub/evil:Head", "evil.py:Head", "a:b:c", "a:../b", ""]
)
def test_fusion_names_with_a_path_are_refused(name):
    with pytest.raises(StrictDataclassError, match="is not a valid name: give a registered one, or 'file:ClassName'"):
        tiny_config(fusion=name)

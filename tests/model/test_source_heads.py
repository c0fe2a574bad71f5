"""Heads taken over from classifiers: their own logits, labels mapped to classes, saving, refusals."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    BeitConfig,
    BeitForImageClassification,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    HubertConfig,
    HubertForSequenceClassification,
    PreTrainedModel,
    SiglipConfig,
    SiglipForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WavLMConfig,
    WavLMForSequenceClassification,
    WhisperConfig,
    WhisperForAudioClassification,
)
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from hf_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.source_heads_mmbalance import SourceHead, features_for, random_input, source_head_of
from hf_mmbalance.model.towers_mmbalance import tower_features, tower_of

from .test_remote_code import _Case, _check, _clips
from .tiny import AUDIO, CLASSES, SMALL, VISION, WHISPER, tiny_inputs, tiny_model, tiny_processor


compose = MMBalanceForAudioVisualClassification.from_backbones
SOUNDS = ["ang", "hap", "sad", "fury", "noise"]
FACES = ["Calm", "Angry", "Happy", "Sad"]
#: "calm" is unknown to the voice; "noise" counts for no class.
VOICE_MAP = {"angry": ["ang", "fury"], "happy": ["hap"], "sad": ["sad"]}
FACE_MAP = {"calm": ["Calm"], "angry": ["Angry"], "happy": ["Happy"], "sad": ["Sad"]}
AST = {key: value for key, value in AUDIO.items() if key != "model_type"}
VIT = {key: value for key, value in VISION.items() if key != "model_type"}
RAW = {
    **SMALL,
    **{"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "classifier_proj_size": 6},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
}


def labelled(names: list[str]) -> dict:
    return {"id2label": dict(enumerate(names)), "label2id": {name: k for k, name in enumerate(names)}}


def randomised(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def voice() -> PreTrainedModel:
    torch.manual_seed(0)
    return randomised(ASTForAudioClassification(ASTConfig(**AST, **labelled(SOUNDS))))


def face() -> PreTrainedModel:
    torch.manual_seed(1)
    return randomised(ViTForImageClassification(ViTConfig(**VIT, **labelled(FACES))))


def fused_pair(**options) -> MMBalanceForAudioVisualClassification:
    maps = {"audio": VOICE_MAP, "vision": FACE_MAP}
    return compose(voice(), face(), id2label=CLASSES, label_maps=maps, **options).eval()


# -- the head is the classifier's -------------------------------------------------------------------------------


CLASSIFIERS = [
    (ASTForAudioClassification, ASTConfig(**AST, **labelled(SOUNDS))),
    (Wav2Vec2ForSequenceClassification, Wav2Vec2Config(**RAW, **labelled(SOUNDS))),
    (HubertForSequenceClassification, HubertConfig(**RAW, **labelled(SOUNDS))),
    (HubertForSequenceClassification, HubertConfig(**RAW, use_weighted_layer_sum=True, **labelled(SOUNDS))),
    (WavLMForSequenceClassification, WavLMConfig(**RAW, **labelled(SOUNDS))),
    (WhisperForAudioClassification, WhisperConfig(**WHISPER, **labelled(SOUNDS))),
    (WhisperForAudioClassification, WhisperConfig(**WHISPER, use_weighted_layer_sum=True, **labelled(SOUNDS))),
    (ViTForImageClassification, ViTConfig(**VIT, **labelled(FACES))),
    (DeiTForImageClassification, DeiTConfig(**VIT, **labelled(FACES))),
    (BeitForImageClassification, BeitConfig(**VIT, **labelled(FACES))),
    (SiglipForImageClassification, SiglipConfig(vision_config=dict(VIT), **labelled(FACES))),
    (
        EfficientNetForImageClassification,
        EfficientNetConfig(
            image_size=32, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128, **labelled(FACES)
        ),
    ),
    (
        ConvNextForImageClassification,
        ConvNextConfig(
            hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, image_size=16, patch_size=2, **labelled(FACES)
        ),
    ),
]


@pytest.mark.parametrize(("kind", "config"), CLASSIFIERS, ids=lambda value: getattr(value, "__name__", ""))
def test_log_probabilities_are_those_of_the_classifier(kind, config):
    classifier = randomised(kind(config), seed=1).train()
    head = source_head_of(classifier)
    assert classifier.training  # as it was given
    classifier.eval()
    inputs = random_input(classifier, clips=3)
    with torch.no_grad():
        expected = classifier(inputs).logits.log_softmax(-1)
        tower = tower_of(classifier, "vision" if classifier.main_input_name == "pixel_values" else "audio")
        features = features_for(head, tower, tower_features(tower, inputs, layer_shares=head.layer_shares)[0])
        found = head.label_log_probs(features[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.05


def test_sigmoids_are_read_as_if_exactly_one_mapped_label_were_true():
    """Bayes' rule by enumeration of all outcomes of independent labels, of which "noise" counts for no class."""
    classifier = voice()
    classifier.config.problem_type = "multi_label_classification"
    with CaptureLogger(logging.get_logger("hf_mmbalance.model.source_heads_mmbalance")) as said:
        model = compose(classifier, ViTConfig(**VIT), id2label=CLASSES, label_maps={"audio": VOICE_MAP}).eval()
    assert "ASTForAudioClassification was trained for labels that can be true together" in said.out
    features = torch.randn(3, model.unimodal_heads[0].linear.in_features)
    with torch.no_grad():
        logits = model.unimodal_heads[0].linear(model.unimodal_heads[0].norm(features)).double()
        found = model.unimodal_heads[0](features).double().softmax(-1)
    mapped = {k: name for name, labels in VOICE_MAP.items() for k, label in enumerate(SOUNDS) if label in labels}
    expected = torch.zeros(3, len(CLASSES), dtype=torch.float64)
    for outcome in itertools.product((0, 1), repeat=len(SOUNDS)):
        true = [k for k in mapped if outcome[k]]
        if len(true) == 1:
            drawn = torch.tensor(outcome, dtype=torch.bool)
            (place,) = (c for c, name in CLASSES.items() if name == mapped[true[0]])
            expected[:, place] += torch.where(drawn, logits.sigmoid(), (-logits).sigmoid()).prod(-1)
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_padded_raw_sound_is_answered_as_by_the_classifier_without_padding():
    classifier = randomised(Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**RAW, **labelled(SOUNDS))))
    model = compose(classifier, ViTConfig(**VIT), id2label=CLASSES, label_maps={"audio": VOICE_MAP}).eval()
    values, mask = torch.randn(2, 900), torch.ones(2, 900, dtype=torch.long)
    mask[1, 600:] = 0
    with torch.no_grad():
        alone = [classifier(values[:1]).logits, classifier(values[1:, :600]).logits]
        expected = torch.cat(alone).log_softmax(-1)
        found = model(input_values=values, audio_mask=mask).modality_logits[:, 0]
    torch.testing.assert_close(found[:, 2], expected[:, 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_a_weighted_sum_of_the_hidden_states_is_kept(padded, tmp_path):
    """As the speech models of SUPERB have; the weights are not equal, and survive saving."""
    config = HubertConfig(**RAW, use_weighted_layer_sum=True, **labelled(SOUNDS))
    classifier = randomised(HubertForSequenceClassification(config))
    assert classifier.layer_weights.std() > 0.1
    model = compose(classifier, ViTConfig(**VIT), id2label=CLASSES, label_maps={"audio": VOICE_MAP}).eval()
    model.save_pretrained(tmp_path)
    again = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path)
    values, mask = torch.randn(2, 900), torch.ones(2, 900, dtype=torch.long)
    mask[1, 600:] = 0 if padded else 1
    with torch.no_grad():
        alone = [classifier(values[:1]).logits, classifier(values[1:, : 600 if padded else 900]).logits]
        expected = torch.cat(alone).log_softmax(-1)
        for own in (model, again):
            found = own(input_values=values, audio_mask=mask).modality_logits[:, 0]
            torch.testing.assert_close(found[:, 2], expected[:, 1], atol=1e-5, rtol=1e-5)


def by_hand(log_probs: np.ndarray) -> np.ndarray:
    """Class logits of the voice: angry = ang + fury; calm is unknown."""
    p = np.exp(log_probs)
    known = np.log(np.stack([p[:, 0] + p[:, 3], p[:, 1], p[:, 2]], axis=1))
    return np.concatenate([known.min(axis=1, keepdims=True) - 20, known], axis=1)


def test_labels_add_up_to_classes_and_an_unknown_class_lies_below():
    model = fused_pair()
    inputs = tiny_inputs()
    with torch.no_grad():
        sounds = voice()(inputs["input_values"]).logits.double().log_softmax(-1).numpy()
        images = face()(inputs["pixel_values"][:, 0]).logits.log_softmax(-1)
        out = model(input_values=inputs["input_values"], pixel_values=inputs["pixel_values"][:, 0])
    np.testing.assert_allclose(out.modality_logits[:, 0].numpy(), by_hand(sounds), atol=1e-4)
    torch.testing.assert_close(out.modality_logits[:, 1], images, atol=1e-5, rtol=1e-5)
    assert model.config.known_classes == [[False, True, True, True], [True] * 4]
    assert model.fusion.class_mask.tolist() == [[0, 1, 1, 1], [1] * 4]


def test_an_impossible_label_keeps_values_and_gradients_finite():
    head = SourceHead(2, 3, [[0, 1], [2], []])
    log_probs = torch.tensor([[-300.0, -400.0, 0.0], [0.0, -1000.0, -900.0]], requires_grad=True)
    logits = head.class_logits(log_probs)
    torch.testing.assert_close(logits, torch.tensor([[-300.0, 0.0, -320.0], [0.0, -900.0, -920.0]]))
    logits.sum().backward()
    assert torch.isfinite(log_probs.grad).all()


def test_the_unknown_class_keeps_its_prior_in_the_decision():
    """By hand: uniform prior over 4 classes, the voice by itself and both together."""
    model, inputs = fused_pair(), tiny_inputs()
    with torch.no_grad():
        out = model(**inputs)
        only = model(input_values=inputs["input_values"])
    z = out.modality_logits.double().numpy()
    within = np.exp(z[:, 0, 1:])
    heard = np.concatenate([np.full((4, 1), 0.25), 0.75 * within / within.sum(1, keepdims=True)], axis=1)
    np.testing.assert_allclose(only.logits.softmax(-1).numpy(), heard, atol=1e-5)
    product = heard * np.exp(z[:, 1])
    np.testing.assert_allclose(out.logits.softmax(-1).numpy(), product / product.sum(1, keepdims=True), atol=1e-5)
    assert (out.modality_contributions[:, 0, 0] == 0).all() and (out.modality_weights[:, 0, 0] == 0).all()


def test_a_modality_does_not_learn_from_a_class_that_it_does_not_know():
    model, inputs = fused_pair().train(), tiny_inputs()
    known = model(**inputs, labels=torch.tensor([1, 2, 3, 1])).unimodal_loss
    out = model(**inputs, labels=torch.tensor([0, 2, 3, 1]))
    assert known < 20 and out.unimodal_loss < 20
    z = torch.log_softmax(out.modality_logits, -1)
    expected = -(z[0, 1, 0] + z[1, :, 2].sum() + z[2, :, 3].sum() + z[3, :, 1].sum()) / 4
    torch.testing.assert_close(out.unimodal_loss, expected, atol=1e-5, rtol=1e-5)


def test_labels_of_the_same_name_count_together():
    """As the bird and the machine that ImageNet calls a crane."""
    config = ViTConfig(**VIT, id2label=dict(enumerate(["dog", "crane", "cat", "crane"])))
    classifier = randomised(ViTForImageClassification(config))
    maps = {"vision": {"calm": ["dog"], "angry": ["crane"]}}
    model = compose(voice(), classifier, id2label=CLASSES, label_maps=maps).eval()
    pixels = tiny_inputs()["pixel_values"]
    with torch.no_grad():
        probability = classifier(pixels[:, 0]).logits.softmax(-1)
        found = model(pixel_values=pixels[:, :1]).modality_logits[:, 1].exp()
    torch.testing.assert_close(
        found[:, :2], torch.stack([probability[:, 0], probability[:, 1] + probability[:, 3]], 1)
    )


# -- saving -----------------------------------------------------------------------------------------------------


def test_saved_and_loaded_again(tmp_path):
    model = fused_pair(frame_pooling="log_probs")
    model.save_pretrained(tmp_path)
    again, info = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert again.config.source_labels == model.config.source_labels
    assert torch.equal(again(**tiny_inputs()).logits, model(**tiny_inputs()).logits)
    half = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.unimodal_heads[0].class_labels.dtype == torch.bool
    torch.testing.assert_close(half(**tiny_inputs()).logits, model(**tiny_inputs()).logits, atol=0.1, rtol=0.1)


def test_loads_without_the_package(tmp_path):
    model, folder = fused_pair(frame_pooling="log_probs"), tmp_path / "saved"
    model.save_pretrained(folder)
    processor = tiny_processor(frames=None)
    processor.save_pretrained(folder)
    with torch.no_grad():
        expected = [model(**processor(**inputs, sampling_rate=22_050)).logits for inputs in _clips()]
    _check(tmp_path, _Case(folder, expected))


def test_from_saved_classifiers(tmp_path):
    voice().half().save_pretrained(tmp_path / "voice")
    face().save_pretrained(tmp_path / "face")
    maps = {"audio": VOICE_MAP, "vision": FACE_MAP}
    model = compose(tmp_path / "voice", tmp_path / "face", id2label=CLASSES, label_maps=maps).eval()
    torch.testing.assert_close(model(**tiny_inputs()).logits, fused_pair()(**tiny_inputs()).logits, atol=0.02, rtol=0)
    half = compose(tmp_path / "voice", tmp_path / "face", id2label=CLASSES, label_maps=maps, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert torch.isfinite(half(**tiny_inputs()).logits).all()


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "log_probs"])
def test_a_siglip_classifier_in_a_model(pooling, tmp_path):
    """Its head reads the mean token; the tower's pooler is not used."""
    classifier = randomised(SiglipForImageClassification(SiglipConfig(vision_config=dict(VIT), **labelled(FACES))))
    maps = {"vision": FACE_MAP}
    model = compose(voice(), classifier, id2label=CLASSES, label_maps=maps, frame_pooling=pooling).eval()
    pixels = tiny_inputs()["pixel_values"]
    expected = torch.stack([classifier(clip).logits.log_softmax(-1) for clip in pixels])  # (B, T, C)
    features = torch.stack([classifier.vision_model(clip).last_hidden_state.mean(1) for clip in pixels])
    mean = classifier.classifier(features.mean(1)).log_softmax(-1)
    found = model(pixel_values=pixels).modality_logits[:, 1].log_softmax(-1)
    theirs = mean if pooling == "mean" else expected.mean(1).log_softmax(-1)
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    again = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path)
    assert torch.equal(again(pixel_values=pixels).logits, model(pixel_values=pixels).logits)


def test_one_classifier_and_one_new_head():
    model = compose(voice(), ViTConfig(**VIT), id2label=CLASSES, label_maps={"audio": VOICE_MAP})
    assert isinstance(model.unimodal_heads[0], SourceHead) and isinstance(model.unimodal_heads[1], torch.nn.Linear)
    longer = compose(voice(), ViTConfig(**VIT), id2label=CLASSES, label_maps={"audio": VOICE_MAP}, audio_max_length=40)
    assert torch.equal(longer.unimodal_heads[0].linear.weight, model.unimodal_heads[0].linear.weight)


# -- refusals ---------------------------------------------------------------------------------------------------


def two_tokens() -> PreTrainedModel:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    return Dinov2ForImageClassification(config)


def mean_of_patches() -> PreTrainedModel:
    """Its size is not 224, and the config of the classifier itself has none."""
    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    return CLIPForImageClassification(CLIPConfig(vision_config=vision, **labelled(FACES)))


def renamed() -> PreTrainedModel:
    model = voice()
    model.config.id2label = dict(enumerate(SOUNDS[:-1]))
    return model


def nonlinear() -> PreTrainedModel:
    model = voice()
    model.classifier = torch.nn.Sequential(model.classifier.layernorm, torch.nn.Tanh(), model.classifier.dense)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            nonlinear,
            "head of ASTForAudioClassification does not reproduce its logits from its tower's feature: use its",
        ),
        (renamed, "ASTForAudioClassification has 5 outputs, but its config names 4 labels"),
        (two_tokens, "head of Dinov2ForImageClassification does not reproduce its logits from its tower's feature"),
        (
            mean_of_patches,
            "head of CLIPForImageClassification does not reproduce its logits from its tower's feature",
        ),
        (lambda: ViTModel(ViTConfig(**VIT)), "ViTModel has no classification head: remove its modality"),
        (
            lambda: ViTForImageClassification(ViTConfig(**VIT, num_labels=1)),
            r"labels \['LABEL_0'\]: a classifier needs at least two labels",
        ),
    ],
)
def test_heads_of_another_form_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        source_head_of(make())


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (
            {"audio": {"angri": ["ang"]}},
            {},
            "audio names the class 'angri', which does not exist: did you mean 'angry'",
        ),
        (
            {"audio": {"angry": ["angg"]}},
            {},
            "names the source label 'angg', which does not exist: did you mean 'ang'",
        ),
        ({"sound": VOICE_MAP}, {}, r"label_maps names \['sound'\]: the modalities are \['audio', 'vision'\]"),
        ({"audio": {"angry": ["ang"]}}, {}, "are mapped to 1 of the 4 classes; at least 2 are needed"),
        ({"audio": {"angry": ["ang"], "sad": ["ang"]}}, {}, r"counts for one class only, but \['ang'\] occur twice"),
        ({"audio": {"angry": "ang"}}, {}, r"audio needs a list for class 'angry', e.g. \['ang'\]"),
        ({"audio": VOICE_MAP}, {"fusion": "sum"}, "fusion='sum' cannot be used if a modality does not know all"),
        ({"vision": FACE_MAP}, {"fusion": "concat"}, "fusion='concat' computes its unimodal logits itself"),
        ({"vision": FACE_MAP}, {"unimodal_head": "cosine"}, "cosine heads can neither be reused from classifiers"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_label_maps_and_options_are_refused(maps, options, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        compose(voice(), face(), id2label=CLASSES, label_maps=maps, **options)


def test_a_config_or_a_backbone_has_no_head_to_take(tmp_path: Path):
    with pytest.raises(ValueError, match="label_maps names vision, but its backbone is a config"):
        compose(voice(), ViTConfig(**VIT), id2label=CLASSES, label_maps={"vision": FACE_MAP})
    ViTModel(ViTConfig(**VIT, **labelled(FACES)), add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights \['classifier.bias', 'classifier.weight'\] of the head"):
        compose(voice(), tmp_path, id2label=CLASSES, label_maps={"vision": FACE_MAP})
    BertModel(BertConfig(**SMALL, vocab_size=20)).save_pretrained(tmp_path / "text")
    with pytest.raises(
        ValueError, match="transformers has no vision classifier of type 'bert': use its backbone only"
    ):
        compose(voice(), tmp_path / "text", id2label=CLASSES, label_maps={"vision": FACE_MAP})
    with pytest.raises(ValueError, match="vision classifier '/no/such/folder' cannot be loaded"):
        compose(voice(), "/no/such/folder", id2label=CLASSES, label_maps={"vision": FACE_MAP})


# -- features in place of inputs --------------------------------------------------------------------------------


MASKS = {
    "modality_mask": torch.tensor([[True, True], [True, False], [False, True], [True, True]]),
    "frame_mask": torch.tensor([[True] * 3, [True] * 3, [True, True, False], [True, False, False]]),
}


@pytest.mark.parametrize("pooling", ["mean", "temporal", "log_probs"])
@pytest.mark.parametrize("heads", ["linear", "classifiers"])
def test_features_give_the_logits_of_the_inputs(heads, pooling):
    model = (fused_pair if heads == "classifiers" else tiny_model)(frame_pooling=pooling)
    labels = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        whole = model(**tiny_inputs(), **MASKS, labels=labels)
        embedded = model.embed(**tiny_inputs(), **MASKS)
        features = [feature.clone() for feature in embedded.features]
        features[0][2], features[1][1] = torch.nan, torch.nan
        again = model(
            modality_features=tuple(features), modality_mask=embedded.modality_mask, labels=labels,
            frame_log_probs=embedded.frame_log_probs,
        )  # fmt: skip
    assert (embedded.frame_log_probs is None) == (heads == "linear" and pooling != "log_probs")
    for name in ("loss", "logits", "modality_logits", "modality_contributions", "modality_mask"):
        torch.testing.assert_close(again[name], whole[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", ["gated", "film", "mean_prob", "adaptive"])
def test_features_of_one_modality(fusion):
    model = tiny_model(fusion=fusion)
    audio = tiny_inputs()["input_values"]
    features = model.embed(input_values=audio).features
    expected = model(input_values=audio).logits
    torch.testing.assert_close(model(modality_features=(features[0], None)).logits, expected)


def test_sound_without_log_probabilities_of_frames():
    model = tiny_model(frame_pooling="log_probs")
    audio = tiny_inputs()["input_values"]
    features = model.embed(input_values=audio).features
    expected = model(input_values=audio).logits
    torch.testing.assert_close(model(modality_features=(features[0], None)).logits, expected)


def test_features_without_tokens_count_as_typical():
    """The typicality of tokens says nothing about pooled features."""
    model = tiny_model(fusion_options={"typicality": [4, 4]})
    with torch.no_grad():
        for name, buffer in model.fusion.named_buffers():
            if name.startswith(("typicality_basis", "typicality_precision", "typicality_rest")):
                buffer.uniform_(0.5, 1.0)
        model.fusion.typicality_slope.copy_(torch.tensor([-0.3, -0.1]))
        embedded = model.embed(**tiny_inputs())
        found = model(modality_features=embedded.features)
        typical = model.decide(embedded.features, embedded.modality_mask)[1]
        told = model.decide(embedded.features, embedded.modality_mask, embedded.tokens)[1]
    assert found.modality_tokens is None
    torch.testing.assert_close(found.logits, typical.logits)
    assert (told.logits - typical.logits).abs().max() > 1e-3


def test_log_probabilities_are_averaged_over_the_frames_present():
    model, inputs = fused_pair(frame_pooling="log_probs"), tiny_inputs()
    with torch.no_grad():
        frames = face()(inputs["pixel_values"].flatten(0, 1)).logits.log_softmax(-1).view(4, 3, 4)
        out = model(**inputs, **MASKS)
        plain = fused_pair()(**inputs, **MASKS)
    expected = torch.stack([frames[0].mean(0), frames[2, :2].mean(0), frames[3, 0]])
    torch.testing.assert_close(out.modality_logits[[0, 2, 3], 1], expected, atol=1e-5, rtol=1e-5)
    assert (out.modality_logits[0, 1] - plain.modality_logits[0, 1]).abs().max() > 1e-3
    torch.testing.assert_close(out.modality_features[1], plain.modality_features[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modality_features": (torch.zeros(2, 9), None)}, r"audio features have shape \(2, 9\), expected \(B, 16\)"),
        ({"modality_features": (None, torch.zeros(2, 16))}, "needs frame_log_probs: pass those of embed"),
        ({"modality_features": (None, None)}, "no modality at all"),
        ({"modality_features": (torch.zeros(2, 16),)}, "modality_features has 1 entries: give one for each of"),
        ({"modality_features": (torch.zeros(2, 16), torch.zeros(3, 16))}, r"have \[2, 3\] clips: give the same"),
        (
            {"modality_features": (torch.zeros(2, 16), None), "modality_tokens": (None, torch.zeros(2, 16))},
            "modality_tokens must have the same modalities as modality_features",
        ),
        (
            {"modality_features": (None, torch.zeros(2, 16)), "frame_log_probs": torch.zeros(2, 3)},
            r"frame_log_probs has shape \(2, 3\), expected \(2, 4\)",
        ),
        (
            {"modality_features": (torch.zeros(4, 16), None), **tiny_inputs()},
            "replace input_values and pixel_values: pass one of the two",
        ),
    ],
)
def test_features_that_cannot_be_used_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(frame_pooling="log_probs")(**arguments)

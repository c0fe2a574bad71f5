"""Models composed from backbones: every kind, every form of argument, and refused backbones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    ASTModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    Data2VecAudioConfig,
    Dinov2Config,
    HubertConfig,
    UniSpeechConfig,
    UniSpeechSatConfig,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
)

from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.model.towers_mmbalance import fit_ast_positions, shortest_sound

from .tiny import AUDIO, CLASSES, SMALL, VISION, tiny_inputs


compose = MMBalanceForAudioVisualClassification.from_backbones
AST = ASTConfig(**{key: value for key, value in AUDIO.items() if key != "model_type"})
VIT = ViTConfig(**{key: value for key, value in VISION.items() if key != "model_type"})
BERT = BertConfig(**SMALL, vocab_size=20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An AST and a ViT saved in half precision, as many Hub checkpoints are."""
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    ast = ASTModel(AST)
    torch.nn.init.normal_(ast.embeddings.position_embeddings)  # new ones are zeros
    ast.half().save_pretrained(folder / "ast")
    ViTModel(VIT, add_pooling_layer=False).half().save_pretrained(folder / "vit")
    return folder / "ast", folder / "vit"


def _same(tower, loaded):
    state = loaded.state_dict()
    return all(torch.equal(value, state[key].float()) for key, value in tower.state_dict().items())


def test_half_precision_folders_are_loaded_in_float32(folders, tmp_path):
    model = compose(*folders, id2label=CLASSES)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert _same(model.audio_model, ASTModel.from_pretrained(folders[0]))
    assert _same(model.vision_model, ViTModel.from_pretrained(folders[1], add_pooling_layer=False))
    assert model.config.id2label == CLASSES and model.config.label2id["angry"] == 1
    model.save_pretrained(tmp_path)
    again = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert torch.equal(again(**tiny_inputs()).logits, model.eval()(**tiny_inputs()).logits)


def test_dtype_of_all_weights(folders):
    model = compose(*folders, id2label=CLASSES, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_from_configs_and_from_loaded_models():
    new = compose(AST, VIT, id2label=CLASSES, fusion="sum", modality_dropout=[0.1, 0.2])
    assert new.config.modality_dropout == [0.1, 0.2]
    classifier, vit = ASTForAudioClassification(AST), ViTModel(VIT)
    model = compose(classifier, vit, id2label=CLASSES)
    assert _same(model.audio_model, classifier.audio_spectrogram_transformer) and _same(model.vision_model, vit)


@pytest.mark.parametrize("length", [12, 24, 40])
def test_audio_max_length(folders, length):
    model = compose(*folders, id2label=CLASSES, audio_max_length=length)
    assert model.config.audio_config.max_length == length
    inputs = tiny_inputs()
    inputs["input_values"] = torch.randn(4, length, 16)
    assert torch.isfinite(model(**inputs).logits).all()
    stored = ASTModel.from_pretrained(folders[0], dtype=torch.float32).state_dict()
    name = "embeddings.position_embeddings"
    stored[name] = fit_ast_positions(stored[name], AST, model.audio_model.config)
    assert all(torch.equal(value, stored[key]) for key, value in model.audio_model.state_dict().items())


def test_trainable_layers(folders):
    model = compose(*folders, id2label=CLASSES, trainable_layers=1)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen and all(".layers.0." in name or ".embeddings." in name for name in frozen)
    model = compose(*folders, id2label=CLASSES, trainable_layers=0)
    trainable = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"unimodal_heads"}  # the decision layer is fitted
    model(**tiny_inputs(), labels=torch.tensor([0, 1, 2, 3])).loss.backward()


@pytest.mark.parametrize("fusion", ["adaptive", "concat"])
@pytest.mark.parametrize(
    "vision",
    [
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8),
        ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, image_size=16, patch_size=2),
    ],
    ids=["dinov2", "convnext"],
)
def test_other_backbones(vision, fusion, tmp_path):
    """Raw sound into Wav2Vec2; towers of different widths."""
    audio = Wav2Vec2Config(
        **{**SMALL, "hidden_size": 20, "num_attention_heads": 2},
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    model = compose(audio, vision, id2label=CLASSES, fusion=fusion, frame_pooling="temporal").eval()
    inputs = {"input_values": torch.randn(2, 800), "pixel_values": torch.randn(2, 3, 3, 16, 16)}
    mask = torch.tensor([[True, True], [False, True]])
    out = model(**inputs, modality_mask=mask, labels=torch.tensor([0, 1]))
    out.loss.backward()
    width = vision.hidden_sizes[-1] if hasattr(vision, "hidden_sizes") else vision.hidden_size
    assert [feature.shape[1] for feature in out.modality_features] == [20, width]
    torch.testing.assert_close(model(pixel_values=inputs["pixel_values"][1:]).logits, out.logits[1:])
    model.save_pretrained(tmp_path)
    again = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


RAW = {
    **{**SMALL, "hidden_size": 16, "num_attention_heads": 2},
    **{"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "feat_extract_norm": "layer"},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "do_stable_layer_norm": True},
}


RAW_TOWERS = {
    "wav2vec2": Wav2Vec2Config(**RAW),
    "hubert": HubertConfig(**RAW),
    "wavlm": WavLMConfig(**RAW),
    "unispeech": UniSpeechConfig(**RAW),
    "unispeech-sat": UniSpeechSatConfig(**RAW),
    # A norm, or a convolution after a norm, over time: these run over clips of one length at a time.
    "wav2vec2-base": Wav2Vec2Config(**{**RAW, "feat_extract_norm": "group", "do_stable_layer_norm": False}),
    "hubert with batch norm": HubertConfig(**RAW, conv_pos_batch_norm=True),
    "data2vec-audio": Data2VecAudioConfig(**{**RAW, "conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2}),
}


@pytest.mark.parametrize("tower", RAW_TOWERS)
def test_padding_of_raw_sound_changes_nothing(tower):
    """A short clip gives the same decision by itself and padded in a batch with a longer and a silent one."""
    torch.manual_seed(0)
    model = compose(RAW_TOWERS[tower], VIT, id2label=CLASSES).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    extractor = Wav2Vec2FeatureExtractor()
    processor = MMBalanceProcessor(extractor, ViTImageProcessorPil(size={"height": 16, "width": 16}))
    rng = np.random.default_rng(0)
    short, long = rng.normal(size=700).astype("float32"), rng.normal(size=1600).astype("float32")
    frames = [list(rng.integers(0, 255, (2, 16, 16, 3), dtype="uint8")) for _ in range(3)]
    batch = processor(audio=[short, None, long], frames=frames, sampling_rate=16_000)
    assert batch["audio_mask"].sum(1).tolist() == [700, 0, 1600]
    together = model(**batch)
    assert torch.isfinite(together.logits).all()
    alone = model(**processor(audio=short, frames=frames[0], sampling_rate=16_000))
    torch.testing.assert_close(together.logits[:1], alone.logits, atol=1e-5, rtol=1e-5)
    unmasked = model(**{name: value for name, value in batch.items() if name != "audio_mask"})
    assert (unmasked.modality_logits[0, 0] - alone.modality_logits[0, 0]).abs().max() > 1e-4
    silent = model(pixel_values=batch["pixel_values"][1:2])
    torch.testing.assert_close(together.logits[1:2], silent.logits, atol=1e-5, rtol=1e-5)
    loss = model.train()(**batch, labels=torch.tensor([0, 1, 2])).loss  # one pass over the padded batch
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("tower", ["wav2vec2", "wav2vec2-base"])
def test_silence_follows_sound_that_is_shorter_than_the_convolutions_reach(tower):
    """10 + 5 (3 - 1) = 20 samples give one token."""
    assert shortest_sound(RAW_TOWERS[tower]) == 20 and shortest_sound(AST) == 1
    model = compose(RAW_TOWERS[tower], VIT, id2label=CLASSES).eval()
    sound = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    sound[0, 7:] = 0.0
    mask = (torch.arange(50) < torch.tensor([[7], [50]])).long()
    with torch.no_grad():
        expected = model(input_values=sound[:1, :20]).modality_logits[0]
        alone = model(input_values=sound[:1, :7], audio_mask=mask[:1, :7]).modality_logits[0]
        unmasked = model(input_values=sound[:1, :7]).modality_logits[0]
        together = model(input_values=sound, audio_mask=mask).modality_logits[0]
    for found in (alone, unmasked, together):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_vision_part_of_a_model_for_images_and_text():
    sizes = {"vision_config": {**SMALL, "image_size": 16, "patch_size": 8}, "text_config": {**SMALL, "vocab_size": 20}}
    clip = CLIPModel(CLIPConfig(**sizes, projection_dim=8))
    model = compose(AST, clip, id2label=CLASSES).eval()
    pixels = torch.randn(2, 1, 3, 16, 16)
    with torch.no_grad():
        found = model(pixel_values=pixels).modality_features[1]
        torch.testing.assert_close(found, clip.eval().vision_model(pixels[:, 0]).pooler_output)


def test_an_audio_mask_that_cannot_be_used_is_refused():
    model = compose(AST, VIT, id2label=CLASSES).eval()
    spectrograms = torch.zeros(1, AST.max_length, AST.num_mel_bins)
    with pytest.raises(ValueError, match="'audio-spectrogram-transformer' does not use a mask: remove audio_mask"):
        model(input_values=spectrograms, audio_mask=torch.ones(1, AST.max_length))
    raw = compose(Wav2Vec2Config(**RAW), VIT, id2label=CLASSES).eval()
    with pytest.raises(ValueError, match=r"audio_mask has shape \(1, 7\), expected \(1, 700\)"):
        raw(input_values=torch.zeros(1, 700), audio_mask=torch.ones(1, 7))


@pytest.mark.parametrize(
    ("audio", "vision", "options", "message"),
    [
        (AST, VIT, {"fusion": "adaptiv"}, "fusion='adaptiv' is unknown: choose one of adaptive, concat"),
        (
            AST,
            VIT,
            {"modality_dropuot": [0, 0]},
            "unknown option 'modality_dropuot': did you mean 'modality_dropout'?",
        ),
        (AST, VIT, {"zzz": 1}, "unknown option 'zzz'$"),
        (BertModel(BERT), VIT, {}, "audio backbone BertModel accepts input_ids, not input_values: it cannot be used"),
        (BERT, VIT, {}, "audio backbone BertModel accepts input_ids, not input_values"),
        (VIT, VIT, {}, "audio backbone ViTModel accepts pixel_values, not input_values"),
        (AST, AST, {}, "vision backbone ASTModel accepts input_values, not pixel_values"),
        ("/no/such/folder", VIT, {}, "audio backbone '/no/such/folder' cannot be loaded"),
        (AST, Path("/no/such/folder"), {}, "vision backbone '/no/such/folder' cannot be loaded"),
        (AST, VIT, {"audio_max_length": 3}, "audio_max_length=3 is shorter than one patch of 4 frames"),
        (
            Wav2Vec2Config(**SMALL),
            VIT,
            {"audio_max_length": 99},
            "audio_max_length is for AST backbones, not for 'wav2",
        ),
        (AST, VIT, {"trainable_layers": 3}, "trainable_layers=3: give 'all' or a number from 0 to 2"),
        (AST, VIT, {"fusion_options": {"gates": "class"}}, "fusion='adaptive' does not accept fusion_options="),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, (str, dict)) else "",
)
def test_unusable_backbones_and_options_are_refused(audio, vision, options, message):
    with pytest.raises(ValueError, match=message):
        compose(audio, vision, id2label=CLASSES, **options)


def test_classes_may_be_numbered_by_strings_as_in_json():
    names = [f"class {k}" for k in range(11)]
    config = ASTConfig(**AST.to_diff_dict() | {"id2label": dict(enumerate(names))})
    classifier = ASTForAudioClassification(config)
    maps = {"audio": {name: [name] for name in names}}
    model = compose(classifier, VIT, id2label={str(k): name for k, name in enumerate(names)}, label_maps=maps)
    assert list(model.config.id2label.items()) == list(enumerate(names))
    assert model.config.source_labels["audio"]["classes"] == [[k] for k in range(11)]


@pytest.mark.parametrize("classes", [["calm", "angry"], {"calm": 0, "angry": 1}, None])
def test_classes_that_are_not_numbered_are_refused(classes):
    with pytest.raises(ValueError, match="id2label=.*: map every class number to its name, e.g. {0: 'calm'"):
        compose(AST, VIT, id2label=classes)


def test_a_missing_fusion_file_is_refused():
    with pytest.raises(FileNotFoundError, match="fusion head 'no/head.py:Mine': file no/head.py does not exist"):
        compose(AST, VIT, id2label=CLASSES, fusion="no/head.py:Mine")


def test_real_weights(real_data, tmp_path):
    """Half-precision ViT-S and the AST made from it, fitted to 3 s of sound."""
    weights = real_data.parent / "weights"
    if not weights.is_dir():
        pytest.skip(f"{weights} is not there")
    model = compose(
        weights / "ast_s14_from_vit", weights / "vit_s14", id2label=CLASSES, audio_max_length=128, trainable_layers=2
    ).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    vit, audio = model.vision_model.config, model.audio_model.config
    inputs = {
        "input_values": torch.randn(1, 128, audio.num_mel_bins),
        "pixel_values": torch.randn(1, 1, 3, vit.image_size, vit.image_size),
    }
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()
    stored = ViTModel.from_pretrained(weights / "vit_s14", add_pooling_layer=False)
    assert _same(model.vision_model, stored)

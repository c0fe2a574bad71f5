"""Towers: pooling of tokens and frames, cosine heads, freezing, AST position embeddings."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    ASTConfig,
    BeitConfig,
    BlipVisionConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    EfficientNetConfig,
    HGNetV2Config,
    MobileNetV2Config,
    MobileViTConfig,
    SwinConfig,
    ViTConfig,
    Wav2Vec2Config,
)
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from hf_mmbalance.model.heads_mmbalance import CosineClassifier
from hf_mmbalance.model.towers_mmbalance import (
    FramePooling,
    build_tower,
    fit_ast_positions,
    freeze_tower,
    masked_mean,
    mean_token,
    pool_tokens,
    tower_features,
    tower_options,
    tower_width,
)

from .tiny import AUDIO, SMALL, VISION


SQUARE = {"image_size": 16, "patch_size": 8}
WAV2VEC2 = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 4}
TOWERS = {
    "ast": ASTConfig(**{key: value for key, value in AUDIO.items() if key != "model_type"}),
    "vit": ViTConfig(**{key: value for key, value in VISION.items() if key != "model_type"}),
    "deit": DeiTConfig(**SMALL, **SQUARE),
    "beit": BeitConfig(**SMALL, **SQUARE),
    "dinov2": Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, **SQUARE),
    "convnext": ConvNextConfig(hidden_sizes=[4, 8, 8, 16], depths=[1, 1, 3, 1], image_size=32),
    "swin": SwinConfig(embed_dim=8, depths=[3, 1], num_heads=[1, 2], image_size=16, patch_size=2, window_size=2),
    "wav2vec2": Wav2Vec2Config(**SMALL, **WAV2VEC2, num_conv_pos_embedding_groups=2, do_stable_layer_norm=False),
}


def _pooling(pooling: str, dropout: float = 0.0) -> FramePooling:
    torch.manual_seed(0)
    layer = FramePooling(8, pooling, 6, 2, dropout).eval()
    layer.init_weights(0.5)
    return layer


def test_mean_over_frames_by_hand():
    frames = torch.randn(3, 4, 8)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    pooled = _pooling("mean")(frames, mask)
    torch.testing.assert_close(pooled, torch.stack([frames[0].mean(0), frames[1, :2].mean(0), torch.zeros(8)]))


@pytest.mark.parametrize("pooling", ["mean", "temporal"])
def test_padding_frames_change_nothing(pooling):
    layer, frames = _pooling(pooling), torch.randn(2, 3, 8)
    alone = layer(frames, torch.ones(2, 3, dtype=torch.bool))
    padded = torch.cat([frames, 40 * torch.randn(2, 3, 8)], dim=1)
    mask = torch.tensor([[True] * 3 + [False] * 3] * 2)
    torch.testing.assert_close(layer(padded, mask), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "temporal"])
def test_padding_frames_of_other_clips_changes_nothing(pooling):
    layer, frames = _pooling(pooling), torch.randn(4, 6, 8)
    counts = [6, 1, 3, 0]
    mask = torch.arange(6)[None] < torch.tensor(counts)[:, None]
    pooled = layer(frames, mask)
    for row, count in enumerate(counts[:3]):
        alone = layer(frames[row : row + 1, :count], torch.ones(1, count, dtype=torch.bool))
        torch.testing.assert_close(pooled[row : row + 1], alone, atol=1e-5, rtol=1e-5)
    assert (pooled[3] == 0).all()


def test_temporal_pooling_sees_order_and_mean_does_not():
    frames, mask = torch.randn(1, 4, 8), torch.ones(1, 4, dtype=torch.bool)
    mean, temporal = _pooling("mean"), _pooling("temporal")
    torch.testing.assert_close(mean(frames.flip(1), mask), mean(frames, mask))
    assert not torch.allclose(temporal(frames.flip(1), mask), temporal(frames, mask), atol=1e-3)


def test_temporal_pooling_refuses_more_frames_than_it_has_positions():
    with pytest.raises(ValueError, match="7 frames per clip, but config.max_frames is 6: pass fewer frames"):
        _pooling("temporal")(torch.randn(1, 7, 8), torch.ones(1, 7, dtype=torch.bool))
    _pooling("mean")(torch.randn(1, 7, 8), torch.ones(1, 7, dtype=torch.bool))


def test_temporal_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="temporal_heads=3 must divide the vision tower's width 8"):
        FramePooling(8, "temporal", 6, 3, 0.0)


def test_a_clip_without_frames_gives_finite_gradients():
    layer, frames = _pooling("temporal"), torch.randn(2, 3, 8, requires_grad=True)
    layer(frames, torch.tensor([[True] * 3, [False] * 3])).sum().backward()
    assert torch.isfinite(frames.grad).all() and (frames.grad[1] == 0).all()


def test_cosine_classifier():
    layer, features = CosineClassifier(5, 3, 10.0), torch.randn(4, 5)
    weight = layer.linear.weight
    expected = 10 * (features @ weight.T) / features.norm(dim=1)[:, None] / weight.norm(dim=1)
    torch.testing.assert_close(layer(features), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer(37 * features), layer(features), atol=1e-5, rtol=1e-5)
    assert layer.linear.bias is None
    assert torch.isfinite(layer(torch.zeros(1, 5))).all()


def test_pool_tokens_kinds():
    hidden = torch.randn(2, 5, 4)
    torch.testing.assert_close(pool_tokens(BaseModelOutput(last_hidden_state=hidden), True), hidden[:, 0])
    torch.testing.assert_close(pool_tokens(BaseModelOutput(last_hidden_state=hidden), False), hidden.mean(1))
    pooled = torch.randn(2, 4, 1, 1)
    both = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
    torch.testing.assert_close(pool_tokens(both, False), pooled.view(2, 4))
    maps = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(pool_tokens(BaseModelOutput(last_hidden_state=maps), False), maps.mean((2, 3)))


def test_mean_token_over_tokens_positions_or_those_of_a_mask():
    hidden, mask = torch.randn(2, 5, 4), torch.tensor([[True, True, False, False, False], [True] * 5])
    outputs = BaseModelOutput(last_hidden_state=hidden)
    torch.testing.assert_close(mean_token(outputs), hidden.mean(1))
    expected = torch.stack([(hidden[0, 0] + hidden[0, 1]) / 2, hidden[1].mean(0)])
    torch.testing.assert_close(mean_token(outputs, mask), expected)
    maps = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(mean_token(BaseModelOutput(last_hidden_state=maps)), maps.mean((2, 3)))
    assert masked_mean(hidden, torch.zeros(2, 5, dtype=torch.bool)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_mean_of_many_tokens_in_half_precision(dtype):
    """The sum of 1,499 tokens of 60 is beyond float16, and bfloat16 has no 1499."""
    hidden, mask = torch.full((1, 1500, 2), 60.0, dtype=dtype), torch.arange(1500)[None] < 1499
    assert masked_mean(hidden, mask).tolist() == [[60.0, 60.0]]


def _input(name: str) -> torch.Tensor:
    torch.manual_seed(2)
    if name == "wav2vec2":
        return torch.randn(2, 2000)
    return torch.randn(2, 24, 16) if name == "ast" else torch.randn(2, 3, *[32 if name == "convnext" else 16] * 2)


@pytest.mark.parametrize("name", TOWERS)
def test_every_kind_of_tower_gives_a_feature_of_its_width_from_the_whole_input(name):
    config = TOWERS[name]
    tower = build_tower(config).eval()
    values = _input(name).requires_grad_()
    features = pool_tokens(tower(values), bool(tower_options(config)))
    assert features.shape == (2, tower_width(config)) == (2, 16)
    features.square().sum().backward()
    assert (values.grad[0] != 0).float().mean() > 0.9  # a first patch taken for a CLS token would see one corner


def test_towers_that_take_the_cls_token_have_no_unused_pooler():
    assert {name for name, config in TOWERS.items() if tower_options(config)} == {"vit", "deit"}
    assert not any("pooler" in name for name, _ in build_tower(TOWERS["vit"]).named_parameters())


@pytest.mark.parametrize(
    "config",
    [
        MobileNetV2Config(image_size=32, depth_multiplier=0.1),
        EfficientNetConfig(image_size=32, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128),
        MobileViTConfig(image_size=64, hidden_sizes=[16] * 3, neck_hidden_sizes=[8] * 6 + [32], num_attention_heads=2),
    ],
    ids=lambda config: config.model_type,
)
def test_tower_width_where_the_config_does_not_give_it(config):
    tower = build_tower(config).eval()
    with torch.no_grad():
        features, _ = tower_features(tower, torch.randn(2, 3, config.image_size, config.image_size))
    assert tower_width(config) == features[0].shape[1]


def test_a_backbone_without_features_is_refused():
    message = "'hgnet_v2' is not supported: no feature can be computed from its outputs .KeyError: 'last_hidden_state'"
    with pytest.raises(ValueError, match=message):
        tower_width(HGNetV2Config())
    with pytest.raises(ValueError, match="'blip_vision_model' is not supported: AutoModel has no class for it"):
        build_tower(BlipVisionConfig())


LAYERS = {"ast": 2, "vit": 2, "deit": 2, "beit": 2, "dinov2": 2, "convnext": 6, "swin": 4, "wav2vec2": 2}
LAST = {
    "convnext": ["encoder.stages.3.", "layernorm."],
    "swin": ["encoder.layers.1.", "layernorm."],
    "wav2vec2": ["encoder.layers.1."],
    "dinov2": ["encoder.layer.1.", "layernorm."],
    "beit": ["layers.1.", "pooler."],
}


@pytest.mark.parametrize("name", TOWERS)
def test_freezing_all_but_the_last_layer(name):
    tower = build_tower(TOWERS[name])
    freeze_tower(tower, 1)
    trainable = {key for key, parameter in tower.named_parameters() if parameter.requires_grad}
    prefixes = LAST.get(name, ["layers.1.", "layernorm."])
    assert trainable == {
        key
        for key, _ in tower.named_parameters()
        if any(key.startswith(prefix) and "downsampling" not in key for prefix in prefixes)
    }
    for prefix in prefixes:
        assert any(key.startswith(prefix) for key in trainable)


@pytest.mark.parametrize("name", TOWERS)
def test_freezing_finds_every_layer(name):
    tower = build_tower(TOWERS[name])
    freeze_tower(tower, 0)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    freeze_tower(tower, "all")
    assert all(parameter.requires_grad for parameter in tower.parameters())
    counts = []
    for k in range(LAYERS[name] + 1):
        freeze_tower(tower, k)
        counts.append(sum(parameter.requires_grad for parameter in tower.parameters()))
    assert counts == sorted(set(counts))
    for wrong in (LAYERS[name] + 1, -1, "last", 1.5):
        with pytest.raises(ValueError, match=f"give 'all' or a number from 0 to {LAYERS[name]}"):
            freeze_tower(tower, wrong)


def _ast(max_length: int) -> ASTConfig:
    options = {"num_mel_bins": 16, "patch_size": 4, "frequency_stride": 4, "time_stride": 2}
    return ASTConfig(**SMALL, **options, max_length=max_length)


def test_positions_of_the_same_length_stay():
    positions = torch.randn(1, 2 + 4 * 11, 6)
    torch.testing.assert_close(fit_ast_positions(positions, _ast(24), _ast(24)), positions)


@pytest.mark.parametrize("length", [10, 24, 47, 100])
def test_positions_fit_a_new_model_and_keep_a_ramp_over_time(length):
    old, new = _ast(24), _ast(length)
    steps = (length - 4) // 2 + 1
    ramp = torch.arange(11.0)[None, :] + 100 * torch.arange(4.0)[:, None]  # time fastest, one row a frequency
    positions = torch.cat([torch.tensor([[-1.0], [-2.0]]), ramp.reshape(-1, 1)])[None].repeat(1, 1, 6)
    fitted = fit_ast_positions(positions, old, new)
    assert fitted.shape == (1, 2 + 4 * steps, 6) == (1, *build_tower(new).embeddings.position_embeddings.shape[1:2], 6)
    assert torch.equal(fitted[:, :2], positions[:, :2])
    grid = fitted[0, 2:, 0].view(4, steps)
    # Sample points of the interpolation (pixel centres), held at the ends.
    expected = ((torch.arange(steps) + 0.5) * 11 / steps - 0.5).clamp(0, 10)
    torch.testing.assert_close(grid, expected[None] + 100 * torch.arange(4.0)[:, None], atol=1e-3, rtol=1e-5)


def test_positions_keep_their_type():
    assert fit_ast_positions(torch.zeros(1, 46, 6).half(), _ast(24), _ast(30)).dtype == torch.float16

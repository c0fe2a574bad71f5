"""Towers: one feature per clip from a backbone, pooled over tokens and frames."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, ClapConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput


# These use the CLS token, since their pooler is a dense layer that most checkpoints lack. Other backbones have a
# pooler without weights, or no CLS token.
CLS_BACKBONES = ("vit", "deit", "dpt", "vivit")
# These have no pooler, and their classifiers use the CLS token.
POOLERLESS_BACKBONES = ("timesformer",)
# These process the frames of a clip together, `(B, T, 3, H, W)`.
VIDEO_BACKBONES = ("videomae", "timesformer", "vivit")
# CLAP's config holds one config for text and one for audio; the tower is built from the latter.
CLAP = "clap"
CLAP_AUDIO = "clap_audio_model"
CLAP_FIRST_NORM = "audio_encoder.batch_norm."  # built after the layers, but applied to the spectrogram
VIT_MAE = "vit_mae"
WHISPER = "whisper"
# Sinusoidal positions, which transformers never trains, by type of tower.
FIXED_PARAMETERS = {WHISPER: "embed_positions.weight", VIT_MAE: "embeddings.position_embeddings"}
# Name that transformers gives to the method that shortens a mask of raw audio as the model's convolutions do.
TOKEN_MASK = "_get_feature_vector_attention_mask"
# Towers of raw audio in which masked padding changes nothing, unless a norm runs over time.
MASKED_BACKBONES = ("hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm")


def tower_options(config: PreTrainedConfig) -> dict[str, bool]:
    """Return constructor options of a backbone: no pooling layer if the CLS token is used instead."""
    return {"add_pooling_layer": False} if config.model_type in CLS_BACKBONES else {}


def frames_per_clip(config: PreTrainedConfig) -> int | None:
    """Return the number of frames that a video backbone expects; `None` for a backbone of single images."""
    return config.num_frames if config.model_type in VIDEO_BACKBONES else None


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a backbone with random weights from its config: of Whisper only the encoder, of CLAP the audio model."""
    if config.model_type == WHISPER:
        from transformers.models.whisper.modeling_whisper import WhisperEncoder  # not exported by transformers

        return WhisperEncoder._from_config(config)
    if config.model_type == CLAP:
        from transformers import ClapAudioModel

        return ClapAudioModel._from_config(config.audio_config)
    if type(config) not in AutoModel._model_mapping and getattr(config, "auto_map", None) is None:
        raise ValueError(f"backbone {config.model_type!r} is not supported: AutoModel has no class for it")
    return AutoModel.from_config(config, **tower_options(config))


def tower_of(model: PreTrainedModel, modality: str) -> PreTrainedModel:
    """Return the part of a loaded model that serves as the tower: no classification head, decoder or text model."""
    base: Any = model.base_model
    if base.config.model_type == WHISPER:
        return getattr(base, "encoder", base)
    part = getattr(base, f"{modality}_model", None)  # CLIP, SigLIP and CLAP also have one for text
    return part if isinstance(part, PreTrainedModel) else base


def tower_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config to save for a tower with this config, from which [`build_tower`] can build it."""
    if config.model_type == CLAP_AUDIO:  # for which AutoModel has no class
        return ClapConfig(audio_config=config.to_dict())
    if config.model_type == VIT_MAE:  # by default it sees a random quarter of each frame
        return type(config).from_dict({**config.to_dict(), "mask_ratio": 0.0})
    return config


def tower_width(config: PreTrainedConfig) -> int:
    """Return the width of a backbone's features, measured if its config has no `hidden_size`.

    Raises:
        ValueError: if the outputs of the backbone cannot be pooled to a feature.
    """
    config = config.audio_config if config.model_type == CLAP else config
    width = getattr(config, "hidden_size", None)
    if isinstance(width, int):
        return width
    return _measured_width(type(config), config.to_json_string())  # type: ignore[arg-type]  # a class is hashable


@lru_cache(maxsize=16)  # a model asks several times, and building a tower takes part of a second
def _measured_width(config_class: Any, content: str) -> int:
    """Run the tower on torch's meta device, which computes shapes only, and return the width of its features."""
    config = config_class.from_dict(json.loads(content))
    try:
        with torch.device("meta"), torch.no_grad():
            tower = build_tower(config).eval()
            values = torch.empty(1, *input_shape(config, tower.main_input_name), dtype=tower.dtype)
            features, _ = tower_features(tower, values)
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError) as error:
        raise ValueError(f"backbone {config.model_type!r} is not supported: no feature can be computed from its"
                         f" outputs ({type(error).__name__}: {str(error).splitlines()[0]})") from error  # fmt: skip
    return features[0].shape[1]


def input_shape(config: PreTrainedConfig, main_input: str) -> tuple[int, ...]:
    """Return the shape of one input: spectrogram, half a second of raw audio, image or video."""
    if main_input == "pixel_values":
        size = getattr(config, "image_size", None) or 224
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        frames = frames_per_clip(config)
        return (*([] if frames is None else [frames]), getattr(config, "num_channels", 3), height, width)
    shape = spectrogram_shape(config)
    return (8000,) if shape is None else tuple(size or 1 for size in shape)


def spectrogram_shape(config: PreTrainedConfig) -> tuple[int | None, ...] | None:
    """Return the shape of one clip's spectrogram, with `None` for an axis of any length; `None` for raw audio."""
    if config.model_type == "audio-spectrogram-transformer":
        return (config.max_length, config.num_mel_bins)
    if config.model_type == WHISPER:
        return (config.num_mel_bins, 2 * config.max_source_positions)
    if config.model_type == CLAP_AUDIO:
        return (4 if config.enable_fusion else 1, None, config.num_mel_bins)
    return None


def present_modalities(
    input_values: torch.Tensor | None,
    pixel_values: torch.Tensor | None,
    frame_mask: torch.Tensor | None,
    modality_mask: torch.Tensor | None,
    untrained: Sequence[str] = (),
) -> torch.Tensor:
    """Return which modalities each clip of a batch has, `(B, 2)` bool: those passed and not masked out.

    Raises:
        ValueError: if a clip has none (`untrained` ones were removed from the inputs before), or shapes disagree.
    """
    given = [values for values in (input_values, pixel_values) if values is not None]
    if not given:
        raise ValueError(f"no modality at all: pass input_values, pixel_values or both{_not_counted(untrained)}")
    batch, device = given[0].shape[0], given[0].device
    if any(values.shape[0] != batch for values in given):
        raise ValueError(
            f"input_values has {batch} clips, pixel_values {given[-1].shape[0]}: give the same number of both"
        )
    passed = torch.tensor([input_values is not None, pixel_values is not None], device=device)
    mask = passed.expand(batch, 2)
    if modality_mask is not None:
        if modality_mask.shape != mask.shape:
            raise ValueError(f"modality_mask has shape {tuple(modality_mask.shape)}, expected {tuple(mask.shape)}")
        mask = mask & modality_mask.to(device).bool()
    if frame_mask is not None and pixel_values is not None:
        expected = (batch, pixel_values.shape[1] if pixel_values.dim() == 5 else 1)
        if frame_mask.shape != expected:
            raise ValueError(f"frame_mask has shape {tuple(frame_mask.shape)}, expected {expected}")
        with_frames = frame_mask.to(device).bool().any(1)
        mask = mask & torch.stack([torch.ones_like(with_frames), with_frames], dim=1)
    if not torch.compiler.is_compiling() and not mask.any(1).all():
        empty = (~mask.any(1)).nonzero().flatten().tolist()
        raise ValueError(
            f"no modality at all in clip(s) {empty} of the batch: every clip needs audio or"
            f" frames{_not_counted(untrained)}"
        )
    return mask


def _not_counted(untrained: Sequence[str]) -> str:
    names = ", ".join(untrained)
    return f" ({names} does not count: no clip that this model was trained on had it)" if names else ""


def check_spectrograms(values: torch.Tensor, config: PreTrainedConfig) -> None:
    """Check that spectrograms have the size that the tower was built for; towers of raw audio accept any length.

    Raises:
        ValueError: if they do not; the message names both sizes.
    """
    expected = spectrogram_shape(config)
    if expected is None:
        return
    given = tuple(values.shape[1:])
    if len(given) != len(expected) or any(e not in (None, g) for g, e in zip(given, expected, strict=True)):
        shown = ", ".join("frames" if size is None else str(size) for size in expected)
        raise ValueError(
            f"input_values has shape {tuple(values.shape)}, expected (B, {shown}): use the processor saved with the"
            " model"
        )


def check_frames(frame_mask: torch.Tensor, modality_mask: torch.Tensor, config: PreTrainedConfig) -> None:
    """Check that clips have as many frames as a video tower was built for; other towers accept any number.

    Args:
        frame_mask (`torch.BoolTensor` of shape `(B, T)`): Frames present.
        modality_mask (`torch.BoolTensor` of shape `(B, 1)`): Clips with frames.
        config: Config of the tower.

    Raises:
        ValueError: if they do not; the message names both numbers.
    """
    expected = frames_per_clip(config)
    if expected is None:
        return
    if frame_mask.shape[1] != expected:
        raise ValueError(
            f"pixel_values has {frame_mask.shape[1]} frames per clip, but vision tower {config.model_type!r} expects"
            f" {expected}: pass that many, e.g. with the processor saved with the model"
        )
    # Only on the CPU, where this needs no synchronisation.
    if frame_mask.device.type == "cpu" and not torch.compiler.is_compiling():
        partial = (~frame_mask.all(1) & modality_mask[:, 0]).nonzero().flatten().tolist()
        if partial:
            raise ValueError(
                f"clip(s) {partial} of the batch have fewer than the {expected} frames that vision tower"
                f" {config.model_type!r} processes together: repeat frames, or read clips with frames={expected}"
            )


def check_features(
    features: Sequence[torch.Tensor | None], tokens: Sequence[torch.Tensor | None] | None, widths: dict[str, int]
) -> None:
    """Check precomputed features.

    Args:
        features (`Sequence` of `torch.FloatTensor` of shape `(B, D_m)`): `None` for a modality that no clip has.
        tokens (`Sequence` of `torch.FloatTensor` of shape `(B, D_m)`, *optional*): Mean tokens of the same clips.
        widths: Width D_m of every modality's features, by name.

    Raises:
        ValueError: if the number of modalities, the number of clips or a width is wrong.
    """
    tokens = features if tokens is None else tokens
    for given, what in ((features, "modality_features"), (tokens, "modality_tokens")):
        if len(given) != len(widths):
            raise ValueError(f"{what} has {len(given)} entries: give one for each of {list(widths)}")
        for (name, width), values in zip(widths.items(), given, strict=True):
            if values is not None and (values.dim() != 2 or values.shape[1] != width):
                raise ValueError(f"{what}: {name} features have shape {tuple(values.shape)}, expected (B, {width})")
    if [values is None for values in features] != [values is None for values in tokens]:
        raise ValueError("modality_tokens must have the same modalities as modality_features")
    counts = {len(values) for values in (*features, *tokens) if values is not None}
    if len(counts) > 1:
        raise ValueError(f"modality_features and modality_tokens have {sorted(counts)} clips: give the same number")


def check_audio_mask(mask: torch.Tensor, values: torch.Tensor, config: PreTrainedConfig) -> None:
    """Check that the tower accepts a mask, with one entry per sample or, for Whisper, per spectrogram frame.

    Raises:
        ValueError: if not.
    """
    if values.dim() != 2 and config.model_type != "whisper":
        raise ValueError(f"audio tower {config.model_type!r} does not use a mask: remove audio_mask")
    expected = (values.shape[0], values.shape[-1])
    if mask.shape != expected:
        raise ValueError(f"audio_mask has shape {tuple(mask.shape)}, expected {expected}")


def shortest_sound(config: PreTrainedConfig) -> int:
    """Return how many samples of raw audio a tower's convolutions need for one token; 1 without convolutions."""
    samples = 1
    kernels, strides = (getattr(config, name, ()) for name in ("conv_kernel", "conv_stride"))
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def with_silence(
    values: torch.Tensor, mask: torch.Tensor | None, config: PreTrainedConfig
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Add silence to raw audio `(B, S)` and its mask after clips that are shorter than [`shortest_sound`].

    A clip without any audio becomes silence: its result is not used, but an empty softmax would be NaN.
    """
    shortest = shortest_sound(config)
    missing = (0, max(shortest - values.shape[-1], 0))
    if mask is None:
        return nn.functional.pad(values, missing), None
    mask = nn.functional.pad(mask.bool(), missing)
    values = nn.functional.pad(values, missing).masked_fill(~mask, 0.0)
    return values, (mask | (torch.arange(mask.shape[1], device=mask.device) < shortest)).long()


def ignores_masked_padding(config: PreTrainedConfig) -> bool:
    """Return True if a tower computes the same for a clip with masked padding as without padding.

    Whisper does, since its input always has the same length. A norm over time (`feat_extract_norm="group"`, as in
    Wav2Vec2-base, or a batch norm) is affected by the padding.
    """
    if config.model_type == WHISPER:
        return True
    if config.model_type not in MASKED_BACKBONES:
        return False
    return config.feat_extract_norm != "group" and not getattr(config, "conv_pos_batch_norm", False)


def pool_tokens(outputs: ModelOutput, without_pooler: bool, token_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return one vector per input `(B, D)`: the CLS token of a tower without pooler, the pooler's output, or the mean.

    Args:
        outputs: Outputs of the tower.
        without_pooler: Whether the CLS token is used as the feature.
        token_mask (`torch.BoolTensor` of shape `(B, T)`, *optional*): Tokens to average over.
    """
    if without_pooler:
        return outputs["last_hidden_state"][:, 0]
    pooled = getattr(outputs, "pooler_output", None)
    return mean_token(outputs, token_mask) if pooled is None else pooled.flatten(1)


def mean_token(outputs: ModelOutput, token_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean `(B, D)` of a tower's last hidden states over tokens (those of `token_mask`) or positions."""
    hidden = outputs["last_hidden_state"]
    if token_mask is not None:
        return masked_mean(hidden, token_mask)
    return hidden.mean(dim=1) if hidden.dim() == 3 else hidden.flatten(2).mean(dim=2)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Average `(B, T, D)` over the T that a boolean mask `(B, T)` keeps: `(B, D)`, zeros where it keeps none."""
    keep = mask.unsqueeze(-1)
    # At least float32: sums over many tokens overflow float16, and bfloat16 cannot count beyond 256.
    total = (values * keep).sum(1, dtype=torch.promote_types(values.dtype, torch.float32))
    return (total / keep.sum(1).clamp(min=1)).to(values.dtype)


TowerFeatures = tuple[torch.Tensor, torch.Tensor]  # pooled feature and mean token


def tower_features(
    tower: PreTrainedModel,
    values: torch.Tensor,
    audio_mask: torch.Tensor | None = None,
    layer_shares: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[TowerFeatures, ModelOutput | None]:
    """Return the pooled feature and mean token of every input, `(B, D)` each, and the tower's outputs.

    In evaluation, padding of raw audio changes nothing: towers that padding would affect run over clips of one length
    at a time, and their outputs, of different lengths, are not returned. In training, they run over the padded batch.

    Args:
        tower: Backbone.
        values (`torch.FloatTensor` of shape `(B, ...)`): Its main input.
        audio_mask (`torch.LongTensor` of shape `(B, S)`, *optional*): 1 for audio, 0 for padding. S is the
            number of samples or, for Whisper, of spectrogram frames.
        layer_shares (`torch.FloatTensor` of shape `(L,)`, *optional*): Weights of the tower's L hidden states, whose
            sum is pooled in place of the last one.
        **kwargs: Further arguments of the tower.
    """
    if layer_shares is not None:
        kwargs["output_hidden_states"] = True
    if getattr(tower.config, "enable_fusion", False):  # CLAP: no clip is longer than the input, see audio_features
        kwargs["is_longer"] = torch.zeros(len(values), 1, dtype=torch.bool, device=values.device)
    if tower.config.model_type == VIT_MAE:  # it sorts patches by this; by default, at random
        patches: Any = tower.get_input_embeddings().num_patches
        kwargs["noise"] = torch.arange(patches, device=values.device).expand(len(values), -1)
    mask_suffices = tower.training or ignores_masked_padding(tower.config)
    if audio_mask is not None and not mask_suffices and not audio_mask.all():
        return _features_by_length(tower, values, audio_mask, layer_shares, **kwargs), None
    if audio_mask is not None and hasattr(tower, TOKEN_MASK):
        kwargs["attention_mask"] = audio_mask
    outputs = tower(values, **kwargs)
    token_mask = None if audio_mask is None else _token_mask(tower, outputs, audio_mask)
    pooled = outputs
    if layer_shares is not None:
        hidden = torch.stack(outputs["hidden_states"], dim=-1)
        pooled = ModelOutput(last_hidden_state=hidden @ layer_shares.to(hidden.dtype))
    takes_cls = tower.config.model_type in CLS_BACKBONES + POOLERLESS_BACKBONES
    return (pool_tokens(pooled, takes_cls, token_mask), mean_token(pooled, token_mask)), outputs


def _token_mask(tower: Any, outputs: ModelOutput, audio_mask: torch.Tensor) -> torch.Tensor | None:
    """Return `(B, T)` bool, the tokens of audio, not padding; `None` if the tower uses no mask."""
    if tower.config.model_type == WHISPER:
        return audio_mask[:, ::2].bool()  # two spectrogram frames per token
    if not hasattr(tower, TOKEN_MASK):
        return None
    return getattr(tower, TOKEN_MASK)(outputs["last_hidden_state"].shape[1], audio_mask).bool()


def _features_by_length(
    tower: PreTrainedModel,
    values: torch.Tensor,
    audio_mask: torch.Tensor,
    layer_shares: torch.Tensor | None,
    **kwargs: Any,
) -> TowerFeatures:
    """Compute [`tower_features`] of raw audio `(B, S)` cut to its mask, for clips of one length at a time."""
    lengths = audio_mask.sum(1)
    places, parts = [], []
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        sound = values[rows][audio_mask[rows].bool()].view(len(rows), length)
        places.append(rows)
        parts.append(tower_features(tower, sound, None, layer_shares, **kwargs)[0])
    order = torch.cat(places).argsort()
    pooled, tokens = (torch.cat(part)[order] for part in zip(*parts, strict=True))
    return pooled, tokens


class FramePooling(nn.Module):
    """Mean over the frames present; with `"temporal"`, after one pre-norm transformer layer with time positions.

    Args:
        hidden_size (`int`): Width of the frame features.
        pooling (`str`): `"mean"` or `"temporal"`.
        max_frames (`int`): Number of time positions.
        num_heads (`int`): Number of attention heads.
        dropout (`float`): Dropout on both residual branches.
    """

    def __init__(self, hidden_size: int, pooling: str, max_frames: int, num_heads: int, dropout: float):
        super().__init__()
        self.pooling, self.max_frames, self.num_heads = pooling, max_frames, num_heads
        if pooling == "temporal":
            if hidden_size % num_heads:
                raise ValueError(f"temporal_heads={num_heads} must divide the vision tower's width {hidden_size}")
            self.positions = nn.Parameter(torch.zeros(max_frames, hidden_size))
            self.norm_before = nn.LayerNorm(hidden_size)
            self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
            self.out = nn.Linear(hidden_size, hidden_size)
            self.norm_after = nn.LayerNorm(hidden_size)
            self.expand = nn.Linear(hidden_size, 2 * hidden_size)
            self.contract = nn.Linear(2 * hidden_size, hidden_size)
            self.norm_out = nn.LayerNorm(hidden_size)
            self.dropout = nn.Dropout(dropout)

    def init_weights(self, std: float) -> None:
        if self.pooling == "temporal":
            init.normal_(self.positions, std=std)

    def forward(self, frames: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """Pool `(B, T, D)` frame features under a boolean mask `(B, T)` to `(B, D)`; zeros for a clip without frames.

        Raises:
            ValueError: with `"temporal"`, if T exceeds `max_frames`.
        """
        if self.pooling == "temporal":
            frames = self._mix(frames, frame_mask)
        return masked_mean(frames, frame_mask)

    def _mix(self, frames: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        batch, time, width = frames.shape
        if time > self.max_frames:
            raise ValueError(f"{time} frames per clip, but config.max_frames is {self.max_frames}: pass fewer frames")
        # A clip without frames attends to all positions: its result is not used, but an empty softmax would be NaN.
        attend = (frame_mask | ~frame_mask.any(1, keepdim=True))[:, None, None, :]
        frames = frames + self.positions[:time]
        heads = self.qkv(self.norm_before(frames)).view(batch, time, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attend)
        frames = frames + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, time, width)))
        hidden = nn.functional.gelu(self.expand(self.norm_after(frames)))
        return self.norm_out(frames + self.dropout(self.contract(hidden)))


def freeze_tower(tower: PreTrainedModel, trainable_layers: int | str) -> None:
    """Set which layers of a tower are trained: all (`"all"`), none (0), or the last k and everything after them.

    Raises:
        ValueError: if `trainable_layers` is neither `"all"` nor a number from 0 to the tower's number of layers.
    """
    fixed = FIXED_PARAMETERS.get(tower.config.model_type)
    if trainable_layers == "all":
        for name, parameter in tower.named_parameters():
            parameter.requires_grad_(name != fixed)
        return
    layers = _layers(tower)
    if not isinstance(trainable_layers, int) or not 0 <= trainable_layers <= len(layers):
        raise ValueError(f"trainable_layers={trainable_layers!r}: give 'all' or a number from 0 to {len(layers)}")
    tower.requires_grad_(False)
    if trainable_layers:
        first = next(layers[-trainable_layers].parameters())
        # In the order of the forward pass, as transformers builds its models, apart from CLAP's first norm.
        parameters = sorted(tower.named_parameters(), key=lambda entry: not entry[0].startswith(CLAP_FIRST_NORM))
        start = next(index for index, (_, parameter) in enumerate(parameters) if parameter is first)
        for name, parameter in parameters[start:]:
            parameter.requires_grad_(name != fixed)


def _layers(tower: nn.Module) -> list[nn.Module]:
    """Return the layers of all stages in order: members of one-class module lists that contain no such list."""
    stacks = [
        module
        for module in tower.modules()
        if type(module) is nn.ModuleList and len({type(layer) for layer in module}) == 1
    ]
    return [layer for stack in stacks for layer in stack if not any(part in stacks for part in layer.modules())]


def fit_ast_positions(positions: torch.Tensor, old: PreTrainedConfig, new: PreTrainedConfig) -> torch.Tensor:
    """Interpolate AST position embeddings to a new number of frames (bilinear over time, as in Gong et al., 2021).

    Args:
        positions (`torch.FloatTensor` of shape `(1, 2 + F * T, D)`): Two special tokens, then patches, time fastest.
        old, new: AST configs before and after; they differ in `max_length`.

    Returns:
        `torch.FloatTensor` of shape `(1, 2 + F * T_new, D)`.
    """
    rows, old_steps = _ast_grid(old)
    _, new_steps = _ast_grid(new)
    special, patches = positions[:, :2], positions[:, 2:]
    grid = patches.reshape(1, rows, old_steps, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid.float(), size=(rows, new_steps), mode="bilinear", align_corners=False)
    return torch.cat([special, grid.to(patches.dtype).permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _ast_grid(config: PreTrainedConfig) -> tuple[int, int]:
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    return rows, (config.max_length - config.patch_size) // config.time_stride + 1


__all__ = [
    "FramePooling",
    "tower_features",
]

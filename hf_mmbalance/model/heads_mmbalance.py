"""Build the heads that a config names: the fusion head, and one unimodal head per modality."""

import math

import torch
from torch import nn
from transformers.utils import ModelOutput

from .configuration_mmbalance import MMBalanceConfig
from .fusion_files_mmbalance import fusion_class
from .fusion_mmbalance import FusionHead
from .source_heads_mmbalance import SourceHead


class CosineClassifier(nn.Module):
    """Classifier with the logits s cos(w_c, f), which do not depend on the norms of features and class weights."""

    def __init__(self, hidden_size: int, num_labels: int, scale: float):
        super().__init__()
        self.linear = nn.Linear(hidden_size, num_labels, bias=False)
        self.scale = scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        normal = nn.functional.normalize
        return self.scale * nn.functional.linear(normal(features, dim=-1), normal(self.linear.weight, dim=-1))


def build_fusion(config: MMBalanceConfig, widths: tuple[int, ...]) -> FusionHead:
    """Build the fusion head that a config names.

    Args:
        config ([`MMBalanceConfig`]): Its `fusion`, `fusion_options`, `source_labels` and `frame_pooling` are used.
        widths (`tuple[int, ...]`): Width of every modality's features.

    Raises:
        ValueError: if there is no such head, or it does not accept its options or cannot be used with other fields.
    """
    head_class = fusion_class(config.fusion)
    options = dict(config.fusion_options or {})
    if not all(map(all, config.known_classes)):
        if not head_class.takes_known_classes:
            raise ValueError(
                f"fusion={config.fusion!r} cannot be used if a modality does not know all classes (source_labels):"
                " choose 'adaptive', or map a label to every class"
            )
        options["known"] = config.known_classes
    if head_class.owns_unimodal_logits and (config.source_labels or config.frame_pooling == "log_probs"):
        raise ValueError(
            f"fusion={config.fusion!r} computes its unimodal logits itself: neither source_labels nor"
            " frame_pooling='log_probs' can be used with it"
        )
    try:
        return head_class(len(widths), config.num_labels or 0, widths, **options)
    except TypeError as error:
        raise ValueError(f"fusion={config.fusion!r} does not accept fusion_options={options!r}: {error}") from error


def build_unimodal_head(config: MMBalanceConfig, modality: str, width: int) -> nn.Module:
    """Build the head `(B, D) -> (B, C)` of one modality: linear, cosine, or reused from a classifier.

    Raises:
        ValueError: if a cosine head is requested where it cannot be used.
    """
    form = fusion_class(config.fusion).required_unimodal_head or config.unimodal_head
    source = (config.source_labels or {}).get(modality)
    if form == "cosine" and (source or config.frame_pooling == "log_probs"):
        raise ValueError("cosine heads can neither be reused from classifiers nor used with frame_pooling='log_probs'")
    if source:
        options = {name: source[name] for name in ("classes", "layer_norm_eps", "layers")}
        return SourceHead(width, len(source["labels"]), **options)
    if form == "cosine":
        return CosineClassifier(width, config.num_labels or 0, config.cosine_scale)
    return nn.Linear(width, config.num_labels or 0)


def check_fusion(head: FusionHead, name: str, dtype: torch.dtype = torch.float32) -> None:
    """Check a new head on made-up clips before it is trained: one with all modalities, and one with each alone.

    Args:
        head ([`FusionHead`]): The head.
        name (`str`): Name of the head in messages.
        dtype (`torch.dtype`, defaults to `torch.float32`): Type of the towers' features.

    Raises:
        ValueError: if the head has tensors that would not be saved with the model, or if its output has the wrong
            shape or is not finite.
    """
    for module in head.modules():
        plain = {key for key, value in vars(module).items() if isinstance(value, torch.Tensor)}
        for key in plain | module._non_persistent_buffers_set:
            raise ValueError(
                f"fusion head {name!r}: its tensor {key!r} would not be saved with the model: make it an nn.Parameter,"
                f" or a buffer with self.register_buffer({key!r}, ...)"
            )
    modalities, classes = head.num_modalities, head.num_labels
    mask = torch.cat([torch.ones(1, modalities), torch.eye(modalities)]).bool()
    every = (len(mask), modalities, classes)
    features = tuple(mask[:, m : m + 1].to(dtype).expand(-1, size) for m, size in enumerate(head.feature_sizes))
    logits = torch.linspace(-1, 1, math.prod(every)).view(every)
    training = head.training
    head.eval()
    with torch.no_grad():
        if head.owns_unimodal_logits:
            logits = head.unimodal_logits(features).float()
            _check_values(name, "unimodal_logits", logits, every)
        fused = head(logits, mask, features)
    head.train(training)
    if not isinstance(fused, ModelOutput) or fused.get("logits") is None:
        raise ValueError(
            f"fusion head {name!r}: forward must return FusionOutput(logits=...), not {type(fused).__name__}"
        )
    shapes = {"logits": every[::2], "modality_trust": every[:2]}
    for part, values in fused.items():
        _check_values(name, part, values, shapes.get(part, every))


def _check_values(name: str, part: str, values: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != shape:
        raise ValueError(
            f"fusion head {name!r}: {part} has shape {tuple(values.shape)}, expected {shape} for {shape[0]} clips"
        )
    if not torch.isfinite(values).all():
        raise ValueError(
            f"fusion head {name!r}: {part} is not finite for clips with a missing modality: use only"
            " the modalities in modality_mask"
        )


__all__ = ["CosineClassifier", "build_fusion", "build_unimodal_head", "check_fusion"]

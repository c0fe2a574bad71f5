"""Heads reused from classifiers, with their own labels mapped to the model's classes."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from .towers_mmbalance import WHISPER, TowerFeatures, input_shape, tower_features, tower_of


logger = logging.get_logger(__name__)

#: Nats by which the logit of an unknown class lies below the lowest logit of the known classes.
UNKNOWN_MARGIN = 20.0
#: Name that transformers gives to the parameter that weights an audio tower's hidden states.
LAYER_WEIGHTS = "layer_weights"
#: Audio towers whose classifiers average over all tokens, including padding.
UNMASKED_CLASSIFIERS = (WHISPER,)
#: Towers with a pooler that their classifiers do not use.
TOKEN_CLASSIFIERS = ("siglip_vision_model",)
#: Largest difference allowed between a classifier's logits and its reused head's, relative to the largest logit.
TOLERANCE = 1e-4


class SourceHead(nn.Module):
    r"""A classifier's head: log-probabilities of its own labels, and of the classes that they are mapped to.

    \\(\log p(k|x) = \mathrm{logsoftmax}(W \mathrm{norm}(f) + b)_k\\) over the source labels k;
    \\(z_c = \log \sum_{k \in c} p(k|x)\\) over the labels mapped to class c. Labels mapped to no class are left out. A
    class without labels is unknown to the head: its logit lies `UNKNOWN_MARGIN` below the lowest known one, and the
    adaptive head gives it no evidence.

    If a classifier was trained with one sigmoid per label, several labels can be true. If exactly one of those mapped
    to classes is true, Bayes' rule gives \\(p(k|x) \propto s_k \prod_{j \ne k} (1 - s_j) \propto s_k / (1 - s_k) =
    e^{l_k}\\) for independent \\(s_k = \mathrm{sigmoid}(l_k)\\): the softmax of the logits, which is what \\(z\\)
    amounts to in the decision.

    Args:
        hidden_size (`int`): Width of the features.
        num_source_labels (`int`): Number K of source labels.
        classes (`Sequence[Sequence[int]]`): Indices of the source labels of every class; empty for an unknown class.
        layer_norm_eps (`float`, *optional*): Epsilon of a layer norm before the linear layer; `None` if there is none.
        layers (`int`, *optional*): Number of the tower's hidden states whose weighted sum is the feature, with the
            weights in the buffer `layer_shares`; `None` if the feature is taken from the last one.
    """

    class_labels: torch.Tensor  # (C, K) bool
    layer_shares: torch.Tensor | None  # (layers,), not trained

    def __init__(
        self,
        hidden_size: int,
        num_source_labels: int,
        classes: Sequence[Sequence[int]],
        layer_norm_eps: float | None = None,
        layers: int | None = None,
    ):
        super().__init__()
        self.norm = nn.Identity() if layer_norm_eps is None else nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.linear = nn.Linear(hidden_size, num_source_labels)
        self.classes = [list(labels) for labels in classes]
        self.register_buffer("class_labels", self._class_labels())
        self.register_buffer("layer_shares", None if layers is None else torch.full((layers,), 1 / layers))

    def _class_labels(self) -> torch.Tensor:
        """Return which labels count for which class, `(C, K)` bool."""
        numbers = torch.arange(self.linear.out_features)
        return torch.stack([torch.isin(numbers, torch.tensor(labels, dtype=torch.long)) for labels in self.classes])

    def init_weights(self) -> None:
        """Set the buffers again; transformers initialises the linear layer and the norm."""
        init.copy_(self.class_labels, self._class_labels())
        if self.layer_shares is not None:
            init.constant_(self.layer_shares, 1 / len(self.layer_shares))

    def take_weights(self, other: "SourceHead") -> None:
        """Copy everything but the classes from a head with the same labels."""
        self.load_state_dict(other.state_dict() | {"class_labels": self.class_labels})

    def label_log_probs(self, features: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities of the source labels, `(..., D)` -> `(..., K)`, in at least float32."""
        logits = self.linear(self.norm(features))
        return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)

    def class_logits(self, label_log_probs: torch.Tensor) -> torch.Tensor:
        """Return logits of the classes, `(B, K)` -> `(B, C)`, finite everywhere."""
        counts = self.class_labels
        known = counts.any(1)
        # An empty sum has no gradient, so an unknown class adds up all labels here; its value is replaced below.
        parts = label_log_probs.unsqueeze(1).masked_fill(~(counts | ~known.unsqueeze(1)), -torch.inf)
        logits = parts.logsumexp(-1)
        lowest = logits.detach().masked_fill(~known, torch.inf).amin(-1, keepdim=True)
        return torch.where(known, logits, lowest - UNKNOWN_MARGIN)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits of the classes, `(B, D)` -> `(B, C)`."""
        return self.class_logits(self.label_log_probs(features))


def label_log_probs(head: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities of a head's own outputs: the source labels of a [`SourceHead`], else the classes."""
    if isinstance(head, SourceHead):
        return head.label_log_probs(features)
    logits = head(features)
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def class_logits(head: nn.Module, log_probs: torch.Tensor) -> torch.Tensor:
    """Return logits of the classes `(B, C)` from the result of [`label_log_probs`], pooled over frames or not."""
    return head.class_logits(log_probs) if isinstance(head, SourceHead) else log_probs


def mask_for(head: nn.Module | None, tower: PreTrainedModel, audio_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return the mask under which a tower's tokens are averaged for its head: Whisper's classifiers use none."""
    unmasked = isinstance(head, SourceHead) and tower.config.model_type in UNMASKED_CLASSIFIERS
    return None if unmasked else audio_mask


def features_for(head: nn.Module, tower: PreTrainedModel, features: TowerFeatures) -> TowerFeatures:
    """Return what a tower computed as its head reads it: SigLIP's classifiers read the mean token, not the pooler."""
    reads_tokens = isinstance(head, SourceHead) and tower.config.model_type in TOKEN_CLASSIFIERS
    return (features[1], features[1]) if reads_tokens else features


def source_head_of(classifier: PreTrainedModel) -> SourceHead:
    """Convert a classifier's head to a [`SourceHead`] on the tower's feature, with each label as its own class.

    The layers outside the backbone must be affine, after at most one layer norm. Several linear layers are merged,
    which is exact if the classifier averages over time between them. Before them, the classifier can take a weighted
    sum of all hidden states (`use_weighted_layer_sum`). The result is checked on random input against the classifier's
    own logits.

    Raises:
        ValueError: if the model has no head, its head has a different form, the head found does not reproduce its
            logits, or its config does not name at least two different labels.
    """
    labels = label_names(classifier)
    norm, weight, bias = _affine_head(classifier)
    if len(bias) != len(labels):
        raise ValueError(
            f"{type(classifier).__name__} has {len(bias)} outputs, but its config names {len(labels)} labels"
        )
    layers = getattr(classifier, LAYER_WEIGHTS, None)
    if classifier.config.problem_type == "multi_label_classification":
        logger.warning(
            "%s was trained for labels that can be true together: its logits are used as if exactly one of the labels"
            " mapped to classes were true",
            classifier.config.name_or_path or type(classifier).__name__,
        )
    head = SourceHead(
        weight.shape[1],
        len(labels),
        classes=[[k] for k in range(len(labels))],
        layer_norm_eps=None if norm is None else norm.eps,
        layers=None if layers is None else len(layers),
    )
    with torch.no_grad():
        if layers is not None and head.layer_shares is not None:
            head.layer_shares.copy_(layers.float().softmax(-1))
        if norm is not None:
            head.norm.load_state_dict({name: value.float() for name, value in norm.state_dict().items()})
        head.linear.weight.copy_(weight)
        head.linear.bias.copy_(bias)
    _verify(classifier, head)
    return head


def label_names(classifier: PreTrainedModel) -> list[str]:
    """Return a classifier's label names in the order of its logits; names can repeat (ImageNet has two cranes).

    Raises:
        ValueError: if there are fewer than two different names.
    """
    names = [str(name) for _, name in sorted((classifier.config.id2label or {}).items())]
    if len(set(names)) < 2:
        raise ValueError(
            f"{type(classifier).__name__} has the labels {names[:10]}: a classifier needs at least two labels; use"
            " its backbone only"
        )
    return names


def _affine_head(classifier: PreTrainedModel) -> tuple[nn.LayerNorm | None, torch.Tensor, torch.Tensor]:
    """Return layer norm, weight `(K, D)` and bias `(K,)` of the layers outside the backbone, in float32."""
    name = type(classifier).__name__
    backbone = _tower(classifier)
    if backbone is classifier:
        raise ValueError(f"{name} has no classification head: remove its modality from label_maps")
    inside = set(backbone.modules())
    if {name for name, _ in classifier.named_parameters(recurse=False)} <= {LAYER_WEIGHTS}:
        inside.add(classifier)
    layers = [
        module
        for module in classifier.modules()
        if module not in inside and next(module.parameters(recurse=False), None) is not None
    ]
    norm = layers[0] if layers and isinstance(layers[0], nn.LayerNorm) else None
    affine = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if not affine or len(affine) + (norm is not None) < len(layers) or not _connected(norm, affine):
        kinds = ", ".join(type(layer).__name__ for layer in layers) or "no layers"
        raise ValueError(
            f"the head of {name} ({kinds}) is not a linear layer on one feature vector: use its backbone only (remove"
            " its modality from label_maps)"
        )
    weight = torch.eye(affine[0].in_features, dtype=torch.float64)
    bias = torch.zeros(affine[0].in_features, dtype=torch.float64)
    for layer in affine:
        own = layer.weight.detach().double().cpu()
        weight, bias = own @ weight, own @ bias
        if layer.bias is not None:
            bias = bias + layer.bias.detach().double().cpu()
    return norm, weight.float(), bias.float()


def _tower(classifier: PreTrainedModel) -> PreTrainedModel:
    return tower_of(classifier, "vision" if classifier.main_input_name == "pixel_values" else "audio")


def _connected(norm: nn.LayerNorm | None, affine: list[nn.Linear]) -> bool:
    """Return True if each layer has as many inputs as the one before has outputs."""
    given = [*norm.normalized_shape] if norm is not None else [affine[0].in_features]
    given += [layer.out_features for layer in affine[:-1]]
    return given == [layer.in_features for layer in affine]


@torch.no_grad()
def _verify(classifier: PreTrainedModel, head: SourceHead) -> None:
    """Check that head and tower reproduce the classifier's logits for two random clips."""
    probe = copy.deepcopy(classifier).float().cpu().eval()
    inputs = random_input(probe)
    expected = probe(inputs).logits
    tower = _tower(probe)
    features = features_for(head, tower, tower_features(tower, inputs, layer_shares=head.layer_shares)[0])[0]
    same = features.shape[1] == head.linear.in_features
    if same:
        found = head.linear(head.norm(features))
        same = bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1.0))
    if not same:
        raise ValueError(
            f"the head of {type(classifier).__name__} does not reproduce its logits from its tower's feature: use its"
            " backbone only (remove its modality from label_maps)"
        )


def random_input(model: PreTrainedModel, clips: int = 2) -> torch.Tensor:
    """Return input of `model` for a few clips of noise: spectrograms, half a second of raw audio, images or videos."""
    generator = torch.Generator().manual_seed(0)
    # The config of a CLIP or SigLIP classifier has no image size: that of its tower does.
    return torch.randn(clips, *input_shape(_tower(model).config, model.main_input_name), generator=generator)


__all__ = ["SourceHead", "source_head_of"]

"""The interface of fusion heads, their registry, and the baseline heads."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput


@dataclass
class FusionOutput(ModelOutput):
    """Output of a fusion head for `B` clips, `M` modalities and `C` classes.

    Args:
        logits (`torch.FloatTensor` of shape `(B, C)`):
            Fused logits.
        modality_weights (`torch.FloatTensor` of shape `(B, M, C)`, *optional*):
            Weights that the head used, 0 where a modality is missing; `None` for heads without weights.
        modality_contributions (`torch.FloatTensor` of shape `(B, M, C)`, *optional*):
            Exact terms whose sum over modalities is the logits minus the head's output without evidence (its bias).
        modality_trust (`torch.FloatTensor` of shape `(B, M)`, *optional*):
            Calibrated probability that a modality's own decision is right, 0 where it is missing; `None` for heads
            that do not calibrate their modalities.
    """

    logits: torch.Tensor = None  # type: ignore[assignment]  # always set; ModelOutput requires a default
    modality_weights: torch.Tensor | None = None
    modality_contributions: torch.Tensor | None = None
    modality_trust: torch.Tensor | None = None


class FusionHead(nn.Module):
    """Base class of all fusion heads: unimodal logits in, fused logits out.

    A user-defined head subclasses this, sets the class attributes that apply, implements `forward`, and is registered
    with [`register_fusion_head`] or named in the config as `"file:ClassName"`.

    Args:
        num_modalities (`int`): Number of modalities `M`.
        num_labels (`int`): Number of classes `C`.
        feature_sizes (`tuple[int, ...]`): Width `D_m` of each tower's features, in the order of the modalities.
        **options: Options of the head, from `config.fusion_options`.
    """

    #: The head computes the unimodal logits itself, from features (`unimodal_logits`), instead of the model's heads.
    owns_unimodal_logits: bool = False
    #: Type of unimodal heads that this head requires ("linear" or "cosine"); `None` uses the config's.
    required_unimodal_head: str | None = None
    #: The unimodal heads are trained for diagnosis only: their loss does not reach the towers.
    unimodal_for_diagnosis: bool = False
    #: Weight of the summed unimodal losses unless the config sets one.
    default_unimodal_loss_weight: float = 1.0
    #: Weight of the fused loss; 0 for ensembles of towers trained separately.
    default_fused_loss_weight: float = 1.0
    #: `forward` receives the pooled features behind the unimodal logits, not the means of the towers' tokens.
    reads_pooled: bool = False
    #: Balancing method that the head must be trained with, because it provides a loss that the head needs.
    required_balancing: str | None = None
    #: The head has no parameters: it is fitted on clips that the towers are not trained on.
    fitted: bool = False
    #: Content of a user-defined head's file when it was loaded; the file can be edited while the head is trained.
    file_content: bytes | None = None
    #: The head accepts `known`, the classes that each modality knows, if some modality does not know all of them.
    takes_known_classes: bool = False

    def __init__(self, num_modalities: int, num_labels: int, feature_sizes: tuple[int, ...] = ()):
        super().__init__()
        self.num_modalities = num_modalities
        self.num_labels = num_labels
        self.feature_sizes = tuple(feature_sizes)

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        """Combine unimodal logits into one decision.

        Args:
            modality_logits (`torch.FloatTensor` of shape `(B, M, C)`):
                Unimodal logits; any finite value where a modality is missing.
            modality_mask (`torch.BoolTensor` of shape `(B, M)`): True where a modality is present.
            features (`tuple` of `torch.FloatTensor` of shape `(B, D_m)`):
                Mean of every tower's tokens (last hidden states), or its pooled feature if `reads_pooled`.
        """
        raise NotImplementedError

    def features_read(self, outputs: dict) -> tuple[torch.Tensor, ...]:
        """Return the features that this head's `forward` uses, from a model's outputs."""
        return outputs["modality_features" if self.reads_pooled else "modality_tokens"]

    def unimodal_logits(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the unimodal logits `(B, M, C)`; only heads with `owns_unimodal_logits` implement this."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Initialise parameters and buffers other than Linear and LayerNorm, with `transformers.initialization`."""


def is_fusion_class(kind: type) -> bool:
    """Return True if a class is a [`FusionHead`], possibly from a different copy of this code.

    The file of a user-defined head can import the interface from the installed package while the model's code was
    loaded from the Hub. There are then two classes with the same name, and `issubclass` would be False.
    """
    return any(c.__name__ == "FusionHead" and c.__module__.endswith("fusion_mmbalance") for c in kind.__mro__)


FUSION_HEADS: dict[str, type[FusionHead]] = {}


def register_fusion_head(name: str) -> Callable[[type], type]:
    """Return a class decorator that makes a head available as `config.fusion = name`.

    Raises:
        ValueError: if a different class already has the name.
    """

    def register(cls: type) -> type:
        taken = FUSION_HEADS.get(name)
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise ValueError(f"fusion head {name!r} is already registered ({taken.__qualname__}): choose another name")
        FUSION_HEADS[name] = cls
        return cls

    return register


def masked_log_softmax(modality_logits: torch.Tensor, modality_mask: torch.Tensor) -> torch.Tensor:
    """Return the log-softmax of every row of `(B, M, C)`, 0 where the modality is missing."""
    return torch.log_softmax(modality_logits, dim=-1).masked_fill(~modality_mask.unsqueeze(-1), 0.0)


def mean_log_prob(log_probs: torch.Tensor, modality_mask: torch.Tensor) -> torch.Tensor:
    """Return the log of the mean probability over modalities present: `(B, M, C)` -> `(B, C)`; zeros without any."""
    missing = ~modality_mask.unsqueeze(-1)
    total = torch.logsumexp(log_probs.masked_fill(missing, -torch.inf), dim=1)
    pooled = total - modality_mask.sum(1, keepdim=True).clamp(min=1).log()
    return torch.where(modality_mask.any(1, keepdim=True), pooled, torch.zeros_like(pooled))


def shapley_contributions(fuse: Callable[[torch.Tensor], torch.Tensor], modality_mask: torch.Tensor) -> torch.Tensor:
    """Return every modality's Shapley value for the fused logits of a head that is not additive.

    phi_m = sum over S without m of |S|! (M - |S| - 1)! / M! (f(S + m) - f(S)), with f(empty) = 0 (Shapley, 1953).
    A missing modality gets 0; the others sum to f(present).

    Args:
        fuse: Function from a mask `(B, M)` to fused logits `(B, C)`.
        modality_mask (`torch.BoolTensor` of shape `(B, M)`): Modalities present.

    Returns:
        `torch.FloatTensor` of shape `(B, M, C)`.
    """
    batch, modalities = modality_mask.shape
    values: dict[tuple[int, ...], torch.Tensor] = {}
    for size in range(1, modalities + 1):
        for subset in itertools.combinations(range(modalities), size):
            inside = torch.zeros_like(modality_mask)
            inside[:, list(subset)] = True
            inside = inside & modality_mask
            # A subset whose members are all missing has the value 0; fuse() needs at least one modality.
            has_members = inside.any(1, keepdim=True)
            value = fuse(inside | (modality_mask & ~has_members))
            values[subset] = value * has_members
    values[()] = torch.zeros_like(values[(0,)])
    contributions = []
    for modality in range(modalities):
        others = [m for m in range(modalities) if m != modality]
        total = torch.zeros_like(values[()])
        for size in range(modalities):
            weight = math.factorial(size) * math.factorial(modalities - size - 1) / math.factorial(modalities)
            for subset in itertools.combinations(others, size):
                joined = tuple(sorted((*subset, modality)))
                total = total + weight * (values[joined] - values[subset])
        contributions.append(total)
    return torch.stack(contributions, dim=1)


@register_fusion_head("sum")
class SumFusion(FusionHead):
    """Unweighted sum of log-probabilities over the modalities present."""

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        log_probs = masked_log_softmax(modality_logits, modality_mask)
        weights = modality_mask.unsqueeze(-1).to(log_probs.dtype).expand_as(log_probs)
        return FusionOutput(logits=log_probs.sum(1), modality_weights=weights, modality_contributions=log_probs)


@register_fusion_head("mean_prob")
class MeanProbFusion(FusionHead):
    """Linear pool: log of the mean probability over the modalities present.

    Each tower learns only from its own loss, so this is the unimodal ensemble (UME) that the literature compares with.
    Contributions are Shapley values over masks.
    """

    default_fused_loss_weight = 0.0

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        log_probs = torch.log_softmax(modality_logits, dim=-1)
        contributions = shapley_contributions(lambda mask: mean_log_prob(log_probs, mask), modality_mask)
        return FusionOutput(logits=mean_log_prob(log_probs, modality_mask), modality_contributions=contributions)


class _LogitSum(FusionHead):
    """Weighted sum of raw logits over the modalities present, for methods defined on raw logits."""

    def weights(self, modality_logits: torch.Tensor) -> torch.Tensor:
        """Return the weights `(B, M, C)` of the logits: 1, unless a head overrides this method."""
        return torch.ones_like(modality_logits)

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        weights = self.weights(modality_logits) * modality_mask.unsqueeze(-1)
        contributions = weights * modality_logits
        return FusionOutput(
            logits=contributions.sum(1), modality_weights=weights, modality_contributions=contributions
        )


@register_fusion_head("mmcosine")
class MMCosineFusion(_LogitSum):
    """Sum of scaled cosine logits, s (cos(W_a, f_a) + cos(W_v, f_v)) (MMCosine, Xu et al., 2023).

    The scale s is `config.cosine_scale`. As published, the loss is that of the fused logits only.
    """

    required_unimodal_head = "cosine"
    default_unimodal_loss_weight = 0.0


@register_fusion_head("qmf")
class QMFFusion(_LogitSum):
    """Energy weights: z = sum_m c_m z_m with c_m = logsumexp(z_m) / 10, detached (QMF, Zhang et al., 2023).

    Raw logits are required: log-softmax removes the energy. The published ranking loss over each clip's loss history
    is the balancing method `qmf`.
    """

    temperature = 10.0

    def weights(self, modality_logits: torch.Tensor) -> torch.Tensor:
        energy = torch.logsumexp(modality_logits.detach(), dim=-1, keepdim=True) / self.temperature
        return energy.expand_as(modality_logits)


@register_fusion_head("concat")
class ConcatFusion(_LogitSum):
    """One linear layer on the concatenated features, trained by the fused loss only.

    The layer is split into one part per modality, which gives the unimodal logits z_m = W_m f_m + b / M (OGM-GE, Peng
    et al., 2022). The part of a missing modality is left out.
    """

    owns_unimodal_logits = True
    default_unimodal_loss_weight = 0.0

    def __init__(self, num_modalities: int, num_labels: int, feature_sizes: tuple[int, ...] = ()):
        super().__init__(num_modalities, num_labels, feature_sizes)
        self.halves = nn.ModuleList(nn.Linear(size, num_labels, bias=False) for size in feature_sizes)
        self.bias = nn.Parameter(torch.zeros(num_labels))

    def init_weights(self) -> None:
        init.zeros_(self.bias)

    def unimodal_logits(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        halves = [half(feature) for half, feature in zip(self.halves, features, strict=True)]
        return torch.stack(halves, dim=1) + self.bias / self.num_modalities


class _ConditionedFusion(FusionHead):
    """Base of heads that condition the last modality on all others, with a fallback for incomplete clips.

    The fallback is the linear pool of the unimodal heads. They therefore learn from their own loss, on detached
    features so that the towers are not affected.
    """

    unimodal_for_diagnosis = True
    reads_pooled = True

    def __init__(
        self, num_modalities: int, num_labels: int, feature_sizes: tuple[int, ...] = (), hidden_size: int = 256
    ):
        super().__init__(num_modalities, num_labels, feature_sizes)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def condition(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the joint features `(B, hidden_size)` of clips with every modality."""
        raise NotImplementedError

    def forward(
        self,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        features: tuple[torch.Tensor, ...] | None = None,
    ) -> FusionOutput:
        assert features is not None  # this head uses them
        joint = torch.log_softmax(self.classifier(self.condition(features)).float(), dim=-1)
        log_probs = torch.log_softmax(modality_logits, dim=-1)

        def fuse(mask: torch.Tensor) -> torch.Tensor:
            return torch.where(mask.all(1, keepdim=True), joint, mean_log_prob(log_probs, mask))

        contributions = shapley_contributions(fuse, modality_mask)
        return FusionOutput(logits=fuse(modality_mask), modality_contributions=contributions)


@register_fusion_head("gated")
class GatedFusion(_ConditionedFusion):
    """z = W (sigmoid(U_x x) * U_y y) + b, x gating y (OGM-GE code base; Kiela et al., 2018)."""

    def __init__(
        self, num_modalities: int, num_labels: int, feature_sizes: tuple[int, ...] = (), hidden_size: int = 256
    ):
        super().__init__(num_modalities, num_labels, feature_sizes, hidden_size)
        self.projections = nn.ModuleList(nn.Linear(size, hidden_size) for size in feature_sizes)

    def condition(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        *gates, last = (project(feature) for project, feature in zip(self.projections, features, strict=True))
        for gate in gates:
            last = torch.sigmoid(gate) * last
        return last


@register_fusion_head("film")
class FilmFusion(_ConditionedFusion):
    """z = W (gamma * y + beta) + b with gamma, beta linear in x (Perez et al., 2018)."""

    def __init__(
        self, num_modalities: int, num_labels: int, feature_sizes: tuple[int, ...] = (), hidden_size: int = 256
    ):
        super().__init__(num_modalities, num_labels, feature_sizes, hidden_size)
        self.generators = nn.ModuleList(nn.Linear(size, 2 * hidden_size) for size in feature_sizes[:-1])
        self.project = nn.Linear(feature_sizes[-1], hidden_size)

    def condition(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        conditioned = self.project(features[-1])
        for generator, feature in zip(self.generators, features[:-1], strict=True):
            gamma, beta = generator(feature).chunk(2, dim=-1)
            conditioned = gamma * conditioned + beta
        return conditioned


__all__ = [
    "ConcatFusion",
    "FUSION_HEADS",
    "FilmFusion",
    "FusionHead",
    "FusionOutput",
    "GatedFusion",
    "MMCosineFusion",
    "MeanProbFusion",
    "QMFFusion",
    "SumFusion",
    "is_fusion_class",
    "masked_log_softmax",
    "mean_log_prob",
    "register_fusion_head",
    "shapley_contributions",
]

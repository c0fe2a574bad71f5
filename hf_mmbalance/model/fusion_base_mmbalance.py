"""The interface every fusion head follows, the registry that names them, and the small tools they share."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput


@dataclass
class FusionOutput(ModelOutput):
    """What a fusion head returns for `B` clips, `M` modalities and `C` classes.

    Args:
        logits (`torch.FloatTensor` of shape `(B, C)`):
            Fused logits.
        modality_weights (`torch.FloatTensor` of shape `(B, M, C)`, *optional*):
            The weights the head used, 0 where a modality is missing; `None` where a head has none.
        modality_contributions (`torch.FloatTensor` of shape `(B, M, C)`, *optional*):
            Exact terms that sum over modalities to the logits minus the head's bias.
        shares (`torch.FloatTensor` of shape `(B, M, C)`, *optional*):
            Weights normalised over the modalities present, where the head learns them.
    """

    logits: torch.Tensor = None  # type: ignore[assignment]  # ModelOutput wants defaults; always given
    modality_weights: torch.Tensor | None = None
    modality_contributions: torch.Tensor | None = None
    shares: torch.Tensor | None = None


class FusionHead(nn.Module):
    """Base of all fusion heads: unimodal logits in, fused logits out.

    A head of your own subclasses this, sets the class attributes that apply, implements `forward`, and is registered
    with [`register_fusion_head`] or named in the config as `"file:ClassName"`.

    Args:
        num_modalities (`int`): Number of modalities `M`.
        num_labels (`int`): Number of classes `C`.
        feature_sizes (`tuple[int, ...]`): Width `D_m` of each tower's features, in the order of the modalities.
        **options: What the head itself takes, from `config.fusion_options`.
    """

    #: The head computes the unimodal logits itself, from features (`unimodal_logits`), instead of the model's heads.
    owns_unimodal_logits: bool = False
    #: Form of the model's unimodal heads that this head requires ("linear" or "cosine"); `None` takes the config's.
    required_unimodal_head: str | None = None
    #: The unimodal heads learn for diagnosis only: their loss does not reach the towers.
    unimodal_for_diagnosis: bool = False
    #: Weight of the summed unimodal losses unless the config sets one.
    default_unimodal_loss_weight: float = 1.0
    #: Weight of the fused loss; 0 for ensembles of towers trained apart.
    default_fused_loss_weight: float = 1.0
    #: The head has parameters that must learn only from calibration clips.
    learns_from_calibration: bool = False

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
        """Fuse.

        Args:
            modality_logits (`torch.FloatTensor` of shape `(B, M, C)`):
                Unimodal logits, any finite value where missing.
            modality_mask (`torch.BoolTensor` of shape `(B, M)`): True where a modality is present.
            features (`tuple` of `torch.FloatTensor` of shape `(B, D_m)`): Features of every tower.
        """
        raise NotImplementedError

    def unimodal_logits(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Unimodal logits `(B, M, C)` of a head that `owns_unimodal_logits`."""
        raise NotImplementedError

    def balance_loss(self, shares: torch.Tensor | None, clips: torch.Tensor) -> torch.Tensor:
        """Relative-balance term of a head that `learns_from_calibration`, on its `shares`; 0 unless it has one.

        The `forward` of such a head also takes `freeze_allocation`, under which its own parameters get no gradient.
        """
        return torch.zeros((), device=clips.device)

    def shrinkage(self) -> torch.Tensor:
        """Penalty on the parameters of a head that `learns_from_calibration`; 0 unless it has one."""
        return torch.zeros((), device=next(self.parameters()).device)

    def init_weights(self) -> None:
        """Set parameters and buffers that are neither Linear nor LayerNorm, by `transformers.initialization`."""


FUSION_HEADS: dict[str, type[FusionHead]] = {}


def register_fusion_head(name: str) -> Callable[[type], type]:
    """Class decorator that makes a head available as `config.fusion = name`.

    Raises:
        ValueError: if another class already has the name.
    """

    def register(cls: type) -> type:
        taken = FUSION_HEADS.get(name)
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise ValueError(f"fusion head {name!r} is already registered ({taken.__qualname__}): choose another name")
        FUSION_HEADS[name] = cls
        return cls

    return register


def masked_log_softmax(modality_logits: torch.Tensor, modality_mask: torch.Tensor) -> torch.Tensor:
    """Log-softmax of every row `(B, M, C)`, 0 where the modality is missing."""
    return torch.log_softmax(modality_logits, dim=-1).masked_fill(~modality_mask.unsqueeze(-1), 0.0)


def mean_log_prob(log_probs: torch.Tensor, modality_mask: torch.Tensor) -> torch.Tensor:
    """Log of the mean probability over the modalities present: `(B, M, C)` -> `(B, C)`; zeros where none is."""
    missing = ~modality_mask.unsqueeze(-1)
    total = torch.logsumexp(log_probs.masked_fill(missing, -torch.inf), dim=1)
    pooled = total - modality_mask.sum(1, keepdim=True).clamp(min=1).log()
    return torch.where(modality_mask.any(1, keepdim=True), pooled, torch.zeros_like(pooled))


def shapley_contributions(
    fuse: Callable[[torch.Tensor], torch.Tensor], modality_mask: torch.Tensor, num_labels: int
) -> torch.Tensor:
    """Shapley value of every modality for the fused logits of a head that is not additive.

    phi_m = sum over S without m of |S|! (M - |S| - 1)! / M! (f(S + m) - f(S)), with f(empty) = 0 (Shapley, 1953).
    A missing modality gets 0, the rest sum to f(present).

    Args:
        fuse: Maps a mask `(B, M)` to fused logits `(B, C)`.
        modality_mask (`torch.BoolTensor` of shape `(B, M)`): Modalities present.
        num_labels: Number of classes.

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
            # A subset whose members are all missing is worth nothing; fuse() needs at least one modality.
            worth = inside.any(1, keepdim=True)
            value = fuse(torch.where(worth, inside, modality_mask))
            values[subset] = value * worth
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


__all__ = [
    "FUSION_HEADS",
    "FusionHead",
    "FusionOutput",
    "masked_log_softmax",
    "mean_log_prob",
    "register_fusion_head",
    "shapley_contributions",
]

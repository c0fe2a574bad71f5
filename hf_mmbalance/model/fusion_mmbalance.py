"""All fusion heads of the package behind one door; importing it fills the registry."""

from .fusion_adaptive_mmbalance import AdaptiveFusion, evidence
from .fusion_base_mmbalance import (
    FUSION_HEADS,
    FusionHead,
    FusionOutput,
    masked_log_softmax,
    mean_log_prob,
    register_fusion_head,
    shapley_contributions,
)
from .fusion_features_mmbalance import ConcatFusion, FilmFusion, GatedFusion
from .fusion_pooling_mmbalance import MeanProbFusion, MMCosineFusion, QMFFusion, SumFusion


__all__ = [
    "AdaptiveFusion",
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
    "evidence",
    "masked_log_softmax",
    "mean_log_prob",
    "register_fusion_head",
    "shapley_contributions",
]

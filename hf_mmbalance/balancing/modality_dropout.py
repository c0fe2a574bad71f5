"""Modality dropout: training clips lose a modality at random (Neverova et al., ModDrop, TPAMI 2016)."""

from __future__ import annotations

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification


@register_balancing_method("modality_dropout")
class ModalityDropout(BalancingMethod):
    """Joint training on clips that each modality leaves at a rate; one that would lose all keeps them.

    The model does the dropping (`config.modality_dropout`), so that it can be combined with any other method.

    Args:
        rates: Probability for each modality, or one for all; 0.3 by default.
    """

    needs_split = False

    def __init__(self, rates: float | list[float] = 0.3):
        self.rates = rates

    def attach(self, model: MMBalanceForAudioVisualClassification) -> None:
        super().attach(model)
        count = len(model.config.modalities)
        rates = [float(self.rates)] * count if isinstance(self.rates, int | float) else list(self.rates)
        model.config.modality_dropout = rates
        model.config.validate_modalities()

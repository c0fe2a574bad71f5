"""Modality dropout: training clips lose a modality at random (Neverova et al., ModDrop, TPAMI 2016)."""

from __future__ import annotations

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification


@register_balancing_method("modality_dropout")
class ModalityDropout(BalancingMethod):
    """Joint training on clips that lose each modality at a given rate; a clip that would lose all keeps them.

    The model does the dropping (`config.modality_dropout`), so that it can be combined with any other method.

    Args:
        rates: Probability for each modality, or one for all; 0.3 by default.

    Raises:
        ValueError: from `attach`, if the config does not accept the rates, or already has different ones.
    """

    needs_split = False

    def __init__(self, rates: float | list[float] = 0.3):
        self.rates = float(rates) if isinstance(rates, int | float) else [float(rate) for rate in rates]

    def attach(self, model: MMBalanceForAudioVisualClassification) -> None:
        super().attach(model)
        config = model.config
        rates = [self.rates] * len(config.modalities) if isinstance(self.rates, float) else self.rates
        if any(config.modality_dropout) and config.modality_dropout != rates:
            raise ValueError(
                f"modality_dropout: the method's rates are {rates}, the config's are {config.modality_dropout}; give"
                " only one of the two"
            )
        config.modality_dropout = rates
        config.validate_modalities()

"""What travels to the Hub with the weights; every file here works alone in a stranger's cache."""

from __future__ import annotations


def register_auto_classes() -> None:
    """Make transformers' Auto classes resolve `model_type="mmbalance"` to the classes of this package (idempotent)."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForAudioClassification,
        AutoModelForVideoClassification,
        AutoProcessor,
    )

    from hf_mmbalance.model.configuration_mmbalance import MMBalanceConfig
    from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
    from hf_mmbalance.model.processing_mmbalance import MMBalanceProcessor

    AutoConfig.register("mmbalance", MMBalanceConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForAudioClassification, AutoModelForVideoClassification):
        auto_class.register(MMBalanceConfig, MMBalanceForAudioVisualClassification, exist_ok=True)
    AutoProcessor.register(MMBalanceConfig, MMBalanceProcessor, exist_ok=True)

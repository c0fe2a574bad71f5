"""Model code that is saved with the weights; its files also work without this package installed."""

from __future__ import annotations


def register_auto_classes() -> None:
    """Register this package's classes and pipeline with transformers (`model_type="mmbalance"`); safe to repeat."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForAudioClassification,
        AutoModelForVideoClassification,
        AutoProcessor,
    )
    from transformers.pipelines import PIPELINE_REGISTRY

    from hf_mmbalance.model.configuration_mmbalance import MMBalanceConfig
    from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
    from hf_mmbalance.model.pipeline_mmbalance import TASK, AudioVisualClassificationPipeline
    from hf_mmbalance.model.processing_mmbalance import MMBalanceProcessor

    AutoConfig.register("mmbalance", MMBalanceConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForAudioClassification, AutoModelForVideoClassification):
        auto_class.register(MMBalanceConfig, MMBalanceForAudioVisualClassification, exist_ok=True)
    AutoProcessor.register(MMBalanceConfig, MMBalanceProcessor, exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.supported_tasks:  # registering twice would warn
        PIPELINE_REGISTRY.register_pipeline(
            TASK, AudioVisualClassificationPipeline, pt_model=AutoModel, type="multimodal"
        )

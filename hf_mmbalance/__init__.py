"""Audio-visual classification with adaptive, calibrated weights at the decision layer.

Names are imported on first use, so that `import hf_mmbalance` stays cheap and build workers need neither torch nor
transformers. Importing a model class also registers it with transformers' Auto classes.
"""

from __future__ import annotations

from hf_mmbalance._lazy import lazy_exports


__version__ = "0.1.0"

_MODEL_NAMES = {
    "MMBalanceConfig": "model.configuration_mmbalance",
    "MMBalanceForAudioVisualClassification": "model.modeling_mmbalance",
    "MMBalanceOutput": "model.modeling_mmbalance",
    "AudioVisualClassificationPipeline": "model.pipeline_mmbalance",
    "MMBalanceProcessor": "model.processing_mmbalance",
    "FusionHead": "model.fusion_mmbalance",
    "register_fusion_head": "model.fusion_mmbalance",
}
_OTHER_NAMES = {
    "MMBalanceTrainer": "training.trainer",
    "MMBalanceTrainingArguments": "training.arguments",
    "load_clips": "data",
}


def _prepare(name: str) -> None:
    """Register the Auto classes before a model class is imported."""
    if name in _MODEL_NAMES:
        from hf_mmbalance._environment import check_torchaudio
        from hf_mmbalance.model import register_auto_classes

        check_torchaudio()
        register_auto_classes()


__getattr__, __dir__, __all__ = lazy_exports(__name__, _MODEL_NAMES | _OTHER_NAMES, _prepare)

"""Audio-visual classification with adaptive, calibrated weights at the decision layer.

Names are imported on first use, so that `import hf_mmbalance` stays cheap and build workers need neither torch nor
transformers. Touching a model class also registers it with transformers' Auto classes.
"""

from __future__ import annotations

import importlib
from typing import Any


__version__ = "0.1.0"

_MODEL_NAMES = {
    "MMBalanceConfig": "hf_mmbalance.model.configuration_mmbalance",
    "MMBalanceForAudioVisualClassification": "hf_mmbalance.model.modeling_mmbalance",
    "MMBalanceOutput": "hf_mmbalance.model.modeling_mmbalance",
    "AudioVisualClassificationPipeline": "hf_mmbalance.model.pipeline_mmbalance",
    "MMBalanceProcessor": "hf_mmbalance.model.processing_mmbalance",
    "FusionHead": "hf_mmbalance.model.fusion_mmbalance",
    "register_fusion_head": "hf_mmbalance.model.fusion_mmbalance",
}
_OTHER_NAMES = {
    "MMBalanceTrainer": "hf_mmbalance.training.trainer",
    "MMBalanceTrainingArguments": "hf_mmbalance.training.arguments",
    "load_clips": "hf_mmbalance.data",
}

__all__ = ["__version__", *_MODEL_NAMES, *_OTHER_NAMES]


def __getattr__(name: str) -> Any:
    if name in _MODEL_NAMES:
        from hf_mmbalance._environment import check_torchaudio
        from hf_mmbalance.model import register_auto_classes

        check_torchaudio()
        register_auto_classes()
        return getattr(importlib.import_module(_MODEL_NAMES[name]), name)
    if name in _OTHER_NAMES:
        return getattr(importlib.import_module(_OTHER_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""What goes in: sources of clips, their splits, decoding, augmentation. Imports neither torch nor transformers."""

from __future__ import annotations

import importlib
from typing import Any


_NAMES = {
    "BayesOptimum": "bayes",
    "ClipDataset": "clips",
    "ClipSplits": "clips",
    "ClipsCorruptedByEpoch": "corruptions",
    "CorruptedClips": "corruptions",
    "CorruptionPlan": "corruptions",
    "DataError": "clips",
    "FolderOptions": "sources.folder",
    "GridOptions": "sources.grid",
    "HubOptions": "sources.hub",
    "MediaOptions": "options",
    "SyntheticOptions": "sources.synthetic",
    "TableOptions": "sources.table",
    "ClipStream": "streaming",
    "EpochOrder": "streaming",
    "load": "streaming",
    "load_clips": "sources",
    "options_class": "sources",
}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"hf_mmbalance.data.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Clip sources, splits, decoding and augmentation. Importing this package loads neither torch nor transformers."""

from hf_mmbalance._lazy import lazy_exports


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

__getattr__, __dir__, __all__ = lazy_exports(__name__, _NAMES)

"""What goes in: sources of clips, their splits, decoding, augmentation. Imports neither torch nor transformers."""

from hf_mmbalance._lazy import lazy_exports


_NAMES = {
    "BayesOptimum": "bayes",
    "ClipDataset": "clips",
    "ClipSplits": "clips",
    "DataError": "clips",
    "FolderOptions": "own_clips",
    "GridOptions": "sources.grid",
    "HubOptions": "sources.hub",
    "MediaOptions": "options",
    "SyntheticOptions": "sources.synthetic",
    "TableOptions": "own_clips",
    "ClipStream": "streaming",
    "EpochOrder": "streaming",
    "load": "streaming",
    "load_clips": "sources",
    "options_class": "sources",
}

__getattr__, __dir__, __all__ = lazy_exports(__name__, _NAMES)

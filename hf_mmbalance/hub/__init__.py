"""Push models, datasets, metrics and the demo to the Hub, in one commit each, and load models from it."""

from hf_mmbalance._lazy import lazy_exports


_NAMES = {
    "HubError": "errors",
    "explain_hub_errors": "errors",
    "load_classifier": "predict",
    "publish": "dataset_push",
    "publish_demo": "space_push",
    "publish_metric": "space_push",
    "push_folder": "commit",
    "push_model": "model_push",
    "push_saved": "model_push",
}

__getattr__, __dir__, __all__ = lazy_exports(__name__, _NAMES)

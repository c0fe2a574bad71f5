"""To the Hub and back: models, data sets, metrics and the demo, pushed in one commit each, with errors that help."""

from __future__ import annotations

import importlib
from typing import Any


_NAMES = {
    "HubError": "errors",
    "explained": "errors",
    "load_classifier": "predict",
    "publish": "dataset_push",
    "publish_demo": "space_push",
    "publish_metric": "space_push",
    "push_folder": "commit",
    "push_model": "model_push",
    "push_saved": "model_push",
    "without_tokens": "errors",
}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

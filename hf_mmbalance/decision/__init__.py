"""The decision layer: calibrate, allocate, diagnose, report; works on tables of unimodal logits from any model."""

from __future__ import annotations

import importlib
from typing import Any


_NAMES = {
    "DecisionTable": "hf_mmbalance.decision.table",
    "TableError": "hf_mmbalance.decision.table",
}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The decision layer: calibrate, allocate, diagnose, report; works on tables of unimodal logits from any model."""

from __future__ import annotations

import importlib
from typing import Any


#: Name -> module; no name is also a module's, since importing a module would put it in the name's place.
_NAMES = {
    "Allocation": "allocation",
    "Balance": "contributions",
    "DecisionReport": "evaluation",
    "DecisionTable": "table",
    "HeadState": "state",
    "TableError": "table",
    "balance": "contributions",
    "cross_fit_logits": "crossfit",
    "decide_folds": "evaluation",
    "decide_splits": "evaluation",
    "decide_table": "evaluation",
    "diagnose": "diagnosis",
    "fit_decision_layer": "allocation",
    "group_folds": "folds",
    "state_of_run": "state",
    "write_report": "report",
}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""The decision layer: calibrate, allocate, diagnose, report; works on tables of unimodal logits from any model."""

from __future__ import annotations

import importlib
from typing import Any


_NAMES = {
    "Allocation": "allocation",
    "Balance": "balance",
    "DecisionTable": "table",
    "DirichletCalibration": "calibration",
    "HeadState": "head",
    "IsotonicCalibration": "calibration",
    "TableError": "table",
    "TemperatureScaling": "calibration",
    "VectorScaling": "calibration",
    "balance": "balance",
    "cross_fit_logits": "crossfit",
    "decide_folds": "decide",
    "decide_splits": "decide",
    "diagnose": "diagnose",
    "group_folds": "folds",
    "write_report": "report",
}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""The decision layer: calibrate, allocate, diagnose, report; works on tables of unimodal logits from any model."""

from hf_mmbalance._lazy import lazy_exports


_NAMES = {
    "Allocation": "allocation",
    "fit_decision_layer": "allocation",
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

__getattr__, __dir__, __all__ = lazy_exports(__name__, _NAMES)

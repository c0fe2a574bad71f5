"""The decision layer: calibration, allocation, diagnosis and reports for tables of unimodal logits from any model."""

from hf_mmbalance._lazy import lazy_exports


#: Public name -> module. No name may equal that of a submodule: importing the submodule would replace the name.
_NAMES = {
    "Allocation": "allocation",
    "Balance": "contributions",
    "DecisionReport": "evaluation",
    "DecisionTable": "table",
    "HeadState": "state",
    "TableError": "table",
    "balance": "contributions",
    "compare_sources": "compare",
    "cross_fit_logits": "crossfit",
    "decide_folds": "evaluation",
    "decide_splits": "evaluation",
    "decide_table": "evaluation",
    "diagnose": "diagnosis",
    "fit_decision_layer": "allocation",
    "group_folds": "folds",
    "read_source": "compare",
    "state_of_run": "state",
    "write_report": "report",
}

__getattr__, __dir__, __all__ = lazy_exports(__name__, _NAMES)

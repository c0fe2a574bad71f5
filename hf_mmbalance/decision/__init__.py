"""The decision layer: calibrate, allocate, diagnose, report; works on tables of unimodal logits from any model."""

from hf_mmbalance._lazy import lazy_exports


#: Name -> module; no name is also a module's, since importing a module would put it in the name's place.
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

"""One door to every source of clips."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import fields
from typing import Any

from hf_mmbalance.data.clips import ClipSplits, DataError


# name -> module, options, loader
SOURCES = {
    "synthetic": ("synthetic", "SyntheticOptions", "synthetic_clips"),
    "grid": ("grid", "GridOptions", "grid_clips"),
}


def source_of(dataset: str) -> str:
    """Which source reads a data set of this name: `synthetic`, `grid`.

    Raises:
        DataError: nothing is there under that name.
    """
    if dataset in SOURCES:
        return dataset
    raise DataError(f"unknown data set {dataset!r}; known are {', '.join(SOURCES)}")


def options_class(dataset: str) -> type:
    """The options dataclass of a data set, each field with a help text."""
    module, name, _ = SOURCES[source_of(dataset)]
    return getattr(importlib.import_module(f"hf_mmbalance.data.{module}"), name)


def load_clips(dataset: str, **options: Any) -> ClipSplits:
    """Load a data set in splits.

    Args:
        dataset: `synthetic`, `grid`.
        **options: fields of `options_class(dataset)`.

    Returns:
        `ClipSplits` with at least a train split; calibration and validation are taken from train where the source
        has none, and `notes` says so.

    Raises:
        DataError: an unknown data set or option, or data that cannot be used; says which and what to do.
    """
    kind = options_class(dataset)
    known = [entry.name for entry in fields(kind)]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise DataError(f"{dataset} has no option {name!r}{hint} (it has {', '.join(known)})")
    module, _, loader = SOURCES[source_of(dataset)]
    return getattr(importlib.import_module(f"hf_mmbalance.data.{module}"), loader)(kind(**options))

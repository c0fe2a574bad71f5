"""Decision tables as text (CSV), as written by spreadsheets and `DataFrame.to_csv`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.text_tables import read_text_table


PREFIXES = ("logits", "features", "reference")
_LIST = re.compile(r"[\s,;]+")


def read_columns(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the columns of a decision table, and the class names that its header gives.

    A matrix is either one column of lists (`logits.audio` with cells such as `[0.1, 2.3]`, as pandas writes them) or
    one column per class (`logits.audio.dog`, `logits.audio.cat`, in the same order for every modality; the part after
    the second dot is the class). Columns numbered 0, 1, 2, ... do not name classes, and labels are then indices. Empty
    cells are missing values.

    Raises:
        ValueError: if a cell is not a number, or columns are for different classes; the message names column and row.
    """
    rows = read_text_table(path, ("id", "label", "group", "split"))
    if not rows:
        raise ValueError("the table has no rows.")
    columns: dict[str, Any] = {}
    wide: dict[str, list[str]] = {}
    for name in rows[0]:
        cells = [row[name].strip() for row in rows]
        kind, _, rest = name.partition(".")
        if kind not in PREFIXES:
            columns[name] = _plain(name, cells)
        elif "." in rest:
            wide.setdefault(".".join(name.split(".", 2)[:2]), []).append(name)
        else:
            columns[name] = _matrix(name, cells)
    for name, parts in wide.items():
        columns[name] = np.stack([_numbers(part, [row[part] for row in rows]) for part in parts], axis=1)
    meta = _classes({name: parts for name, parts in wide.items() if not name.startswith("features.")})
    if "label" in columns and any(name.isdigit() for name in meta.get("classes", ())):
        columns["label"] = [row["label"].strip() for row in rows]  # class names, not positions in the header
    return columns, meta


def _classes(wide: dict[str, list[str]]) -> dict[str, Any]:
    """Return class names from the column names, unless these are only numbered from 0 in order."""
    named = {name: [part.split(".", 2)[2] for part in parts] for name, parts in wide.items()}
    first = next(iter(named.values()), [])
    for name, classes in named.items():
        if classes != first:
            raise ValueError(f"columns {name}.* are for the classes {classes}, others for {first}; use one order.")
    return {} if first == [str(number) for number in range(len(first))] else {"classes": first}


def _plain(name: str, cells: list[str]) -> Any:
    if name == "group":
        return [cell or None for cell in cells]
    if name in ("id", "label", "clip", "draw", "split") and not all(cells):
        raise ValueError(f"column {name!r} has {cells.count('')} empty entries.")
    if name in ("label", "draw") and all(re.fullmatch(r"-?\d+", cell) for cell in cells):
        return _numbers(name, cells).astype(np.int64)
    return cells


def _numbers(name: str, cells: list[str], row: int | None = None) -> np.ndarray:
    """Return the numbers in a column's cells, or in the list of its cell in one `row`; NaN where empty."""
    found = np.full(len(cells), np.nan)
    for place, cell in enumerate(cells):
        if cell.strip():
            try:
                found[place] = float(cell)
            except ValueError:
                number = (place if row is None else row) + 1
                raise ValueError(f"row {number}, column {name!r}: {cell!r} is not a number.") from None
    return found


def _matrix(name: str, cells: list[str]) -> np.ndarray:
    rows = [[part for part in _LIST.split(cell.strip("[]() ")) if part] for cell in cells]
    widths = sorted({len(row) for row in rows if row})
    if len(widths) > 1:
        raise ValueError(f"column {name!r} has lists of different lengths: {widths}.")
    width = widths[0] if widths else 0
    found = np.full((len(rows), width), np.nan)
    for index, row in enumerate(rows):
        if row:
            found[index] = _numbers(name, row, index)
    return found

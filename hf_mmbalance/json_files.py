"""JSON as this package writes it: always valid, and never half a file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def json_text(content: Any) -> str:
    """The content as JSON text; numbers that are not finite are null, since JSON has no NaN.

    NumPy scalars and arrays are written as numbers and lists, anything else that JSON does not know as its text.
    """
    text = json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    # The name of a file may not be UTF-8: its stray bytes become escapes such as \udce9, which JSON has.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half of it.

    Raises:
        OSError: the file cannot be written; the error names it, and no draft is left.
    """
    text = json_text(content)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():  # a pipe or a device such as /dev/null must not be replaced
            path.write_text(text, encoding="utf-8")
            return
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # NumPy and torch, without importing either
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value

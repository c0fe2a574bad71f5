"""JSON files that are always valid and never half written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def json_text(content: Any) -> str:
    """Return the content as JSON text; numbers that are not finite become null, since JSON has no NaN.

    NumPy scalars and arrays become numbers and lists. Any other type that JSON does not support becomes its `str`.
    """
    text = json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    # A file name may not be valid UTF-8: its stray bytes become escapes such as \udce9, which JSON allows.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that a reader sees either the old or the new version, never half of it.

    Raises:
        OSError: if the file cannot be written; the error names it, and no draft is left behind.
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

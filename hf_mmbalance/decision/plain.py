"""Reports as plain values that are always valid JSON: undefined values are null, listed with the reason."""

from __future__ import annotations

import math
from typing import Any


#: Name of a value, or of values by modality -> why it can be undefined.
REASONS = {
    "lost": "no modality gets any of these clips right",
    "rescued": "this modality is never the only one to get a clip right",
    "index": "no class has evaluated clips of every modality",
    "value": "no class has evaluated clips of every modality",
    "scatter_ratio": "the features do not vary within classes",
    "alignment": "no class has two clips with features",
    "cka": "the features of a modality are constant",
}


def clips_and_draws(clips: int, rows: int) -> str:
    """Return `60 clips`, or `60 clips (180 draws)` if there are several draws of a clip."""
    return f"{clips:,} clips" + (f" ({rows:,} draws)" if rows > clips else "")


def plain_report(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report with null for NaN and infinities, and a list `undefined` of {path, reason}."""
    undefined: list[dict[str, str]] = []
    found: dict[str, Any] = _plain(report, "", undefined)
    return found | {"undefined": undefined}


def _plain(value: Any, path: str, undefined: list[dict[str, str]]) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item, f"{path}.{key}" if path else str(key), undefined) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{i}]", undefined) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        names = [part.split("[", 1)[0] for part in reversed(path.split("."))]
        reason = next((REASONS[name] for name in names if name in REASONS), "not defined for these clips")
        undefined.append({"path": path, "reason": reason})
        return None
    return value

"""Reports as plain values that are always valid JSON: what is not defined is null, with the reason beside it."""

from __future__ import annotations

import math
from typing import Any


#: Name of a value -> why it can be undefined.
REASONS = {
    "lost": "no modality gets any of these clips right",
    "index": "no class has judged clips with two modalities",
    "value": "no class has judged clips with two modalities",
    "scatter_ratio": "the features do not vary within classes",
    "effective_rank": "the features are constant",
    "alignment": "no class has two clips with features",
    "uniformity": "the features are constant",
    "cka": "the features of a modality are constant",
}


def plain_report(report: dict[str, Any]) -> dict[str, Any]:
    """The report with null for NaN and infinities, and a list `undefined` of {path, reason}."""
    undefined: list[dict[str, str]] = []
    found: dict[str, Any] = _plain(report, "", undefined)
    return found | {"undefined": undefined}


def _plain(value: Any, path: str, undefined: list[dict[str, str]]) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item, f"{path}.{key}" if path else str(key), undefined) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{i}]", undefined) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        name = path.rsplit(".", 1)[-1].split("[", 1)[0]
        undefined.append({"path": path, "reason": REASONS.get(name, "not defined for these clips")})
        return None
    return value

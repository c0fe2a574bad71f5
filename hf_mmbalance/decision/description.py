"""Description of a decision layer: plain values and lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_mmbalance.decision.state import ORDER, SLOPE, HeadState


def describe_state(state: HeadState, modalities: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """Return temperatures, prior, weights, biases and slopes by name, and `lines` with the same as text."""

    def by_modality(values: np.ndarray) -> dict[str, Any]:
        return dict(zip(modalities, values.tolist(), strict=True))

    found: dict[str, Any] = {
        "calibration": state.calibration,
        "temperature": by_modality(np.exp(state["log_temperature"])),
        "prior": dict(zip(classes, np.exp(state["log_prior"]).tolist(), strict=True)),
        "weights": by_modality(state["weights"]),
        "bias": dict(zip(classes, state["bias"].tolist(), strict=True)),
        "typicality_slope": by_modality(state[SLOPE]) if SLOPE in state.arrays else None,
    }
    return found | {"lines": _lines(state, found)}


def _lines(state: HeadState, found: dict[str, Any]) -> list[str]:
    spans = {name: (min(row), max(row)) for name, row in found["weights"].items()}
    lines = ["temperature " + ", ".join(f"{name} {value:.3g}" for name, value in found["temperature"].items())]
    if ORDER in state.arrays:
        names = [list(spans)[int(m)] for m in state[ORDER]]
        lines.append(f"each clip is decided by the first of {', '.join(names)} that it has")
    else:
        lines.append("weight " + ", ".join(
            f"{name} {low:.3g}" if high - low < 1e-9 else f"{name} {low:.3g} to {high:.3g} by class"
            for name, (low, high) in spans.items()
        ))  # fmt: skip
    prior = np.exp(state["log_prior"])
    lines.append(f"prior {prior.min():.3g} to {prior.max():.3g}, counted once")
    if np.any(state["prior_shift"]):
        shift = np.exp(state["prior_shift"])
        lines.append(f"prior at deployment, {shift.min():.3g} to {shift.max():.3g} times that of the fit")
    if np.any(state["bias"]):
        lines.append(f"class bias {state['bias'].min():+.3g} to {state['bias'].max():+.3g}")
    if state.calibration != "temperature":
        lines.append(f"{state.calibration} calibration map per modality, applied before its temperature")
    if found["typicality_slope"] is not None:
        slopes = ", ".join(f"{name} {value:.3g}" for name, value in found["typicality_slope"].items())
        lines.append(f"typicality slope {slopes} (log 1/T per standard deviation of the clean clips)")
    return lines

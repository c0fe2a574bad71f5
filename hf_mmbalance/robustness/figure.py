"""Curves of accuracy, NLL and trust against severity, one panel per kind of corruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mmbalance.decision.figures import draw, legend_columns, panels, save
from hf_mmbalance.robustness.cells import CLEAN


if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colour-blind safe palette (Okabe & Ito); lines also differ by marker.
COLOURS = ("#0072b2", "#d55e00", "#999999", "#e69f00", "#000000", "#009e73", "#cc79a7", "#56b4e9")
MARKERS = "os^vDPX*"
LABELS = {"accuracy": "accuracy (%)", "nll": "NLL (nats)", "trust": "mean trust (%)"}
COLUMNS = 4


def write_figures(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write `accuracy`, `nll` and, if the model returns it, `trust` as PNG, SVG and PDF; return the files."""
    clean = next(row for row in report["cells"] if row["kind"] == CLEAN)
    others = [row for row in report["cells"] if row["kind"] != CLEAN]
    shown = [measure for measure in LABELS if others and measure in clean]
    return [file for measure in shown for file in save(draw(_curves, clean, others, measure), folder / measure)]


def _curves(clean: dict[str, Any], others: Sequence[dict[str, Any]], measure: str) -> Figure:
    """Draw one panel per kind of corruption."""
    kinds = list(dict.fromkeys(row["kind"] for row in others))
    rows, columns = -(-len(kinds) // COLUMNS), min(len(kinds), COLUMNS)
    figure, axes = panels(rows, columns, (2.6 * columns + 0.6, 2.1 * rows + 0.7), sharey=True)
    for panel in axes[len(kinds) :]:
        panel.set_axis_off()
    for kind, panel in zip(kinds, axes, strict=False):
        cells = [clean, *(row for row in others if row["kind"] == kind)]
        _draw(panel, cells, measure, f"{kind}{' (seen)' if cells[-1]['seen'] else ''}")
    for panel in axes[::columns]:
        panel.set_ylabel(LABELS[measure])
    figure.supxlabel("severity (0: clean)")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=legend_columns(figure, names), fontsize=9)
    return figure


def _draw(panel: Any, cells: Sequence[dict[str, Any]], measure: str, title: str) -> None:
    factor = 1.0 if measure == "nll" else 100.0
    for place, method in enumerate(cells[0][measure]):
        points = [(cell["severity"], cell[measure][method]) for cell in cells]
        points = [(severity, found) for severity, found in points if found["mean"] is not None]
        at = [severity for severity, _ in points]
        colour = COLOURS[place % len(COLOURS)]
        panel.plot(
            at, [factor * found["mean"] for _, found in points], color=colour, marker=MARKERS[place % len(MARKERS)],
            markersize=3.5, linewidth=1.8 if method == "fused" else 1.2, label=method,
        )  # fmt: skip
        if method == "fused":
            low, high = ([factor * found["ci"][end] for _, found in points] for end in (0, 1))
            panel.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
    panel.set_title(title, fontsize=9)
    panel.set_xticks(range(6))
    panel.set_xlim(-0.3, 5.3)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3, linewidth=0.6)

"""Curves of accuracy, NLL and trust against severity, one panel per kind of corruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_mmbalance.decision.figures import save
from hf_mmbalance.robustness.cells import CLEAN


#: Colour-blind safe (Okabe & Ito); lines differ by marker too.
COLOURS = ("#0072b2", "#d55e00", "#999999", "#e69f00", "#000000", "#009e73", "#cc79a7", "#56b4e9")
MARKERS = "os^vDPX*"
LABELS = {"accuracy": "accuracy (%)", "nll": "NLL (nats)", "trust": "mean trust (%)"}
COLUMNS = 4


def write_figures(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write `accuracy`, `nll` and, where the model gives it, `trust` as PNG, SVG and PDF; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    clean = next(row for row in report["cells"] if row["kind"] == CLEAN)
    kinds = list(dict.fromkeys(row["kind"] for row in report["cells"] if row["kind"] != CLEAN))
    files: list[Path] = []
    for measure in ("accuracy", "nll", "trust") if kinds else ():
        if measure not in clean:
            continue
        rows = -(-len(kinds) // COLUMNS)
        columns = min(len(kinds), COLUMNS)
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(2.6 * columns + 0.6, 2.1 * rows + 0.7), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for panel in axes.flat[len(kinds) :]:
            panel.set_axis_off()
        for kind, panel in zip(kinds, axes.flat, strict=False):
            cells = [clean, *(row for row in report["cells"] if row["kind"] == kind)]
            _draw(panel, cells, measure, f"{kind}{' (seen)' if cells[-1]['seen'] else ''}")
        for panel in axes[:, 0]:
            panel.set_ylabel(LABELS[measure])
        figure.supxlabel("severity (0: clean)")
        handles, names = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
        files += save(figure, folder / measure)
        pyplot.close(figure)
    return files


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

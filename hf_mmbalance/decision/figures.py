"""Figures of a diagnosis, each drawn once for the page (SVG that follows its theme) and for print."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: One per modality, as many as a diagnosis accepts; the first are close to Okabe & Ito's for the colour-blind. CSS
#: variables override them in the dark theme of the page.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#aa4499", "#997700", "#56b4e9"),
    *("#332288", "#aacc66", "#442222", "#ee99aa", "#0000ee", "#888888"),
)
INK, GRID, POSITIVE, NEGATIVE = "#1b1e23", "#d4d7dc", "#0173b2", "#de8f05"
MAX_CLASSES = 20
#: Colour in the drawing -> CSS variable of the page.
THEME = {INK: "--ink", GRID: "--line", POSITIVE: "--good", NEGATIVE: "--bad"} | {
    colour: f"--m{i}" for i, colour in enumerate(COLOURS)
}
STYLE: Any = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # labels come from user data: "$5" is not a formula
}
#: Font families by preference; later ones supply scripts that the first lacks.
FAMILIES = (
    *("Helvetica", "Arial", "DejaVu Sans", "Noto Sans", "Arial Unicode MS"),
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Malgun Gothic"),
    *("WenQuanYi Micro Hei", "Droid Sans Fallback", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai"),
)
Report = dict[str, Any]


@contextmanager
def styled() -> Iterator[None]:
    """Apply the project's style without changing the caller's matplotlib settings.

    A script that no installed font has is drawn as boxes in PNG and as text in SVG, without a warning per glyph.
    """
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    families = [name for name in FAMILIES if name in installed]
    with matplotlib.rc_context(STYLE | {"font.sans-serif": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG (200 dpi), SVG and PDF with real text, replacing the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = path.with_suffix("") if path.suffix in (".png", ".svg", ".pdf") else path
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "svg", "pdf")]
    with styled():
        for file in files:
            figure.savefig(file, dpi=200, facecolor="white")
    return files


def shown_classes(report: Report) -> list[int]:
    """Return the classes that a figure shows: all up to 20, else the 20 with the largest lean."""
    classes = len(report["classes"])
    if classes <= MAX_CLASSES:
        return list(range(classes))
    lean = report["balance"][report["in_use"]["method"]]["lean"].values()
    size = np.max([[0.0 if v is None else abs(v) for v in row] for row in lean], axis=0)
    return sorted(np.argsort(-size)[:MAX_CLASSES].tolist())


def weights_by_class(report: Report) -> Figure:
    """Draw capability, weight and lean of every modality, class by class."""
    classes, names = shown_classes(report), report["modalities"]
    found = report["balance"][report["in_use"]["method"]]
    figure, axes = panels(1, 3, (9.2, 1.3 + 0.13 * (len(names) + 1) * len(classes)), sharey=True)
    shown: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = [
        ("Capability (recall above chance)", found["capability"], found["capability_ci"]),
        (
            f"Effective weight ({'model in use' if report['weights_of'] == 'model' else 'refitted'})",
            report["weights"],
            None,
        ),
        ("Lean (participation −\ncapability share)", found["lean"], found["lean_ci"]),
    ]
    for ax, (title, values, intervals) in zip(axes, shown, strict=True):
        _grouped_bars(ax, values, intervals, names, classes)
        ax.set_title(title)
        ax.grid(axis="x")
    axes[0].set_yticks(np.arange(len(classes)), [_short(report["classes"][c]) for c in classes])
    axes[0].set_ylim(len(classes) - 0.4, -0.6)
    _legend(figure, names)
    return figure


def trust_by_clip(report: Report) -> Figure:
    """Draw how much the decision layer trusts each modality, for clips that the modality gets right and wrong."""
    trust = report["in_use"]["trust"]
    figure, axes = panels(1, len(trust), (4.4 * len(trust), 2.5), sharey=True)
    for m, (ax, (name, found)) in enumerate(zip(axes, trust.items(), strict=True)):
        colour = COLOURS[m % len(COLOURS)]
        for what, filled in (("right", True), ("wrong", False)):
            data = found[what]
            part = np.array(data["count"]) / max(1, found["right"]["n"] + found["wrong"]["n"])
            label = f"{what} ({data['n']} clips)"
            if filled:
                ax.stairs(part, data["edges"], fill=True, color=colour, alpha=0.35, label=label)
            else:
                ax.stairs(part, data["edges"], color=INK, linewidth=1.4, linestyle="--", label=label)
        slope = (report["in_use"]["typicality_slope"] or {}).get(name)
        more = "" if slope is None else f", typicality slope {slope:.2f}"
        ax.set_title(f"{name}: temperature {report['in_use']['temperature'][name]:.2f}{more}")
        ax.set(xlim=(0, 1), xlabel="trust")
        ax.legend(loc="best", fontsize=8)
        ax.grid(axis="y")
    axes[0].set_ylabel("fraction of clips")
    return figure


def participation(report: Report) -> Figure:
    """Draw participation against capability share, one point per class, one panel per fusion."""
    methods = [name for name in ("sum", "class", "model", "adaptive") if name in report["balance"]]
    figure, axes = panels(1, len(methods), (3.1 * len(methods), 3.4), sharey=True)
    classes = shown_classes(report)
    for ax, method in zip(axes, methods, strict=True):
        found = report["balance"][method]
        ax.plot([0, 1], [0, 1], color=GRID, linewidth=1.2, zorder=1)
        for m, name in enumerate(report["modalities"]):
            x = [found["capability_share"][name][c] for c in classes]
            y = [found["participation"][name][c] for c in classes]
            there = [i for i in range(len(classes)) if x[i] is not None and y[i] is not None]
            ends = [found["participation_ci"][name][classes[i]] or (y[i], y[i]) for i in there]
            low, high = zip(*ends, strict=True) if ends else ((), ())
            colour = COLOURS[m % len(COLOURS)]
            ax.vlines([x[i] for i in there], low, high, color=colour, alpha=0.35, linewidth=1, zorder=2)
            ax.scatter([x[i] for i in there], [y[i] for i in there], s=22, color=colour, zorder=3)
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xlabel="capability share")
        ax.set_title(f"{method}: index {found['index']:.3f}" if found["index"] is not None else method)
        ax.grid()
    axes[0].set_ylabel("participation")
    _legend(figure, report["modalities"])
    return figure


def reliability_diagrams(report: Report) -> Figure:
    """Draw accuracy against confidence for every modality, the sum and `adaptive`."""
    methods = [name for name in [*report["modalities"], "sum", "model", "adaptive"] if name in report["calibration"]]
    figure, axes = panels(1, len(methods), (2.5 * len(methods), 2.9), sharey=True)
    for ax, method in zip(axes, methods, strict=True):
        found = report["calibration"][method]
        data = found["reliability"]
        ax.plot([0, 1], [0, 1], color=GRID, linewidth=1.2)
        size = np.sqrt(np.array(data["count"]) / max(found["n"], 1))
        own = report["modalities"].index(method) % len(COLOURS) if method in report["modalities"] else None
        colour = INK if own is None else COLOURS[own]
        ax.plot(data["confidence"], data["accuracy"], color=colour, linewidth=1)
        ax.scatter(data["confidence"], data["accuracy"], s=8 + 90 * size, color=colour)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel="confidence")
        ax.set_title(f"{_short(method, 16)}: ECE {found['ece']:.3f}")
        ax.grid()
    axes[0].set_ylabel("accuracy")
    return figure


def waterfalls(report: Report) -> Figure:
    """Draw how the margin of the label over its rival adds up in single clips."""
    clips = report["clips"]
    figure, axes = panels(1, max(1, len(clips)), (2.7 * max(1, len(clips)), 3.2), sharey=False)
    for ax, clip in zip(axes, clips, strict=False):
        steps = [("bias", clip["bias"]), *clip["terms"].items()]
        base = 0.0
        for i, (_, value) in enumerate(steps):
            ax.bar(i, value, bottom=base, width=0.62, color=POSITIVE if value >= 0 else NEGATIVE)
            ax.plot([i - 0.31, i + 1.31], [base + value] * 2, color=INK, linewidth=0.6)
            base += value
        ax.bar(len(steps), base, width=0.62, color=INK)
        ax.axhline(0, color=INK, linewidth=0.6)
        ax.use_sticky_edges = False
        ax.margins(y=0.08)
        labels = [_short(name, 9) for name in [*(name for name, _ in steps), "margin"]]
        ax.set_xticks(range(len(labels)), labels, rotation=0 if len(labels) <= 4 else 40)
        ax.set_title(
            f"{_short(clip['id'], 20)}\n{_short(clip['label'])} over {_short(clip['rival'])}: {base:+.1f}", fontsize=9
        )
        ax.grid(axis="y")
    axes[0].set_ylabel("log odds of the label")
    return figure


def index_by_method(reports: Sequence[Report], names: Sequence[str]) -> Figure:
    """Draw the relative balance index with intervals, with the fusions of several tables side by side."""
    methods = list(dict.fromkeys(method for report in reports for method in report["balance"]))
    height = 1.0 + 0.24 * len(methods) * max(1, len(reports)) ** 0.7
    figure, axes = panels(1, 1, (6.4, height), sharey=False)
    ax, step = axes[0], 0.7 / len(reports)
    for r, report in enumerate(reports):
        for i, method in enumerate(methods):
            found = report["balance"].get(method)
            if found is None:
                continue
            y, colour = i + (r - (len(reports) - 1) / 2) * step, COLOURS[r % len(COLOURS)] if len(reports) > 1 else INK
            if found["index_ci"]:
                ax.plot(found["index_ci"], [y, y], color=colour, linewidth=1.6, alpha=0.6)
            if found["index"] is not None:
                ax.scatter([found["index"]], [y], s=26, color=colour)
    ax.set_yticks(range(len(methods)), methods)
    ax.invert_yaxis()
    ax.set_xlabel("relative balance index (1 = each modality counts for what it is worth)")
    ax.grid(axis="x")
    if len(reports) > 1:
        _legend(figure, names)
    return figure


def margins(report: Report) -> Figure:
    """Draw a histogram of every modality's logit margin (largest minus second), the scale behind a lean."""
    names = [name for name in report["modalities"] if report["modality_detail"][name]["n"]]
    figure, axes = panels(1, 1, (6.4, 2.4), sharey=False)
    for name in names:
        data = report["modality_detail"][name]["margin_histogram"]
        count = np.array(data["count"]) / max(1, sum(data["count"]))
        colour = COLOURS[report["modalities"].index(name) % len(COLOURS)]
        axes[0].stairs(count, data["edges"], color=colour, linewidth=1.5)
        axes[0].stairs(count, data["edges"], color=colour, fill=True, alpha=0.15)
    axes[0].set(xlabel="largest minus second logit", ylabel="fraction of clips")
    axes[0].grid(axis="y")
    _legend(figure, report["modalities"])
    return figure


def balance_curve(report: Report) -> Figure:
    """Draw accuracy against balance index for class weights under growing penalties towards capability shares."""
    figure, axes = panels(1, 1, (6.4, 2.9), sharey=False)
    ax, points = axes[0], [point for point in report["balance_curve"] if point["index"] is not None]
    x, y = [point["index"] for point in points], [100 * point["accuracy"] for point in points]
    ax.plot(x, y, color=GRID, linewidth=1.2)
    for point, at, height in zip(points, x, y, strict=True):
        ax.vlines(at, *(100 * end for end in point["accuracy_ci"]), color=INK, linewidth=0.8, alpha=0.5)
        ax.annotate(f"{point['penalty']:g}", (at, height), textcoords="offset points", xytext=(4, 4), fontsize=8)
    ax.scatter(x, y, s=26, color=COLOURS[0])
    ax.set(xlabel="relative balance index", ylabel="accuracy, %")
    ax.grid()
    return figure


def comparison(found: Report) -> Figure:
    """Draw accuracy and NLL with intervals for every line of a comparison (`mmbalance compare`)."""
    rows = [row for row in found["rows"] if row["n"]]
    names = list(dict.fromkeys(row["configuration"] for row in rows))
    figure, axes = panels(1, 2, (9.2, 0.9 + 0.26 * len(rows)), sharey=True)
    for ax, (measure, title, factor) in zip(axes, (("accuracy", "accuracy, %", 100), ("nll", "NLL", 1)), strict=True):
        for y, row in enumerate(rows):
            colour = COLOURS[names.index(row["configuration"]) % len(COLOURS)]
            layer = row["kind"] not in ("modality", "no parameters")  # has a different marker
            ax.plot([factor * end for end in row[f"{measure}_ci"]], [y, y], color=colour, linewidth=1.8, alpha=0.6)
            ax.scatter([factor * row[measure]], [y], s=30, color=colour, marker="D" if layer else "o", zorder=3)
        ax.set_xlabel(title)
        ax.grid(axis="x")
    shown = [_short(f"{row['configuration']}: {row['method']}", 40) for row in rows]
    axes[0].set_yticks(range(len(rows)), shown)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


#: File name -> function that draws one report; `index_by_method`, which accepts several, is not among them.
FIGURES: dict[str, Callable[[Report], Figure]] = {
    "weights_by_class": weights_by_class,
    "trust": trust_by_clip,
    "participation": participation,
    "reliability": reliability_diagrams,
    "waterfalls": waterfalls,
    "margins": margins,
    "balance_curve": balance_curve,
}


def draw(function: Callable[..., Figure], *arguments: Any) -> Figure:
    """Draw a figure in the project's style."""
    with styled():
        figure = function(*arguments)
        figure.draw_without_rendering()
    # The layout is final now; saving in three formats must not compute it again.
    figure.set_layout_engine("none")
    return figure


def themed_svg(figure: Figure, salt: str) -> str:
    """Return SVG for the page: transparent, with real text and CSS variables that default to the print colours."""
    import matplotlib

    buffer = io.StringIO()
    with styled(), matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    for colour, variable in THEME.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    # Remove ids that repeat between figures of a page (figure_1, axes_1, ...), but keep the hashed ids of clip paths.
    text = re.sub(r' id="(?!p[0-9a-f]{8,}|m[0-9a-f]{8,})[^"]*"', "", text)
    return re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', _svg_tag, text, count=1)


def _svg_tag(match: re.Match[str]) -> str:
    width = float(match.group(1).split()[2])
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} viewBox="{match.group(1)}" style="width:{width * 4 / 3:.0f}px" role="img">'


def panels(rows: int, columns: int, size: tuple[float, float], *, sharey: bool) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of `size` inches and its axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel())


def _grouped_bars(
    ax: Axes, values: dict[str, Any], intervals: dict[str, Any] | None, names: Sequence[str], classes: Sequence[int]
) -> None:
    height = 0.8 / len(names)
    for m, name in enumerate(names):
        y = np.arange(len(classes)) + (m - (len(names) - 1) / 2) * height
        width = [values[name][c] or 0.0 for c in classes]
        ax.barh(y, width, height=height * 0.88, color=COLOURS[m % len(COLOURS)])
        if intervals:
            ends = [intervals[name][c] or (width[i], width[i]) for i, c in enumerate(classes)]
            ax.hlines(y, *zip(*ends, strict=True), color=INK, linewidth=0.8)
    ax.axvline(0, color=INK, linewidth=0.6)


def _legend(figure: Figure, names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=COLOURS[i % len(COLOURS)], label=_short(name, 40)) for i, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside upper left", ncols=legend_columns(figure, names), fontsize=9)


def legend_columns(figure: Figure, names: Sequence[str]) -> int:
    """Return how many columns of a legend fit into the figure; a wider legend would be cut off at the edges."""
    widest = 0.6 + 0.075 * max(map(len, names))  # inches: marker, gaps and 9-point letters
    return max(1, min(len(names), int(figure.get_size_inches()[0] / widest)))


def _short(text: str, length: int = 22) -> str:
    """Shorten a long text to its beginning and end: names of classes and files often differ only at the end."""
    kept = length - 1
    return text if len(text) <= length else f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"

"""Output of a comparison: text for the terminal, a CSV file and a LaTeX table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from hf_mmbalance import console
from hf_mmbalance.decision.plain import clips_and_draws
from hf_mmbalance.metrics.sums import MEASURES


Comparison = dict[str, Any]
#: Measure -> printed title, factor and number of digits.
SHOWN = {
    "accuracy": ("accuracy", 100, 1),
    "macro_f1": ("macro-F1", 100, 1),
    "nll": ("NLL", 1, 3),
    "ece": ("ECE", 1, 3),
}
SAME_SEEDS = "± standard deviation over seeds"


def text_of(found: Comparison) -> str:
    """Return the comparison as text."""
    several = f"; {SAME_SEEDS}" if any(row["seeds"] > 1 for row in found["rows"]) else ""
    lines = [
        f"{clips_and_draws(found['n_clips'], found['n'])}, {len(found['classes'])} classes, {found['groups']} groups;"
        f" [95 % interval], bootstrap"
        f" over {found['ci_unit']}s{several}"
    ]
    head = ["configuration", "method", "seeds", "n", *(title for title, _, _ in SHOWN.values())]
    last, cells = None, []
    for row in found["rows"]:
        name = "" if row["configuration"] == last else row["configuration"]
        last = row["configuration"]
        cells.append([name, _method(row), str(row["seeds"]), str(row["n"]), *(_cell(row, name) for name in SHOWN)])
    lines.append(console.table(head, cells, left=2))
    if found["differences"]:
        lines.append("\npaired differences on the same clips; p by sign flips of whole"
                     f" {found['ci_unit']}s, Holm correction over {len(found['differences'])}")  # fmt: skip
        head = ["first", "second", "accuracy, points", "p (Holm)", "NLL", "p (Holm)"]
        rows = [[d["first"], d["second"], *_difference(d, "accuracy", 100, 1), *_difference(d, "nll", 1, 3)]
                for d in found["differences"]]  # fmt: skip
        lines.append(console.table(head, rows, left=2))
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])])


def _method(row: dict[str, Any]) -> str:
    plain = row["kind"] in ("modality", "no parameters")
    return row["method"] if plain else f"{row['method']} ({row['kind']})"


def _cell(row: dict[str, Any], measure: str) -> str:
    _, factor, digits = SHOWN[measure]
    if row[measure] is None:
        return "-"
    low, high = row[f"{measure}_ci"]
    spread = "" if row[f"{measure}_sd"] is None else f" ±{factor * row[f'{measure}_sd']:.{digits}f}"
    return f"{factor * row[measure]:.{digits}f} [{factor * low:.{digits}f}, {factor * high:.{digits}f}]{spread}"


def _difference(found: dict[str, Any], measure: str, factor: float, digits: int) -> tuple[str, str]:
    if found[measure] is None:
        return "-", "-"
    low, high = (factor * end for end in found[f"{measure}_ci"])
    value = f"{factor * found[measure]:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return value, f"{_p(found[f'{measure}_p'])} ({_p(found[f'{measure}_p_holm'])})"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"


def write_csv(path: Path, found: Comparison) -> None:
    """Write one row per method of a configuration, with each interval in two columns."""
    ends = [f"{measure}{part}" for measure in MEASURES for part in ("", "_low", "_high", "_sd")]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["configuration", "method", "kind", "seeds", "n", *ends], extrasaction="ignore")
        writer.writeheader()
        for row in found["rows"]:
            pairs = {measure: row[f"{measure}_ci"] or (None, None) for measure in MEASURES}
            writer.writerow(row | {f"{m}{part}": value for m, pair in pairs.items()
                                   for part, value in zip(("_low", "_high"), pair, strict=True)})  # fmt: skip


def latex_of(found: Comparison) -> str:
    """Return a table for the packages booktabs and amsmath; the best accuracy and NLL of decision layers are bold."""
    layers = [row for row in found["rows"] if row["kind"] != "modality" and row["accuracy"] is not None]
    best = {"accuracy": max((row["accuracy"] for row in layers), default=None),
            "nll": min((row["nll"] for row in layers), default=None)}  # fmt: skip
    lines = [
        f"% {clips_and_draws(found['n_clips'], found['n'])}, {found['groups']} groups; 95 % intervals: bootstrap over"
        f" {found['ci_unit']}s;"
        f" {SAME_SEEDS}",
        r"\begin{tabular}{llrrcccc}",
        r"\toprule",
        r"configuration & method & seeds & n & accuracy (\%) & macro-F1 (\%) & NLL & ECE \\",
    ]
    last = None
    for row in found["rows"]:
        if row["configuration"] != last:
            lines.append(r"\midrule")
        name = "" if row["configuration"] == last else _escaped(row["configuration"])
        last = row["configuration"]
        cells = [_latex_cell(row, measure, row[measure] is not None and row[measure] == best.get(measure))
                 for measure in SHOWN]  # fmt: skip
        first = [name, _escaped(_method(row)), str(row["seeds"]), str(row["n"])]
        lines.append(" & ".join([*first, *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_cell(row: dict[str, Any], measure: str, best: bool) -> str:
    if row[measure] is None:
        return "--"
    _, factor, digits = SHOWN[measure]
    low, high = (f"{factor * end:.{digits}f}" for end in row[f"{measure}_ci"])
    value = f"{factor * row[measure]:.{digits}f}"
    value = rf"\mathbf{{{value}}}" if best else value
    if row[f"{measure}_sd"] is not None:
        value += rf"\,\pm\,{factor * row[f'{measure}_sd']:.{digits}f}"
    return rf"${value}$ {{\scriptsize [{low}, {high}]}}"


def _escaped(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(named.get(c) or (f"\\{c}" if c in "&%$#_{}" else c) for c in text)

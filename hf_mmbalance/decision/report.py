"""Report of a diagnosis: one self-contained HTML page, and its figures as PNG, SVG and PDF for print."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from hf_mmbalance.decision import figures
from hf_mmbalance.decision.plain import clips_and_draws
from hf_mmbalance.decision.report_text import GLOSSARY, layer_name, summary


Report = dict[str, Any]
PAGE = Path(__file__).with_name("report.html")
CAPTIONS = {
    "weights_by_class": "What each modality can do by itself, which weight the decision layer gives it, and the lean."
    " Thin lines are 95 % bootstrap intervals.",
    "trust": "Calibrated probability that a modality by itself is right, for every clip. With good trust, the clips it"
    " gets right (filled) are to the right of those it gets wrong (dashed). Each title has the"
    " modality's temperature.",
    "participation": "Each point is one modality in one class. On the diagonal, a modality counts for exactly what"
    " it can do; above the diagonal, the decision leans to it.",
    "reliability": "Accuracy against confidence in 15 bins; larger dots hold more clips. On the diagonal, confidence"
    " equals accuracy.",
    "waterfalls": "How the log odds of the label against its strongest rival add up in single clips: two that the"
    " fusion rescues from a wrong modality, and two that it loses. A clip with a sum below zero is lost.",
    "margins": "How far each modality's best logit is above its second. If the scales differ, the sum leans"
    " before any weight is fitted.",
    "balance_curve": "Class weights pulled towards capability shares by a growing penalty (shown at each point): what"
    " balance costs or gains in accuracy.",
    "index": "Balance index of every fusion, with 95 % bootstrap intervals. A balanced fusion need not be"
    " accurate: read the index together with the table above.",
}
TITLES = {
    "weights_by_class": "Capability, weight and lean by class",
    "trust": "Temperatures, and trust by clip",
    "participation": "Participation against capability",
    "reliability": "Reliability",
    "waterfalls": "Single clips",
    "margins": "Logit margins",
    "balance_curve": "Accuracy and balance",
    "index": "Balance index",
}


def write_report(
    reports: Sequence[Report],
    path: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    figure_folder: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Write the page and, if a folder is given, the figures as files.

    Args:
        reports: results of `diagnose`, one per model; the first is shown in full, all of them in one table and in
            the balance index.
        path: path of the HTML page.
        names: names of the models, for the comparison of all.
        figure_folder: folder for the figures as PNG, SVG and PDF files; by default they are in the page only.

    Returns:
        The files written, the page first.
    """
    path, first = Path(path), reports[0]
    names = list(names or [f"table {i + 1}" for i in range(len(reports))])
    drawn = {name: figures.draw(function, first) for name, function in figures.FIGURES.items() if _has(first, name)}
    drawn["index"] = figures.draw(figures.index_by_method, reports, names)
    files, blocks = [path], {}
    for name, figure in drawn.items():
        if figure_folder is not None:
            files += figures.save(figure, Path(figure_folder) / name)
        svg = figures.themed_svg(figure, name)
        blocks[name] = (
            f'<figure><h2>{TITLES[name]}</h2><div class="scroll">{svg}</div>'
            f"<figcaption>{CAPTIONS[name]}</figcaption></figure>"
        )
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Decision layer of {names[0]}"),
        summary="".join(f"<li>{escape(sentence)}</li>" for sentence in summary(first)),
        lead=_lead(first),
        runs=_runs(reports, names) if len(reports) > 1 else "",
        glossary="".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in GLOSSARY.items()),
        tiles=_tiles(first),
        ladder=_ladder(first),
        figures="\n".join(blocks.values()),
        ablation=_ablation(first),
        lost=_lost(first),
        details=_details(first),
        notes=_notes(first),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return files


def _has(report: Report, figure: str) -> bool:
    needed = {"waterfalls": "clips", "balance_curve": "balance_curve"}
    return bool(report[needed[figure]]) if figure in needed else True


def _lead(report: Report) -> str:
    many = len(report["classes"]) > figures.MAX_CLASSES
    more = f" Figures by class show the {figures.MAX_CLASSES} classes with the largest lean." if many else ""
    judged = clips_and_draws(report["n_clips"], report["n"])
    return (
        f"{judged}, {report['groups']} groups, {len(report['classes'])} classes, modalities"
        f" {escape(', '.join(report['modalities']))}. Intervals are 95 % bootstrap over {report['ci_unit']}s."
        f" This page shows {layer_name(report)}. The rung fitted here is <b>{escape(report['chosen'])}</b>:"
        f" {escape(report['reason'])}.{more}"
    )


def _runs(reports: Sequence[Report], names: Sequence[str]) -> str:
    body = []
    for name, report in zip(names, reports, strict=True):
        rows, method = {row["method"]: row for row in report["rows"]}, report["in_use"]["method"]
        index = _plain(report["balance"][method]["index"], 3)
        layers = [("own" if method == "model" else "fitted here", rows[method], index)]
        if method != "model" and "reference.fused" in rows:  # a run whose own head has no weights
            layers.insert(0, ("own", rows["reference.fused"], ""))
        single = rows.get("best_single")
        for kind, own, balanced in layers:
            body.append(
                [name, kind, own["n"], f"{100 * own['accuracy']:.2f}", _interval(own["accuracy_ci"], 100),
                 f"{own['nll']:.4f}", f"{own['ece']:.4f}", f"{100 * rows['sum']['accuracy']:.2f}",
                 "" if single is None else f"{100 * single['accuracy']:.2f}", balanced]
            )  # fmt: skip
    head = ["run", "decision layer", "n", "accuracy %", "95 % interval", "NLL", "ECE", "sum, %", "best single, %",
            "balance index"]  # fmt: skip
    return f"<h2>All runs</h2>{_table(head, body)}<p>Below: {escape(names[0])}.</p>"


def _tiles(report: Report) -> str:
    rows, method = {row["method"]: row for row in report["rows"]}, report["in_use"]["method"]
    names = {method: layer_name(report), "best_single": "best single modality", "sum": "plain sum"}
    tiles = [(name, rows[which]) for which, name in names.items() if which in rows]
    cells = [
        f'<div class="tile"><span>{escape(name)}</span><b>{100 * row["accuracy"]:.1f} %</b>'
        f"<small>{_interval(row['accuracy_ci'], 100)} accuracy</small></div>"
        for name, row in tiles
    ]
    found = report["balance"][method]
    cells.append(
        f'<div class="tile"><span>balance index</span><b>{_plain(found["index"], 3)}</b>'
        f"<small>{_interval(found['index_ci'], 1, 3)}</small></div>"
    )
    return "".join(cells)


def _ladder(report: Report) -> str:
    body = []
    for row in report["rows"]:
        if not row["n"]:
            body.append(
                f"<tr><td>{escape(row['method'])}</td><td class=n>0</td><td colspan=4>answers no clip</td></tr>"
            )
            continue
        chosen = row["method"] == report["in_use"]["method"]
        body.append(
            f"<tr{' class=chosen' if chosen else ''}><td>{escape(row['method'])}</td><td class=n>{row['n']}</td>"
            f"<td class=n>{100 * row['accuracy']:.2f}</td><td class=n>{_interval(row['accuracy_ci'], 100)}</td>"
            f"<td class=n>{row['nll']:.4f}</td><td class=n>{row['ece']:.4f}</td></tr>"
        )
    head = ["method", "n", "accuracy %", "95 % interval", "NLL", "ECE"]
    compared = _table(
        ["adaptive against", "n", "accuracy, points", "95 % interval", "NLL", "95 % interval"],
        [
            [d["baseline"], d["n"], f"{100 * d['accuracy']:+.2f}", _interval(d["accuracy_ci"], 100),
             f"{d['nll']:+.4f}", _interval(d["nll_ci"], 1, 4)] for d in report["differences"] if d["n"]
        ],
    )  # fmt: skip
    heads = "".join(f"<th{' class=n' if i else ''}>{name}</th>" for i, name in enumerate(head))
    table = f'<div class="scroll"><table><tr>{heads}</tr>{"".join(body)}</table></div>'
    return f"{table}<h3>Paired differences</h3>{compared}"


def _ablation(report: Report) -> str:
    if not report["ablation"]:
        return "<p>No weights could be fitted to these data.</p>"
    return _table(
        ["weights", "accuracy %", "NLL", "over global", "95 % interval", "over + bias", "95 % interval"],
        [
            [a["label"], f"{100 * a['accuracy']:.2f}", f"{a['nll']:.4f}",
             f"{100 * a['over_global']['accuracy']:+.2f}", _interval(a["over_global"]["accuracy_ci"], 100),
             f"{100 * a['over_bias']['accuracy']:+.2f}", _interval(a["over_bias"]["accuracy_ci"], 100)]
            for a in report["ablation"]
        ],
    )  # fmt: skip


def _lost(report: Report) -> str:
    names, lost = report["modalities"], report["lost"]
    pulls = list(lost["by_class"])
    rescue = [
        [method, *(_percent(found["rescued"][name]) for name in names), _percent(found["lost"])]
        for method, found in report["rescued"].items()
    ]
    weak = report["rescued"][report["in_use"]["method"]]["weak"]
    shown = figures.shown_classes(report)
    by_class = [[report["classes"][c], *(lost["by_class"][name][c] for name in pulls)] for c in shown]
    clips = [
        [c["id"], c["label"], c["predicted"], ", ".join(c["right_modalities"]), c["culprit"], f"{c['pull']:.2f}"]
        for c in lost["clips"]
    ]
    return (
        f"<p>Rescued: of the clips that only this modality gets right, the fraction that the fusion also gets right"
        f" ({escape(weak)} is right least often). Lost: of the clips that any modality gets right, the fraction that"
        f" the fusion gets wrong.</p>"
        + _table(["method", *(f"rescued, {name} only" for name in names), "lost"], rescue)
        + f"<h3>Lost by {layer_name(report)} ({lost['n']} clips), by what pulled them off the label</h3>"
        + _table(["class", *pulls], by_class)
        + "<h3>The strongest pulls</h3>"
        + _table(["clip", "label", "predicted", "right modalities", "pulled by", "log odds"], clips)
    )


def _details(report: Report) -> str:
    rows = []
    for name, d in report["modality_detail"].items():
        if not d["n"]:
            rows.append([name, "0", *[""] * 8])
            continue
        isotonic = "" if d["ece_isotonic"] is None else f"{d['ece_isotonic']:.4f}"
        rows.append([
            name, d["n"], f"{100 * d['accuracy']:.2f}", f"{d['nll']:.4f}", f"{d['brier']:.4f}", f"{d['ece']:.4f}",
            f"{d['ece_adaptive']:.4f}", isotonic, f"{d['logit_norm']['median']:.2f}",
            f"{d['logit_range']['median']:.2f}",
        ])  # fmt: skip
    head = ["modality", "n", "accuracy %", "NLL", "Brier", "ECE", "ECE, equal mass", "ECE, isotonic", "logit norm",
            "logit range"]  # fmt: skip
    text = _table(head, rows)
    geometry = report["geometry"]
    if geometry["modalities"]:
        cells = [
            [name, g["n"], g["dimension"], f"{g['norm']['median']:.2f}", _plain(g["effective_rank"], 1),
             _plain(g["scatter_ratio"], 3), _plain(g["alignment"], 3), _plain(g["uniformity"], 3)]
            for name, g in geometry["modalities"].items()
        ]  # fmt: skip
        head = ["features", "n", "dimension", "norm", "effective rank", "between / within", "alignment", "uniformity"]
        text += "<h3>Geometry of features</h3>" + _table(head, cells)
        pairs = [[" and ".join(pair["modalities"]), pair["n"], _plain(pair["cka"], 3)] for pair in geometry["cka"]]
        text += _table(["linear CKA", "n", "value"], pairs) if pairs else ""
    return text


def _notes(report: Report) -> str:
    if not report["notes"]:
        return ""
    return "<h2>Notes</h2><ul>" + "".join(f"<li>{escape(note)}</li>" for note in report["notes"]) + "</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(i: int, value: Any) -> str:
        return (
            f"<td{' class=n' if i and not isinstance(value, str) or _numeric(value) else ''}>{escape(str(value))}</td>"
        )

    heads = "".join(
        f"<th{' class=n' if rows and (not isinstance(rows[0][i], str) or _numeric(rows[0][i])) else ''}>"
        f"{escape(name)}</th>"
        for i, name in enumerate(head)
    )
    body = "".join("<tr>" + "".join(cell(i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{heads}</tr>{body}</table></div>'


def _numeric(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and all(c in "0123456789.,+-−% []to" for c in value)


def _interval(ends: Sequence[float] | None, factor: float, digits: int = 2) -> str:
    return "" if ends is None else f"{factor * ends[0]:.{digits}f} to {factor * ends[1]:.{digits}f}"


def _plain(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"

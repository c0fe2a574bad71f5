"""Render the answer for one clip as HTML: the decision, and each modality's own prediction and share of it."""

from __future__ import annotations

from html import escape
from typing import Any


WORDS = {"audio": "sound", "vision": "picture"}
SHOWN = 8  # classes

Row = dict[str, Any]  # one class in the output of the pipeline


def word(modality: str) -> str:
    """Return the word for a modality on the page."""
    return WORDS.get(modality, modality)


def hint(text: str, kind: str = "hint") -> str:
    """Render a line that is shown instead of an answer; `kind` is `hint` or `error`."""
    return f'<div class="mm"><p class="mm-{kind}">{escape(text)}</p></div>'


def render(rows: list[Row], whole: list[Row], off: list[str]) -> str:
    """Render the answer as HTML.

    Args:
        rows: All classes, the most probable first, from the modalities that are switched on.
        whole: All classes from every modality that the clip has.
        off: Modalities that are switched off.
    """
    top = rows[0]
    parts = [
        '<div class="mm">',
        f'<p class="mm-top"><b>{escape(top["label"])}</b> <span>{escape(percent(top["score"]))}</span></p>',
        f'<p class="mm-words">{"<br>".join(escape(text) for text in sentences(rows, whole, off))}</p>',
        _legend(top),
        '<div class="mm-rows">',
        *(_row(row) for row in rows[:SHOWN]),
        "</div>",
    ]
    if len(rows) > SHOWN:
        rest = sum(row["score"] for row in rows[SHOWN:])
        parts.append(f'<p class="mm-hint">{len(rows) - SHOWN} more classes have {escape(percent(rest))} together.</p>')
    return "".join([*parts, "</div>"])


def sentences(rows: list[Row], whole: list[Row], off: list[str]) -> list[str]:
    """Describe the answer in sentences."""
    top = rows[0]
    scores = top["modality_score"]
    said = []
    for modality in off:
        before = whole[0]
        same = "also " if before["label"] == top["label"] else ""
        answer = f"{same}{before['label']} ({percent(before['score'])})"
        said.append(f"{word(modality).capitalize()} is switched off. With it the answer was {answer}.")
    said += [f"The clip has no {word(name)}." for name, score in scores.items() if score is None and name not in off]
    predictions = []
    for name in [name for name, score in scores.items() if score is not None]:
        best = max(rows, key=lambda row: row["modality_score"][name])
        score = percent(best["modality_score"][name])
        predictions.append(f"{word(name)} by itself predicts {best['label']} ({score})")
    if len(predictions) > 1:
        text = ", ".join(predictions)
        said.append(text[0].upper() + text[1:] + ".")
        if top["share"]:
            weights = " and ".join(f"{word(name)} {percent(share)}" for name, share in top["share"].items())
            said.append(f"For {top['label']} the decision weighs {weights}.")
    return said


def percent(value: float) -> str:
    """Format a fraction as a percentage."""
    return "<1 %" if 0 < value < 0.005 else f"{100 * value:.0f} %"


def _legend(row: Row) -> str:
    entries = ['<span><i class="mm-decision"></i>decision</span>']
    entries += [f'<span><i class="mm-{name}"></i>{word(name)} by itself</span>' for name in row["modality_score"]]
    return f'<p class="mm-legend">{"".join(entries)}</p>'


def _row(row: Row) -> str:
    bars = [_bar("decision", row["score"], "decision")]
    bars += [_bar(name, score, f"{word(name)} by itself") for name, score in row["modality_score"].items()]
    return f'<section><h3>{escape(row["label"])}</h3><div class="mm-bars">{"".join(bars)}</div>{_share(row)}</section>'


def _bar(kind: str, value: float | None, title: str) -> str:
    if value is None:
        return f'<div class="mm-bar mm-none" title="{title}: not there"><span></span><em>–</em></div>'
    text = escape(f"{title}: {percent(value)}")
    return (
        f'<div class="mm-bar" title="{text}"><span><i class="mm-{kind}" style="width:{100 * value:.1f}%"></i></span>'
        f"<em>{escape(percent(value))}</em></div>"
    )


def _share(row: Row) -> str:
    if not row["share"]:
        return ""
    parts = "".join(
        f'<i class="mm-{name}" style="flex-grow:{max(share, 0.0):.4f}" title="{word(name)}: {percent(share)}">'
        f"{percent(share) if share >= 0.25 else ''}</i>"
        for name, share in row["share"].items()
        if share > 0.005
    )
    return f'<div class="mm-share"><small>share</small><span>{parts}</span></div>'

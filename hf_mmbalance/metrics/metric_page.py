"""Web page (Space) of an `evaluate` module: input of predictions and labels, the metric, and its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evaluate
import gradio as gr


def page(name: str, predictions: list[Any], references: list[int]) -> gr.Blocks:
    """Return the page of the metric `<name>.py` in the folder of this file.

    Args:
        name: Name of the metric.
        predictions: Example predictions, shown at the start.
        references: Labels of the example.
    """
    here = Path(__file__).parent
    metric = evaluate.load(str(here / f"{name}.py"))

    def compute(predictions: str, references: str) -> dict[str, Any]:
        try:
            return metric.compute(predictions=json.loads(predictions), references=json.loads(references))
        except (ValueError, TypeError, IndexError) as error:
            raise gr.Error(f"{error}") from error

    _, _, card = (here / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    with gr.Blocks(title=name) as demo:
        gr.Markdown(f"# {name}\n{metric.description}")
        with gr.Row():
            with gr.Column():
                rows = ",\n ".join(json.dumps(row) for row in predictions)  # one clip per line
                one = gr.Code(f"[{rows}]", language="json", label="predictions")
                two = gr.Code(json.dumps(references), language="json", label="references (class numbers)")
                button = gr.Button("Compute", variant="primary")
            result = gr.JSON(label="result")
        gr.on([button.click, demo.load], compute, [one, two], result)
        gr.Markdown(card)
    return demo

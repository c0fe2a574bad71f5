"""The card of a trained model, rendered from the output folder of its run."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_mmbalance import markdown
from hf_mmbalance.decision.results import RESULTS
from hf_mmbalance.decision.table import DecisionTable, TableError
from hf_mmbalance.decision.table_files import RUN_TABLE
from hf_mmbalance.hub.errors import HubError
from hf_mmbalance.json_files import write_json
from hf_mmbalance.metrics import measures
from hf_mmbalance.scrubbing import scrub


if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("model_card.md")
CARD = "README.md"
PICTURE, DIAGNOSIS, NUMBERS = "weights_by_class.png", "diagnosis.html", "diagnosis.json"
TAGS = ["audio-visual-classification", "audio-visual", "multimodal", "late-fusion", "hf_mmbalance"]
REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
PICTURED = 40  # classes in the figure; the card's table has all
METHODS = {"audio": "audio only", "vision": "frames only", "sum": "plain sum"}
METHODS |= {"prior_sum": "plain sum, prior counted once", "fused": "the decision"}
Results = dict[str, Any]


def write_card(folder: Path, repo_id: str) -> list[Path]:
    """Write the card of a run, with its figure and the diagnosis of its decision layer.

    Args:
        folder: Output folder of a run, with a saved model, `results.json` and `decisions.parquet`.
        repo_id: Repository to name in the card's snippets, `user/name`.

    Returns:
        The files written, the card first.

    Raises:
        HubError: one of these files is missing, or `results.json` was written by an older version.
    """
    results, table = read_run(folder)
    drawn = _draw(results, table)
    drawn.savefig(folder / PICTURE, dpi=150, facecolor="white")
    diagnosis = write_diagnosis(folder, table, repo_id)
    (folder / CARD).write_text(render_card(folder, repo_id, results, diagnosis), encoding="utf-8")
    return [folder / CARD, folder / PICTURE, *([folder / DIAGNOSIS, folder / NUMBERS] if diagnosis is None else [])]


def read_run(folder: Path) -> tuple[Results, DecisionTable]:
    """Read the results and the decision table of a run.

    Raises:
        HubError: a file is missing or was written by an older version; the message names it.
    """
    for name in ("config.json", RESULTS, RUN_TABLE):
        if not (folder / name).is_file():
            raise HubError(
                f"{folder} holds no {name}; give the output folder of a finished training run (`mmbalance push` writes"
                " a card without numbers for any other saved model)"
            )
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    if "provenance" not in results:
        raise HubError(f"{folder / RESULTS} was written by an older version and has no `provenance`; train again")
    return results, DecisionTable.read(folder / RUN_TABLE)


def pinned_revision(folder: Path) -> str:
    """Return the tag for a saved model: a hash of the weights, configs and code that determine its predictions.

    A card cannot name the commit that contains it, so it names this tag instead.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".py") or path.name in ("config.json", "processor_config.json"):
            digest.update(path.name.encode() + b"\0")
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"model-{digest.hexdigest()[:10]}"


def write_diagnosis(folder: Path, table: DecisionTable, name: str) -> str | None:
    """Write the diagnosis of the decision layer (page and numbers), or return the reason why it is not possible."""
    from hf_mmbalance.decision.diagnosis import diagnose
    from hf_mmbalance.decision.evaluation import decide_splits
    from hf_mmbalance.decision.report import write_report
    from hf_mmbalance.decision.state import state_of_run

    try:
        judged = decide_splits(table)
    except TableError as error:
        return str(error)
    trained = state_of_run(folder)
    if trained is not None:
        judged.add_head("model", trained)
    report = diagnose(judged)
    write_report([report], folder / DIAGNOSIS, names=[name])
    write_json(folder / NUMBERS, report)
    return None


def render_card(folder: Path, repo_id: str, results: Results, no_diagnosis: str | None) -> str:
    """Render the card of a run."""
    from huggingface_hub import ModelCardData

    provenance = results["provenance"]
    data = provenance["data"]
    base_models = [base["name"] for base in provenance["base_models"] if base["revision"]]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="video-classification",
        tags=TAGS,
        metrics=["accuracy"],
        model_name=repo_id.split("/")[-1],
        datasets=[data["name"]] if data["on_hub"] else None,
        base_model=base_models or None,
        eval_results=eval_results(results),
    )
    split = results["rows"][-1]["split"]
    return _render(
        metadata,
        folder,
        repo_id,
        results=results,
        provenance=provenance,
        split=split,
        rows=[_row(row) for row in results["rows"] if row["split"] == split],
        weights=_weight_rows(results),
        picture=PICTURE,
        pictured=PICTURED,
        no_diagnosis=no_diagnosis,
    )


def plain_card(folder: Path, repo_id: str) -> str:
    """Render the card of a saved model without a run."""
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="video-classification",
        tags=TAGS,
    )
    return _render(metadata, folder, repo_id, results=None)


def _render(metadata: Any, folder: Path, repo_id: str, **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    if not REPO_ID.fullmatch(repo_id):
        raise HubError(f"{repo_id!r} is not a valid repository name: give user/name")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters |= {"text": markdown.text, "code": markdown.code, "fenced": markdown.fenced}
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        card_data=metadata.to_yaml(),
        repo_id=repo_id,
        revision=pinned_revision(folder),
        classes=[config["id2label"][str(index)] for index in range(len(config["id2label"]))],
        fusion=config["fusion"],
        towers=[config[f"{modality}_config"]["model_type"] for modality in config["modalities"]],
        **values,
    )
    return scrub(text).rstrip() + "\n"


def eval_results(results: Results) -> list[EvalResult]:
    """Return the accuracy of each method on the last split, for the model-index of the card."""
    from huggingface_hub import EvalResult

    data = results["provenance"]["data"]
    split = results["rows"][-1]["split"]
    return [
        EvalResult(
            task_type="video-classification",
            task_name="Audio-visual classification",
            dataset_type=data["name"],
            dataset_name=data["name"],
            dataset_split=split,
            dataset_revision=data["revision"],
            metric_type="accuracy",
            metric_name=f"Accuracy, {METHODS.get(row['method'], row['method'])}",
            metric_value=round(row["accuracy"], 6),
            metric_args={
                "ci95": [round(end, 6) for end in row["accuracy_ci"]],
                "ci_unit": row["ci_unit"],
                "n": row["n"],
            },
        )
        for row in results["rows"]
        if row["split"] == split and row["n"]
    ]


def _row(row: Results) -> dict[str, str]:
    """Format a row of the table of results."""
    name = str(METHODS.get(row["method"], row["method"]))
    if not row["n"]:
        return {"name": name, "accuracy": "-", "ci": "-", "macro_f1": "-", "nll": "-", "ece": "-", "n": "0"}
    low, high = row["accuracy_ci"]
    return {
        "name": name,
        "accuracy": f"{100 * row['accuracy']:.1f}",
        "ci": f"{100 * low:.1f} to {100 * high:.1f}",
        "macro_f1": f"{100 * row['macro_f1']:.1f}",
        "nll": f"{row['nll']:.3f}",
        "ece": f"{row['ece']:.3f}",
        "n": str(row["n"]),
    }


def _weight_rows(results: Results) -> list[tuple[str, list[str]]] | None:
    """Format the mean weight of every modality by class; return None for a head without weights."""
    if results["weights"] is None:
        return None
    columns = [results["weights"][modality] for modality in results["modalities"]]
    return [(name, [f"{column[index]:.2f}" for column in columns]) for index, name in enumerate(results["classes"])]


def _draw(results: Results, table: DecisionTable) -> Figure:
    from hf_mmbalance.decision.figures import draw

    judged = table.select(results["rows"][-1]["split"])
    return draw(_weights_by_class, results, judged.take(judged.draw_numbers == 0))  # clean clips only


def _weights_by_class(results: Results, table: DecisionTable) -> Figure:
    """Draw each modality's own recall above chance by class and, if the head has weights, its mean weight."""
    from matplotlib.figure import Figure

    from hf_mmbalance.decision.figures import COLOURS

    names, modalities = results["classes"][:PICTURED], results["modalities"]
    worth = measures.capability(table.log_probs, table.labels)
    panels = [("By itself: recall above chance", dict(zip(modalities, worth, strict=True)))]
    if results["weights"] is not None:
        panels.append(("Mean weight in the decision", results["weights"]))
    size = (1.8 + 3.2 * len(panels), 1.0 + 0.16 * (len(modalities) + 1) * len(names))
    figure = Figure(figsize=size)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    rows, height = np.arange(len(names)), 0.8 / len(modalities)
    for ax, (title, values) in zip(axes[0], panels, strict=True):
        for m, modality in enumerate(modalities):
            places = rows + (m - (len(modalities) - 1) / 2) * height
            ax.barh(places, np.asarray(values[modality])[: len(names)], height, color=COLOURS[m], label=modality)
        ax.set_title(title)
        ax.grid(axis="x")
    axes[0, 0].set_yticks(rows, [name[:24] for name in names])
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(modalities))
    return figure

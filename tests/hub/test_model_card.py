"""The card of a run: also with names that Markdown and YAML know better, no weights, no diagnosis, many classes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from matplotlib.figure import Figure

from hf_mmbalance.decision.results import write_outputs
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.hub import model_card
from hf_mmbalance.hub.errors import HubError
from hf_mmbalance.hub.model_card import pinned_revision, read_run, write_card
from tests.training.tiny_runs import tiny_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(folder, "--num_train_epochs", "1")
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def without_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the card's text: the diagnosis takes seconds and writes other files."""
    monkeypatch.setattr("hf_mmbalance.hub.model_card.write_diagnosis", lambda *_: None)


def change(run: Path, **values) -> None:
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, **values}))


def rename(run: Path, classes: list[str]) -> None:
    """The same run, as if its classes had these names."""
    config = json.loads((run / "config.json").read_text())
    config["id2label"] = {str(index): name for index, name in enumerate(classes)}
    (run / "config.json").write_text(json.dumps(config))
    change(run, classes=classes)
    table = DecisionTable.read(run / "decisions.parquet")
    table.classes = list(classes)
    table.write(run / "decisions.parquet")


def test_names_that_mean_something_in_markdown_and_yaml(run, without_diagnosis):
    rename(run, ["a|b", "x: y", "# z\n---"])
    results = json.loads((run / "results.json").read_text())
    results["provenance"]["data"] |= {"name": "me/clips: 'all'", "on_hub": True, "revision": "1" * 40}
    change(run, **results)
    write_card(run, "me/model")
    card = ModelCard.load(run / "README.md")
    assert card.data.datasets == ["me/clips: 'all'"] and len(card.data.eval_results) == 5
    assert {result.dataset_revision for result in card.data.eval_results} == {"1" * 40}
    assert re.search(r"^\| a\\\|b \| [\d.]+ \| [\d.]+ \|$", card.text, re.M)
    assert re.search(r"^\| \\# z --- \| [\d.]+ \| [\d.]+ \|$", card.text, re.M)
    assert f"revision `{'1' * 40}`" in card.text
    assert "\n---\n" not in card.text, "a class name became a rule"


def test_html_images_and_fences_of_others_are_shown_and_not_read(run):
    image, fence = (
        '<img src="https://tracker.example/a.png">',
        "```\n# Broken out\n![x](https://tracker.example/b.png)",
    )
    rename(run, [image, fence, "plain"])
    results = json.loads((run / "results.json").read_text())
    origin = results["provenance"]
    origin["data"] |= {"name": f"clips ` {image}", "notes": [image, fence]}
    origin["command"] = f"mmbalance train --data_dir x\n{fence}"
    origin["base_models"] = [{"modality": "whole", "name": f"me/`{image}", "revision": "1" * 40}]
    change(run, **results)
    write_card(run, "me/model")
    text = ModelCard.load(run / "README.md").text
    page = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert re.findall(r'<img src="([^"]+)"', page) == ["weights_by_class.png"]
    assert "Broken out</h1>" not in page and page.count("<h1>") == 1
    assert re.findall(r'href="([^"]+)"', page) == ["https://arxiv.org/abs/2510.14411"]
    with pytest.raises(HubError, match="is not a valid repository name"):
        write_card(run, 'me/model", x="')


def test_a_head_without_weights_and_a_modality_that_no_clip_has(run):
    results = json.loads((run / "results.json").read_text())
    rows = [row if row["method"] != "vision" else {**row, "n": 0, "accuracy": None} for row in results["rows"]]
    change(run, weights=None, rows=rows)
    write_card(run, "me/model")
    card = ModelCard.load(run / "README.md")
    assert "This decision layer has no weights." in card.text and "| frames only | - |" in card.text
    assert "Accuracy, frames only" not in {result.metric_name for result in card.data.eval_results}
    assert (run / "weights_by_class.png").stat().st_size > 5000


def test_what_training_read_is_told_as_it_was(run, without_diagnosis):
    """A test split is read once; without one the numbers are those of the split that training looked at."""
    results = json.loads((run / "results.json").read_text())
    assert results["decision"]["rung"] and results["selected_by"] == "validation nll"
    write_card(run, "me/model")
    text = (run / "README.md").read_text()
    assert re.search(r"On the test split .* which was read once, after\straining\. Intervals", text)
    assert "learned from `train`, the decision layer was fitted on `calibration`;" in text
    rows = [row for row in results["rows"] if row["split"] == "validation"]
    base = {"modality": "whole", "name": "me/before", "revision": "1" * 40}
    origin = {**results["provenance"], "base_models": [base, {**base, "modality": "audio"}]}
    change(run, rows=rows, decision=None, provenance=origin)
    for best, words in (
        (None, "read after every epoch too. Int"),
        ("validation nll", "on new clips will be lower. Int"),
    ):
        change(run, selected_by=best)
        write_card(run, "me/model")
        text = (run / "README.md").read_text()
        assert words in text and "read once" not in text
    assert "Towers and decision layer learned from `train`; `validation` chose the epoch." in text
    assert "All weights from `me/before` at" in text and "Audio tower from `me/before` at" in text


def test_without_a_calibration_split_the_card_says_why_there_is_no_diagnosis(run):
    table = DecisionTable.read(run / "decisions.parquet")
    table.take(np.flatnonzero(np.array(table.splits) != "calibration")).write(run / "decisions.parquet")
    files = write_card(run, "me/model")
    assert [file.name for file in files] == ["README.md", "weights_by_class.png"]
    assert "No diagnosis of the decision layer: " in (run / "README.md").read_text()


def test_the_picture_is_of_the_clips_that_the_table_is_of(run, monkeypatch):
    """Corrupted draws among the judged rows, as in a fusion without test clips, are not in it."""
    table = DecisionTable.read(run / "decisions.parquet")
    table.draws = (np.arange(len(table)) % 2) * (np.array(table.splits) == "test")
    table.write(run / "decisions.parquet")
    drawn = []
    monkeypatch.setattr(model_card, "_weights_by_class", lambda results, part: drawn.append(part) or Figure())
    model_card._draw(*read_run(run))
    test = table.select("test")
    assert drawn[0].ids == [name for name, draw in zip(test.ids, test.draw_numbers, strict=True) if draw == 0]


def test_a_folder_that_is_no_run(run, tmp_path):
    with pytest.raises(HubError, match="holds no config.json; give the output folder of a finished training run"):
        read_run(tmp_path / "nowhere")
    (run / "decisions.parquet").unlink()
    with pytest.raises(HubError, match="holds no decisions.parquet"):
        read_run(run)
    (run / "decisions.parquet").touch()
    results = json.loads((run / "results.json").read_text())
    del results["provenance"]
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(HubError, match="was written by an older version"):
        read_run(run)


def test_the_tag_follows_weights_configs_and_code_and_nothing_else(run):
    tag = pinned_revision(run)
    assert re.fullmatch(r"model-[0-9a-f]{10}", tag)
    (run / "README.md").write_text("a card")
    (run / "results.json").write_text("{}")
    assert pinned_revision(run) == tag
    for name in ("model.safetensors", "config.json", "processor_config.json", "modeling_mmbalance.py"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content + b" ")
        assert pinned_revision(run) != tag, name
        (run / name).write_bytes(content)
    assert pinned_revision(run) == tag


def test_results_are_stored_without_secrets_and_with_valid_numbers(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    results["arguments"] |= {"data_dir": "https://user:passw0rd@host/x", "note": "ghp_" + "aB3d" * 9}
    results["rows"][0]["nll"] = float("nan")
    write_outputs(tmp_path, results, DecisionTable.read(run / "decisions.parquet"))
    text = (tmp_path / "results.json").read_text()
    assert "passw0rd" not in text and "ghp_" not in text and "NaN" not in text
    assert json.loads(text)["rows"][0]["nll"] is None


def test_a_token_that_slipped_into_the_command_is_cut_from_the_card(run, without_diagnosis):
    results = json.loads((run / "results.json").read_text())
    token = "hf_" + "aBcD3fGh" * 4
    results["provenance"]["command"] += f" --run_name {token}"
    change(run, **results)
    write_card(run, "me/model")
    assert token not in (run / "README.md").read_text()

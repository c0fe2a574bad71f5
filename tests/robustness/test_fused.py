"""Robustness of a fused model one of whose classifiers does not know every class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForAudioClassification, AutoModelForImageClassification

from hf_mmbalance.cli import main
from hf_mmbalance.metrics.measures import softmax
from hf_mmbalance.robustness.cells import Cell
from hf_mmbalance.robustness.judge import method_logits
from hf_mmbalance.robustness.run import load_run
from tests.media_factory import write_clip
from tests.training.tiny_runs import AUDIO, VISION


CLASSES = ["high", "low", "mid"]


@pytest.fixture(scope="module")
def fused(tmp_path_factory) -> Path:
    """A fusion of 36 clips of three classes, the last 12 for the test; the vision classifier has never met `mid`."""
    folder = tmp_path_factory.mktemp("fused")
    torch.manual_seed(1)
    models = []
    for name, tower, kind, labels in (
        ("audio", AUDIO, AutoModelForAudioClassification, CLASSES),
        ("vision", VISION, AutoModelForImageClassification, ["low", "high"]),
    ):
        model = kind.from_config(AutoConfig.for_model(**tower, id2label=dict(enumerate(labels))))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        models += [f"--{name}_model", str(folder / name)]
    lines = ["path,label,split"]
    for i in range(36):
        write_clip(folder / f"{i}.mp4", seconds=0.32, tone=300.0 + 200 * (i % 3), colour=(40 + 60 * (i % 3), 60, 90))
        lines.append(f"{i}.mp4,{CLASSES[i % 3]},{'test' if i >= 24 else 'train'}")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    words = ["fuse", "--dataset", str(folder / "clips.csv"), *models, "--frames", "2", "--out", str(folder / "model")]
    assert main(words) == 0
    return folder / "model"


def test_the_clean_cell_is_the_fusions_own_test_row(fused, capsys):
    results = json.loads((fused / "results.json").read_text())
    rows = [row for row in results["rows"] if row["split"] == "test"]
    assert results["n"] == 12  # as of a training run: the clips of the reported split
    assert load_run(fused).known.tolist() == [[True, True, True], [True, True, False]]
    capsys.readouterr()
    assert main(["robustness", str(fused), "--kinds", "blur", "--severities", "5", "--no_figures", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    clean = report["cells"][0]
    assert {row["method"] for row in rows} == {"audio", "vision", "sum", "prior_sum", "fused"} == set(clean["nll"])
    for row in rows:
        assert row["n"] == clean["accuracy"][row["method"]]["n"] == 12
        assert clean["nll"][row["method"]]["mean"] == pytest.approx(row["nll"], abs=1e-4), row["method"]
    assert report["seen"] == []  # fitted on clean clips


def test_clips_without_a_test_split_are_refused_with_the_remedy(fused, tmp_path, capsys):
    results = json.loads((fused / "results.json").read_text())
    table = Path(results["arguments"]["dataset"])
    bare = table.with_name("no_test.csv")
    bare.write_text(table.read_text().replace(",test", ",train"))
    (tmp_path / "results.json").write_text(
        json.dumps(results | {"arguments": results["arguments"] | {"dataset": str(bare)}})
    )
    assert main(["robustness", str(tmp_path)]) == 2
    assert "has no test clips" in (said := capsys.readouterr().err) and "--test_fraction 0.3" in said


def test_clips_that_were_changed_since_are_refused(fused, tmp_path, capsys):
    """The answers of before and after would stand beside each other."""
    folder = shutil.copytree(fused, tmp_path / "model")
    config = json.loads((fused / "processor_config.json").read_text())
    config["reading"]["stored"] = {**config["reading"], "frames": 5}
    (folder / "processor_config.json").write_text(json.dumps(config))
    assert main(["robustness", str(folder)]) == 2
    assert "was rebuilt with different options since the run in" in capsys.readouterr().err
    results = json.loads((fused / "results.json").read_text())
    table = Path(results["arguments"]["dataset"])
    fewer = table.with_name("fewer.csv")
    fewer.write_text("\n".join(table.read_text().splitlines()[:-3]))
    results["arguments"]["dataset"] = str(fewer)
    (folder / "results.json").write_text(json.dumps(results))
    assert main(["robustness", str(folder)]) == 2
    assert "has different test clips or labels from the run in" in capsys.readouterr().err


def test_a_modality_gives_no_evidence_for_a_class_it_does_not_know():
    """By hand: within the classes it knows it divides the prior's share of them, and leaves the rest to the prior."""
    p, q, prior = np.array([0.7, 0.2, 0.1]), np.array([0.6, 0.1, 0.3]), np.array([0.5, 0.3, 0.2])
    logits = np.log(np.stack([[p, q], [p, q]]))
    cell = Cell("clean", 0, logits.sum(1), logits, np.array([[True, True], [False, True]]), None)
    known = np.array([[True, True, True], [True, True, False]])
    found = method_logits(cell, ["audio", "vision"], np.log(prior), known)
    for name, pi in (("sum", np.full(3, 1 / 3)), ("prior_sum", prior)):
        vision = np.array([0.6 / 0.7 * (pi[0] + pi[1]), 0.1 / 0.7 * (pi[0] + pi[1]), pi[2]])
        both = p * vision / pi
        np.testing.assert_allclose(softmax(found[name]), [both / both.sum(), vision], rtol=1e-6)

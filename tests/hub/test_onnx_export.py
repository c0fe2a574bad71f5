"""`mmbalance export onnx`: the exported model answers as the model does, for any number of clips and frames."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mmbalance import cli
from tests.training.tiny_runs import CLASSES, tiny_model, tiny_processor


def saved(folder: Path, fusion: str) -> Path:
    processor = tiny_processor()
    tiny_model(fusion).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("fusion", ["adaptive", "gated"])
def test_the_exported_model_answers_as_the_model_does(tmp_path: Path, capsys, fusion: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, file = saved(tmp_path / "run", fusion), tmp_path / "out" / "model.onnx"
    assert cli.main(["export", "onnx", str(folder), str(file), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == CLASSES and found["largest_difference"] <= 1e-4
    assert found == json.loads(file.with_suffix(".json").read_text())
    assert found["inputs"]["pixel_values"] == ["batch", "time", 3, 16, 16]
    rng = np.random.default_rng(3)
    inputs = {  # 5 clips of 3 frames: neither number was used by the exporter
        "input_values": rng.normal(size=(5, 16, 16)).astype(np.float32),
        "pixel_values": rng.normal(size=(5, 3, 3, 16, 16)).astype(np.float32),
        "frame_mask": np.array([[True, True, False]] * 5),
        "modality_mask": np.array([[1, 1], [1, 0], [0, 1], [1, 1], [1, 1]]),
    }
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    answers = dict(zip(found["outputs"], session.run(found["outputs"], inputs), strict=True))
    with torch.no_grad():
        ours = tiny_model(fusion).eval()(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    assert {"logits", "modality_logits"} <= set(answers)
    for name, value in answers.items():
        np.testing.assert_allclose(value, ours[name].numpy(), atol=1e-4)


def test_packages_that_are_missing_are_named(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["export", "onnx", "nowhere", str(tmp_path / "m.onnx")]) == 2
    assert "onnx and onnxscript not installed: `pip install 'hf_mmbalance[onnx]'`" in capsys.readouterr().err

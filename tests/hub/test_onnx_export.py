"""`mmbalance export onnx`: the exported model answers as the model does, for any number of clips and frames."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_mmbalance import cli
from hf_mmbalance.console import UserError
from hf_mmbalance.hub import onnx_export
from tests.model.tiny import tiny_config
from tests.training.tiny_runs import CLASSES, tiny_model, tiny_processor


def saved(folder: Path) -> Path:
    processor = tiny_processor()
    tiny_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_exported_model_answers_as_the_model_does(tmp_path: Path, capsys) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, file = saved(tmp_path / "run"), tmp_path / "out" / "model.onnx"
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
        ours = tiny_model().eval()(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    assert {"logits", "modality_logits"} <= set(answers)
    for name, value in answers.items():
        np.testing.assert_allclose(value, ours[name].numpy(), atol=1e-4)


def test_packages_that_are_missing_are_named(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["export", "onnx", "nowhere", str(tmp_path / "m.onnx")]) == 2
    assert "onnx and onnxscript not installed: `pip install 'hf_mmbalance[onnx]'`" in capsys.readouterr().err


RAW = {"model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"untrained_modalities": ["vision"]},
            "the model ignores vision, which no train clip had: only models that use both",
        ),
        ({"audio_config": RAW}, "audio tower is 'wav2vec2': only models with an AST can be exported"),
    ],
)
def test_models_that_cannot_be_exported_are_refused(tmp_path: Path, options, words) -> None:
    model = SimpleNamespace(config=tiny_config(**options))
    with pytest.raises(UserError, match=words):
        onnx_export.export_onnx(model, tiny_processor(), tmp_path / "m.onnx")


def test_an_export_that_answers_otherwise_leaves_what_was_there(tmp_path: Path, capsys, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, file = saved(tmp_path / "run"), tmp_path / "out" / "model.onnx"
    file.parent.mkdir()
    file.write_text("an earlier export")
    monkeypatch.setattr(onnx_export, "_write", lambda wrapped, file, *args, **options: file.write_bytes(b"wrong"))
    monkeypatch.setattr(onnx_export, "largest_difference", lambda *args: 0.5)
    assert cli.main(["export", "onnx", str(folder), str(file)]) == 2
    assert "model.onnx is not written: its outputs differ from the model's by 5.0e-01" in capsys.readouterr().err
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"] and file.read_text() == "an earlier export"


def test_where_the_export_goes_is_checked_before_the_model_is_loaded(tmp_path: Path, capsys) -> None:
    pytest.importorskip("onnxscript")
    for name, words in ((str(tmp_path), "name a file, not a folder"), ("m.json", "m.json: the file name must")):
        assert cli.main(["export", "onnx", "nowhere", name]) == 2
        assert words in capsys.readouterr().err

"""A saved folder works in a process without the package, without network and with an empty cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from .tiny import HEADS, run_python, tiny_model, tiny_processor


LOAD = """
import json, sys, torch
from transformers import AutoConfig, AutoModel, AutoProcessor
import transformers
try:
    import hf_mmbalance
except ImportError:
    pass
else:
    raise SystemExit("the package must not be importable here")
clips = torch.load(sys.argv[1] + "/clips.pt", weights_only=False)
answers = {}
for folder, auto, again in json.loads(sys.argv[2]):
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__name__ == "MMBalanceForAudioVisualClassification", type(model)
    assert type(processor).__name__ == "MMBalanceProcessor", type(processor)
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).fusion == model.config.fusion
    answers[folder, auto] = []
    for inputs in clips:
        with torch.no_grad():
            answers[folder, auto].append(model(**processor(**inputs, sampling_rate=22050, return_tensors="pt")).logits)
    if again:
        model.save_pretrained(again)
        processor.save_pretrained(again)
torch.save(answers, sys.argv[1] + "/answers.pt")
"""


def _clips() -> list[dict]:
    generator = np.random.default_rng(0)
    wave = generator.normal(size=6000).astype(np.float32)
    frames = generator.integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    return [{"audio": wave, "frames": frames}, {"audio": wave}, {"frames": frames}]


@dataclass
class _Case:
    """A saved folder, what the model answered before it was saved, and where a loaded model is saved once more."""

    folder: Path
    expected: list[torch.Tensor]
    auto: str = "AutoModel"
    again: Path | None = None


def _check(tmp_path: Path, *cases: _Case) -> None:
    """All cases in one new process (its start takes seconds, a tiny model's loading a fraction of one)."""
    tmp_path.mkdir(exist_ok=True)
    torch.save(_clips(), tmp_path / "clips.pt")
    told = [(str(case.folder), case.auto, case.again and str(case.again)) for case in cases]
    done = run_python(LOAD, tmp_path, json.dumps(told), block=True, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr[-3000:]
    answers = torch.load(tmp_path / "answers.pt")
    assert len(answers) == len(cases)
    for case in cases:
        for ours, theirs in zip(case.expected, answers[str(case.folder), case.auto], strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-6)


def _save(folder: Path, **options) -> list[torch.Tensor]:
    model, processor = tiny_model(**options), tiny_processor(frames=None)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    with torch.no_grad():
        return [model(**processor(**inputs, sampling_rate=22_050)).logits for inputs in _clips()]


def test_loads_and_runs_with_both_modalities_and_with_either_missing(tmp_path):
    expected = _save(tmp_path / "saved", frame_pooling="temporal", fusion_options={"calibration": "vector"})
    assert not torch.allclose(expected[0], expected[1])
    _check(tmp_path, _Case(tmp_path / "saved", expected))


@pytest.mark.slow
def test_every_auto_class(tmp_path):
    expected = _save(tmp_path / "saved")
    names = ("AutoModelForAudioClassification", "AutoModelForVideoClassification")
    _check(tmp_path, *(_Case(tmp_path / "saved", expected, auto) for auto in names))


@pytest.mark.slow
def test_every_head_is_saved_again_and_loaded_without_the_package(tmp_path):
    saved = {fusion: _save(tmp_path / f"saved-{fusion}", fusion=fusion) for fusion in HEADS}
    first = [
        _Case(tmp_path / f"saved-{fusion}", logits, again=tmp_path / f"again-{fusion}")
        for fusion, logits in saved.items()
    ]
    _check(tmp_path, *first)
    _check(tmp_path / "second", *(_Case(tmp_path / f"again-{fusion}", logits) for fusion, logits in saved.items()))
    for fusion in HEADS:
        files = [{path.name for path in (tmp_path / f"{time}-{fusion}").iterdir()} for time in ("saved", "again")]
        assert files[0] == files[1]


@pytest.mark.slow
def test_code_is_not_run_without_trust(tmp_path):
    _save(tmp_path / "saved")
    load = "AutoModel.from_pretrained(sys.argv[1], trust_remote_code=False)"
    code = f"import sys\nfrom transformers import AutoModel\n{load}"
    done = run_python(code, tmp_path / "saved", block=True, HF_HOME=str(tmp_path / "home"))
    assert done.returncode != 0 and "trust_remote_code=True" in done.stderr

"""A saved folder works in a process without the package, without network and with an empty cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor, ViTImageProcessorPil

from hf_mmbalance import MMBalanceProcessor

from .tiny import HEADS, run_python, tiny_model


LOAD = """
import sys, torch
from transformers import AutoConfig, AutoModel, AutoProcessor
import transformers
try:
    import hf_mmbalance
except ImportError:
    pass
else:
    raise SystemExit("the package must not be importable here")
folder, out, auto = sys.argv[1:4]
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(model).__name__ == "MMBalanceForAudioVisualClassification", type(model)
assert type(processor).__name__ == "MMBalanceProcessor", type(processor)
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).fusion == model.config.fusion
clips = torch.load(out + "/clips.pt", weights_only=False)
answers = []
for inputs in clips:
    with torch.no_grad():
        answers.append(model(**processor(**inputs, sampling_rate=22050, return_tensors="pt")).logits)
torch.save(answers, out + "/answers.pt")
if len(sys.argv) > 4:
    model.save_pretrained(sys.argv[4])
    processor.save_pretrained(sys.argv[4])
"""


def _processor() -> MMBalanceProcessor:
    return MMBalanceProcessor(
        ASTFeatureExtractor(num_mel_bins=16, max_length=24), ViTImageProcessorPil(size={"height": 16, "width": 16})
    )


def _clips() -> list[dict]:
    generator = np.random.default_rng(0)
    wave = generator.normal(size=6000).astype(np.float32)
    frames = generator.integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    return [{"audio": wave, "frames": frames}, {"audio": wave}, {"frames": frames}]


def _check(folder: Path, tmp_path: Path, expected: list[torch.Tensor], auto: str, again: Path | None = None) -> None:
    torch.save(_clips(), tmp_path / "clips.pt")
    more = () if again is None else (again,)
    home = tmp_path / f"home-{auto}-{folder.name}"
    done = run_python(LOAD, folder, tmp_path, auto, *more, block=True, HF_HOME=str(home))
    assert done.returncode == 0, done.stderr[-3000:]
    for ours, theirs in zip(expected, torch.load(tmp_path / "answers.pt"), strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-6)


def _save(folder: Path, **options) -> list[torch.Tensor]:
    model, processor = tiny_model(**options), _processor()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    with torch.no_grad():
        return [model(**processor(**inputs, sampling_rate=22_050)).logits for inputs in _clips()]


def test_loads_and_runs_with_both_modalities_and_with_either_missing(tmp_path):
    expected = _save(tmp_path / "saved", frame_pooling="temporal", fusion_options={"calibration": "vector"})
    assert not torch.allclose(expected[0], expected[1])
    _check(tmp_path / "saved", tmp_path, expected, "AutoModel")


@pytest.mark.slow
@pytest.mark.parametrize("auto", ["AutoModelForAudioClassification", "AutoModelForVideoClassification"])
def test_every_auto_class(tmp_path, auto):
    _check(tmp_path / "saved", tmp_path, _save(tmp_path / "saved"), auto)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", HEADS)
def test_every_head_is_saved_again_and_loaded_without_the_package(tmp_path, fusion):
    expected = _save(tmp_path / "saved", fusion=fusion)
    _check(tmp_path / "saved", tmp_path, expected, "AutoModel", again=tmp_path / "again")
    _check(tmp_path / "again", tmp_path, expected, "AutoModel")
    files = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("saved", "again")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_code_is_not_run_without_trust(tmp_path):
    _save(tmp_path / "saved")
    load = "AutoModel.from_pretrained(sys.argv[1], trust_remote_code=False)"
    code = f"import sys\nfrom transformers import AutoModel\n{load}"
    done = run_python(code, tmp_path / "saved", block=True, HF_HOME=str(tmp_path / "home"))
    assert done.returncode != 0 and "trust_remote_code=True" in done.stderr

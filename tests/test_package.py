"""The package itself: cheap to import, lazy names, one sentence for a broken torch/torchaudio pair."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_mmbalance


def _run(code: str, path: Path | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment, cwd=path
    )


@pytest.mark.parametrize("module", ["hf_mmbalance", "hf_mmbalance.model", "hf_mmbalance.model.media_mmbalance"])
def test_importing_the_package_imports_neither_torch_nor_transformers(module):
    heavy = "{'torch', 'transformers', 'torchaudio', 'datasets'} & set(sys.modules)"
    code = f"import sys, {module}\nheavy = {heavy}\nassert not heavy, heavy"
    done = _run(code)
    assert done.returncode == 0, done.stderr


def test_touching_a_model_class_registers_it_with_the_auto_classes():
    from transformers import AutoConfig

    assert hf_mmbalance.MMBalanceConfig is type(AutoConfig.for_model("mmbalance"))


@pytest.mark.parametrize("error", ["OSError('undefined symbol: _ZN5torch')", "RuntimeError('CUDA versions differ')"])
def test_a_broken_torchaudio_is_met_with_one_sentence(tmp_path, error):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(f"raise {error}\n")
    done = _run("import hf_mmbalance\nhf_mmbalance.MMBalanceConfig", path=tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: torchaudio ") and "does not work with torch" in last
    assert 'pip install "torch>=2.11,<2.15" "torchaudio==2.11.*"' in last
    assert "undefined symbol" not in done.stderr and "During handling" not in done.stderr
    assert done.stderr.count("Error: ") == 1


def test_reading_clips_needs_no_working_torchaudio(tmp_path):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('undefined symbol')\n")
    done = _run("from hf_mmbalance.model.media_mmbalance import read_media", path=tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_beside_transformers_imports_nothing_heavy_more():
    """What makes `import hf_mmbalance` cheap, without a stopwatch: no module of note is loaded by it."""
    code = "import sys, transformers\nbefore = set(sys.modules)\nimport hf_mmbalance\n"
    code += "print(sorted(name.split('.')[0] for name in set(sys.modules) - before))"
    done = _run(code)
    assert done.returncode == 0, done.stderr
    assert set(eval(done.stdout)) <= {"hf_mmbalance"}  # noqa: S307

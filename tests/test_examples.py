"""The scripts in `examples/` run."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parents[1] / "examples"


def test_hyperparameter_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    script = runpy.run_path(str(EXAMPLES / "hyperparameter_search.py"))
    sizes = {"train_clips": 16, "calibration_clips": 12, "validation_clips": 12, "test_clips": 1}
    best = script["main"](trials=2, epochs=1, folder=str(tmp_path / "search"), **sizes)
    assert set(best) == {"learning_rate", "classifier_dropout"} and 1e-4 <= best["learning_rate"] <= 1e-2
    assert "best validation NLL" in capsys.readouterr().out

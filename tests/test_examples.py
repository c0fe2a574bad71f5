"""The scripts and the notebook in `examples/` run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    ASTModel,
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    ViTModel,
)

from tests.media_factory import write_clip
from tests.training.tiny_runs import AUDIO, TINY, VISION


EXAMPLES = Path(__file__).parents[1] / "examples"
SIZES = {"train_clips": 16, "calibration_clips": 12, "validation_clips": 12, "test_clips": 12}
LABELS = ("dog", "rain")


def main_of(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of clips, and a table of them."""
    root = tmp_path_factory.mktemp("clips")
    lines = ["path,label"]
    for place in range(20):
        label = LABELS[place % 2]
        colour = (200 * (place % 2), 5 * place, 50)
        write_clip(
            root / label / f"{place}.mp4", seconds=0.3, size=(32, 32), tone=300.0 + 900 * (place % 2), colour=colour
        )
        lines.append(f"{label}/{place}.mp4,{label}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_is_short_and_tested(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 60 and text.startswith('"""') and f"python examples/{path.name}" in text
    assert f'"{path.stem}"' in Path(__file__).read_text()


def test_hyperparameter_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    sizes = {**SIZES, "test_clips": 1}
    best = main_of("hyperparameter_search")(trials=2, epochs=1, folder=str(tmp_path / "search"), **sizes)
    assert set(best) == {"learning_rate", "classifier_dropout"} and 1e-4 <= best["learning_rate"] <= 1e-2
    assert "best validation NLL" in capsys.readouterr().out


def test_train_own_clips(folder: Path, tmp_path: Path) -> None:
    towers = {}
    for name, tower, kind in (("audio", {**AUDIO, "max_length": 32}, ASTModel), ("vision", VISION, ViTModel)):
        kind(AutoConfig.for_model(**tower)).save_pretrained(tmp_path / name)
        towers[name] = str(tmp_path / name)
    assert main_of("train_own_clips")(str(folder), str(tmp_path / "run"), epochs=1, size=16, **towers) in LABELS


def test_fuse_two_models(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    towers = []
    for tower, kind in (
        ({**AUDIO, "max_length": 32}, AutoModelForAudioClassification),
        (VISION, AutoModelForImageClassification),
    ):
        towers.append(str(tmp_path / kind.__name__))
        kind.from_config(AutoConfig.for_model(**tower, id2label=dict(enumerate(LABELS)))).save_pretrained(towers[-1])
    options = ("--frames", "2", "--frame_size", "16", "16")
    found = main_of("fuse_two_models")(*towers, str(folder / "clips.csv"), str(tmp_path / "fused"), *options)
    assert {"audio", "vision", "fused"} <= set(found) and "picture: [{" in capsys.readouterr().out


def test_calibrate_a_table() -> None:
    found = main_of("calibrate_a_table")()
    assert found["adaptive"] > max(found["top"], found["sum"])


def test_own_fusion_head(tmp_path: Path) -> None:
    powers = main_of("own_fusion_head")(str(tmp_path / "run"), *TINY)
    assert set(powers) == {"audio", "vision"} and all(value != 0.5 for value in powers.values()), "nothing was learned"


def test_own_balancing_method(tmp_path: Path) -> None:
    found = main_of("own_balancing_method")(str(tmp_path), *TINY)
    assert set(found) == {"joint", "own"} and set(found["own"]) >= {"audio", "vision", "sum", "fused"}


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "clear the outputs before a commit"
            exec("".join(cell["source"]), names)  # noqa: S102
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(sizes=SIZES, epochs=1, out=str(tmp_path / "run"))
    assert "no sound  " in capsys.readouterr().out

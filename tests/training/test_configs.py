"""Every packaged config runs two steps: tiny towers in place of its own, made-up clips in place of its data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import ASTModel, AutoConfig, ViTModel

from hf_mmbalance.training import arguments
from hf_mmbalance.training.arguments import read_config
from hf_mmbalance.training.run import main
from tests.media_factory import write_clip

from .tiny_runs import AUDIO, TOWERS, VISION


CONFIGS = sorted(arguments.CONFIGS.glob("*.yaml"))
TICKS = [0, 2500, 5000, 7500, 10_000, 15_000, 20_000]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Saved tiny AST and ViT, as a Hub name would give them; AST with more positions than any clip needs."""
    root = tmp_path_factory.mktemp("backbones")
    for name, tower, kind, options in (
        ("ast", AUDIO, ASTModel, {"max_length": 64}),
        ("vit", VISION, ViTModel, {}),
    ):
        values = {key: value for key, value in {**tower, **options}.items() if key != "model_type"}
        kind(AutoConfig.for_model(tower["model_type"], **values)).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders of clips with sound and a few frames."""
    root = tmp_path_factory.mktemp("clips")
    for place, (name, tone) in enumerate({"bark": 300.0, "bell": 900.0, "rain": 2000.0}.items()):
        for clip in range(10):
            colour = tuple(int(c == place) * 200 + 5 * clip for c in range(3))
            write_clip(root / name / f"{name}{clip}.mp4", seconds=0.4, size=(32, 32), tone=tone, colour=colour)
    return root


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """GRID's layout with one speaker: two digits, sixteen sentences each."""
    root = tmp_path_factory.mktemp("grid")
    names = [f"b{colour}{at}f{digit}{end}" for digit in "12" for colour in "bgrw" for at in "ab" for end in "np"]
    words = ["bin", "blue", "at", "f", "two", "now"]
    (root / "align").mkdir()
    for place, name in enumerate(names):
        write_clip(root / "s1" / f"{name}.mp4", seconds=0.8, tone=300.0 + 40 * place)
        spoken = [f"{TICKS[i]} {TICKS[i + 1]} {word}" for i, word in enumerate(words)]
        (root / "align" / f"{name}.align").write_text("\n".join(["0 0 sil", *spoken, "20000 25000 sil"]) + "\n")
    return root


def tiny_in_place(config: Path, backbones: Path, folder: Path, grid: Path) -> list[str]:
    """What has to stand in for a recipe's towers and data."""
    settings = read_config(config)
    options = []
    for modality, name, tower in (("audio", "ast", TOWERS[1]), ("vision", "vit", TOWERS[3])):
        assert (f"{modality}_model" in settings) != (f"{modality}_config" in settings)
        if f"{modality}_model" in settings:
            options += [f"--{modality}_model", str(backbones / name)]
        else:
            size = settings["vision_config"]["image_size"]
            image = {**VISION, "image_size": size} if modality == "vision" else json.loads(tower)
            options += [f"--{modality}_config", json.dumps(image)]
    if settings["dataset"] == "synthetic":
        return [*options, "--train_clips", "24", "--calibration_clips", "8", "--validation_clips", "8",
                "--test_clips", "8"]  # fmt: skip
    if settings["dataset"] == "grid":
        return [*options, "--data_dir", str(grid)]
    return [*options, "--dataset", str(folder), "--frame_size", "16", "16", "--frames", "2",
            *(["--audio_max_length", "48"] if "audio_max_length" in settings else [])]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_two_steps(config, backbones, folder, grid, tmp_path):
    out = tmp_path / "run"
    results = main(
        [
            "--config", str(config), *tiny_in_place(config, backbones, folder, grid),
            "--output_dir", str(out), "--max_steps", "2", "--per_device_train_batch_size", "6",
            "--use_cpu", "true", "--disable_tqdm", "true", "--dataloader_num_workers", "0",
        ]
    )  # fmt: skip
    settings = read_config(config)
    assert [row["split"] for row in results["rows"]] == ["validation"] * 5 + ["test"] * 5
    assert results["fusion"] == settings["fusion"]
    arguments = results["arguments"]
    replaced = {"dataset", "frame_size", "frames", "audio_model", "vision_model", "audio_config", "vision_config",
                "audio_max_length", "per_device_train_batch_size", "dataloader_num_workers"}  # fmt: skip
    for name in settings.keys() - replaced:
        assert arguments[name] == settings[name], name  # every key of the recipe reached the run
    assert (out / "decisions.parquet").exists() and (out / "model.safetensors").exists()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_started(config):
    text = config.read_text()
    assert text.startswith("# ") and "accelerate launch" in text
    assert "dataset" in yaml.safe_load(text)


def test_there_are_recipes_for_what_is_promised():
    assert {"synthetic", "grid_digits", "crema_d", "kinetics_sounds"} <= {path.stem for path in CONFIGS}

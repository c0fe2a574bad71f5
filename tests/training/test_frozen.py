"""Frozen towers run once: the same run as through the towers, and training from stored features."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig, AutoModel

from hf_mmbalance.cli import main as mmbalance
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.embedding.build import TowerName, build_towers
from hf_mmbalance.embedding.embed import embed
from hf_mmbalance.embedding.parts import EmbeddingError
from hf_mmbalance.training import frozen
from hf_mmbalance.training.arguments import SYNTHETIC, read_config
from hf_mmbalance.training.run import main

from .tiny_runs import AUDIO, TINY, VISION, random_splits, tiny_run


FROZEN = ("--trainable_layers", "0", "--calibration_draws", "2", "--calibration_clips", "24")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> tuple[str, str]:
    """That of the synthetic clips, with the same noise in every epoch."""
    file = tmp_path_factory.mktemp("recipe") / "same_noise.yaml"
    file.write_text(Path(str(SYNTHETIC)).read_text() + "\nfresh_noise: []\n")
    return "--config", str(file)


@pytest.fixture(scope="module")
def cached(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cached") / "run"
    tiny_run(folder, *FROZEN, *recipe)
    return folder


def test_a_run_from_stored_features_is_the_run_through_the_towers(cached, recipe, tmp_path, monkeypatch):
    assert (cached / "embeddings" / "embeddings.json").is_file()
    monkeypatch.setattr(frozen, "_why_not", lambda *_: "asked for by a test")
    tiny_run(tmp_path / "run", *FROZEN, *recipe)
    assert not (tmp_path / "run" / "embeddings").exists()
    found, expected = (DecisionTable.read(folder / "decisions.parquet") for folder in (cached, tmp_path / "run"))
    assert found.ids == expected.ids and found.splits == expected.splits
    assert np.nanmax(np.abs(found.logits - expected.logits)) < 1e-5
    assert np.abs(found.references["fused"] - expected.references["fused"]).max() < 1e-4
    results = [json.loads((folder / "results.json").read_text()) for folder in (cached, tmp_path / "run")]
    assert results[0]["rows"][-1]["accuracy"] == results[1]["rows"][-1]["accuracy"]


def test_features_of_other_towers_are_refused(cached, tmp_path):
    with pytest.raises(EmbeddingError, match="features come from a different tower"):
        main([*_towers(), *_training(tmp_path / "run"), "--embeddings", str(cached / "embeddings"), "--seed", "5"])


def test_what_features_cannot_give_is_refused(cached, tmp_path):
    stored = ("--embeddings", str(cached / "embeddings"))
    with pytest.raises(ValueError, match="--trainable_layers 1 cannot be combined with --embeddings"):
        main([*_towers(), *_training(tmp_path / "a"), *stored, "--trainable_layers", "1"])
    with pytest.raises(ValueError, match="SpecAugment and --train_corruptions cannot change"):
        main([*_towers(), *_training(tmp_path / "b"), *stored, "--frequency_masks", "1"])
    with pytest.raises(EmbeddingError, match="has 2 draw.s. of each calibration clip.*embed with `--draws 3"):
        same = _statistics(json.loads((cached / "results.json").read_text()))
        main([*_towers(), *_training(tmp_path / "c"), *stored, *same, "--calibration_draws", "3"])
    for pooling in ("temporal", "log_probs"):
        with pytest.raises(EmbeddingError, match=f"frame_pooling='{pooling}' learns from single frames"):
            main([*_towers(), *_training(tmp_path / pooling), *stored, *same, "--frame_pooling", pooling])
    with pytest.raises(EmbeddingError, match="audio features come from a tower without a name.*give --audio_config"):
        main([*_training(tmp_path / "e"), *stored])
    with pytest.raises(EmbeddingError, match="holds no embeddings.json"):
        main([*_towers(), *_training(tmp_path / "d"), "--embeddings", str(tmp_path)])


def test_augmented_clips_go_through_the_towers_with_the_reason(tmp_path, caplog):
    tiny_run(tmp_path / "run", *FROZEN, "--num_train_epochs", "1")
    assert "the towers are frozen, but run in every epoch: train clips are augmented" in caplog.text
    assert not (tmp_path / "run" / "embeddings").exists()


def test_frames_that_are_pooled_after_the_heads_go_through_the_towers(recipe, tmp_path, caplog):
    tiny_run(tmp_path / "run", *FROZEN, *recipe, "--num_train_epochs", "1", "--frame_pooling", "log_probs")
    assert "--frame_pooling log_probs learns from the features of single frames" in caplog.text


def _towers() -> list[str]:
    start = TINY.index("--audio_config")
    return list(TINY[start : start + 4])


def _training(folder: Path) -> list[str]:
    settings = {"num_train_epochs": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "use_cpu": "true"}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [*words, "--calibration_draws", "2", "--output_dir", str(folder)]


def test_training_from_a_folder_gives_the_same_heads(cached, tmp_path):
    """The features of the same towers, by --embeddings: no dataset is named, and none is read."""
    first = json.loads((cached / "results.json").read_text())
    again = main([*_towers(), *_training(tmp_path / "run"), "--embeddings", str(cached / "embeddings"),
                  *_statistics(first), "--num_train_epochs", "2"])  # fmt: skip
    assert again["n_per_split"] == first["n_per_split"]
    rows = {row["method"]: row["nll"] for row in again["rows"] if row["split"] == "test"}
    expected = {row["method"]: row["nll"] for row in first["rows"] if row["split"] == "test"}
    assert rows["audio"] == pytest.approx(expected["audio"], abs=1e-5)
    assert rows["fused"] == pytest.approx(expected["fused"], abs=1e-4)


@pytest.fixture(scope="module")
def from_hub(tmp_path_factory):
    """Features of saved towers and of clips that say they are from the Hub."""
    folder = tmp_path_factory.mktemp("embedded")
    towers = {}
    for modality, tower in (("audio", AUDIO), ("vision", VISION)):
        AutoModel.from_config(AutoConfig.for_model(**tower)).save_pretrained(folder / modality)
        towers[modality] = TowerName(str(folder / modality))
    clips = dataclasses.replace(random_splits(), name="me/clips", commit="1" * 40)
    model, processor = build_towers(towers, clips, {})
    embed(clips, model, processor, folder / "features", towers=towers)
    return folder


def test_a_run_from_features_says_of_which_clips_and_towers_they_are(from_hub, tmp_path, monkeypatch):
    """No tower and no data set is named: both are recorded with the features."""
    monkeypatch.chdir(tmp_path)
    stored = ["--embeddings", str(from_hub / "features")]
    results = main([*stored, "--calibration_draws", "1", "--num_train_epochs", "1", "--use_cpu", "true"])
    data = results["provenance"]["data"]
    assert (data["name"], data["on_hub"], data["revision"]) == ("me/clips", True, "1" * 40)
    bases = {base["modality"]: base["name"] for base in results["provenance"]["base_models"]}
    assert bases == {modality: str(from_hub / modality) for modality in ("audio", "vision")}
    assert results["arguments"]["dataset"] == "me/clips"
    assert "noise" not in results["arguments"]  # options of a data set that was not read
    assert [path.name.startswith("features-") for path in (tmp_path / "outputs").iterdir()] == [True]


def test_a_data_set_beside_features_is_refused(from_hub):
    with pytest.raises(ValueError, match="--dataset cannot be combined with --embeddings"):
        main(["--embeddings", str(from_hub / "features"), "--dataset", "grid"])


def test_a_run_that_was_killed_while_it_embedded_goes_on_there(recipe, tmp_path, monkeypatch):
    folder, computed = tmp_path / "run", []

    def embed_and(stop: bool):
        def wrapped(*args, **kwargs):
            computed.append(embed(*args, **kwargs)["computed"])
            if stop:
                raise KeyboardInterrupt

        return wrapped

    monkeypatch.setattr(frozen, "embed", embed_and(stop=True))
    with pytest.raises(KeyboardInterrupt):
        tiny_run(folder, *FROZEN, *recipe, "--num_train_epochs", "1")
    monkeypatch.setattr(frozen, "embed", embed_and(stop=False))
    tiny_run(folder, *FROZEN, *recipe, "--num_train_epochs", "1")
    assert computed[0] > 0 and computed[1] == 0


def _statistics(results: dict) -> list[str]:
    """Options of the recipe of the first run that its towers and their training depend on."""
    ours = {entry for entry in read_config(SYNTHETIC)}
    names = ("audio_mean", "audio_std", "image_mean", "image_std", "frame_pooling", "classifier_dropout",
             "initializer_range", "fused_loss_weight", "weight_decay", "adam_beta2", "lr_scheduler_type",
             "warmup_steps", "max_grad_norm", "modality_dropout", "label_smoothing", "seed",
             "load_best_model_at_end", "per_device_eval_batch_size")  # fmt: skip
    words: list[str] = []
    for name in names:
        value = results["arguments"].get(name)
        if value is None or name not in ours:
            continue
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value).lower()])]
    return words


def test_embed_from_the_command_line(tmp_path, capsys):
    towers = []
    for name, tower in (("audio", AUDIO), ("vision", VISION)):
        AutoModel.from_config(AutoConfig.for_model(**tower)).save_pretrained(tmp_path / name)
        towers += [f"--{name}_model", str(tmp_path / name)]
    options = ["--classes", "3", "--groups", "6", "--train_clips", "8", "--calibration_clips", "4",
               "--seconds", "0.16", "--validation_clips", "3", "--test_clips", "3", "--frames", "2",
               "--frame_size", "16"]  # fmt: skip
    words = ["embed", "--dataset", "synthetic", *towers, "--out"]
    command = [*words, str(tmp_path / "out"), "--draws", "2", *options]
    assert mmbalance(command) == 0
    assert "22 rows in" in capsys.readouterr().out
    assert mmbalance([*command, "--json", "-"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["rows"] == 22 and counts["computed"] == 0
    assert mmbalance([*words, str(tmp_path / "new"), "--label", "digit"]) == 2
    assert "--label is not an option of synthetic" in capsys.readouterr().err
    assert mmbalance(["embed", "--out", str(tmp_path / "new")]) == 2
    assert "give --dataset, --audio_model and --vision_model" in capsys.readouterr().err

"""Tiny clips, towers and runs that the tests of training share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.data import load_clips
from hf_mmbalance.data.clips import ClipDataset, ClipSplits
from hf_mmbalance.training.arguments import MMBalanceTrainingArguments, parse_arguments
from hf_mmbalance.training.decision_layer import DecisionArguments
from hf_mmbalance.training.run import main
from hf_mmbalance.training.trainer import MMBalanceTrainer


Media = tuple[np.ndarray | None, np.ndarray | None]  # sound and frames
CLASSES = ["calm", "angry", "happy"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
AUDIO = {
    "model_type": "audio-spectrogram-transformer",
    **SMALL,
    "max_length": 16,
    "num_mel_bins": 16,
    "patch_size": 8,
    "frequency_stride": 8,
    "time_stride": 8,
}
VISION = {"model_type": "vit", **SMALL, "image_size": 16, "patch_size": 8}
TOWERS = ("--audio_config", json.dumps(AUDIO), "--vision_config", json.dumps(VISION))
TINY = (
    *TOWERS,
    *("--use_cpu", "true", "--disable_tqdm", "true", "--classes", "3", "--groups", "6"),
    *("--train_clips", "24", "--calibration_clips", "8", "--validation_clips", "12", "--test_clips", "15"),
    *("--seconds", "0.16", "--frames", "2", "--frame_size", "16"),
    *("--per_device_train_batch_size", "8", "--num_train_epochs", "2", "--learning_rate", "1e-2"),
)


def tiny_clips(*options: str) -> ClipSplits:
    """The clips of a tiny run with these options."""
    arguments = parse_arguments([*TINY, *options])
    return load_clips("synthetic", **dataclasses.asdict(arguments.source))


def tiny_run(folder: Path, *options: str) -> dict[str, Any]:
    """A whole run of `train.py` on synthetic clips, in this process; later options win."""
    return main([*TINY, "--output_dir", str(folder), *options])


class ListedClips(ClipDataset):
    """Clips given as arrays."""

    def __init__(
        self, split: str, media: Sequence[tuple[np.ndarray | None, np.ndarray | None]], labels: Sequence[int]
    ):
        names = [f"{split}-{index}" for index in range(len(labels))]
        super().__init__(names, [f"{name}-speaker" for name in names], labels, CLASSES, sampling_rate=16_000)
        self.kept = list(media)

    def media(self, place: int, epoch: int | None) -> Media:
        return self.kept[place]


def random_clips(split: str, count: int, seed: int = 0, without: dict[int, str] | None = None) -> ListedClips:
    """Clips of noise with every class in turn; `without` names the modality that a clip lacks."""
    rng = np.random.default_rng([seed, *split.encode()])
    media: list[Media] = []
    for index in range(count):
        wave = (0.1 * rng.standard_normal(2560)).astype(np.float32)
        frames = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
        lacks = (without or {}).get(index)
        media.append((None if lacks == "audio" else wave, None if lacks == "vision" else frames))
    return ListedClips(split, media, [index % len(CLASSES) for index in range(count)])


def random_splits(
    train: int = 12, calibration: int = 6, without: dict[str, dict[int, str]] | None = None
) -> ClipSplits:
    """Splits of such clips; `without` by split."""
    counts = {"train": train, "calibration": calibration, "validation": 6, "test": 6}
    splits: dict[str, ClipDataset] = {
        name: random_clips(name, count, without=(without or {}).get(name)) for name, count in counts.items() if count
    }
    return ClipSplits("noise", CLASSES, splits, 16_000)


def tiny_model(fusion: str = "adaptive", seed: int = 0, **options: Any) -> MMBalanceForAudioVisualClassification:
    """A new model of such towers."""
    torch.manual_seed(seed)
    return MMBalanceForAudioVisualClassification.from_backbones(
        _config(AUDIO), _config(VISION), id2label=dict(enumerate(CLASSES)), fusion=fusion, **options
    )


def tiny_processor() -> MMBalanceProcessor:
    return MMBalanceProcessor.from_backbones(_config(AUDIO), _config(VISION), reading={"frames": 2})


def _config(tower: dict[str, Any]) -> Any:
    return AutoConfig.for_model(tower["model_type"], **{k: v for k, v in tower.items() if k != "model_type"})


def tiny_trainer(folder: Path, model: Any = None, clips: ClipSplits | None = None, **options: Any) -> MMBalanceTrainer:
    """A trainer of such a model on such clips."""
    names = {entry.name for entry in dataclasses.fields(DecisionArguments)}
    decision = {name: options.pop(name) for name in names & options.keys()}
    kept = {name: options.pop(name) for name in ("balancing", "model_init") if name in options}
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "disable_tqdm": True,
        "per_device_train_batch_size": 6,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "logging_steps": 1,
        **options,
    }
    return MMBalanceTrainer(
        tiny_model() if model is None and "model_init" not in kept else model,
        MMBalanceTrainingArguments(**settings),
        random_splits() if clips is None else clips,
        tiny_processor(),
        decision=DecisionArguments(**decision),
        **kept,
    )


def state_of(folder: Path) -> dict[str, Any]:
    """The log and counters of a finished run."""
    return json.loads((folder / "trainer_state.json").read_text())

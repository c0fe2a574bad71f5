"""The package's training loop compared with a bare PyTorch loop: same towers, batches, forwards and optimiser.

    python benchmarks/training_loop.py [--shapes grid_digits small] [--steps 30] [--rounds 3]

Prints clips per second of both and their ratio (median over rounds; rounds alternate, so a busy machine slows both).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, TrainerCallback

from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.data.clips import ClipDataset, ClipSplits
from hf_mmbalance.training.arguments import MMBalanceTrainingArguments, read_config
from hf_mmbalance.training.trainer import MMBalanceTrainer


SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}


class RandomClips(ClipDataset):
    """Clips of random noise in memory, with a given length and frame size."""

    def __init__(self, name: str, count: int, seconds: float, frames: tuple[int, int, int]):
        names = [f"{name}-{index}" for index in range(count)]
        labels = [index % 10 for index in range(count)]
        super().__init__(names, names, labels, [str(index) for index in range(10)], sampling_rate=16000)
        rng = np.random.default_rng(0)
        self.sound = rng.standard_normal((count, int(16000 * seconds))).astype(np.float32) * 0.1
        self.frames = rng.integers(0, 255, (count, *frames, 3), dtype=np.uint8)

    def media(self, place: int, epoch: int | None) -> tuple[np.ndarray, np.ndarray]:
        return self.sound[place], self.frames[place]


class StepTimes(TrainerCallback):
    """Records the end time of each optimiser step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def build(shape: str) -> tuple[Any, Any, ClipSplits, int]:
    """Build the model, processor and clips of a shape; also return the batch size."""
    if shape == "grid_digits":
        recipe = read_config("grid_digits")
        audio, vision = (AutoConfig.for_model(**recipe[f"{name}_config"]) for name in ("audio", "vision"))
        seconds, frames, batch, pooling = 0.5, (recipe["frames"], *recipe["frame_size"]), 16, "temporal"
    else:
        audio = AutoConfig.for_model("audio-spectrogram-transformer", **SMALL, max_length=304, num_mel_bins=128)
        vision = AutoConfig.for_model("vit", **SMALL, image_size=224, patch_size=16)
        seconds, frames, batch, pooling = 3.0, (2, 224, 224), 4, "mean"
    splits = {
        name: RandomClips(name, count, seconds, frames)
        for name, count in (("train", 40 * batch), ("calibration", 4 * batch), ("validation", batch))
    }
    clips = ClipSplits("random", splits["train"].classes, splits, 16000)
    model = MMBalanceForAudioVisualClassification.from_backbones(
        audio, vision, id2label=dict(enumerate(clips.classes)), frame_pooling=pooling
    )
    return model, MMBalanceProcessor.from_backbones(audio, vision), clips, batch


def our_loop(shape: str, steps: int) -> float:
    """Return the clips per second of the package's trainer, from the second step on."""
    model, processor, clips, batch = build(shape)
    with tempfile.TemporaryDirectory() as folder:
        arguments = MMBalanceTrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, eval_strategy="no",
            save_strategy="no", load_best_model_at_end=False, disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        times = StepTimes()
        trainer = MMBalanceTrainer(model, arguments, clips, processor, callbacks=[times])
        trainer.train()
    return batch * (steps - 1) / (times.ends[-1] - times.ends[0])


def bare_loop(shape: str, steps: int) -> float:
    """Return the clips per second of a plain loop over the same loader."""
    model, processor, clips, batch = build(shape)
    with tempfile.TemporaryDirectory() as folder:
        arguments = MMBalanceTrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        trainer = MMBalanceTrainer(model, arguments, clips, processor)
        loader, optimizer = trainer.get_train_dataloader(), trainer.create_optimizer()
    model.train()
    device = next(model.parameters()).device
    ends: list[float] = []
    while len(ends) < steps:
        for inputs in loader:
            loss = model(**{name: value.to(device) for name, value in inputs.items()}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ends.append(time.perf_counter())
            if len(ends) == steps:
                break
    return batch * (steps - 1) / (ends[-1] - ends[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["grid_digits", "small"], choices=["grid_digits", "small"])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for shape in arguments.shapes:
        pairs = []
        for _ in range(arguments.rounds):
            pairs.append((our_loop(shape, arguments.steps), bare_loop(shape, arguments.steps)))
        ours, bare = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{shape}: ours {ours:.1f} clips/s, bare loop {bare:.1f} clips/s, ratio {ratio:.3f} (at least 0.95)")


if __name__ == "__main__":
    main()

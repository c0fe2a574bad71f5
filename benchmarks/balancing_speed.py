"""Cost of a training step under each balancing method, relative to `joint`.

    python benchmarks/balancing_speed.py [--shapes grid small] [--methods ogm ...] [--rounds 30] [--threads 1]

Complete steps on random clips: forward, backward, the method, clipping, AdamW. Methods take turns, two steps in each
round; the ratio compares the fastest rounds in CPU time, which other processes disturb least. The column `held` is the
memory that a method keeps within a step (separate gradients, rows) and between steps (state), as a multiple of the
model's gradients.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from transformers import AutoConfig

from hf_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.balancing import BALANCING_METHODS, BalancingMethod, build_method


FUSIONS = {"frozen": "concat", "mla": "mla", "qmf": "qmf", "pdf": "pdf"}
#: Upper limits of the ratio. `frozen` is measured in its second phase, `mla` in turns of both modalities, and
#: `reconboost` in a stage.
LIMITS = {
    **dict.fromkeys(("ogm", "ogm_ge", "olm", "opm", "remix", "dgl", "modality_dropout"), 1.05),
    **{"agm": 1.3, "mmpareto": 2.1},
}
CLASSES = 10


def build(shape: str, fusion: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """Build a model and one batch: towers of `grid_digits.yaml` with 16 clips, or of width 384 with 4."""
    if shape == "grid":
        small = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
        audio = {"num_mel_bins": 64, "max_length": 48, "patch_size": 16, "frequency_stride": 16, "time_stride": 4}
        vision, clips, frames = {"image_size": (24, 32), "patch_size": 8}, 16, (10, 3, 24, 32)
    else:
        small = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
        audio = {"num_mel_bins": 128, "max_length": 304}
        vision, clips, frames = {"image_size": 224, "patch_size": 16}, 4, (2, 3, 224, 224)
    torch.manual_seed(0)
    model = MMBalanceForAudioVisualClassification.from_backbones(
        AutoConfig.for_model("audio-spectrogram-transformer", **small, **audio),
        AutoConfig.for_model("vit", **small, **vision),
        id2label={c: str(c) for c in range(CLASSES)},
        fusion=fusion,
    )
    batch = {
        "input_values": torch.randn(clips, audio["max_length"], audio["num_mel_bins"]),
        "pixel_values": torch.randn(clips, *frames),
        "labels": torch.arange(clips) % CLASSES,
    }
    return model, batch


class Run:
    """A method in training.

    Args:
        shape: shape of the towers, `grid` or `small`.
        name: name of the method.
    """

    def __init__(self, shape: str, name: str):
        self.model, self.batch = build(shape, FUSIONS.get(name, "sum"))
        self.method: BalancingMethod = build_method(name)
        self.method.num_clips = len(self.batch["labels"])
        self.method.clip_index = torch.arange(self.method.num_clips)
        self.method.attach(self.model)
        self.method.progress, self.method.epoch = 0.9, 0
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.held = 0.0
        self.model.train()

    def steps(self, count: int) -> float:
        """Run some steps and return their CPU seconds."""
        start = time.process_time()
        for _ in range(count):
            self.optimizer.zero_grad()
            self.model(**self.batch).loss.backward()
            self.method.before_step()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        return time.process_time() - start

    def measure_held(self) -> None:
        """Run one step, and count what the method holds just before it uses it."""
        modulate, method = self.method.modulate, self.method

        def counted(totals: dict[str, torch.Tensor]) -> None:
            tensors = [*totals.values(), *method.state.values(), *method._separate.values()]
            parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            self.held = sum(tensor.numel() for tensor in tensors) / parameters
            modulate(totals)

        method.modulate = counted  # type: ignore[method-assign]
        self.steps(1)
        method.modulate = modulate  # type: ignore[method-assign]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["grid", "small"], choices=["grid", "small"])
    parser.add_argument("--methods", nargs="+", choices=sorted(BALANCING_METHODS), default=sorted(BALANCING_METHODS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    over = 0
    for shape in arguments.shapes:
        runs = {name: Run(shape, name) for name in dict.fromkeys(["joint", *arguments.methods])}
        for run in runs.values():
            run.measure_held()
        seconds = dict.fromkeys(runs, float("inf"))
        for _ in range(arguments.rounds):
            seconds = {name: min(seconds[name], run.steps(2)) for name, run in runs.items()}
        parameters = sum(p.numel() for p in runs["joint"].model.parameters()) / 1e6
        print(f"\n{shape}: {parameters:.1f} M parameters, {len(runs['joint'].batch['labels'])} clips per step\n")
        print("| method | time over joint | at most | held |\n|---|---|---|---|")
        for name in runs:
            ratio, limit = seconds[name] / seconds["joint"], LIMITS.get(name)
            over += limit is not None and ratio > limit
            mark = "" if limit is None else f"{limit:.2f}" + (" **over**" if ratio > limit else "")
            print(f"| `{name}` | {ratio:.2f} | {mark} | {runs[name].held:.2f} |")
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())

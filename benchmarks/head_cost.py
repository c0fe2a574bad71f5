"""Cost of the adaptive head relative to the towers, at AST-base + ViT-base shapes, on this machine.

    python benchmarks/head_cost.py [--repeats 20] [--batch 2] [--frames 2] [--classes 31]

Prints the time of the head's forward + backward as a share of the full step (medians of the same run), and its size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import ASTConfig, ViTConfig

from hf_mmbalance import MMBalanceForAudioVisualClassification


def median_seconds(call: Callable[[], None], repeats: int) -> float:
    """Return the median time of a call, after one warm-up call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--classes", type=int, default=31)
    parser.add_argument("--audio_max_length", type=int, default=512)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = MMBalanceForAudioVisualClassification.from_backbones(
        ASTConfig(max_length=arguments.audio_max_length),
        ViTConfig(),
        id2label={index: str(index) for index in range(arguments.classes)},
    ).to(device)
    model.train()
    batch = {
        "input_values": torch.randn(arguments.batch, arguments.audio_max_length, 128, device=device),
        "pixel_values": torch.randn(arguments.batch, arguments.frames, 3, 224, 224, device=device),
        "labels": torch.arange(arguments.batch, device=device) % arguments.classes,
    }
    logits = torch.randn(arguments.batch, 2, arguments.classes, device=device, requires_grad=True)
    mask = torch.ones(arguments.batch, 2, dtype=torch.bool, device=device)

    def whole_step() -> None:
        model.zero_grad()
        model(**batch).loss.backward()

    def head_step() -> None:
        torch.nn.functional.cross_entropy(model.fusion(logits, mask).logits, batch["labels"]).backward()

    step, head = median_seconds(whole_step, arguments.repeats), median_seconds(head_step, arguments.repeats)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    own = sum(buffer.numel() for buffer in model.fusion.buffers())
    print(f"AST-base + ViT-base on {device}: batch {arguments.batch}, {arguments.frames} frames per clip")
    print(f"full step {1000 * step:.1f} ms, adaptive head {1000 * head:.2f} ms (medians of {arguments.repeats})")
    print(f"share of the step: {100 * head / step:.3f} % (at most 1 %)")
    print(
        f"its {own} numbers beside {parameters / 1e6:.1f} M parameters: {100 * own / parameters:.5f} % (at most 1 %)"
    )


if __name__ == "__main__":
    main()

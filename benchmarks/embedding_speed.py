"""Time saved by embedding once: its rate against the bare towers, and an epoch and a fusion from stored features.

    python benchmarks/embedding_speed.py --audio_model A --vision_model B --data_dir GRID [--clips 32] [--frames 8]

All figures come from one run, in turns: (1) clips per second of `embed` against the two towers' own forward passes on
prepared tensors (target 0.9); (2) an epoch through the frozen towers against one from stored features (target 200);
(3) seconds for heads, decision layer and report for 200 labelled clips from stored features (target 10).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from hf_mmbalance.console import say
from hf_mmbalance.data import load_clips
from hf_mmbalance.data.clips import ClipSplits
from hf_mmbalance.embedding.build import TowerName, build_towers
from hf_mmbalance.embedding.embed import EmbedOptions, embed
from hf_mmbalance.embedding.fuse import FuseOptions, Rows, fit
from hf_mmbalance.embedding.outcome import judge
from hf_mmbalance.embedding.stored import Embeddings
from hf_mmbalance.training.batches import ClipCollator, KeyedClips


BATCH = 8


def main() -> None:
    """Print the three figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--audio_model", "--vision_model", "--data_dir"):
        parser.add_argument(name, required=True)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--frames", type=int, default=8)
    arguments = parser.parse_args()
    clips = load_clips("grid", data_dir=arguments.data_dir, window="clip", frames=arguments.frames, test_fraction=0.0,
                       validation_fraction=0.0, calibration_fraction=0.0)  # fmt: skip
    train = clips.splits["train"].without(set(range(arguments.clips, len(clips.splits["train"]))))
    train.keep()
    list(train)  # decoded once here, so that decoding is not measured
    some = ClipSplits(clips.name, clips.classes, {"train": train}, clips.sampling_rate, reading=clips.reading)
    towers = {"audio": TowerName(arguments.audio_model), "vision": TowerName(arguments.vision_model)}
    model, processor = build_towers(towers, some, {})
    model.eval()
    collate = ClipCollator(processor)
    batches = [
        collate([train[i] for i in range(start, min(start + BATCH, len(train)))])
        for start in range(0, len(train), BATCH)
    ]
    with tempfile.TemporaryDirectory() as place:
        bare, whole = [], []
        for turn in range(2):
            bare.append(_seconds(lambda: _bare(model, batches)))
            out = Path(place) / str(turn)
            whole.append(_seconds(lambda out=out: embed(some, model, processor, out, options=EmbedOptions(BATCH))))
        say(f"bare towers {len(train) / min(bare):.2f} clips/s, embed {len(train) / min(whole):.2f} clips/s:"
            f" ratio {min(bare) / min(whole):.3f} (target 0.9)")  # fmt: skip
        stored = Embeddings.read(Path(place) / "0").clip_splits().splits["train"]
        model.train()
        through = _seconds(lambda: _epoch(model, collate, train))
        cached = min(_seconds(lambda: _epoch(model, collate, stored)) for _ in range(3))
    say(f"epoch through the towers {through:.2f} s, from stored features {cached:.4f} s: {through / cached:.0f} times"
        " faster (target 200)")  # fmt: skip
    widths = model.fusion.feature_sizes
    rows = _rows(200, len(clips.classes), widths)
    seconds = _seconds(lambda: judge(rows, None, fit(rows, FuseOptions()), FuseOptions()))
    say(f"heads, decision layer, held-out numbers and curve for 200 clips: {seconds:.1f} s (target 10)")


def _seconds(work: object) -> float:
    started = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - started


@torch.no_grad()
def _bare(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> None:
    for batch in batches:
        model.audio_model(batch["input_values"])  # type: ignore[operator]
        model.vision_model(batch["pixel_values"].flatten(0, 1))  # type: ignore[operator]


def _epoch(model: torch.nn.Module, collate: ClipCollator, clips: object) -> None:
    """Train the heads for one epoch."""
    keyed = KeyedClips(clips)  # type: ignore[arg-type]
    heads = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(heads, lr=1e-3)
    for start in range(0, len(keyed), BATCH):
        batch = collate([keyed[i, 0] for i in range(start, min(start + BATCH, len(keyed)))])
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _rows(count: int, classes: int, widths: tuple[int, ...]) -> Rows:
    """Return Gaussian features of the towers' widths: the time of a fit does not depend on their meaning."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    features = {
        name: rng.normal(size=(classes, width))[labels] * 0.15 + rng.normal(size=(count, width))
        for name, width in zip(("audio", "vision"), widths, strict=True)
    }
    names = np.array([str(i) for i in range(count)])
    known = np.ones((len(widths), classes), dtype=bool)
    return Rows(
        names,
        names,
        names,
        labels,
        np.zeros(count, int),
        features,
        features,
        {},
        list(map(str, range(classes))),
        known,
    )


if __name__ == "__main__":
    main()

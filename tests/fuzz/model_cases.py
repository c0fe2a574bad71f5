"""Saved models whose config, processor config or weights are damaged or ask for the impossible."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .damage import damaged
from .outcome import need


ODD: tuple[Any, ...] = (
    *(None, True, "", "x", [], {}, [1, 2], {"a": 1}, 0, -1, 1.5, -0.5, 3, 10**7, 2**40, 10**30, 1e308, float("nan")),
    *(float("inf"), "../../etc/passwd", ["audio", "audio"], {"0": "a"}, {"0": "a", "1": "a"}, "file:../x"),
)


def write_base(folder: Path) -> None:
    """A good tiny model with its processor."""
    from hf_mmbalance import MMBalanceProcessor
    from tests.model.tiny import tiny_model

    model = tiny_model()
    model.save_pretrained(folder)
    MMBalanceProcessor.from_backbones(model.config.audio_config, model.config.vision_config).save_pretrained(folder)


def _change(config: dict[str, Any], rng: np.random.Generator) -> str:
    """Give a random field, also of a nested config, an odd value, or remove it; returns which."""
    places: list[tuple[dict[str, Any], str, str]] = []

    def collect(part: dict[str, Any], path: str) -> None:
        for key, entry in part.items():
            places.append((part, key, f"{path}{key}"))
            if isinstance(entry, dict):
                collect(entry, f"{path}{key}.")

    collect(config, "")
    part, key, name = places[int(rng.integers(len(places)))]
    if rng.random() < 0.15:
        del part[key]
        return f"without {name}"
    part[key] = ODD[int(rng.integers(len(ODD)))]
    return f"{name}={str(part[key])[:40]}"


def run_case(base: Path, folder: Path, rng: np.random.Generator) -> Iterator[str]:
    """Yields the description, then loads the model and classifies a clip."""
    from hf_mmbalance.hub.predict import load_classifier

    model = folder / "model"
    shutil.copytree(base, model)
    kind = rng.random()
    if kind < 0.7:
        path = model / ("config.json" if rng.random() < 0.75 else "processor_config.json")
        config = json.loads(path.read_text())
        what = ", ".join(_change(config, rng) for _ in range(int(rng.integers(1, 3))))
        path.write_text(json.dumps(config))
    elif kind < 0.95:
        path = sorted(model.glob("*.safetensors" if kind < 0.85 else "*.json"))[0]
        what, content = damaged(path.read_bytes(), rng)
        path.write_bytes(content)
    else:
        path, what = sorted(model.iterdir())[int(rng.integers(len(list(model.iterdir()))))], "deleted"
        path.unlink()
    yield f"{path} {what}"
    classify = load_classifier(str(model), device="cpu")
    time = np.arange(8000) / 16_000
    frames = np.full((3, 20, 30, 3), 128, np.uint8)
    clip = {"audio": np.sin(2000 * time).astype(np.float32), "sampling_rate": 16_000, "frames": frames}
    try:
        answer = classify(clip)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error  # the caller of a pipeline knows which model it is
    # Flipped bits of weights are weights: only an undamaged or refused file must give finite numbers.
    if path.suffix != ".safetensors":
        need(all(np.isfinite(entry["score"]) for entry in answer), "scores that are not finite")

"""Write synthetic clips as video files, for the demo of a model trained on synthetic data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np

from hf_mmbalance.data.sources.synthetic import SyntheticOptions, synthetic_clips


# Options used for the examples, with upper bounds, since their values come from a file in another user's repository.
LARGEST: dict[str, Any] = {"classes": 100, "seconds": 10.0, "frames": 64, "frame_size": 512}
SIDE = 160  # pixels
FPS = 25


def synthetic_examples(folder: Path, options: dict[str, Any], count: int = 6) -> list[Path]:
    """Write test clips of the synthetic data as MP4.

    Args:
        folder: Folder for the files.
        options: Options of the run; only those in `LARGEST` are used.
        count: Number of clips.

    Returns:
        Paths of the files. The name gives the classes of sound and look, e.g. `sounds_class1_looks_class0.mp4`.
    """
    sizes = {name: type(most)(min(options[name], most)) for name, most in LARGEST.items() if name in options}
    test: Any = synthetic_clips(SyntheticOptions(train_clips=1, test_clips=200, **sizes))["test"]  # type: ignore[arg-type]
    chosen: dict[tuple[int, int], int] = {}
    for place, shown in enumerate(test.shown.tolist()):
        chosen.setdefault(tuple(shown), place)
    paths = []
    for (sound, look), place in sorted(chosen.items(), key=lambda pair: pair[1])[:count]:
        clip = test[place]
        paths.append(folder / f"sounds_{test.classes[sound]}_looks_{test.classes[look]}.mp4")
        write_video(paths[-1], clip["audio"], clip["sampling_rate"], clip["frames"])
    return paths


def write_video(path: Path, wave: np.ndarray, rate: int, frames: np.ndarray) -> None:
    """Write a video from audio `(S,)` and frames `(T, H, W, 3)`; frames are enlarged and shown equally long."""
    scale = max(SIDE // min(frames.shape[1:3]), 1)
    length = max(round(len(wave) / rate * FPS), 1)
    shown = np.arange(length) * len(frames) // length
    with av.open(str(path), "w") as file:
        picture = file.add_stream("libx264", rate=FPS, options={"crf": "12"})
        picture.height, picture.width, picture.pix_fmt = frames.shape[1] * scale, frames.shape[2] * scale, "yuv420p"
        sound = file.add_stream("aac", rate=rate, layout="mono")
        for index in shown:
            large = frames[index].repeat(scale, axis=0).repeat(scale, axis=1)
            file.mux(picture.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(large), format="rgb24")))
        file.mux(picture.encode())
        samples = (np.clip(wave, -1, 1) * 32767).astype(np.int16)[None]
        block = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        block.sample_rate = rate
        file.mux(sound.encode(block))
        file.mux(sound.encode())

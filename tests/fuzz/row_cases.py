"""Rows of a Parquet data set with stored sound and images that are damaged, missing, enormous or contradictory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

from hf_mmbalance.building.encode import arrow_schema, class_label, list_of, value

from .damage import damaged
from .media_cases import huge_png
from .outcome import need


FEATURES: dict[str, dict[str, Any]] = {
    "id": value("string"),
    "label": class_label(["a", "b"]),
    "audio": {"sampling_rate": 16_000, "num_channels": 1, "_type": "Audio"},
    "audio_gain": value("float64"),
    "frames": list_of({"_type": "Image"}),
    "frame_times": list_of(value("float64")),
}


def _jpeg(kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, kind)
    return out.getvalue()


def _flac() -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(8000) / 9) * 0.3, 16_000, format="FLAC")
    return out.getvalue()


def _stored(content: bytes | None) -> dict[str, Any]:
    return {"bytes": content, "path": None}


def _row(rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    frames: list[Any] = [_stored(_jpeg("PNG" if rng.random() < 0.3 else "JPEG")) for _ in range(3)]
    row: dict[str, Any] = {"id": "clip-x", "label": 0, "audio": _stored(_flac()), "audio_gain": 1.0}
    row |= {"frames": frames, "frame_times": [0.1, 0.2, 0.4]}

    def damage_frame() -> None:
        frames[1] = _stored(damaged(frames[1]["bytes"], rng)[1])

    def damage_sound() -> None:
        row["audio"] = _stored(damaged(row["audio"]["bytes"], rng)[1])

    changes = {
        "nothing": lambda: None,
        "damaged frame": damage_frame,
        "half a JPEG": lambda: frames.__setitem__(1, _stored(_jpeg()[: len(_jpeg()) // 2])),
        "damaged sound": damage_sound,
        "huge PNG": lambda: frames.__setitem__(1, _stored(huge_png(13_000))),
        "null frame": lambda: frames.__setitem__(1, None),
        "empty frame": lambda: frames.__setitem__(1, _stored(b"")),
        "no bytes": lambda: frames.__setitem__(1, _stored(None)),
        "no frames": lambda: frames.clear(),
        "fewer frames": lambda: frames.pop(),
        "other times": lambda: row.update(frame_times=[float("nan"), -1.0, float("inf")]),
        "null time": lambda: row.update(frame_times=[0.1, None, 0.2]),
        "falling times": lambda: row.update(frame_times=[3.0, 2.0, 1.0]),
        "odd gain": lambda: row.update(audio_gain=float(rng.choice([np.nan, np.inf, -1.0, 0.0, 1e300]))),
        "no sound": lambda: row.update(audio=None),
        "neither": lambda: row.update(audio=None, frames=[]),
        "path away": lambda: frames.__setitem__(1, {"bytes": None, "path": "/nowhere/frame.jpg"}),
    }
    chosen = list(changes)[int(rng.integers(len(changes)))]
    changes[chosen]()
    return row, chosen


def run_case(folder: Path, rng: np.random.Generator) -> Iterator[str]:
    """Yields the description, then loads the data set and reads its clips."""
    from hf_mmbalance.data import load_clips

    row, what = _row(rng)
    good = {"id": "clip-y", "label": 1, "audio": _stored(_flac()), "audio_gain": 1.0}
    good |= {"frames": [_stored(_jpeg())] * 3, "frame_times": [0.1, 0.2, 0.4]}
    data = folder / f"rows{rng.integers(1 << 40)}"
    data.mkdir()
    for split, rows in (("train", [row, good]), ("test", [good | {"id": "clip-z"}])):
        pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(FEATURES)), data / f"{split}.parquet")
    yield f"{data} {what}"
    splits = load_clips(str(data), cache="none", frames=4, validation_fraction=0.0, calibration_fraction=0.0)
    for part in splits.splits.values():
        for index in range(len(part)):
            clip = part[index]
            for name in ("audio", "frames"):
                if clip.get(name) is not None:
                    need(np.isfinite(np.asarray(clip[name])).all(), f"{name} that is not finite")

"""Cache of decoded clips in a folder, so that later runs can reuse them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.model.reading_mmbalance import DecodedClip


PARTS = ("audio", "frames", "frame_times")


def load_or_make(folder: Path, source: str, key: Any, make: Callable[[], DecodedClip]) -> DecodedClip:
    """Load a decoded clip from the cache, or decode it and save it there.

    Args:
        folder: folder of the cache.
        source: file of the clip; when its size or modification time changes, it is decoded again.
        key: everything else that the decoded clip depends on, compared by its `repr`.
        make: function that decodes the clip.
    """
    path = _file_of(folder, source, key)
    if path.exists():
        try:
            return _load(path)
        except Exception:  # truncated or damaged file: numpy and zipfile raise many types of error
            path.unlink(missing_ok=True)
    clip = make()
    _save(path, clip)
    return clip


def _file_of(folder: Path, source: str, key: Any) -> Path:
    stat = os.stat(source) if os.path.exists(source) else None
    state = (stat.st_size, stat.st_mtime_ns) if stat else None
    # The fields are part of the name, so that files from a different version are not used.
    layout = [field.name for field in fields(DecodedClip)]
    digest = hashlib.blake2b(repr((layout, source, state, key)).encode(), digest_size=16).hexdigest()
    return folder / digest[:2] / f"{digest}.npz"


def _save(path: Path, clip: DecodedClip) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    present = {name: part for name in PARTS if (part := getattr(clip, name)) is not None}
    temporary = path.with_suffix(f".{os.getpid()}-{id(clip)}.tmp.npz")
    try:
        np.savez(
            temporary,
            audio_start=clip.audio_start,
            window=clip.window,
            frame_span=clip.frame_span,
            exact=clip.exact,
            notes=np.array(clip.notes, dtype=str),
            timed=clip.timed,
            **present,
        )
        os.replace(temporary, path)  # an interrupted run leaves no partial file under the final name
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path) -> DecodedClip:
    with np.load(path) as file:
        audio, frames, times = (file[name] if name in file.files else None for name in PARTS)
        window, span = ((float(file[name][0]), float(file[name][1])) for name in ("window", "frame_span"))
        notes = tuple(str(note) for note in file["notes"])
        exact, timed = bool(file["exact"]), bool(file["timed"])
        return DecodedClip(audio, float(file["audio_start"]), frames, times, window, span, exact, notes, timed)

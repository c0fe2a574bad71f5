"""Damaged, odd and impossible media files, read with random arguments."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from hf_mmbalance.model.media_mmbalance import read_audio, read_media
from tests.media_factory import write_clip

from .damage import damaged
from .outcome import need


TEXTS = {
    "lfs.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
    "list.m3u8": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "concat.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "page.mp4": b"<!DOCTYPE html><html><body>404</body></html>",
    "empty.mp4": b"",
}


def write_bases(folder: Path) -> None:
    """Good files in many formats and layouts, short and small."""
    folder.mkdir(parents=True, exist_ok=True)
    small: dict[str, Any] = {"seconds": 0.6, "size": (32, 48)}
    write_clip(folder / "a.mp4", **small)
    write_clip(folder / "b.mkv", video="libx264", audio="libopus", rate=48_000, **small)
    write_clip(folder / "c.flv", video="flv", audio="libmp3lame", rate=44_100, **small)
    write_clip(folder / "d.avi", video="mpeg4", audio="libmp3lame", **small)
    write_clip(folder / "e.mpg", video="mpeg1video", audio="mp2", rate=44_100, **small)
    write_clip(folder / "f.mov", video="mjpeg", audio="pcm_s16le", **small)
    write_clip(folder / "g.m4a", video=None, seconds=0.6, channels=6)
    write_clip(folder / "h.mp4", tone=None, **small)
    time = np.arange(4800) / 8000
    for channels in (1, 2, 8, 9, 16, 24):
        wave = np.sin(2 * np.pi * 300 * time)[:, None].repeat(channels, 1)
        soundfile.write(folder / f"i{channels}.wav", wave * 0.3, 8000, subtype="PCM_24")
    soundfile.write(folder / "j.flac", np.sin(2 * np.pi * 300 * time) * 0.3, 8000)
    soundfile.write(folder / "k.ogg", np.sin(2 * np.pi * 300 * time) * 0.3, 8000)
    for codec, suffix, layout in (
        ("libopus", "mka", "hexadecagonal"),
        ("aac", "mp4", "22.2"),
        ("wavpack", "mka", "22.2"),
    ):
        _write_wide(folder / f"wide_{codec}.{suffix}", codec, layout)
    Image.new("RGB", (40, 30), "red").save(folder / "l.png")
    Image.new("RGB", (40, 30), "red").save(folder / "m.gif")


def _write_wide(path: Path, codec: str, layout: str) -> None:
    """More than 8 channels; left out where this FFmpeg has no such encoder or layout."""
    try:
        with av.open(str(path), "w") as out:
            options = {"mapping_family": "255"} if codec == "libopus" else {}
            stream = out.add_stream(codec, rate=48_000, layout=layout, options=options)
            channels = av.AudioLayout(layout).nb_channels
            block = (np.sin(np.arange(24_000) / 20).astype(np.float32) * 0.3).repeat(channels)[None]
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
            frame.sample_rate = 48_000
            resampler = av.AudioResampler(format=stream.format, layout=layout, rate=48_000)
            for part in resampler.resample(frame):
                out.mux(stream.encode(part))
            out.mux(stream.encode())
    except (av.error.FFmpegError, ValueError):
        path.unlink(missing_ok=True)


def run_case(bases: Path, folder: Path, rng: np.random.Generator) -> Iterator[str]:
    """Yields the name of the input and of its damage, then reads it and checks what comes back."""
    source, what = _source(bases, folder, rng)
    name = "<bytes>" if isinstance(source, bytes) else str(source)
    yield f"{name} {what}"
    if rng.random() < 0.3:
        wave, rate = read_audio(source, sampling_rate=16_000 if rng.random() < 0.5 else None)
        need(wave.ndim == 1 and len(wave) > 0 and np.isfinite(wave).all(), "sound that is not finite")
        need(rate > 0, "a rate that is not positive")
        return
    clip = read_media(source, **_arguments(rng))
    need(clip.audio is not None or clip.frames is not None, "nothing at all")
    need(np.isfinite(clip.duration) and clip.duration >= 0, f"duration {clip.duration}")
    if clip.audio is not None:
        need(clip.audio.ndim == 1 and np.isfinite(clip.audio).all(), "sound that is not finite")
    if clip.frames is not None:
        times = clip.frame_times
        need(clip.frames.dtype == np.uint8 and clip.frames.ndim == 4, "frames of another type")
        need(
            times is not None and len(times) == len(clip.frames) and np.isfinite(times).all(), "times that do not fit"
        )


def _source(bases: Path, folder: Path, rng: np.random.Generator) -> tuple[str | bytes, str]:
    kind = rng.random()
    if kind < 0.03:
        name = list(TEXTS)[int(rng.integers(len(TEXTS)))]
        (folder / name).write_bytes(TEXTS[name])
        return str(folder / name), "text"
    if kind < 0.06:
        return _special(folder, rng)
    files = sorted(bases.iterdir())
    base = files[int(rng.integers(len(files)))]
    what, content = damaged(base.read_bytes(), rng)
    if rng.random() < 0.3:
        return content, f"{base.name} {what}"
    path = folder / (base.name if rng.random() < 0.9 else f"{base.stem} ünï\n.{'mp4' if rng.random() < 0.5 else 'x'}")
    path.write_bytes(content)
    return str(path), what


def _special(folder: Path, rng: np.random.Generator) -> tuple[str, str]:
    path = folder / "special.mp4"
    kind = ("fifo", "folder", "loop", "sparse", "device", "absent")[int(rng.integers(6))]
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(20 << 30)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    return str(path), kind


def _arguments(rng: np.random.Generator) -> dict[str, Any]:
    def sometimes(value: Any) -> Any:
        return value if rng.random() < 0.3 else None

    start = sometimes(float(rng.uniform(0, 1)))
    chosen = {
        "num_frames": int(rng.integers(1, 17)),
        "fps": sometimes(float(rng.uniform(0.5, 60))),
        "sampling_rate": sometimes(int(rng.choice([8000, 16_000, 44_100]))),
        "start": start,
        "end": sometimes((start or 0.0) + float(rng.uniform(0.05, 2))),
        "crop": sometimes((0.1, 0.2, 0.9, 0.8)),
        "size": sometimes(int(rng.integers(8, 64))),
    }
    if rng.random() < 0.1:
        chosen["want_audio" if rng.random() < 0.5 else "want_frames"] = False
    return chosen


def huge_png(side: int) -> bytes:
    """A PNG of few bytes and many pixels."""
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    return out.getvalue()

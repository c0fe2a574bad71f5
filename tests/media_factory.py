"""Small media files for tests, made with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def grey_of(frame: int) -> int:
    """The grey level of a test clip's n-th frame: far enough apart to survive lossy coding."""
    return 16 + 8 * frame % 224


def write_clip(
    path: Path,
    *,
    seconds: float = 1.0,
    fps: int = 25,
    size: tuple[int, int] = (48, 64),
    rate: int = 16_000,
    tone: float | None = 440.0,
    video: str | None = "mpeg4",
    audio: str = "aac",
    colour: tuple[int, int, int] | None = None,
    gop: int = 12,
    channels: int = 1,
    texture: int | None = None,
    sound_seconds: float | None = None,
) -> Path:
    """Write a clip whose n-th frame is `grey_of(n)` (or one colour) and whose sound is a tone (None: no sound).

    With `texture` (a seed) frames are smooth patterns that differ from place to place and from frame to frame.
    With `sound_seconds` the sound has another length than the frames.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        pictures = None
        if video is not None:
            pictures = out.add_stream(video, rate=Fraction(fps))
            pictures.height, pictures.width, pictures.pix_fmt = *size, "yuvj420p" if video == "mjpeg" else "yuv420p"
            pictures.gop_size = gop
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
        sound = out.add_stream(audio, rate=rate, layout=layout) if tone is not None else None
        for n in range(round(seconds * fps) if pictures is not None else 0):
            picture = np.full((*size, 3), grey_of(n) if colour is None else 0, dtype=np.uint8)
            if colour is not None:
                picture[:] = colour
            if texture is not None:
                picture = _pattern(size, texture, n)
            for packet in pictures.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                out.mux(packet)
        if pictures is not None:
            out.mux(pictures.encode())
        if sound is not None:
            _write_tone(out, sound, sound_seconds or seconds, rate, tone, layout, channels)
    return path


def _pattern(size: tuple[int, int], seed: int, number: int) -> np.ndarray:
    small = np.random.default_rng([seed, number]).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def _write_tone(out, sound, seconds: float, rate: int, tone: float, layout: str, channels: int) -> None:
    time = np.arange(round(seconds * rate)) / rate
    wave = (0.3 * np.sin(2 * np.pi * tone * time) * 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(np.repeat(wave, channels)[None], format="s16", layout=layout)
    frame.sample_rate = rate
    fifo = av.AudioFifo()
    resampler = av.AudioResampler(format=sound.format, layout=layout, rate=rate)
    for part in resampler.resample(frame):
        part.pts = None
        fifo.write(part)
    step = sound.codec_context.frame_size or 1024
    while (part := fifo.read(step, partial=True)) is not None:
        for packet in sound.encode(part):
            out.mux(packet)
    out.mux(sound.encode())

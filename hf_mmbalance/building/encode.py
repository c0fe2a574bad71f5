"""Encode a clip as a row of a shard: decoded once, audio as FLAC, frames as JPEG or PNG, typed for `datasets`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile

from hf_mmbalance.building.plan import BuildPlan, EncodeOptions, PlannedClip
from hf_mmbalance.model.media_mmbalance import Limits, MediaError, declared_duration, read_audio
from hf_mmbalance.model.reading_mmbalance import Clip, read, stored_frames, stored_times


MEDIA = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # how `datasets` stores Audio and Image
MUCH_LONGER = 2  # a file this many times longer than its clip is the complete video, even if it ends before the clip
MAX_IN_MEMORY = 256 << 20  # bytes; larger files are decoded from disk
ARROW_TYPES = {"string": pa.string(), "int64": pa.int64(), "int32": pa.int32(), "float64": pa.float64()}


def value(dtype: str) -> dict[str, Any]:
    """Return the `datasets` feature of a plain column."""
    return {"dtype": dtype, "_type": "Value"}


def class_label(names: list[str]) -> dict[str, Any]:
    """Return the `datasets` feature of a column of class numbers with names."""
    return {"names": list(names), "_type": "ClassLabel"}


def list_of(feature: dict[str, Any]) -> dict[str, Any]:
    """Return the `datasets` feature of a column of lists."""
    return {"feature": feature, "_type": "List"}


def features_of(plan: BuildPlan) -> dict[str, dict[str, Any]]:
    """Return all columns of a plan's shards, in order, in the notation of `datasets`.

    The stored audio times `audio_gain` is the source's audio. The gain is 1 unless the audio exceeds full scale.
    """
    return {
        "id": value("string"),
        **plan.features,
        plan.label_column: class_label(plan.classes),
        "audio": {"sampling_rate": plan.encode.sampling_rate, "num_channels": 1, "_type": "Audio"},
        "audio_gain": value("float64"),
        "frames": list_of({"_type": "Image"}),
        "frame_times": list_of(value("float64")),
        "duration": value("float64"),
        "notes": value("string"),
    }


def arrow_type(feature: dict[str, Any]) -> pa.DataType:
    """Return the Arrow type that `datasets` uses for a feature."""
    kind = feature["_type"]
    if kind in ("Audio", "Image"):
        return MEDIA
    if kind == "List":
        return pa.list_(arrow_type(feature["feature"]))
    return pa.int64() if kind == "ClassLabel" else ARROW_TYPES[feature["dtype"]]


def arrow_schema(features: dict[str, dict[str, Any]]) -> pa.Schema:
    """Return an Arrow schema with metadata from which `datasets` restores the features."""
    fields = [pa.field(name, arrow_type(feature)) for name, feature in features.items()]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def encode_clip(clip: PlannedClip, label_column: str, options: EncodeOptions) -> dict[str, Any]:
    """Read and encode one clip as a row.

    Raises:
        MediaError: the clip cannot be used; `reason` is one of `plan.STATUSES`.
    """
    if clip.problem is not None:
        raise MediaError(*clip.problem)
    assert clip.source is not None  # a clip without a file has a problem
    made = _read_clip(clip, options)
    _check_parts(clip, made, options)
    audio, frames = made.parts["audio"], made.parts["vision"]
    sound, gain = (None, 1.0) if audio is None else flac(audio, options.sampling_rate)
    return {
        "id": clip.id,
        **clip.columns,
        label_column: clip.label,
        "audio": None if sound is None else {"bytes": sound, "path": f"{clip.id}.flac"},
        "audio_gain": gain,
        "frames": None if frames is None else _images(clip.id, made, options),
        "frame_times": None if frames is None else stored_times(made),
        "duration": round(float(made.seconds), 6),
        "notes": "; ".join([*clip.notes, *made.notes]) or None,
    }


def _checked(path: str, size: int, sha256: str | None) -> bytes | str:
    """Check a file and return its bytes, or its path if it is too large to keep in memory.

    A file is read once, so that the checked bytes are the decoded ones. A file larger than `MAX_IN_MEMORY` is read
    twice.

    Raises:
        MediaError: the file is missing or not a regular file, or its size or checksum is not the planned one.
    """
    found = regular_size(path)
    if found != size:
        raise MediaError("changed", f"{path}: {found} bytes, {size} when the build was planned")
    try:
        with open(path, "rb") as file:
            if found > MAX_IN_MEMORY:
                digest = hashlib.file_digest(file, "sha256").hexdigest() if sha256 is not None else None
                content: bytes | str = path
            else:
                content = file.read(found)
                # The decoder has a better message for an empty file and a git-lfs pointer.
                named_better = not content or content.startswith(b"version https://git-lfs")
                digest = None if named_better else hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise MediaError("unreadable", f"{path}: cannot be read ({error.strerror})") from None
    if None not in (sha256, digest) and digest != sha256:
        raise MediaError("checksum", f"{path}: sha256 {str(digest)[:12]}..., but the list says {str(sha256)[:12]}...")
    return content


def regular_size(path: str) -> int:
    """Return the size of a regular file in bytes without opening it, since opening a pipe or a device can block.

    Raises:
        MediaError: the file does not exist, or it is a pipe, a socket, a device or a folder.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError("missing", f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise MediaError("unreadable", f"{path}: cannot be read ({error})") from None
    if not stat.S_ISREG(found.st_mode):
        raise MediaError("unreadable", f"{path}: not a regular file (a folder, pipe, socket or device)")
    return found.st_size


def _read_clip(clip: PlannedClip, options: EncodeOptions) -> Clip:
    """Read a clip with the reader that a model trained on these rows also uses."""
    limits = Limits(max_seconds=options.max_seconds)
    assert clip.source is not None  # a clip without a file has a problem
    media: dict[str, Any] = {"video": _checked(clip.source, clip.size, clip.sha256)}
    if clip.sound is not None:
        content = _checked(clip.sound, clip.sound_size, clip.sound_sha256)
        with _named(clip.sound):  # decoded separately from the video, so that an error names the right file
            media["audio"], media["sampling_rate"] = read_audio(content, limits=limits)
    span = clip.window
    with _named(clip.source):
        if span is not None and clip.window_if_longer:
            seconds = declared_duration(media["video"])
            if seconds is not None and seconds < min(span[1], MUCH_LONGER * (span[1] - span[0])):
                span = None
        return read(media, options.reading(), span, limits=limits)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Make errors name the file, even if it is decoded from memory."""
    try:
        yield
    except MediaError as error:
        raise MediaError(error.reason, str(error).replace("<bytes>", path)) from None


def _check_parts(clip: PlannedClip, made: Clip, options: EncodeOptions) -> None:
    why = "; ".join(made.notes)
    if options.need_audio and made.parts["audio"] is None:
        raise MediaError("no_audio", f"{clip.source}: {why}")
    if options.need_frames and made.parts["vision"] is None:
        raise MediaError("no_video", f"{clip.source}: {why}")
    if made.seconds < options.min_seconds:
        raise MediaError("too_short", f"{clip.source}: {made.seconds:.2f} s, the minimum is {options.min_seconds:g} s")


def flac(wave: np.ndarray, rate: int) -> tuple[bytes, float]:
    """Encode a waveform as FLAC that stores every sample exactly, and return it with its gain.

    Args:
        wave: waveform in steps of 1 / 32768 (`round_sound`); it can exceed full scale, as lossy codecs overshoot.
        rate: sampling rate in Hz.

    Returns:
        The file, and the gain by which to multiply it: 16 bit and a gain of 1 or, if the audio exceeds full scale,
        24 bit and a power of 2.
    """
    peak = float(np.abs(wave).max(initial=0.0))
    gain = 1.0 if peak < 1.0 else 2.0 ** (np.floor(np.log2(peak)) + 1)
    out = io.BytesIO()
    if gain == 1.0:
        soundfile.write(out, np.rint(wave * 2.0**15).astype(np.int16), rate, format="FLAC", subtype="PCM_16")
    else:
        samples = np.rint(wave.astype(np.float64) / gain * 2.0**23).astype(np.int32) << 8
        soundfile.write(out, samples, rate, format="FLAC", subtype="PCM_24")
    return out.getvalue(), float(gain)


def _images(clip_id: str, made: Clip, options: EncodeOptions) -> list[dict[str, Any]]:
    suffix = "png" if options.image_format == "png" else "jpg"
    images = stored_frames(made, options.reading())
    return [{"bytes": image, "path": f"{clip_id}_{i:03d}.{suffix}"} for i, image in enumerate(images)]


def file_size(path: str | os.PathLike[str]) -> int:
    """Return the size of a file in bytes, or 0 if it cannot be read."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0

"""One clip to the row of a shard: decoded once, sound as FLAC, frames as JPEG or PNG, typed for `datasets`."""

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
MUCH_LONGER = 2  # than its clip: a file of that length is the whole video, though it may end before the clip does
MAX_IN_MEMORY = 256 << 20  # bytes; a larger file is decoded from the disk
ARROW_TYPES = {"string": pa.string(), "int64": pa.int64(), "int32": pa.int32(), "float64": pa.float64()}


def value(dtype: str) -> dict[str, Any]:
    """A plain column's `datasets` feature."""
    return {"dtype": dtype, "_type": "Value"}


def class_label(names: list[str]) -> dict[str, Any]:
    """A column of class numbers with names."""
    return {"names": list(names), "_type": "ClassLabel"}


def list_of(feature: dict[str, Any]) -> dict[str, Any]:
    """A column of lists."""
    return {"feature": feature, "_type": "List"}


def features_of(plan: BuildPlan) -> dict[str, dict[str, Any]]:
    """All columns of a plan's shards, in order, in the notation of `datasets`.

    `audio_gain` times the stored sound is the sound of the source: 1 unless that goes beyond full scale.
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
    """The Arrow type `datasets` uses for a feature."""
    kind = feature["_type"]
    if kind in ("Audio", "Image"):
        return MEDIA
    if kind == "List":
        return pa.list_(arrow_type(feature["feature"]))
    return pa.int64() if kind == "ClassLabel" else ARROW_TYPES[feature["dtype"]]


def arrow_schema(features: dict[str, dict[str, Any]]) -> pa.Schema:
    """A schema from whose metadata plain `datasets` reads the features back."""
    fields = [pa.field(name, arrow_type(feature)) for name, feature in features.items()]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def encode_clip(clip: PlannedClip, label_column: str, options: EncodeOptions) -> dict[str, Any]:
    """The row of one clip.

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
    """Check a file and return its bytes, or its path if it is too large to be kept in memory.

    A file is read once, so that what is checked is what is decoded; one larger than `MAX_IN_MEMORY` is read twice.

    Raises:
        MediaError: the file is missing, not a regular file, of another size, or not what its checksum says.
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
                named_better = not content or content.startswith(b"version https://git-lfs")  # by the decoder
                digest = None if named_better else hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise MediaError("unreadable", f"{path}: cannot be read ({error.strerror})") from None
    if None not in (sha256, digest) and digest != sha256:
        raise MediaError("checksum", f"{path}: sha256 {str(digest)[:12]}..., the list says {str(sha256)[:12]}...")
    return content


def regular_size(path: str) -> int:
    """Bytes of a regular file; nothing is opened, since opening a pipe or a device can block.

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
    """Read a clip by the reader that also serves a model trained on these rows."""
    limits = Limits(max_seconds=options.max_seconds)
    assert clip.source is not None  # a clip without a file has a problem
    media: dict[str, Any] = {"video": _checked(clip.source, clip.size, clip.sha256)}
    if clip.sound is not None:
        content = _checked(clip.sound, clip.sound_size, clip.sound_sha256)
        with _named(clip.sound):  # decoded apart from the video, so that an error names the file at fault
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
    """Errors of a file that is read from memory name it."""
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
        raise MediaError("too_short", f"{clip.source}: {made.seconds:.2f} s, the least is {options.min_seconds:g} s")


def flac(wave: np.ndarray, rate: int) -> tuple[bytes, float]:
    """FLAC that stores every sample exactly, and the gain to multiply it by.

    Args:
        wave: in steps of 1 / 32768 (`round_sound`); lossy codecs overshoot full scale.
        rate: Hz.

    Returns:
        The file, 16 bit with a gain of 1, or 24 bit with a power of 2 where the sound goes beyond full scale.
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
    """Size of a file in bytes, 0 if it cannot be read."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0

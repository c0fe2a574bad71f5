"""One clip to the row of a shard: decoded once, sound as FLAC, frames as JPEG or PNG, typed for `datasets`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
from PIL import Image

from hf_mmbalance.building.plan import BuildPlan, EncodeOptions, PlannedClip
from hf_mmbalance.data.sound import to_sixteen_bits
from hf_mmbalance.model.media_mmbalance import MediaClip, MediaError, declared_duration, read_audio, read_media


MEDIA = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # how `datasets` stores Audio and Image
HELD_WHOLE = 256 << 20  # bytes; a larger file is decoded from the disk
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
    """All columns of a plan's shards, in order, as `datasets` writes them down.

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
    content = _checked(clip.source, clip.size, clip.sha256)
    media = _decode(clip, content, options)
    notes = [*clip.notes, *media.notes]
    audio, duration = media.audio, media.duration
    if clip.sound is not None:
        audio, _ = read_audio(
            _checked(clip.sound, None, clip.sound_sha256),
            sampling_rate=options.sampling_rate,
            max_seconds=options.max_seconds,
        )
        notes = [note for note in notes if not note.startswith("no_audio")]
        duration = len(audio) / options.sampling_rate
    _check_parts(clip, audio, media, duration, options)
    samples, gain = (None, 1.0) if audio is None else to_sixteen_bits(audio)
    return {
        "id": clip.id,
        **clip.columns,
        label_column: clip.label,
        "audio": None
        if samples is None
        else {"bytes": flac(samples, options.sampling_rate), "path": f"{clip.id}.flac"},
        "audio_gain": gain,
        "frames": None
        if media.frames is None
        else [_image(clip.id, i, f, options) for i, f in enumerate(media.frames)],
        "frame_times": None if media.frame_times is None else [round(float(time), 6) for time in media.frame_times],
        "duration": round(float(duration), 6),
        "notes": "; ".join(notes) or None,
    }


def _checked(path: str, size: int | None, sha256: str | None) -> bytes | str:
    """What the decoder is given: the bytes of a file, or the path of one too large to be held in memory.

    A file is read once, so that what is checked is what is decoded; one larger than `HELD_WHOLE` is read twice.

    Raises:
        MediaError: the file is missing, not a regular file, of another size, or not what its checksum says.
    """
    found = regular_size(path)
    if size is not None and found != size:
        raise MediaError("changed", f"{path}: {found} bytes, {size} when the build was planned")
    try:
        with open(path, "rb") as file:
            if found > HELD_WHOLE:
                digest = hashlib.file_digest(file, "sha256").hexdigest() if sha256 is not None else None
                content: bytes | str = path
            else:
                content = file.read(found)
                is_pointer = content.startswith(b"version https://git-lfs")
                digest = None if is_pointer else hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise MediaError("unreadable", f"{path}: cannot be read ({error.strerror})") from None
    if None not in (sha256, digest) and digest != sha256:
        raise MediaError("checksum", f"{path}: sha256 {str(digest)[:12]}..., the list says {str(sha256)[:12]}...")
    return content


def regular_size(path: str) -> int:
    """Bytes of a regular file; nothing is opened, since opening a pipe or a device can wait for ever.

    Raises:
        MediaError: there is no such file, or it is a pipe, a socket, a device or a folder.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError("missing", f"{path}: no such file (any more)") from None
    except (OSError, ValueError) as error:
        raise MediaError("unreadable", f"{path}: cannot be read ({error})") from None
    if not stat.S_ISREG(found.st_mode):
        raise MediaError("unreadable", f"{path}: not a regular file (a folder, pipe, socket or device)")
    return found.st_size


def _decode(clip: PlannedClip, content: bytes | str, options: EncodeOptions) -> MediaClip:
    start, end = clip.window or (None, None)
    try:
        if end is not None and clip.window_if_longer:
            seconds = declared_duration(content)
            if seconds is not None and seconds < end:
                start = end = None
        return read_media(
            content,
            num_frames=options.frames if options.fps is None else None,
            fps=options.fps,
            sampling_rate=options.sampling_rate,
            start=start,
            end=end,
            crop=options.crop,
            size=options.frame_size,
            want_audio=clip.sound is None,
            max_seconds=options.max_seconds,
        )
    except MediaError as error:
        raise MediaError(error.reason, str(error).replace("<bytes>", str(clip.source))) from None


def _check_parts(
    clip: PlannedClip, audio: np.ndarray | None, media: MediaClip, duration: float, options: EncodeOptions
) -> None:
    why = "; ".join(media.notes)
    if options.need_audio and audio is None:
        raise MediaError("no_audio", f"{clip.source}: {why}")
    if options.need_frames and media.frames is None:
        raise MediaError("no_video", f"{clip.source}: {why}")
    if duration < options.min_seconds:
        raise MediaError("too_short", f"{clip.source}: {duration:.2f} s, the least is {options.min_seconds:g} s")


def flac(samples: np.ndarray, rate: int) -> bytes:
    """FLAC of int16 samples."""
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def _image(clip_id: str, number: int, frame: np.ndarray, options: EncodeOptions) -> dict[str, Any]:
    out = io.BytesIO()
    if options.image_format == "png":
        Image.fromarray(frame).save(out, "PNG", compress_level=3)
    else:
        Image.fromarray(frame).save(out, "JPEG", quality=options.quality)
    suffix = "png" if options.image_format == "png" else "jpg"
    return {"bytes": out.getvalue(), "path": f"{clip_id}_{number:03d}.{suffix}"}


def file_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, 0 where it cannot be told."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0

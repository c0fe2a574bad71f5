"""Overview image of a build: a few clips of every class, each as a frame above the spectrogram of its audio."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile
from PIL import Image, ImageDraw


TILE = 112  # pixels
CAPTION = 12


def contact_sheet(folder: Path, shards: list[dict[str, Any]], classes: list[str], label: str, each: int = 4) -> Path:
    """Write `contact_sheet.png` with one row per class and `each` clips per row.

    Args:
        folder: folder of the build.
        shards: shards, as listed in the report.
        classes: names of the classes.
        label: name of the label column.
        each: clips per class.

    Returns:
        Path of the image.
    """
    picked: dict[int, list[dict[str, Any]]] = {i: [] for i in range(len(classes))}
    for shard in shards:
        if all(len(rows) >= each for rows in picked.values()):
            break
        file = pq.ParquetFile(folder / shard["file"])
        for group in range(file.num_row_groups):
            labels = file.read_row_group(group, columns=[label]).column(0).to_pylist()
            wanted = [i for i, number in enumerate(labels) if len(picked[number]) < each]
            if wanted:
                table = file.read_row_group(group, columns=["id", label, "audio", "frames"]).take(wanted)
                for row in table.to_pylist():
                    if len(picked[row[label]]) < each:
                        picked[row[label]].append(row)
    height = 2 * TILE + 2 * CAPTION
    sheet = Image.new("RGB", (each * (TILE + 4), len(classes) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(classes):
        top = number * height
        draw.text((2, top), f"{name}", fill="black")
        for place, row in enumerate(picked[number]):
            left = place * (TILE + 4)
            draw.text((left + 2, top + CAPTION), row["id"][:18], fill=(90, 90, 90))
            sheet.paste(_frame(row), (left, top + 2 * CAPTION))
            sheet.paste(spectrogram(row), (left, top + 2 * CAPTION + TILE))
    path = folder / "contact_sheet.png"
    sheet.save(path)
    return path


def _frame(row: dict[str, Any]) -> Image.Image:
    if not row["frames"]:
        return Image.new("RGB", (TILE, TILE), (200, 200, 200))
    middle = row["frames"][len(row["frames"]) // 2]
    with Image.open(io.BytesIO(middle["bytes"])) as file:
        picture = file.convert("RGB")
    picture.thumbnail((TILE, TILE))
    tile = Image.new("RGB", (TILE, TILE), "white")
    tile.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return tile


def spectrogram(row: dict[str, Any]) -> Image.Image:
    """Draw the log power of a row's audio over time and frequency, with low frequencies at the bottom."""
    if not row["audio"]:
        return Image.new("RGB", (TILE, TILE), (200, 200, 200))
    wave, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
    wave = np.pad(wave, (0, max(512 - len(wave), 0)))
    starts = np.linspace(0, len(wave) - 512, TILE).astype(int)
    pieces = wave[starts[:, None] + np.arange(512)] * np.hanning(512)
    power = np.log10(np.abs(np.fft.rfft(pieces))[:, : 2 * TILE].T ** 2 + 1e-8)[::-1]
    level = np.clip((power - power.max() + 6) / 6, 0, 1)  # 60 dB from the loudest point down
    colours = np.stack([level**0.7, level**1.5, 0.35 * np.sqrt(level) + 0.1], axis=-1)
    return Image.fromarray((np.clip(colours, 0, 1) * 255).astype(np.uint8)).resize((TILE, TILE))

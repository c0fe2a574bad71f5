"""Reading an epoch of built GRID shards, compared with a bare loop over the same bytes, raw clips, and loose files.

    python benchmarks/data_read.py --source GRID [--crema CREMA-D]

Targets: the stream reaches at least 0.85 of the bare loop's rate on one core, at least 1.7 times it with two workers
(steady), and beats both decoding the raw clips in each epoch and the usual wav + STFT + listed JPEG files. Rates and
ratios are medians over rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_mmbalance.building.engine import build
from hf_mmbalance.building.plan import EncodeOptions
from hf_mmbalance.building.recipes.grid import plan_grid
from hf_mmbalance.building.report import finish
from hf_mmbalance.data.streaming import ClipStream, load
from hf_mmbalance.model.log_mel_mmbalance import log_mel
from hf_mmbalance.model.media_mmbalance import read_media


BATCH = 16


def tensors(clips: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-mel and frames of a batch, the same for every way of reading."""
    values, _ = log_mel([clip["audio"] for clip in clips], sampling_rate=16_000, num_mel_bins=128, max_length=300)
    frames = torch.from_numpy(np.stack([clip["frames"] for clip in clips]))
    return values, frames.permute(0, 1, 4, 2, 3).contiguous()  # scaling to floats happens on the device


def bare(files: Iterable[Path]) -> Iterator[int]:
    """Run a bare loop over the same bytes."""
    for path in files:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=["audio", "frames"]).to_pylist()
            for i in range(0, len(rows), BATCH):
                clips = []
                for row in rows[i : i + BATCH]:
                    wave, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
                    pictures = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in row["frames"]]
                    clips.append({"audio": wave, "frames": np.stack(pictures)})
                tensors(clips)
                yield len(clips)


def raw(paths: list[Path]) -> Iterator[int]:
    """Decode the clips themselves in each epoch (with this package's decoder)."""
    for i in range(0, len(paths), BATCH):
        clips = []
        for path in paths[i : i + BATCH]:
            clip = read_media(path, num_frames=8, sampling_rate=16_000)
            clips.append({"audio": clip.audio, "frames": clip.frames})
        tensors(clips)
        yield len(clips)


def loose(folder: Path, clips: list[str]) -> Iterator[int]:
    """Read as comparable projects do: a wav and its STFT, a folder of JPEG files that are listed and opened singly."""
    window = torch.hann_window(512)
    for i in range(0, len(clips), BATCH):
        spectra, pictures = [], []
        for name in clips[i : i + BATCH]:
            wave, rate = soundfile.read(folder / "wav" / f"{name}.wav", dtype="float32")
            wave = np.tile(wave, 3)[: 3 * rate]
            spectrum = torch.stft(
                torch.from_numpy(wave), 512, 353 * rate // 22_050, window=window, return_complex=True
            )
            spectra.append(torch.log(spectrum.abs() + 1e-7))
            images = sorted(os.listdir(folder / "frames" / name))
            pictures.append(
                [np.asarray(Image.open(folder / "frames" / name / image).convert("RGB")) for image in images]
            )
        torch.stack(spectra)
        torch.from_numpy(np.array(pictures)).permute(0, 1, 4, 2, 3).contiguous()
        yield len(pictures)


def write_loose(files: list[Path], folder: Path) -> list[str]:
    """Unpack shards into loose files and return the clips' names."""
    (folder / "wav").mkdir(parents=True)
    names = []
    for path in files:
        for row in pq.read_table(path, columns=["id", "audio", "frames"]).to_pylist():
            wave, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
            soundfile.write(folder / "wav" / f"{row['id']}.wav", wave, rate)
            (folder / "frames" / row["id"]).mkdir(parents=True)
            for i, image in enumerate(row["frames"]):
                (folder / "frames" / row["id"] / f"{i:05d}.jpg").write_bytes(image["bytes"])
            names.append(row["id"])
    return names


def stream_batches(stream: ClipStream, workers: int) -> Iterator[int]:
    for values, _ in DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=tensors):
        yield len(values)


def rate(batches: Iterator[int]) -> dict[str, float]:
    """Return clips per second, in total and in steady state (from the first tenth to the last)."""
    start, cpu = time.perf_counter(), time.process_time()
    marks = [(time.perf_counter(), count) for count in batches]
    total = sum(count for _, count in marks)
    first, last = len(marks) // 10, len(marks) - max(len(marks) // 10, 1)
    inner = sum(count for _, count in marks[first + 1 : last + 1])
    steady = inner / (marks[last][0] - marks[first][0]) if last > first else 0.0
    spent = time.process_time() - cpu
    return {"end_to_end": total / (marks[-1][0] - start), "steady": steady, "per_cpu_second": total / max(spent, 1e-9)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--crema", type=Path, help="folder with the official VideoFlash/*.flv")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        plan, out = plan_grid(args.source, EncodeOptions()), Path(folder) / "grid"
        finish(plan, out, build(plan, out, num_proc=2), "")
        files = sorted((out / "data").glob("train-*.parquet"))
        names = write_loose(files, Path(folder) / "loose")
        stream = load(str(out), streaming=True, batch_size=BATCH, label_column="digit", frame_size=None)
        assert isinstance(stream, ClipStream)
        # The ways of reading alternate: the speed of a machine drifts, and single rounds differ by a tenth.
        rounds = [
            {
                "bare": rate(bare(files)),
                "stream": rate(stream_batches(stream, 0)),
                "loose_files": rate(loose(Path(folder) / "loose", names)),
                "stream_two_workers": rate(stream_batches(stream, 2)),
            }
            for _ in range(args.rounds)
        ]
        result = {
            name: {key: statistics.median(turn[name][key] for turn in rounds) for key in rounds[0][name]}
            for name in rounds[0]
        }
        result["raw_grid"] = rate(raw(sorted((args.source / "s1").iterdir())[:300]))
        if args.crema:
            result["raw_crema_d_flv"] = rate(raw(sorted((args.crema / "VideoFlash").iterdir()) * 20))

    def over(one: str, key: str, other: str, other_key: str) -> float:
        return statistics.median(turn[one][key] / turn[other][other_key] for turn in rounds)

    cpu = "per_cpu_second"
    ratios = {
        "stream_over_bare": over("stream", "end_to_end", "bare", "end_to_end"),
        "stream_over_bare_cpu": over("stream", cpu, "bare", cpu),
        "two_workers_steady_over_bare": over("stream_two_workers", "steady", "bare", "end_to_end"),
        "stream_over_loose_cpu": over("stream", cpu, "loose_files", cpu),
        "stream_over_raw_grid_cpu": result["stream"][cpu] / result["raw_grid"][cpu],
    }
    if args.crema:
        flv = result["raw_crema_d_flv"]["per_cpu_second"]
        ratios["stream_over_raw_crema_d_cpu"] = result["stream"]["per_cpu_second"] / flv
    print(json.dumps({"ratios": ratios, "clips_per_second": result}, indent=1))
    if args.json:
        args.json.write_text(json.dumps({"ratios": ratios, "clips_per_second": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()

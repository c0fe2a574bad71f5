"""Building GRID s1 (8 frames, JPEG, FLAC), compared with a bare loop of PyAV decode + JPEG + FLAC on one core.

    python benchmarks/data_build.py --source GRID

Targets: one process reaches at least 0.8 of the bare loop's rate, two processes (steady) at least 1.7 times it, and a
worker stays under 500 MiB for any number of clips. CPU rates are printed too, since other work on the machine slows
everything alike.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from hf_mmbalance.building.engine import build
from hf_mmbalance.building.plan import EncodeOptions
from hf_mmbalance.building.recipes.grid import plan_grid


def bare(paths: list[Path]) -> None:
    """Run the simplest loop: decode everything, keep eight frames, encode."""
    for path in paths:
        with av.open(str(path)) as container:
            frames = [frame for frame in container.decode(video=0)]
        for k in range(8):
            frame = frames[int((k + 0.5) * len(frames) / 8)]
            Image.fromarray(frame.to_ndarray(format="rgb24")).save(io.BytesIO(), "JPEG", quality=90)
        with av.open(str(path)) as container:
            wave = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        soundfile.write(io.BytesIO(), wave, 16_000, format="FLAC", subtype="PCM_16")


def measure_bare(paths: list[Path]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    bare(paths)
    return len(paths) / (time.perf_counter() - wall), len(paths) / (time.process_time() - cpu)


def measure_build(source: Path, num_proc: int) -> dict[str, float]:
    plan = plan_grid(source, EncodeOptions())
    with tempfile.TemporaryDirectory() as out:
        before, start = _cpu(), time.perf_counter()
        run = build(plan, Path(out) / "grid", num_proc=num_proc)
        wall, cpu = time.perf_counter() - start, _cpu() - before
    clips = run["clips"]
    return {"end_to_end": clips / wall, "steady": run["steady_clips_per_second"], "per_cpu_second": clips / cpu}


def _cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(part.ru_utime + part.ru_stime for part in (own, children))


WORKER = """
import resource, sys
from pathlib import Path
from hf_mmbalance.building import engine
from hf_mmbalance.building.plan import EncodeOptions
from hf_mmbalance.building.recipes.grid import plan_grid
import tempfile
engine.pa.set_memory_pool(engine.pa.system_memory_pool())
plan = plan_grid(Path(sys.argv[1]), EncodeOptions())
plan.clips = plan.clips[: int(sys.argv[2])]
with tempfile.TemporaryDirectory() as out:
    engine.build(plan, Path(out) / "x")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "torch" in sys.modules, "transformers" in sys.modules)
"""


def worker_memory(source: Path, clips: int) -> tuple[float, bool]:
    """Return the peak MiB of a process that builds, and whether it imported torch or transformers."""
    done = subprocess.run([sys.executable, "-c", WORKER, str(source), str(clips)], capture_output=True, text=True)
    peak, torch, transformers = done.stdout.split()
    return float(peak), "True" in (torch, transformers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--bare_clips", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    paths = sorted((args.source / "s1").iterdir())[: args.bare_clips]
    bare(paths[:20])
    first = measure_bare(paths)
    one, two = measure_build(args.source, 1), measure_build(args.source, 2)
    second = measure_bare(paths)  # before and after, since the machine's load changes
    wall, cpu = (first[0] + second[0]) / 2, (first[1] + second[1]) / 2
    memory = {count: worker_memory(args.source, count) for count in (150, 300, 600)}
    result = {
        "bare": {"clips_per_second": wall, "per_cpu_second": cpu},
        "one_process": one,
        "two_processes": two,
        "ratio_one_process": one["end_to_end"] / wall,
        "ratio_one_process_cpu": one["per_cpu_second"] / cpu,
        "ratio_two_steady": two["steady"] / wall,
        "ratio_two_end_to_end": two["end_to_end"] / wall,
        "worker_peak_mib": {count: peak for count, (peak, _) in memory.items()},
        "worker_imports_torch": any(heavy for _, heavy in memory.values()),
    }
    print(json.dumps(result, indent=1, default=float))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()

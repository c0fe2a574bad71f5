"""Time and memory of `accelerate launch train.py` with no arguments.

    python benchmarks/default_run.py

Prints the wall time of the complete command and the peak memory of the training process.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


TRAIN = Path(__file__).parent.parent / "train.py"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", str(TRAIN)],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    # The largest of all descendants: the training process, not the launcher.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    table = done.stdout[done.stdout.index("synthetic, test split") :].strip()
    print(table)
    reached = re.search(r"reaches ([0-9.]+) of it", table)
    assert reached is not None
    print(f"wall time {seconds:.0f} s (under 120), peak memory {peak:.0f} MiB (under 1536)")
    print(f"fused accuracy over the Bayes ceiling: {reached[1]} (at least 0.95)")


if __name__ == "__main__":
    main()

"""`python -m tests.fuzz --seed 0 --cases 1000`: run the cases of a seed and print the counts and what failed."""

from __future__ import annotations

import argparse
import sys
import time

from .runner import SHARES, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", choices=list(SHARES), default=list(SHARES))
    arguments = parser.parse_args()
    started = time.perf_counter()
    counts = run(arguments.seed, arguments.cases, tuple(arguments.kinds))
    for failure in counts.failures:
        sys.stdout.write(failure + "\n")
    sys.stdout.write(f"seed {arguments.seed}, {time.perf_counter() - started:.0f} s\n{counts}\n")
    return 1 if counts.failures else 0


if __name__ == "__main__":
    sys.exit(main())

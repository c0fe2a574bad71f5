"""Speed and memory of one fit at the size of a large benchmark, and of exact Shapley values of six modalities.

python benchmarks/decision_speed.py [--clips 15000] [--classes 309]
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings

import numpy as np

from hf_mmbalance.decision.allocation import Allocation
from hf_mmbalance.decision.contributions import balance
from hf_mmbalance.decision.evaluation import FittedPart
from hf_mmbalance.decision.state import HeadState
from hf_mmbalance.decision.table import DecisionTable


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=15000)
    parser.add_argument("--classes", type=int, default=309)
    parser.add_argument("--groups", type=int, default=500)
    arguments = parser.parse_args()
    logits, labels, groups = draw(arguments.clips, 2, arguments.classes, arguments.groups)
    start, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        allocation = Allocation().fit(logits, labels, groups)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{arguments.clips} clips, 2 modalities, {arguments.classes} classes: one fit of the full ladder"
          f" ({', '.join(allocation.ladder_.states)})")  # fmt: skip
    print(f"  {wall:.0f} s ({cpu:.0f} CPU seconds), peak memory {peak:.2f} GiB, chosen {allocation.chosen_}")
    for name, score in allocation.ladder_.scores.items():
        print(f"  {name:12s} held-out NLL {score.nll.mean():.4f}, accuracy {100 * score.hit.mean():.2f}")
    logits, labels, groups = draw(5000, 6, 10, 50)
    table = DecisionTable([str(i) for i in range(5000)], [str(g) for g in groups], ["test"] * 5000, labels, logits,
                          [str(c) for c in range(10)], list("abcdef"))  # fmt: skip
    begun = time.process_time()
    balance([FittedPart(np.arange(5000), HeadState.plain_sum(6, 10))], table)
    shapley_seconds = time.process_time() - begun
    print(
        f"exact Shapley values, 6 modalities (64 subsets), 5,000 clips, 1,000 draws: {shapley_seconds:.1f} CPU seconds"
    )
    checks = {"one fit under 200 CPU seconds": cpu < 200, "peak memory under 4 GiB": peak < 4,
              "Shapley of six modalities under a minute": shapley_seconds < 60}  # fmt: skip
    for name, passed in checks.items():
        print(f"{'pass' if passed else 'FAIL'}  {name}")
    return 0 if all(checks.values()) else 1


def draw(n: int, modalities: int, classes: int, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw logits of noisy towers whose strength differs by class; the first tower is over-confident."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    strength = rng.uniform(1.0, 4.0, size=(modalities, classes))
    logits = rng.normal(size=(n, modalities, classes)).astype(np.float32)
    logits[np.arange(n), :, labels] += strength.T[labels]
    logits *= 2
    logits[:, 0] *= 2
    return logits, labels, rng.integers(0, groups, n)


if __name__ == "__main__":
    sys.exit(main())

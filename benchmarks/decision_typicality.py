"""Typicality on GRID probes: fitted under seen corruptions, judged on clean clips and under seen and unseen ones.

    MMBALANCE_DATA=... python benchmarks/decision_typicality.py [--cache outputs/probes] [--labels digit letter]

`decide_splits` fits the full ladder, as `mmbalance decide --known_groups` does (the only speaker is known).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from decision_attribution import corrupted_table
from grid_probes import load

from hf_mmbalance.decision.evaluation import decide_splits


SHOWN = (
    "audio",
    "vision",
    "sum",
    "prior_sum",
    "mean_prob",
    "temperature",
    "typicality",
    "global",
    "class",
    "adaptive",
)
PARTS = {"clean": (0,), "seen": (1, 2), "unseen": (3, 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("outputs/probes"))
    parser.add_argument("--labels", nargs="+", default=["digit", "letter"])
    arguments = parser.parse_args()
    grid = load(arguments.cache)
    for label in arguments.labels:
        judged = decide_splits(corrupted_table(grid, label), known_groups=True)
        print(f"{label}: chosen {judged.allocation.chosen_}; accuracy / NLL on 300 test clips per draw")
        for line in judged.allocation.describe()["lines"][1:]:
            print(f"  {line}")
        print(f"  {'':12s}" + "".join(f"{part:>16s}" for part in PARTS))
        for method in SHOWN:
            hit, loss = judged.per_clip(method)
            cells = []
            for draws in PARTS.values():
                inside = [draw in draws for draw in judged.table.draw_numbers]
                cells.append(f"{hit[inside].mean():8.3f} / {loss[inside].mean():5.2f}")
            print(f"  {method:12s}" + "".join(f"{cell:>16s}" for cell in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""GRID: from the official layout (s1/*.mpg or .mp4, align/*.align) to validated Parquet.

python dataset_scripts/grid.py build --source grid --out built/grid --num_proc 8
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hf_mmbalance.building.cli import DatasetScript
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions
from hf_mmbalance.building.recipes.grid import plan_grid
from hf_mmbalance.data.sources.grid import WORDS
from hf_mmbalance.hub.dataset_push import add_publish


CARD = Path(__file__).resolve().parents[1] / "model_cards" / "dataset_grid.md"


def plan(args: argparse.Namespace, encode: EncodeOptions) -> BuildPlan:
    return plan_grid(
        args.source,
        encode,
        label=args.label,
        speakers=args.speakers,
        clips_per_shard=args.clips_per_shard,
        max_lost=args.max_lost,
    )


def script() -> DatasetScript:
    tool = DatasetScript("grid", __doc__ or "", plan, CARD, max_lost=0.05)
    add = tool.build_flags.add_argument
    add("--label", choices=WORDS, default="digit", help="word to balance and count by (all six are columns)")
    add("--speakers", nargs="+", help="build only these speakers, e.g. s1 s2")
    add_publish(tool)
    return tool


if __name__ == "__main__":
    sys.exit(script().main())

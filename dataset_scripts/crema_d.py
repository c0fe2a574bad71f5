"""CREMA-D: from the official repository to validated Parquet.

python dataset_scripts/crema_d.py build --source CREMA-D --out built/crema_d --num_proc 8
python dataset_scripts/crema_d.py votes --source CREMA-D --out crema_d_votes.parquet
python dataset_scripts/crema_d.py validate built/crema_d
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hf_mmbalance.building.cli import DatasetScript
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions
from hf_mmbalance.building.recipes.crema_d import plan_crema_d
from hf_mmbalance.hub.dataset_push import add_publish


CARD = Path(__file__).resolve().parents[1] / "model_cards" / "dataset_crema_d.md"


def plan(args: argparse.Namespace, encode: EncodeOptions) -> BuildPlan:
    return plan_crema_d(
        args.source,
        encode,
        checksums=args.checksums,
        ogm_split=args.ogm_split,
        clips_per_shard=args.clips_per_shard,
        max_lost=args.max_lost,
    )


def votes(args: argparse.Namespace, say: Any) -> dict[str, Any]:
    from hf_mmbalance.building.recipes.crema_d_votes import crema_d_votes
    from hf_mmbalance.decision.table import DecisionTable

    fields = crema_d_votes(args.source)
    DecisionTable(**fields).write(args.out)
    say(f"{len(fields['ids'])} clips by {len(set(fields['groups']))} actors -> {args.out}")
    return {"clips": len(fields["ids"]), "actors": len(set(fields["groups"]))}


def script() -> DatasetScript:
    tool = DatasetScript("crema_d", __doc__ or "", plan, CARD, max_lost=1.0)
    add = tool.build_flags.add_argument
    add("--checksums", type=Path, help="CSV of path,sha256,bytes per file (default: media_sha256.csv in the source)")
    add("--ogm_split", type=Path, help="folder with OGM-GE's train.csv and test.csv (default: SOURCE/splits/ogm)")
    flags = tool.verb("votes", "write the raters' votes as a decision table", votes)
    flags.add_argument("--source", type=Path, required=True, help="the repository, or tabulatedVotes.csv")
    flags.add_argument("--out", type=Path, required=True, help="decision table to write (.parquet or .npz)")
    add_publish(tool)
    return tool


if __name__ == "__main__":
    sys.exit(script().main())

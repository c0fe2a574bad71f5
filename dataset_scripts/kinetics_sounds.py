"""Kinetics-Sounds: from a local copy of Kinetics-400 to validated Parquet, for private use.

The videos may not be republished. The list of clips may be: the command `annotations` writes it.

python dataset_scripts/kinetics_sounds.py build --source k400 --annotations KS_train_val.json --out built/ks
python dataset_scripts/kinetics_sounds.py annotations --annotations KS_train_val.json --out built/ks_annotations
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hf_mmbalance.building.cli import DatasetScript
from hf_mmbalance.building.csv_files import read_text
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions
from hf_mmbalance.building.recipes.kinetics_sounds import plan_kinetics_sounds, write_annotations
from hf_mmbalance.hub.dataset_push import add_publish


CARD = Path(__file__).resolve().parents[1] / "model_cards" / "dataset_kinetics_sounds.md"


def plan(args: argparse.Namespace, encode: EncodeOptions) -> BuildPlan:
    return plan_kinetics_sounds(
        args.source,
        encode,
        annotations=args.annotations,
        two_way=tuple(args.two_way) if args.two_way else None,
        classes=own_classes(args.classes),
        trimmed=args.trimmed,
        clips_per_shard=args.clips_per_shard,
        max_lost=args.max_lost,
    )


def own_classes(path: Path | None) -> list[str] | None:
    return (
        None
        if path is None
        else [line.strip() for line in read_text(path, "give one class per line").splitlines() if line.strip()]
    )


def write_list(args: argparse.Namespace, say: Any) -> dict[str, Any]:
    counts = write_annotations(args.annotations, own_classes(args.classes), args.out)
    say(f"{counts} clips (ids, times and labels only) -> {args.out}")
    return {"clips": counts}


def add_list_flags(parser: argparse.ArgumentParser) -> None:
    kinds = "three-way JSON, Kinetics-400's CSV files, or the Parquet files of a published list"
    parser.add_argument("--annotations", type=Path, nargs="+", required=True, help=kinds)
    parser.add_argument("--classes", type=Path, help="file with your own classes, one per line (default: the 31)")


def script() -> DatasetScript:
    tool = DatasetScript("kinetics_sounds", __doc__ or "", plan, CARD, max_lost=0.35)
    add_list_flags(tool.build_flags)
    add = tool.build_flags.add_argument
    add("--two_way", type=Path, nargs=2, metavar=("TRAIN", "TEST"), help="two-way split: my_train.txt my_test.txt")
    add("--trimmed", choices=("auto", "yes", "no"), default="auto", help="whether files hold only the clip")
    flags = tool.verb("annotations", "write the publishable list: ids, times, labels, splits", write_list)
    add_list_flags(flags)
    flags.add_argument("--out", type=Path, required=True, help="folder to write")
    add_publish(tool, media_may_be_public=False)
    return tool


if __name__ == "__main__":
    sys.exit(script().main())

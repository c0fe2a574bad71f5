"""`adaptive` against the sum and a reference on every decision table of a folder (one per seed): mean differences.

    python benchmarks/decision_tables.py FOLDER --fit_split validation --reference concat --over_reference 3

Tables are fitted on one split and judged on another; exits with 1 if a mean difference (in points of accuracy) falls
short of what was asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.decision.evaluation import DecisionReport, decide_splits
from hf_mmbalance.decision.table import DecisionTable


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fit_split", default="calibration")
    parser.add_argument("--eval_split", default="test")
    parser.add_argument("--reference", help="reference column to compare with, e.g. concat")
    parser.add_argument("--over_reference", type=float, default=0.0, help="points adaptive must be above it")
    parser.add_argument("--over_sum", type=float, default=0.0, help="points adaptive must be above the sum")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    files = sorted([*arguments.folder.glob("*.parquet"), *arguments.folder.glob("*.npz")])
    if not files:
        parser.error(f"{arguments.folder} holds no decision tables (.parquet, .npz)")
    runs: dict[str, DecisionReport] = {}
    for file in files:
        runs[file.stem] = decide_splits(
            DecisionTable.read(file), fit_split=arguments.fit_split, eval_split=arguments.eval_split
        )
        found = runs[file.stem]
        print(f"{file.stem}: {len(found.table)} clips, {found.allocation.chosen_}: {found.allocation.reason_}")
    rows = mean_rows(list(runs.values()))
    print(f"\n{'method':24s} {'accuracy':>9s} {'sd':>6s} {'nll':>8s} {'ece':>7s}   mean of {len(files)} tables")
    for name, row in rows.items():
        print(f"{name:24s} {100 * row['accuracy']:9.2f} {100 * row['sd']:6.2f} {row['nll']:8.4f} {row['ece']:7.4f}")
    wanted = {"sum": arguments.over_sum}
    if arguments.reference:
        wanted[f"reference.{arguments.reference}"] = arguments.over_reference
    passed = True
    for name, points in wanted.items():
        gap = 100 * (rows["adaptive"]["accuracy"] - rows[name]["accuracy"])
        passed &= gap >= points
        print(f"{'pass' if gap >= points else 'FAIL'}  adaptive - {name}: {gap:+.2f} points (at least {points:+.2f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0 if passed else 1


def mean_rows(runs: list[DecisionReport]) -> dict[str, dict[str, Any]]:
    """Mean over tables of every method that all of them have, and the standard deviation of its accuracy."""
    names = [name for name in runs[0].fusions if all(name in run.fusions for run in runs)]
    result: dict[str, dict[str, Any]] = {}
    for name in names:
        rows = [run.row(name) for run in runs]
        result[name] = {key: float(np.mean([row[key] for row in rows])) for key in ("accuracy", "nll", "ece")}
        result[name]["sd"] = float(np.std([row["accuracy"] for row in rows], ddof=1)) if len(rows) > 1 else 0.0
    return result


if __name__ == "__main__":
    sys.exit(main())

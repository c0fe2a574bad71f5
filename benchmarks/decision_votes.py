"""The decision layer on CREMA-D's human votes: the full ladder, out of fold, mean over fold seeds.

    MMBALANCE_DATA=... python benchmarks/decision_votes.py [--seeds 5] [--json FILE]

Uses actor-disjoint outer folds and group cross-validation inside every fit; prints the figures the project promises.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from hf_mmbalance.building.recipes.crema_d_votes import crema_d_votes
from hf_mmbalance.decision.evaluation import DecisionReport, decide_folds
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.metrics.measures import bootstrap_ci


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if "MMBALANCE_DATA" not in os.environ:
        parser.error("set MMBALANCE_DATA to the folder that holds crema_d/")
    table = DecisionTable(**crema_d_votes(Path(os.environ["MMBALANCE_DATA"]) / "crema_d"))
    runs: list[DecisionReport] = []
    seconds: list[float] = []
    for seed in range(arguments.seeds):
        start = time.process_time()
        runs.append(decide_folds(table, folds=arguments.folds, seed=seed))
        seconds.append(time.process_time() - start)
        print(
            f"seed {seed}: {seconds[-1]:.0f} CPU s, chosen {[part.chosen_ for _, part in runs[-1].parts]}",
            file=sys.stderr,
        )
    report = summary(runs) | {"cpu_seconds_per_seed": seconds}
    print(f"{len(table)} clips, {len(set(table.groups))} actors, {arguments.folds} folds, {arguments.seeds} seeds")
    print(f"{'method':24s} {'accuracy':>9s} {'95 % interval':>16s} {'nll':>8s} {'ece':>7s}")
    for name, row in report["rows"].items():
        low, high = row["accuracy_ci"]
        print(f"{name:24s} {100 * row['accuracy']:9.2f} [{100 * low:6.2f}, {100 * high:6.2f}] {row['nll']:8.4f}"
              f" {row['ece']:7.4f}")  # fmt: skip
    for name, row in report["differences"].items():
        low, high = row["accuracy_ci"]
        print(f"adaptive - {name}: {100 * row['accuracy']:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]")
    print(f"chosen: {report['chosen']}; longest run {max(seconds):.0f} CPU seconds, one thread (full ladder, nested)")
    adaptive, total, face = (report["rows"][name] for name in ("adaptive", "sum", "face"))
    checks = {
        "sum near .650": abs(total["accuracy"] - 0.650) < 0.005,
        "face near .690": abs(face["accuracy"] - 0.690) < 0.005,
        "adaptive accuracy >= .771": adaptive["accuracy"] >= 0.771,
        "adaptive NLL <= .613": adaptive["nll"] <= 0.613,
        "longest run < 90 CPU s": max(seconds) < 90,
    }
    for name, passed in checks.items():
        print(f"{'pass' if passed else 'FAIL'}  {name}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report | {"checks": checks}, indent=1), encoding="utf-8")
    return 0 if all(checks.values()) else 1


def summary(runs: list[DecisionReport]) -> dict[str, Any]:
    """Return the mean of every row over the seeds, and how often each rung was chosen.

    Intervals are bootstraps over actors of each clip's mean over the seeds.
    """
    groups = runs[0].table.groups
    rows: dict[str, dict[str, Any]] = {}
    for name in runs[0].fusions:
        found = [run.row(name) for run in runs]
        rows[name] = {key: float(np.mean([row[key] for row in found])) for key in ("accuracy", "nll", "ece")}
        rows[name]["accuracy_ci"] = bootstrap_ci(_hits(runs, name), groups)
    differences: dict[str, dict[str, Any]] = {}
    for name in ("sum", "best_single"):
        pairs = _hits(runs, "adaptive") - _hits(runs, name)
        differences[name] = {"accuracy": float(pairs.mean()), "accuracy_ci": bootstrap_ci(pairs, groups)}
    chosen = [rung for run in runs for rung in [part.chosen_ for _, part in run.parts]]
    counts = {rung: chosen.count(rung) for rung in sorted(set(chosen))}
    return {"rows": rows, "differences": differences, "chosen": counts}


def _hits(runs: list[DecisionReport], name: str) -> np.ndarray:
    """Return how often a method gets each clip right, as a fraction of the seeds."""
    assert all(run.table.ids == runs[0].table.ids for run in runs)
    return np.mean([run.per_clip(name)[0] for run in runs], axis=0)


if __name__ == "__main__":
    sys.exit(main())

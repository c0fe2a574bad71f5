"""Frozen towers on spoken digits of GRID: `adaptive` against the uniform sum and a concat head, mean over seeds.

    MMBALANCE_DATA=DATA python benchmarks/decision_grid.py [--out FOLDER]

The towers of `grid_digits.yaml` are trained apart under the uniform sum, for 40 epochs, and then frozen. The
allocation is fitted on the validation split, the concat head (a linear layer on both towers' features) on the train
split; both are judged on test. Runs that are in FOLDER are not made again. About 5 minutes per seed on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_mmbalance.decision.table import DecisionTable


ROOT = Path(__file__).parents[1]
RECIPE = (
    *("--config", "grid_digits", "--fusion", "sum", "--num_train_epochs", "40"),
    *("--save_features", "true"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/decision_grid"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    data = os.environ.get("MMBALANCE_DATA")
    if data is None:
        parser.error("set MMBALANCE_DATA to the folder that holds grid_s1")
    tables = arguments.out / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        run = arguments.out / f"seed{seed}"
        if not (run / "results.json").exists():
            train(run, seed, Path(data) / "grid_s1", arguments.out / "clips")
        with_concat(DecisionTable.read(run / "decisions.parquet")).write(tables / f"seed{seed}.parquet")
    judge = [sys.executable, str(ROOT / "benchmarks" / "decision_tables.py"), str(tables)]
    judge += ["--fit_split", "validation", "--reference", "concat", "--over_reference", "3", "--over_sum", "2.5"]
    return subprocess.run(judge, check=False).returncode


def train(run: Path, seed: int, clips: Path, cache: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *RECIPE, "--data_dir", str(clips), "--cache_dir", str(cache)]
    subprocess.run([*command, "--seed", str(seed), "--output_dir", str(run)], check=True)


def with_concat(table: DecisionTable) -> DecisionTable:
    """The table with `reference.concat`: a linear layer on the features of both towers, fitted on train."""
    both = np.concatenate([table.features[modality] for modality in table.modalities], axis=1)
    rows = np.array(table.splits) == "train"
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    head.fit(both[rows], table.labels[rows])
    return dataclasses.replace(table, references={**table.references, "concat": head.predict_log_proba(both)})


if __name__ == "__main__":
    sys.exit(main())

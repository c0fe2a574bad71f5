"""Calibrate and fuse the outputs of two scikit-learn models: no media, no network, no GPU.

python examples/calibrate_a_table.py --report digits.html
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from hf_mmbalance.decision import DecisionTable, decide_table, diagnose, write_report


def make_table() -> DecisionTable:
    """Return logits of two models, one per half of each image; the lower has noise that its model memorises."""
    pixels, digits = load_digits(return_X_y=True)
    noise = np.random.default_rng(0).normal(0, 0.5, (len(pixels), 300))
    views = {"top": pixels[:, :32] / 16, "bottom": np.hstack([pixels[:, 32:] / 16, noise])}
    splits = np.array(["train", "calibration", "test"])[np.arange(len(pixels)) // 10 % 3]
    train = splits == "train"
    models = {
        name: LogisticRegression(C=1 if name == "top" else 100, max_iter=500).fit(view[train], digits[train])
        for name, view in views.items()
    }
    return DecisionTable(
        ids=range(len(pixels)),
        groups=np.arange(len(pixels)) // 10,  # a group must not be on both sides of a split
        splits=splits,
        labels=digits,
        logits=np.stack([models[name].decision_function(view) for name, view in views.items()], axis=1),  # (N, M, C)
        classes=map(str, range(10)),
        modalities=views,
    )


def main(report: str | None = None) -> dict[str, float]:
    """Fit on the calibration split, judge on the test split and return the accuracies."""
    judged = decide_table(make_table())
    print("\n".join(judged.allocation.describe()["lines"]))
    rows = [judged.row(method) for method in ("top", "bottom", "sum", "mean_prob", "adaptive")]
    for row in rows:
        low, high = (100 * end for end in row["accuracy_ci"])
        print(f"{row['method']:<10} {100 * row['accuracy']:5.1f} % [{low:.1f}, {high:.1f}]   NLL {row['nll']:.3f}")
    if report is not None:
        write_report([diagnose(judged)], report)  # one page: which model the layer relies on, and why
    return {row["method"]: row["accuracy"] for row in rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", metavar="FILE", help="write a page with figures")
    main(parser.parse_args().report)

"""Heads on frozen features: discriminant analysis, as fitted by `fuse`, compared with logistic regression.

    python benchmarks/linear_heads.py EMBEDDINGS [EMBEDDINGS ...] [--labels 20 50 200 800] [--draws 5]
    MMBALANCE_DATA=DATA python benchmarks/linear_heads.py --probes CACHE

Features and draws of clips are those of `fuse_grid.py`. Both kinds of head are tuned in the same folds, by held-out
NLL at the temperature that the held-out logits need: the penalty of logistic regression (`PENALTIES`, per clip, for
features of mean squared norm 1) is chosen in the same way as the shrinkage of the discriminants. Prints the accuracy
of each modality and of the sum of both, in percent, and the NLL of the sum, as means over draws.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuse_grid import all_rows, drawn, probe_rows
from sklearn.linear_model import LogisticRegression

from hf_mmbalance.console import say, table
from hf_mmbalance.embedding.fuse import FOLDS, Rows, stratified_folds
from hf_mmbalance.embedding.heads import fit_head, smoothed_temperature
from hf_mmbalance.metrics.measures import accuracy, log_softmax, nll


PENALTIES = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)


def discriminant(features: np.ndarray, labels: np.ndarray, classes: int, folds: np.ndarray) -> Callable:
    """Fit the head of `fuse`; return a function from features to logits."""
    return fit_head(features, labels, classes, folds)[0]


def logistic(features: np.ndarray, labels: np.ndarray, classes: int, folds: np.ndarray) -> Callable:
    """Fit multinomial logistic regression, penalty and temperature by held-out NLL; return features -> logits."""
    mean = features.mean(0)
    scale = np.sqrt(((features - mean) ** 2).sum(1).mean())
    points = (features - mean) / scale

    def fitted(rows: np.ndarray, penalty: float) -> Callable:
        model = LogisticRegression(C=1 / (penalty * rows.sum()), max_iter=1000, tol=1e-5).fit(
            points[rows], labels[rows]
        )
        columns = np.full((classes, points.shape[1]), 0.0), np.full(classes, -np.log(2.0 * rows.sum()))
        columns[0][model.classes_], columns[1][model.classes_] = model.coef_, model.intercept_
        return lambda x: x @ columns[0].T + columns[1]

    best = (np.inf, 1.0, PENALTIES[0])
    for penalty in PENALTIES:
        held_out = np.empty((len(labels), classes))
        for fold in np.unique(folds):
            held_out[folds == fold] = fitted(folds != fold, penalty)(points[folds == fold])
        temperature, loss = smoothed_temperature(held_out, labels, np.ones(len(labels)))
        best = min(best, (loss, temperature, penalty))
    final = fitted(np.ones(len(labels), bool), best[2])
    return lambda x: final((x - mean) / scale) / best[1]


def judge(rows: Rows, learn: np.ndarray, seed: int, fit: Callable) -> list[float]:
    """Return the accuracy of every modality and of the sum, and NLL of the sum, on the clips outside `learn`."""
    rest = np.setdiff1d(np.arange(len(rows.ids)), learn)
    units = np.arange(len(learn))
    folds = stratified_folds(rows.labels[learn], units, units, FOLDS, seed)
    logits = []
    for features in rows.features.values():
        head = fit(features[learn], rows.labels[learn], len(rows.classes), folds)
        logits.append(log_softmax(head(features[rest])))
    labels, total = rows.labels[rest], sum(logits)
    return [*(accuracy(values, labels) for values in (*logits, total)), nll(total, labels)]


def main() -> None:
    """Print a table per task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--probes", type=Path, metavar="CACHE")
    parser.add_argument("--labels", nargs="+", type=int, default=[20, 50, 200, 800])
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="The number of unique classes")  # scikit-learn, of few clips per class
    tasks = {} if arguments.probes is None else probe_rows(arguments.probes)
    tasks |= {folder.name: all_rows(folder) for folder in arguments.folders}
    for name, rows in tasks.items():
        say(f"\n{name}: {len(rows.ids)} clips, {len(rows.classes)} classes, {arguments.draws} draws")
        lines = []
        for count in (count for count in arguments.labels if count >= 2 * len(rows.classes)):
            for fit in (logistic, discriminant):
                found = []
                for draw in range(arguments.draws):
                    learn = drawn(rows.labels, count, np.random.default_rng([draw, count]))
                    found.append(judge(rows, learn, draw, fit))
                *accuracies, loss = np.mean(found, axis=0)
                lines.append([str(count), fit.__name__, *(f"{100 * a:.1f}" for a in accuracies), f"{loss:.3f}"])
        say(table(["labels", "heads", *rows.features, "sum", "NLL of the sum"], lines))


if __name__ == "__main__":
    main()
